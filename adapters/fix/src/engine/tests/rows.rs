//! Rows after the FIX session test cases; the numbers in names are those of QuickFIX's scripts (`1a_ValidLogon…`, `2b_…`).
//! The engine is BUY, an initiator, unless it says otherwise; the partner is SELL.

use super::*;

/// An acceptor that somebody has connected to. It is SELL; `message` makes messages of SELL to BUY, so names are turned.
fn arrived(change: impl FnOnce(&mut Config)) -> Side {
    let mut config = config(Role::Acceptor);
    config.sender_comp_id = "BUY".to_owned();
    config.target_comp_id = "SELL".to_owned();
    change(&mut config);
    let mut side = Side::new(config);
    side.connect(at(0));
    side
}

#[test]
fn r1a_a_valid_logon_is_answered_with_the_same_heartbeat() {
    let mut side = arrived(|_| {});
    side.receive("35=A|34=1|98=0|108=7", at(0));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=7"]);
    assert!(side.engine.is_up());
    assert_eq!((side.engine.numbers().next_in, side.engine.numbers().next_out), (2, 2));
}

#[test]
fn r1a_a_logon_with_a_number_too_high_is_answered_and_then_the_gap_asked_for() {
    let mut side = arrived(|_| {});
    side.receive("35=A|34=5|98=0|108=30", at(0));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30", "35=2|34=2|7=1|16=0"]);
    side.receive("35=4|34=1|43=Y|122=20261130-09:00:00.000|123=Y|36=6", at(0));
    assert_eq!(side.engine.numbers().next_in, 6);
}

#[test]
fn r1c_1d_1e_who_is_not_welcome_is_told_nothing() {
    for first in [
        "35=0|34=1",
        "35=D|34=1|11=A",
        "35=A|34=1|49=OTHER|98=0|108=30",
        "35=A|34=1|56=OTHER|98=0|108=30",
        "35=A|34=1|52=20261130-08:57:59.000|98=0|108=30",
        "35=A|34=1|52=20261130-09:02:01.000|98=0|108=30",
        "35=A|34=1|52=now|98=0|108=30",
        "35=A|34=1|98=1|108=30",
        "35=A|34=1|98=0",
        "35=A|34=1|98=0|108=-1",
        "35=A|34=x|98=0|108=30",
        "35=A|34=0|98=0|108=30",
    ] {
        let mut side = arrived(|_| {});
        side.receive(first, at(0));
        assert_eq!(side.left(), NOTHING, "{first}");
        assert!(matches!(side.closed, Some(Closing::NotWelcome(_))), "{first}");
        assert_eq!(*side.engine.numbers(), Numbers::default(), "{first}");
    }
    let mut side = Side::new(config(Role::Acceptor));
    side.connect(at(0));
    let other = message(BeginString::Fix42, LOGON, at(0));
    side.engine.received(&other, at(0));
    side.settle();
    assert!(matches!(side.closed, Some(Closing::NotWelcome(_))));
}

#[test]
fn a_password_is_compared_and_never_shown() {
    let credentials = Credentials { username: "u".to_owned(), password: "secret".to_owned() };
    for (given, welcome) in
        [("|553=u|554=secret", true), ("|553=u|554=Secret", false), ("|553=u", false), ("", false)]
    {
        let mut side = arrived(|config| config.credentials = Some(credentials.clone()));
        side.receive(&format!("{LOGON}{given}"), at(0));
        assert_eq!(side.engine.is_up(), welcome, "{given}");
    }
    assert!(!format!("{credentials:?}").contains("secret"));
}

#[test]
fn fixt_logons_agree_on_the_application_version() {
    let fixt = |config: &mut Config| {
        config.begin_string = BeginString::Fixt11;
        config.appl_ver_id = Some(crate::version::ApplVerId::Fix50Sp2);
    };
    for (given, welcome) in [("|1137=9", true), ("|1137=8", false), ("", false)] {
        let mut side = arrived(fixt);
        side.receive(&format!("{LOGON}{given}"), at(0));
        assert_eq!(side.engine.is_up(), welcome, "{given}");
        if welcome {
            assert_eq!(side.left(), ["35=A|34=1|98=0|108=30|1137=9"]);
        }
    }
}

