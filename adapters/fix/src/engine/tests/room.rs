//! What sessions keep in the adapter's state, all of them together, whatever their partners do.

use gatepost_adapter::STATE_BYTES_MAX;

use super::*;
use crate::room::{NUMBERS_BYTES_MAX, Room};

const SESSIONS: usize = 12;

/// Bytes of keys and values.
fn bytes(side: &Side) -> usize {
    side.state.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn all_bytes(sides: &[Side]) -> usize {
    sides.iter().map(bytes).sum()
}

/// Sessions of one adapter, logged on.
fn sessions(count: usize, with: impl Fn(&mut Config)) -> Vec<Side> {
    let room = Arc::new(Room::default());
    let session = |number: usize| {
        up(|config| {
            config.name = format!("session-{number:03}-{}", "x".repeat(50));
            config.keep_bytes = Room::share(count);
            config.room = Arc::clone(&room);
            config.keep = 100_000;
            config.unconfirmed_max = 100_000;
            with(config);
        })
    };
    (0..count).map(session).collect()
}

fn large(number: u128, length: usize) -> Outgoing {
    Outgoing { content: content(&format!("35=D|11=O{number}|58={}|", "x".repeat(length))), ..order(number) }
}

/// Sends what there is room for, up to so many, as a session's driver does; gives how many went.
fn send(side: &mut Side, outgoing: &[Outgoing]) -> usize {
    let mut sent = 0;
    while sent < outgoing.len() && side.engine.can_send() {
        let count = side.engine.admit(outgoing[sent..].iter().take(100), at(0));
        if count == 0 {
            let before = side.engine.bytes_kept();
            side.settle();
            if side.engine.bytes_kept() < before {
                continue;
            }
            break;
        }
        let _ = side.engine.send(&outgoing[sent..sent + count], at(0));
        side.settle();
        sent += count;
    }
    side.left();
    sent
}

/// The partner has processed everything.
fn confirm(side: &mut Side) {
    let (seq, through) = (side.engine.numbers().next_in, side.engine.numbers().last_out());
    side.receive(&format!("35=0|34={seq}|369={through}"), at(0));
    go_on(side);
}

fn go_on(side: &mut Side) {
    while side.engine.has_more() {
        side.engine.go_on(at(0));
        side.settle();
    }
}

#[test]
fn twelve_sessions_at_their_limits_take_less_than_there_is_and_each_goes_on_as_its_own_partner_confirms() {
    for (length, rejects) in [(60, 3000), (3000, 300), (300_000, 300), (1_040_000, 300)] {
        let mut sides = sessions(SESSIONS, |_| {});
        let outgoing = |side: usize, from: u128| -> Vec<Outgoing> {
            let side = 100_000_000 + side as u128 * 1_000_000;
            (from..from + (3_000_000 / length as u128).min(3000))
                .map(|number| large(side + number, length))
                .collect()
        };
        let sent: Vec<usize> =
            (0..SESSIONS).map(|number| send(&mut sides[number], &outgoing(number, 0))).collect();
        assert!(sent.iter().all(|count| *count == sent[0] && *count > 0), "{length}: {sent:?}");
        assert!(sent[0] < outgoing(0, 0).len(), "{length}: the limit is not reached");
        assert!(all_bytes(&sides) <= 20 * 1024 * 1024, "{length}: {}", all_bytes(&sides));
        for side in &mut sides {
            assert!(
                bytes(side) <= side.engine.bytes_kept() + 1024,
                "{length}: less is counted than there is"
            );
            // Partners that send rejects without end, and never confirm anything.
            for _ in 0..rejects {
                let seq = side.engine.numbers().next_in;
                side.receive(&format!("35=1|34={seq}"), at(0));
            }
            side.left();
        }
        assert!(all_bytes(&sides) <= 20 * 1024 * 1024 + SESSIONS * 1024, "{length}: {}", all_bytes(&sides));
        // One of them confirms, and goes on; the others wait for their own partners.
        confirm(&mut sides[3]);
        // Their numbers are a little longer by now.
        let again = send(&mut sides[3], &outgoing(3, 500_000));
        assert!(again >= (sent[0] * 9 / 10).max(1), "{length}: {again} after {}", sent[0]);
        assert_eq!(send(&mut sides[4], &outgoing(4, 500_000)[..1]), 0, "{length}");
        assert!(all_bytes(&sides) < STATE_BYTES_MAX - 8 * 1024 * 1024, "{length}: {}", all_bytes(&sides));
    }
}

#[test]
fn whoever_finds_no_room_asks_its_partner_to_confirm_and_has_it_then() {
    let [side] = &mut sessions(1, |config| {
        config.confirm = Level::Sent;
        config.keep_bytes = 64 * 1024;
    })[..] else {
        panic!("one")
    };
    // Far from half of what may be kept: nobody would ask for that.
    assert_eq!(send(side, &[large(1, 20_000)]), 1);
    let next = [large(2, 50_000)];
    assert_eq!(side.engine.admit(next.iter(), at(0)), 0);
    side.settle();
    assert_eq!(side.left(), ["35=1|34=3|112=GP1-2"]);
    side.receive("35=0|34=2|112=GP1-2", at(0));
    assert_eq!(send(side, &next), 1);
    assert_eq!(side.state.keys().filter(|key| key.starts_with("m/")).count(), 1, "the first has made room");
    // What is late needs none, and neither does what has its number.
    let late = Outgoing { expires: Some(0), ..large(3, 50_000) };
    assert_eq!(side.engine.admit([late].iter(), at(0)), 1);
}

#[test]
fn what_is_larger_than_a_share_goes_alone() {
    let mut sides = sessions(1000, |_| {});
    let of = |number: usize| [large(number as u128 * 2 + 1, 900_000), large(number as u128 * 2 + 2, 900_000)];
    let went: Vec<usize> = (0..5).map(|number| send(&mut sides[number], &of(number))).collect();
    assert_eq!(went, [1, 1, 0, 0, 0]);
    for (number, side) in sides.iter_mut().enumerate().skip(5) {
        assert!(send(side, &[large(9_000 + number as u128, 10_000)]) == 1, "{number}");
    }
    confirm(&mut sides[0]);
    assert_eq!(send(&mut sides[2], &of(2)), 1);
    assert!(all_bytes(&sides) < 22 * 1024 * 1024);
}

/// The partner answers what it is asked, and says nothing by itself; how many TestRequests it gets before there are no more.
fn questions(side: &mut Side) -> usize {
    let mut count = 0;
    while count < 50 {
        let left = side.left();
        let asked = left.iter().filter_map(|left| Some((left, left.split_once("|112=")?.1)));
        let asked: Vec<String> =
            asked.filter(|(left, _)| left.starts_with("35=1|")).map(|(_, id)| id.to_owned()).collect();
        if asked.is_empty() && !side.engine.has_more() {
            break;
        }
        count += asked.len();
        for id in asked {
            let seq = side.engine.numbers().next_in;
            side.receive(&format!("35=0|34={seq}|112={id}"), at(0));
        }
        side.engine.go_on(at(0));
        side.settle();
    }
    count
}

/// Each costs a number and a commit.
#[test]
fn a_partner_that_has_confirmed_all_is_asked_no_more() {
    for confirm in [Level::Sent, Level::Transport, Level::Business] {
        let [side] = &mut sessions(1, |config| {
            config.confirm = confirm;
            config.keep_bytes = 256 * 1024;
        })[..] else {
            panic!("one")
        };
        let keep_bytes = side.config.keep_bytes;
        let mut number = 0;
        // Past half of what may be kept, where it is asked without being asked for.
        while side.engine.bytes_kept() < keep_bytes * 2 / 3 {
            number += 1;
            let before = side.out.len();
            side.engine.send(&[large(number, 1000)], at(0));
            side.settle();
            assert!(side.out.len() > before);
        }
        let asked = questions(side);
        assert!((1..10).contains(&asked), "{confirm:?}: {asked} after {number} messages");
        assert_eq!(side.engine.numbers().confirmed, side.engine.numbers().last_out() - 1);
        // And at the limit, where whoever finds no room asks. What waits for a business answer stays however much is confirmed.
        while side.engine.admit([large(number + 1, 1000)].iter(), at(0)) == 1 {
            number += 1;
            side.engine.send(&[large(number, 1000)], at(0));
            side.settle();
            if confirm < Level::Business {
                break;
            }
        }
        questions(side);
        for _ in 0..10 {
            if confirm == Level::Business {
                assert_eq!(side.engine.admit([large(number + 1, 1000)].iter(), at(0)), 0);
            }
            side.engine.ask_for_proof(at(0));
            side.settle();
            assert_eq!(questions(side), 0, "{confirm:?}");
        }
        // One more is one question more, at most.
        if confirm < Level::Business {
            assert_eq!(send(side, &[large(number + 2, 1000)]), 1);
            assert!(questions(side) <= 1);
        }
    }
}

/// What a reset leaves is deleted little by little, and takes its room until then.
#[test]
fn what_is_not_deleted_yet_counts() {
    let mut sides = sessions(SESSIONS, |_| {});
    let side = &mut sides[0];
    let share = Room::share(SESSIONS);
    let many: Vec<Outgoing> = (1..=10_000).map(|number| large(number, 400)).collect();
    let sent = send(side, &many);
    confirm(side);
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    assert!(side.engine.is_up(), "{:?}", side.closed);
    side.left();
    let mut most = 0;
    let more: Vec<Outgoing> = (20_001..=30_000).map(|number| large(number, 400)).collect();
    for some in more.chunks(50) {
        send(side, some);
        most = most.max(bytes(side));
    }
    assert!(most <= share, "{most} of {share}, {sent} before");
}

/// The adapter has more sessions than before, or one is shown less room otherwise.
#[test]
fn after_a_start_with_less_room_what_is_too_much_goes() {
    let mut side = up(|config| {
        config.confirm = Level::Business;
        config.keep_bytes = 20 * 1024 * 1024;
    });
    for number in 1..=300 {
        side.send(&[number], at(0));
        side.receive(
            &format!("35=8|34={}|369={}|11=O{number}|17=E{number}|39=0", number + 1, number + 1),
            at(0),
        );
    }
    let lease = |number: u128| lease(5000 + number, "t");
    for number in 0..200 {
        let mut commit = Commit {
            outcomes: vec![(lease(number), Verdict::Delivered(confirm::proof(Level::Sent, 1)))],
            ..Commit::default()
        };
        side.engine.take_back(&mut commit, |_| true);
        side.commit(commit);
    }
    let before = bytes(&side);
    let kinds = |side: &Side| {
        ["m", "o", "k"].map(|kind| side.state.keys().filter(|key| key.starts_with(kind)).count())
    };
    assert_eq!(kinds(&side), [300, 300, 200]);
    side.config = Arc::new(Config { keep_bytes: 32 * 1024, ..Config::clone(&side.config) });
    side.engine = Engine::restore(Arc::clone(&side.config), &side.state).unwrap();
    let mut turns = 0;
    while turns < 100 {
        let turn = side.engine.take();
        assert!(turn.commit.state.len() < 300);
        if turn.commit.is_empty() {
            break;
        }
        side.commit(turn.commit);
        turns += 1;
    }
    assert!(bytes(&side) < 40 * 1024, "{} of {before}, {:?}", bytes(&side), kinds(&side));
    assert!(kinds(&side).iter().all(|count| *count > 5), "the newest stay: {:?}", kinds(&side));
    // And it is what a later process finds.
    let again = Engine::restore(Arc::clone(&side.config), &side.state).unwrap();
    assert!(!again.has_more());
}

#[test]
fn numbers_take_no_more_than_they_may() {
    let mut numbers = Numbers { epoch: u64::MAX - 1000, ..Numbers::default() };
    for _ in 0..100 {
        numbers.confirmed = u64::MAX;
        numbers.reset(Some(i64::MIN));
    }
    numbers = Numbers {
        next_out: u64::MAX,
        next_in: u64::MAX,
        confirmed: u64::MAX,
        forgotten: u64::MAX,
        renewal: Some(Renewal::Wanted),
        reset_at: Some(i64::MIN),
        ..numbers
    };
    assert_eq!(numbers.earlier.len(), 64);
    let bytes = serde_json::json!(numbers).to_string().len() + keys::numbers_key(&"x".repeat(64)).len();
    assert!(bytes <= NUMBERS_BYTES_MAX, "{bytes}");
}

/// The gateway takes a thousand in one settlement, and more would end the adapter.
#[test]
fn whatever_comes_together_no_turn_changes_more_keys_than_one_settlement_takes() {
    let [side] = &mut sessions(1, |_| {})[..] else { panic!("one") };
    // As many orders live on as may, so that each further one is another's end.
    let many: Vec<Outgoing> = (10_000..20_200).map(order).collect();
    for some in many.chunks(1000) {
        assert_eq!(send(side, some), some.len());
        confirm(side);
    }
    side.outcomes.clear();
    // What an earlier epoch leaves: garbage, and deliveries that wait.
    let orders = |from: u128| -> Vec<Outgoing> { (from..from + 500).map(order).collect() };
    send(side, &orders(1));
    confirm(side);
    send(side, &orders(1001));
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    go_on(side);
    assert_eq!(send(side, &orders(2001)), 500);
    side.left();
    // Many are refused, and in one message the partner confirms all.
    for seq in 1000..1500 {
        let refused = message(BeginString::Fix44, &format!("35=8|34={seq}"), at(1));
        let epoch = side.engine.numbers().epoch;
        let refused = Received { epoch, seq, message: refused, answers: None, by_number: false };
        let Owing::Kept(key, value) = side.engine.owe(&refused, "no") else { panic!("no room") };
        side.state.insert(key, value);
    }
    let (seq, through) = (side.engine.numbers().next_in, side.engine.numbers().last_out());
    side.engine.received(&message(BeginString::Fix44, &format!("35=0|34={seq}|369={through}"), at(1)), at(1));
    let mut turns = 0;
    loop {
        side.engine.tell_owed(at(1));
        let turn = side.engine.take();
        if turn.commit.is_empty() && !side.engine.has_more() {
            break;
        }
        assert!(turn.commit.state.len() <= 600, "{} keys in turn {turns}", turn.commit.state.len());
        side.commit(turn.commit);
        side.engine.go_on(at(1));
        turns += 1;
        assert!(turns < 200);
    }
    assert!(turns >= 4, "{turns}");
    assert_eq!(side.engine.numbers().confirmed, through);
    assert!(!side.state.keys().any(|key| key.starts_with("j/")));
    assert_eq!(delivered(side).len(), 1500);
}

/// With what has gathered before they must fit into one settlement: a hundred and ninety keys at most.
#[test]
fn what_begins_together_leaves_room_for_what_goes_with_it() {
    let mut side = up(|config| config.after_reset = AfterReset::Doubt);
    let again: Vec<Outgoing> = (1..=200).map(order).collect();
    side.engine.send(&again, at(0));
    side.settle();
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    go_on(&mut side);
    side.left();
    side.engine.send(&again, at(2));
    let turn = side.engine.take();
    assert!(turn.commit.state.len() > 800 && turn.commit.state.len() + 190 <= 1000);
    side.commit(turn.commit);
    assert_eq!(side.engine.pending(), 200);
}
