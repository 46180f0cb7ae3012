//! Outcomes that the holder of a lease reports.

use std::borrow::Cow;
use std::time::Duration;

use super::{Change, Delivery, Moment, Proof, Reason, Record, State, enough};
use crate::id::LeaseToken;
use crate::policy::{Level, OnDoubt, RetryScope};
use crate::retry;
use crate::time::IdleMark;

/// What the holder of a lease says of its attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Bytes are about to leave.
    Begin,
    /// Written to the wire; proof comes within the span, perhaps from a later session.
    Sent {
        within: Duration,
    },
    Delivered {
        level: Level,
    },
    /// Bytes may have reached the partner.
    InDoubt,
    /// The partner has not got it; try again.
    Retry {
        after: Option<Duration>,
        scope: RetryScope,
    },
    /// It will never be taken.
    Reject,
    /// Given back untried.
    Release,
    /// The lease shall run for this long from now.
    Extend {
        lease: Duration,
    },
    /// What it went back for, as its lane's trouble, is over: it is due at once.
    Wake,
}

/// What is remembered of the outcome that ended a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeKind {
    Begin,
    Sent,
    Delivered,
    InDoubt,
    Retry,
    /// `retry` for its lane's trouble: the only one that can be woken.
    RetryLane {
        /// How long the destination had been paused or tripped in all when the pause began.
        idle_total: Duration,
    },
    Reject,
    Release,
    Extend,
    Wake,
}

impl OutcomeKind {
    /// Those without data.
    const PLAIN: [Self; 9] = [
        Self::Begin,
        Self::Sent,
        Self::Delivered,
        Self::InDoubt,
        Self::Retry,
        Self::Reject,
        Self::Release,
        Self::Extend,
        Self::Wake,
    ];

    pub(super) fn of(outcome: Outcome, idle_total: Duration) -> Self {
        match outcome {
            Outcome::Begin => Self::Begin,
            Outcome::Sent { .. } => Self::Sent,
            Outcome::Delivered { .. } => Self::Delivered,
            Outcome::InDoubt => Self::InDoubt,
            Outcome::Retry { scope: RetryScope::Lane, .. } => Self::RetryLane { idle_total },
            Outcome::Retry { scope: RetryScope::Message | RetryScope::Destination, .. } => Self::Retry,
            Outcome::Reject => Self::Reject,
            Outcome::Release => Self::Release,
            Outcome::Extend { .. } => Self::Extend,
            Outcome::Wake => Self::Wake,
        }
    }

    /// Whether the outcome says the same again.
    pub fn is_repeated_by(self, outcome: Outcome) -> bool {
        self.name() == Self::of(outcome, Duration::ZERO).name()
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::Sent => "sent",
            Self::Delivered => "delivered",
            Self::InDoubt => "in_doubt",
            Self::Retry => "retry",
            Self::RetryLane { .. } => "retry_lane",
            Self::Reject => "reject",
            Self::Release => "release",
            Self::Extend => "extend",
            Self::Wake => "wake",
        }
    }

    /// As it is stored: its name, and the microseconds of its data.
    pub fn to_text(self) -> Cow<'static, str> {
        match self {
            Self::RetryLane { idle_total } => format!("{} {}", self.name(), idle_total.as_micros()).into(),
            plain => plain.name().into(),
        }
    }

    /// Reads what [`OutcomeKind::to_text`] has written.
    pub fn from_text(text: &str) -> Option<Self> {
        let read = match text.strip_prefix("retry_lane ") {
            Some(micros) => Some(Self::RetryLane { idle_total: Duration::from_micros(micros.parse().ok()?) }),
            None => Self::PLAIN.into_iter().find(|kind| kind.name() == text),
        };
        // A number can be written in other ways too.
        read.filter(|kind| kind.to_text() == text)
    }
}

/// What a settle comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It changes the delivery.
    Changed(Change),
    /// It says what is so already: answered `ok`, nothing is written.
    Repeated,
    /// The delivery had passed its expiry when it was to begin: refused, and the change is written.
    Refused(Change),
    /// The token is not the newest, or has settled otherwise: nothing changes.
    Stale,
}

/// The outcome breaks the protocol: the whole call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the delivery has not begun")]
    NotBegun,
    #[error("the evidence's level `{level}` is below `{confirm}`")]
    EvidenceTooWeak { level: Level, confirm: Level },
}

impl Delivery {
    /// Decides what an outcome does that comes with `token`.
    pub fn settle(
        &self,
        token: &LeaseToken,
        outcome: Outcome,
        moment: &Moment<'_>,
    ) -> Result<Settled, Refusal> {
        match self.state {
            State::Leased { lease } if lease.token == *token => self.settle_leased(outcome, moment),
            State::Sending { lease, proof } if lease.token == *token => {
                self.settle_sending(outcome, proof, moment)
            }
            State::Waiting { due } | State::InDoubt { due: Some(due) }
                if outcome == Outcome::Wake && self.waits_for_lane(token) =>
            {
                let is_awake = due <= moment.now;
                Ok(if is_awake { Settled::Repeated } else { Settled::Changed(self.wake(moment)) })
            }
            // Somebody else's by now.
            State::Leased { .. } | State::Sending { .. } => Ok(Settled::Stale),
            State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => {
                let repeated =
                    self.settled.is_some_and(|(by, was)| by == *token && was.is_repeated_by(outcome));
                Ok(if repeated { Settled::Repeated } else { Settled::Stale })
            }
        }
        .map(|settled| settled.remember(token, outcome, moment))
    }

