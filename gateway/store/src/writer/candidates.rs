//! What a lease call may be given, read before its group is decided. The turn looks at it again: an operation of the same
//! group may have changed it meanwhile.

use std::collections::{HashMap, HashSet};

use super::Writer;
use super::lease::Claim;
use super::needs::{Needs, Suspects};
use super::turn::Turn;
use gatepost_core::Timestamp;

use crate::backend::{Backend, CommitError, Ready};
use crate::call::Op;
use crate::ops::{LeaseError, LeaseRequest, StoreError};
use crate::row::Row;
use crate::seal::{Index, Place};

/// Lane rows read to find the place of a windowed lane's next deliveries; bounds `window`.
pub(super) const WINDOW_MAX: u32 = 4096;

#[derive(Default)]
pub(super) struct Candidates {
    pub(super) claim: Option<Claim>,
    pub(super) found: Vec<Candidate>,
    /// Store time of the next delivery that will be due.
    pub(super) next: Option<i64>,
    pub(super) error: Option<LeaseError>,
}

pub(super) enum Candidate {
    /// Unordered, or the head of its lane, or of both.
    Head(Box<Row>),
    /// The first rows of a windowed lane, leased ones included.
    Lane(Vec<Row>),
}

impl<B: Backend> Writer<B> {
    /// Reads, for each lease of the group, what it may be given. `None`: some needs are added.
    pub(super) fn candidates(
        &mut self,
        ops: &[Op],
        needs: &mut Needs,
        suspects: &Suspects,
    ) -> Result<Option<HashMap<usize, Candidates>>, CommitError> {
        let mut found = HashMap::new();
        let mut emptied = HashSet::new();
        let held = needs.queues.len();
        for (position, op) in ops.iter().enumerate() {
            if let Op::Lease(request, _) = op {
                if let Some(queue) = self.unheld(request, needs)? {
                    needs.queues.insert(queue);
                } else if needs.queues.len() == held {
                    found.insert(position, self.candidates_of(request, suspects, &mut emptied)?);
                }
            }
        }
        Ok((needs.queues.len() == held).then_some(found))
    }

    /// The request's queue, if what it gives out may have to go alone, and is not held: whichever node gives out a suspect, or the
    /// breaker's probe, must know that no other does. Not while there is nothing to give.
    fn unheld(&mut self, request: &LeaseRequest, needs: &Needs) -> Result<Option<i64>, CommitError> {
        let now = self.now();
        let queue = self.memory.queue(&request.queue).filter(|queue| queue.gives_one_alone(now));
        let Some(queue) = queue.map(|queue| queue.id).filter(|id| !needs.queues.contains(id)) else {
            return Ok(None);
        };
        if !self.memory.is_shared {
            return Ok(None);
        }
        let ready = self.database.ready(Ready::Any { queue }, now, 1 + self.memory.damage.passed_over())?;
        Ok((!ready.is_empty()).then_some(queue))
    }

    /// `emptied` are queues of which others of the group take all that is ready.
    fn candidates_of(
        &mut self,
        request: &LeaseRequest,
        suspects: &Suspects,
        emptied: &mut HashSet<i64>,
    ) -> Result<Candidates, CommitError> {
        let now = self.now();
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.suspects.clone_from(suspects);
        let claim = match turn.claim(request) {
            Ok(claim) => claim,
            Err(error) => return Ok(Candidates { error: Some(error), ..Candidates::default() }),
        };
        let nothing = matches!(claim, Claim::Nothing { .. }) || turn.repeated(request).is_some();
        let queue = self.memory.queue(&request.queue).filter(|_| !nothing);
        let Some((id, window)) = queue.map(|queue| (queue.id, queue.setup.policy.window)) else {
            return Ok(Candidates { claim: Some(claim), ..Candidates::default() });
        };
        let (claim, rows) = match claim {
            Claim::SuspectOr(max) => {
                let suspects = self.ready(Ready::Suspect { queue: id }, now, 1)?;
                if suspects.is_empty() {
                    (claim, self.ready(Ready::Any { queue: id }, now, max)?)
                } else {
                    (Claim::SuspectOr(1), suspects)
                }
            }
            claim if emptied.contains(&id) => (claim, Vec::new()),
            claim => {
                let rows = self.ready(Ready::Any { queue: id }, now, claim.most())?;
                // Of a lane of which several may be leased, an entry stands for all of them.
                if window <= 1 && !rows.is_empty() && rows.len() < claim.most() as usize {
                    emptied.insert(id);
                }
                (claim, rows)
            }
        };
        let next = if rows.is_empty() { self.database.ready_next(id, now)? } else { None };
        let found = if window > 1 {
            self.widen(id, rows, window)?
        } else {
            rows.into_iter().map(|row| Candidate::Head(Box::new(row))).collect()
        };
        Ok(Candidates { claim: Some(claim), found, next, error: None })
    }

