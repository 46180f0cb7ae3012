//! Clocks that jump, and a weekend that passes in a minute.

use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use gatepost_tests::lab::{self, Effect, History, Order, Partner as Seen};
use gatepost_tests::partner::{Manner, Partner, Protocol};
use gatepost_tests::{Clock, Gateway, Port, note, settle_item, skipped, until};
use serde_json::{Value, json};

use super::{Traffic, hand_in, judged, message_of};

const HOUR: i64 = 3600;

/// Times in the log never go back, whatever the wall said.
pub(super) fn log_is_in_order(gateway: &Gateway) {
    let log = gateway.audit_log();
    let times: Vec<&str> = log.iter().map(|leaf| leaf["at"].as_str().unwrap()).collect();
    for (at, pair) in times.windows(2).enumerate() {
        assert!(pair[0] <= pair[1], "entry {}: {} after {}", at + 1, pair[1], pair[0]);
    }
}

#[test]
fn a_wall_clock_that_jumps_hours_and_repeats_a_second_changes_nothing() {
    let Some(mut clock) = Clock::new() else { return skipped("needs a C compiler") };
    let mut gateway = Gateway::builder()
        .environment(clock.environment())
        .app("shop", &["*"], &["desk"])
        .echo(
            "lab",
            "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }",
            "fail_percent = 10\nseed = 9",
        )
        .inbox("desk", "")
        .route_when("shop", "type == \"orders.new\"", &["lab"])
        .route_when("shop", "type == \"desk\"", &["desk"])
        .start();
    // Worth something for half an hour; and a lease of ten minutes.
    let mut brief = crate::order_event("brief", "desk", &json!({}));
    let expiry = SystemTime::now() + Duration::from_secs(1800);
    brief["type"] = "desk".into();
    brief["expirytime"] = humantime::format_rfc3339_millis(expiry).to_string().into();
    let brief = gateway.app().event(&brief).expect(202)["messages"][0]["id"].as_str().unwrap().to_owned();
    let mut other = crate::order_event("other", "desk", &json!({}));
    other["type"] = "desk".into();
    let other = gateway.app().event(&other).expect(202)["messages"][0]["id"].as_str().unwrap().to_owned();
    let request = json!({ "max": 2, "lease_ms": 600_000 });
    let leased = gateway.app().post("/v1/queues/desk/lease", &request).expect(200)["deliveries"].clone();
    let leased = leased.as_array().unwrap();
    assert_eq!(leased.len(), 2);

    let traffic = Traffic::start(&gateway.app(), 2, &["lab"]);
    traffic.go_on(20);
    // A leap: the same second twice, and once the other way.
    for seconds in [HOUR, -HOUR, -HOUR - 1, -HOUR, 0, -1, 0, 1, 0, HOUR] {
        clock.set_wall(seconds);
        traffic.go_on(10);
    }
    for message in [&brief, &other] {
        assert_eq!(gateway.delivery(message)["state"], "sending", "neither its lease nor its time is over");
    }
    let results: Vec<Value> = leased.iter().map(|leased| settle_item(leased, "delivered")).collect();
    let settled = gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
    assert!(
        settled["results"].as_array().unwrap().iter().all(|result| result["status"] == "ok"),
        "{settled}"
    );
    for seconds in [-HOUR, HOUR, 0] {
        clock.set_wall(seconds);
        gateway.kill();
        gateway.restart();
        traffic.go_on(10);
    }
    let submissions = traffic.finish();
    gateway.until_settled("lab");
    log_is_in_order(&gateway);
    let mut verdict = judged(&gateway, submissions, &[("lab", Order::Key)]);
    verdict.findings.retain(|finding| !finding.what.contains("nobody was told so"));
    verdict.expect_clean();
}

/// By less than two clocks may differ, and by more.
const LEAPS: [Duration; 2] = [Duration::from_millis(900), Duration::from_secs(600)];