#[test]
fn a_logon_that_does_not_come_ends_the_connection() {
    for mut side in [arrived(|_| {}), Side::new(config(Role::Initiator))] {
        side.connect(at(0));
        side.engine.tick(at(9_999));
        side.settle();
        assert_eq!(side.closed, None);
        side.engine.tick(at(10_000));
        side.settle();
        assert_eq!(side.closed, Some(Closing::NoLogon));
    }
}

#[test]
fn r2a_messages_in_order_are_handed_on() {
    let mut side = up(|_| {});
    side.receive("35=8|34=2|37=x", at(0));
    side.receive("35=0|34=3", at(0));
    side.receive("35=8|34=4|37=y", at(0));
    let emits: Vec<_> = side.emits.iter().map(|received| (received.epoch, received.seq)).collect();
    assert_eq!(emits, [(1, 2), (1, 4)]);
    assert_eq!(side.left(), NOTHING);
}

#[test]
fn r2b_20_a_gap_is_asked_for_once_and_what_came_early_is_processed_in_order() {
    let mut side = up(|_| {});
    side.receive("35=8|34=4|37=c", at(0));
    side.receive("35=8|34=5|37=d", at(0));
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=0"]);
    side.receive("35=8|34=2|43=Y|122=20261130-08:59:59.000|37=a", at(0));
    assert_eq!(side.emits.len(), 1);
    side.receive("35=8|34=3|43=Y|122=20261130-08:59:59.000|37=b", at(0));
    // The answer to "all" brings what came early once more: it is known.
    side.receive("35=8|34=4|43=Y|122=20261130-08:59:59.000|37=c", at(0));
    side.receive("35=8|34=5|43=Y|122=20261130-08:59:59.000|37=d", at(0));
    side.receive("35=8|34=6|37=e", at(0));
    let ids: Vec<_> =
        side.emits.iter().map(|received| received.message.text(37).unwrap().to_owned()).collect();
    assert_eq!(ids, ["a", "b", "c", "d", "e"]);
    assert_eq!(side.left(), NOTHING);
    // A new gap is asked for anew.
    side.receive("35=8|34=9|37=f", at(0));
    assert_eq!(side.left(), ["35=2|34=3|7=7|16=0"]);
}

#[test]
fn r2b_all_is_written_otherwise_before_4_2_and_chunks_follow_each_other() {
    for (version, through) in
        [(BeginString::Fix40, "999999"), (BeginString::Fix41, "999999"), (BeginString::Fix42, "0")]
    {
        let mut side = Side::new(Config { begin_string: version, ..config(Role::Initiator) });
        side.connect(at(0));
        side.receive(LOGON, at(0));
        side.left();
        side.receive("35=8|34=4", at(0));
        assert_eq!(side.left(), [format!("35=2|34=2|7=2|16={through}")]);
    }
    let mut side = up(|config| config.resend_chunk = 2);
    side.receive("35=8|34=7", at(0));
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=3"]);
    side.receive("35=4|34=2|43=Y|123=Y|36=4", at(0));
    assert_eq!(side.left(), ["35=2|34=3|7=4|16=5"]);
    // A GapFill beyond the chunk's end counts as far as it goes.
    side.receive("35=4|34=4|43=Y|123=Y|36=7", at(0));
    assert_eq!((side.left().len(), side.emits.len(), side.engine.numbers().next_in), (0, 1, 8));
}