    /// Damaged ones are passed over; they stand in the claim index still, so as many more are read.
    fn ready(&mut self, ready: Ready, now: Timestamp, max: u32) -> Result<Vec<Row>, CommitError> {
        loop {
            let before = self.memory.damage.passed_over();
            let indexed = self.database.ready(ready, now, max + before)?;
            let mut found = self.indexed(ready, &indexed)?;
            if self.memory.damage.passed_over() == before || found.len() >= max as usize {
                found.truncate(max as usize);
                return Ok(found);
            }
        }
    }

    /// The sound rows that these entries of the claim index lead to.
    fn indexed(&mut self, ready: Ready, entries: &[(i64, i64)]) -> Result<Vec<Row>, CommitError> {
        let (Ready::Any { queue } | Ready::Suspect { queue }) = ready;
        let is_fresh = |(pos, _): &&(i64, i64)| self.memory.fresh.get(*pos).is_some();
        let cold: Vec<(i64, i64)> = entries.iter().filter(|entry| !is_fresh(entry)).copied().collect();
        let mut read = Vec::new();
        if !cold.is_empty() {
            let positions: Vec<i64> = cold.iter().map(|(pos, _)| *pos).collect();
            read = self.database.deliveries_at(&positions)?;
        }
        let read =
            read.into_iter().zip(&cold).map(|(row, (_, due))| row.and_then(|row| ready_as(row, queue, *due)));
        let mut cold: HashMap<i64, Row> =
            self.memory.damage.sound(read.collect())?.into_iter().map(|row| (row.pos, row)).collect();
        let row = |(pos, _): &(i64, i64)| self.memory.fresh.get(*pos).cloned().or_else(|| cold.remove(pos));
        Ok(entries.iter().filter_map(row).collect())
    }

    /// Replaces the one of each windowed lane that is ready by the lane's first rows: while those in front of it stay where they are.
    fn widen(&mut self, queue: i64, ready: Vec<Row>, window: u32) -> Result<Vec<Candidate>, CommitError> {
        let in_window = |row: &Row| row.lane.filter(|_| row.barrier.is_none());
        let lanes: HashSet<Index> = ready.iter().filter_map(in_window).collect();
        let lanes = self.database.lanes_to_lease(queue, lanes.into_iter().collect())?;
        let mut lanes: HashSet<Index> = lanes.into_iter().collect();
        let mut widened = Vec::with_capacity(ready.len());
        for row in ready {
            match in_window(&row) {
                None => widened.push(Candidate::Head(Box::new(row))),
                Some(lane) if lanes.remove(&lane) => {
                    let read = self.database.lane(queue, &lane, window.min(WINDOW_MAX))?;
                    widened.push(Candidate::Lane(self.memory.damage.sound_prefix(read)?));
                }
                // Its lane has been widened already, or something goes back in it just now.
                Some(_) => {}
            }
        }
        Ok(widened)
    }
}

/// The row that the claim index holds as ready at `due` in `queue`, if it is that.
fn ready_as(row: Row, queue: i64, due: i64) -> Result<Row, StoreError> {
    let place = |column| Place { table: "delivery", column, row: row.pos };
    if row.queue != queue {
        return Err(place("queue").corrupt());
    }
    if row.delivery.state.due().map(gatepost_core::Timestamp::as_micros) != Some(due) {
        return Err(place("ready").corrupt());
    }
    Ok(row)
}