#[test]
fn what_is_handed_in_just_after_a_leap_is_not_of_a_time_to_come_for_the_next_start() {
    let Some(mut clock) = Clock::new() else { return skipped("needs a C compiler") };
    let mut gateway = Gateway::builder()
        .environment(clock.environment())
        .app("shop", &["*"], &[])
        .inbox("desk", "")
        .route("shop", &["desk"])
        .start();
    for n in 0..6 {
        clock.pass(LEAPS[n % LEAPS.len()]);
        for m in 0..3 {
            gateway.app().event(&crate::order_event(&format!("{n}-{m}"), "desk", &json!({}))).expect(202);
        }
        gateway.kill();
        gateway.restart();
        gateway.app().event(&crate::order_event(&format!("{n}-after"), "desk", &json!({}))).expect(202);
    }
    log_is_in_order(&gateway);
}

const WEEKEND_HOURS: u64 = 64;
const STEP_HOURS: u64 = 4;
const WAITING: usize = 12;

#[test]
fn a_partner_that_is_down_for_a_weekend_costs_no_message_an_attempt_and_none_is_dead() {
    let Some(mut clock) = Clock::new() else { return skipped("needs a C compiler") };
    // A port at which nobody listens until Monday.
    let port = Port::reserve();
    let mut gateway = Gateway::builder()
        .environment(clock.environment())
        .app("shop", &["*"], &[])
        .adapter(
            "hook",
            "run = \"gatepost-http\"\norder = \"key\"",
            &format!("url = \"http://{}/\"", port.address()),
        )
        .route("shop", &["hook"])
        .start();
    let submissions: Vec<_> = (0..WAITING)
        .map(|n| {
            hand_in(&gateway.app(), "shop", &format!("w{n}"), &format!("k{}", n % 3), &json!({}), &["hook"])
        })
        .collect();
    until("the breaker is open", || (gateway.queue("hook")["tripped"] == "unreachable").then_some(()));
    let mut probes = 0;
    for hours in (STEP_HOURS..=WEEKEND_HOURS).step_by(usize::try_from(STEP_HOURS).unwrap()) {
        let before = tries(&gateway);
        clock.pass(Duration::from_secs(STEP_HOURS * 3600));
        if hours == WEEKEND_HOURS / 2 {
            gateway.kill();
            gateway.restart();
        }
        // Whoever asks wakes it, as anything does: its timers were set before time jumped.
        let now = until("it has probed again", || Some(tries(&gateway)).filter(|tries| *tries > before));
        probes += now - before;
        assert_eq!(gateway.queue("hook")["tripped"], "unreachable");
    }
    let waiting = gateway.list("/v1/deliveries?destination=hook", "deliveries");
    assert_eq!(waiting.len(), WAITING);
    for delivery in &waiting {
        assert!(delivery["state"] != "dead" && delivery["attempts"] == 0, "{delivery}");
    }
    let partner = Partner::serve(Protocol::Http, Manner::Good, TcpListener::bind(port.address()).unwrap());
    clock.pass(Duration::from_secs(STEP_HOURS * 3600));
    gateway.until_settled("hook");
    for submission in &submissions {
        assert_eq!(gateway.delivery(message_of(submission))["state"], "delivered");
    }
    note(&format!("{WEEKEND_HOURS} hours, {probes} probes, {WAITING} messages delivered on Monday"));
    log_is_in_order(&gateway);
    let mut history = History { submissions, ..History::default() };
    history.partners.insert("hook".into(), Seen::new(Order::Key, effects(&partner)));
    history.close(&gateway);
    lab::check(&history).expect_clean();
}

/// How often anything was tried: probes are all there is.
fn tries(gateway: &Gateway) -> usize {
    let held = gateway.list("/v1/messages", "messages");
    let histories = held.iter().map(|message| {
        let message =
            gateway.admin().get(&format!("/v1/messages/{}", message["id"].as_str().unwrap())).expect(200);
        let steps = message["deliveries"][0]["history"].as_array().unwrap();
        steps.iter().filter(|step| step["event"] == "retry").count()
    });
    histories.sum()
}

/// What an HTTP partner took, by the delivery's id and the mark in its body.
pub(super) fn effects(partner: &Partner) -> Vec<Effect> {
    let taken = partner.taken().into_iter();
    taken
        .map(|(id, body)| {
            let body: Value = serde_json::from_str(&body).unwrap_or_default();
            Effect { delivery: Some(id), message: None, mark: body["mark"].as_str().map(str::to_owned) }
        })
        .collect()
}
