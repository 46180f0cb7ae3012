//! Orders in doubt: the partner is asked, and later reports find their order.

use super::*;

#[test]
fn orders_in_doubt_are_asked_for_and_sent_again_only_if_they_are_unknown() {
    let lines = "confirm = \"business\"\non_doubt = \"query\"\nretry = { initial = \"50ms\", max = \"1s\" }";
    let session = ", query = \"order_status\", confirm_timeout_ms = 1500";
    // It answers no order, but says how one stands.
    let Some((gateway, partner)) = pair("acceptor", &["status"], lines, session) else {
        return skipped(PACKAGE);
    };
    partner.tell("lose O2");
    until("the second one will be lost", || partner.lines().contains(&"losing O2".to_owned()).then_some(()));
    let known = accept(&gateway, 1, &json!({}));
    let unknown = accept(&gateway, 2, &json!({}));
    gateway.until_state(&known, "delivered");
    gateway.until_state(&unknown, "delivered");
    let took = partner.took();
    let of = |kind: &str, order: &str| {
        took.iter().filter(|taken| taken.field(35) == Some(kind) && taken.order() == order).count()
    };
    assert_eq!((of("D", "O1"), of("D", "O2")), (1, 2), "{took:?}");
    assert!(of("H", "O1") >= 1 && of("H", "O2") >= 2, "{took:?}");
    kills::assert_all_came(
        "orders",
        2,
        &took.into_iter().filter(|taken| taken.field(35) == Some("D")).collect::<Vec<_>>(),
    );
    // The answers to the questions are reports, and belong to the orders.
    until("the reports are there", || (gateway.unsettled("fills") >= 3).then_some(()));
    for report in drain_fills(&gateway) {
        let order = if report["subject"] == "O1" { &known } else { &unknown };
        assert_eq!(report["correlationid"], **order, "{report}");
    }
    gateway.audit_verifies();
}

/// Partial fills come while the order is long settled, over a restart of everything.
#[test]
fn every_report_on_an_order_names_its_message() {
    let Some((mut gateway, mut partner)) = pair("acceptor", &["answer"], "confirm = \"business\"", "") else {
        return skipped(PACKAGE);
    };
    let message = accept(&gateway, 1, &json!({}));
    gateway.until_state(&message, "delivered");
    partner.tell("fill O1 1");
    until("two reports are there", || (gateway.unsettled("fills") == 2).then_some(()));
    gateway.kill();
    partner.kill();
    let logons = partner.logons();
    partner.start();
    gateway.restart();
    until("it has logged on again", || (partner.logons() > logons).then_some(()));
    for status in ["1", "2", "1"] {
        partner.tell(&format!("fill O1 {status}"));
    }
    until("five reports are there", || (gateway.unsettled("fills") == 5).then_some(()));
    let named: Vec<Value> =
        drain_fills(&gateway).iter().map(|report| report["correlationid"].clone()).collect();
    let message = Value::from(message);
    // The last one comes after the order has ended.
    assert_eq!(
        named,
        [&[message.clone(), message.clone(), message.clone(), message][..], &[Value::Null]].concat()
    );
    gateway.audit_verifies();
}
