//! The session layer of FIX as a state machine without sockets, clocks and storage.
//!
//! Whoever drives it tells it what happens ([`Engine::connected`], [`Engine::received`], [`Engine::tick`] …) and takes what
//! comes of it ([`Engine::take`]): first a [`Commit`] to be made durable, then effects. **No effect may be acted on before its
//! commit is durable**; that is all that crash safety rests on. A process that starts again restores from what was committed,
//! and what had not left yet is asked for by the partner.

mod answer;
mod clock;
mod compose;
mod config;
mod confirm;
mod gap;
mod garbage;
mod incoming;
mod keys;
mod known;
mod logon;
mod numbers;
mod orders;
mod outbox;
mod outgoing;
mod owed;
mod query;
mod reset;
#[cfg(test)]
mod tests;
mod turn;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::message::Message;
use crate::room::{Account, PART};

pub(crate) use config::{AfterReset, AskFor, Config, Credentials, Role};
pub(crate) use confirm::BUSINESS_IDS;
pub(crate) use keys::{Unreadable, is_numbers, is_owed, is_pending};
pub(crate) use numbers::{Numbers, Renewal};
pub(crate) use outbox::Place;
pub(crate) use outgoing::Outgoing;
pub(crate) use owed::Owing;
pub(crate) use turn::{Alarm, Closing, Commit, Effect, Proof, Received, Turn, Verdict};

use answer::Answer;
use confirm::{Barrier, Confirming};
use gap::{Gap, Held};
use garbage::Garbage;
use known::Known;
use orders::Orders;
use outbox::Outbox;
use owed::Owed;

/// Most keys that one commit deletes from the adapter's state because they are kept no more.
const GARBAGE_PER_COMMIT: usize = 128;
/// This part of what may be kept is cleared of what the partner has confirmed before it is needed.
const CLEARED_PART: usize = 8;

/// A moment, on two clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// What stands in messages.
    pub(crate) utc: OffsetDateTime,
    /// Time since some moment before; never steps.
    pub(crate) tick: Duration,
}

impl Now {
    pub(crate) fn unix(self) -> i64 {
        self.utc.unix_timestamp()
    }

    pub(crate) fn unix_ms(self) -> i64 {
        // Milliseconds since 1970 fit for as long as FIX can write years.
        i64::try_from(self.utc.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
    }
}

/// How far the two sides are with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Down,
    /// Somebody has connected and must say who it is.
    Arrived {
        since: Duration,
    },
    /// Our Logon has left.
    LogonSent {
        since: Duration,
        reset: bool,
    },
    Up,
    /// Our Logon with ResetSeqNumFlag has left within the session. Until it is answered nothing more leaves, and what comes
    /// is still numbered as before.
    ResetSent {
        since: Duration,
    },
    /// Our Logout has left first.
    LogoutSent {
        since: Duration,
    },
    /// To be closed; nothing is read any more.
    Closing,
}

pub(crate) struct Engine {
    config: Arc<Config>,
    numbers: Numbers,
    numbers_changed: bool,
    outbox: Outbox,
    known: Known,
    orders: Orders,
    owed: Owed,
    garbage: Garbage,
    account: Account,
    /// Room is wanted: what is kept no more is deleted at once.
    sweeping: bool,
    link: Link,
    heartbeat: Duration,
    last_received: Duration,
    last_sent: Duration,
    /// The partner has been asked whether it is still there.
    probed: bool,
    barrier: Option<Barrier>,
    /// What had ever been kept when the partner was last asked for proof, bytes.
    asked_at: u64,
    gap: Option<Gap>,
    held: Held,
    /// More of what is held has its turn than went into one commit.
    catching_up: bool,
    answer: Option<Answer>,
    confirming: Option<Confirming>,
    /// Messages of earlier epochs, from here on, are still to be sent again.
    orphans_from: Option<Place>,
    turn: Turn,
}

