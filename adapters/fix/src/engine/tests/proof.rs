//! Rows on deliveries: what proves them, what is sent again, what is kept.

use super::*;

#[test]
fn proof_by_369_by_a_barrier_and_by_nothing_else() {
    let mut side = up(|_| {});
    side.send(&[1, 2], at(0));
    assert!(matches!(side.outcomes[..], [(_, Verdict::Sent(_)), (_, Verdict::Sent(_))]));
    side.receive("35=0|34=2|369=2", at(0));
    assert_eq!(delivered(&side), [1]);
    side.receive("35=0|34=3|112=GP1-2", at(0));
    assert_eq!(delivered(&side), [1], "not our question");
    side.receive("35=0|34=4|112=GP1-3", at(0));
    assert_eq!(delivered(&side), [1, 2]);
    // A request for what the barrier would prove makes it void.
    side.left();
    side.send(&[3], at(0));
    assert_eq!(side.left(), ["35=D|34=5|11=O3|55=X", "35=1|34=6|112=GP1-5"]);
    side.receive("35=2|34=5|7=5|16=0", at(0));
    side.receive("35=0|34=6|112=GP1-5", at(0));
    assert_eq!(delivered(&side), [1, 2]);
    assert!(side.left().contains(&"35=1|34=7|112=GP1-6".to_owned()));
    side.receive("35=0|34=7|112=GP1-6", at(0));
    assert_eq!(delivered(&side), [1, 2, 3]);
    assert_eq!(side.engine.outbox.pending(), 0);
    assert!(!side.state.keys().any(|key| key.starts_with("p/")), "{:?}", side.state.keys());
}

#[test]
fn written_is_delivered_where_no_more_is_asked_for() {
    let mut side = up(|config| config.confirm = Level::Sent);
    side.send(&[1, 2], at(0));
    assert_eq!(side.left(), ["35=D|34=2|11=O1|55=X", "35=D|34=3|11=O2|55=X"]);
    assert_eq!(delivered(&side), [1, 2]);
}

#[test]
fn business_answers_settle_by_name_and_by_number() {
    let verdict = |answer: &str| {
        let mut side = up(|config| config.confirm = Level::Business);
        side.send(&[1, 2], at(0));
        assert!(side.left().iter().all(|text| !text.starts_with("35=1|")), "no barrier");
        side.receive(answer, at(0));
        let answers = side.emits.first().and_then(|received| received.answers.clone());
        (side.outcomes.get(2).map(|(delivery, verdict)| (delivery.as_u128(), verdict.clone())), answers)
    };
    let (outcome, answers) = verdict("35=8|34=2|11=O1|17=E1|39=0|150=0");
    let Some((1, Verdict::Delivered(proof))) = outcome else { panic!("{outcome:?}") };
    assert_eq!((proof.level, proof.shown["exec_id"].as_str()), (Level::Business, Some("E1")));
    assert_eq!(answers.as_deref(), Some("m1"), "what comes in reply is correlated");
    for (answer, text) in [
        ("35=8|34=2|11=O2|17=E1|39=8|58=no money", "the partner rejected it: no money"),
        ("35=3|34=2|45=3|371=55|373=5|58=bad symbol", "the partner's session layer rejected it: bad symbol"),
        ("35=j|34=2|45=3|372=D|380=4|58=closed", "the partner rejected it: closed"),
        ("35=j|34=2|372=D|379=O2|380=4", "the partner rejected it"),
    ] {
        let (outcome, _) = verdict(answer);
        let Some((2, Verdict::Reject(reason, _))) = outcome else { panic!("{answer}: {outcome:?}") };
        assert_eq!(reason, text);
    }
    // A cancel that is refused has been dealt with.
    let (outcome, _) = verdict("35=9|34=2|11=O2|39=0|58=too late");
    assert!(matches!(outcome, Some((2, Verdict::Delivered(_)))));
    for nothing in ["35=8|34=2|11=O9|39=0", "35=0|34=2", "35=3|34=2|45=77", "35=8|34=2|39=8"] {
        assert_eq!(verdict(nothing).0, None, "{nothing}");
    }
}