#[test]
fn a_gap_that_stays_is_asked_for_again_and_ends_the_session_in_the_end() {
    let mut side = up(|_| {});
    // Without heartbeats, so that nothing else is said.
    side.receive("35=A|34=1|141=Y|98=0|108=0", at(0));
    side.left();
    side.receive("35=8|34=9", at(0));
    let mut asked = side.left().len();
    for second in 1..=100 {
        side.engine.tick(at(second * 1000));
        side.settle();
        asked += side.left().iter().filter(|text| text.starts_with("35=2|")).count();
    }
    assert_eq!(asked, 3);
    assert!(matches!(side.closed, Some(Closing::Broken(_))));
    assert!(matches!(side.alarms[..], [Alarm::GapStays(_)]));
}

#[test]
fn r2c_a_number_too_low_ends_the_session_with_an_alarm() {
    let mut side = up(|_| {});
    side.receive("35=8|34=1", at(0));
    assert_eq!(side.left(), ["35=5|34=2|58=MsgSeqNum too low, expecting 2 but received 1"]);
    assert_eq!(side.closed, Some(Closing::NumbersDiffer));
    assert_eq!(side.alarms, [Alarm::TooLow { expected: 2, received: 1 }]);
    // Nothing more is taken in from this connection.
    side.receive("35=8|34=2", at(0));
    assert!(side.emits.is_empty());
}

#[test]
fn r2e_2f_2g_duplicates_are_passed_over_if_they_say_when_they_were_first_sent() {
    let mut side = up(|_| {});
    side.receive("35=8|34=1|43=Y|122=20261130-08:59:00.000", at(0));
    assert_eq!((side.left().len(), side.emits.len(), side.closed.clone()), (0, 0, None));
    side.receive("35=8|34=1|43=Y", at(0));
    assert_eq!(side.left(), ["35=3|34=2|45=1|58=Required tag missing|371=122|372=8|373=1"]);
    side.receive("35=8|34=1|43=Y|122=20261130-09:00:01.000", at(0));
    assert_eq!(
        side.left(),
        [
            "35=3|34=3|45=1|58=SendingTime accuracy problem|372=8|373=10",
            "35=5|34=4|58=SendingTime accuracy problem"
        ]
    );
}

#[test]
fn r2i_a_wrong_begin_string_in_the_middle_logs_out() {
    let mut side = up(|_| {});
    side.engine.received(&message(BeginString::Fix42, "35=0|34=2", at(0)), at(0));
    side.settle();
    assert_eq!(side.left(), ["35=5|34=2|58=Incorrect BeginString"]);
}

#[test]
fn r2k_wrong_names_are_rejected_and_log_out() {
    let mut side = up(|_| {});
    side.receive("35=8|34=2|49=OTHER", at(0));
    assert_eq!(side.left(), ["35=3|34=2|45=2|58=CompID problem|372=8|373=9", "35=5|34=3|58=CompID problem"]);
    assert_eq!((side.emits.len(), side.engine.numbers().next_in), (0, 3));
}

/// SubIDs and LocationIDs are names as CompIDs are, where the session has them.
#[test]
fn names_within_a_firm_are_sent_and_asked_for() {
    let ids = |config: &mut Config| {
        config.header = vec![(50, "DESK".to_owned()), (142, "NY".to_owned())];
        config.header_tags = vec![50, 142];
        config.partner_header = vec![(57, "DESK".to_owned()), (143, "NY".to_owned())];
    };
    let logon = "35=A|34=1|57=DESK|143=NY|98=0|108=30";
    for wrong in [LOGON, "35=A|34=1|57=DESK|98=0|108=30", "35=A|34=1|57=DESK|143=LDN|98=0|108=30"] {
        let mut side = arrived(ids);
        side.receive(wrong, at(0));
        assert_eq!(side.left(), NOTHING, "{wrong}");
        assert!(matches!(side.closed, Some(Closing::NotWelcome(_))), "{wrong}");
        let mut side = arrived(|config| {
            ids(config);
            config.check_header = false;
        });
        side.receive(wrong, at(0));
        assert!(side.engine.is_up(), "{wrong}");
    }
    let mut side = arrived(ids);
    side.receive(logon, at(0));
    assert_eq!(side.left(), ["35=A|34=1|50=DESK|142=NY|98=0|108=30"]);
    side.receive("35=8|34=2|57=DESK|143=NY|37=x", at(0));
    side.send(&[1], at(0));
    assert_eq!(side.emits.len(), 1);
    // Sent again they stand there once.
    side.receive("35=2|34=3|57=DESK|143=NY|7=2|16=2", at(0));
    let left = side.left();
    assert_eq!(left[0], "35=D|34=2|50=DESK|142=NY|11=O1|55=X");
    assert!(left.contains(&"35=D|34=2|43=Y|50=DESK|122=20261130-09:00:00.000|142=NY|11=O1|55=X".to_owned()));
    side.receive("35=8|34=4|57=OTHER|143=NY|37=x", at(0));
    let left = side.left();
    assert!(left[0].contains("|45=4|58=CompID problem|372=8|373=9"), "{left:?}");
    assert!(left[1].starts_with("35=5|"), "{left:?}");
    assert_eq!((side.emits.len(), side.engine.numbers().next_in), (1, 5));
}

