//! A partner that is down for a weekend, longer than a delivery may grow old, with a gateway that restarts and loses power
//! meanwhile: nothing is dead on Monday, and all of it is delivered then.

use gatepost_core::{OnDead, OnDoubt, Order, State};

use super::laws::{Broken, Snap, law};
use super::ops::Op::{Configure, Death, Lease, Send, Settle};
use super::ops::Step::{Crash, Pass, Together};
use super::ops::{Emits, Ev, Item, Says, Setup, Step};
use super::run::run_under;
use crate::dice::Dice;

const HOURS: u64 = 64;
const ROUND_MS: u64 = 30 * 60_000;

fn one(op: super::ops::Op) -> Step {
    Together { ops: vec![op], fault: None }
}

/// `trouble`: how the adapter says that nobody is there.
fn weekend(seed: u64, trouble: Says) -> Vec<Step> {
    let mut dice = Dice(seed);
    let setups = (0..2).map(|queue| Setup {
        queue,
        order: [Order::None, Order::Key, Order::Strict][(seed % 3) as usize],
        on_doubt: [OnDoubt::Resend, OnDoubt::Hold, OnDoubt::Query][(seed / 3 % 3) as usize],
        on_dead: OnDead::HoldLane,
        window: 1,
        in_flight: [1, 256][(seed % 2) as usize],
        attempts: 1,
        backlog: 0,
        sent: 0,
    });
    let mut steps = vec![one(Configure { queues: setups.collect() })];
    for key in 0..8 {
        steps.push(one(Send { sender: 0, events: vec![Ev { key, content: 0, to: 3, expires_s: 0 }] }));
    }
    for _ in 0..HOURS * 3_600_000 / ROUND_MS {
        for queue in 0..2 {
            steps.push(one(Lease { queue, max: 8, id: 0, secs: 600, earlier_life: false }));
            // No answer, no connection: whose fault it is, the adapter can tell.
            let items =
                (0..8).flat_map(|which| [Item { which, says: Says::Begin }, Item { which, says: trouble }]);
            let (emit, state, atomic, earlier_life) = (Emits::Nothing, false, false, false);
            steps.push(one(Settle { queue, items: items.collect(), emit, state, atomic, earlier_life }));
        }
        match dice.below(20) {
            0 => steps.push(Crash { down_ms: 5000, wall_ms: 0, fault: None }),
            1 => steps.push(one(Death { queue: 0, crashed: false })),
            _ => {}
        }
        steps.push(Pass { ms: ROUND_MS, fault: None });
    }
    steps
}

fn nothing_is_dead(snap: &Snap) -> Result<(), Broken> {
    let dead =
        snap.rows.values().find(|row| matches!(row.delivery.state, State::Dead { .. } | State::Expired));
    law("nothing dies of a partner that is down", dead.is_none(), || format!("{dead:?}"))
}

#[test]
fn a_weekend_with_a_partner_down_makes_nothing_dead() {
    for trouble in [Says::Trouble, Says::Away] {
        for seed in 0..9 {
            let ran = run_under(seed, &weekend(seed, trouble), nothing_is_dead);
            assert!(ran.is_ok(), "{trouble:?}, seed {seed}: {:?}", ran.err());
        }
    }
}
