//! Orders over their life: what belongs to them, and what the partner is asked about those in doubt.

use super::*;

fn answers(side: &Side) -> Vec<Option<&str>> {
    side.emits.iter().map(|received| received.answers.as_deref()).collect()
}

fn living(side: &Side) -> usize {
    side.state.keys().filter(|key| key.starts_with("o/")).count()
}

#[test]
fn every_report_on_an_order_belongs_to_its_message_while_it_lives() {
    for confirm in [Level::Sent, Level::Transport, Level::Business] {
        let mut side = up(|config| config.confirm = confirm);
        side.send(&[1, 2], at(0));
        side.receive("35=8|34=2|369=4|11=O1|17=E1|39=0|150=0", at(0));
        side.receive("35=8|34=3|11=O1|17=E2|39=1|150=1", at(0));
        side.receive("35=8|34=4|11=O2|17=E3|39=1|150=1", at(0));
        // Over a restart, hours later, and a reset.
        side.crash();
        side.connect(at(9_000_000));
        side.receive("35=A|34=1|98=0|108=30|141=Y", at(9_000_000));
        side.receive("35=8|34=2|11=O1|17=E4|39=1|150=1", at(9_000_000));
        side.receive("35=8|34=3|11=O1|17=E5|39=2|150=2", at(9_000_000));
        let m1 = Some("m1");
        assert_eq!(answers(&side), [m1, m1, Some("m2"), m1, m1], "{confirm:?}");
        // It is filled: what its name is used for now is something else.
        side.receive("35=8|34=4|11=O1|17=E6|39=1|150=1", at(9_000_000));
        assert_eq!(answers(&side).last().unwrap(), &None);
        assert_eq!(living(&side), 1, "the second lives on: {:?}", side.state.keys());
        assert_eq!(delivered(&side), [1, 2]);
    }
}

fn named(number: u128, fields: &str) -> Outgoing {
    Outgoing { content: content(fields), ..order(number) }
}

#[test]
fn cancels_and_changes_end_what_they_end() {
    let sent = || {
        let mut side = up(|config| config.confirm = Level::Business);
        let cancel = named(2, "35=F|11=C2|41=O1|55=X|");
        side.engine.send(&[order(1), cancel], at(0));
        side.settle();
        side.receive("35=8|34=2|11=O1|17=E1|39=0|150=0", at(0));
        side
    };
    // Canceled: the order and its cancel.
    let mut side = sent();
    side.receive("35=8|34=3|11=C2|41=O1|17=E2|39=6|150=6", at(0));
    side.receive("35=8|34=4|11=C2|41=O1|17=E3|39=4|150=4", at(0));
    assert_eq!(answers(&side), [Some("m1"), Some("m2"), Some("m2")]);
    assert_eq!(living(&side), 0);
    // Too late to cancel: the order lives on.
    let mut side = sent();
    side.receive("35=9|34=3|11=C2|41=O1|39=1", at(0));
    side.receive("35=8|34=4|11=O1|17=E2|39=2|150=2", at(0));
    assert_eq!(answers(&side), [Some("m1"), Some("m2"), Some("m1")]);
    assert_eq!(living(&side), 0);
    // Changed: the new one lives on.
    let mut side = sent();
    side.receive("35=8|34=3|11=C2|41=O1|17=E2|39=5|150=5", at(0));
    side.receive("35=8|34=4|11=C2|41=O1|17=E3|39=1|150=1", at(0));
    assert_eq!((answers(&side)[2], living(&side)), (Some("m2"), 1));
    // Somebody else's cancel, under a name of its own.
    let mut side = sent();
    side.receive("35=8|34=3|11=BROKER7|41=O1|17=E2|39=4|150=4", at(0));
    assert_eq!((answers(&side)[1], living(&side)), (Some("m1"), 0));
}

#[test]
fn what_asks_for_something_itself_belongs_to_nothing() {
    let mut side = up(|config| config.confirm = Level::Business);
    side.send(&[1], at(0));
    side.receive("35=D|34=2|11=O1|55=Y", at(0));
    assert_eq!((delivered(&side), answers(&side)), (vec![], vec![None]));
    side.receive("35=8|34=3|11=O1|17=E1|39=0|150=0", at(0));
    side.receive("35=H|34=4|11=O1|55=Y", at(0));
    assert_eq!(answers(&side), [None, Some("m1"), None]);
}

