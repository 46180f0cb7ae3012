//! The delivery machine: one message to one destination, from accept to its end.
//!
//! [`Delivery::apply`] and [`Delivery::settle`] decide every transition; the store repeats their guard in its statements.
//! There is no `_` arm over states, so that a new state breaks the build. A lost race is a value ([`Settled::Stale`]),
//! not an error.

use std::time::Duration;

use crate::id::LeaseToken;
use crate::policy::{Level, OnDead, OnDoubt, QueuePolicy, RetryScope};
use crate::retry;
use crate::time::{IdleMark, Timestamp};

mod settle;
#[cfg(test)]
mod table;

pub use settle::{Outcome, OutcomeKind, Refusal, Settled};

/// A message that kills its adapter this often while it is leased alone is dead.
pub const CRASHES_MAX: u32 = 3;

/// The right to attempt a delivery until a deadline. Only the newest token counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub token: LeaseToken,
    pub until: Timestamp,
    /// The adapter's session that holds it; 0 for consumers without sessions.
    pub session: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for its turn; may be leased from `due` on.
    Waiting {
        due: Timestamp,
    },
    /// Leased, and no byte has left yet.
    Leased {
        lease: Lease,
    },
    /// Leased, and bytes may have left.
    Sending {
        lease: Lease,
        proof: Proof,
    },
    /// Bytes may have reached the partner. Without `due` it is held for a person.
    InDoubt {
        due: Option<Timestamp>,
    },
    Delivered,
    Dead {
        reason: Reason,
        holds_lane: bool,
    },
    Expired,
    Discarded,
}

/// When a sending delivery's proof is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Within the lease.
    Prompt,
    /// The adapter reported `sent`: until the lease's deadline, from this or a later session of the same adapter.
    Late,
}

/// Closed codes that say why; their free text stays in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The partner or the adapter refused the message for good.
    Rejected,
    AttemptsSpent,
    /// Older than `give_up_after`.
    GaveUp,
    /// It killed its adapter again and again.
    Poison,
    /// An operator resolved a doubt so.
    Resolved,
    /// No route takes an emitted event.
    NoRoute,
    /// A route's condition failed on an emitted event.
    RouteFailed,
    /// The adapter may not emit this type.
    TypeNotAllowed,
    /// The lease ran out.
    LeaseExpired,
    /// The proof of a sent delivery did not come in time.
    ProofOverdue,
    /// The adapter died.
    AdapterLost,
    /// The session or the gateway ended.
    SessionEnded,
    /// The adapter reported it.
    Reported,
    /// The partner cannot be reached, refuses or throttles.
    DestinationTrouble,
    /// An earlier delivery of its lane went back.
    Recalled,
    /// `expirytime` was reached.
    PastExpiry,
    /// The destination's policy has come to hold what is in doubt.
    PolicyHolds,
    /// What is stored of the message is not what was accepted.
    Corrupt,
}

/// What happens to a delivery besides outcomes that its lease holder reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Lease(Lease),
    /// The lease's deadline has passed.
    LeaseExpired,
    /// The adapter process died with the lease.
    AdapterLost,
    /// The session was ended by the gateway's own stop, death or reload.
    SessionEnded,
    /// An earlier delivery of the lane went back; later leases that have not begun are void.
    Recall,
    /// An earlier delivery of the lane went back because the lane's partner is away; later leases of which nothing has been reported are void,
    /// also those that were the begin.
    LaneAway,
    /// `expirytime` is reached.
    Expire,
    Resolve(Resolution),
    Replay,
    Discard,
    /// An operator gives it to another destination; the moment is that one's.
    Move,
    /// The message's content is not what was accepted any more.
    Damaged,
}

/// An operator's word on a delivery in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Delivered,
    Retry,
    Dead,
}

/// The event has no meaning in this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a delivery in state {state} does not take {event}")]
pub struct Illegal {
    pub state: &'static str,
    pub event: &'static str,
}

/// What the audit log must say of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Attempt,
    Sent,
    Delivered,
    Retry,
    Released,
    InDoubt,
    Dead,
    Expired,
    Resolved,
    Replayed,
    Discarded,
    Moved,
}

