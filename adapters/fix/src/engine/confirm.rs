//! What proves that the partner has got a message: its own numbers, a barrier, a business answer.

use std::time::Duration;

use gatepost_adapter::Level;
use serde_json::{Map, Value};

use super::orders::Order;
use super::outbox::{BUSINESS_ID_BYTES_MAX, BusinessId, Pending, Query, Record};
use super::{Alarm, Engine, Link, Now, Place, Proof, Verdict, keys};
use crate::message::{Message, SOH, Tag, tag};
use crate::room::PART;

const CL_ORD_ID: Tag = 11;
const ORIG_CL_ORD_ID: Tag = 41;
const EXEC_ID: Tag = 17;
const ORD_STATUS: Tag = 39;
const EXEC_TYPE: Tag = 150;
/// Longest text of a partner that goes into a reason, characters.
const REASON_CHARS_MAX: usize = 300;

/// Types of messages that ask for something: orders of all kinds, changes and cancels of them, requests for their status, for
/// quotes and for market data.
const ASKING: [&[u8]; 12] = [b"D", b"E", b"F", b"G", b"H", b"AB", b"AC", b"s", b"t", b"u", b"R", b"V"];

/// A TestRequest whose answer proves that the partner has processed everything before it. A partner processes in order, so a
/// Heartbeat that names it cannot come before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Barrier {
    id: String,
    /// Its own number; it proves everything before.
    pub(super) seq: u64,
    since: Duration,
}

/// What the partner has confirmed and is not settled yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Confirming {
    pub(super) through: u64,
    how: &'static str,
}

/// Keys that a delivery's settlement changes: it waits no more, its order lives on, and others are forgotten for that.
const KEYS_EACH: usize = 3;
/// After this part of what may be kept the partner is asked to confirm it, where so much is kept that room may soon be wanted.
const ASKED_PART: usize = 8;
/// How long the answer to a barrier may take; then it is asked for again.
const BARRIER_PATIENCE: Duration = Duration::from_secs(30);

impl Engine {
    /// Messages have been written to the connection.
    pub(crate) fn written(&mut self, place: Place) {
        let (epoch, seq) = place;
        let Some(pending) = self.outbox.get(place).and_then(|record| record.pending.clone()) else { return };
        let proof = proof(Level::Sent, seq);
        if self.config.confirm == Level::Sent {
            self.live_on(place);
            self.turn.commit.outcomes.push((pending.lease, Verdict::Delivered(proof)));
        } else if epoch == self.numbers.epoch
            && seq <= self.numbers.confirmed
            && self.config.confirm == Level::Transport
        {
            // Confirmed before its being written was reported here.
            self.deliver(place, "barrier");
        } else {
            self.turn.commit.outcomes.push((pending.lease, Verdict::Sent(proof)));
        }
    }

    /// Asks for proof of everything that has left, if something waits for it and no question is open.
    pub(super) fn ask_for_proof(&mut self, now: Now) {
        if self.link != Link::Up || self.barrier.is_some() || self.answer.is_some() {
            return;
        }
        // Also where nobody waits for it: what is not confirmed is kept, so now and then it is asked for.
        let unconfirmed = (self.numbers.last_out() - self.known_confirmed()) as usize;
        let since_asked = self.outbox.bytes_ever() - self.asked_at;
        let is_much = self.outbox.bytes() > self.config.keep_bytes / 2
            && since_asked > (self.config.keep_bytes / ASKED_PART) as u64
            && self.keeps_unconfirmed();
        let waits = unconfirmed > self.config.keep / 2
            || is_much
            || self.config.confirm == Level::Transport && self.awaits_proof();
        if waits {
            self.raise_barrier(self.numbers.last_out(), now);
        }
    }

    /// What is not confirmed is kept, and there is no room for more.
    pub(super) fn ask_for_room(&mut self, now: Now) {
        let may = self.link == Link::Up && self.barrier.is_none() && self.answer.is_none();
        // An answer that makes no room would be asked for again, and again.
        if may && self.keeps_unconfirmed() {
            self.raise_barrier(self.numbers.last_out(), now);
        }
    }

    /// After a logon: whatever waits for proof of an earlier connection is asked for.
    pub(super) fn ask_for_proof_of_earlier(&mut self, now: Now) {
        let may = self.link == Link::Up && self.barrier.is_none() && self.answer.is_none();
        if may && self.awaits_proof() {
            self.raise_barrier(self.numbers.last_out(), now);
        }
    }

    /// Whether something is kept that the partner has not confirmed.
    pub(super) fn keeps_unconfirmed(&self) -> bool {
        self.unconfirmed().next().is_some()
    }