#[test]
fn r2o_a_sending_time_that_is_off_is_rejected_and_logs_out() {
    for (stamp, off) in
        [("09:02:00.000", false), ("09:02:00.001", true), ("08:58:00.000", false), ("08:57:59.999", true)]
    {
        let mut side = up(|_| {});
        side.receive(&format!("35=8|34=2|52=20261130-{stamp}"), at(0));
        let left = side.left();
        assert_eq!(left.len(), if off { 2 } else { 0 }, "{stamp}");
        if off {
            assert_eq!(left[0], "35=3|34=2|45=2|58=SendingTime accuracy problem|371=52|372=8|373=10");
            assert!(left[1].starts_with("35=5|34=3|"));
        }
    }
    let mut side = up(|config| config.latency_max = None);
    side.receive("35=8|34=2|52=20200101-00:00:00", at(0));
    assert_eq!(side.emits.len(), 1);
}

#[test]
fn a_message_without_a_number_ends_the_session() {
    let mut side = up(|_| {});
    side.receive("35=8|34=|37=a", at(0));
    assert_eq!(side.left(), ["35=5|34=2|58=MsgSeqNum missing or not a number"]);
    assert!(matches!(side.closed, Some(Closing::Broken(_))));
}

#[test]
fn r4b_a_test_request_is_answered_with_its_id() {
    let mut side = up(|_| {});
    side.receive("35=1|34=2|112=hello there", at(0));
    side.receive("35=1|34=3", at(0));
    assert_eq!(
        side.left(),
        ["35=0|34=2|112=hello there", "35=3|34=3|45=3|58=Required tag missing|371=112|372=1|373=1"]
    );
}

#[test]
fn r4a_6_heartbeats_test_requests_and_the_end_of_patience() {
    let mut side = up(|_| {});
    let ticks = |side: &mut Side, from: u64, to: u64| {
        for tenth in from * 10..to * 10 {
            side.engine.tick(at(tenth * 100));
            side.settle();
        }
        side.left()
    };
    assert_eq!(ticks(&mut side, 0, 30), NOTHING);
    assert_eq!(ticks(&mut side, 30, 36), ["35=0|34=2"]);
    assert_eq!(ticks(&mut side, 36, 37), ["35=1|34=3|112=TEST"]);
    assert_eq!(ticks(&mut side, 37, 72), ["35=0|34=4"]);
    assert_eq!(side.closed, None);
    assert_eq!(ticks(&mut side, 72, 73), NOTHING);
    assert_eq!(side.closed, Some(Closing::Silent(72)));
    // Whatever comes shows that the partner lives, also what must wait for its turn.
    let mut side = up(|_| {});
    side.receive("35=8|34=9", at(35_000));
    side.left();
    let left = ticks(&mut side, 35, 64);
    assert!(left.iter().all(|text| !text.starts_with("35=1|")), "{left:?}");
    assert!(ticks(&mut side, 64, 72).contains(&"35=1|34=5|112=TEST".to_owned()));
}