/// A legal change: the delivery as it is afterwards, and what the audit log must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub delivery: Delivery,
    pub record: Option<(Record, Option<Reason>)>,
}

/// The part of a delivery that the machine decides on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub state: State,
    /// Attempts charged in this series.
    pub attempts: u32,
    /// How often a person started its attempts afresh: by a replay from `dead`, or by resolving a doubt to `retry`.
    pub series: u32,
    /// Adapter deaths while it was leased as the only suspect.
    pub crashes: u32,
    /// Bytes of an attempt may have reached the partner, and nobody has said otherwise yet.
    pub doubt: bool,
    /// An adapter died with its lease: it is leased alone until its next outcome.
    pub suspect: bool,
    pub replayed: bool,
    pub expires_at: Option<Timestamp>,
    /// When this series began.
    pub born: Timestamp,
    /// How long the destination had been paused or tripped in all when this series began.
    pub idle_at_birth: IdleMark,
    /// The token and outcome that ended the last lease, of which a repetition of both is answered `ok`. While it is leased, what has been
    /// reported of it: `begin`, `sent`; or, as long as that is nothing, that its lane's partner was away before.
    pub settled: Option<(LeaseToken, OutcomeKind)>,
}

/// What a decision depends on besides the delivery itself.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    pub now: Timestamp,
    pub policy: &'a QueuePolicy,
    /// How long the destination has been paused or tripped in all, until now.
    pub idle_total: Duration,
    /// Uniform in [0, 1).
    pub jitter: f64,
}

impl Delivery {
    /// A delivery as accept makes it.
    pub fn accepted(at: Timestamp, idle_total: Duration, expires_at: Option<Timestamp>) -> Self {
        Self {
            state: State::Waiting { due: at },
            attempts: 0,
            series: 0,
            crashes: 0,
            doubt: false,
            suspect: false,
            replayed: false,
            expires_at,
            born: at,
            idle_at_birth: idle_total.into(),
            settled: None,
        }
    }

