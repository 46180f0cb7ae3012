//! Answering operations that cannot be done.

use crate::call::Op;
use crate::ops::StoreError;

/// Refuses what the disk has no room for and gives back the rest.
pub(super) fn refuse_accepts(ops: Vec<Op>) -> Vec<Op> {
    let mut rest = Vec::with_capacity(ops.len());
    for op in ops {
        match op {
            Op::Accept { answer, .. } => drop(answer.send(Err(StoreError::Full.into()))),
            other => rest.push(other),
        }
    }
    rest
}

pub(super) fn refuse_all(ops: Vec<Op>, error: &StoreError) {
    for op in ops {
        let error = error.clone();
        match op {
            Op::Accept { answer, .. } => drop(answer.send(Err(error.into()))),
            Op::Lease(_, answer) => drop(answer.send(Err(error.into()))),
            Op::Settle { answer, .. } => drop(answer.send(Err(error.into()))),
            Op::AcceptedBefore { answer, .. } => drop(answer.send(Err(error))),
            Op::Claim { answer, .. } => drop(answer.send(Err(error))),
            Op::Rewrap { answer, .. } => drop(answer.send(Err(error))),
            Op::SealKeyOldest { answer } => drop(answer.send(Err(error))),
            Op::Erase { answer, .. } => drop(answer.send(Err(error))),
            Op::SessionOpen { answer, .. } => drop(answer.send(Err(error))),
            Op::Operate { answer, .. } => drop(answer.send(Err(error.into()))),
            Op::Move { answer, .. } => drop(answer.send(Err(error.into()))),
            Op::Damaged { answer, .. }
            | Op::Yield { answer, .. }
            | Op::SessionEnd { answer, .. }
            | Op::QueuePause { answer, .. }
            | Op::QueueTrip { answer, .. }
            | Op::Configure { answer, .. }
            | Op::Note(_, answer) => drop(answer.send(Err(error))),
        }
    }
}