#[test]
fn stale_orders_are_filled_over_and_told_as_not_delivered() {
    let mut side = up(|config| config.confirm = Level::Business);
    let expires = Some(at(60_000).unix_ms());
    side.engine.send(&[Outgoing { expires, ..order(1) }, order(2)], at(0));
    side.settle();
    side.left();
    side.outcomes.clear();
    // In time it goes out again.
    side.receive("35=2|34=2|7=2|16=0", at(59_000));
    assert_eq!(side.left().len(), 2);
    side.receive("35=2|34=3|7=2|16=0", at(60_000));
    assert_eq!(
        side.left(),
        [
            "35=4|34=2|43=Y|122=20261130-09:01:00.000|123=Y|36=3",
            "35=D|34=3|43=Y|122=20261130-09:00:00.000|11=O2|55=X"
        ]
    );
    let retried: Vec<_> =
        side.outcomes.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Retry(_))).collect();
    assert!(matches!(retried[..], [(delivery, _)] if delivery.as_u128() == 1), "{retried:?}");
    // What the partner has confirmed is not stale: it has it.
    let mut side = up(|_| {});
    side.engine.send(&[Outgoing { expires, ..order(1) }], at(0));
    side.settle();
    side.receive("35=0|34=2|369=3", at(0));
    side.left();
    side.receive("35=2|34=3|7=2|16=2", at(70_000));
    assert!(side.left()[0].starts_with("35=D|34=2|43=Y|"));
    // One that has not left yet does not leave.
    let mut side = up(|_| {});
    side.engine.send(&[Outgoing { expires, ..order(1) }], at(60_000));
    side.settle();
    assert_eq!(side.left(), NOTHING);
    assert!(matches!(side.outcomes[..], [(_, Verdict::Retry(_))]));
}

#[test]
fn a_delivery_that_is_leased_again_keeps_its_number() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.left();
    side.crash();
    side.connect(at(1));
    side.receive("35=A|34=2|98=0|108=30", at(1));
    assert_eq!(side.left(), ["35=A|34=4|98=0|108=30", "35=1|34=5|112=GP1-4"]);
    let mut again = order(1);
    again.lease = lease(1, "t1b");
    side.engine.send(&[again], at(1));
    side.settle();
    assert_eq!(side.left(), NOTHING);
    assert_eq!(side.begun.len(), 2);
    side.engine.received(&message(BeginString::Fix44, "35=0|34=3|112=GP1-4", at(1)), at(1));
    let turn = side.engine.take();
    let [(renewed, Verdict::Delivered(_))] = &turn.commit.outcomes[..] else { panic!("{turn:?}") };
    assert_eq!(token(renewed), "t1b");
}

#[test]
fn an_outcome_that_comes_too_late_is_told_with_the_next_lease() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.left();
    side.engine.received(&message(BeginString::Fix44, "35=0|34=2|112=GP1-2", at(0)), at(0));
    let mut commit = side.engine.take().commit;
    side.engine.take_back(&mut commit, |lease| token(lease) == "t1");
    assert!(commit.outcomes.is_empty());
    side.commit(commit);
    side.crash();
    side.connect(at(1));
    side.receive("35=A|34=3|98=0|108=30", at(1));
    side.left();
    side.outcomes.clear();
    side.send(&[1], at(1));
    assert_eq!(side.left(), NOTHING, "it must not leave a second time");
    assert_eq!(delivered(&side), [1]);
    assert!(!side.state.keys().any(|key| key.starts_with("k/")));
}

#[test]
fn a_refused_commit_leaves_no_trace() {
    let mut side = up(|_| {});
    let numbers = side.engine.numbers().clone();
    let undo = side.engine.send(&[order(1), order(2)], at(0));
    assert_eq!(side.engine.take().commit.begins.len(), 2);
    side.engine.undo(undo);
    assert_eq!((side.engine.numbers(), side.engine.outbox.pending()), (&numbers, 0));
    side.send(&[2], at(0));
    assert_eq!(side.left(), ["35=D|34=2|11=O2|55=X", "35=1|34=3|112=GP1-2"]);
}

#[test]
fn after_a_reset_unproven_messages_go_out_again_marked_or_are_in_doubt() {
    let again = |after_reset| {
        let mut side = up(|config| config.after_reset = after_reset);
        side.send(&[1, 2], at(0));
        side.receive("35=0|34=2|369=2", at(0));
        side.outcomes.clear();
        side.engine.disconnected();
        side.connect(at(1));
        side.left();
        side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
        side
    };
    let mut side = again(AfterReset::Resend);
    assert_eq!(side.left(), ["35=D|34=1|97=Y|11=O2|55=X", "35=1|34=2|112=GP2-1"]);
    side.receive("35=0|34=2|112=GP2-1", at(1));
    assert_eq!(delivered(&side), [2]);
    assert_eq!(side.state.keys().filter(|key| key.starts_with("m/buy/1/")).count(), 0);
    let mut side = again(AfterReset::Doubt);
    assert_eq!(side.left(), NOTHING);
    assert!(matches!(&side.outcomes[..], [(delivery, Verdict::InDoubt(_))] if delivery.as_u128() == 2));
    // A person says: send it again. The partner may have it all the same.
    side.send(&[2], at(2));
    assert_eq!(side.left()[0], "35=D|34=1|97=Y|11=O2|55=X");
}

