//! Rule 13.3: sessions fence adapters; what is repeated is recognised.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use gatepost_tests::http::Answer;
use gatepost_tests::{program, settle_item, until, until_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::desk::{Desk, QUICK, item, names};
use crate::adapters::LOOP_DEADLINE;
use crate::order_event;

const HANGS_UP: u32 = 20;

fn answer_event(id: &str) -> Value {
    json!({ "specversion": "1.0", "id": id, "source": "/desk", "type": "answers.new", "data": { "id": id } })
}

#[test]
fn r13_3_a_new_session_takes_all_leases_back_at_once() {
    for policy in ["resend", "query", "hold"] {
        let mut desk = Desk::start(&format!("on_doubt = {policy:?}"));
        desk.send("begun", "a");
        desk.send("unbegun", "b");
        let leased = desk.lease(2);
        desk.taken(&leased[0], "begin");
        let state = json!({ "results": [], "state": { "seq": "MQ==" } });
        desk.try_settle(&state).expect(200);
        assert_eq!(desk.open()["state"], json!({ "seq": "MQ==" }), "its state comes with the session");
        assert_eq!(desk.delivery(&leased[0])["state"], "in_doubt", "{policy}");
        // With `resend` the lease had begun it.
        let unbegun = if policy == "resend" { "in_doubt" } else { "waiting" };
        assert_eq!(desk.delivery(&leased[1])["state"], unbegun, "{policy}");
        let held = desk.gateway.queue("desk")["depth"]["held"].as_u64();
        assert_eq!(held, Some(u64::from(policy == "hold")), "{policy}");
        for leased in &leased {
            desk.stale(leased, "delivered");
            desk.stale(leased, "reject");
        }
    }
}

#[test]
fn r13_3_what_an_older_session_says_is_superseded_and_changes_nothing() {
    let mut desk = Desk::start(&format!("on_doubt = \"query\"\n{QUICK}"));
    let old = desk.epoch;
    desk.send("1", "k");
    let leased = desk.next();
    desk.taken(&leased, "begin");
    desk.open();
    assert!(desk.epoch > old);
    let delivered = item(&leased, "delivered");
    let settles = [
        json!({ "results": [delivered] }),
        json!({ "results": [delivered], "emit": [answer_event("e")] }),
        json!({ "results": [delivered], "state": { "seq": "OQ==" } }),
        json!({ "results": [], "state": { "seq": "OQ==" } }),
        json!({ "results": [], "emit": [answer_event("e")] }),
    ];
    for epoch in [old, desk.epoch + 1] {
        for settle in &settles {
            let mut settle = settle.clone();
            settle["epoch"] = json!(epoch);
            assert_eq!(desk.refused(&settle, 409), "superseded", "{settle}");
        }
        let before = desk.traces();
        assert_eq!(desk.try_lease(epoch, &json!({ "max": 1 })).problem(409), "superseded");
        assert_eq!(accept(&desk, epoch, "late").problem(409), "superseded");
        assert_eq!(desk.traces(), before);
    }
    assert!(desk.gateway.lease("answers", 5).is_empty(), "nothing of it was taken in");
    assert_eq!(desk.open()["state"], json!({}), "nor of its state");
    accept(&desk, desk.epoch, "in time").expect(202);
    assert_eq!(desk.gateway.lease("answers", 5).len(), 1);
    desk.gateway.audit_verifies();
}

/// The adapter takes in a message from its partner.
fn accept(desk: &Desk, epoch: u64, id: &str) -> Answer {
    let headers = ["content-type: application/cloudevents+json", &format!("gatepost-epoch: {epoch}")];
    desk.client().send("POST", "/v1/messages", &headers, answer_event(id).to_string().as_bytes()).unwrap()
}

/// Sends a settle. Who drops the connection unread has lost the answer.
#[must_use]
fn settle_unanswered(desk: &Desk, settle: &Value) -> UnixStream {
    let body = settle.to_string();
    let mut stream = UnixStream::connect(desk.gateway.path("adapter.sock")).unwrap();
    let head = "POST /v1/settle HTTP/1.1\r\nhost: gatepost\r\ncontent-type: application/json\r\nconnection: close\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    stream
}

#[test]
fn r13_3_a_settle_whose_answer_is_lost_is_repeated_with_the_same_answer_and_one_change() {
    let mut desk = Desk::start("on_doubt = \"query\"");
    desk.send("1", "k");
    let leased = desk.next();
    desk.taken(&leased, "begin");
    let settle = json!({
        "epoch": desk.epoch, "results": [item(&leased, "delivered")],
        "emit": [answer_event("a")], "state": { "seq": "Nw==" },
    });
    let connection = settle_unanswered(&desk, &settle);
    until("it is taken", || (desk.delivery(&leased)["state"] == "delivered").then_some(()));
    drop(connection);
    let before = desk.traces();
    let again = desk.try_settle(&settle).expect(200);
    assert_eq!(again["results"], json!([{ "delivery": leased["id"], "status": "ok", "state": "delivered" }]));
    assert_eq!(again["emitted"][0]["duplicate"], true);
    let third = desk.try_settle(&settle).expect(200);
    assert_eq!(third, again, "and again the same");
    assert_eq!(desk.traces(), before, "a repetition is not a change");
    assert_eq!(desk.story(&leased), ["attempt", "delivered"]);
    let answers = desk.gateway.lease("answers", 5);
    assert_eq!(answers.len(), 1, "one answer came in");
    assert_eq!(answers[0]["event"]["gatepostid"], again["emitted"][0]["id"]);
    assert_eq!(desk.stale(&leased, "reject"), "delivered", "another outcome with the same token");
    assert_eq!(desk.open()["state"], json!({ "seq": "Nw==" }));
    desk.gateway.audit_verifies();
}

#[test]
fn r13_3_who_hangs_up_on_its_settle_and_repeats_it_has_settled_once() {
    let desk = Desk::start(QUICK);
    for n in 0..HANGS_UP {
        desk.send(&n.to_string(), &n.to_string());
    }
    let leased = desk.lease(HANGS_UP);
    for leased in &leased {
        // Taken or not, depending on who is quicker; both are right.
        drop(settle_unanswered(
            &desk,
            &json!({ "epoch": desk.epoch, "results": [item(leased, "delivered")] }),
        ));
        assert_eq!(desk.taken(leased, "delivered"), "delivered");
    }
    for leased in &leased {
        assert_eq!(desk.story(leased), ["attempt", "delivered"]);
    }
    desk.gateway.audit_verifies();
}

#[test]
fn r13_3_a_settle_whose_answer_is_lost_with_the_gateway_is_repeated_after_its_restart() {
    let mut desk = Desk::start(QUICK);
    desk.send("1", "k");
    let leased = desk.next();
    desk.taken(&leased, "delivered");
    desk.gateway.kill();
    desk.gateway.restart();
    let before = desk.traces();
    assert_eq!(desk.taken(&leased, "delivered"), "delivered");
    assert_eq!(desk.stale(&leased, "retry"), "delivered");
    assert_eq!(desk.traces(), before);
}

#[test]
fn r13_3_the_same_again_is_ok_until_the_next_lease() {
    let desk = Desk::start(QUICK);
    desk.send("1", "k");
    let leased = desk.next();
    assert_eq!(desk.taken(&leased, "retry"), "waiting");
    assert_eq!(desk.taken(&leased, "retry"), "waiting");
    assert_eq!(desk.charged(&leased), (1, false), "one retry, said twice");
    assert_eq!(desk.stale(&leased, "delivered"), "waiting");
    let again = desk.next();
    assert_ne!(again["token"], leased["token"]);
    for outcome in ["retry", "delivered", "reject", "release", "extend", "begin", "in_doubt"] {
        assert_eq!(desk.stale(&leased, outcome), "sending", "{outcome}");
    }
    assert_eq!(desk.taken(&again, "delivered"), "delivered");
}

#[test]
fn r13_3_state_and_emit_make_a_settle_all_or_nothing() {
    let mut desk = Desk::start("");
    for id in ["1", "2"] {
        desk.send(id, id);
    }
    let leased = desk.lease(2);
    desk.taken(&leased[0], "delivered");
    let results = json!([settle_item(&leased[0], "reject"), item(&leased[1], "delivered")]);
    for settle in [
        json!({ "results": results, "atomic": true }),
        json!({ "results": results, "state": { "seq": "OQ==" } }),
        json!({ "results": results, "emit": [answer_event("e")] }),
        json!({ "results": results, "emit": [answer_event("e")], "atomic": false }),
    ] {
        assert_eq!(desk.refused(&settle, 409), "settle_refused", "{settle}");
        let problem = desk.try_settle(&settle).json();
        let said =
            |n: usize| (problem["results"][n]["delivery"].clone(), problem["results"][n]["status"].clone());
        assert_eq!(
            [said(0), said(1)],
            [(leased[0]["id"].clone(), json!("stale")), (leased[1]["id"].clone(), json!("ok"))]
        );
    }
    assert!(desk.gateway.lease("answers", 5).is_empty());
    let mixed = desk.try_settle(&json!({ "results": results })).expect(200);
    let statuses: Vec<&Value> = (0..2).map(|n| &mixed["results"][n]["status"]).collect();
    assert_eq!(statuses, ["stale", "ok"], "without them one item's lateness is its own");
    assert_eq!(desk.open()["state"], json!({}));
}

/// A process that is ended with the test.
struct Echo(Child);

impl Echo {
    fn start(desk: &Desk) -> Self {
        let child = Command::new(program("gatepost-echo"))
            .env("GATEPOST_SOCKET", desk.gateway.path("adapter.sock"))
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn r13_3_an_adapter_that_was_paused_past_its_successors_start_changes_nothing() {
    let mut desk =
        Desk::start_with("on_doubt = \"query\"\nretry = { initial = \"50ms\", max = \"50ms\" }", |builder| {
            let effects = builder.dir().join("desk.effects").display().to_string();
            builder.table("[adapters.desk.settings]", &format!("effects = {effects:?}"))
        });
    let mut paused = Echo::start(&desk);
    let message = desk.send_event(&order_event("1", "k", &json!({ "do": "pause" })));
    until("it stands still, with the delivery begun", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", paused.0.id())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().starts_with('T').then_some(())
    });
    assert_eq!(desk.gateway.delivery(&message)["state"], "sending");
    desk.open();
    let taken_over = until("its successor has it", || desk.lease(1).pop());
    assert_eq!(
        (&taken_over["event"]["gatepostid"], &taken_over["in_doubt"]),
        (&json!(message), &json!(true))
    );
    desk.taken(&taken_over, "begin");
    let before = desk.traces();
    kill(Pid::from_raw(paused.0.id().cast_signed()), Signal::SIGCONT).unwrap();
    let ended =
        until_within(LOOP_DEADLINE, "it has learnt that its time is over", || paused.0.try_wait().unwrap());
    assert!(!ended.success(), "its settle was refused");
    assert_eq!(desk.gateway.effects("desk").len(), 1, "what it had begun reached the partner");
    assert_eq!(desk.traces(), before, "and changed nothing here");
    // The successor asks the partner, who has it.
    assert_eq!(desk.taken(&taken_over, "delivered"), "delivered");
    assert_eq!(names(&desk.lease(5)), [""; 0]);
    desk.gateway.audit_verifies();
}

#[test]
fn r13_3_a_process_that_was_paused_past_its_lease_is_told_that_it_is_late() {
    // Longer than anybody is held up who has not stopped himself.
    const LEASE_MS: u64 = 9000;
    let is_told = |policy: &str, times: usize| {
        let lines = format!("on_doubt = {policy:?}\n{QUICK}");
        let gateway = crate::adapters::echo(&lines, &format!("lease_ms = {LEASE_MS}")).start();
        let message = crate::adapters::accept(&gateway, "1", json!({ "do": "pause" }));
        // Its lease ends while it stands still.
        let late = gateway.until_state(&message, "in_doubt");
        assert_eq!(late["attempts"], 1, "{policy}");
        let pid = gateway.adapter("desk")["pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGCONT).unwrap();
        if policy == "resend" {
            gateway.until_state(&message, "delivered");
        } else {
            // The next one shows that it has gone on, and that its settle of the first came to nothing.
            let next = crate::adapters::accept(&gateway, "2", json!({}));
            gateway.until_state(&next, "delivered");
            assert_eq!(gateway.delivery(&message)["state"], "in_doubt", "it waits for a person");
        }
        let effects = gateway.effects("desk");
        let effects = effects.iter().filter(|effect| effect["message"] == message.as_str());
        assert_eq!(effects.count(), times, "{policy}");
        gateway.audit_verifies();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| is_told("resend", 2));
        scope.spawn(|| is_told("hold", 1));
    });
}
