//! What a lease call may be given, read before its group is decided. The turn looks at it again: an operation of the same
//! group may have changed it meanwhile.

use std::collections::{HashMap, HashSet};

use rusqlite::params;

use super::Writer;
use super::lease::Claim;
use super::turn::Turn;
use crate::call::Op;
use crate::database::{CommitError, rows};
use crate::ops::{LeaseError, LeaseRequest, StoreError};
use crate::row::Row;
use crate::seal::Place;
use crate::sql;

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
    /// Unordered, or the head of its lane.
    Head(Box<Row>),
    /// The first rows of a windowed lane, leased ones included.
    Lane(Vec<Row>),
}

impl Writer {
    /// Reads, for each lease of the group, what it may be given.
    pub(super) fn candidates(&mut self, ops: &[Op]) -> Result<HashMap<usize, Candidates>, CommitError> {
        let mut found = HashMap::new();
        for (position, op) in ops.iter().enumerate() {
            if let Op::Lease(request, _) = op {
                found.insert(position, self.candidates_of(request)?);
            }
        }
        Ok(found)
    }

    fn candidates_of(&mut self, request: &LeaseRequest) -> Result<Candidates, CommitError> {
        let now = self.now();
        let turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        let claim = match turn.claim(request) {
            Ok(claim) => claim,
            Err(error) => return Ok(Candidates { error: Some(error), ..Candidates::default() }),
        };
        let nothing = matches!(claim, Claim::Nothing { .. }) || turn.repeated(request).is_some();
        let queue = self.memory.queue(&request.queue).filter(|_| !nothing);
        let Some((id, window)) = queue.map(|queue| (queue.id, queue.setup.policy.window)) else {
            return Ok(Candidates { claim: Some(claim), ..Candidates::default() });
        };
        let now = now.as_micros();
        let (claim, rows) = match claim {
            Claim::SuspectOr(max) => {
                let suspects = self.ready(sql::DELIVERIES_READY_SUSPECT, id, now, 1)?;
                if suspects.is_empty() {
                    (claim, self.ready(sql::DELIVERIES_READY, id, now, max)?)
                } else {
                    (Claim::SuspectOr(1), suspects)
                }
            }
            claim => (claim, self.ready(sql::DELIVERIES_READY, id, now, claim.most())?),
        };
        let next = if rows.is_empty() { self.ready_next(id, now)? } else { None };
        let found = if window > 1 {
            self.widen(rows, window)?
        } else {
            rows.into_iter().map(|row| Candidate::Head(Box::new(row))).collect()
        };
        Ok(Candidates { claim: Some(claim), found, next, error: None })
    }

    /// Damaged ones are passed over; they stand in the claim index still, so as many more are read.
    fn ready(
        &mut self,
        statement: &'static str,
        queue: i64,
        now: i64,
        max: u32,
    ) -> Result<Vec<Row>, CommitError> {
        loop {
            let before = self.memory.damage.passed_over();
            let ready = rows(&self.connection, statement, params![queue, now, max + before], |mut cells| {
                Ok((cells.take::<i64>()?, cells.take::<i64>()?))
            })?;
            let mut found = Vec::with_capacity(ready.len());
            for (pos, due) in ready {
                match self.memory.fresh.get(pos) {
                    Some(row) => found.push(row.clone()),
                    None => {
                        let read = self.load_ready(pos)?.and_then(|row| ready_as(row, queue, due));
                        found.extend(self.memory.damage.sound(vec![read])?);
                    }
                }
                if found.len() == max as usize {
                    break;
                }
            }
            if self.memory.damage.passed_over() == before || found.len() == max as usize {
                return Ok(found);
            }
        }
    }

    /// What an entry of the claim index leads to; it may be damaged.
    fn load_ready(&self, pos: i64) -> Result<Result<Row, StoreError>, CommitError> {
        let mut read =
            rows(&self.connection, sql::DELIVERY_BY_POS, params![pos], |cells| Ok(Row::load(cells)))?;
        Ok(read.pop().unwrap_or_else(|| Err(Place { table: "delivery", column: "pos", row: pos }.corrupt())))
    }

    /// Replaces the one of each windowed lane that is ready by the lane's first rows.
    fn widen(&mut self, ready: Vec<Row>, window: u32) -> Result<Vec<Candidate>, CommitError> {
        let mut widened = Vec::with_capacity(ready.len());
        let mut lanes = HashSet::new();
        for row in ready {
            let Some(lane) = row.lane else {
                widened.push(Candidate::Head(Box::new(row)));
                continue;
            };
            if lanes.insert(lane) {
                let most = window.min(WINDOW_MAX);
                let of_lane = params![row.queue, lane, 0, most];
                let read =
                    rows(&self.connection, sql::DELIVERIES_OF_LANE, of_lane, |cells| Ok(Row::load(cells)))?;
                widened.push(Candidate::Lane(self.memory.damage.sound_prefix(read)?));
            }
        }
        Ok(widened)
    }

    fn ready_next(&self, queue: i64, now: i64) -> Result<Option<i64>, CommitError> {
        Ok(rows(&self.connection, sql::READY_NEXT, params![queue, now], |mut cells| cells.take())?.pop())
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
