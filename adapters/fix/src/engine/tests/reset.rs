//! Resets within a session, ours and theirs.

use super::*;

const ANEW: &str = "35=A|34=1|98=0|108=30|141=Y";

fn numbers(side: &Side) -> (u64, u64, u64) {
    let numbers = side.engine.numbers();
    (numbers.epoch, numbers.next_out, numbers.next_in)
}

/// A side whose Logon with the flag has left, after one order that the partner has confirmed.
fn asked(change: impl FnOnce(&mut Config)) -> Side {
    let mut side = up(change);
    side.send(&[1], at(0));
    side.receive("35=0|34=2|369=3", at(0));
    side.left();
    assert_eq!(side.engine.begin_anew(at(0)), Ok(()));
    side.settle();
    assert_eq!(side.left(), [ANEW]);
    side
}

#[test]
fn ours_waits_for_proof_then_asks_then_goes_on_with_the_answer() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.left();
    assert_eq!(side.engine.begin_anew(at(0)), Ok(()));
    side.settle();
    assert_eq!(side.left(), NOTHING, "the order is not confirmed");
    assert!(!side.engine.can_send() && side.engine.is_up());
    side.receive("35=0|34=2|112=GP1-2", at(0));
    assert_eq!(delivered(&side), [1]);
    side.engine.tick(at(100));
    side.settle();
    assert_eq!(side.left(), [ANEW]);
    // What the partner sent before it heard of it is numbered as before, and nothing is said to it.
    side.receive("35=8|34=3|11=O1", at(100));
    side.receive("35=1|34=4|112=X", at(100));
    side.engine.tick(at(5_000));
    side.settle();
    assert_eq!(side.left(), NOTHING);
    side.receive(ANEW, at(5_000));
    assert_eq!(numbers(&side), (2, 2, 2));
    assert!(side.engine.is_up() && side.engine.can_send() && !side.engine.begins_anew());
    side.receive("35=8|34=2|11=O1", at(5_000));
    let emits: Vec<_> = side.emits.iter().map(|received| (received.epoch, received.seq)).collect();
    assert_eq!(emits, [(1, 3), (2, 2)]);
    side.send(&[2], at(5_000));
    assert_eq!(side.left()[0], "35=D|34=2|11=O2|55=X");
}

#[test]
fn ours_waits_for_a_gap_to_be_filled() {
    let mut side = up(|_| {});
    side.receive("35=8|34=4", at(0));
    assert_eq!(side.engine.begin_anew(at(0)), Ok(()));
    side.settle();
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=0"]);
    side.receive("35=4|34=2|43=Y|123=Y|36=4", at(0));
    side.engine.tick(at(100));
    side.settle();
    assert_eq!(side.left(), [ANEW]);
}

/// What must be durable before the Logon leaves: that it may have.
#[test]
fn that_it_was_asked_for_is_committed_with_the_logon() {
    let mut side = up(|_| {});
    assert_eq!(side.engine.begin_anew(at(0)), Ok(()));
    let turn = side.engine.take();
    let value = turn.commit.state["n/buy"].clone().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&value).unwrap()["renewal"], "asked");
    assert!(matches!(turn.then[..], [Effect::Write { .. }]));
}

#[test]
fn an_initiator_that_dies_before_the_answer_asks_with_its_next_logon() {
    let mut side = asked(|_| {});
    side.crash();
    for life in 1..3 {
        side.connect(at(life));
        assert_eq!(side.left(), [ANEW]);
        assert!(side.engine.begins_anew());
        side.crash();
    }
    side.connect(at(9));
    side.left();
    side.receive(ANEW, at(9));
    assert!(!side.engine.begins_anew());
    assert_eq!((side.engine.numbers().next_out, side.engine.numbers().next_in), (2, 2));
    side.crash();
    side.connect(at(10));
    assert_eq!(side.left(), ["35=A|34=2|98=0|108=30"], "once");
}

