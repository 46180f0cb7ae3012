//! The partner is told of each of its messages that the gateway does not take, whatever happens meanwhile.

use super::*;

/// A report has come that the gateway does not take; what is durable with its number.
fn refused(side: &mut Side) -> (String, Vec<u8>) {
    side.receive("35=8|34=2|37=x|17=E1|39=0|150=0", at(0));
    let received = side.emits.pop().unwrap();
    let Owing::Kept(key, value) = side.engine.owe(&received, "There is no route") else { panic!("no room") };
    (key, value)
}

fn owed(side: &Side) -> usize {
    side.state.keys().filter(|key| key.starts_with("j/")).count()
}

const TOLD: &str = "35=j|34=2|45=2|58=There is no route|372=8|380=4";

#[test]
fn it_is_told_after_a_death_between_the_number_and_the_reject() {
    let mut side = up(|_| {});
    let (key, value) = refused(&mut side);
    side.state.insert(key, value);
    for _ in 0..2 {
        side.crash();
    }
    side.connect(at(1));
    assert_eq!(side.left(), ["35=A|34=2|98=0|108=30"]);
    side.engine.tell_owed(at(1));
    side.settle();
    assert_eq!(side.left(), NOTHING, "not before the partner has logged on");
    side.receive("35=A|34=3|98=0|108=30", at(1));
    side.engine.tell_owed(at(1));
    side.settle();
    assert_eq!((side.left(), owed(&side)), (vec![TOLD.replace("34=2", "34=3")], 0));
    side.engine.tell_owed(at(1));
    side.crash();
    side.engine.tell_owed(at(1));
    side.settle();
    assert_eq!(side.left(), NOTHING, "once");
    // And again if it is asked for.
    side.connect(at(2));
    side.receive("35=A|34=4|98=0|108=30", at(2));
    side.left();
    side.receive("35=2|34=5|7=3|16=0", at(2));
    assert!(side.left().iter().any(|left| left.starts_with("35=j|34=3|43=Y|")));
}

#[test]
fn a_begin_that_is_refused_in_the_same_settlement_takes_nothing_of_it() {
    let mut side = up(|_| {});
    let (key, value) = refused(&mut side);
    let undo = side.engine.send(&[order(1)], at(0));
    drop(side.engine.take());
    side.engine.undo(undo);
    side.state.insert(key, value);
    side.engine.tell_owed(at(0));
    side.settle();
    assert_eq!((side.left(), owed(&side)), (vec![TOLD.to_owned()], 0));
}

#[test]
fn of_numbers_that_are_over_nothing_is_said() {
    let mut side = up(|_| {});
    let (key, value) = refused(&mut side);
    side.state.insert(key, value);
    side.receive("35=A|34=1|98=0|108=30|141=Y", at(1));
    side.left();
    side.engine.tell_owed(at(1));
    side.settle();
    assert_eq!((side.left(), owed(&side)), (vec![], 0));
}

/// A session whose share is full of what waits for answers.
fn full() -> Side {
    let mut side = up(|config| {
        config.keep_bytes = 8 * 1024;
        config.confirm = Level::Business;
    });
    let mut number = 0;
    while side.engine.admit([order(number + 1)].iter(), at(0)) == 1 {
        number += 1;
        side.send(&[number], at(0));
    }
    side.left();
    side
}

/// It leaves all the same, and is lost by a death only.
#[test]
fn it_is_told_where_there_is_no_room_to_keep_it() {
    let mut side = full();
    for seq in 2..5 {
        side.receive(&format!("35=8|34={seq}|37=x|17=E1|39=0|150=0"), at(0));
        let received = side.emits.pop().unwrap();
        assert_eq!(side.engine.owe(&received, "There is no route"), Owing::Unkept);
        side.engine.tell_owed(at(0));
        side.settle();
        let next = side.engine.numbers().last_out();
        assert_eq!(
            side.left(),
            [TOLD.replace("34=2", &format!("34={next}")).replace("45=2", &format!("45={seq}"))]
        );
    }
}

/// The partner closes right behind what is refused.
#[test]
fn what_cannot_be_kept_is_told_at_the_next_logon() {
    let mut side = full();
    side.receive("35=8|34=2|37=x|17=E1|39=0|150=0", at(0));
    let received = side.emits.pop().unwrap();
    side.engine.disconnected();
    assert_eq!(side.engine.owe(&received, "There is no route"), Owing::Unkept);
    side.engine.tell_owed(at(0));
    side.settle();
    side.connect(at(1));
    side.receive("35=A|34=3|98=0|108=30", at(1));
    side.left();
    side.engine.tell_owed(at(1));
    side.settle();
    let next = side.engine.numbers().last_out();
    assert_eq!(side.left(), [TOLD.replace("34=2", &format!("34={next}"))]);
}

/// A session that cannot tell them now, as while it logs out, remembers some.
#[test]
fn what_is_owed_and_not_kept_is_bounded() {
    let mut side = full();
    side.receive("35=8|34=2|37=x|17=E1|39=0|150=0", at(0));
    let mut received = side.emits.pop().unwrap();
    let mut remembered = 0;
    while side.engine.owe(&received, "There is no route") == Owing::Unkept {
        received.seq += 1;
        remembered += 1;
        assert!(remembered <= 10_000);
    }
    assert!(remembered >= 100);
    side.engine.tell_owed(at(0));
    side.settle();
    assert!(!side.left().is_empty());
    assert_eq!(side.engine.owe(&received, "There is no route"), Owing::Unkept, "there is room again");
}

/// Whoever has everything refused fills no more than its share.
#[test]
fn what_is_owed_is_bounded() {
    let mut side = up(|config| config.keep_bytes = 64 * 1024);
    side.receive("35=8|34=2|37=x|17=E1|39=0|150=0", at(0));
    let mut received = side.emits.pop().unwrap();
    let mut count = 0;
    while let Owing::Kept(key, value) = side.engine.owe(&received, &"\"".repeat(500)) {
        side.state.insert(key, value);
        received.seq += 1;
        count += 1;
    }
    let bytes: usize = side.state.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(count > 20 && bytes < 64 * 1024, "{count}: {bytes}");
    while owed(&side) > 0 {
        side.engine.tell_owed(at(0));
        side.settle();
    }
    // And the one for which there was no room.
    assert_eq!(side.left().len(), count + 1);
    assert_eq!(side.state.keys().filter(|key| key.starts_with("m/")).count(), count + 1, "each is kept");
}
