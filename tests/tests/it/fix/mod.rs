//! `gatepost-fix` against QuickFIX C++, in both roles, plain and over TLS, killed and not.

mod away;
mod certificates;
mod desks;
mod executions;
mod held_up;
pub(crate) mod kills;
mod operators;
pub(crate) mod partner;
mod query;
mod reset;
mod schedule;
mod strangers;
mod versions;

use std::time::{Duration, SystemTime};

use certificates::Certificates;
use gatepost_tests::{Builder, Gateway, Port, settle_item, skipped, until, until_within};
use nix::sys::signal::Signal;
use partner::{PACKAGE, Partner};
use serde_json::{Value, json};

/// A gateway whose app `desk` sends orders to the adapter `venue`, and reads from `fills` what comes back.
fn gateway(builder: Builder, lines: &str, session: &str) -> Gateway {
    desk(builder, lines, session).route("venue", &["fills"]).start()
}

/// The same without a way for what comes back.
pub(crate) fn desk(builder: Builder, lines: &str, session: &str) -> Builder {
    let names = "name = \"main\", sender_comp_id = \"BUY\", target_comp_id = \"SELL\", heartbeat_s = 10";
    builder
        .app("desk", &["orders.new"], &["fills"])
        .inbox("fills", "order = \"strict\"\nwindow = 200")
        .adapter(
            "venue",
            &format!(
                "run = \"gatepost-fix\"\norder = \"strict\"\nwindow = 64\nsend = [\"org.fixtrading.*\"]\n{lines}"
            ),
            &format!("sessions = [{{ {names}, begin_string = \"FIX.4.4\", {session} }}]"),
        )
        .route("desk", &["venue"])
}

/// QuickFIX in a role, told `words`, and a gateway in the other; `session` is what its session has besides names and version.
fn pair(role: &'static str, words: &[&str], lines: &str, session: &str) -> Option<(Gateway, Partner)> {
    pair_of(Gateway::builder(), role, words, lines, session)
}

pub(crate) fn pair_of(
    builder: Builder,
    role: &'static str,
    words: &[&str],
    lines: &str,
    session: &str,
) -> Option<(Gateway, Partner)> {
    let port = Port::reserve();
    let mut partner = Partner::new(role, &port, &builder.dir().join("partner"), words)?;
    partner.start();
    let way = if role == "acceptor" { "connect" } else { "listen" };
    let gateway = gateway(builder, lines, &format!("{way} = \"127.0.0.1:{port}\"{session}"));
    Some((gateway, partner))
}

fn order(number: u32) -> Value {
    json!({
        "specversion": "1.0", "id": format!("O{number}"), "source": "/desk", "type": "orders.new",
        "datacontenttype": "application/json",
        "data": {"35": "D", "11": format!("O{number}"), "55": "X", "54": "1", "38": "100", "40": "1",
            "60": "20261130-09:00:00.000"},
    })
}

/// Orders with these numbers in each of the sessions, each session a lane.
fn send_to_each(gateway: &Gateway, sessions: &[&str], numbers: std::ops::RangeInclusive<u32>) {
    let mut orders = Vec::new();
    for number in numbers {
        for name in sessions {
            let mut event = order(number);
            event["id"] = format!("{name}-O{number}").into();
            event["fixsession"] = (*name).into();
            event["partitionkey"] = (*name).into();
            orders.push(event);
        }
    }
    gateway.app().try_batch(&orders).unwrap().expect(202);
}

pub(crate) fn send_orders(gateway: &Gateway, numbers: std::ops::RangeInclusive<u32>) {
    let orders: Vec<Value> = numbers.map(order).collect();
    let accepted = gateway.app().try_batch(&orders).unwrap();
    accepted.expect(202);
}

/// Everything in the inbox, settled.
pub(crate) fn drain_fills(gateway: &Gateway) -> Vec<Value> {
    let mut all = Vec::new();
    loop {
        let leased = gateway.lease("fills", 500);
        if leased.is_empty() {
            return all;
        }
        let results: Vec<Value> = leased.iter().map(|delivery| settle_item(delivery, "delivered")).collect();
        gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
        all.extend(leased.into_iter().map(|delivery| delivery["event"].clone()));
    }
}

/// The gateway gives up what its adapter dies of again and again; here the deaths are the test's.
pub(crate) fn assert_none_dead(gateway: &Gateway) {
    let dead = gateway.list("/v1/deliveries?state=dead", "deliveries");
    assert!(dead.is_empty(), "{dead:?}");
}

fn accept(directory: &Gateway, number: u32, more: &Value) -> String {
    let mut event = order(number);
    for (name, value) in more.as_object().unwrap() {
        event[name] = value.clone();
    }
    let accepted = directory.app().event(&event).expect(202);
    accepted["messages"][0]["id"].as_str().unwrap().to_owned()
}

