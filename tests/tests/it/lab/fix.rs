//! `gatepost-fix` killed before and behind each kind of commit, and around its writing, with QuickFIX for a partner: neither a gap nor an
//! unmarked double is left.

use std::time::Duration;

use gatepost_faults::{FIX_POINTS, FIX_REFUSAL_POINTS};
use gatepost_tests::{Dice, Gateway, Port, note, skipped, until_within};
use serde_json::json;

use super::PATIENCE;
use crate::fix::partner::{PACKAGE, Partner};
use crate::fix::{assert_none_dead, desk, drain_fills, kills, pair_of, send_orders};

/// Orders, and reports, at a time.
const CHUNK: u32 = 3;

/// What has been sent, and when which point was reached.
struct Books {
    orders: u32,
    reports: u32,
    fired: Vec<String>,
}

impl Books {
    /// Until the adapter has died at this point.
    fn until_fired(&mut self, gateway: &Gateway, partner: &mut Partner, point: &str) {
        let resets = point.ends_with("_reset");
        until_within(PATIENCE, &format!("`{point}` is reached"), || {
            if resets {
                let call = json!({ "call": "reset_in_session", "reason": "as agreed" });
                // It may be down just now.
                gateway.admin().post("/v1/adapters/venue/calls", &call);
            } else {
                // What a partner has sent under old numbers and lost with the connection does not come after a reset.
                partner.send_reports(self.reports + 1, self.reports + CHUNK);
                self.reports += CHUNK;
            }
            send_orders(gateway, self.orders + 1..=self.orders + CHUNK);
            self.orders += CHUNK;
            std::thread::sleep(Duration::from_millis(50));
            gateway.fired().iter().any(|fired| fired == point).then_some(())
        });
        self.fired.extend(gateway.fired());
        // Whoever looks at it would do the same.
        gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
        gateway.until_settled("venue");
    }
}

fn killed_at_every_point(role: &'static str, words: &[&str], confirm: &str) {
    let builder = Gateway::builder().faults("");
    let lines = format!("confirm = \"{confirm}\"\nretry = {{ initial = \"50ms\", max = \"1s\" }}");
    let Some((mut gateway, mut partner)) = pair_of(builder, role, words, &lines, "") else {
        return skipped(PACKAGE);
    };
    let seed = Dice::fresh_seed();
    note(&format!("FIX killed at every point, QuickFIX as {role}: seed {seed}"));
    let mut dice = Dice::new(seed);
    let mut books = Books { orders: 0, reports: 0, fired: Vec::new() };
    for point in FIX_POINTS {
        gateway.kill();
        // Numbers begin anew once in a round; and where there is always something to say, nothing but numbers is durable at the
        // logon alone.
        let once = ["_reset", "_numbers"].iter().any(|end| point.ends_with(end));
        let nth = if once { 1 } else { 1 + dice.below(3) };
        gateway.set_faults(&format!("{point}=kill@{nth}"));
        gateway.restart();
        books.until_fired(&gateway, &mut partner, point);
    }
    assert_eq!(books.fired, FIX_POINTS);
    assert_none_dead(&gateway);
    let took = partner.took();
    kills::assert_all_came("orders", books.orders, &took);
    let mut came: Vec<String> = Vec::new();
    until_within(PATIENCE, "all reports are there", || {
        came.extend(drain_fills(&gateway).iter().filter_map(kills::execution));
        (came.len() >= books.reports as usize).then_some(())
    });
    let expected: Vec<String> = (1..=books.reports).map(|number| format!("E{number}")).collect();
    assert_eq!(came, expected, "each once, in order");
    // No gap is left: what comes next is confirmed at once.
    send_orders(&gateway, books.orders + 1..=books.orders + 1);
    gateway.until_settled("venue");
    gateway.audit_verifies();
}

#[test]
fn an_initiator_killed_at_every_point_leaves_no_gap_and_no_unmarked_double() {
    killed_at_every_point("acceptor", &[], "transport");
}

#[test]
fn an_acceptor_killed_at_every_point_leaves_no_gap_and_no_unmarked_double() {
    killed_at_every_point("initiator", &["answer"], "business");
}

/// News have no route. Whether the adapter dies before or behind the commit that lets one go, the partner is told once.
#[test]
fn what_the_gateway_does_not_take_the_partner_is_told_whenever_the_adapter_dies() {
    let port = Port::reserve();
    let builder = Gateway::builder().faults("");
    let Some(mut partner) = Partner::new("acceptor", &port, &builder.dir().join("partner"), &[]) else {
        return skipped(PACKAGE);
    };
    partner.start();
    let session = format!("connect = \"127.0.0.1:{port}\"");
    let mut gateway = desk(builder, "confirm = \"transport\"", &session)
        .route_when("venue", "type != \"org.fixtrading.FIX.4.4.B\"", &["fills"])
        .start();
    let mut fired = Vec::new();
    for (number, point) in FIX_REFUSAL_POINTS.into_iter().enumerate() {
        gateway.kill();
        gateway.set_faults(&format!("{point}=kill@1"));
        gateway.restart();
        let logons = partner.logons();
        until_within(PATIENCE, "it has logged on", || (partner.logons() > logons).then_some(()));
        partner.tell(&format!("news N{number}"));
        until_within(PATIENCE, point, || gateway.fired().iter().any(|fired| fired == point).then_some(()));
        fired.extend(gateway.fired());
        gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
        until_within(PATIENCE, "the partner is told", || {
            (partner.took().iter().filter(|took| took.field(35) == Some("j")).count() > number).then_some(())
        });
    }
    assert_eq!(fired, FIX_REFUSAL_POINTS);
    // What comes behind it is taken in, so no number is missing.
    partner.send_reports(1, 1);
    until_within(PATIENCE, "the report is there", || (!drain_fills(&gateway).is_empty()).then_some(()));
    let took = partner.took();
    let told: Vec<_> = took.iter().filter(|took| took.field(35) == Some("j")).collect();
    let about: Vec<_> = told.iter().map(|took| (took.field(372), took.field(380))).collect();
    assert_eq!(about, [(Some("B"), Some("4")); 2], "{told:?}");
    assert_ne!(told[0].field(45), told[1].field(45));
    assert_none_dead(&gateway);
    gateway.audit_verifies();
}
