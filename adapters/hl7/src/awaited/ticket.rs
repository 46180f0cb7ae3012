//! One message that is being sent, and the answers to it that other connections bring.

use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::{Delivery, Evidence, Lease, Outcome, SettleError, Settlement, StateChanges};
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::kept::{Kept, new_key};
use super::{Answer, Awaited, From, Id, Settling, Stage};
use crate::peer::Peer;

/// One message that is being sent. Dropped, it is not waited for any more.
pub(crate) struct Ticket {
    pub(super) awaited: Arc<Awaited>,
    pub(super) id: Id,
    pub(super) lease: Lease,
    pub(super) partner: Option<String>,
    pub(super) answers: mpsc::Receiver<(Answer, Settling)>,
    /// Of the answer that another connection has brought.
    pub(super) settling: Option<Settling>,
}

impl Ticket {
    /// Where its bytes are about to go.
    pub(crate) fn goes_to(&self, peer: &Peer) {
        if let Some(own) = self.awaited.lock().find(&self.id, &self.lease) {
            own.peer = Some(peer.clone());
        }
    }

    /// Whether an answer over its own connection that names its id is to this message and to no other one. An accept
    /// acknowledgement is always: it comes where the message went. The application of the partner may mean an earlier message with
    /// the same id, which it has accepted.
    pub(crate) fn is_meant_by(&self, answer: &Answer) -> bool {
        if answer.is_accept() {
            return true;
        }
        let all = self.awaited.lock();
        let others = all.waiting.get(&self.id).into_iter().flatten();
        let mut others = others.filter(|other| other.lease != self.lease && other.partner == self.partner);
        let is_clear = !others.any(|other| other.stage.is_accepted());
        if !is_clear {
            self.awaited.tell("it could be to several");
        }
        is_clear
    }

    /// The answer, if another connection brings it.
    pub(crate) async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some((answer, settling)) => {
                self.settling = Some(settling);
                answer
            }
            // Its place was taken by a newer attempt, which ends this one's lease.
            None => std::future::pending().await,
        }
    }

    /// Whether somebody else waits for what this answer does.
    pub(crate) fn is_watched(&self) -> bool {
        self.settling.is_some()
    }

    /// Settles it here, for whoever is to be told once the gateway has it.
    pub(crate) async fn settle(
        self,
        delivery: &Delivery,
        outcome: Outcome,
        state: StateChanges,
    ) -> Result<(), SettleError> {
        let mut settlement = Settlement::default();
        settlement.outcome(delivery, outcome);
        settlement.state = state;
        self.awaited.session.settle(settlement).await.map(drop)
    }

    /// The partner has accepted it: the delivery is `sent`, and its answer settles it until `within` has passed.
    pub(crate) async fn sent(
        mut self,
        delivery: &Delivery,
        evidence: Evidence,
        within: Duration,
        state: StateChanges,
    ) -> Result<(), SettleError> {
        let (until, key) = (OffsetDateTime::now_utc() + within, new_key());
        let peer = {
            let mut all = self.awaited.lock();
            let own = all.find(&self.id, &self.lease);
            own.and_then(|own| {
                if let Stage::Sending { accepted, .. } = &mut own.stage {
                    *accepted = true;
                }
                own.peer.clone()
            })
        };
        let kept = Kept {
            id: self.id.clone(),
            lease: self.lease.clone(),
            until: until.unix_timestamp(),
            partner: self.partner.clone(),
            peer,
        };
        let mut settlement = Settlement::default();
        settlement.outcome(delivery, Outcome::Sent { evidence, within });
        settlement.state = state;
        // What is kept has no part that JSON cannot say.
        settlement.state.set(key.clone(), serde_json::to_vec(&kept).unwrap_or_default());
        self.awaited.session.settle(settlement).await?;
        if let Some(own) = self.awaited.lock().find(&self.id, &self.lease) {
            own.stage = Stage::Sent { until, key };
        }
        // It may have come over another connection while that was being written.
        while let Ok((answer, settling)) = self.answers.try_recv() {
            self.awaited.give(answer, From::Partner(self.partner.as_deref()), settling);
        }
        // Kept, not forgotten.
        self.id.clear();
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.id.is_empty() {
            self.awaited.lock().remove(&self.id, &self.lease);
        }
    }
}