#[test]
fn without_an_interval_nobody_is_asked_and_nothing_sent() {
    let mut side = arrived(|_| {});
    side.receive("35=A|34=1|98=0|108=0", at(0));
    side.left();
    side.engine.tick(at(3_600_000));
    side.settle();
    assert_eq!((side.left().len(), side.closed), (0, None));
}

#[test]
fn r8_resend_requests_bring_application_messages_again_and_fill_over_the_rest() {
    let mut side = up(|_| {});
    side.send(&[1, 2], at(1_000));
    assert_eq!(side.left(), ["35=D|34=2|11=O1|55=X", "35=D|34=3|11=O2|55=X", "35=1|34=4|112=GP1-3"]);
    side.receive("35=1|34=2|112=a", at(2_000));
    side.left();
    side.send(&[3], at(3_000));
    side.left();
    side.receive("35=2|34=3|7=1|16=0", at(4_000));
    let again = side.left();
    assert_eq!(
        again,
        [
            "35=4|34=1|43=Y|122=20261130-09:00:04.000|123=Y|36=2",
            "35=D|34=2|43=Y|122=20261130-09:00:01.000|11=O1|55=X",
            "35=D|34=3|43=Y|122=20261130-09:00:01.000|11=O2|55=X",
            "35=4|34=4|43=Y|122=20261130-09:00:04.000|123=Y|36=6",
            "35=D|34=6|43=Y|122=20261130-09:00:03.000|11=O3|55=X",
            // What is asked for again has not been processed: proof is asked for anew.
            "35=1|34=7|112=GP1-6",
        ]
    );
    // Parts, ends beyond the last number, and requests for what has not been sent.
    side.receive("35=2|34=4|7=3|16=4", at(5_000));
    let left = side.left();
    assert_eq!(left[0], "35=D|34=3|43=Y|122=20261130-09:00:01.000|11=O2|55=X");
    assert_eq!(left[1], "35=4|34=4|43=Y|122=20261130-09:00:05.000|123=Y|36=5");
    side.receive("35=2|34=5|7=8|16=1000", at(5_000));
    assert!(side.left()[0].starts_with("35=4|34=8|"));
    side.receive("35=2|34=6|7=100|16=0", at(5_000));
    assert!(side.left().iter().all(|text| !text.contains("|43=Y|")));
    side.receive("35=2|34=7|7=5|16=3", at(5_000));
    assert!(side.left()[0].ends_with("|371=7|372=2|373=5"));
}

#[test]
fn rejects_are_sent_again_and_not_filled_over() {
    let mut side = up(|_| {});
    side.receive("35=1|34=2", at(0));
    side.left();
    side.receive("35=2|34=3|7=1|16=0", at(1_000));
    let left = side.left();
    assert!(
        left[1].starts_with("35=3|34=2|43=Y|122=20261130-09:00:00.000|45=2|58=Required tag missing|371=112|"),
        "{left:?}"
    );
}

#[test]
fn r10_gap_fills() {
    let mut side = up(|_| {});
    // Equal: jump.
    side.receive("35=4|34=2|123=Y|36=20", at(0));
    assert_eq!(side.engine.numbers().next_in, 20);
    // Too low, marked as a duplicate: nothing.
    side.receive("35=4|34=2|43=Y|122=20261130-08:59:00.000|123=Y|36=19", at(0));
    side.receive("35=4|34=2|43=Y|123=Y|36=50", at(0));
    assert_eq!((side.engine.numbers().next_in, side.left().len()), (20, 0));
    // Too high: what is before it is asked for; then it counts.
    side.receive("35=4|34=22|123=Y|36=30", at(0));
    assert_eq!(side.left(), ["35=2|34=2|7=20|16=0"]);
    side.receive("35=4|34=20|43=Y|123=Y|36=22", at(0));
    assert_eq!(side.engine.numbers().next_in, 30);
    // Backwards.
    side.receive("35=4|34=30|123=Y|36=30", at(0));
    assert!(side.left()[0].ends_with("|371=36|372=4|373=5"));
    assert_eq!(side.engine.numbers().next_in, 30);
    // Too low, and not marked.
    side.receive("35=4|34=3|123=Y|36=40", at(0));
    assert_eq!(side.closed, Some(Closing::NumbersDiffer));
}

