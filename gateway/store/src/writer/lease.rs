//! Leasing: which deliveries a consumer gets now. Only heads of lanes are looked at, through the claim index, so that it
//! costs the same with ten waiting as with ten million.

use std::collections::HashSet;
use std::time::Duration;

use gatepost_core::delivery::{Event, Lease, Proof};
use gatepost_core::message::INLINE_DATA_BYTES_MAX;
use gatepost_core::principal::ActorKind;
use gatepost_core::queue::Allowance;
use gatepost_core::{DeliveryId, State, Timestamp};

use super::candidates::Candidate;
use super::memory::Queue;
use super::turn::{Extra, Turn};
use crate::ops::{LeaseError, LeaseRequest, QueueKind, StoreError};
use crate::row::Row;
use crate::seal::{Domain, Index, Vault};

/// What the store adds to a lease beyond what it tells the client, whose clock starts when the answer arrives.
pub(crate) const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// What a lease call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing before `until`, if time alone changes that.
    Nothing {
        until: Option<Timestamp>,
    },
    /// One suspect, alone, if one is due; else as `Ready`, up to the number.
    SuspectOr(u32),
    /// One, as the breaker's probe.
    Probe,
    Ready(u32),
}

impl Claim {
    /// How many deliveries it may take.
    pub(crate) const fn most(self) -> u32 {
        match self {
            Self::Nothing { .. } => 0,
            Self::Probe => 1,
            Self::SuspectOr(max) | Self::Ready(max) => max,
        }
    }
}

/// A delivery given out in this turn, or before under the same `request_id`.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) row: Row,
    pub(crate) lease: Duration,
}

/// What a lease call has been given so far.
struct Basket {
    most: usize,
    batch: Option<Index>,
    /// Inline payload bytes.
    bytes: u64,
    given: Vec<Given>,
}

/// Whether a lease call may be given more.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Yes,
    No,
}

/// What the leases of calls with the same `request_id` of the same consumer are found by.
pub(super) fn batch_index(vault: &Vault, request: &LeaseRequest) -> Option<Index> {
    let id = request.request_id.as_ref()?;
    let consumer = request.consumer.to_string();
    Some(vault.index(Domain::LeaseRequest, &[request.queue.as_bytes(), consumer.as_bytes(), id.as_bytes()]))
}

