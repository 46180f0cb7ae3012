//! Settling outcomes, messages and state as one: for an adapter whose protocol has state that must commit with its deliveries, such as
//! sequence numbers and what was sent under them.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use gatepost_api::event::Event;
use gatepost_api::settle::{
    Outcome as WireOutcome, SETTLE_BYTES_MAX, SETTLE_EVENTS_MAX, SETTLE_RESULTS_MAX, STATE_KEY_BYTES_MAX,
    STATE_KEYS_MAX, STATE_VALUE_BYTES_MAX, SettleItem, SettleRequest, SettleResponse, SettleStatus,
    SettledItem,
};
use uuid::Uuid;

use crate::client::{Call, CallError, Purpose};
use crate::delivery::Delivery;
use crate::evidence::{Outcome, item};
use crate::lease::{Held, Lease};
use crate::patience::persist;
use crate::session::Session;
use crate::settle::{SETTLE_DEADLINE, in_step};
use crate::state::{STATE_BYTES_MAX, StateChanges};

/// Outcomes, messages and changes of state that commit together. With messages or state it is all or nothing.
#[derive(Default)]
pub struct Settlement {
    items: Vec<Item>,
    emit: Vec<Event>,
    pub state: StateChanges,
    all_or_nothing: bool,
}

struct Item {
    lease: Lease,
    /// Where the delivery is in hand.
    held: Option<Arc<Held>>,
    said: Said,
}

enum Said {
    Begin,
    Wake,
    Outcome(Outcome),
}

/// What the gateway is asked, and of each result the delivery if it is in hand.
struct Asked {
    request: SettleRequest,
    held: Vec<Option<Arc<Held>>>,
}

impl Asked {
    fn results(&self) -> impl Iterator<Item = (&SettleItem, Option<&Arc<Held>>)> {
        self.request.results.iter().zip(self.held.iter().map(Option::as_ref))
    }
}

impl fmt::Debug for Settlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settlement({} results, {} events, {:?})", self.items.len(), self.emit.len(), self.state)
    }
}

impl Settlement {
    /// Bytes of this delivery are about to leave: they may once the settlement has been taken. A delivery past its `expirytime` is refused here.
    pub fn begin(&mut self, delivery: &Delivery) {
        self.add(delivery.lease(), Some(Arc::clone(delivery.held())), Said::Begin);
    }

    /// What came of a delivery in hand. Once the settlement has been taken, the delivery can be dropped.
    pub fn outcome(&mut self, delivery: &Delivery, outcome: Outcome) {
        self.add(delivery.lease(), Some(Arc::clone(delivery.held())), Said::Outcome(outcome));
    }

    /// What came of a delivery that was `sent`, perhaps by an earlier session.
    pub fn late(&mut self, lease: &Lease, outcome: Outcome) {
        self.add(lease.clone(), None, Said::Outcome(outcome));
    }

    /// A delivery that went back for its lane's trouble ([`Scope::Lane`](crate::Scope::Lane)) is due at once, unless it has been leased or
    /// settled since.
    pub fn wake(&mut self, lease: &Lease) {
        self.add(lease.clone(), None, Said::Wake);
    }

    /// A message to take in.
    pub fn emit(&mut self, event: Event) {
        self.emit.push(event);
    }

    /// If one of the outcomes is stale, none is to be written.
    pub fn all_or_nothing(&mut self) {
        self.all_or_nothing = true;
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.emit.is_empty() && self.state.is_empty()
    }

    fn add(&mut self, lease: Lease, held: Option<Arc<Held>>, said: Said) {
        self.items.push(Item { lease, held, said });
    }