#[test]
fn r11_resets_ignore_their_own_number() {
    for (text, next_in, rejects) in [
        ("35=4|34=7|36=20", 20, false),
        ("35=4|34=2|36=20", 20, false),
        ("35=4|34=7|123=N|36=20", 20, false),
        ("35=4|34=1|36=2", 2, false),
        ("35=4|34=2|36=1", 2, true),
        ("35=4|34=2|36=x", 2, true),
        ("35=4|34=2|36=18446744073709551615", 2, true),
        ("35=4|34=2", 2, true),
    ] {
        let mut side = up(|_| {});
        side.receive(text, at(0));
        assert_eq!(side.engine.numbers().next_in, next_in, "{text}");
        assert_eq!(!side.left().is_empty(), rejects, "{text}");
    }
    // What came early and is now in turn is not lost.
    let mut side = up(|_| {});
    side.receive("35=8|34=5|37=a", at(0));
    side.receive("35=4|34=99|36=5", at(0));
    assert_eq!((side.emits.len(), side.engine.numbers().next_in), (1, 6));
}

#[test]
fn r13b_a_logout_is_answered_also_within_a_gap() {
    let mut side = up(|_| {});
    side.receive("35=5|34=2", at(0));
    assert_eq!(side.left(), ["35=5|34=2"]);
    assert_eq!((side.closed.clone(), side.engine.numbers().next_in), (Some(Closing::LoggedOut), 3));
    let mut side = up(|_| {});
    side.receive("35=8|34=5", at(0));
    side.receive("35=5|34=6", at(0));
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=0", "35=5|34=3"]);
    assert_eq!((side.closed.clone(), side.engine.numbers().next_in), (Some(Closing::LoggedOut), 2));
}

#[test]
fn a_logout_of_ours_waits_for_its_answer_but_not_for_ever() {
    let mut side = up(|_| {});
    side.engine.log_out_now("", at(0));
    side.settle();
    assert_eq!(side.left(), ["35=5|34=2"]);
    assert!(!side.engine.can_send());
    // What was on its way is taken in.
    side.receive("35=8|34=2", at(100));
    assert_eq!((side.emits.len(), side.closed.clone()), (1, None));
    side.receive("35=5|34=3", at(100));
    assert_eq!((side.left().len(), side.closed.clone()), (0, Some(Closing::LoggedOut)));
    let mut side = up(|_| {});
    side.engine.log_out_now("", at(0));
    side.engine.tick(at(2_000));
    side.settle();
    assert_eq!(side.closed, Some(Closing::LoggedOut));
}

#[test]
fn both_sides_ask_and_both_are_answered_at_once() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.left();
    side.receive("35=8|34=5", at(0));
    assert_eq!(side.left(), ["35=2|34=4|7=2|16=0"]);
    // The partner's own request has a number that is too high as well, and must not wait for the gap.
    side.receive("35=2|34=6|7=2|16=0", at(0));
    let left = side.left();
    assert!(left[0].starts_with("35=D|34=2|43=Y|"), "{left:?}");
    assert!(left.iter().all(|text| !text.starts_with("35=2|")), "one request for one gap: {left:?}");
    side.receive("35=4|34=2|43=Y|123=Y|36=5", at(0));
    side.receive("35=4|34=6|43=Y|123=Y|36=7", at(0));
    assert_eq!(side.engine.numbers().next_in, 7);
}

