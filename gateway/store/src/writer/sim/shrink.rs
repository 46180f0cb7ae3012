//! Makes a failing run as short as it can be, and prints it as a test.

use super::ops::{Op, Step};
use super::run::{Failure, run};

/// Runs tried for one failure.
const TRIES_MAX: u32 = 3000;

/// The shortest run found that breaks the same law.
pub(super) fn shrink(seed: u64, steps: Vec<Step>, failure: Failure) -> (Vec<Step>, Failure) {
    let mut best = (steps, failure);
    best.0.truncate(best.1.step + 1);
    let mut tries = 0;
    let mut shorter = true;
    while shorter && tries < TRIES_MAX {
        shorter = false;
        let mut size = (best.0.len() / 2).max(1);
        loop {
            let mut from = 0;
            while from < best.0.len() {
                let mut steps = best.0.clone();
                steps.drain(from..(from + size).min(steps.len()));
                if attempt(seed, steps, &mut best, &mut tries) {
                    shorter = true;
                } else {
                    from += size;
                }
            }
            if size == 1 {
                break;
            }
            size /= 2;
        }
        for step in 0..best.0.len() {
            let mut part = 0;
            while let Some(steps) = without(&best.0, step, part) {
                if attempt(seed, steps, &mut best, &mut tries) {
                    shorter = true;
                } else {
                    part += 1;
                }
            }
        }
    }
    best
}

fn attempt(seed: u64, steps: Vec<Step>, best: &mut (Vec<Step>, Failure), tries: &mut u32) -> bool {
    *tries += 1;
    if *tries > TRIES_MAX {
        return false;
    }
    match run(seed, &steps) {
        Err(failure) if failure.broken.law == best.1.broken.law => {
            *best = (steps, failure);
            true
        }
        _ => false,
    }
}

/// The steps with one part of one step left out; `None` when the step has no such part.
fn without(steps: &[Step], step: usize, part: usize) -> Option<Vec<Step>> {
    let mut steps = steps.to_vec();
    match steps.get_mut(step)? {
        Step::Together { ops, fault } => {
            if part == 0 && fault.is_some() {
                *fault = None;
                return Some(steps);
            }
            let mut part = part - usize::from(fault.is_some());
            for position in 0..ops.len() {
                if part == 0 && ops.len() > 1 {
                    ops.remove(position);
                    return Some(steps);
                }
                part = part.saturating_sub(1);
                let inner = parts(&mut ops[position]);
                if part < inner {
                    remove(&mut ops[position], part);
                    return Some(steps);
                }
                part -= inner;
            }
            None
        }
        Step::Pass { fault, .. } | Step::Crash { fault, .. } | Step::Sign { fault } => {
            (part == 0 && fault.take().is_some()).then_some(steps)
        }
    }
}

fn parts(op: &mut Op) -> usize {
    match op {
        Op::Send { events, .. } if events.len() > 1 => events.len(),
        Op::Settle { items, .. } if items.len() > 1 => items.len(),
        Op::Configure { queues } if queues.len() > 1 => queues.len(),
        _ => 0,
    }
}

fn remove(op: &mut Op, part: usize) {
    match op {
        Op::Send { events, .. } => drop(events.remove(part)),
        Op::Settle { items, .. } => drop(items.remove(part)),
        Op::Configure { queues } => drop(queues.remove(part)),
        _ => {}
    }
}

/// A test that does the same again.
pub(super) fn as_test(seed: u64, steps: &[Step], failure: &Failure) -> String {
    let mut text: String = steps.iter().map(|step| format!("        {step:?},\n")).collect();
    for (from, to) in [
        ("[", "vec!["),
        ("kind: ", "kind: Kind::"),
        ("says: ", "says: Says::"),
        ("verb: ", "verb: Decides::"),
        ("brake: ", "brake: Brakes::"),
        ("emit: ", "emit: Emits::"),
        ("order: ", "order: Order::"),
        ("on_doubt: ", "on_doubt: OnDoubt::"),
        ("on_dead: ", "on_dead: OnDead::"),
    ] {
        text = text.replace(from, to);
    }
    format!(
        "/// {}.\n#[test]\nfn repro_{seed}() {{\n    holds({seed}, &[\n{text}    ]);\n}}\n",
        failure.broken.law
    )
}
