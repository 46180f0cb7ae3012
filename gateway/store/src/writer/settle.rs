//! Settling: outcomes of many deliveries, emitted events and adapter state, as one decision.

use std::collections::HashMap;

use gatepost_core::delivery::{Change, Refusal, Settled};
use gatepost_core::policy::RetryScope;
use gatepost_core::principal::ActorKind;
use gatepost_core::queue::TripReason;
use gatepost_core::{Delivery, DeliveryId, Level, Outcome};

use super::accept::{Beyond, KnownKeys};
use super::lease::LEASE_MARGIN;
use super::recall::Fronts;
use super::turn::{Extra, Reply, Turn, went_back};
use crate::ops::{AcceptError, Settle, SettleAnswer, SettleError, SettleItem, SettledItem, StoreError};
use crate::prepared::Prepared;
use crate::row::Row;
use crate::seal::Owner;

/// What one item comes to; nothing of it is taken up before all of them are decided.
struct Decision<'s> {
    item: &'s SettleItem,
    row: Row,
    settled: Settled,
}

impl<'a> Turn<'a> {
    /// `prepared` are the emitted events.
    pub(crate) fn settle(
        &mut self,
        settle: &'a Settle,
        prepared: &'a [Prepared],
        known: &KnownKeys,
    ) -> Result<SettleAnswer, SettleError> {
        if settle.consumer.kind == ActorKind::Adapter
            && self.session_of(&settle.consumer.name)? != settle.session.unwrap_or(0)
        {
            return Err(SettleError::Superseded);
        }
        let (decisions, answers) = self.decide(settle)?;
        let atomic = settle.atomic || !settle.emit.is_empty() || !settle.state.is_empty();
        if atomic && answers.iter().any(|answer| !answer.ok) {
            // A refusal to begin is a refusal here too: the caller must drop that item, and then it is written.
            return Err(SettleError::Refused(answers));
        }
        // Emits are checked for a mismatch before anything is taken up.
        // Without outcomes an adapter takes in what comes from outside, and whoever sent that can be told to wait.
        let beyond = if settle.items.is_empty() { Beyond::Refused } else { Beyond::Taken };
        let emitted =
            self.emit(&settle.consumer, &settle.emit, prepared, known, beyond).map_err(emit_error)?;
        let mut fronts = Fronts::default();
        for decision in decisions {
            self.take_up(&decision, settle, &mut fronts)?;
        }
        self.recall_behind(&fronts)?;
        self.write_state(settle);
        let emitted = emitted.into_iter().map(|accepted| (accepted.id, accepted.duplicate)).collect();
        Ok(SettleAnswer { items: answers, emitted })
    }

