//! Messages whose acknowledgement is still to come, by their control id, whichever connection brings it.
//!
//! A message is expected from before its bytes leave. Once the partner has accepted it (CA) and its application
//! acknowledgement is what counts, the delivery is `sent`: its lease is kept in adapter state, committed with that, so that
//! the acknowledgement settles it after a restart too. It must never settle a message that the acknowledgement does not
//! name, nor one of two that it could mean, nor one that went to somebody else than who answers.

mod kept;
mod late;
mod places;
mod ticket;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::{Delivery, Lease, Outcome, Session, Stop, digest};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::kept::restore;
pub(crate) use self::late::LateDesk;
#[cfg(test)]
pub(crate) use self::places::AWAITED_MAX;
use self::places::{Place, Places};
pub(crate) use self::ticket::Ticket;
use crate::header::AckCode;
use crate::peer::{Answerers, Peer};
use crate::quiet::Quiet;
use crate::settings::Settings;

/// After its deadline has passed, the gateway has surely moved on.
const GRACE: Duration = Duration::from_secs(60);

/// Answers of one message that other connections bring: an accept acknowledgement and the application's.
const ANSWERS_MAX: usize = 2;

/// A control id, which is foreign and of any length, by its digest.
type Id = String;

/// The partner's answer to one of our messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: AckCode,
    /// MSA-2 as it came.
    pub(crate) control_id: Vec<u8>,
    /// ERR: the code of table 0357, where the answer has one.
    pub(crate) error: Option<String>,
    /// MSA-4, where it has one.
    pub(crate) expected: Option<i64>,
    pub(crate) body: Bytes,
}

/// What an answer means for its delivery; where there are several partners, the answer of this one.
pub(crate) type Judge = dyn Fn(Option<&str>, &Answer) -> Outcome + Send + Sync;

/// Where an answer came from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From<'a> {
    /// Over a connection that we made to the partner; where there are several, to this one.
    Partner(Option<&'a str>),
    /// Over a connection that was made to us; by this one of several partners, where it is known.
    Caller(&'a Peer, Option<&'a str>),
}

/// Shared by everything that reads what partners send.
pub(crate) struct Awaited {
    all: Mutex<All>,
    places: Places,
    late: mpsc::UnboundedSender<Late>,
    answerers: Answerers,
    unclear: Mutex<Quiet>,
    crowded: Mutex<Quiet>,
    session: Session,
}

struct All {
    waiting: HashMap<Id, Vec<Waiting>>,
    /// Keys of state that nothing waits for any more.
    over: Vec<String>,
}

struct Waiting {
    lease: Lease,
    /// Whom it is for, where there are several partners.
    partner: Option<String>,
    /// Where it went.
    peer: Option<Peer>,
    stage: Stage,
    _place: Option<Place>,
}

enum Stage {
    /// Somebody is sending it, and hears of its answers from other connections here.
    Sending { answers: mpsc::Sender<(Answer, Settling)>, accepted: bool, applied: bool },
    /// The delivery is `sent`, and kept under this key of state; the gateway waits for its proof until then.
    Sent { until: OffsetDateTime, key: String },
}

impl Stage {
    /// The partner's application may answer it any time.
    fn is_accepted(&self) -> bool {
        matches!(self, Self::Sending { accepted: true, .. } | Self::Sent { .. })
    }
}

/// Dropped when the gateway has said its last word on an answer, for whoever has brought that.
type Settling = oneshot::Sender<()>;

/// An answer to a delivery that is `sent`.
struct Late {
    lease: Lease,
    key: String,
    partner: Option<String>,
    answer: Answer,
    _settling: Settling,
}

/// An answer that somebody was waiting for.
pub(crate) struct Taken(oneshot::Receiver<()>);

impl Taken {
    /// Comes back once the gateway has what the answer says: before that its sender must not be told that it may forget it. May be
    /// dropped while it waits, and asked again.
    pub(crate) async fn settled(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.0).await;
    }
}

impl Awaited {
    /// With what earlier sessions were still waiting for.
    pub(crate) fn open(session: Session, settings: &Settings, judge: Box<Judge>) -> (Arc<Self>, LateDesk) {
        // Unbounded in form only: each message that is waited for is answered here once at most.
        let (sender, late) = mpsc::unbounded_channel();
        let places = Places::new(settings);
        let (waiting, over) = restore(session.state(), &places);
        let awaited = Arc::new(Self {
            all: Mutex::new(All { waiting, over }),
            places,
            late: sender,
            answerers: settings.answerers(),
            unclear: Mutex::default(),
            crowded: Mutex::default(),
            session: session.clone(),
        });
        let desk = LateDesk { awaited: Arc::downgrade(&awaited), session, late, judge };
        (awaited, desk)
    }

    /// To be called before the first byte leaves, to this one of several partners. Waits while that partner owes as many answers as
    /// it may.
    pub(crate) async fn expect(
        self: &Arc<Self>,
        control_id: &[u8],
        delivery: &Delivery,
        partner: Option<&str>,
    ) -> Option<Ticket> {
        let place = match self.places.try_take(partner) {
            Some(place) => place,
            None => {
                self.tell_crowded(partner);
                self.places.take(partner).await?
            }
        };
        let (id, lease) = (digest(control_id), delivery.lease());
        let (sender, answers) = mpsc::channel(ANSWERS_MAX);
        let stage = Stage::Sending { answers: sender, accepted: false, applied: false };
        let partner = partner.map(str::to_owned);
        let waiting = Waiting {
            lease: lease.clone(),
            partner: partner.clone(),
            peer: None,
            stage,
            _place: Some(place),
        };
        let mut all = self.lock();
        let All { waiting: by_id, over } = &mut *all;
        let same = by_id.entry(id.clone()).or_default();
        // An earlier attempt at the same delivery is over.
        let earlier = same.extract_if(.., |other| other.lease.delivery == lease.delivery);
        over.extend(earlier.filter_map(|earlier| earlier.key()));
        same.push(waiting);
        drop(all);
        Some(Ticket { awaited: Arc::clone(self), id, lease, partner, answers, settling: None })
    }