    fn into_request(self, epoch: u64) -> Result<Asked, SettleError> {
        self.check()?;
        let mut results = Vec::with_capacity(self.items.len());
        let mut held = Vec::with_capacity(self.items.len());
        for Item { lease, held: in_hand, said } in self.items {
            let result = match said {
                Said::Begin => Some(item(lease.delivery, lease.token(), WireOutcome::Begin)),
                Said::Wake => Some(item(lease.delivery, lease.token(), WireOutcome::Wake)),
                Said::Outcome(outcome) => outcome
                    .into_item(lease.delivery, lease.token())
                    .map_err(|error| SettleError::Call(CallError::Unencodable(error)))?,
            };
            if let Some(result) = result {
                results.push(result);
                held.push(in_hand);
            }
        }
        let request = SettleRequest {
            results,
            emit: self.emit,
            state: self.state.into_wire(),
            atomic: self.all_or_nothing.then_some(true),
            epoch: Some(epoch),
        };
        Ok(Asked { request, held })
    }

    /// The gateway's limits, so that who is over one learns which.
    fn check(&self) -> Result<(), SettleError> {
        let within = |what, number, max| match number <= max {
            true => Ok(()),
            false => Err(SettleError::OverLimit { what, max }),
        };
        within("results", self.items.len(), SETTLE_RESULTS_MAX)?;
        within("events", self.emit.len(), SETTLE_EVENTS_MAX)?;
        within("keys of state", self.state.iter().count(), STATE_KEYS_MAX)?;
        for (key, value) in self.state.iter() {
            within("bytes in a key of state", key.len(), STATE_KEY_BYTES_MAX)?;
            within("bytes in a value of state", value.map_or(0, <[u8]>::len), STATE_VALUE_BYTES_MAX)?;
        }
        if self.state.iter().any(|(key, _)| key.is_empty()) {
            return Err(SettleError::EmptyKey);
        }
        let mut seen = HashSet::with_capacity(self.items.len());
        match self.items.iter().find(|item| !seen.insert(item.lease.delivery)) {
            Some(twice) => Err(SettleError::Twice(twice.lease.delivery)),
            None => Ok(()),
        }
    }
}