    /// Decides every item against the state that the ones before it lead to.
    fn decide<'s>(
        &mut self,
        settle: &'s Settle,
    ) -> Result<(Vec<Decision<'s>>, Vec<SettledItem>), SettleError> {
        let mut within: HashMap<DeliveryId, Delivery> = HashMap::new();
        let mut fronts = Fronts::default();
        let mut decisions = Vec::with_capacity(settle.items.len());
        let mut answers = Vec::with_capacity(settle.items.len());
        for item in &settle.items {
            let Some(row) = self.settleable(settle, item)? else {
                answers.push(SettledItem { delivery: item.delivery, ok: false, state: "unknown" });
                continue;
            };
            let mut delivery = within.get(&item.delivery).copied().unwrap_or(row.delivery);
            if let Some(event) = fronts.recall(&row) {
                // It goes back with the one in front of it; what is said of it here comes too late.
                let recalled = self.at_moment(row.queue, |moment| delivery.apply(event, moment))?;
                delivery = recalled.map_or(delivery, |change| change.delivery);
            }
            let Some(token) = item.token else {
                answers.push(SettledItem {
                    delivery: item.delivery,
                    ok: false,
                    state: delivery.state.as_str(),
                });
                continue;
            };
            let outcome = with_margin(item.outcome);
            let settled = self
                .at_moment(row.queue, |moment| delivery.settle(&token, outcome, moment))?
                .map_err(|refusal: Refusal| SettleError::Protocol { delivery: item.delivery, refusal })?;
            let after = match &settled {
                Settled::Changed(change) | Settled::Refused(change) => change.delivery,
                Settled::Repeated | Settled::Stale => delivery,
            };
            if went_back(&delivery, &after) {
                fronts.add(&row, item.outcome);
            }
            within.insert(item.delivery, after);
            let ok = matches!(settled, Settled::Changed(_) | Settled::Repeated);
            answers.push(SettledItem { delivery: item.delivery, ok, state: after.state.as_str() });
            decisions.push(Decision { item, row: Row { delivery, ..row }, settled });
        }
        Ok((decisions, answers))
    }

    /// The delivery of an item, if the consumer has anything to do with it.
    fn settleable(&self, settle: &Settle, item: &SettleItem) -> Result<Option<Row>, StoreError> {
        let Some(row) = self.row(&item.delivery) else { return Ok(None) };
        let queue = self.queue(row.queue)?;
        Ok(settle.queues.contains(&queue.setup.name).then(|| row.clone()))
    }

    fn take_up(
        &mut self,
        decision: &Decision<'_>,
        settle: &Settle,
        fronts: &mut Fronts,
    ) -> Result<(), StoreError> {
        let item = decision.item;
        let (change, is_taken) = match &decision.settled {
            Settled::Changed(change) => (change, true),
            Settled::Refused(change) => (change, false),
            Settled::Repeated | Settled::Stale => return Ok(()),
        };
        let level = match item.outcome {
            Outcome::Delivered { level } => Some(level),
            Outcome::Sent { .. } => Some(Level::Sent),
            Outcome::Begin
            | Outcome::InDoubt
            | Outcome::Retry { .. }
            | Outcome::Reject
            | Outcome::Release
            | Outcome::Extend { .. }
            | Outcome::Wake => None,
        };
        let extra = Extra { level, evidence: item.evidence.as_deref(), reason: item.reason.as_deref() };
        // The row as the item before left it, which `replace` knows by its id.
        let was = self.row(&decision.row.id).cloned().unwrap_or_else(|| decision.row.clone());
        self.change(was.clone(), change, &settle.consumer, &extra)?;
        // What ends the delivery, whichever way: a refusal's body is what its sender has asked for too.
        if let Some(reply) = &item.reply
            && is_taken
            && change.delivery.state.is_terminal()
        {
            let body = self.vault.seal(reply, Owner::Reply { delivery: was.pos })?;
            self.replies.push(Reply { delivery: was.pos, accepted_at: was.accepted_at, body });
        }
        self.brake(&was, item, change)?;
        if went_back(&was.delivery, &change.delivery) {
            fronts.add(&was, item.outcome);
        }
        Ok(())
    }

    /// What an outcome says of the destination as a whole.
    fn brake(&mut self, row: &Row, item: &SettleItem, change: &Change) -> Result<(), StoreError> {
        match item.outcome {
            Outcome::Retry { scope: RetryScope::Destination, after } => {
                self.trouble(row.queue, Some(row.id), TripReason::Unreachable, after)
            }
            // To write to the partner it must have been in reach; and where only a lane's is away, others may be in reach.
            Outcome::Delivered { .. }
            | Outcome::Sent { .. }
            | Outcome::Reject
            | Outcome::Retry { scope: RetryScope::Message | RetryScope::Lane, .. } => {
                self.answered(row.queue)
            }
            // Not leased, so no probe.
            Outcome::Wake => Ok(()),
            Outcome::Begin | Outcome::InDoubt | Outcome::Release | Outcome::Extend { .. } => {
                if change.delivery.state.in_flight() { Ok(()) } else { self.probe_lost(row.queue, row.id) }
            }
        }
    }

    /// Among all changes of one commit the last of a key counts.
    fn write_state(&mut self, settle: &Settle) {
        for (key, value) in &settle.state {
            self.states.insert((settle.consumer.name.clone(), key.clone()), value.clone());
        }
    }
}

/// An extended lease lasts as much longer than the client is told as a new one does.
fn with_margin(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Extend { lease } => Outcome::Extend { lease: lease + LEASE_MARGIN },
        Outcome::Begin
        | Outcome::Sent { .. }
        | Outcome::Delivered { .. }
        | Outcome::InDoubt
        | Outcome::Retry { .. }
        | Outcome::Reject
        | Outcome::Release
        | Outcome::Wake => outcome,
    }
}

fn emit_error(error: AcceptError) -> SettleError {
    match error {
        AcceptError::Mismatch(position) => SettleError::Mismatch(position),
        // Emits take no session of their own, and their backlog limit is the accepter's: they must not be lost.
        AcceptError::QueueFull(queue) => SettleError::QueueFull(queue),
        AcceptError::SenderFull(full) => SettleError::SenderFull(full),
        AcceptError::Superseded => SettleError::Superseded,
        AcceptError::Store(error) => SettleError::Store(error),
    }
}
