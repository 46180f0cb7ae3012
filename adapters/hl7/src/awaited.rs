//! Messages whose acknowledgement is still to come, by their control id, whichever connection brings it.
//!
//! A message is expected from before its bytes leave. Once the partner has accepted it (CA) and its application
//! acknowledgement is what counts, the delivery is `sent`: its lease is kept in adapter state, committed with that, so that
//! the acknowledgement settles it after a restart too. It must never settle a message that the acknowledgement does not
//! name, nor one of two that it could mean.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::{Delivery, Evidence, Lease, Outcome, Session, SettleError, Settlement, Stop};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use crate::header::AckCode;

/// Most messages at a time of which a partner owes an application acknowledgement; further ones are not sent before.
pub(crate) const AWAITED_MAX: usize = 4096;
const STATE_PREFIX: &str = "await/";
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// After its deadline has passed, the gateway has surely moved on.
const GRACE: Duration = Duration::from_secs(60);

/// The partner's answer to one of our messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: AckCode,
    /// MSA-2 as it came.
    pub(crate) control_id: Vec<u8>,
    /// ERR: the code of table 0357, where the answer has one.
    pub(crate) error: Option<String>,
    pub(crate) body: Bytes,
}

/// What an answer means for its delivery.
pub(crate) type Judge = dyn Fn(&Answer) -> Outcome + Send + Sync;

/// Shared by everything that reads what partners send.
pub(crate) struct Awaited {
    waiting: Mutex<HashMap<Vec<u8>, Vec<Waiting>>>,
    places: Arc<Semaphore>,
    late: mpsc::UnboundedSender<Late>,
    session: Session,
}

struct Waiting {
    lease: Lease,
    stage: Stage,
    _place: OwnedSemaphorePermit,
}

enum Stage {
    /// Somebody is sending it, and hears of its answer from another connection here.
    Sending(Option<oneshot::Sender<(Answer, Settling)>>),
    /// The delivery is `sent`; the gateway waits for its proof until then.
    Sent { until: OffsetDateTime },
}

/// Dropped when the gateway has said its last word on an answer, for whoever has brought that.
type Settling = oneshot::Sender<()>;

/// An answer to a delivery that is `sent`.
struct Late {
    lease: Lease,
    answer: Answer,
    _settling: Settling,
}

/// An answer that somebody was waiting for.
pub(crate) struct Taken(oneshot::Receiver<()>);

impl Taken {
    /// Comes back once the gateway has what the answer says: before that its sender must not be told that it may forget it.
    pub(crate) async fn settled(self) {
        // Nothing is ever sent.
        let _ = self.0.await;
    }
}

/// What adapter state holds of a `sent` delivery.
#[derive(Serialize, Deserialize)]
struct Kept {
    control_id: Vec<u8>,
    lease: Lease,
    /// Seconds since 1970.
    until: i64,
}

/// The task that settles late answers; ends once everybody who reads what partners send has ended.
pub(crate) struct LateDesk {
    awaited: std::sync::Weak<Awaited>,
    session: Session,
    late: mpsc::UnboundedReceiver<Late>,
    judge: Box<Judge>,
}

