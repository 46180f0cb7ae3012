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

use crate::client::{Call, CallError};
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
            return Err(SettleError::OverLimit { what: "bytes of state in all", max: STATE_BYTES_MAX });
        }
        let state = settlement.state.clone();
        let asked = settlement.into_request(self.epoch())?;
        let call =
            Call::post_json("/v1/settle", &asked.request, SETTLE_DEADLINE).map_err(SettleError::Call)?;
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
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::evidence::Evidence;
    use crate::testing::{Gateway, leased};
    use gatepost_api::settle::Level;

    /// A gateway whose adapter has these in hand.
    async fn in_hand(count: u128) -> (Gateway, Session, crate::Pipeline, Vec<Delivery>) {
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
        let mut pipeline = session.pipeline(64);
        let leases: Vec<Value> = (1..=count).map(|number| leased(number, Some("k"))).collect();
        gateway.lease(&leases).await;
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(pipeline.next().await.unwrap());
        }
        (gateway, session, pipeline, taken)
    }

    fn settle(
        session: &Session,
        settlement: Settlement,
    ) -> tokio::task::JoinHandle<Result<SettleResponse, SettleError>> {
        let session = session.clone();
        tokio::spawn(async move { session.settle(settlement).await })
    }

    fn sent() -> Outcome {
        Outcome::Sent { evidence: Evidence::new(Level::Sent), within: Duration::from_secs(60) }
    }

    fn delivered() -> Outcome {
        Outcome::Delivered { evidence: Evidence::new(Level::Transport), reply: None }
    }

    #[tokio::test]
    async fn begins_outcomes_messages_and_state_go_together() {
        let (mut gateway, session, _pipeline, taken) = in_hand(3).await;
        let mut first = Settlement::default();
        first.begin(&taken[0]);
        first.state.set("out/7", *b"8=FIX");
        let settling = settle(&session, first);
        let call = gateway.next("/v1/settle").await;
        assert_eq!(call.outcomes(), [("t1", "begin")]);
        assert_eq!(call.body["state"], json!({"out/7": "OD1GSVg="}));
        call.settled("ok");
        settling.await.unwrap().unwrap();

        let mut second = Settlement::default();
        second.outcome(&taken[0], sent());
        second.begin(&taken[1]);
        second.begin(&taken[2]);
        second.emit(
            serde_json::from_value(json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"}))
                .unwrap(),
        );
        let settling = settle(&session, second);
        let call = gateway.next("/v1/settle").await;
        assert_eq!(call.outcomes(), [("t1", "sent"), ("t2", "begin"), ("t3", "begin")]);
        assert_eq!(call.body["results"][0]["after_ms"], 60_000);
        assert_eq!((&call.body["emit"][0]["id"], &call.body["epoch"]), (&json!("1"), &json!(7)));
        call.settled("ok");
        assert_eq!(settling.await.unwrap().unwrap().results.len(), 3);
    }

    #[tokio::test]
    async fn of_a_refused_one_the_stale_are_lost_and_the_others_still_in_hand() {
        let (mut gateway, session, _pipeline, mut taken) = in_hand(3).await;
        let mut settlement = Settlement::default();
        settlement.begin(&taken[0]);
        settlement.begin(&taken[1]);
        settlement.outcome(&taken[2], Outcome::reject("no"));
        settlement.state.set("seq", *b"9");
        let settling = settle(&session, settlement);
        gateway.next("/v1/settle").await.refused(&[("ok", "sending"), ("stale", "expired"), ("ok", "dead")]);
        let Err(SettleError::Refused(answers)) = settling.await.unwrap() else { panic!("not refused") };
        assert_eq!(answers[1].state, "expired");
        let lost: Vec<bool> = taken.iter().map(Delivery::is_lost).collect();
        assert_eq!(lost, [false, true, false]);
        // Its expiry is written by a begin of its own, without the state that was refused.
        let alone = gateway.next("/v1/settle").await;
        assert_eq!((alone.outcomes(), &alone.body["state"]), (vec![("t2", "begin")], &Value::Null));
        alone.settled("stale");
        // The third's outcome was not taken either: it can be settled again.
        let mut again = Settlement::default();
        again.begin(&taken[0]);
        again.outcome(&taken[2], Outcome::reject("no"));
        let settling = settle(&session, again);
        let call = gateway.next("/v1/settle").await;
        assert_eq!(call.outcomes(), [("t1", "begin"), ("t3", "reject")]);
        call.settled("ok");
        settling.await.unwrap().unwrap();
        taken.clear();
        let other = tokio::time::timeout(Duration::from_millis(50), gateway.next("/v1/settle")).await;
        assert!(other.is_err(), "what is settled or lost was given back");
    }

    #[tokio::test]
    async fn what_stands_behind_one_that_goes_back_is_not_begun_by_itself() {
        let (mut gateway, session, _pipeline, taken) = in_hand(2).await;
        let mut settlement = Settlement::default();
        settlement.outcome(&taken[0], Outcome::in_doubt("broken off"));
        settlement.begin(&taken[1]);
        settlement.all_or_nothing();
        let settling = settle(&session, settlement);
        let call = gateway.next("/v1/settle").await;
        assert_eq!(call.body["atomic"], true);
        call.refused(&[("ok", "in_doubt"), ("stale", "in_doubt")]);
        assert!(matches!(settling.await.unwrap(), Err(SettleError::Refused(_))));
        let other = tokio::time::timeout(Duration::from_millis(50), gateway.next("/v1/settle")).await;
        assert!(other.is_err(), "begun without its adapter");
    }

    #[tokio::test]
    async fn late_proof_settles_with_what_state_remembers() {
        let (_gateway, _session, _pipeline, taken) = in_hand(1).await;
        let remembered = serde_json::to_vec(&taken[0].lease()).unwrap();
        let (mut later, session) = Gateway::open(json!({"epoch": 8})).await;
        let mut settlement = Settlement::default();
        settlement.late(&serde_json::from_slice(&remembered).unwrap(), delivered());
        settlement.state.delete("out/1");
        let settling = settle(&session, settlement);
        let call = later.next("/v1/settle").await;
        assert_eq!((call.outcomes(), &call.body["epoch"]), (vec![("t1", "delivered")], &json!(8)));
        call.settled("ok");
        settling.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn over_a_gateways_restart_the_same_is_said_again() {
        let (mut gateway, session, _pipeline, taken) = in_hand(1).await;
        let mut settlement = Settlement::default();
        settlement.begin(&taken[0]);
        settlement.state.set("seq", *b"9");
        let settling = settle(&session, settlement);
        let first = gateway.next("/v1/settle").await;
        let said = first.body.clone();
        gateway.vanish();
        first.hang_up();
        tokio::time::sleep(Duration::from_millis(100)).await;
        gateway.come_back();
        let again = gateway.next("/v1/settle").await;
        assert_eq!(again.body, said);
        again.settled("ok");
        settling.await.unwrap().unwrap();
        assert!(!taken[0].is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn no_prolonging_overtakes_sent() {
        let (mut gateway, session, _pipeline, taken) = in_hand(1).await;
        let extend = gateway.next("/v1/settle").await;
        assert_eq!(extend.outcomes(), [("t1", "extend")]);
        let mut settlement = Settlement::default();
        settlement.outcome(&taken[0], sent());
        let settling = settle(&session, settlement);
        let early = tokio::time::timeout(Duration::from_secs(5), gateway.next("/v1/settle")).await;
        assert!(early.is_err(), "`sent` beside a prolonging that is on its way");
        extend.settled("ok");
        let call = gateway.next("/v1/settle").await;
        assert_eq!(call.outcomes(), [("t1", "sent")]);
        call.settled("ok");
        settling.await.unwrap().unwrap();
        let later = tokio::time::timeout(Duration::from_secs(60), gateway.next("/v1/settle")).await;
        assert!(later.is_err(), "prolonged after `sent`");
    }

    #[tokio::test]
    async fn what_is_tried_once_says_that_it_was_not_taken_now() {
        let (mut gateway, session, _pipeline, _taken) = in_hand(1).await;
        let trying = tokio::spawn({
            let session = session.clone();
            async move {
                let mut settlement = Settlement::default();
                settlement.state.set("seq", *b"9");
                session.try_settle(settlement).await
            }
        });
        gateway.next("/v1/settle").await.answer_problem("queue_full");
        let Err(SettleError::Call(error)) = trying.await.unwrap() else { panic!("taken") };
        assert!(error.retryable());
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_superseded_session_everything_is_lost_and_nobody_waits_for_ever() {
        let (mut gateway, session, _pipeline, taken) = in_hand(1).await;
        let extend = gateway.next("/v1/settle").await;
        assert_eq!(extend.outcomes(), [("t1", "extend")]);
        let mut settlement = Settlement::default();
        settlement.outcome(&taken[0], sent());
        let settling = settle(&session, settlement);
        extend.answer_problem("superseded");
        gateway.superseded().await;
        assert!(taken[0].is_lost(), "its bytes might still leave");
        gateway.next("/v1/settle").await.answer_problem("superseded");
        assert!(settling.await.unwrap().is_err());
    }

    #[tokio::test]
    async fn what_the_gateway_would_refuse_as_too_much_is_told_before() {
        let (_gateway, session, _pipeline, taken) = in_hand(1).await;
        let refused = async |change: &dyn Fn(&mut Settlement)| {
            let mut settlement = Settlement::default();
            change(&mut settlement);
            session.settle(settlement).await.unwrap_err().to_string()
        };
        let too_many = |settlement: &mut Settlement| {
            (0..=STATE_KEYS_MAX).for_each(|number| settlement.state.set(format!("k{number}"), *b"1"));
        };
        assert_eq!(refused(&too_many).await, "keys of state: 1000 at most");
        let long = refused(&|settlement| settlement.state.set("k".repeat(257), *b"1")).await;
        assert_eq!(long, "bytes in a key of state: 256 at most");
        let large =
            refused(&|settlement| settlement.state.set("k", vec![0; STATE_VALUE_BYTES_MAX + 1])).await;
        assert_eq!(large, "bytes in a value of state: 1048576 at most");
        let nameless = refused(&|settlement| settlement.state.set("", *b"1")).await;
        assert_eq!(nameless, "a key of state is empty");
        let many = |settlement: &mut Settlement| {
            (0..60).for_each(|number| {
                settlement.state.set(format!("k{number}"), vec![0; STATE_VALUE_BYTES_MAX])
            });
        };
        assert_eq!(refused(&many).await, "bytes of state in all: 33554432 at most");
        let twice = |settlement: &mut Settlement| {
            settlement.begin(&taken[0]);
            settlement.outcome(&taken[0], delivered());
        };
        assert!(refused(&twice).await.ends_with("stands in a settlement twice"));
    }
}
