//! The sender's numbers as this process has them, and what operators can do about them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gatepost_adapter::{
    Delivery, Failure, LeaseLost, Offer, OperatorCall, Session, Settlement, StateChanges,
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::header::{AckCode, SEQUENCE_NUMBER_MAX};
use crate::sequence::outgoing::{Judged, Mismatch, Outgoing};
use crate::sequence::{ANY, OnMismatch};

const STATE_KEY: &str = "sequence/out";

/// Shared by the one connection that sends, and by operators' calls.
pub(crate) struct Numbers {
    session: Session,
    on_mismatch: OnMismatch,
    known: Mutex<Known>,
}

struct Known {
    /// As it is durable; `None` before the first transaction.
    outgoing: Option<Outgoing>,
    /// The partner has said what it expects since the session began, or since something did not fit.
    in_step: bool,
    /// The partner is to be told to forget its numbers first.
    resynchronise: bool,
    /// What it expected when that did not fit.
    mismatch: Option<Mismatch>,
    /// A delivery has the number in hand: operators wait.
    in_hand: bool,
}

/// The number of one attempt. Dropped, operators may change the numbers again.
pub(crate) struct Given {
    numbers: Arc<Numbers>,
    outgoing: Outgoing,
    /// Bytes of the same delivery may have left under this number before.
    was_sent: bool,
}

/// What is to be said before a delivery may have its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Which number is expected?
    Expected,
    /// Forget yours.
    Resynchronise,
}

impl Ask {
    /// MSH-13.
    pub(crate) fn number(self) -> &'static str {
        match self {
            Self::Expected => "0",
            Self::Resynchronise => "-1",
        }
    }
}

impl Numbers {
    pub(crate) fn open(session: &Session, on_mismatch: OnMismatch) -> Result<Arc<Self>, Failure> {
        if !session.is_strictly_ordered() {
            return Err(Failure::new("sequence numbers cannot be sent", "they need `order = \"strict\"`"));
        }
        let kept = session.state().get(STATE_KEY).map(|value| serde_json::from_slice(value)).transpose();
        // Beginning anew would give numbers to other contents.
        let outgoing =
            kept.map_err(|error| Failure::new("the sequence number in adapter state is unreadable", error))?;
        let known = Known { outgoing, in_step: false, resynchronise: false, mismatch: None, in_hand: false };
        Ok(Arc::new(Self { session: session.clone(), on_mismatch, known: Mutex::new(known) }))
    }

    /// What must be asked before this delivery can be sent, if anything.
    pub(crate) fn ask(&self, delivery: Uuid) -> Option<Ask> {
        let known = self.lock();
        if known.resynchronise {
            return Some(Ask::Resynchronise);
        }
        let free = known.outgoing.is_some_and(|outgoing| outgoing.is_free_for(delivery));
        (!known.in_step || !free).then_some(Ask::Expected)
    }

    /// The partner's answer. An error: it does not fit, and an operator must look.
    pub(crate) fn answered(&self, ask: Ask, delivery: Uuid, expected: i64) -> Result<(), Mismatch> {
        let mut known = self.lock();
        if ask == Ask::Resynchronise && expected == ANY {
            known.resynchronise = false;
        }
        let aligned = match Outgoing::align(known.outgoing, delivery, expected) {
            Ok(aligned) => aligned,
            Err(mismatch) => {
                known.mismatch = Some(mismatch);
                match self.on_mismatch {
                    OnMismatch::Hold => return Err(mismatch),
                    OnMismatch::Adopt => {
                        tracing::warn!(%mismatch, "going on with the partner's number");
                        Outgoing::adopted(expected).ok_or(mismatch)?
                    }
                    OnMismatch::Resynchronise => {
                        tracing::warn!(%mismatch, "telling the partner to go on with ours");
                        known.resynchronise = true;
                        return Ok(());
                    }
                }
            }
        };
        known.outgoing = Some(aligned);
        known.mismatch = None;
        known.in_step = true;
        Ok(())
    }

    /// Gives the delivery its number, and begins it in the same commit: before the bytes leave, it is durable whose number that is.
    /// `None`: an operator has changed the numbers since the partner was asked.
    pub(crate) async fn give(self: &Arc<Self>, delivery: &Delivery) -> Result<Option<Given>, LeaseLost> {
        let id = delivery.id();
        let (outgoing, was_sent) = {
            let mut known = self.lock();
            // Nothing is given that has not been asked for.
            let free = known.outgoing.filter(|outgoing| known.in_step && outgoing.is_free_for(id));
            let Some(free) = free else { return Ok(None) };
            known.in_hand = true;
            (free.given_to(id), free.holder == Some(id))
        };
        let given = Given { numbers: Arc::clone(self), outgoing, was_sent };
        let mut settlement = Settlement::default();
        settlement.begin(delivery);
        settlement.state = given.changes(outgoing);
        match self.session.settle(settlement).await {
            Ok(_) => {
                self.lock().outgoing = Some(outgoing);
                Ok(Some(given))
            }
            Err(error) => {
                tracing::warn!(delivery = %id, %error, "not sent: the lease is over");
                // Whether anything was written is known to the gateway alone; the partner will say what it expects.
                self.lock().in_step = false;
                Err(LeaseLost)
            }
        }
    }