#[test]
fn a_reset_flag_begins_a_new_epoch_both_ways() {
    // Theirs, to an acceptor.
    let mut side = arrived(|_| {});
    side.receive(LOGON, at(0));
    side.receive("35=8|34=2", at(0));
    side.engine.disconnected();
    side.connect(at(1));
    side.left();
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30|141=Y"]);
    side.receive("35=8|34=2", at(1));
    let emits: Vec<_> = side.emits.iter().map(|received| (received.epoch, received.seq)).collect();
    assert_eq!(emits, [(1, 2), (2, 2)]);
    // Theirs, in the middle of a session.
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(2));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30|141=Y"]);
    assert_eq!((side.engine.numbers().epoch, side.engine.numbers().next_in), (3, 2));
    // Ours.
    let mut side = Side::new(Config { reset_on_logon: true, ..config(Role::Initiator) });
    side.connect(at(0));
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(0));
    side.receive("35=8|34=2", at(0));
    side.engine.disconnected();
    side.left();
    side.connect(at(1));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30|141=Y"]);
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    assert_eq!((side.engine.numbers().epoch, side.engine.numbers().next_in), (2, 2));
    // Theirs, unasked, in answer to our Logon.
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.engine.disconnected();
    side.connect(at(1));
    side.left();
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    assert_eq!(side.left(), ["35=D|34=1|97=Y|11=O1|55=X", "35=1|34=2|112=GP2-1"]);
}

#[test]
fn resets_at_logout_and_disconnect() {
    let mut side = up(|config| config.reset_on_logout = true);
    side.receive("35=5|34=2", at(0));
    assert_eq!((side.engine.numbers().epoch, side.engine.numbers().next_out), (2, 1));
    let mut side = up(|config| config.reset_on_disconnect = true);
    side.engine.disconnected();
    side.settle();
    assert_eq!((side.engine.numbers().epoch, side.engine.numbers().next_in), (2, 1));
    // Neither by itself.
    let mut side = up(|_| {});
    side.receive("35=5|34=2", at(0));
    side.engine.disconnected();
    side.settle();
    assert_eq!((side.engine.numbers().epoch, side.engine.numbers().next_in), (1, 3));
}