#[test]
fn orders_that_never_end_are_bounded() {
    let mut side = up(|config| {
        config.confirm = Level::Business;
        // Of which orders get an eighth: room for about ten.
        config.keep_bytes = 16 * 1024;
    });
    for number in 1..=40 {
        side.send(&[number], at(0));
        side.receive(&format!("35=8|34={}|369={}|11=O{number}|39=0", number + 1, number + 1), at(0));
    }
    assert_eq!(delivered(&side).len(), 40);
    let (living, left) = (living(&side), |side: &mut Side, order: u32, seq: u32| {
        side.receive(&format!("35=8|34={seq}|11=O{order}|39=1"), at(0));
        answers(side).last().unwrap().is_some()
    });
    assert!((5..20).contains(&living), "{living}");
    assert!(left(&mut side, 40, 42) && !left(&mut side, 1, 43), "the oldest goes");
    let bytes: usize =
        side.state.iter().filter(|(key, _)| key.starts_with("o/")).map(|(_, value)| value.len()).sum();
    assert!(bytes < 2048, "{bytes}");
}

/// In doubt, and leased again.
fn doubtful(number: u128, token: &str) -> Outgoing {
    Outgoing { lease: lease(number, token), in_doubt: true, ..order(number) }
}

fn asking(confirm: Level) -> Side {
    let mut side = up(|config| {
        config.confirm = confirm;
        config.ask_for = AskFor::OrderStatus;
    });
    let first = named(1, "35=D|11=O1|55=X|48=DE0001|22=4|54=1|60=20261130-09:00:00|");
    side.engine.send(&[first], at(0));
    side.settle();
    side.left();
    side.outcomes.clear();
    side.engine.send(&[doubtful(1, "t1b")], at(1));
    side.settle();
    side
}

#[test]
fn an_order_in_doubt_is_asked_for_and_not_sent_again() {
    let mut side = asking(Level::Business);
    assert_eq!(side.left(), ["35=H|34=3|11=O1|22=4|48=DE0001|54=1|55=X"]);
    assert!(matches!(side.outcomes[..], [(_, Verdict::Sent(_))]));
    side.receive("35=8|34=2|11=O1|17=0|39=1|150=I", at(1));
    assert_eq!((delivered(&side), answers(&side)), (vec![1], vec![Some("m1")]));
    // The question is one of the session's messages: it comes again when it is missing.
    side.receive("35=2|34=3|7=3|16=3", at(2));
    assert_eq!(side.left(), ["35=H|34=3|43=Y|122=20261130-09:00:00.001|11=O1|22=4|48=DE0001|54=1|55=X"]);
    // What is proven otherwise is not asked for.
    let mut side = asking(Level::Transport);
    assert_eq!(side.left(), NOTHING);
}

#[test]
fn an_order_that_the_partner_does_not_know_is_sent_again_marked() {
    let mut side = asking(Level::Business);
    side.left();
    side.outcomes.clear();
    side.receive("35=8|34=2|11=O1|17=0|39=8|150=I|103=5|58=unknown order", at(1));
    let [(_, Verdict::Retry(why))] = &side.outcomes[..] else { panic!("{:?}", side.outcomes) };
    assert_eq!(why, "the partner does not know the order: unknown order");
    // With the next lease, also after a restart.
    side.crash();
    side.connect(at(2));
    side.receive("35=A|34=3|98=0|108=30", at(2));
    side.left();
    let retried = || Outgoing { lease: lease(1, "t1c"), ..order(1) };
    let undo = side.engine.send(&[retried()], at(2));
    side.engine.take();
    side.engine.undo(undo);
    side.engine.send(&[retried()], at(2));
    side.settle();
    assert_eq!(
        side.left().iter().filter(|text| text.starts_with("35=D|") && text.contains("|97=Y|")).count(),
        1
    );
    side.receive("35=8|34=4|11=O1|17=E1|39=0|150=0", at(2));
    assert_eq!(delivered(&side), [1]);
    // Not when its time is over.
    let mut side = asking(Level::Business);
    side.receive("35=8|34=2|11=O1|17=0|39=8|150=I|103=5", at(1));
    side.left();
    side.outcomes.clear();
    side.engine.send(&[Outgoing { expires: Some(at(5).unix_ms()), ..retried() }], at(5));
    side.settle();
    assert_eq!(side.left(), NOTHING);
    assert!(matches!(side.outcomes[..], [(_, Verdict::Retry(_))]));
}

