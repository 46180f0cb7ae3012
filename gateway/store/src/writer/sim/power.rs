//! Where a commit fails, or the machine ends, at the simulation's word.

use std::cell::Cell;

use super::ops::{Fault, Kind};
use crate::backend::CommitError;

/// The payload with which a simulated crash unwinds.
pub(super) struct Crash;

#[derive(Clone, Copy, Default)]
struct Plan {
    commits: u32,
    fault: Option<Fault>,
    struck: Option<Fault>,
}

thread_local! {
    static PLAN: Cell<Plan> = Cell::default();
}

/// Arms a fault for the commits to come.
pub(super) fn arm(fault: Option<Fault>) {
    PLAN.set(Plan { fault, ..Plan::default() });
}

/// The fault, if it has struck.
pub(super) fn disarm() -> Option<Fault> {
    PLAN.take().struck
}

pub(crate) fn at_commit<T>(commit: impl FnOnce() -> Result<T, CommitError>) -> Result<T, CommitError> {
    let mut plan = PLAN.get();
    let due = plan.fault.filter(|fault| fault.strikes_at(plan.commits));
    plan.commits += 1;
    plan.struck = plan.struck.or(due);
    PLAN.set(plan);
    let broken = || CommitError::Broken("simulated".to_owned());
    match due.map(|fault| fault.kind) {
        None => commit(),
        Some(Kind::Full) => Err(CommitError::Full),
        Some(Kind::Broken) => Err(broken()),
        Some(Kind::Refused) => Err(CommitError::Refused("simulated".to_owned())),
        Some(Kind::BrokenAfter) => commit().and_then(|_| Err(broken())),
        Some(Kind::CrashBefore) => end(),
        Some(Kind::CrashAfter) => {
            commit()?;
            end()
        }
    }
}

fn end() -> ! {
    // Not a panic: nothing is wrong, and nothing is to be printed.
    std::panic::resume_unwind(Box::new(Crash))
}