#[test]
fn orders_go_out_and_reports_come_in() {
    let Some((mut gateway, partner)) = pair("acceptor", &["answer"], "confirm = \"business\"", "") else {
        return skipped(PACKAGE);
    };
    send_orders(&gateway, 1..=10);
    gateway.until_settled("venue");
    let took = partner.took();
    let orders: Vec<&str> = took.iter().map(partner::Taken::order).collect();
    assert_eq!(orders, ["O1", "O2", "O3", "O4", "O5", "O6", "O7", "O8", "O9", "O10"]);
    let reports = drain_fills(&gateway);
    assert_eq!(reports.len(), 10);
    assert_eq!(reports[0]["type"], "org.fixtrading.FIX.4.4.8");
    assert_eq!((&reports[0]["subject"], &reports[0]["fixsession"]), (&json!("O1"), &json!("main")));
    assert!(reports.iter().all(|report| report["correlationid"].is_string()));
    gateway.stop();
    until("QuickFIX has been logged out", || partner.lines().contains(&"logout".to_owned()).then_some(()));
    gateway.restart();
    gateway.audit_verifies();
}

/// Longer than anybody is held up before the order has left.
const STALE_AFTER: Duration = Duration::from_secs(15);

/// An order that is past its `expirytime` when the partner asks for it is filled over, and told as not delivered.
#[test]
fn a_stale_order_is_filled_over_and_expires() {
    let Some((gateway, mut partner)) = pair("acceptor", &[], "confirm = \"transport\"", "") else {
        return skipped(PACKAGE);
    };
    send_orders(&gateway, 1..=1);
    gateway.until_settled("venue");
    // It takes bytes and does not look at them, then dies with them.
    partner.signal(Signal::SIGSTOP);
    let expiry = SystemTime::now() + STALE_AFTER;
    let told = humantime::format_rfc3339_millis(expiry).to_string();
    let stale = accept(&gateway, 2, &json!({ "expirytime": told }));
    let fresh = accept(&gateway, 3, &json!({}));
    for message in [&stale, &fresh] {
        gateway.until_state(message, "sending");
    }
    until("its time is over", || (SystemTime::now() > expiry + Duration::from_secs(1)).then_some(()));
    partner.kill();
    partner.start();
    gateway.until_state(&stale, "expired");
    gateway.until_state(&fresh, "delivered");
    let orders: Vec<String> = partner.took().iter().map(|taken| taken.order().to_owned()).collect();
    assert_eq!(orders, ["O1", "O3"]);
    let filled = partner.said().iter().any(|line| line.contains("|35=4|") && line.contains("|123=Y|"));
    assert!(filled, "{:?}", partner.lines());
    gateway.audit_verifies();
}

/// The partner lost what it knew and asks for everything, after the adapter was killed again and again.
#[test]
fn everything_comes_again_identical_after_fifty_kills() {
    const KILLS: u32 = 50;
    const EACH: u32 = 4;
    let retry = "confirm = \"transport\"\nretry = { initial = \"50ms\", max = \"1s\" }";
    let Some((gateway, partner)) = pair("acceptor", &[], retry, "") else { return skipped(PACKAGE) };
    for life in 0..KILLS {
        send_orders(&gateway, life * EACH + 1..=(life + 1) * EACH);
        let before = partner.logons();
        // Sometimes before anything has left, sometimes in the middle, sometimes after.
        std::thread::sleep(Duration::from_millis(u64::from(life % 7) * 15));
        gateway.kill_adapter("venue");
        gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
        until_within(Duration::from_secs(60), "it has logged on again", || {
            (partner.logons() > before).then_some(())
        });
        if life % 2 == 1 {
            // No delivery sees three deaths, which the gateway would take for its fault (`poison`).
            gateway.until_settled("venue");
        }
    }
    gateway.until_settled("venue");
    assert_none_dead(&gateway);
    let first = partner.took();
    kills::assert_all_came("orders", KILLS * EACH, &first);
    let from = partner.lines().len();
    partner.tell("expect 1");
    until("QuickFIX expects everything", || {
        partner.lines().contains(&"expecting 1".to_owned()).then_some(())
    });
    send_orders(&gateway, KILLS * EACH + 1..=KILLS * EACH + 1);
    gateway.until_settled("venue");
    let lines = partner.said().split_off(from);
    let again: Vec<partner::Taken> = lines.iter().filter_map(|line| partner::Taken::of(line)).collect();
    assert_eq!(again.len() as u32, KILLS * EACH + 1);
    for taken in &again {
        let Some(original) = first.iter().find(|original| original.order() == taken.order()) else {
            // The new one, which may have come before or after it was seen that the others are missing.
            assert_eq!(taken.order(), format!("O{}", KILLS * EACH + 1));
            continue;
        };
        assert_eq!(taken.field(43), Some("Y"), "{taken:?}");
        assert_eq!(taken.content(), original.content());
        // When it was first sent: in the original as its time, or as the time that it gave itself as a duplicate.
        assert_eq!(taken.field(122), original.field(122).or(original.field(52)), "{taken:?}");
    }
    let mut next = 1;
    for line in &lines {
        let Some(message) = line.strip_prefix("app ").or(line.strip_prefix("admin ")) else { continue };
        let message = partner::Taken(message.to_owned());
        if message.field(43) == Some("Y") {
            assert_eq!(message.seq(), next, "without a gap");
            next = match (message.field(35), message.field(36)) {
                (Some("4"), Some(filled)) => filled.parse().unwrap(),
                (Some("D"), _) => next + 1,
                other => panic!("{other:?} must not be sent again"),
            };
        }
    }
    gateway.audit_verifies();
}