    /// Answers operators until the adapter is asked to stop.
    pub(crate) async fn answer_calls(self: Arc<Self>) {
        let session = self.session.clone();
        let offer = |name: &str, changes, about: &str| Offer {
            name: name.to_owned(),
            changes,
            about: about.to_owned(),
        };
        let offers = vec![
            offer("sequence", false, "The number of the next message, who has it, and what did not fit."),
            offer(
                "set_number",
                true,
                "Sets the number of the next message: next:=N. Whatever has the number now gets a new one when it is sent again.",
            ),
            offer(
                "resynchronise",
                true,
                "Tells the partner, before the next message, to forget its numbers and to go on with ours.",
            ),
        ];
        let answer = move |call| {
            let numbers = Arc::clone(&self);
            async move { numbers.called(call).await }
        };
        session.answer_calls(offers, answer).await;
    }

    async fn called(&self, call: OperatorCall) -> Result<Value, String> {
        match call.name.as_str() {
            "sequence" => Ok(self.shown()),
            "set_number" => {
                let number = number_of(call.arguments.into())?;
                self.take_in_hand()?;
                let outgoing = Outgoing { number, holder: None };
                let mut settlement = Settlement::default();
                settlement.state = changes(outgoing);
                let settled = self.session.settle(settlement).await;
                let mut known = self.lock();
                known.in_hand = false;
                known.in_step = false;
                settled.map_err(|error| error.to_string())?;
                known.outgoing = Some(outgoing);
                Ok(json!({"next": number}))
            }
            "resynchronise" => {
                self.lock().resynchronise = true;
                Ok(json!({"done": true}))
            }
            other => Err(format!("there is no call `{other}`")),
        }
    }

    fn shown(&self) -> Value {
        let known = self.lock();
        json!({
            "next": known.outgoing.map(|outgoing| outgoing.number),
            "delivery": known.outgoing.and_then(|outgoing| outgoing.holder),
            "in_step": known.in_step,
            "mismatch": known.mismatch.map(|mismatch| mismatch.to_string()),
        })
    }

    fn take_in_hand(&self) -> Result<(), String> {
        let mut known = self.lock();
        if known.in_hand {
            return Err(
                "a message is on its way: pause the queue, and ask again when that is settled".to_owned()
            );
        }
        known.in_hand = true;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Given {
    pub(crate) fn number(&self) -> u64 {
        self.outgoing.number
    }

    pub(crate) fn judge(&self, code: AckCode, expected: Option<i64>) -> Judged {
        self.outgoing.judge(code.is_positive(), expected, self.was_sent)
    }

    /// What adapter state says after that; to be settled with the outcome.
    pub(crate) fn state_after(&self, judged: Judged) -> StateChanges {
        self.changes(self.outgoing.after(judged))
    }

    /// It has been settled so.
    pub(crate) fn settled(self, judged: Judged) {
        let mut known = self.numbers.lock();
        known.outgoing = Some(self.outgoing.after(judged));
        if let Judged::OutOfStep(expected) = judged {
            known.in_step = false;
            known.mismatch = Some(Mismatch { next: Some(self.outgoing.number), expected });
        }
    }

    fn changes(&self, outgoing: Outgoing) -> StateChanges {
        changes(outgoing)
    }
}

impl Given {
    /// Whether it was settled is known to the gateway alone; the partner will say what it expects.
    pub(crate) fn unsettled(self) {
        self.numbers.lock().in_step = false;
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.numbers.lock().in_hand = false;
    }
}

fn changes(outgoing: Outgoing) -> StateChanges {
    let mut changes = StateChanges::default();
    // It has no part that JSON cannot say.
    changes.set(STATE_KEY, serde_json::to_vec(&outgoing).unwrap_or_default());
    changes
}

fn number_of(arguments: Value) -> Result<u64, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Arguments {
        next: u64,
    }
    let Arguments { next } = serde_json::from_value(arguments).map_err(|error| error.to_string())?;
    if (1..=SEQUENCE_NUMBER_MAX).contains(&next) {
        Ok(next)
    } else {
        Err(format!("a sequence number is from 1 to {SEQUENCE_NUMBER_MAX}"))
    }
}
