//! Messages that came too early: kept while the partner is asked for what is missing before them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::{Alarm, Closing, Engine, Link, Now};
use crate::message::Message;
use crate::version::BeginString;
use crate::wire;

/// Most messages that are kept behind a gap; of their memory `held_bytes` says how much. Further ones are let go of: the answer to
/// the ResendRequest has them too, or they are asked for when it is their turn.
const HELD_MESSAGES_MAX: usize = 2000;
/// What a held message costs besides its bytes and its fields' places, rather too much.
const HELD_OVERHEAD_BYTES: usize = 256;
/// What a field's place costs.
const PLACE_BYTES: usize = 12;
/// Most of them that have their turn in one commit, if none of them is to be handed on: each may bring an answer with it.
const CAUGHT_UP_MESSAGES_MAX: usize = 100;
/// How often the partner is asked for the same gap before the session gives up.
const ASKED_MAX: u32 = 3;
/// How long the partner may take to send the next missing message.
const RESEND_PATIENCE: Duration = Duration::from_secs(30);

/// What is missing, and how it has been asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    /// The highest number that is known to have been used.
    highest: u64,
    /// What has been asked for ends here; `None`: everything.
    asked_through: Option<u64>,
    /// The first missing number when progress was last made, and when that was.
    expected: u64,
    since: Duration,
    asked: u32,
}

#[derive(Debug, Default)]
pub(super) struct Held {
    messages: BTreeMap<u64, Message>,
    bytes: usize,
}

impl Held {
    fn has_room(&self, message: &Message, bytes_max: usize) -> bool {
        self.messages.len() < HELD_MESSAGES_MAX && self.bytes + memory(message) <= bytes_max
    }

    fn has(&self, seq: u64) -> bool {
        self.messages.contains_key(&seq)
    }

    fn insert(&mut self, seq: u64, message: Message) {
        self.bytes += memory(&message);
        if let Some(before) = self.messages.insert(seq, message) {
            self.bytes -= memory(&before);
        }
    }

    fn take(&mut self, seq: u64) -> Option<Message> {
        let message = self.messages.remove(&seq)?;
        self.bytes -= memory(&message);
        Some(message)
    }

    /// Messages before this number are of no use any more.
    fn forget_before(&mut self, seq: u64) {
        while let Some(entry) = self.messages.first_entry().filter(|entry| *entry.key() < seq) {
            self.bytes -= memory(&entry.remove());
        }
    }
}

fn memory(message: &Message) -> usize {
    message.bytes().len() + message.fields().len() * PLACE_BYTES + HELD_OVERHEAD_BYTES
}

impl Engine {
    /// A message came whose turn it is not yet.
    pub(super) fn ahead(&mut self, seq: u64, message: &Message, now: Now) {
        self.hold(seq, message);
        self.note_gap(seq, now);
    }

    /// How many messages are kept behind a gap, and what they take, bytes.
    #[cfg(test)]
    pub(super) fn held_now(&self) -> (usize, usize) {
        (self.held.messages.len(), self.held.bytes)
    }

    /// Keeps a copy: the message itself shares the memory of everything that was read with it.
    pub(super) fn hold(&mut self, seq: u64, message: &Message) {
        if self.held.has(seq) || !self.held.has_room(message, self.config.held_bytes) {
            return;
        }
        let bytes = Bytes::copy_from_slice(message.bytes());
        if let Ok(copy) = wire::parse(bytes, self.config.validator.data_fields()) {
            self.held.insert(seq, copy);
        }
    }

    /// The partner has used this number, and others before it are missing.
    pub(super) fn note_gap(&mut self, seq: u64, now: Now) {
        match &mut self.gap {
            Some(gap) => gap.highest = gap.highest.max(seq),
            None => self.ask_for_gap(seq, 1, now),
        }
    }

    /// The partner will send by itself what is missing, because our Logon said what we expect.
    pub(super) fn expect_gap(&mut self, seq: u64, now: Now) {
        let expected = self.numbers.next_in;
        self.gap = Some(Gap { highest: seq, asked_through: None, expected, since: now.tick, asked: 0 });
    }

    fn ask_for_gap(&mut self, highest: u64, asked: u32, now: Now) {
        let expected = self.numbers.next_in;
        let chunk = self.config.resend_chunk;
        let asked_through = (chunk > 0).then(|| expected + chunk - 1).filter(|through| *through < highest);
        let everything =
            if self.config.begin_string <= BeginString::Fix41 { super::answer::ALL_BEFORE_4_2 } else { 0 };
        self.send_resend_request(expected, asked_through.unwrap_or(everything), now);
        self.gap = Some(Gap { highest, asked_through, expected, since: now.tick, asked });
    }

    /// Whether kept messages have their turn that did not go into the last commit; [`Engine::go_on`] goes on with them, and must
    /// before anything else is received: what comes meanwhile would look as if it were too early.
    pub(crate) fn catches_up(&self) -> bool {
        self.catching_up
    }

    /// The next expected number has grown: whatever was kept for it has its turn, as much of it as goes into one commit. That
    /// ends with a message that is handed on, or that settles something: the gateway takes or refuses a commit as a whole, so
    /// one message that it does not take would keep back others.
    pub(super) fn catch_up(&mut self, now: Now) {
        self.catching_up = false;
        self.held.forget_before(self.numbers.next_in);
        let mut count = 0;
        while self.held.has(self.numbers.next_in) {
            let commit = &self.turn.commit;
            if count == CAUGHT_UP_MESSAGES_MAX || !commit.emits.is_empty() || !commit.outcomes.is_empty() {
                self.catching_up = true;
                return;
            }
            let Some(message) = self.held.take(self.numbers.next_in) else { break };
            count += 1;
            let expected = self.numbers.next_in;
            match message.msg_type() {
                // Acted on when they came; only their numbers have had to wait.
                b"2" | b"A" => self.advance_in(expected + 1),
                _ => self.in_turn(&message, now),
            }
            if self.numbers.next_in == expected || self.link == Link::Closing {
                break;
            }
        }
        let expected = self.numbers.next_in;
        let Some(gap) = &mut self.gap else { return };
        if expected > gap.highest {
            self.gap = None;
        } else if gap.asked_through.is_some_and(|through| expected > through) {
            let highest = gap.highest;
            self.ask_for_gap(highest, 1, now);
        } else if expected > gap.expected {
            *gap = Gap { expected, since: now.tick, asked: 1, ..*gap };
        }
    }

    /// Asks again for what does not come, and gives up in the end.
    pub(super) fn watch_gap(&mut self, now: Now) {
        let Some(gap) = self.gap else { return };
        if now.tick.saturating_sub(gap.since) < RESEND_PATIENCE {
            return;
        }
        if gap.asked < ASKED_MAX {
            self.ask_for_gap(gap.highest, gap.asked + 1, now);
            return;
        }
        self.alarm(Alarm::GapStays(self.numbers.next_in));
        self.send_logout("messages that were asked for do not come", now);
        self.close(Closing::Broken("it does not send again what it is asked for".to_owned()));
    }
}