#[test]
fn numbers_begin_anew_with_a_window_and_not_with_a_process() {
    let settings = serde_json::from_str(r#"{"zone":"UTC","start":"08:00","end":"17:00"}"#).unwrap();
    let schedule = crate::schedule::Schedule::try_from(&settings).unwrap();
    let mut side = up(|config| config.schedule = Some(schedule));
    side.crash();
    side.connect(at(1));
    assert_eq!(side.left(), ["35=A|34=2|98=0|108=30"], "the same window");
    side.receive("35=A|34=2|98=0|108=30", at(1));
    // 17:00: the window ends. The numbers stay.
    let evening = at(8 * 3_600_000);
    side.engine.tick(evening);
    side.settle();
    assert_eq!(side.left(), ["35=5|34=3|58=the session's window ends"]);
    assert!(!side.engine.is_open(evening));
    side.engine.disconnected();
    side.crash();
    assert_eq!(side.engine.numbers().epoch, 1);
    let tomorrow = at(24 * 3_600_000);
    side.connect(tomorrow);
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30"]);
    assert_eq!(side.engine.numbers().epoch, 2);
}

#[test]
fn next_expected_tells_both_sides_what_to_send_again() {
    let mut side = up_with_next_expected();
    side.send(&[1, 2], at(0));
    side.left();
    side.engine.disconnected();
    side.connect(at(1_000));
    assert_eq!(side.left(), ["35=A|34=5|98=0|108=30|789=2"]);
    side.receive("35=A|34=2|98=0|108=30|789=3", at(1_000));
    assert_eq!(
        side.left(),
        [
            "35=D|34=3|43=Y|122=20261130-09:00:00.000|11=O2|55=X",
            "35=4|34=4|43=Y|122=20261130-09:00:01.000|123=Y|36=6",
            "35=1|34=6|112=GP1-5",
        ]
    );
    // The first is proven by the number itself.
    assert_eq!(delivered(&side), [1]);
    // Nothing is asked for where the partner sees from our Logon what we miss.
    let mut side = up_with_next_expected();
    side.engine.disconnected();
    side.connect(at(1_000));
    side.left();
    side.receive("35=A|34=9|98=0|108=30|789=3", at(1_000));
    assert_eq!(side.left(), NOTHING);
    // More than we have sent: one of us has lost something.
    let mut side = up_with_next_expected();
    side.engine.disconnected();
    side.connect(at(1_000));
    side.left();
    side.receive("35=A|34=2|98=0|108=30|789=7", at(1_000));
    assert_eq!(side.closed, Some(Closing::NumbersDiffer));
}

fn up_with_next_expected() -> Side {
    let mut side = Side::new(Config { next_expected: true, ..config(Role::Initiator) });
    side.connect(at(0));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30|789=1"]);
    side.receive("35=A|34=1|98=0|108=30|789=2", at(0));
    assert_eq!(side.left(), NOTHING);
    side
}

#[test]
fn a_partner_that_finds_our_number_too_low_raises_an_alarm() {
    let mut side = Side::new(config(Role::Initiator));
    side.connect(at(0));
    side.receive("35=5|34=9|58=MsgSeqNum too low, expecting 7 but received 1", at(0));
    assert_eq!(
        (side.closed.clone(), &side.alarms[..]),
        (Some(Closing::NumbersDiffer), &[Alarm::OursTooLow][..])
    );
    let mut side = Side::new(config(Role::Initiator));
    side.connect(at(0));
    side.receive("35=5|34=9|58=who are you", at(0));
    assert_eq!(side.closed, Some(Closing::Refused));
}

/// What the session says itself has its fields in the order of tags, which some partners compare.
#[test]
fn messages_of_the_session_are_in_the_order_of_tags() {
    let credentials = Credentials { username: "u".to_owned(), password: "p".to_owned() };
    let fixt = |config: &mut Config| {
        config.begin_string = BeginString::Fixt11;
        config.appl_ver_id = Some(crate::version::ApplVerId::Fix50Sp2);
        config.credentials = Some(credentials.clone());
        config.next_expected = true;
        config.last_processed = true;
        config.header = vec![(57, "T".to_owned()), (50, "S".to_owned())];
        config.check_header = false;
    };
    let mut side = Side::new(Config { reset_on_logon: true, ..config(Role::Initiator) });
    fixt(Arc::make_mut(&mut side.config));
    side.crash();
    side.connect(at(0));
    side.receive("35=A|34=1|98=0|108=30|141=Y|1137=9", at(0));
    side.receive("35=8|34=4", at(0));
    side.receive("35=1|34=2|112=x", at(0));
    side.receive("35=4|34=3|43=Y|123=Y|36=2", at(0));
    let refused = message(BeginString::Fixt11, "35=8|34=9", at(0));
    let epoch = side.engine.numbers().epoch;
    let refused = Received { epoch, seq: 9, message: refused, answers: None, by_number: false };
    assert!(matches!(side.engine.owe(&refused, "no"), Owing::Kept(..)));
    side.engine.tell_owed(at(0));
    side.settle();
    side.receive("35=8|34=5|49=OTHER", at(0));
    let left = side.left();
    let types: Vec<&str> = left.iter().map(|text| &text[..4]).collect();
    assert_eq!(types, ["35=A", "35=2", "35=0", "35=3", "35=j", "35=3", "35=5"], "{left:?}");
    for text in left {
        let tags: Vec<u32> =
            text.split('|').skip(1).map(|field| field.split('=').next().unwrap().parse().unwrap()).collect();
        // `short` leaves out 49, 52 and 56; the header ends before the first field of the body.
        let body = tags.iter().position(|tag| !crate::message::is_header(*tag)).unwrap_or(tags.len());
        assert!(tags[..body].is_sorted() && tags[body..].is_sorted(), "{text}");
    }
}
