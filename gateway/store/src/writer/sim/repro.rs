//! What the simulation has found, each in the shortest run that showed it.

use gatepost_core::{OnDead, OnDoubt, Order};

use super::ops::Op::*;
use super::ops::Step::*;
use super::ops::{Brakes, Emits, Ev, Fault, Item, Kind, Says, Setup, Step};
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
        sent: 0,
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

/// The commit that brings an external adapter back is not heard of, and the next start, which has removed it, is no reason to take
/// what it holds: it may be at work.
#[test]
fn repro_41573422455081_a_lease_of_an_external_adapter_outlives_a_start_that_removes_its_queue() {
    let one = |op| Together { ops: vec![op], fault: None };
    let crashed = Some(Fault { at: 0, kind: Kind::CrashAfter });
    holds(
        41_573_422_455_081,
        &[
            configured(vec![plain(1)]),
            sent(18, 2),
            one(Session { queue: 1 }),
            Together {
                ops: vec![
                    Lease { queue: 1, max: 5, id: 0, secs: 600, earlier_life: false },
                    Configure { queues: vec![plain(2)] },
                ],
                fault: None,
            },
            Together { ops: vec![Configure { queues: vec![plain(1)] }], fault: crashed },
        ],
    );
}

/// A window that a failed commit has made narrower on the disk, and that is not in force, kept the next of a lane waiting.
#[test]
fn repro_41573422455354_lanes_follow_the_windows_that_are_in_force_after_a_failure() {
    let one = |op| Together { ops: vec![op], fault: None };
    let strict = |queue| Setup { order: Order::Strict, window: 2, ..plain(queue) };
    let lease = |queue| Lease { queue, max: 6, id: 0, secs: 600, earlier_life: false };
    let broken = Some(Fault { at: 0, kind: Kind::BrokenAfter });
    holds(
        41_573_422_455_354,
        &[
            configured(vec![strict(1), strict(2)]),
            sent(38, 7),
            one(lease(2)),
            one(lease(1)),
            one(Settle {
                queue: 1,
                items: vec![Item { which: 5, says: Says::Sent }],
                emit: Emits::Routed,
                state: false,
                atomic: false,
                earlier_life: false,
            }),
            Together {
                ops: vec![Configure { queues: vec![Setup { order: Order::None, ..plain(2) }] }],
                fault: broken,
            },
        ],
    );
}

/// A window that became wider was followed only when something happened in the lane.
#[test]
fn repro_423591183903482_lanes_follow_a_window_that_becomes_wider() {
    let lease = |max| Lease { queue: 0, max, id: 0, secs: 5, earlier_life: false };
    let strict = |window| Setup { order: Order::Strict, window, in_flight: 1, ..plain(0) };
    let event = |key| Ev { key, content: 0, to: 1, expires_s: 0 };
    let together = |ops| Together { ops, fault: None };
    holds(
        423_591_183_903_482,
        &[
            configured(vec![strict(4)]),
            together(vec![lease(5), Send { sender: 1, events: vec![event(13), event(36)] }]),
            together(vec![lease(2)]),
            together(vec![Configure { queues: vec![strict(1)] }, Configure { queues: vec![strict(2)] }]),
        ],
    );
}