#[test]
fn one_that_dies_before_it_has_asked_logs_on_as_ever_and_goes_on() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.engine.begin_anew(at(0)).unwrap();
    side.settle();
    side.crash();
    side.connect(at(1));
    assert_eq!(side.left(), ["35=A|34=4|98=0|108=30"]);
    side.receive("35=A|34=2|98=0|108=30", at(1));
    assert_eq!(side.left(), ["35=1|34=5|112=GP1-4"]);
    side.receive("35=0|34=3|112=GP1-4", at(1));
    side.engine.tick(at(100));
    side.settle();
    assert_eq!(side.left(), [ANEW]);
}

/// As the side that is connected to: its answer to the next Logon has the flag, and some partners answer that in turn.
#[test]
fn an_acceptor_that_does_not_know_says_so_in_its_answer_and_does_not_go_on_for_ever() {
    let died = || {
        let mut side = Side::new(Config {
            sender_comp_id: "BUY".to_owned(),
            target_comp_id: "SELL".to_owned(),
            ..config(Role::Acceptor)
        });
        side.connect(at(0));
        side.receive(LOGON, at(0));
        side.left();
        side.engine.begin_anew(at(0)).unwrap();
        side.settle();
        assert_eq!(side.left(), [ANEW]);
        side.crash();
        side.connect(at(1));
        side
    };
    // It had not heard: its Logon's number went with the old ones.
    for answers in [true, false] {
        let mut side = died();
        side.receive("35=A|34=57|98=0|108=30", at(1));
        assert_eq!(side.left(), [ANEW]);
        assert!(side.engine.is_up() && side.engine.can_send());
        if answers {
            side.receive(ANEW, at(1));
        } else {
            side.receive("35=0|34=1", at(1));
        }
        assert_eq!(side.left(), NOTHING);
        assert_eq!(numbers(&side), (2, 2, 2));
        assert!(!side.engine.begins_anew());
    }
    // It asks by itself.
    let mut side = died();
    side.receive(ANEW, at(1));
    assert_eq!(side.left(), [ANEW]);
    assert_eq!(numbers(&side), (2, 2, 2));
    assert!(!side.engine.begins_anew());
    // The same where it is a setting that says so.
    let mut side = Side::new(Config { reset_on_logon: true, ..side.config.as_ref().clone() });
    side.connect(at(0));
    side.receive(LOGON, at(0));
    side.receive(ANEW, at(0));
    assert_eq!(side.left(), [ANEW]);
    assert_eq!((side.engine.numbers().next_out, side.engine.numbers().next_in), (2, 2));
}

#[test]
fn an_answer_that_does_not_come_ends_the_connection() {
    let mut side = asked(|_| {});
    side.engine.tick(at(9_999));
    side.settle();
    assert_eq!(side.closed, None);
    side.engine.tick(at(10_000));
    side.settle();
    assert_eq!((side.closed.clone(), side.left()), (Some(Closing::NoLogon), Vec::new()));
    // So does a Logout; and our own end of it.
    let mut side = asked(|_| {});
    side.receive("35=5|34=3|58=MsgSeqNum too low", at(0));
    assert_eq!((side.closed.clone(), side.left()), (Some(Closing::LoggedOut), Vec::new()));
    let mut side = asked(|_| {});
    side.engine.log_out_now("", at(0));
    side.settle();
    assert_eq!((side.closed.clone(), side.left()), (Some(Closing::LoggedOut), Vec::new()));
}

#[test]
fn both_at_once_is_one_reset() {
    let mut side = asked(|_| {});
    // The partner's own, which left before ours came; ours is the answer to it.
    side.receive(ANEW, at(0));
    assert_eq!((numbers(&side), side.left()), ((2, 2, 2), Vec::new()));
}

