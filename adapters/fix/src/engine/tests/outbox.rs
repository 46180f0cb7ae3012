//! What is kept of what has left, against a list that is searched through each time.

use proptest::prelude::*;

use super::super::outbox::{Outbox, Pending, Query, Record};
use super::*;

#[derive(Debug, Clone)]
enum Step {
    Send { length: usize, waits: bool },
    Reset,
    Settle(usize),
    Remove(usize),
    Confirm(u64),
    Prune { keep: usize, keep_bytes: usize },
    MakeRoom(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..400_usize, any::<bool>()).prop_map(|(length, waits)| Step::Send { length, waits }),
        1 => Just(Step::Reset),
        3 => any::<usize>().prop_map(Step::Settle),
        1 => any::<usize>().prop_map(Step::Remove),
        2 => (0..40_u64).prop_map(Step::Confirm),
        3 => (1..12_usize, 0..4000_usize).prop_map(|(keep, keep_bytes)| Step::Prune { keep, keep_bytes }),
        1 => (0..2000_usize).prop_map(Step::MakeRoom),
    ];
    proptest::collection::vec(step, 0..200)
}

/// A message, what it costs, and whether a delivery waits behind it.
type Kept = (Place, usize, bool);

fn cost(outbox: &Outbox, place: Place) -> usize {
    let record = outbox.get(place).unwrap();
    let mut alone = Outbox::new("main");
    alone.insert(place, record.clone());
    alone.bytes()
}

proptest! {
    #[test]
    fn what_goes_is_what_a_list_says(steps in steps()) {
        let mut outbox = Outbox::new("main");
        let mut list: Vec<Kept> = Vec::new();
        let (mut epoch, mut seq, mut confirmed, mut horizon) = (1, 0, 0, (0, 0));
        for (number, step) in steps.into_iter().enumerate() {
            let mut gone = Vec::new();
            match step {
                Step::Send { length, waits } => {
                    seq += 1;
                    let pending = waits.then(|| Pending {
                        lease: lease(number as u128, "t"),
                        message: format!("m{number}"),
                        business_id: None,
                        query: Query::None,
                    });
                    let bytes = vec![b'x'; length].into();
                    outbox.insert((epoch, seq), Record { bytes, expires: None, pending });
                    list.push(((epoch, seq), cost(&outbox, (epoch, seq)), waits));
                }
                Step::Reset => {
                    (epoch, seq, confirmed) = (epoch + 1, 0, 0);
                    gone = outbox.begin_epoch(epoch);
                    let old = |(place, _, waits): &Kept| place.0 < epoch && !waits;
                    let expected: Vec<_> = list.extract_if(.., |kept| old(kept)).collect();
                    prop_assert_eq!(&gone, &costs(&expected));
                }
                Step::Settle(_) | Step::Remove(_) if list.is_empty() => {}
                Step::Settle(at) => {
                    let at = at % list.len();
                    let kept = &mut list[at];
                    prop_assert_eq!(outbox.settle(kept.0).is_some(), kept.2);
                    *kept = (kept.0, cost(&outbox, kept.0), false);
                }
                Step::Remove(at) => {
                    let kept = list.remove(at % list.len());
                    prop_assert!(outbox.remove(kept.0).is_some());
                }
                Step::Confirm(more) => confirmed = seq.min(confirmed + more),
                Step::Prune { keep, keep_bytes } => {
                    let is_newer = |horizon: Place| move |(place, ..): &&Kept| *place > horizon;
                    let newer = |horizon: Place| {
                        let bytes: usize = list.iter().filter(is_newer(horizon)).map(|(_, cost, _)| cost).sum();
                        (list.iter().filter(is_newer(horizon)).count(), bytes)
                    };
                    while newer(horizon).0 > keep || newer(horizon).1 > keep_bytes {
                        horizon = list.iter().find(is_newer(horizon)).unwrap().0;
                    }
                    gone = outbox.prune(keep, keep_bytes, (epoch, confirmed));
                    let goes = |(place, _, waits): &Kept| {
                        place.0 == epoch && place.1 <= confirmed && *place <= horizon && !waits
                    };
                    let expected: Vec<_> = list.extract_if(.., |kept| goes(kept)).collect();
                    prop_assert_eq!(&gone, &costs(&expected));
                }
                Step::MakeRoom(bytes) => {
                    let mut freed = 0;
                    let goes = |(place, cost, waits): &Kept| {
                        let goes = place.0 == epoch && place.1 <= confirmed && !waits && freed < bytes;
                        freed += if goes { *cost } else { 0 };
                        goes
                    };
                    let mut goes = goes;
                    gone = outbox.make_room(bytes, (epoch, confirmed));
                    let expected: Vec<_> = list.extract_if(.., |kept| goes(kept)).collect();
                    prop_assert_eq!(&gone, &costs(&expected));
                }
            }
            prop_assert!(gone.iter().all(|(place, _)| outbox.get(*place).is_none()));
            prop_assert_eq!(outbox.bytes(), list.iter().map(|(_, cost, _)| cost).sum::<usize>());
            prop_assert_eq!(outbox.pending(), list.iter().filter(|(.., waits)| *waits).count());
        }
    }
}

fn costs(kept: &[Kept]) -> Vec<(Place, usize)> {
    kept.iter().map(|(place, cost, _)| (*place, *cost)).collect()
}