    /// Whether it went back with this token for its lane's trouble, and nothing has come of it since.
    fn waits_for_lane(&self, token: &LeaseToken) -> bool {
        matches!(self.settled, Some((by, OutcomeKind::RetryLane { .. })) if by == *token)
    }

    fn settle_leased(&self, outcome: Outcome, moment: &Moment<'_>) -> Result<Settled, Refusal> {
        match outcome {
            Outcome::Begin => Ok(self.begin(moment)),
            Outcome::Sent { .. } | Outcome::Delivered { .. } | Outcome::InDoubt => Err(Refusal::NotBegun),
            Outcome::Retry { .. } | Outcome::Reject | Outcome::Release | Outcome::Extend { .. } => {
                Ok(Settled::Changed(self.end_or_extend(outcome, moment)))
            }
            // It has been leased since: there is nothing to wake.
            Outcome::Wake => Ok(Settled::Stale),
        }
    }

    fn begin(&self, moment: &Moment<'_>) -> Settled {
        let Some(lease) = self.lease().copied() else { return Settled::Stale };
        if self.past_expiry(moment.now) {
            let unsaid = self.unsaid();
            // What an earlier attempt may have brought to the partner has not expired: a person decides.
            return Settled::Refused(if self.doubt {
                unsaid.moved(State::InDoubt { due: None }, Record::InDoubt, Reason::PastExpiry)
            } else {
                unsaid.expire()
            });
        }
        let delivery = Self { state: State::Sending { lease, proof: Proof::Prompt }, ..*self };
        Settled::Changed(Change { delivery, record: Some((Record::Attempt, None)) })
    }

    fn settle_sending(
        &self,
        outcome: Outcome,
        proof: Proof,
        moment: &Moment<'_>,
    ) -> Result<Settled, Refusal> {
        let change = match outcome {
            // Nothing else changes where the lease was the begin; but it is known now that its holder is at it.
            Outcome::Begin if proof == Proof::Prompt && !self.has_been_begun() => {
                Change { delivery: *self, record: None }
            }
            Outcome::Begin => return Ok(Settled::Repeated),
            Outcome::Sent { within } => match proof {
                Proof::Late => return Ok(Settled::Repeated),
                Proof::Prompt => self.sent(within, moment),
            },
            Outcome::Delivered { level } => {
                if let Some(confirm) = moment.policy.confirm
                    && !enough(level, Some(confirm))
                {
                    return Err(Refusal::EvidenceTooWeak { level, confirm });
                }
                self.delivered()
            }
            Outcome::InDoubt => self.charged().into_doubt(moment, Reason::Reported),
            Outcome::Retry { .. } | Outcome::Reject | Outcome::Release | Outcome::Extend { .. } => {
                self.end_or_extend(outcome, moment)
            }
            Outcome::Wake => return Ok(Settled::Stale),
        };
        Ok(Settled::Changed(change))
    }

    /// Where `sent` is all that the destination asks for, it is the proof.
    fn sent(&self, within: Duration, moment: &Moment<'_>) -> Change {
        if moment.policy.confirm.is_some() && enough(Level::Sent, moment.policy.confirm) {
            return self.delivered();
        }
        let Some(lease) = self.lease().copied() else { return Change { delivery: *self, record: None } };
        let lease = super::Lease { until: moment.now + within, ..lease };
        let state = State::Sending { lease, proof: Proof::Late };
        Change { delivery: Self { state, suspect: false, ..*self }, record: Some((Record::Sent, None)) }
    }

    fn delivered(&self) -> Change {
        let delivery = Self { doubt: false, crashes: 0, ..*self };
        delivery.ended(State::Delivered, Record::Delivered, None)
    }

    /// The outcomes that mean the same before and after the begin.
    fn end_or_extend(&self, outcome: Outcome, moment: &Moment<'_>) -> Change {
        match outcome {
            Outcome::Retry { after, scope: RetryScope::Lane } => self.away(after, moment),
            Outcome::Retry { after, scope } => self.retry_later(after, scope, moment),
            Outcome::Reject => {
                Self { attempts: self.attempts + 1, doubt: false, ..*self }.die(moment, Reason::Rejected)
            }
            Outcome::Release => {
                let back = Self { suspect: false, ..*self }.give_back(moment, Reason::Reported);
                Change { record: back.record.or(Some((Record::Released, Some(Reason::Reported)))), ..back }
            }
            Outcome::Extend { lease: span } => self.extended(span, moment),
            Outcome::Begin
            | Outcome::Sent { .. }
            | Outcome::Delivered { .. }
            | Outcome::InDoubt
            | Outcome::Wake => Change { delivery: *self, record: None },
        }
    }