/// Why nothing of a settlement was written.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// It was all or nothing, and what these results call stale is settled, expired, or somebody else's by now. The others may be settled again
    /// without them.
    #[error("nothing was settled: {} of the results came too late", .0.iter().filter(|item| item.status == SettleStatus::Stale).count())]
    Refused(Vec<SettledItem>),
    /// The gateway was not asked.
    #[error("{what}: {max} at most")]
    OverLimit { what: &'static str, max: usize },
    /// With it the adapter's state would have more bytes in all than a gateway keeps. That says nothing of anything else in the settlement. The
    /// gateway was not asked.
    #[error("bytes of state in all: {max} at most")]
    StateFull { max: usize },
    /// The gateway was not asked.
    #[error("a key of state is empty")]
    EmptyKey,
    /// The gateway was not asked.
    #[error("delivery {0} stands in a settlement twice")]
    Twice(Uuid),
    #[error("the gateway does not take the settlement")]
    Call(#[source] CallError),
}

/// How long a settlement is said again while the gateway cannot take it.
enum Patience {
    Endless,
    None,
}

impl Session {
    /// Commits a settlement. Repeated until the gateway answers, also over its restart; an error is its final word. Whoever drops the future
    /// does not learn whether the settlement was written.
    ///
    /// Deliveries of an answer `stale` are lost ([`Delivery::is_lost`]).
    pub async fn settle(&self, settlement: Settlement) -> Result<SettleResponse, SettleError> {
        self.commit(settlement, Patience::Endless).await
    }

    /// The same, but the gateway is asked once: for what a partner will send again. An error that is retryable leaves open whether it was
    /// written, so the same settlement must be able to follow, as that of an event under its idempotency key is.
    pub async fn try_settle(&self, settlement: Settlement) -> Result<SettleResponse, SettleError> {
        self.commit(settlement, Patience::None).await
    }

    async fn commit(
        &self,
        settlement: Settlement,
        patience: Patience,
    ) -> Result<SettleResponse, SettleError> {
        if !self.state_sizes().fit(&settlement.state) {
            return Err(SettleError::StateFull { max: STATE_BYTES_MAX });
        }
        let state = settlement.state.clone();
        let asked = settlement.into_request(self.epoch())?;
        let call = Call::post_json(Purpose::Report, "/v1/settle", &asked.request, SETTLE_DEADLINE)
            .map_err(SettleError::Call)?;
        if call.body.len() > SETTLE_BYTES_MAX {
            return Err(SettleError::OverLimit { what: "bytes", max: SETTLE_BYTES_MAX });
        }
        for (sent, held) in asked.results() {
            // A prolonging that overtakes `sent` would shorten the time that its proof has.
            if let (true, Some(held)) = (ends_lease(sent.outcome), held) {
                held.report();
                held.prolonging_over().await;
            }
        }
        let answer: Result<SettleResponse, CallError> = match patience {
            Patience::Endless => persist(self.client(), &call).await,
            Patience::None => self.client().call(&call).await,
        };
        gatepost_faults::point("sdk.after_settle");
        self.end_if_superseded(answer.as_ref().err());
        match answer {
            Ok(response) if in_step(&asked.request.results, &response.results) => {
                for ((sent, held), settled) in asked.results().zip(&response.results) {
                    learn(sent, held, settled);
                }
                self.state_sizes().take_up(&state);
                Ok(response)
            }
            Ok(_) => Err(SettleError::Call(CallError::Garbled { status: 200 })),
            Err(CallError::Refused(refusal)) if is_refused(&asked, refusal.problem.results.as_deref()) => {
                let answers = refusal.problem.results.unwrap_or_default();
                self.learn_refusal(&asked, &answers);
                Err(SettleError::Refused(answers))
            }
            Err(error) => {
                asked.held.iter().flatten().for_each(|held| held.unreport());
                Err(SettleError::Call(error))
            }
        }
    }

    fn learn_refusal(&self, asked: &Asked, answers: &[SettledItem]) {
        // What stands behind one that goes back comes back with it, and is refused for that alone.
        let one_goes_back = asked.request.results.iter().any(|sent| goes_back(sent.outcome));
        for ((sent, held), settled) in asked.results().zip(answers) {
            let Some(held) = held else { continue };
            held.unreport();
            if settled.status == SettleStatus::Ok {
                continue;
            }
            held.lose();
            // That it has expired is written only by a settlement that is not refused: one of its own.
            if sent.outcome == WireOutcome::Begin
                && matches!(settled.state.as_str(), "expired" | "in_doubt")
                && !one_goes_back
            {
                self.settler().tell(item(held.id, &held.token, WireOutcome::Begin), Arc::clone(held));
            }
        }
    }
}

fn is_refused(asked: &Asked, answers: Option<&[SettledItem]>) -> bool {
    answers.is_some_and(|answers| in_step(&asked.request.results, answers))
}

fn learn(sent: &SettleItem, held: Option<&Arc<Held>>, settled: &SettledItem) {
    let Some(held) = held else { return };
    match (settled.status, sent.outcome) {
        (SettleStatus::Ok, WireOutcome::Begin) => held.begin(),
        (SettleStatus::Ok, _) => {}
        (SettleStatus::Stale, _) => held.lose(),
    }
}

fn ends_lease(outcome: WireOutcome) -> bool {
    match outcome {
        WireOutcome::Begin | WireOutcome::Extend | WireOutcome::Wake => false,
        WireOutcome::Sent
        | WireOutcome::Delivered
        | WireOutcome::InDoubt
        | WireOutcome::Retry
        | WireOutcome::Reject
        | WireOutcome::Release => true,
    }
}

fn goes_back(outcome: WireOutcome) -> bool {
    match outcome {
        WireOutcome::InDoubt | WireOutcome::Retry | WireOutcome::Release => true,
        WireOutcome::Begin
        | WireOutcome::Sent
        | WireOutcome::Delivered
        | WireOutcome::Reject
        | WireOutcome::Extend
        | WireOutcome::Wake => false,
    }
}

#[cfg(test)]
mod tests;