    /// Whether a delivery waits behind something that the partner has not confirmed.
    fn awaits_proof(&self) -> bool {
        self.unconfirmed().any(|(_, record)| record.pending.is_some())
    }

    fn unconfirmed(&self) -> impl Iterator<Item = (u64, &Record)> {
        self.outbox.within(self.numbers.epoch, self.known_confirmed() + 1, self.numbers.last_out())
    }

    /// Also where it is not settled yet.
    fn known_confirmed(&self) -> u64 {
        self.confirming.map_or(self.numbers.confirmed, |confirming| confirming.through)
    }

    pub(super) fn raise_barrier(&mut self, through: u64, now: Now) {
        let id = format!("GP{}-{through}", self.numbers.epoch);
        self.send_test_request(&id, now);
        self.asked_at = self.outbox.bytes_ever();
        self.barrier = Some(Barrier { id, seq: through + 1, since: now.tick });
    }

    /// Asks again where no answer comes; and where nothing is sent any more, so that nothing else asks: Heartbeats have numbers too, and with
    /// so many unconfirmed nothing more may leave.
    pub(super) fn watch_barrier(&mut self, now: Now) {
        let overdue = |barrier: &mut Barrier| now.tick.saturating_sub(barrier.since) >= BARRIER_PATIENCE;
        if self.barrier.take_if(overdue).is_some() {
            self.ask_for_proof_of_earlier(now);
        }
        self.ask_for_proof(now);
    }

    /// A Heartbeat with this TestReqID (112) has come, in order.
    pub(super) fn test_request_answered(&mut self, id: &[u8], now: Now) {
        let Some(barrier) = self.barrier.take_if(|barrier| barrier.id.as_bytes() == id) else { return };
        self.confirm_through(barrier.seq - 1, "barrier");
        self.ask_for_proof(now);
    }

    /// The partner has processed everything of ours through `seq`; `how` it is known goes into the evidence.
    pub(super) fn confirm_through(&mut self, seq: u64, how: &'static str) {
        let through = seq.min(self.numbers.last_out());
        if through > self.known_confirmed() {
            self.confirming = Some(Confirming { through, how });
            self.settle_confirmed();
        }
    }

    /// Settles some of what has been confirmed; one settlement does not hold them all.
    pub(super) fn settle_confirmed(&mut self) {
        let Some(Confirming { through, how }) = self.confirming.take() else { return };
        let (epoch, from) = (self.numbers.epoch, self.numbers.confirmed + 1);
        let most = self.turn.commit.room() / KEYS_EACH;
        let places = match self.config.confirm {
            Level::Business => Vec::new(),
            Level::Sent | Level::Transport => {
                self.outbox.pending_within((epoch, from), (epoch, through), most)
            }
        };
        let done = match places.last() {
            Some((_, last)) if places.len() == most => *last,
            None if most == 0 => self.numbers.confirmed,
            _ => through,
        };
        self.numbers.confirmed = done;
        self.numbers_changed = true;
        for place in places {
            self.deliver(place, how);
        }
        if self.numbers.confirmed < through {
            self.confirming = Some(Confirming { through, how });
        }
    }

    pub(super) fn deliver(&mut self, place: Place, how: &'static str) {
        if let Some(pending) = self.live_on(place) {
            let mut proof = proof(Level::Transport, place.1);
            proof.shown.insert("confirmed_by".to_owned(), how.into());
            self.turn.commit.outcomes.push((pending.lease, Verdict::Delivered(proof)));
        }
    }

    /// A business message has come: does it answer one of ours? Gives the gateway's id of that message.
    pub(super) fn business_answer(&mut self, message: &Message) -> Option<String> {
        let waiting = self.answered_place(message).and_then(|place| {
            let pending = self.outbox.get(place)?.pending.clone()?;
            Some((place, pending))
        });
        let answers = match waiting {
            Some((place, pending)) => Some(self.settle_answered(place, pending, message)),
            None => self.order_answered(message),
        };
        self.end_orders(message);
        answers
    }