impl Awaited {
    /// With what earlier sessions were still waiting for.
    pub(crate) fn open(session: Session, judge: Box<Judge>) -> (Arc<Self>, LateDesk) {
        // Unbounded in form only: each message that is waited for is answered here once at most.
        let (sender, late) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(AWAITED_MAX));
        let waiting = restore(session.state(), &places);
        let awaited =
            Arc::new(Self { waiting: Mutex::new(waiting), places, late: sender, session: session.clone() });
        let desk = LateDesk { awaited: Arc::downgrade(&awaited), session, late, judge };
        (awaited, desk)
    }

    /// To be called before the first byte leaves. Waits while partners owe too many answers.
    pub(crate) async fn expect(self: &Arc<Self>, control_id: &[u8], delivery: &Delivery) -> Option<Ticket> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let lease = delivery.lease();
        let (sender, answer) = oneshot::channel();
        let waiting = Waiting { lease: lease.clone(), stage: Stage::Sending(Some(sender)), _place: place };
        let mut all = self.lock();
        let same = all.entry(control_id.to_vec()).or_default();
        // An earlier attempt at the same delivery is over.
        same.retain(|other| other.lease.delivery != lease.delivery);
        same.push(waiting);
        drop(all);
        let (awaited, control_id) = (Arc::clone(self), control_id.to_vec());
        Some(Ticket { awaited, control_id, lease, answer, settling: None })
    }

    /// An answer that came where nobody waits for exactly it. `None` when it is nobody's, or could be of several.
    pub(crate) fn offer(&self, answer: Answer) -> Option<Taken> {
        let (settling, settled) = oneshot::channel();
        self.give(answer, settling).then_some(Taken(settled))
    }

    fn give(&self, answer: Answer, settling: Settling) -> bool {
        let mut all = self.lock();
        let Some(same) = all.get_mut(&answer.control_id) else { return false };
        let [one] = same.as_mut_slice() else {
            tracing::warn!(messages = same.len(), "an answer could be to any of these; it settles none");
            return false;
        };
        match &mut one.stage {
            Stage::Sending(sender) => match sender.take() {
                Some(sender) => sender.send((answer, settling)).is_ok(),
                None => false,
            },
            // The partner has said already that it has the message.
            Stage::Sent { .. } if answer.code == AckCode::Ca => true,
            Stage::Sent { .. } => {
                let late = Late { lease: one.lease.clone(), answer, _settling: settling };
                all.remove(&late.answer.control_id);
                self.late.send(late).is_ok()
            }
        }
    }

    pub(crate) fn stop(&self) -> Stop {
        self.session.stop()
    }

    fn forget(&self, control_id: &[u8], lease: &Lease) {
        let mut all = self.lock();
        if let Some(same) = all.get_mut(control_id) {
            same.retain(|waiting| waiting.lease != *lease);
            if same.is_empty() {
                all.remove(control_id);
            }
        }
    }

    /// The leases whose time has passed; they are not waited for any more.
    fn overdue(&self, now: OffsetDateTime) -> Vec<Lease> {
        let mut overdue = Vec::new();
        self.lock().retain(|_, same| {
            same.retain(|waiting| {
                let over = matches!(waiting.stage, Stage::Sent { until } if until + GRACE < now);
                if over {
                    overdue.push(waiting.lease.clone());
                }
                !over
            });
            !same.is_empty()
        });
        overdue
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Vec<Waiting>>> {
        // Each change is one step, so a panic elsewhere leaves nothing half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message that is being sent. Dropped, it is not waited for any more.
pub(crate) struct Ticket {
    awaited: Arc<Awaited>,
    control_id: Vec<u8>,
    lease: Lease,
    answer: oneshot::Receiver<(Answer, Settling)>,
    /// Of the answer that another connection has brought.
    settling: Option<Settling>,
}

impl Ticket {
    /// The answer, if another connection brings it.
    pub(crate) async fn answer(&mut self) -> Answer {
        match (&mut self.answer).await {
            Ok((answer, settling)) => {
                self.settling = Some(settling);
                answer
            }
            // Its place was taken by a newer attempt, which ends this one's lease.
            Err(_) => std::future::pending().await,
        }
    }

    /// Settles it here where another connection has brought its answer, so that this one can say so there.
    pub(crate) async fn settle(self, delivery: &Delivery, outcome: Outcome) -> Outcome {
        if self.settling.is_none() {
            return outcome;
        }
        let mut settlement = Settlement::default();
        settlement.outcome(delivery, outcome);
        match self.awaited.session.settle(settlement).await {
            Ok(_) => Outcome::Settled,
            Err(error) => {
                tracing::warn!(delivery = %delivery.id(), %error, "answered by the partner, but the lease is over");
                Outcome::LeaseLost
            }
        }
    }

    /// The partner has accepted it: the delivery is `sent`, and its answer settles it until `within` has passed.
    pub(crate) async fn sent(
        mut self,
        delivery: &Delivery,
        evidence: Evidence,
        within: Duration,
    ) -> Result<(), SettleError> {
        let until = OffsetDateTime::now_utc() + within;
        let kept = Kept {
            control_id: self.control_id.clone(),
            lease: self.lease.clone(),
            until: until.unix_timestamp(),
        };
        let mut settlement = Settlement::default();
        settlement.outcome(delivery, Outcome::Sent { evidence, within });
        // What is kept has no part that JSON cannot say.
        settlement.state.set(state_key(&self.lease), serde_json::to_vec(&kept).unwrap_or_default());
        self.awaited.session.settle(settlement).await?;
        let mut all = self.awaited.lock();
        let own = all
            .get_mut(&self.control_id)
            .and_then(|same| same.iter_mut().find(|waiting| waiting.lease == self.lease));
        if let Some(own) = own {
            own.stage = Stage::Sent { until };
        }
        drop(all);
        // It may have come over another connection while that was being written.
        if let Ok((answer, settling)) = self.answer.try_recv() {
            self.awaited.give(answer, settling);
        }
        // Kept, not forgotten.
        self.control_id.clear();
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.control_id.is_empty() {
            self.awaited.forget(&self.control_id, &self.lease);
        }
    }
}

impl LateDesk {
    pub(crate) async fn run(mut self) {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                late = self.late.recv() => match late {
                    Some(late) => self.settle(late).await,
                    None => return,
                },
                _ = sweep.tick() => {
                    let Some(awaited) = self.awaited.upgrade() else { continue };
                    let overdue = awaited.overdue(OffsetDateTime::now_utc());
                    drop(awaited);
                    for lease in overdue {
                        self.drop_state(&lease).await;
                    }
                }
            }
        }
    }

    async fn settle(&self, Late { lease, answer, _settling }: Late) {
        let mut settlement = Settlement::default();
        settlement.late(&lease, (self.judge)(&answer));
        settlement.state.delete(state_key(&lease));
        match self.session.settle(settlement).await {
            Ok(_) => {
                tracing::info!(delivery = %lease.delivery, code = answer.code.as_str(), "its application acknowledgement has come");
            }
            Err(error) => {
                tracing::warn!(delivery = %lease.delivery, %error, "its application acknowledgement comes too late");
                self.drop_state(&lease).await;
            }
        }
    }

    async fn drop_state(&self, lease: &Lease) {
        let mut settlement = Settlement::default();
        settlement.state.delete(state_key(lease));
        if let Err(error) = self.session.settle(settlement).await {
            // The next session drops it by its deadline.
            tracing::warn!(%error, "cannot forget a message that is not waited for any more");
        }
    }
}

fn state_key(lease: &Lease) -> String {
    format!("{STATE_PREFIX}{}", lease.delivery)
}

fn restore(state: &BTreeMap<String, Vec<u8>>, places: &Arc<Semaphore>) -> HashMap<Vec<u8>, Vec<Waiting>> {
    let mut all: HashMap<Vec<u8>, Vec<Waiting>> = HashMap::new();
    for (key, value) in state.iter().filter(|(key, _)| key.starts_with(STATE_PREFIX)) {
        let kept = serde_json::from_slice::<Kept>(value).ok();
        let kept = kept.and_then(|kept| Some((OffsetDateTime::from_unix_timestamp(kept.until).ok()?, kept)));
        let Some((until, kept)) = kept else {
            tracing::warn!(key, "the state of a sent message cannot be read; its delivery will be in doubt");
            continue;
        };
        // There are no more than there were places, or the rest is left to its deadline.
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { break };
        let waiting = Waiting { lease: kept.lease, stage: Stage::Sent { until }, _place: place };
        all.entry(kept.control_id).or_default().push(waiting);
    }
    all
}
