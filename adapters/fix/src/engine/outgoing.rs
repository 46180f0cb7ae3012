//! Application messages on their way out: new ones, ones that have left before, ones that a reset has orphaned.

use bytes::Bytes;
use gatepost_adapter::{Lease, Level};

use super::compose::is_sessions_own;
use super::confirm::{Barrier, proof};
use super::outbox::{Pending, Query, Record};
use super::{AfterReset, Commit, Effect, Engine, Link, Now, Numbers, Place, Verdict};
use crate::content;
use crate::message::tag;
use crate::room::PART;
use crate::wire::{self, Unencodable};

/// Keys that one of an earlier epoch changes: it and its delivery go, and come again under another number.
const KEYS_EACH: usize = 4;
const AFTER_RESET_DOUBT: &str =
    "the sequence numbers began anew before the partner had confirmed the message";

/// A delivery to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) lease: Lease,
    /// The gateway's id of the message.
    pub(crate) message: String,
    pub(crate) content: content::Outgoing,
    /// When it must not be sent any more, milliseconds since 1970.
    pub(crate) expires: Option<i64>,
    /// An earlier lease may have brought it to the partner.
    pub(crate) in_doubt: bool,
}

/// What [`Engine::send`] has changed, for the case that its commit is refused.
#[derive(Debug)]
pub(crate) struct Undo {
    numbers: Numbers,
    barrier: Option<Barrier>,
    asked_at: u64,
    /// Messages that were given a number.
    added: Vec<Place>,
    /// Messages of earlier epochs that were given a new number.
    removed: Vec<(Place, Record)>,
}