#[test]
fn numbers_that_an_operator_sets_begin_a_new_epoch() {
    let mut side = up(|_| {});
    assert!(!side.engine.set_numbers(Some(7), None), "not while somebody is connected");
    side.engine.disconnected();
    assert!(side.engine.set_numbers(Some(7), None));
    side.settle();
    side.crash();
    let numbers = side.engine.numbers();
    assert_eq!((numbers.epoch, numbers.next_out, numbers.next_in), (2, 7, 2));
    side.connect(at(1));
    assert_eq!(side.left(), ["35=A|34=7|98=0|108=30"]);
}

#[test]
fn what_is_kept_is_bounded_and_what_is_not_confirmed_is_not_let_go() {
    let mut side = up(|config| config.keep = 4);
    side.send(&[1, 2, 3, 4, 5, 6], at(0));
    assert!(!side.engine.can_send());
    assert_eq!(side.state.keys().filter(|key| key.starts_with("m/")).count(), 6);
    side.receive("35=0|34=2|112=GP1-7", at(0));
    assert_eq!(side.state.keys().filter(|key| key.starts_with("m/")).count(), 4);
    assert!(side.engine.can_send());
    side.left();
    side.receive("35=2|34=3|7=1|16=0", at(0));
    assert_eq!(side.alarms, [Alarm::NotKept { from: 1, through: 3 }]);
    assert_eq!(side.left()[0], "35=4|34=1|43=Y|122=20261130-09:00:00.000|123=Y|36=4");
}

#[test]
fn where_nobody_waits_for_transport_proof_it_is_asked_for_before_too_much_is_kept() {
    for confirm in [Level::Sent, Level::Business] {
        let mut side = up(|config| {
            config.keep = 4;
            config.confirm = confirm;
        });
        side.send(&[1], at(0));
        assert_eq!(side.left(), ["35=D|34=2|11=O1|55=X"]);
        side.send(&[2, 3], at(0));
        assert_eq!(side.left().last().unwrap(), "35=1|34=5|112=GP1-4");
        assert!(!side.engine.can_send());
        side.receive("35=0|34=2|112=GP1-4", at(0));
        assert!(side.engine.can_send());
    }
    let mut side = up(|config| config.keep_bytes = 200);
    side.send(&[1, 2, 3], at(0));
    assert!(!side.takes_one_more());
    side.receive("35=0|34=2|112=GP1-4", at(0));
    assert!(side.takes_one_more());
}

/// Small messages, long names: what is kept of the deliveries stands in the same state.
#[test]
fn deliveries_that_wait_count_as_what_is_kept() {
    let mut side = up(|config| {
        config.keep_bytes = 32 * 1024;
        config.confirm = Level::Business;
    });
    let mut sent = 0;
    while side.takes_one_more() {
        sent += 1;
        side.send(&[sent], at(0));
        let written: usize = side
            .state
            .iter()
            .filter(|(key, _)| key.starts_with("m/") || key.starts_with("p/"))
            .map(|(key, value)| key.len() + value.len())
            .sum();
        assert!(written <= side.engine.outbox.bytes(), "{written} of {}", side.engine.outbox.bytes());
    }
    assert!((40..100).contains(&sent), "{sent}");
    side.outcomes.clear();
    for number in 1..=sent {
        let text = format!("35=8|34={}|11=O{number}|37=x|17=E{number}|39=0|150=0", number + 1);
        side.receive(&text, at(0));
    }
    assert_eq!((delivered(&side).len() as u128, side.engine.outbox.pending()), (sent, 0));
    assert!(side.engine.can_send());
    let outbox = &side.engine.outbox;
    let records = outbox.within(1, 1, u64::MAX);
    assert_eq!(outbox.bytes(), records.map(|(_, record)| outbox.cost(record.bytes.len())).sum::<usize>());
}

/// A settlement holds a thousand results at most.
#[test]
fn what_is_confirmed_or_orphaned_at_once_is_settled_in_pieces() {
    let numbers: Vec<u128> = (1..=600).collect();
    let most = |side: &mut Side| {
        let turn = side.engine.take();
        let most = turn.commit.outcomes.len().max(turn.commit.state.len());
        side.commit(turn.commit);
        most
    };
    let mut side = up(|_| {});
    side.send(&numbers, at(0));
    side.engine.received(&message(BeginString::Fix44, "35=0|34=2|369=601", at(0)), at(0));
    while side.engine.has_more() {
        assert!(most(&mut side) < 700);
        side.engine.go_on(at(0));
    }
    side.settle();
    assert_eq!((delivered(&side).len(), side.engine.numbers().confirmed), (600, 601));
    for after_reset in [AfterReset::Resend, AfterReset::Doubt] {
        let mut side = up(|config| config.after_reset = after_reset);
        side.send(&numbers, at(0));
        side.engine.disconnected();
        side.connect(at(1));
        side.outcomes.clear();
        side.left();
        let logon = message(BeginString::Fix44, "35=A|34=1|98=0|108=30|141=Y", at(1));
        side.engine.received(&logon, at(1));
        assert!(!side.engine.can_send(), "old ones go first");
        let mut turns = 0;
        while side.engine.has_more() {
            assert!(most(&mut side) < 700);
            side.engine.go_on(at(1));
            turns += 1;
        }
        side.settle();
        assert!(turns >= 5 && side.engine.can_send());
        let left = side.engine.outbox.orphans((0, 0), 2, usize::MAX).len();
        match after_reset {
            AfterReset::Resend => assert_eq!((left, side.outcomes.len()), (0, 0)),
            AfterReset::Doubt => assert_eq!((left, side.outcomes.len()), (600, 600)),
        }
    }
}

