//! What operators do with sessions, and what ends them: over `gatepost adapter call`, against QuickFIX.

use super::*;

/// Once the adapter can be called.
pub(crate) fn state(gateway: &Gateway) -> Value {
    until("the adapter answers", || Some(sessions(gateway)["main"].clone()).filter(Value::is_object))
}

/// All sessions, and what there is of others, by name.
pub(crate) fn sessions(gateway: &Gateway) -> Value {
    gateway.admin().post("/v1/adapters/venue/calls", &json!({ "call": "sessions" })).json()["answer"].clone()
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

/// A session is called something else: that is another session, and what the first had stays until an operator has it deleted.
#[test]
fn what_a_session_has_left_that_is_not_in_the_settings_any_more_is_shown_and_deleted_on_demand() {
    let Some((mut gateway, mut partner)) = pair("acceptor", &[], "", "") else { return skipped(PACKAGE) };
    send_orders(&gateway, 1..=20);
    gateway.until_settled("venue");
    let before = std::fs::read_to_string(gateway.config()).unwrap();
    // Its partner begins at 1, and so must it: else it would not log on.
    let starts_as = |gateway: &mut Gateway, partner: &mut Partner, name: &str, other: &str| -> Value {
        gateway.stop();
        let renamed = before.replace("name = \"main\"", &format!("name = \"{name}\""));
        std::fs::write(gateway.config(), renamed).unwrap();
        partner.forget();
        gateway.restart();
        let all = until("it has logged on", || {
            Some(sessions(gateway)).filter(|all| all[name]["state"] == "logged_on")
        });
        assert_eq!(
            (&all[other]["state"], &all[name]["epoch"]),
            (&json!("not_in_settings"), &json!(1)),
            "{all}"
        );
        all
    };
    let all = starts_as(&mut gateway, &mut partner, "again", "main");
    assert!(all["main"]["bytes"].as_u64().unwrap() > 20 * 100, "{all}");
    assert!(gateway.log().contains("forget session=main"), "{}", gateway.log());
    let refused =
        gateway.cli(&["adapter", "call", "venue", "forget", "session=again", "--reason", "mistaken"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("`again` is a session of this adapter; take it out of the settings first"),
        "{said}"
    );
    call(&gateway, &["forget", "session=main"]);
    assert_eq!(sessions(&gateway)["main"], Value::Null);
    // Also for good: under its old name it begins anew.
    send_orders(&gateway, 21..=21);
    gateway.until_settled("venue");
    starts_as(&mut gateway, &mut partner, "main", "again");
    gateway.audit_verifies();
}
