//! Resets within a session, against QuickFIX: ours and its own, with kills and without.

use super::operators::{call, state};
use super::*;

/// A gateway and its partner, logged on, in the role that the partner does not have.
fn logged_on(role: &'static str, more: &str) -> Option<(Gateway, Partner)> {
    let (gateway, partner) = pair(role, &[], "retry = { initial = \"50ms\", max = \"1s\" }", more)?;
    until("it has logged on", || (state(&gateway)["state"] == "logged_on").then_some(()));
    Some((gateway, partner))
}

/// How often QuickFIX says that a session has ended; it also does where none could be begun.
fn logouts(partner: &Partner) -> usize {
    partner.said().iter().filter(|line| *line == "logout").count()
}

fn epoch(gateway: &Gateway) -> u64 {
    state(gateway)["epoch"].as_u64().unwrap()
}

fn until_epoch(gateway: &Gateway, least: u64) {
    until("it has begun anew", || {
        let state = state(gateway);
        (state["state"] == "logged_on" && state["epoch"].as_u64() >= Some(least)).then_some(())
    });
}

#[test]
fn an_operator_begins_anew_within_the_session() {
    for role in ["acceptor", "initiator"] {
        let Some((gateway, partner)) = logged_on(role, "") else { return skipped(PACKAGE) };
        let before = logouts(&partner);
        send_orders(&gateway, 1..=5);
        partner.send_reports(1, 5);
        gateway.until_settled("venue");
        call(&gateway, &["reset_in_session"]);
        until_epoch(&gateway, 2);
        send_orders(&gateway, 6..=10);
        partner.send_reports(6, 10);
        gateway.until_settled("venue");
        until("the reports are there", || (gateway.unsettled("fills") == 10).then_some(()));
        let took = partner.took();
        kills::assert_all_came(role, 10, &took);
        assert!(took.iter().all(|taken| !taken.is_flagged()), "{role}: {took:?}");
        // Our Logon is the first of the new numbers.
        let sixth = took.iter().find(|taken| taken.order() == "O6").unwrap();
        assert!((2..6).contains(&sixth.seq()), "{role}: {sixth:?}");
        assert_eq!(logouts(&partner), before, "{role}");
        assert_eq!(epoch(&gateway), 2, "{role}");
        gateway.audit_verifies();
    }
}

#[test]
fn the_partner_begins_anew_within_the_session() {
    for role in ["acceptor", "initiator"] {
        let Some((gateway, partner)) = logged_on(role, "") else { return skipped(PACKAGE) };
        let before = logouts(&partner);
        send_orders(&gateway, 1..=5);
        gateway.until_settled("venue");
        partner.tell("reset");
        until_epoch(&gateway, 2);
        send_orders(&gateway, 6..=10);
        partner.send_reports(1, 5);
        gateway.until_settled("venue");
        until("the reports are there", || (gateway.unsettled("fills") == 5).then_some(()));
        let took = partner.took();
        kills::assert_all_came(role, 10, &took);
        assert!(took.iter().all(|taken| !taken.is_flagged()), "{role}: {took:?}");
        assert_eq!(logouts(&partner), before, "{role}");
        assert_eq!(epoch(&gateway), 2, "{role}");
        gateway.audit_verifies();
    }
}

/// Wherever the adapter or the partner dies on the way, both agree in the end and nothing is lost.
#[test]
fn a_reset_that_somebody_dies_of_is_done_in_the_end() {
    const LIVES: u32 = 6;
    for role in ["acceptor", "initiator"] {
        let Some((gateway, mut partner)) = logged_on(role, "") else { return skipped(PACKAGE) };
        for life in 0..LIVES {
            let before = epoch(&gateway);
            send_orders(&gateway, life * 3 + 1..=life * 3 + 3);
            call(&gateway, &["reset_in_session"]);
            std::thread::sleep(Duration::from_millis(u64::from(life) * 3));
            if life % 2 == 0 {
                gateway.kill_adapter("venue");
                gateway.admin().post("/v1/adapters/venue/restart", &json!({}));
            } else {
                partner.kill();
                partner.start();
            }
            until_epoch(&gateway, before + 1);
            gateway.until_settled("venue");
        }
        assert_none_dead(&gateway);
        kills::assert_all_came(role, LIVES * 3, &partner.took());
        gateway.audit_verifies();
    }
}

/// QuickFIX takes an answer with the flag for a reset of ours, and answers it: that must not go on for ever.
#[test]
fn an_acceptor_that_begins_anew_with_each_logon_is_not_answered_for_ever() {
    let more = ", reset_on = [\"logon\"]";
    let Some((gateway, mut partner)) = logged_on("initiator", more) else { return skipped(PACKAGE) };
    for life in 1..=3 {
        send_orders(&gateway, life * 2 - 1..=life * 2);
        gateway.until_settled("venue");
        let before = epoch(&gateway);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(epoch(&gateway), before);
        partner.kill();
        partner.start();
        until_epoch(&gateway, before + 1);
    }
    kills::assert_all_came("orders", 6, &partner.took());
    gateway.audit_verifies();
}