    /// An answer that came where nobody waits for exactly it. `None` when it is nobody's, or could be of several.
    pub(crate) fn offer(&self, answer: Answer, from: From<'_>) -> Option<Taken> {
        let (settling, settled) = oneshot::channel();
        self.give(answer, from, settling).then_some(Taken(settled))
    }

    /// Whether an answer would be taken now.
    pub(crate) fn awaits(&self, answer: &Answer, from: From<'_>) -> bool {
        let mut all = self.lock();
        let same = all.waiting.get_mut(&digest(&answer.control_id));
        let one = same.and_then(|same| self.only_one(same, from));
        one.is_some_and(|one| match &one.stage {
            Stage::Sending { accepted, applied, .. } => {
                !if answer.is_accept() { *accepted } else { *applied }
            }
            Stage::Sent { .. } => true,
        })
    }

    fn give(&self, answer: Answer, from: From<'_>, settling: Settling) -> bool {
        let id = digest(&answer.control_id);
        let mut all = self.lock();
        let Some(same) = all.waiting.get_mut(&id) else { return false };
        let Some(one) = self.only_one(same, from) else { return false };
        let lease = one.lease.clone();
        match &mut one.stage {
            Stage::Sending { answers, accepted, applied } => {
                let heard = if answer.is_accept() { accepted } else { applied };
                // The same word twice: whoever is sending has it, and there must be room for the other one.
                !std::mem::replace(heard, true) && answers.try_send((answer, settling)).is_ok()
            }
            // The partner has said already that it has the message.
            Stage::Sent { .. } if answer.code == AckCode::Ca => true,
            Stage::Sent { key, .. } => {
                let (key, partner) = (std::mem::take(key), one.partner.take());
                let late = Late { lease, key, partner, answer, _settling: settling };
                all.remove(&id, &late.lease);
                self.late.send(late).is_ok()
            }
        }
    }

    /// The one message of these that an answer from there can mean.
    fn only_one<'a>(&self, same: &'a mut [Waiting], from: From<'_>) -> Option<&'a mut Waiting> {
        let may = |waiting: &&mut Waiting| match from {
            From::Partner(partner) => waiting.partner.as_deref() == partner,
            // Whose answers it gives says its name, and whether it may give any the list.
            From::Caller(peer, Some(partner)) => {
                waiting.partner.as_deref() == Some(partner) && self.answerers.admit(peer)
            }
            From::Caller(peer, None) => self.answerers.include(peer, waiting.peer.as_ref()),
        };
        let mut those = same.iter_mut().filter(may);
        match (those.next(), those.next()) {
            (Some(one), None) => Some(one),
            (Some(_), Some(_)) => {
                self.tell("it could be to several");
                None
            }
            (None, _) => {
                self.tell("it comes from somebody else than the message went to (`answers_from`)");
                None
            }
        }
    }

    /// Of an answer that settles nothing though its message waits.
    fn tell(&self, reason: &str) {
        let mut unclear = self.unclear.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answers) = unclear.count(Instant::now()) {
            tracing::warn!(answers, reason, "an answer to a message that waits settles nothing");
        }
    }

    fn tell_crowded(&self, partner: Option<&str>) {
        let mut crowded = self.crowded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(messages) = crowded.count(Instant::now()) {
            let owed = self.owed_max();
            tracing::warn!(
                messages,
                partner,
                owed,
                "a partner owes as many acknowledgements as it may: its messages wait"
            );
        }
    }

    /// As many answers as one partner may owe.
    pub(crate) fn owed_max(&self) -> usize {
        self.places.share()
    }

    pub(crate) fn stop(&self) -> Stop {
        self.session.stop()
    }

    /// The keys of what is not waited for any more: its time has passed, or a new attempt took its place.
    fn take_over(&self, now: OffsetDateTime) -> Vec<String> {
        let mut all = self.lock();
        let All { waiting, over } = &mut *all;
        waiting.retain(|_, same| {
            let overdue = |waiting: &mut Waiting| {
                matches!(waiting.stage, Stage::Sent { until, .. } if until + GRACE < now)
            };
            over.extend(same.extract_if(.., overdue).filter_map(|waiting| waiting.key()));
            !same.is_empty()
        });
        std::mem::take(over)
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        // Each change is one step, so a panic elsewhere leaves nothing half done.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn remove(&mut self, id: &Id, lease: &Lease) {
        if let Some(same) = self.waiting.get_mut(id) {
            same.retain(|waiting| waiting.lease != *lease);
            if same.is_empty() {
                self.waiting.remove(id);
            }
        }
    }

    fn find(&mut self, id: &Id, lease: &Lease) -> Option<&mut Waiting> {
        self.waiting.get_mut(id)?.iter_mut().find(|waiting| waiting.lease == *lease)
    }
}

impl Waiting {
    fn key(self) -> Option<String> {
        match self.stage {
            Stage::Sending { .. } => None,
            Stage::Sent { key, .. } => Some(key),
        }
    }
}

impl Answer {
    /// An accept acknowledgement: the partner has it, or has it not; what its application says is another matter.
    pub(crate) fn is_accept(&self) -> bool {
        matches!(self.code, AckCode::Ca | AckCode::Ce | AckCode::Cr)
    }
}