    fn settle_answered(&mut self, place: Place, pending: Pending, message: &Message) -> String {
        let answers = pending.message.clone();
        if self.says_unknown(pending.query, message) {
            self.mark(place, Query::Unknown);
            let verdict = Verdict::Retry(reason("the partner does not know the order", message));
            self.turn.commit.outcomes.push((pending.lease, verdict));
            return answers;
        }
        let mut proof = proof(Level::Business, place.1);
        proof.shown.insert("msg_type".to_owned(), shown(message.msg_type()));
        for (name, tag) in [("exec_id", EXEC_ID), ("ord_status", ORD_STATUS), ("exec_type", EXEC_TYPE)] {
            if let Some(value) = message.get(tag) {
                proof.shown.insert(name.to_owned(), shown(value));
            }
        }
        let refused = match message.msg_type() {
            b"8" => message.get(ORD_STATUS) == Some(b"8"),
            // BusinessMessageReject, MarketDataRequestReject, QuoteRequestReject.
            b"j" | b"Y" | b"AG" => true,
            _ => false,
        };
        let verdict = if refused && self.says_duplicate(place, message) {
            proof.shown.insert("duplicate".to_owned(), true.into());
            self.live_on(place);
            Verdict::Delivered(proof)
        } else if refused {
            self.settle_pending(place);
            Verdict::Reject(reason("the partner rejected it", message), proof)
        } else {
            self.live_on(place);
            Verdict::Delivered(proof)
        };
        self.turn.commit.outcomes.push((pending.lease, verdict));
        answers
    }

    /// The gateway's id of the message of ours that began the order which this is about, where that lives on.
    fn order_answered(&self, message: &Message) -> Option<String> {
        if ASKING.contains(&message.msg_type()) {
            return None;
        }
        let mut ids = self.config.business_ids.iter();
        let by_id = ids.find_map(|tag| self.orders.named(&business_id(*tag, message.get(*tag)?)?));
        // Of an order that was changed or canceled otherwise the partner may name its own ClOrdID, and ours as the first.
        let by_first = || self.orders.named(&business_id(CL_ORD_ID, message.get(ORIG_CL_ORD_ID)?)?);
        let place = by_id.or_else(by_first)?;
        Some(self.orders.get(place)?.message.clone())
    }

    /// A report that an order has ended, or a cancel been dealt with: nothing more is to come for it.
    fn end_orders(&mut self, message: &Message) {
        let is_replaced = message.get(ORD_STATUS) == Some(b"5") || message.get(EXEC_TYPE) == Some(b"5");
        let ended: &[Tag] = match message.msg_type() {
            b"8" if is_replaced => &[ORIG_CL_ORD_ID],
            // Filled, canceled, rejected, expired.
            b"8" if matches!(message.get(ORD_STATUS), Some(b"2" | b"4" | b"8" | b"C")) => {
                &[CL_ORD_ID, ORIG_CL_ORD_ID]
            }
            b"9" => &[CL_ORD_ID],
            _ => return,
        };
        for tag in ended {
            let id = message.get(*tag).and_then(|value| business_id(CL_ORD_ID, value));
            if let Some(place) = id.and_then(|id| self.orders.named(&id))
                && self.orders.remove(place)
            {
                self.turn.commit.state.insert(keys::order_key(&self.config.name, place), None);
            }
        }
    }

    /// Which of our messages it answers, if one waits for an answer.
    ///
    /// Never one that asks for something itself, like an order of the partner's: its ids are the partner's own, and may be
    /// the same as ours.
    fn answered_place(&self, message: &Message) -> Option<Place> {
        if ASKING.contains(&message.msg_type()) {
            return None;
        }
        let mut ids = self.config.business_ids.iter();
        let place = if message.msg_type() == b"j" {
            let by_number = message.get(tag::REF_SEQ_NUM).and_then(crate::value::unsigned);
            by_number.map(|seq| (self.numbers.epoch, seq)).or_else(|| {
                let id = message.get(tag::BUSINESS_REJECT_REF_ID)?;
                ids.find_map(|tag| self.outbox.answered_by(&business_id(*tag, id)?))
            })
        } else {
            ids.find_map(|tag| self.outbox.answered_by(&business_id(*tag, message.get(*tag)?)?))
        }?;
        let of_ours = msg_type_of(&self.outbox.get(place)?.bytes);
        let about_another = message.get(tag::REF_MSG_TYPE).is_some_and(|refused| refused != of_ours);
        (message.msg_type() != of_ours && !about_another).then_some(place)
    }