impl Turn<'_> {
    /// Checks who asks; the brakes of the queue decide how much it may get.
    pub(crate) fn claim(&self, request: &LeaseRequest) -> Result<Claim, LeaseError> {
        let queue = self.queue_named(&request.queue)?;
        if request.consumer.kind == ActorKind::Adapter && queue.session != request.session.unwrap_or(0) {
            return Err(LeaseError::Superseded);
        }
        if matches!(queue.setup.kind, QueueKind::Removed | QueueKind::Builtin) {
            return Ok(Claim::Nothing { until: None });
        }
        // While a suspect is leased nothing else is: whoever dies then, it was that one.
        if queue.counts.suspects > 0 && self.suspect_is_leased(queue) {
            return Ok(Claim::Nothing { until: None });
        }
        Ok(match queue.control.allowance(self.now, queue.in_flight(), &queue.setup.policy) {
            Allowance::Nothing { until } => Claim::Nothing { until },
            Allowance::Probe => Claim::Probe,
            Allowance::UpTo(free) if queue.counts.suspects > 0 => Claim::SuspectOr(free.min(request.max)),
            Allowance::UpTo(free) => Claim::Ready(free.min(request.max)),
        })
    }

    fn suspect_is_leased(&self, queue: &Queue) -> bool {
        let is_leased =
            |row: &Row| row.queue == queue.id && row.delivery.suspect && row.delivery.state.in_flight();
        if self.touched.values().any(|touched| is_leased(&touched.now)) {
            return true;
        }
        let is_still = |row: &Row| !self.touched.contains_key(&row.id) && is_leased(row);
        match self.suspects.get(&queue.id) {
            Some(leased) => leased.iter().any(is_still),
            None => self.memory.hot.values().any(is_still),
        }
    }

    /// The leases of an earlier call with the same `request_id` that still stand.
    pub(crate) fn repeated(&self, request: &LeaseRequest) -> Option<Vec<Given>> {
        let batch = batch_index(self.vault, request)?;
        let before = self.memory.batches.get(&batch).into_iter().flatten().map(|(id, _)| *id);
        // Its twin may be in this very turn.
        let here = self.touched.values().map(|touched| &touched.now);
        let here = here.filter(|row| row.batch == Some(batch)).map(|row| row.id);
        let ids: HashSet<DeliveryId> = before.chain(here).collect();
        let mut given: Vec<Given> = ids
            .iter()
            .filter_map(|id| {
                let row = self.row(id).filter(|row| row.batch == Some(batch))?;
                let lease = row.delivery.lease()?;
                let left = lease.until.since(self.now).saturating_sub(LEASE_MARGIN);
                let stands = lease.session == request.session.unwrap_or(0) && !left.is_zero();
                stands.then(|| Given { row: row.clone(), lease: left })
            })
            .collect();
        // In accept order, which is the order within each lane.
        given.sort_by_key(|given| given.row.pos);
        (!given.is_empty()).then_some(given)
    }

    /// Leases candidates in their order until the call is satisfied. `most` is what the call could take when its candidates
    /// were read; `claim` what it may take now.
    pub(super) fn give(
        &mut self,
        request: &LeaseRequest,
        claim: Claim,
        most: u32,
        candidates: Vec<Candidate>,
    ) -> Result<Vec<Given>, StoreError> {
        let mut basket = Basket {
            most: claim.most().min(most) as usize,
            batch: batch_index(self.vault, request),
            bytes: 0,
            given: Vec::new(),
        };
        for candidate in candidates {
            let rows = match candidate {
                Candidate::Head(row) => vec![*row],
                Candidate::Lane(rows) => self.next_of_window(request, &rows),
            };
            if self.give_lane(request, rows, &mut basket)? == More::No {
                break;
            }
        }
        let given = basket.given;
        if claim == Claim::Probe
            && let Some(probe) = given.first()
        {
            let (queue, id) = (probe.row.queue, probe.row.id);
            if let Some(trip) = &mut self.queue_mut(queue)?.control.trip {
                trip.probe = Some(id);
            }
        }
        Ok(given)
    }

    /// Leases deliveries of one lane, of which none may be passed over.
    fn give_lane(
        &mut self,
        request: &LeaseRequest,
        rows: Vec<Row>,
        basket: &mut Basket,
    ) -> Result<More, StoreError> {
        for row in rows {
            let inline = if row.size > INLINE_DATA_BYTES_MAX { 0 } else { row.size };
            let fits = basket.given.is_empty() || basket.bytes + inline <= request.max_bytes;
            if basket.given.len() >= basket.most || !fits {
                return Ok(More::No);
            }
            // A suspect is alone: whoever dies then, it was that one.
            if row.delivery.suspect && self.queue(row.queue)?.in_flight() > 0 {
                return Ok(More::No);
            }
            // Another operation of this turn has changed it since it was read.
            if self.touched.contains_key(&row.id) {
                break;
            }
            let id = row.id;
            match self.give_one(request, row, basket.batch)? {
                Some(row) => {
                    basket.bytes += inline;
                    basket.given.push(Given { row, lease: request.lease });
                }
                None if self.row(&id).is_some_and(|row| !row.delivery.state.blocks_lane()) => {}
                None => break,
            }
        }
        Ok(More::Yes)
    }

    /// `None` when the delivery expires or is held instead.
    fn give_one(
        &mut self,
        request: &LeaseRequest,
        row: Row,
        batch: Option<Index>,
    ) -> Result<Option<Row>, StoreError> {
        let gateway = self.gateway.clone();
        let by = if request.consumer.kind == ActorKind::Adapter || request.consumer.kind == ActorKind::App {
            request.consumer.clone()
        } else {
            gateway.clone()
        };
        if matches!(row.delivery.state, State::Waiting { .. }) && row.delivery.past_expiry(self.now) {
            if let Ok(change) =
                self.at_moment(row.queue, |moment| row.delivery.apply(Event::Expire, moment))?
            {
                self.change(row, &change, &gateway, &Extra::default())?;
            }
            return Ok(None);
        }
        let token = self
            .random
            .token(self.instance_epoch)
            .map_err(|error| StoreError::Database(error.to_string()))?;
        let until = self.now + request.lease + LEASE_MARGIN;
        let lease = Lease { token, until, session: request.session.unwrap_or(0) };
        let Ok(change) =
            self.at_moment(row.queue, |moment| row.delivery.apply(Event::Lease(lease), moment))?
        else {
            return Ok(None);
        };
        let id = row.id;
        self.change(row, &change, &by, &Extra::default())?;
        let Some(touched) = self.touched.get_mut(&id) else { return Ok(None) };
        if touched.now.delivery.lease().is_none() {
            return Ok(None);
        }
        touched.now.batch = batch;
        Ok(Some(touched.now.clone()))
    }

    /// Of a windowed lane's first rows, the consecutive ones that may be leased next to this session. They end before one that
    /// stands in another lane besides: it goes alone, once it is the first in both, and nothing goes with it. So does the first of a
    /// lane whose partner was away, until something is reported of it.
    pub(crate) fn next_of_window(&self, request: &LeaseRequest, lane: &[Row]) -> Vec<Row> {
        let session = request.session.unwrap_or(0);
        let succeeds = self.queue_named(&request.queue).is_ok_and(Queue::succeeds_itself);
        let mut next = Vec::new();
        for row in lane {
            // As this turn has left it, or else as it was just read: what is in memory may be from before another node had its say.
            let row = self.touched.get(&row.id).map_or(row, |touched| &touched.now);
            if !row.delivery.state.blocks_lane() {
                continue;
            }
            if row.barrier.is_some() {
                break;
            }
            let alone = row.delivery.went_with_lane();
            match (&row.delivery.state, row.delivery.lease()) {
                // One pipeline at a time: what stands before it must be leased to the same session, or have been sent by one before
                // that, which is over.
                (_, Some(lease)) if lease.session == session && next.is_empty() => {}
                (State::Sending { proof: Proof::Late, .. }, Some(_)) if succeeds && next.is_empty() => {}
                (State::Waiting { due } | State::InDoubt { due: Some(due) }, None)
                    if *due <= self.now && (next.is_empty() || !alone) =>
                {
                    next.push(row.clone());
                }
                _ => break,
            }
            if alone {
                break;
            }
        }
        next
    }
}
