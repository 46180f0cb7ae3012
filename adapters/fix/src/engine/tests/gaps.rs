//! What is kept behind a gap: bounded, let go of without loss, dealt with in pieces.

use super::*;

/// More than is kept.
const MANY: u64 = 3000;

fn report(seq: u64, again: bool, fill: &str) -> String {
    let again = if again { "|43=Y|122=20261130-08:59:00.000" } else { "" };
    format!("35=8|34={seq}{again}|37=o{seq}|58=x{fill}")
}

fn came(side: &Side) -> Vec<u64> {
    side.emits.iter().map(|received| received.seq).collect()
}

/// Takes one message in as the session does: what has its turn because of it goes into commits of its own before more is received.
fn receive(side: &mut Side, text: &str) {
    side.receive(text, at(0));
    while side.engine.catches_up() {
        side.engine.go_on(at(0));
        side.settle();
    }
}

/// The gap is 2; what is behind it comes early, then the partner sends all again.
fn fill(side: &mut Side, fill: &str) -> (usize, usize) {
    for seq in 3..MANY {
        receive(side, &report(seq, false, fill));
    }
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=0"], "once");
    assert_eq!(side.emits.len(), 0);
    let most = side.engine.held_now();
    for seq in 2..MANY {
        receive(side, &report(seq, true, fill));
    }
    receive(side, &report(MANY, false, fill));
    assert_eq!(came(side), (2..=MANY).collect::<Vec<_>>(), "each once, in order");
    assert_eq!((side.left().len(), side.engine.held_now()), (0, (0, 0)));
    assert!(side.engine.gap.is_none());
    most
}

#[test]
fn beyond_two_thousand_messages_are_let_go_of_and_come_again() {
    let mut side = up(|_| {});
    let (messages, _) = fill(&mut side, "");
    assert_eq!(messages, 2000);
}

#[test]
fn so_are_those_beyond_the_bytes() {
    let mut side = up(|config| config.held_bytes = 64 * 1024);
    let (messages, bytes) = fill(&mut side, &"y".repeat(1000));
    assert!((30..60).contains(&messages) && bytes <= 64 * 1024, "{messages} messages, {bytes} bytes");
    // One that is larger than all of it is never kept.
    let mut side = up(|config| config.held_bytes = 1024);
    receive(&mut side, &report(3, false, &"y".repeat(2000)));
    assert_eq!(side.engine.held_now(), (0, 0));
    receive(&mut side, &report(2, true, ""));
    receive(&mut side, &report(3, true, ""));
    assert_eq!(came(&side), [2, 3]);
}

/// In chunks each brings what it was asked for and no more.
#[test]
fn chunks_bring_what_was_let_go_of() {
    let mut side = up(|config| {
        config.resend_chunk = 100;
        config.held_bytes = 16 * 1024;
    });
    for seq in 500..=1000 {
        receive(&mut side, &report(seq, false, ""));
    }
    let mut asked = side.left();
    assert_eq!(asked, ["35=2|34=2|7=2|16=101"]);
    let mut requests = 0;
    while let Some(request) = asked.pop() {
        assert!(asked.is_empty(), "one at a time");
        requests += 1;
        let number = |tag: &str| -> u64 {
            let field = request.split('|').find_map(|field| field.strip_prefix(tag)).unwrap();
            field.parse().unwrap()
        };
        let through = match number("16=") {
            0 => 1000,
            through => through,
        };
        for seq in number("7=")..=through {
            receive(&mut side, &report(seq, true, ""));
        }
        asked = side.left();
    }
    assert_eq!(came(&side), (2..=1000).collect::<Vec<_>>());
    assert!((8..=10).contains(&requests), "{requests}");
}