impl Engine {
    /// How many of these may begin now, in their order: there is room in the adapter's state for what is kept of them. Where there is none for
    /// the first, it is made of what the partner has confirmed, and the partner is asked to confirm more.
    pub(crate) fn admit<'a>(&mut self, deliveries: impl Iterator<Item = &'a Outgoing>, now: Now) -> usize {
        self.account.set(self.bytes_kept());
        let costs: Vec<usize> = deliveries.map(|outgoing| self.cost(outgoing, now)).collect();
        let count = self.account.take(costs.iter().copied());
        if count == 0
            && let Some(wanted) = costs.first()
        {
            self.want_room(*wanted, now);
        }
        count
    }

    /// Whether there is room for so many bytes in the adapter's state; where there is not, it is made as in [`Engine::admit`].
    pub(crate) fn makes_room(&mut self, bytes: usize, now: Now) -> bool {
        self.account.set(self.bytes_kept());
        let has_room = self.account.take([bytes]) == 1;
        self.account.set(self.bytes_kept());
        if !has_room {
            self.want_room(bytes, now);
        }
        has_room
    }

    fn want_room(&mut self, bytes: usize, now: Now) {
        let most = self.config.keep_bytes.saturating_sub(bytes);
        let missing = self.outbox.bytes().saturating_sub(most);
        let gone = self.outbox.make_room(missing, (self.numbers.epoch, self.numbers.confirmed));
        self.forget_all(gone);
        self.sweeping = !self.garbage.is_empty();
        self.ask_for_room(now);
    }

    /// What is kept of it; rather too much. Nothing of one that has its number already, or will not be sent.
    pub(crate) fn cost(&self, outgoing: &Outgoing, now: Now) -> usize {
        let is_late = outgoing.expires.is_some_and(|at| at <= now.unix_ms());
        if is_late || self.knows(outgoing.lease.delivery) {
            return 0;
        }
        let bytes = outgoing.content.bytes() + self.config.header_bytes();
        self.outbox.cost_of_new(bytes, &outgoing.message)
    }

    /// Gives deliveries their numbers. Only while [`Engine::can_send`], and with nothing else in the same turn: if the
    /// gateway refuses one of them, the whole of it is undone ([`Engine::undo`]) and tried without that one.
    pub(crate) fn send(&mut self, deliveries: &[Outgoing], now: Now) -> Undo {
        let mut undo = Undo {
            numbers: self.numbers.clone(),
            barrier: self.barrier.clone(),
            asked_at: self.asked_at,
            added: Vec::new(),
            removed: Vec::new(),
        };
        for outgoing in deliveries {
            let lease = &outgoing.lease;
            match self.outbox.place_of(lease.delivery) {
                _ if self.known.contains(lease.delivery) => {
                    self.turn.commit.begins.push(lease.clone());
                    self.turn.then.push(Effect::Begun(lease.clone()));
                }
                Some(place) if self.is_unknown(place) => {
                    if outgoing.expires.is_some_and(|at| at <= now.unix_ms()) {
                        let late = "its expirytime had passed, and the partner does not know it";
                        self.turn.commit.outcomes.push((lease.clone(), Verdict::Retry(late.to_owned())));
                    } else {
                        self.send_orphan_again(place, lease, &mut undo, now);
                    }
                }
                Some(place) if outgoing.in_doubt && self.asks(place) => {
                    undo.added.extend(self.ask_for_status(place, now));
                    self.adopt(place, lease);
                }
                Some(place) if self.is_on_its_way(place, now) => self.adopt(place, lease),
                Some(place) => self.send_orphan_again(place, lease, &mut undo, now),
                None if outgoing.expires.is_some_and(|at| at <= now.unix_ms()) => {
                    let late = Verdict::Retry("its expirytime had passed before it could be sent".to_owned());
                    self.turn.commit.outcomes.push((lease.clone(), late));
                }
                None => self.send_new(outgoing, &mut undo, now),
            }
        }
        self.ask_for_proof(now);
        undo
    }

    /// The commit of a [`Engine::send`] was refused: as if it had never been.
    pub(crate) fn undo(&mut self, undo: Undo) {
        for place in undo.added {
            self.outbox.remove(place);
        }
        for (place, record) in undo.removed {
            self.outbox.insert(place, record);
        }
        self.numbers = undo.numbers;
        self.barrier = undo.barrier;
        self.asked_at = undo.asked_at;
        self.numbers_changed = false;
        self.turn = super::Turn::default();
    }

    fn send_new(&mut self, outgoing: &Outgoing, undo: &mut Undo, now: Now) {
        match self.encode(outgoing, now) {
            Ok(bytes) => {
                let business_id = wire::parse(bytes.clone(), self.config.validator.data_fields())
                    .ok()
                    .and_then(|message| self.business_id_of(&message));
                let (lease, message) = (outgoing.lease.clone(), outgoing.message.clone());
                let pending = Pending { lease, message, business_id, query: Query::None };
                let record = Record { bytes, expires: outgoing.expires, pending: Some(pending) };
                self.turn.commit.begins.push(outgoing.lease.clone());
                undo.added.push(self.send_record(record, now));
            }
            Err(error) => {
                let why = format!("the message cannot be written: {error}");
                let verdict = Verdict::Reject(why, proof(Level::Sent, 0));
                self.turn.commit.outcomes.push((outgoing.lease.clone(), verdict));
            }
        }
    }

    fn encode(&self, outgoing: &Outgoing, now: Now) -> Result<Bytes, Unencodable> {
        let draft = outgoing.content.draft(&self.config.form());
        self.dress(draft, self.numbers.next_out, now).encode()
    }

    fn send_record(&mut self, record: Record, now: Now) -> Place {
        let place = (self.numbers.epoch, self.allocate());
        self.last_sent = now.tick;
        self.turn.then.push(Effect::Write { bytes: record.bytes.clone(), carries: Some(place) });
        self.keep(place, record);
        place
    }

    /// Whether the partner has a message that was given its number before, or will ask for it; or nobody may send it any more.
    fn is_on_its_way(&self, place: Place, now: Now) -> bool {
        let is_late = |record: &Record| record.expires.is_some_and(|at| at <= now.unix_ms());
        place.0 == self.numbers.epoch
            || self.numbers.has_confirmed(place.0, place.1)
            || self.outbox.get(place).is_some_and(is_late)
    }

    /// The delivery has its number already, from an earlier lease: it is not sent again, only its proof is still to come.
    fn adopt(&mut self, place: Place, lease: &Lease) {
        if let Some(pending) = self.outbox.renew(place, lease) {
            let value = super::keys::pending_value(pending);
            self.turn.commit.state.insert(super::keys::pending_key(&self.config.name, place), Some(value));
        }
        self.turn.commit.begins.push(lease.clone());
        self.turn.then.push(Effect::Begun(lease.clone()));
    }

    /// A delivery that did not have to be sent has begun: what is known of it can be told now.
    pub(crate) fn begun(&mut self, lease: &Lease) {
        if let Some(verdict) = self.known.take(lease.delivery) {
            self.turn.commit.state.insert(super::keys::known_key(&self.config.name, lease.delivery), None);
            self.turn.commit.outcomes.push((lease.clone(), verdict));
        } else if let Some((_, seq)) = self.outbox.place_of(lease.delivery)
            && self.config.confirm > Level::Sent
        {
            self.turn.commit.outcomes.push((lease.clone(), Verdict::Sent(proof(Level::Sent, seq))));
        }
    }

    /// The connection ends, and it was not heard that these have been written. They may have been, or will be at the next one: their proof has
    /// its time from now on. Where having been written is the proof they wait for that.
    pub(crate) fn may_have_left(&mut self, begun: &[Lease]) {
        if self.config.confirm == Level::Sent {
            return;
        }
        for lease in begun {
            if let Some((_, seq)) = self.outbox.place_of(lease.delivery) {
                self.turn.commit.outcomes.push((lease.clone(), Verdict::Sent(proof(Level::Sent, seq))));
            }
        }
    }

    /// The gateway does not take some outcomes of a commit, because other leases have taken over or will: they leave it. What
    /// they say is kept for those leases, in the same commit, lest a message leave a second time.
    pub(crate) fn take_back(&mut self, commit: &mut Commit, stale: impl Fn(&Lease) -> bool) {
        let outcomes = std::mem::take(&mut commit.outcomes);
        let (stale, kept): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(lease, _)| stale(lease));
        commit.outcomes = kept;
        let name = &self.config.name;
        for (lease, verdict) in stale {
            if !matches!(verdict, Verdict::Delivered(_) | Verdict::Reject(..)) {
                continue;
            }
            let key = super::keys::known_key(name, lease.delivery);
            let value = serde_json::json!(verdict).to_string().into_bytes();
            self.known.insert(lease.delivery, verdict, key.len() + value.len());
            commit.state.insert(key, Some(value));
            while let Some((oldest, _)) = self.known.forget_one(self.config.keep_bytes / PART) {
                commit.state.insert(super::keys::known_key(name, oldest), None);
            }
        }
    }

    /// A message of an earlier epoch under a new lease: the partner may or may not have it.
    fn send_orphan_again(&mut self, place: Place, lease: &Lease, undo: &mut Undo, now: Now) {
        let Some(record) = self.outbox.get(place).cloned() else { return };
        self.outbox.renew(place, lease);
        self.turn.commit.begins.push(lease.clone());
        if let Some(new) = self.resend_orphan(place, now) {
            undo.added.push(new);
            undo.removed.push((place, record));
        }
    }

    /// After a logon: what an earlier epoch left unproven, before anything new.
    pub(super) fn send_orphans(&mut self, now: Now) {
        self.orphans_from = Some((0, 0));
        self.send_more_orphans(now);
    }

    /// Some of them; one settlement does not hold them all.
    pub(super) fn send_more_orphans(&mut self, now: Now) {
        let Some(from) = self.orphans_from.take().filter(|_| self.link == Link::Up) else { return };
        let most = self.turn.commit.room() / KEYS_EACH;
        let places = self.outbox.orphans(from, self.numbers.epoch, most);
        match places.last() {
            Some((epoch, seq)) if places.len() == most => self.orphans_from = Some((*epoch, seq + 1)),
            None if most == 0 => self.orphans_from = Some(from),
            _ => {}
        }
        for place in places {
            if self.numbers.has_confirmed(place.0, place.1) {
                // The partner has it; a business answer is still to come.
                if self.config.confirm < Level::Business {
                    self.deliver(place, "before_reset");
                }
                continue;
            }
            let Some(record) = self.outbox.get(place) else { continue };
            let expired = record.expires.is_some_and(|at| at <= now.unix_ms());
            match self.config.after_reset {
                AfterReset::Resend if expired => {
                    // It stays: a later lease must find that it may have left.
                    let lease = record.pending.as_ref().map(|pending| pending.lease.clone());
                    let late = "its expirytime had passed when the sequence numbers began anew";
                    let verdict = |lease| (lease, Verdict::InDoubt(late.to_owned()));
                    self.turn.commit.outcomes.extend(lease.map(verdict));
                }
                AfterReset::Resend => {
                    self.resend_orphan(place, now);
                }
                AfterReset::Doubt => {
                    let lease = record.pending.as_ref().map(|pending| pending.lease.clone());
                    self.turn
                        .commit
                        .outcomes
                        .extend(lease.map(|lease| (lease, Verdict::InDoubt(AFTER_RESET_DOUBT.to_owned()))));
                }
            }
        }
        if self.orphans_from.is_none() {
            self.ask_for_proof_of_earlier(now);
        }
    }

    /// Under a new number, marked as perhaps sent before (PossResend); the body is the same, and so are its ids.
    fn resend_orphan(&mut self, place: Place, now: Now) -> Option<Place> {
        let record = self.outbox.get(place)?.clone();
        let message = wire::parse(record.bytes.clone(), self.config.validator.data_fields()).ok()?;
        let mut draft =
            self.draft(message.msg_type(), self.numbers.next_out, now).header(tag::POSS_RESEND, "Y");
        let keep = |tag| !is_sessions_own(tag) && !self.config.header_tags.contains(&tag);
        draft = draft.header_of(&message, keep);
        let bytes = draft.body(&message.body_bytes(), self.config.validator.data_fields()).encode().ok()?;
        self.drop_orphan(place);
        let pending = record.pending.map(|pending| Pending { query: Query::None, ..pending });
        Some(self.send_record(Record { bytes, pending, ..record }, now))
    }

    fn drop_orphan(&mut self, place: Place) {
        let name = &self.config.name;
        self.turn.commit.state.insert(super::keys::message_key(name, place), None);
        self.turn.commit.state.insert(super::keys::pending_key(name, place), None);
        self.outbox.remove(place);
    }
}