/// What the partner has confirmed it has: only its answer to it is still to come.
#[test]
fn orders_that_wait_for_an_answer_are_not_sent_again() {
    let mut side = asked(|config| config.confirm = Level::Business);
    side.receive(ANEW, at(0));
    assert_eq!((side.left(), side.engine.pending()), (Vec::new(), 1));
    side.crash();
    side.connect(at(1));
    side.receive("35=A|34=2|98=0|108=30", at(1));
    side.left();
    // Leased again: it is not sent again either.
    let mut again = order(1);
    again.lease = lease(1, "t1b");
    side.engine.send(&[again], at(1));
    side.settle();
    assert!(!side.left().iter().any(|text| text.starts_with("35=D|")));
    side.receive("35=8|34=3|11=O1|39=0", at(1));
    assert_eq!(delivered(&side), [1]);
    assert!(side.engine.numbers().earlier.is_empty(), "nobody waits behind the first epoch any more");
    let left: Vec<&String> = side.state.keys().filter(|key| key.contains("/1/")).collect();
    assert_eq!(left, ["o/buy/1/2"], "the order that lives on, and no message");
}

#[test]
fn a_moment_of_the_day_counts_once_and_not_when_a_process_starts() {
    let json = r#"{"zone":"UTC","time":"17:00"}"#;
    let moments: crate::schedule::MomentSettings = serde_json::from_str(json).unwrap();
    let mut side = up(|config| config.reset_at = Some(moments.windows().unwrap()));
    let tick = |side: &mut Side, ms: u64| {
        // Somebody is there.
        side.engine.last_received = at(ms).tick;
        side.engine.last_sent = at(ms).tick;
        side.engine.tick(at(ms));
        side.settle();
        side.left()
    };
    let evening = 8 * 3_600_000;
    assert_eq!(tick(&mut side, 100), NOTHING);
    assert_eq!(tick(&mut side, evening - 100), NOTHING);
    assert_eq!(tick(&mut side, evening), [ANEW]);
    side.receive(ANEW, at(evening));
    assert_eq!(tick(&mut side, evening + 1000), NOTHING);
    side.crash();
    side.connect(at(evening + 2000));
    side.receive("35=A|34=2|98=0|108=30", at(evening + 2000));
    assert_eq!(side.left(), ["35=A|34=2|98=0|108=30"]);
    assert_eq!(tick(&mut side, evening + 3000), NOTHING);
    // Whoever has been down when the time came does it when it is up again.
    side.engine.disconnected();
    let night = evening + 30 * 3_600_000;
    side.connect(at(night));
    side.receive("35=A|34=3|98=0|108=30", at(night));
    side.left();
    assert_eq!(tick(&mut side, night + 100), [ANEW]);
}

#[test]
fn it_is_refused_where_it_cannot_be() {
    let mut side = up(|_| {});
    side.engine.disconnected();
    assert!(side.engine.begin_anew(at(0)).unwrap_err().contains("not logged on"));
    let mut side = up(|config| config.begin_string = BeginString::Fix41);
    assert_eq!(side.engine.begin_anew(at(0)), Ok(()));
    let mut side = up(|config| config.begin_string = BeginString::Fix40);
    assert!(side.engine.begin_anew(at(0)).unwrap_err().contains("141"));
}

/// QuickFIX, as the side that is connected to, answers the answer to its own.
#[test]
fn an_answer_to_an_answer_begins_nothing() {
    let mut side = up(|_| {});
    side.receive(ANEW, at(0));
    assert_eq!(side.left(), [ANEW]);
    side.receive("35=A|34=2|98=0|108=30|141=Y", at(0));
    assert_eq!((numbers(&side), side.left()), ((2, 2, 3), Vec::new()));
}

/// Theirs, while something of the old numbers is missing: it will never come.
#[test]
fn what_was_missing_when_they_begin_anew_raises_an_alarm() {
    let mut side = up(|_| {});
    side.receive("35=8|34=4", at(0));
    side.receive(ANEW, at(0));
    assert_eq!(side.alarms, [Alarm::GapStays(2)]);
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=0", ANEW]);
}
