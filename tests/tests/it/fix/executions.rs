//! Executions that come more than once: an app books each of them once.

use super::operators::{call, state};
use super::*;

#[test]
fn an_execution_that_is_sent_again_is_one_event() {
    let Some((gateway, partner)) = pair("acceptor", &[], "", "") else { return skipped(PACKAGE) };
    until("it has logged on", || (state(&gateway)["state"] == "logged_on").then_some(()));
    let mut came = Vec::new();
    let mut until_came = |count: usize| {
        until("the executions are there", || {
            came.extend(drain_fills(&gateway));
            (came.len() >= count).then_some(())
        });
        came.clone()
    };
    partner.send_reports(1, 3);
    let first = until_came(3);
    let ids: Vec<Value> = first.iter().map(|event| event["id"].clone()).collect();
    // Under numbers of their own; then the first once more without a mark, and a new one.
    partner.tell("again 1 3");
    partner.send_reports(1, 1);
    partner.send_reports(4, 4);
    let came = until_came(5);
    let executions: Vec<String> = came.iter().filter_map(kills::execution).collect();
    assert_eq!(executions, ["E1", "E2", "E3", "E1", "E4"]);
    assert!(!ids.contains(&came[3]["id"]), "who books it is told apart what was not marked");
    let passed_over = || gateway.log().matches("an execution that has come before is passed over").count();
    until("the log says what was passed over", || (passed_over() >= 3).then_some(()));
    assert_eq!(passed_over(), 3);
    // What was lost is asked for again, and everything with it.
    call(&gateway, &["logout"]);
    until("it is logged out", || (state(&gateway)["state"] == "logged_out").then_some(()));
    call(&gateway, &["set_numbers", "next_in:=1"]);
    let logons = partner.logons();
    call(&gateway, &["logon"]);
    until("it has logged on again", || (partner.logons() > logons).then_some(()));
    partner.send_reports(5, 5);
    let came = until_came(6);
    let executions: Vec<String> = came.iter().filter_map(kills::execution).collect();
    assert_eq!(executions, ["E1", "E2", "E3", "E1", "E4", "E5"]);
    assert!(partner.took().is_empty(), "nothing was rejected: {:?}", partner.took());
    assert_eq!(state(&gateway)["epoch"], 2);
    gateway.audit_verifies();
}