    /// A session-level Reject (35=3) has come, in order.
    pub(super) fn rejected(&mut self, message: &Message) {
        let Some(seq) = message.get(tag::REF_SEQ_NUM).and_then(crate::value::unsigned) else { return };
        let place = (self.numbers.epoch, seq);
        if let Some(pending) = self.settle_pending(place) {
            let mut proof = proof(Level::Transport, seq);
            for (name, tag) in [("reject_reason", tag::SESSION_REJECT_REASON), ("ref_tag", tag::REF_TAG_ID)] {
                if let Some(value) = message.get(tag) {
                    proof.shown.insert(name.to_owned(), shown(value));
                }
            }
            let reason = reason("the partner's session layer rejected it", message);
            self.turn.commit.outcomes.push((pending.lease, Verdict::Reject(reason, proof)));
        } else {
            let msg_type = message.get(tag::REF_MSG_TYPE).map(text).unwrap_or_default();
            self.alarm(Alarm::Rejected { seq, msg_type });
        }
    }

    // === the outbox and its state, together ===

    pub(super) fn keep(&mut self, place: Place, record: Record) {
        let session = &self.config.name;
        let state = &mut self.turn.commit.state;
        state.insert(keys::message_key(session, place), Some(keys::message_value(&record)));
        if let Some(pending) = &record.pending {
            state.insert(keys::pending_key(session, place), Some(keys::pending_value(pending)));
        }
        self.outbox.insert(place, record);
    }

    pub(super) fn settle_pending(&mut self, place: Place) -> Option<Pending> {
        let pending = self.outbox.settle(place)?;
        let (name, state) = (&self.config.name, &mut self.turn.commit.state);
        state.insert(keys::pending_key(name, place), None);
        // Nobody will ask for what an earlier epoch had.
        if place.0 != self.numbers.epoch && self.outbox.remove(place).is_some() {
            state.insert(keys::message_key(name, place), None);
            self.numbers_changed = true;
        }
        Some(pending)
    }

    /// The delivery is settled, and what comes about its order later is to be told as such.
    fn live_on(&mut self, place: Place) -> Option<Pending> {
        let pending = self.settle_pending(place)?;
        if let Some(business_id) = pending.business_id.clone() {
            let order = Order { message: pending.message.clone(), business_id };
            let (name, state) = (&self.config.name, &mut self.turn.commit.state);
            state.insert(keys::order_key(name, place), Some(keys::order_value(&order)));
            let replaced = self.orders.insert(place, order);
            let most = self.config.keep_bytes / PART;
            let forgotten = std::iter::from_fn(|| self.orders.forget_one(most));
            for gone in replaced.into_iter().chain(forgotten) {
                state.insert(keys::order_key(name, gone), None);
            }
        }
        Some(pending)
    }

    fn mark(&mut self, place: Place, query: Query) {
        if let Some(pending) = self.outbox.set_query(place, query) {
            let value = keys::pending_value(pending);
            self.turn.commit.state.insert(keys::pending_key(&self.config.name, place), Some(value));
        }
    }

    pub(super) fn forget(&mut self, place: Place) {
        self.settle_pending(place);
        if self.outbox.remove(place).is_some() {
            self.turn.commit.state.insert(keys::message_key(&self.config.name, place), None);
        }
    }

    /// By what a business answer will name this message.
    pub(super) fn business_id_of(&self, message: &Message) -> Option<BusinessId> {
        self.config.business_ids.iter().find_map(|tag| business_id(*tag, message.get(*tag)?))
    }
}

/// MsgType (35) of a message of ours; it stands in front.
pub(super) fn msg_type_of(bytes: &[u8]) -> &[u8] {
    let begin = memchr::memmem::find(bytes, b"\x0135=").map_or(bytes.len(), |at| at + 4);
    let rest = &bytes[begin..];
    &rest[..memchr::memchr(SOH, rest).unwrap_or(rest.len())]
}

fn business_id(tag: Tag, value: &[u8]) -> Option<BusinessId> {
    let text = (value.len() <= BUSINESS_ID_BYTES_MAX).then(|| std::str::from_utf8(value).ok())??;
    Some(BusinessId(tag, text.to_owned()))
}

pub(super) fn proof(level: Level, seq: u64) -> Proof {
    Proof { level, shown: Map::from_iter([("msg_seq_num".to_owned(), Value::from(seq))]) }
}

fn shown(value: &[u8]) -> Value {
    text(value).into()
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect()
}

/// What the partner says, behind what it means.
fn reason(what: &str, message: &Message) -> String {
    match message.get(tag::TEXT) {
        Some(said) => format!("{what}: {}", text(said)),
        None => what.to_owned(),
    }
}

/// What orders and quotes are known by, where the settings name nothing else: ClOrdID, ExecID, QuoteReqID, MDReqID, QuoteID,
/// SecurityReqID, TradeReportID, AllocID.
pub(crate) const BUSINESS_IDS: [Tag; 8] = [CL_ORD_ID, EXEC_ID, 131, 262, 117, 320, 571, 70];