impl Engine {
    /// A session as it was left, from the adapter's state.
    pub(crate) fn restore(
        config: Arc<Config>,
        state: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Self, Unreadable> {
        let keys::Restored { numbers, outbox, known, orders, owed } = keys::restore(&config.name, state)?;
        let account = Account::new(Arc::clone(&config.room), config.keep_bytes);
        let mut engine = Self {
            heartbeat: config.heartbeat,
            config,
            numbers,
            numbers_changed: false,
            outbox,
            known,
            orders,
            owed,
            garbage: Garbage::default(),
            account,
            sweeping: false,
            link: Link::Down,
            last_received: Duration::ZERO,
            last_sent: Duration::ZERO,
            probed: false,
            barrier: None,
            asked_at: 0,
            gap: None,
            held: Held::default(),
            catching_up: false,
            answer: None,
            confirming: None,
            orphans_from: None,
            turn: Turn::default(),
        };
        engine.clear_out();
        Ok(engine)
    }

    pub(crate) fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Deliveries that wait for proof.
    pub(crate) fn pending(&self) -> usize {
        self.outbox.pending()
    }

    /// Whether the delivery may have left already.
    pub(crate) fn knows(&self, delivery: Uuid) -> bool {
        self.known.contains(delivery) || self.outbox.place_of(delivery).is_some()
    }

    /// Logged on, both ways.
    pub(crate) fn is_up(&self) -> bool {
        self.link == Link::Up
    }

    /// Whether application messages may leave, now or once those before them have been dealt with.
    pub(crate) fn is_logged_on(&self) -> bool {
        matches!(self.link, Link::Up | Link::ResetSent { .. })
    }

    /// Whether application messages may leave now: not while old ones are being sent again, which would mix the two.
    pub(crate) fn can_send(&self) -> bool {
        let unconfirmed = (self.numbers.last_out() - self.numbers.confirmed) as usize;
        self.link == Link::Up
            && self.numbers.renewal != Some(Renewal::Wanted)
            && !self.sends_again()
            && self.outbox.pending() < self.config.unconfirmed_max
            // What is not confirmed is kept, whatever `keep` says; so it is bounded here.
            && unconfirmed < self.config.keep
    }

    /// Old messages are being sent again, before anything new.
    pub(crate) fn sends_again(&self) -> bool {
        self.answer.is_some() || self.orphans_from.is_some()
    }

    /// Whether a connection makes sense now: the schedule's window is open.
    pub(crate) fn is_open(&self, now: Now) -> bool {
        self.config.schedule.as_ref().is_none_or(|schedule| schedule.window_at(now.unix()).is_some())
    }

    /// When the open window of the schedule began, seconds since 1970.
    pub(crate) fn window(&self, now: Now) -> Option<i64> {
        Some(self.config.schedule.as_ref()?.window_at(now.unix())?.start)
    }

    /// What has come of everything so far. A commit that is not empty must be durable before its effects.
    pub(crate) fn take(&mut self) -> Turn {
        // Not with what begins: that may be refused, and would have to be made undone with it.
        let is_firm = self.turn.commit.begins.is_empty();
        if is_firm && (!self.turn.commit.is_empty() || self.numbers_changed || self.sweeping) {
            self.prune();
            for key in self.garbage.take(GARBAGE_PER_COMMIT) {
                self.turn.commit.state.insert(key, None);
            }
            self.sweeping &= !self.garbage.is_empty();
        }
        self.account.set(self.bytes_kept());
        if std::mem::take(&mut self.numbers_changed) {
            let outbox = &self.outbox;
            self.numbers.earlier.retain(|epoch, _| outbox.holds(*epoch));
            let value = serde_json::json!(&self.numbers).to_string().into_bytes();
            self.turn.commit.state.insert(keys::numbers_key(&self.config.name), Some(value));
        }
        std::mem::take(&mut self.turn)
    }

    /// The connection is gone, whoever closed it.
    pub(crate) fn disconnected(&mut self) {
        if self.link == Link::Down {
            return;
        }
        if self.config.reset_on_disconnect {
            self.reset(None);
        }
        self.link = Link::Down;
        self.forget_connection();
    }

    /// A message came over the connection.
    pub(crate) fn received(&mut self, message: &Message, now: Now) {
        self.last_received = now.tick;
        self.probed = false;
        match self.link {
            Link::Down | Link::Closing => {}
            Link::Arrived { .. } => self.logon_received(message, now),
            Link::LogonSent { reset, .. } => self.logon_answered(message, reset, now),
            Link::Up | Link::ResetSent { .. } | Link::LogoutSent { .. } => self.in_session(message, now),
        }
    }

    /// What belongs to one connection only.
    fn forget_connection(&mut self) {
        self.probed = false;
        self.barrier = None;
        self.gap = None;
        self.held = Held::default();
        self.catching_up = false;
        self.answer = None;
        self.confirming = None;
        self.orphans_from = None;
    }

    /// Sequence numbers begin at 1 again, both ways, in a new epoch. What waits for proof waits on as an orphan.
    fn reset(&mut self, window: Option<i64>) {
        if let Some(confirming) = &self.confirming {
            self.numbers.confirmed = confirming.through;
        }
        self.numbers.reset(window);
        self.numbers_changed = true;
        self.turn.commit.epoch = Some(self.numbers.epoch);
        self.throw_away_old_epochs();
        self.forget_connection();
    }

    /// In the adapter's state, messages that are not deleted yet included.
    pub(crate) fn bytes_kept(&self) -> usize {
        self.outbox.bytes() + self.bytes_owed() + self.garbage.bytes()
    }

    /// Lets go of what is beyond what may be kept, and a little before.
    fn prune(&mut self) {
        let keep_bytes = self.config.keep_bytes - self.config.keep_bytes / CLEARED_PART;
        let confirmed = (self.numbers.epoch, self.numbers.confirmed);
        let gone = self.outbox.prune(self.config.keep, keep_bytes, confirmed);
        self.forget_all(gone);
    }

    /// After a start: what is kept no more, also since there is less room now, and what the last process has not come to delete.
    fn clear_out(&mut self) {
        self.throw_away_old_epochs();
        self.prune();
        let most = self.config.keep_bytes / PART;
        while let Some((delivery, bytes)) = self.known.forget_one(most) {
            self.garbage.add(keys::known_key(&self.config.name, delivery), bytes);
        }
        while let Some(place) = self.orders.forget_one(most) {
            self.garbage.add(keys::order_key(&self.config.name, place), 0);
        }
        self.sweeping = !self.garbage.is_empty();
        self.account.set(self.bytes_kept());
    }

    /// Messages of this epoch that are kept no more.
    fn forget_all(&mut self, gone: Vec<(Place, usize)>) {
        if let Some(((_, last), _)) = gone.last() {
            self.numbers.forgotten = self.numbers.forgotten.max(*last);
            self.numbers_changed = true;
        }
        self.throw_away(gone);
    }

    fn throw_away(&mut self, gone: Vec<(Place, usize)>) {
        for (place, bytes) in gone {
            self.garbage.add(keys::message_key(&self.config.name, place), bytes);
        }
    }

    fn throw_away_old_epochs(&mut self) {
        let gone = self.outbox.begin_epoch(self.numbers.epoch);
        self.throw_away(gone);
    }

    fn close(&mut self, why: Closing) {
        if self.link == Link::Closing {
            return;
        }
        self.link = Link::Closing;
        self.turn.then.push(Effect::Close(why));
    }

    fn alarm(&mut self, alarm: Alarm) {
        self.turn.then.push(Effect::Alarm(alarm));
    }

    fn advance_in(&mut self, next: u64) {
        self.numbers.next_in = next;
        self.numbers_changed = true;
    }
}