/// Days in which only Heartbeats leave: they have numbers too, and nobody confirms those by itself.
#[test]
fn a_session_that_was_idle_for_long_sends_again() {
    for confirm in [Level::Sent, Level::Transport, Level::Business] {
        let mut side = up(|config| {
            config.confirm = confirm;
            config.keep = 256;
        });
        let mut asked = 0;
        for beat in 1..2000 {
            let now = at(beat * 30_000);
            let seq = side.engine.numbers().next_in;
            side.receive(&format!("35=0|34={seq}"), now);
            side.engine.tick(now);
            side.settle();
            for left in side.left() {
                if let Some((_, id)) = left.split_once("|112=") {
                    asked += 1;
                    let seq = side.engine.numbers().next_in;
                    side.receive(&format!("35=0|34={seq}|112={id}"), now);
                }
            }
        }
        assert!(side.engine.can_send(), "{confirm:?}: after {} messages", side.engine.numbers().last_out());
        assert!(asked < 20, "{asked} questions");
    }
}

/// A question whose answer was lost with the connection is asked again, also where no delivery waits for it.
#[test]
fn a_session_that_may_send_no_more_asks_after_each_logon() {
    let mut side = up(|config| {
        config.confirm = Level::Business;
        config.keep = 256;
    });
    let all: Vec<u128> = (1..=300).collect();
    side.send(&all, at(0));
    let next = side.engine.numbers().next_in;
    for (seq, number) in (next..).zip(&all) {
        side.receive(&format!("35=8|34={seq}|11=O{number}|17=E{number}|39=2"), at(0));
    }
    assert_eq!(delivered(&side).len(), 300);
    assert!(!side.engine.can_send());
    side.engine.disconnected();
    side.settle();
    side.connect(at(1));
    side.left();
    let seq = side.engine.numbers().next_in;
    side.receive(&format!("35=A|34={seq}|98=0|108=30"), at(1));
    side.engine.tick(at(100));
    side.settle();
    let left = side.left();
    let Some((_, id)) = left.last().and_then(|left| left.split_once("|112=")) else { panic!("{left:?}") };
    side.receive(&format!("35=0|34={}|112={id}", seq + 1), at(200));
    assert!(side.engine.can_send());
}

/// What had been asked before stays asked.
#[test]
fn a_refused_begin_takes_no_question_back_that_has_left() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    assert_eq!(side.left(), ["35=D|34=2|11=O1|55=X", "35=1|34=3|112=GP1-2"]);
    let undo = side.engine.send(&[order(2)], at(0));
    drop(side.engine.take());
    side.engine.undo(undo);
    side.engine.send(&[], at(0));
    side.settle();
    assert_eq!(side.left(), NOTHING, "it is asked twice");
    side.receive("35=0|34=2|112=GP1-2", at(0));
    assert_eq!(delivered(&side), [1]);
}

/// And one that has not left is asked again: much has been kept since the last one.
#[test]
fn a_refused_begin_takes_its_own_question_with_it() {
    let mut side = up(|config| {
        config.confirm = Level::Business;
        config.keep_bytes = 64 * 1024;
    });
    let long = |number: u128| Outgoing {
        content: content(&format!("35=D|11=O{number}|58={}|", "x".repeat(1000))),
        ..order(number)
    };
    let asks = |turn: &Turn| {
        let written = turn.then.iter().filter_map(|effect| match effect {
            Effect::Write { bytes, .. } => Some(short(bytes)),
            _ => None,
        });
        written.into_iter().any(|left| left.starts_with("35=1|"))
    };
    for number in 1.. {
        let undo = side.engine.send(&[long(number)], at(0));
        let turn = side.engine.take();
        if asks(&turn) {
            side.engine.undo(undo);
            side.engine.send(&[long(number + 1)], at(0));
            assert!(asks(&side.engine.take()), "the question is lost");
            return;
        }
        side.commit(turn.commit);
    }
}
