//! What operators do with sessions, and what ends them: over `gatepost adapter call`, against QuickFIX.

use super::*;

/// Once the adapter can be called.
pub(crate) fn state(gateway: &Gateway) -> Value {
    until("the adapter answers", || {
        let said = gateway.admin().post("/v1/adapters/venue/calls", &json!({ "call": "sessions" })).json();
        Some(said["answer"]["main"].clone()).filter(Value::is_object)
    })
}

pub(crate) fn call(gateway: &Gateway, arguments: &[&str]) {
    let all = [&["adapter", "call", "venue"], arguments, &["--reason", "agreed with the venue"]].concat();
    gateway.cli_ok(&all);
}

#[test]
fn numbers_that_differ_raise_an_alarm_and_are_set_by_an_operator() {
    let Some((gateway, mut partner)) = pair("acceptor", &[], "", "") else { return skipped(PACKAGE) };
    send_orders(&gateway, 1..=3);
    gateway.until_settled("venue");
    until("it is logged on", || (state(&gateway)["state"] == "logged_on").then_some(()));
    let before = partner.said().len();
    partner.forget();
    until("the session has seen it", || (state(&gateway)["state"] == "numbers_differ").then_some(()));
    let told = "the partner's MsgSeqNum is too low";
    until("the log says so", || gateway.log().contains(told).then_some(()));
    // The end of that connection at QuickFIX; then nothing more comes.
    until("QuickFIX has seen its end", || {
        partner.lines()[before..].contains(&"logout".to_owned()).then_some(())
    });
    let logons = partner.logons();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(partner.logons(), logons, "it does not try again by itself");
    send_orders(&gateway, 4..=4);
    // Both begin at 1 again, as they have agreed.
    partner.forget();
    call(&gateway, &["reset"]);
    gateway.until_settled("venue");
    assert_eq!(partner.took().last().unwrap().order(), "O4");
    let after = state(&gateway);
    assert_eq!((after["state"].as_str(), after["epoch"].as_u64()), (Some("logged_on"), Some(2)));
    gateway.audit_verifies();
}

#[test]
fn an_operator_logs_a_session_out_and_lets_it_log_on() {
    let Some((gateway, partner)) = pair("acceptor", &[], "", "") else { return skipped(PACKAGE) };
    until("it has logged on", || (state(&gateway)["state"] == "logged_on").then_some(()));
    let refused = gateway.cli(&["adapter", "call", "venue", "reset", "--reason", "too early"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("log it out first"), "{refused:?}");
    call(&gateway, &["logout"]);
    until("it is logged out", || (state(&gateway)["state"] == "logged_out").then_some(()));
    call(&gateway, &["set_numbers", "next_out:=50"]);
    assert_eq!(state(&gateway)["next_out"], 50);
    send_orders(&gateway, 1..=1);
    call(&gateway, &["logon"]);
    gateway.until_settled("venue");
    // The partner expected less, and was told that there was nothing.
    assert_eq!(partner.took().len(), 1);
    assert!(partner.took()[0].seq() > 50);
    gateway.audit_verifies();
}
