//! Leasing: which deliveries a consumer gets now. Only heads of lanes are looked at, through the claim index, so that it
//! costs the same with ten waiting as with ten million.

use std::time::Duration;

use gatepost_core::delivery::{Event, Lease};
use gatepost_core::message::INLINE_DATA_BYTES_MAX;
use gatepost_core::principal::ActorKind;
use gatepost_core::queue::Allowance;
use gatepost_core::{State, Timestamp};

use super::memory::Queue;
use super::turn::{Extra, Turn};
use crate::ops::{LeaseError, LeaseRequest, QueueKind, StoreError};
use crate::row::Row;
use crate::seal::{Domain, Index};

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

/// A delivery given out in this turn, or before under the same `request_id`.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) row: Row,
    pub(crate) lease: Duration,
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
        self.memory
            .hot
            .keys()
            .chain(self.touched.keys())
            .filter_map(|id| self.row(id))
            .any(|row| row.queue == queue.id && row.delivery.suspect && row.delivery.state.in_flight())
    }

    /// The leases of an earlier call with the same `request_id` that still stand.
    pub(crate) fn repeated(&self, request: &LeaseRequest) -> Option<Vec<Given>> {
        let batch = self.batch_index(request)?;
        let given: Vec<Given> = self
            .memory
            .batches
            .get(&batch)?
            .iter()
            .filter_map(|(id, token)| {
                let row = self.row(id)?;
                let lease = row.delivery.lease()?;
                let left = lease.until.since(self.now).saturating_sub(LEASE_MARGIN);
                let stands = lease.token == *token
                    && lease.session == request.session.unwrap_or(0)
                    && row.batch == Some(batch)
                    && !left.is_zero();
                stands.then(|| Given { row: row.clone(), lease: left })
            })
            .collect();
        (!given.is_empty()).then_some(given)
    }

    pub(crate) fn batch_index(&self, request: &LeaseRequest) -> Option<Index> {
        let id = request.request_id.as_ref()?;
        let consumer = request.consumer.to_string();
        Some(
            self.vault
                .index(Domain::LeaseRequest, &[request.queue.as_bytes(), consumer.as_bytes(), id.as_bytes()]),
        )
    }

    /// Leases candidates in their order until the call is satisfied.
    pub(crate) fn give(
        &mut self,
        request: &LeaseRequest,
        claim: Claim,
        candidates: Vec<Row>,
    ) -> Result<Vec<Given>, StoreError> {
        let max = match claim {
            Claim::Nothing { .. } => 0,
            Claim::Probe => 1,
            Claim::SuspectOr(max) | Claim::Ready(max) => max as usize,
        };
        let batch = self.batch_index(request);
        let mut given = Vec::new();
        let mut bytes = 0;
        for row in candidates {
            if given.len() >= max {
                break;
            }
            // Another operation of this turn has changed it since it was read.
            if self.touched.contains_key(&row.id) {
                continue;
            }
            let inline = if row.size > INLINE_DATA_BYTES_MAX { 0 } else { row.size };
            if !given.is_empty() && bytes + inline > request.max_bytes {
                break;
            }
            if let Some(row) = self.give_one(request, row, batch)? {
                bytes += inline;
                given.push(Given { row, lease: request.lease });
            }
        }
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

    /// Of a windowed lane's first rows, the consecutive ones that may be leased next to this session.
    pub(crate) fn next_of_window(&self, request: &LeaseRequest, lane: &[Row]) -> Vec<Row> {
        let session = request.session.unwrap_or(0);
        let mut next = Vec::new();
        for row in lane {
            let row = self.row(&row.id).unwrap_or(row);
            match (&row.delivery.state, row.delivery.lease()) {
                // One pipeline at a time: what stands before it must be leased to the same session.
                (_, Some(lease)) if lease.session == session && next.is_empty() => {}
                (State::Waiting { due } | State::InDoubt { due: Some(due) }, None) if *due <= self.now => {
                    next.push(row.clone());
                }
                _ => break,
            }
        }
        next
    }
}
