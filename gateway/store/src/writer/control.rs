//! Operations that are not on the hot path: sessions, operators' verbs, brakes, sweeps and notes.

use gatepost_audit::{Event as LeafEvent, Leaf};
use gatepost_core::delivery::Event;
use gatepost_core::principal::Actor;
use gatepost_core::queue::TripReason;
use gatepost_core::{DeliveryId, Illegal, State};

use super::Reported;
use super::leaf::actor;
use super::memory::Queue;
use super::recall::Fronts;
use super::turn::{Extra, Turn};
use crate::ops::Pause;
use crate::ops::{AuditNote, DeliveryRow, OperateError, QueueKind, SessionEnd, StoreError, Verb};
use crate::row::Row;

impl Turn<'_> {
    /// Opens the next session; what earlier ones still hold is taken from them first.
    pub(crate) fn session_open(&mut self, adapter: &str) -> Result<u64, StoreError> {
        let queue = self.queue_named(adapter)?;
        let (id, kind) = (queue.id, queue.setup.kind);
        // Nobody tells us of an external adapter's death but its successor.
        let event = if kind == QueueKind::ExternalAdapter { Event::AdapterLost } else { Event::SessionEnded };
        self.end_leases(id, event)?;
        let queue = self.queue_mut(id)?;
        let epoch = queue.next_session();
        let by = Actor::new(gatepost_core::principal::ActorKind::Adapter, adapter);
        let mut leaf = Leaf::new(self.now.as_micros(), actor(&by), LeafEvent::SessionOpened);
        leaf.session = Some(epoch);
        self.push_leaf(&leaf)?;
        Ok(epoch)
    }

    pub(crate) fn session_end(&mut self, adapter: &str, end: SessionEnd) -> Result<(), StoreError> {
        let id = self.queue_named(adapter)?.id;
        let event = match end {
            SessionEnd::Crashed => Event::AdapterLost,
            SessionEnd::Stopped => Event::SessionEnded,
        };
        self.end_leases(id, event)?;
        // The dead process's session must not come back to life: its successor opens the next one.
        self.queue_mut(id)?.next_session();
        Ok(())
    }

    /// Takes every lease of a queue back, except those of sent deliveries, whose proof may still come.
    pub(crate) fn end_leases(&mut self, queue: i64, event: Event) -> Result<(), StoreError> {
        self.end_leases_if(queue, event, |_| true)
    }

    fn end_leases_if(
        &mut self,
        queue: i64,
        event: Event,
        ends: impl Fn(&Row) -> bool,
    ) -> Result<(), StoreError> {
        let of_queue = self.memory.hot.values().filter(|row| row.queue == queue && ends(row));
        let mut held: Vec<Row> = of_queue.cloned().collect();
        held.sort_by_key(|row| row.pos);
        let gateway = self.gateway.clone();
        for row in held {
            let id = row.id;
            // Even where the lease stays: what was ready behind it was so for the session that ends.
            self.lanes.extend(row.lanes().map(|lane| (queue, lane)));
            if let Ok(change) = self.at_moment(queue, |moment| row.delivery.apply(event, moment))? {
                self.change(row, &change, &gateway, &Extra::default())?;
                self.probe_lost(queue, id)?;
            }
        }
        Ok(())
    }

    /// Takes back what another start of a gateway has leased, where leases end with it.
    pub(crate) fn end_others_leases(&mut self) -> Result<(), StoreError> {
        let here = self.instance_epoch;
        let is_gone = |row: &Row| {
            let given = row.delivery.lease().map(|lease| lease.token.instance_epoch());
            let queue = self.memory.queues.get(&row.queue);
            given.is_some_and(|given| given != here) && queue.is_some_and(Queue::leases_end_with_gateway)
        };
        let mut queues: Vec<i64> =
            self.memory.hot.values().filter(|row| is_gone(row)).map(|row| row.queue).collect();
        queues.sort_unstable();
        queues.dedup();
        for queue in queues {
            self.end_leases_if(queue, Event::SessionEnded, |row| {
                row.delivery.lease().is_some_and(|lease| lease.token.instance_epoch() != here)
            })?;
        }
        Ok(())
    }

    /// Ends leases whose deadline has passed.
    pub(crate) fn sweep_leases(&mut self, most: usize, reported: &Reported) -> Result<(), StoreError> {
        let over = |row: &Row, now| {
            let lease = row.delivery.lease().filter(|lease| lease.until <= now);
            lease.is_some_and(|lease| !reported.contains(&(row.id, lease.token)))
        };
        let mut due: Vec<&Row> =
            self.memory.hot.values().filter(|row| over(row, self.now)).take(most).collect();
        // From the head of each lane on, and so that a run can be repeated exactly.
        due.sort_unstable_by_key(|row| row.pos);
        let ids: Vec<DeliveryId> = due.into_iter().map(|row| row.id).collect();
        let gateway = self.gateway.clone();
        for id in ids {
            // As this turn has left it: the one in front of it may have taken it back already.
            let Some(row) = self.row(&id).filter(|row| over(row, self.now)).cloned() else { continue };
            let was = row.clone();
            if let Ok(change) =
                self.at_moment(row.queue, |moment| row.delivery.apply(Event::LeaseExpired, moment))?
            {
                self.change(row, &change, &gateway, &Extra::default())?;
                self.probe_lost(was.queue, was.id)?;
                self.recall_behind(&Fronts::lost(&was))?;
            }
        }
        Ok(())
    }

    pub(crate) fn sweep_expiry(&mut self, rows: Vec<Row>) -> Result<(), StoreError> {
        let gateway = self.gateway.clone();
        for row in rows {
            // They were read by the gateway's own clock, which may be ahead of the turn's.
            if self.touched.contains_key(&row.id) || !row.delivery.past_expiry(self.now) {
                continue;
            }
            if let Ok(change) =
                self.at_moment(row.queue, |moment| row.delivery.apply(Event::Expire, moment))?
            {
                self.change(row, &change, &gateway, &Extra::default())?;
            }
        }
        Ok(())
    }

    pub(crate) fn operate(
        &mut self,
        operator: &Actor,
        delivery: DeliveryId,
        verb: Verb,
        reason: &str,
    ) -> Result<DeliveryRow, OperateError> {
        let Some(row) = self.row(&delivery).cloned() else { return Err(OperateError::NotFound) };
        if verb == Verb::Replay {
            self.check_replay(&row)?;
        }
        let event = match verb {
            Verb::Replay => Event::Replay,
            Verb::Discard => Event::Discard,
            Verb::Resolve(resolution) => Event::Resolve(resolution),
        };
        let mut change = self.at_moment(row.queue, |moment| row.delivery.apply(event, moment))??;
        let mut row = row;
        if verb == Verb::Replay && !row.delivery.state.blocks_lane() {
            // Its place in the lane is gone: it goes when due, beside the lane.
            self.lanes.extend(row.lanes().map(|lane| (row.queue, lane)));
            (row.lane, row.barrier) = (None, None);
        } else if verb == Verb::Replay {
            // It kept its lane waiting, and now it is simply the lane's head again.
            change.delivery.replayed = false;
        }
        if verb == Verb::Replay {
            // What ended it in this very turn is no answer any more; an earlier one goes with the commit.
            self.replies.retain(|reply| reply.delivery != row.pos);
        }
        let extra = Extra { reason: (!reason.is_empty()).then_some(reason), ..Extra::default() };
        self.change(row, &change, operator, &extra)?;
        let now = self.row(&delivery).ok_or(OperateError::NotFound)?;
        Ok(self.describe_row(now)?)
    }

    /// A dead letter can be sent again only if there is something left to send and somebody to send it.
    fn check_replay(&self, row: &Row) -> Result<(), OperateError> {
        let queue = self.queue(row.queue)?;
        let state = match &row.delivery.state {
            State::Dead { .. } if row.salt.is_none() => "dead whose payload is purged",
            State::Dead { .. } if queue.setup.kind == QueueKind::Builtin => "dead that no route takes",
            _ => return Ok(()),
        };
        Err(Illegal { state, event: Event::Replay.as_str() }.into())
    }

    fn describe_row(&self, row: &Row) -> Result<DeliveryRow, StoreError> {
        Ok(DeliveryRow {
            id: row.id,
            message: row.message,
            destination: self.queue(row.queue)?.setup.name.clone(),
            state: row.delivery.state.as_str(),
            reason: match row.delivery.state {
                State::Dead { reason, .. } => Some(reason.as_str()),
                State::InDoubt { due: None } => Some("held"),
                State::InDoubt { due: Some(_) }
                | State::Waiting { .. }
                | State::Leased { .. }
                | State::Sending { .. }
                | State::Delivered
                | State::Expired
                | State::Discarded => None,
            },
            attempts: row.delivery.attempts,
            series: row.delivery.series,
            doubt: row.delivery.doubt,
            replayed: row.delivery.replayed,
            accepted_at: row.accepted_at,
            changed_at: row.changed_at,
            due: row.delivery.state.due(),
        })
    }

    pub(crate) fn queue_pause(
        &mut self,
        operator: &Actor,
        name: &str,
        pause: Pause,
    ) -> Result<(), StoreError> {
        let id = self.queue_named(name)?.id;
        let now = self.now;
        let control = &mut self.queue_mut(id)?.control;
        let event = match pause {
            Pause::Pause => {
                control.pause(now);
                LeafEvent::QueuePaused
            }
            Pause::Resume => {
                control.resume(now);
                LeafEvent::QueueResumed
            }
        };
        self.queue_leaf(event, operator, name, None)
    }

    pub(crate) fn queue_trip(&mut self, name: &str, trip: Option<TripReason>) -> Result<(), StoreError> {
        let id = self.queue_named(name)?.id;
        match trip {
            Some(reason) => self.trouble(id, None, reason, None),
            None => self.answered(id),
        }
    }

    pub(crate) fn note(&mut self, note: &AuditNote) -> Result<(), StoreError> {
        let mut leaf = Leaf::new(self.now.as_micros(), actor(&note.by), note.event);
        leaf.code = note.code.as_deref().map(Into::into);
        leaf.subject_of = note.target.as_deref().map(Into::into);
        leaf.destination = note.destination.as_deref().map(Into::into);
        leaf.message = note.message.map(|id| *id.as_bytes());
        leaf.delivery = note.delivery.map(|id| *id.as_bytes());
        leaf.count = note.count;
        self.push_leaf(&leaf).map(drop)
    }
}
