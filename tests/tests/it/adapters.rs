//! Adapter processes: poison, crash loops, and what misbehaves on the wire.

use std::time::Duration;

use gatepost_tests::{Builder, Gateway, interpreter, source, until, until_within};
use serde_json::{Value, json};

use crate::order_event;

/// Five exits with doubling pauses, then the breaker's probe.
pub(crate) const LOOP_DEADLINE: Duration = Duration::from_secs(60);

pub(crate) fn echo(lines: &str, settings: &str) -> Builder {
    Gateway::builder().app("shop", &["*"], &[]).echo("desk", lines, settings).route("shop", &["desk"])
}

pub(crate) fn accept(gateway: &Gateway, id: &str, data: Value) -> String {
    let answer = gateway.app().event(&order_event(id, id, &data)).expect(202);
    answer["messages"][0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_poison_message_dies_after_three_crashes_and_no_neighbour_pays() {
    let gateway = echo("", "").start();
    gateway.admin().post("/v1/queues/desk/pause", &json!({})).expect(200);
    let mut neighbours: Vec<String> =
        (0..5).map(|n| accept(&gateway, &format!("a{n}"), json!({ "n": n }))).collect();
    let poison = accept(&gateway, "poison", json!({ "do": "crash" }));
    neighbours.extend((0..5).map(|n| accept(&gateway, &format!("b{n}"), json!({ "n": n }))));
    gateway.admin().post("/v1/queues/desk/resume", &json!({})).expect(200);
    let dead = until_within(LOOP_DEADLINE, "the poison is dead", || {
        let delivery = gateway.delivery(&poison);
        (delivery["state"] == "dead").then_some(delivery)
    });
    assert_eq!(dead["reason"], "poison", "{dead}");
    let unharmed = accept(&gateway, "later", json!({}));
    let charged = gateway.until_state(&unharmed, "delivered")["attempts"].clone();
    for neighbour in &neighbours {
        let delivery = gateway.until_state(neighbour, "delivered");
        assert_eq!(delivery["attempts"], charged, "as one that never met the poison: {delivery}");
    }
    gateway.audit_verifies();
}

#[test]
fn a_crash_loop_trips_the_destination_and_it_probes_by_itself() {
    let builder = Gateway::builder();
    let broken = builder.dir().join("broken");
    std::fs::write(&broken, "").unwrap();
    let script = "test \"$1\" = --manifest && exit 64; test \"$1\" = --check && exit 0; test -e \"$0\" && exit 7; exec \"$1\"";
    let run = json!(["/bin/sh", "-c", script, broken, gatepost_tests::program("gatepost-echo")]);
    let effects = builder.dir().join("desk.effects").display().to_string();
    std::fs::write(&effects, "").unwrap();
    let lines = format!("run = {run}\nconfirm = \"sent\"\nallow = {{ write = [{effects:?}] }}");
    let mut gateway = builder
        .app("shop", &["*"], &[])
        .adapter("desk", &lines, &format!("effects = {effects:?}"))
        .route("shop", &["desk"])
        .start();
    until_within(LOOP_DEADLINE, "the loop is seen", || {
        (gateway.adapter("desk")["state"] == "tripped").then_some(())
    });
    // While it is tried again it is not tripped.
    until_within(LOOP_DEADLINE, "readiness names it", || {
        let readiness = gateway.admin().get("/readyz");
        (readiness.status == 503 && readiness.text().contains("desk")).then_some(())
    });
    let message = accept(&gateway, "1", json!({}));
    std::fs::remove_file(&broken).unwrap();
    until_within(LOOP_DEADLINE, "it recovered by itself", || {
        (gateway.delivery(&message)["state"] == "delivered").then_some(())
    });
    until("it is ready again", || (gateway.admin().get("/readyz").status == 200).then_some(()));
    assert!(gateway.stop().success());
    gateway.audit_verifies();
}

#[test]
fn an_adapter_that_misbehaves_harms_nobody_but_itself() {
    let gateway = echo("retry = { initial = \"50ms\" }", "").start();
    for (id, command) in [("1", "double"), ("2", "stale"), ("3", "garbage"), ("4", "slow")] {
        let message = accept(&gateway, id, json!({ "do": command }));
        gateway.until_state(&message, "delivered");
        let effects = gateway.effects("desk");
        let times = effects.iter().filter(|effect| effect["message"] == message.as_str()).count();
        assert_eq!(times, 1, "{command}");
    }
    let rejected = accept(&gateway, "5", json!({ "do": "reject" }));
    gateway.until_state(&rejected, "dead");
    gateway.audit_verifies();
}

#[test]
fn an_operator_calls_an_adapter_and_the_log_has_what_was_asked_and_what_came_of_it() {
    let mut gateway = echo("", "calls = true").start();
    let call =
        |gateway: &Gateway, words: &[&str]| gateway.cli(&[&["adapter", "call", "desk"], words].concat());
    until("it takes calls", || gateway.cli(&["adapter", "calls", "desk"]).status.success().then_some(()));
    let looked = call(&gateway, &["look", "--json"]);
    let looked: Value = serde_json::from_slice(&looked.stdout).unwrap();
    assert_eq!(looked["epoch"], gateway.adapter("desk")["session_epoch"]);

    let said = call(&gateway, &["say", "text=hello", "--reason", "a trial"]);
    assert_eq!((said.status.code(), String::from_utf8_lossy(&said.stdout).trim()), (Some(0), "said: true"));
    let last = gateway.effects("desk").pop().unwrap();
    assert_eq!(last["said"], "hello", "{last}");
    let refused = call(&gateway, &["refuse", "--reason", "a trial"]);
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not on a Monday"));
    let groundless = call(&gateway, &["say", "text=again"]);
    assert_eq!(groundless.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&groundless.stderr).contains("reason"));

    // Whether it has done it before it died, nobody knows; and its successor is not asked.
    let unanswered = call(&gateway, &["die", "--reason", "a trial"]);
    assert_eq!(unanswered.status.code(), Some(4));
    let told = String::from_utf8_lossy(&unanswered.stderr).into_owned();
    assert!(told.contains("call_unanswered"), "{told}");
    until("its successor takes calls", || call(&gateway, &["look"]).status.success().then_some(()));

    let log = gateway.audit_log();
    let of = |event: &str| -> Vec<Value> {
        log.iter().filter(|leaf| leaf["event"] == event).map(|leaf| leaf["code"].clone()).collect()
    };
    assert_eq!(of("adapter_called"), ["say", "refuse", "die"]);
    assert_eq!(of("adapter_answered"), ["done", "refused"]);
    assert!(gateway.stop().success());
    gateway.audit_verifies();
}

/// Their arguments and reasons can name people.
#[test]
fn texts_of_calls_go_when_payloads_of_their_age_do() {
    let builder = echo("", "calls = true");
    let audit = builder.dir().join("data/audit");
    let mut gateway = builder.start();
    until("it takes calls", || gateway.cli(&["adapter", "calls", "desk"]).status.success().then_some(()));
    gateway.cli_ok(&["adapter", "call", "desk", "say", "text=hello", "--reason", "a trial"]);
    assert!(gateway.stop().success());
    let texts = || -> Vec<String> {
        let names = std::fs::read_dir(&audit).unwrap().map(|entry| entry.unwrap().file_name());
        let names = names.map(|name| name.into_string().unwrap());
        names.filter(|name| name.trim_start_matches('.').starts_with("call-")).collect()
    };
    let own = texts();
    assert_eq!(own.len(), 1);
    // Of the year 2020; the second one was being written when the gateway was killed.
    for name in [
        "call-016f5e66-e800-7000-8000-000000000001.json",
        ".call-016f5e66-e800-7000-8000-000000000002.json.tmp",
    ] {
        std::fs::write(audit.join(name), "{}").unwrap();
    }
    gateway.restart();
    until("the old ones are gone", || (texts() == own).then_some(()));
    assert!(gateway.stop().success());
    gateway.audit_verifies();
}

#[test]
fn an_adapter_that_hangs_can_be_restarted_and_the_rest_goes_on() {
    let gateway = echo("", "batch = 1").start();
    let hanging = accept(&gateway, "1", json!({ "do": "hang" }));
    until("it hangs", || (gateway.delivery(&hanging)["state"] == "sending").then_some(()));
    let other = accept(&gateway, "2", json!({}));
    // Three deaths with it in hand, and it is poison.
    until_within(LOOP_DEADLINE, "the hanging one is dead", || {
        let delivery = gateway.delivery(&hanging);
        if delivery["state"] == "sending" {
            gateway.kill_adapter("desk");
        }
        (delivery["state"] == "dead").then_some(())
    });
    assert_eq!(gateway.delivery(&hanging)["reason"], "poison");
    until_within(LOOP_DEADLINE, "the other is delivered", || {
        (gateway.delivery(&other)["state"] == "delivered").then_some(())
    });
}

#[test]
fn attempts_are_limited() {
    let gateway = echo("retry = { initial = \"50ms\", max = \"50ms\", attempts = 3 }", "").start();
    let message = accept(&gateway, "1", json!({ "do": "fail" }));
    let dead = gateway.until_state(&message, "dead");
    assert_eq!((&dead["attempts"], &dead["reason"]), (&json!(3), &json!("attempts_spent")));
    let id = dead["id"].as_str().unwrap();
    gateway.admin().post(&format!("/v1/deliveries/{id}/replay"), &json!({ "reason": "test" })).expect(200);
    until("its second series is over", || {
        let delivery = gateway.delivery(&message);
        (delivery["series"] == 1 && delivery["state"] == "dead").then_some(())
    });
    gateway.admin().post(&format!("/v1/deliveries/{id}/discard"), &json!({ "reason": "test" })).expect(200);
    assert_eq!(gateway.delivery(&message)["state"], "discarded");
}

#[test]
fn the_python_adapter_is_a_whole_adapter() {
    let builder = Gateway::builder();
    let partner = builder.dir().join("partner.jsonl");
    std::fs::write(&partner, "").unwrap();
    let (python, library) = interpreter();
    let run = json!([python, source("adapter.py")]);
    let allow = format!("allow = {{ read = [{library:?}], write = [{partner:?}] }}");
    let gateway = builder
        .app("shop", &["*"], &[])
        .adapter(
            "desk",
            &format!("run = {run}\nconfirm = \"sent\"\norder = \"key\"\n{allow}"),
            &format!("file = {:?}", partner.display().to_string()),
        )
        .route("shop", &["desk"])
        .start();
    let messages: Vec<String> =
        (0..20).map(|n| accept(&gateway, &n.to_string(), json!({ "n": n }))).collect();
    for message in &messages {
        gateway.until_state(message, "delivered");
    }
    let lines = std::fs::read_to_string(&partner).unwrap();
    assert_eq!(lines.lines().count(), messages.len());
    // Killed, it comes back and goes on.
    assert!(gateway.kill_adapter("desk"));
    let message = accept(&gateway, "after", json!({}));
    gateway.until_state(&message, "delivered");
}