    /// Its lane's partner is away. Nobody has asked that partner anything, so a doubt stays, and nothing is given up; the time until
    /// it is due does not age it.
    fn away(&self, after: Option<Duration>, moment: &Moment<'_>) -> Change {
        let back = Self { suspect: false, crashes: 0, ..*self };
        if !back.doubt && back.past_expiry(moment.now) {
            return back.expire();
        }
        let pause = after
            .map_or_else(|| retry::probe_interval(&moment.policy.retry, 1, moment.jitter), retry::requested);
        let due = moment.now + pause;
        let back = Self { idle_at_birth: back.idle_at_birth.put_back(pause), ..back };
        if !back.doubt {
            return back.moved(State::Waiting { due }, Record::Retry, Reason::DestinationTrouble);
        }
        let held = moment.policy.on_doubt == OnDoubt::Hold;
        back.moved(
            State::InDoubt { due: (!held).then_some(due) },
            Record::InDoubt,
            Reason::DestinationTrouble,
        )
    }

    /// What is left of the pause is not waited for, and so does not stay young.
    fn wake(&self, moment: &Moment<'_>) -> Change {
        let unspent = self.state.due().map_or(Duration::ZERO, |due| due.since(moment.now));
        let due = self.state.due().map_or(moment.now, |due| due.min(moment.now));
        let state = match self.state {
            State::Waiting { .. } => State::Waiting { due },
            State::InDoubt { .. } => State::InDoubt { due: Some(due) },
            State::Leased { .. }
            | State::Sending { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => self.state,
        };
        let idle_at_birth = self.idle_without_pause_twice(moment).put_forward(unspent);
        Change {
            delivery: Self { state, idle_at_birth, settled: self.pause_over(moment), ..*self },
            record: None,
        }
    }

    /// What is remembered of a pause that was its lane's and ends now: what the destination is idle from here on is no longer within it.
    pub(super) fn pause_over(&self, moment: &Moment<'_>) -> Option<(LeaseToken, OutcomeKind)> {
        self.settled.map(|(token, kind)| match kind {
            OutcomeKind::RetryLane { .. } => {
                (token, OutcomeKind::RetryLane { idle_total: moment.idle_total })
            }
            other => (token, other),
        })
    }

    /// Its clock of idle time at the end of a pause that was its lane's. What the destination was idle during that pause counts as such
    /// already. When within the time since was that? As late as it can have been, so that at worst it stays younger than it is,
    /// by no more than it has been kept waiting behind its pause.
    pub(super) fn idle_without_pause_twice(&self, moment: &Moment<'_>) -> IdleMark {
        let Some((_, OutcomeKind::RetryLane { idle_total })) = self.settled else {
            return self.idle_at_birth;
        };
        let idle = moment.idle_total.saturating_sub(idle_total);
        let behind = self.state.due().map_or(Duration::ZERO, |due| moment.now.since(due));
        self.idle_at_birth.put_forward(idle.saturating_sub(behind))
    }

    fn extended(&self, span: Duration, moment: &Moment<'_>) -> Change {
        let until = moment.now + span;
        let state = match self.state {
            State::Leased { lease } => State::Leased { lease: super::Lease { until, ..lease } },
            State::Sending { lease, proof } => {
                State::Sending { lease: super::Lease { until, ..lease }, proof }
            }
            State::Waiting { .. }
            | State::InDoubt { .. }
            | State::Delivered
            | State::Dead { .. }
            | State::Expired
            | State::Discarded => self.state,
        };
        Change { delivery: Self { state, ..*self }, record: None }
    }
}

impl Settled {
    /// Keeps the token and outcome that ended a lease, so that its repetition is recognised, and what is said of one that goes on. A wake
    /// ends nothing: the lease before it ended with what it is woken from.
    fn remember(self, token: &LeaseToken, outcome: Outcome, moment: &Moment<'_>) -> Self {
        let Self::Changed(mut change) = self else { return self };
        let is_said = match outcome {
            Outcome::Begin | Outcome::Sent { .. } => true,
            Outcome::Delivered { .. }
            | Outcome::InDoubt
            | Outcome::Retry { .. }
            | Outcome::Reject
            | Outcome::Release
            | Outcome::Extend { .. } => change.delivery.lease().is_none(),
            Outcome::Wake => false,
        };
        if is_said {
            change.delivery.settled = Some((*token, OutcomeKind::of(outcome, moment.idle_total)));
        }
        Self::Changed(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_of_an_outcome_is_read_as_it_was_written() {
        let lane = [0, 1, u64::MAX]
            .map(|micros| OutcomeKind::RetryLane { idle_total: Duration::from_micros(micros) });
        for kind in OutcomeKind::PLAIN.into_iter().chain(lane) {
            assert_eq!(OutcomeKind::from_text(&kind.to_text()), Some(kind));
        }
        for text in
            ["", "Begin", "retry_lane", "retry_lane ", "retry_lane +1", "retry_lane 01", "retry_lane -1"]
        {
            assert_eq!(OutcomeKind::from_text(text), None, "{text}");
        }
    }
}
