//! Answers to ResendRequests that are more than one turn.

use super::*;

#[test]
fn an_answer_goes_out_in_pieces() {
    let mut side = up(|_| {});
    let numbers: Vec<u128> = (1..=600).collect();
    side.send(&numbers, at(0));
    side.left();
    side.receive("35=2|34=2|7=1|16=0", at(0));
    let mut again = side.left();
    assert_eq!(again.len(), 257);
    assert!(!side.engine.can_send(), "old and new must not mix");
    while side.engine.has_more() {
        side.engine.go_on(at(0));
        side.settle();
        again.extend(side.left());
    }
    assert_eq!(again.iter().filter(|text| text.starts_with("35=D|")).count(), 600);
    assert!(side.engine.can_send());
}

#[test]
fn an_answer_ends_with_its_connection() {
    let mut side = up(|_| {});
    let numbers: Vec<u128> = (1..=600).collect();
    side.send(&numbers, at(0));
    side.receive("35=2|34=2|7=1|16=0", at(0));
    assert!(side.engine.has_more());
    side.left();
    side.engine.disconnected();
    side.settle();
    assert!(!side.engine.has_more());
    side.engine.go_on(at(0));
    side.settle();
    assert_eq!(side.left(), NOTHING);
}

/// A partner that asks in parts does not wait for the first to be answered before it asks for the second.
#[test]
fn a_second_request_takes_nothing_from_the_first() {
    let mut side = up(|_| {});
    let numbers: Vec<u128> = (1..=900).collect();
    side.send(&numbers, at(0));
    side.left();
    for (seq, from, through) in [(2, 2, 500), (3, 501, 902), (4, 400, 450)] {
        side.receive(&format!("35=2|34={seq}|7={from}|16={through}"), at(0));
    }
    let mut again = side.left();
    // The others wait for the first: a partner that asks and asks fills no memory.
    assert_eq!(again.len(), 256);
    while side.engine.has_more() {
        side.engine.go_on(at(0));
        side.settle();
        again.extend(side.left());
    }
    let count =
        |number: u32| again.iter().filter(|text| text.ends_with(&format!("|11=O{number}|55=X"))).count();
    assert!((1..=900).all(|number| count(number) >= 1));
    assert!(again.len() < 1300, "{}", again.len());
}