    pub fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Leased { lease } | State::Sending { lease, .. } => Some(lease),
            State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => None,
        }
    }

    pub fn past_expiry(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Decides what `event` does.
    pub fn apply(&self, event: Event, moment: &Moment<'_>) -> Result<Change, Illegal> {
        match event {
            Event::Lease(lease) => self.give(lease, moment).ok_or_else(|| self.illegal(event)),
            Event::LeaseExpired => self.unsaid().lose_by_time(moment).ok_or_else(|| self.illegal(event)),
            Event::AdapterLost => self.unsaid().lose_by_crash(moment).ok_or_else(|| self.illegal(event)),
            Event::SessionEnded => self.unsaid().lose_by_session(moment).ok_or_else(|| self.illegal(event)),
            Event::Recall => match self.state {
                State::Leased { .. } => Ok(self.unsaid().give_back(moment, Reason::Recalled)),
                State::Waiting { .. }
                | State::Sending { .. }
                | State::InDoubt { .. }
                | State::Delivered
                | State::Dead { .. }
                | State::Expired
                | State::Discarded => Err(self.illegal(event)),
            },
            Event::LaneAway => self.go_with_lane(moment).ok_or_else(|| self.illegal(event)),
            Event::Expire => match self.state {
                State::Waiting { .. } if self.past_expiry(moment.now) => Ok(self.expire()),
                State::Waiting { .. }
                | State::Leased { .. }
                | State::Sending { .. }
                | State::InDoubt { .. }
                | State::Delivered
                | State::Dead { .. }
                | State::Expired
                | State::Discarded => Err(self.illegal(event)),
            },
            Event::Resolve(resolution) => match self.state {
                State::InDoubt { .. } => Ok(self.resolve(resolution, moment)),
                State::Waiting { .. }
                | State::Leased { .. }
                | State::Sending { .. }
                | State::Delivered
                | State::Dead { .. }
                | State::Expired
                | State::Discarded => Err(self.illegal(event)),
            },
            Event::Move => self.rehome(moment).ok_or_else(|| self.illegal(event)),
            Event::Damaged => match self.state {
                State::Waiting { .. } | State::InDoubt { .. } => Ok(self.die(moment, Reason::Corrupt)),
                State::Leased { .. } | State::Sending { .. } => {
                    Ok(self.unsaid().die(moment, Reason::Corrupt))
                }
                State::Delivered | State::Dead { .. } | State::Expired | State::Discarded => {
                    Err(self.illegal(event))
                }
            },
            Event::Replay | Event::Discard => match self.state {
                State::Dead { .. } if event == Event::Replay => Ok(self.replay(moment)),
                State::Dead { .. } => Ok(self.ended(State::Discarded, Record::Discarded, None)),
                State::Waiting { .. }
                | State::Leased { .. }
                | State::Sending { .. }
                | State::InDoubt { .. }
                | State::Delivered
                | State::Expired
                | State::Discarded => Err(self.illegal(event)),
            },
        }
    }

    /// Gives the lease, if the delivery is due. A doubtful one is held instead, for a person to decide, where it would be
    /// sent again past its expiry, or where the destination's policy has changed to `hold` since it came into doubt.
    /// `None` where the event is illegal.
    fn give(&self, lease: Lease, moment: &Moment<'_>) -> Option<Change> {
        match self.state {
            State::Waiting { due } if due <= moment.now && !self.past_expiry(moment.now) => {}
            State::InDoubt { due: Some(due) } if due <= moment.now => {
                let held = |reason| Some(self.moved(State::InDoubt { due: None }, Record::InDoubt, reason));
                match moment.policy.on_doubt {
                    OnDoubt::Resend if self.past_expiry(moment.now) => return held(Reason::PastExpiry),
                    OnDoubt::Hold => return held(Reason::PolicyHolds),
                    OnDoubt::Resend | OnDoubt::Query => {}
                }
            }
            State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Leased { .. }
            | State::Sending { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => return None,
        }
        let idle_at_birth = self.idle_without_pause_twice(moment);
        let mut delivery = Self { settled: None, idle_at_birth, ..*self };
        if self.went_with_lane() {
            delivery.settled = Some((lease.token, OutcomeKind::RetryLane { idle_total: moment.idle_total }));
        }
        if moment.policy.on_doubt.lease_begins() {
            delivery.state = State::Sending { lease, proof: Proof::Prompt };
            return Some(Change { delivery, record: Some((Record::Attempt, None)) });
        }
        delivery.state = State::Leased { lease };
        Some(Change { delivery, record: None })
    }

    fn lose_by_time(&self, moment: &Moment<'_>) -> Option<Change> {
        match self.state {
            State::Leased { .. } => Some(self.give_back(moment, Reason::LeaseExpired)),
            State::Sending { proof: Proof::Prompt, .. } => {
                Some(self.charged().into_doubt(moment, Reason::LeaseExpired))
            }
            State::Sending { proof: Proof::Late, .. } => {
                Some(self.charged().into_doubt(moment, Reason::ProofOverdue))
            }
            State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => None,
        }
    }

    fn lose_by_crash(&self, moment: &Moment<'_>) -> Option<Change> {
        let begun = match self.state {
            State::Leased { .. } => false,
            State::Sending { proof: Proof::Prompt, .. } => true,
            // Its proof may still come, from the adapter's next session.
            State::Sending { proof: Proof::Late, .. }
            | State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => return None,
        };
        let crashes = if self.suspect { self.crashes + 1 } else { self.crashes };
        let lost = Self { suspect: true, crashes, doubt: self.doubt || begun, ..*self };
        if crashes >= CRASHES_MAX {
            return Some(lost.die(moment, Reason::Poison));
        }
        if lost.doubt {
            return Some(lost.into_doubt_at_once(moment, Reason::AdapterLost));
        }
        Some(lost.give_back(moment, Reason::AdapterLost))
    }

    fn lose_by_session(&self, moment: &Moment<'_>) -> Option<Change> {
        match self.state {
            State::Leased { .. } => Some(self.give_back(moment, Reason::SessionEnded)),
            State::Sending { proof: Proof::Prompt, .. } => {
                Some(Self { doubt: true, ..*self }.into_doubt_at_once(moment, Reason::SessionEnded))
            }
            State::Sending { proof: Proof::Late, .. }
            | State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => None,
        }
    }

    /// Goes back with the one in front of it, as that did: uncharged and not given up, with the doubt that it had. Nobody has seen it
    /// begin, so it may expire. `None` where the event is illegal.
    fn go_with_lane(&self, moment: &Moment<'_>) -> Option<Change> {
        let begun_by_lease = match self.state {
            State::Leased { .. } => false,
            State::Sending { proof: Proof::Prompt, .. } if !self.has_been_begun() => true,
            State::Sending { .. }
            | State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => return None,
        };
        let back = self.unsaid();
        if back.doubt {
            let held = moment.policy.on_doubt == OnDoubt::Hold;
            let state = State::InDoubt { due: (!held).then_some(moment.now) };
            return Some(back.moved(state, Record::InDoubt, Reason::Recalled));
        }
        if back.past_expiry(moment.now) {
            return Some(back.expire());
        }
        let delivery = Self { state: State::Waiting { due: moment.now }, ..back };
        let record = begun_by_lease.then_some((Record::Released, Some(Reason::Recalled)));
        Some(Change { delivery, record })
    }

    /// Its holder has said `begin`, also where the lease was one.
    pub fn has_been_begun(&self) -> bool {
        matches!(self.settled, Some((_, OutcomeKind::Begin)))
    }

    /// Its lane's partner was away when it was last heard of, and nothing has been reported of it since, leased or not.
    pub fn went_with_lane(&self) -> bool {
        matches!(self.settled, Some((_, OutcomeKind::RetryLane { .. })))
    }

    /// Without what was reported under its lease: whoever had that has no more to say.
    fn unsaid(&self) -> Self {
        Self { settled: None, ..*self }
    }

    /// Back where it came from, uncharged: a doubtful one stays in doubt.
    fn give_back(&self, moment: &Moment<'_>, reason: Reason) -> Change {
        if self.doubt {
            return self.into_doubt(moment, reason);
        }
        if self.past_expiry(moment.now) {
            return self.expire();
        }
        if self.age(moment) >= moment.policy.retry.give_up_after {
            return self.die(moment, Reason::GaveUp);
        }
        let delivery = Self { state: State::Waiting { due: moment.now }, ..*self };
        Change { delivery, record: None }
    }

    fn charged(&self) -> Self {
        Self { attempts: self.attempts + 1, suspect: false, doubt: true, ..*self }
    }

    /// To `in_doubt`, with backoff before it is leased again if the policy lets it.
    fn into_doubt(self, moment: &Moment<'_>, reason: Reason) -> Change {
        let pause = retry::backoff(&moment.policy.retry, self.attempts.max(1), moment.jitter);
        self.into_doubt_due(moment, moment.now + pause, reason)
    }

    fn into_doubt_at_once(self, moment: &Moment<'_>, reason: Reason) -> Change {
        self.into_doubt_due(moment, moment.now, reason)
    }

    fn into_doubt_due(self, moment: &Moment<'_>, due: Timestamp, reason: Reason) -> Change {
        let spent = self.attempts >= moment.policy.retry.attempts
            || self.age(moment) >= moment.policy.retry.give_up_after;
        let held = spent || moment.policy.on_doubt == OnDoubt::Hold;
        let state = State::InDoubt { due: (!held).then_some(due) };
        Self { doubt: true, ..self }.moved(state, Record::InDoubt, reason)
    }

    fn retry_later(self, after: Option<Duration>, scope: RetryScope, moment: &Moment<'_>) -> Change {
        let charged = scope == RetryScope::Message;
        let attempts = if charged { self.attempts + 1 } else { self.attempts };
        let delivery = Self { attempts, doubt: false, suspect: false, crashes: 0, ..self };
        if delivery.past_expiry(moment.now) {
            return delivery.expire();
        }
        if charged && attempts >= moment.policy.retry.attempts {
            return delivery.die(moment, Reason::AttemptsSpent);
        }
        if delivery.age(moment) >= moment.policy.retry.give_up_after {
            return delivery.die(moment, Reason::GaveUp);
        }
        let pause = match after {
            Some(after) => retry::requested(after),
            // The destination's own backoff decides when it is tried again.
            None if !charged => retry::RETRY_FLOOR,
            None => retry::backoff(&moment.policy.retry, attempts, moment.jitter),
        };
        let reason = if charged { Reason::Reported } else { Reason::DestinationTrouble };
        delivery.moved(State::Waiting { due: moment.now + pause }, Record::Retry, reason)
    }

    fn resolve(&self, resolution: Resolution, moment: &Moment<'_>) -> Change {
        let delivery = Self { doubt: false, suspect: false, crashes: 0, ..*self };
        match resolution {
            Resolution::Delivered => {
                delivery.ended(State::Delivered, Record::Resolved, Some(Reason::Resolved))
            }
            Resolution::Dead => Change {
                record: Some((Record::Resolved, Some(Reason::Resolved))),
                ..delivery.die(moment, Reason::Resolved)
            },
            Resolution::Retry if delivery.past_expiry(moment.now) => delivery.expire(),
            // The person's word starts the count afresh; otherwise a spent delivery would be held again at once. A new
            // series, so that an auditor does not take the new count for attempts that were taken back.
            Resolution::Retry => {
                let (series, born, idle_at_birth) = (self.series + 1, moment.now, moment.idle_total.into());
                let settled = self.pause_over(moment);
                Self { attempts: 0, series, born, idle_at_birth, settled, ..delivery }.moved(
                    State::Waiting { due: moment.now },
                    Record::Resolved,
                    Reason::Resolved,
                )
            }
        }
    }

    fn replay(&self, moment: &Moment<'_>) -> Change {
        let fresh = Self::accepted(moment.now, moment.idle_total, self.expires_at);
        let delivery = Self { series: self.series + 1, replayed: true, ..fresh };
        if delivery.past_expiry(moment.now) {
            // After `dead` the log takes only a replay or a discard, and it was the operator who did this.
            return delivery.ended(State::Expired, Record::Replayed, Some(Reason::PastExpiry));
        }
        Change { delivery, record: Some((Record::Replayed, None)) }
    }

    /// At another destination: what waits begins afresh, since what it was charged for was the old partner's answer; a dead
    /// one stays dead for the reason it died of. What a partner may have got, or is about to get, is not moved. `None` where
    /// the event is illegal.
    fn rehome(&self, moment: &Moment<'_>) -> Option<Change> {
        match self.state {
            State::Waiting { .. } if self.past_expiry(moment.now) => Some(self.expire()),
            State::Waiting { .. } => {
                let fresh = Self::accepted(moment.now, moment.idle_total, self.expires_at);
                let delivery = Self { series: self.series + 1, replayed: self.replayed, ..fresh };
                Some(Change { delivery, record: Some((Record::Moved, None)) })
            }
            State::Dead { reason, holds_lane } => {
                let holds_lane = holds_lane && moment.policy.on_dead == OnDead::HoldLane;
                Some(self.moved(State::Dead { reason, holds_lane }, Record::Moved, reason))
            }
            State::Leased { .. }
            | State::Sending { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Expired
            | State::Discarded => None,
        }
    }

    fn die(&self, moment: &Moment<'_>, reason: Reason) -> Change {
        let holds_lane = moment.policy.on_dead == OnDead::HoldLane;
        self.ended(State::Dead { reason, holds_lane }, Record::Dead, Some(reason))
    }

    fn expire(&self) -> Change {
        self.ended(State::Expired, Record::Expired, Some(Reason::PastExpiry))
    }

    fn ended(&self, state: State, record: Record, reason: Option<Reason>) -> Change {
        Change { delivery: Self { state, suspect: false, ..*self }, record: Some((record, reason)) }
    }

    fn moved(&self, state: State, record: Record, reason: Reason) -> Change {
        Change { delivery: Self { state, ..*self }, record: Some((record, Some(reason))) }
    }

    /// Age of this series without the time in which its destination was paused or tripped, or its lane's partner away.
    fn age(&self, moment: &Moment<'_>) -> Duration {
        moment.now.since(self.born).saturating_sub(self.idle_at_birth.until(moment.idle_total))
    }

    fn illegal(&self, event: Event) -> Illegal {
        Illegal { state: self.state.as_str(), event: event.as_str() }
    }
}

impl State {
    pub const NAMES: &'static [&'static str] =
        &["waiting", "leased", "sending", "in_doubt", "delivered", "dead", "expired", "discarded"];

    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Leased { .. } => "leased",
            Self::Sending { .. } => "sending",
            Self::InDoubt { .. } => "in_doubt",
            Self::Delivered => "delivered",
            Self::Dead { .. } => "dead",
            Self::Expired => "expired",
            Self::Discarded => "discarded",
        }
    }

    /// Whether the message's way to this destination has ended. A dead delivery may still be replayed by a person.
    pub const fn is_terminal(&self) -> bool {
        match self {
            Self::Delivered | Self::Dead { .. } | Self::Expired | Self::Discarded => true,
            Self::Waiting { .. } | Self::Leased { .. } | Self::Sending { .. } | Self::InDoubt { .. } => false,
        }
    }

    /// When it may be leased, if it may.
    pub const fn due(&self) -> Option<Timestamp> {
        match self {
            Self::Waiting { due } => Some(*due),
            Self::InDoubt { due } => *due,
            Self::Leased { .. }
            | Self::Sending { .. }
            | Self::Delivered
            | Self::Dead { .. }
            | Self::Expired
            | Self::Discarded => None,
        }
    }

    /// Whether it stands in the way of the deliveries behind it in its lane.
    pub const fn blocks_lane(&self) -> bool {
        match self {
            Self::Waiting { .. } | Self::Leased { .. } | Self::Sending { .. } | Self::InDoubt { .. } => true,
            Self::Dead { holds_lane, .. } => *holds_lane,
            Self::Delivered | Self::Expired | Self::Discarded => false,
        }
    }

    /// Whether it counts in its destination's `max_in_flight`.
    pub const fn in_flight(&self) -> bool {
        match self {
            Self::Leased { .. } | Self::Sending { proof: Proof::Prompt, .. } => true,
            Self::Sending { proof: Proof::Late, .. }
            | Self::Waiting { .. }
            | Self::InDoubt { .. }
            | Self::Delivered
            | Self::Dead { .. }
            | Self::Expired
            | Self::Discarded => false,
        }
    }
}

