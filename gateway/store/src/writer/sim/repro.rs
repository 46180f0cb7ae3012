//! What the simulation has found, each in the shortest run that showed it.

use gatepost_core::{OnDead, OnDoubt, Order};

use super::ops::Op::*;
use super::ops::Step::*;
use super::ops::{Brakes, Ev, Fault, Kind, Setup, Step};
use super::run::run;

fn holds(seed: u64, steps: &[Step]) {
    if let Err(failure) = run(seed, steps) {
        panic!("step {}: {}: {}", failure.step, failure.broken.law, failure.broken.seen);
    }
}

fn plain(queue: u8) -> Setup {
    Setup {
        queue,
        order: Order::Key,
        on_doubt: OnDoubt::Resend,
        on_dead: OnDead::Continue,
        window: 1,
        in_flight: 256,
        attempts: 5,
        backlog: 0,
    }
}

fn configured(queues: Vec<Setup>) -> Step {
    Together { ops: vec![Configure { queues }], fault: None }
}

fn sent(key: u8, to: u8) -> Step {
    let events = vec![Ev { key, content: 0, to, expires_s: 0 }];
    Together { ops: vec![Send { sender: 0, events }], fault: None }
}

/// A commit that was said to have failed was on the disk. Its leaves were signed only when something else was committed.
#[test]
fn repro_7_the_log_grows_by_what_a_failed_commit_has_left_on_the_disk() {
    let events = vec![Ev { key: 36, content: 0, to: 1, expires_s: 0 }];
    let fault = Some(Fault { at: 0, kind: Kind::BrokenAfter });
    holds(
        7,
        &[
            configured(vec![plain(0)]),
            Together { ops: vec![Send { sender: 0, events }], fault },
            Pass { ms: 1000, fault: None },
        ],
    );
}

/// The breaker's probe went out although as many as may be were under way.
#[test]
fn repro_80_a_probe_takes_a_place_like_any_other() {
    let lease = |max| Lease { queue: 0, max, id: 0, secs: 600, earlier_life: false };
    let one = |op| Together { ops: vec![op], fault: None };
    holds(
        80,
        &[
            configured(vec![Setup { in_flight: 1, ..plain(0) }]),
            one(lease(1)),
            sent(4, 1),
            one(lease(1)),
            sent(3, 1),
            one(Brake { queue: 0, brake: Brakes::CrashLoop }),
            Pass { ms: 30_000, fault: None },
            one(lease(1)),
        ],
    );
}

/// A configuration that could not be written was in force for some of its queues.
#[test]
fn repro_112_a_configuration_is_in_force_whole_or_not_at_all() {
    for kind in
        [Kind::Broken, Kind::Refused, Kind::Full, Kind::BrokenAfter, Kind::CrashBefore, Kind::CrashAfter]
    {
        for at in 0..4 {
            holds(
                112,
                &[
                    configured(vec![plain(0)]),
                    Together {
                        ops: vec![Configure { queues: vec![plain(1), Setup { window: 4, ..plain(2) }] }],
                        fault: Some(Fault { at, kind }),
                    },
                    sent(1, 7),
                    Pass { ms: 1000, fault: None },
                    sent(2, 7),
                ],
            );
        }
    }
}

/// A full disk was noted while the database was not open, which then was taken for sound: memory stayed behind the disk, and
/// every further commit was refused.
#[test]
fn repro_1392_only_a_database_that_is_opened_anew_is_sound_again() {
    let lease = || Lease { queue: 1, max: 3, id: 0, secs: 600, earlier_life: false };
    let one = |op| Together { ops: vec![op], fault: None };
    holds(
        1392,
        &[
            configured(vec![plain(1)]),
            sent(15, 2),
            one(lease()),
            one(lease()),
            Pass { ms: 3_445_238, fault: Some(Fault { at: 0, kind: Kind::BrokenAfter }) },
            Sign { fault: Some(Fault { at: 0, kind: Kind::Full }) },
            sent(16, 2),
        ],
    );
}

/// What was moved in front of a lease that had not begun was overtaken by it.
#[test]
fn repro_143_who_is_moved_stands_before_those_that_have_not_begun() {
    let one = |op| Together { ops: vec![op], fault: None };
    holds(
        143,
        &[
            configured(vec![plain(0), Setup { on_doubt: OnDoubt::Hold, ..plain(1) }]),
            sent(34, 3),
            one(Session { queue: 1 }),
            one(Lease { queue: 1, max: 3, id: 0, secs: 30, earlier_life: false }),
            one(Move { from: 0, to: 1 }),
        ],
    );
}