#[test]
fn an_answer_about_the_question_is_none_about_the_order() {
    for (text, outcomes) in [
        // The question is refused, by number and by name.
        ("35=j|34=2|45=3|372=H|380=3|58=not supported", 0),
        ("35=j|34=2|372=H|379=O1|380=3", 0),
        ("35=3|34=2|45=3|372=H|373=11", 0),
        // The order has been refused, then or now.
        ("35=8|34=2|11=O1|17=0|39=8|150=I|103=1", 1),
        ("35=j|34=2|45=2|372=D|380=3", 1),
    ] {
        let mut side = asking(Level::Business);
        side.outcomes.clear();
        side.receive(text, at(1));
        let refused: Vec<_> =
            side.outcomes.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Reject(..))).collect();
        assert_eq!((side.outcomes.len(), refused.len()), (outcomes, outcomes), "{text}");
    }
    // Nobody has asked: an order that is refused for whatever reason is refused.
    let mut side = up(|config| config.confirm = Level::Business);
    side.send(&[1], at(0));
    side.receive("35=8|34=2|11=O1|17=0|39=8|103=5", at(0));
    assert!(matches!(side.outcomes.last(), Some((_, Verdict::Reject(..)))));
}

/// FIX session test cases 19a and 19b, from the side that sends: the partner has seen the ClOrdID.
#[test]
fn r19_a_duplicate_of_what_was_sent_again_after_a_reset_has_been_delivered() {
    for (answer, is_delivered) in [
        ("35=8|34=2|11=O1|17=0|39=8|150=8|103=6", true),
        ("35=j|34=2|45=2|372=D|380=0|58=ClOrdID already in use", true),
        ("35=8|34=2|11=O1|17=0|39=8|150=8|103=1", false),
        ("35=j|34=2|45=2|372=D|380=4|58=closed", false),
    ] {
        let mut side = up(|config| config.confirm = Level::Business);
        side.send(&[1], at(0));
        side.engine.disconnected();
        side.connect(at(1));
        side.left();
        side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
        assert_eq!(side.left()[0], "35=D|34=1|97=Y|11=O1|55=X");
        side.outcomes.clear();
        let answer = answer.replace("45=2", "45=1");
        side.receive(&answer, at(1));
        let rejected = matches!(side.outcomes.last(), Some((_, Verdict::Reject(..))));
        assert_eq!((delivered(&side).len() == 1, rejected), (is_delivered, !is_delivered), "{answer}");
    }
    // Of one that was sent once it is a refusal.
    let mut side = up(|config| config.confirm = Level::Business);
    side.send(&[1], at(0));
    side.receive("35=8|34=2|11=O1|17=0|39=8|150=8|103=6", at(0));
    assert!(matches!(side.outcomes.last(), Some((_, Verdict::Reject(..)))));
}

/// Whether it arrived is not known, and nobody may send it any more: that is no word that it did not.
#[test]
fn an_orphan_past_its_time_stays_in_doubt() {
    let mut side = up(|config| config.confirm = Level::Business);
    let expires = Some(at(1000).unix_ms());
    side.engine.send(&[Outgoing { expires, ..order(1) }], at(0));
    side.settle();
    side.engine.disconnected();
    side.connect(at(2000));
    side.left();
    side.outcomes.clear();
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(2000));
    assert!(matches!(side.outcomes[..], [(_, Verdict::InDoubt(_))]));
    side.engine.send(&[Outgoing { expires, ..doubtful(1, "t1b") }], at(2000));
    side.settle();
    assert!(
        !side.outcomes.iter().any(|(_, verdict)| matches!(verdict, Verdict::Retry(_))),
        "{:?}",
        side.outcomes
    );
    assert!(!side.left().iter().any(|text| text.starts_with("35=D|")));
    side.receive("35=8|34=2|11=O1|17=E1|39=2", at(2000));
    assert_eq!(delivered(&side), [1]);
}