impl Event {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Lease(_) => "lease",
            Self::LeaseExpired => "lease_expired",
            Self::AdapterLost => "adapter_lost",
            Self::SessionEnded => "session_ended",
            Self::Recall => "recall",
            Self::LaneAway => "lane_away",
            Self::Expire => "expire",
            Self::Resolve(_) => "resolve",
            Self::Replay => "replay",
            Self::Discard => "discard",
            Self::Move => "move",
            Self::Damaged => "damaged",
        }
    }
}

macro_rules! codes {
    ($($variant:ident => $code:literal),+ $(,)?) => {
        impl Reason {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            pub fn from_code(code: &str) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

codes! {
    Rejected => "rejected",
    AttemptsSpent => "attempts_spent",
    GaveUp => "gave_up",
    Poison => "poison",
    Resolved => "resolved",
    NoRoute => "no_route",
    RouteFailed => "route_failed",
    TypeNotAllowed => "type_not_allowed",
    LeaseExpired => "lease_expired",
    ProofOverdue => "proof_overdue",
    AdapterLost => "adapter_lost",
    SessionEnded => "session_ended",
    Reported => "reported",
    DestinationTrouble => "destination_trouble",
    Recalled => "recalled",
    PastExpiry => "past_expiry",
    PolicyHolds => "policy_holds",
    Corrupt => "corrupt",
}

/// Whether `level` is enough where `confirm` is asked for.
fn enough(level: Level, confirm: Option<Level>) -> bool {
    confirm.is_none_or(|confirm| level >= confirm)
}