/// The gateway takes or refuses a commit as a whole, so one that is refused has nothing in it but what must go.
#[test]
fn each_that_is_handed_on_goes_into_a_commit_of_its_own() {
    let mut side = up(|config| config.confirm = Level::Business);
    let numbers: Vec<u128> = (1..=1500).collect();
    side.send(&numbers, at(0));
    side.outcomes.clear();
    for number in 1..=1500 {
        let text = format!("35=8|34={}|11=O{number}|37=x|17=E{number}|39=0|150=0", number + 2);
        side.engine.received(&message(BeginString::Fix44, &text, at(0)), at(0));
        side.engine.take();
    }
    side.engine.received(&message(BeginString::Fix44, &report(2, true, ""), at(0)), at(0));
    let mut commits = 0;
    loop {
        let turn = side.engine.take();
        let commit = &turn.commit;
        assert!(commit.emits.len() == 1 && commit.outcomes.len() <= 1 && commit.state.len() <= 7);
        // A crash here finds the next one asked for.
        let next = commit.emits[0].seq + 1;
        let numbers = commit.state["n/buy"].as_deref().unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(numbers).unwrap()["next_in"], next);
        side.commit(turn.commit);
        commits += 1;
        if !side.engine.catches_up() {
            break;
        }
        side.engine.go_on(at(0));
    }
    assert_eq!((commits, came(&side).len(), delivered(&side).len()), (1501, 1501, 1500));
}

/// Others go together, in pieces that a settlement holds; what settles a delivery and what is handed on stay apart.
#[test]
fn what_is_not_handed_on_has_its_turn_in_pieces() {
    let mut side = up(|_| {});
    side.send(&[1], at(0));
    side.left();
    for seq in 3..=250 {
        side.receive(&format!("35=1|34={seq}|112=T{seq}"), at(0));
    }
    side.receive("35=3|34=251|45=2", at(0));
    side.receive(&report(252, false, ""), at(0));
    side.left();
    side.outcomes.clear();
    side.engine.received(&message(BeginString::Fix44, "35=0|34=2", at(0)), at(0));
    let mut pieces = Vec::new();
    loop {
        let turn = side.engine.take();
        pieces.push((turn.then.len(), turn.commit.outcomes.len(), turn.commit.emits.len()));
        if !side.engine.catches_up() {
            break;
        }
        side.engine.go_on(at(0));
    }
    assert_eq!(pieces, [(100, 0, 0), (100, 0, 0), (48, 1, 0), (0, 0, 1)]);
}

#[test]
fn what_a_reset_passes_over_takes_no_room_any_more() {
    let mut side = up(|_| {});
    for seq in 5..10 {
        receive(&mut side, &report(seq, false, ""));
    }
    assert_eq!(side.engine.held_now().0, 5);
    receive(&mut side, "35=4|34=99|36=8");
    assert_eq!((came(&side), side.engine.held_now()), (vec![8, 9], (0, 0)));
}

/// QuickFIX's script RejectResentMessage, and quickfixj 1235: neither is looked at before its turn.
#[test]
fn what_was_held_is_checked_and_acted_on_in_its_turn() {
    let mut side = up(|config| {
        config.validator = Validator::new(crate::validate::Level::Structure, None).unwrap();
        config.confirm = Level::Business;
    });
    side.send(&[1], at(0));
    side.left();
    side.outcomes.clear();
    side.receive("35=8|34=3|58=a|50=X", at(0));
    side.receive("35=3|34=4|45=2|58=bad", at(0));
    assert_eq!((side.left(), side.outcomes.len()), (vec!["35=2|34=3|7=2|16=0".to_owned()], 0));
    side.receive("35=0|34=2|43=Y|122=20261130-08:59:59.000", at(0));
    let left = side.left();
    assert!(
        matches!(&left[..], [reject] if reject.starts_with("35=3|34=4|45=3|") && reject.ends_with("|373=14")),
        "{left:?}"
    );
    assert!(matches!(side.outcomes[..], [(_, Verdict::Reject(..))]), "{:?}", side.outcomes);
    assert_eq!(side.engine.numbers().next_in, 5);
}

#[test]
fn a_gap_is_asked_for_anew_over_a_new_connection() {
    let mut side = up(|_| {});
    side.receive("35=8|34=5|37=x", at(0));
    // It was written to a socket that was gone: nobody knows whether the partner has seen it.
    assert_eq!(side.left(), ["35=2|34=2|7=2|16=0"]);
    side.engine.disconnected();
    side.connect(at(1));
    assert_eq!(side.left(), ["35=A|34=3|98=0|108=30"]);
    side.receive("35=A|34=6|98=0|108=30", at(1));
    assert_eq!(side.left(), ["35=2|34=4|7=2|16=0"]);
}
