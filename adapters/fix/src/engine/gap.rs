//! Messages that came too early: kept while the partner is asked for what is missing before them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::{Alarm, Closing, Engine, Link, Now};
use crate::message::Message;
use crate::version::BeginString;
use crate::wire;

/// Most messages, and bytes of them, that are kept behind a gap. Further ones are let go of: the partner is asked for them
/// when it is their turn.
const HELD_MESSAGES_MAX: usize = 2000;
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;
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
    fn insert(&mut self, seq: u64, message: Message) {
        let bytes = message.bytes().len();
        let full = self.messages.len() >= HELD_MESSAGES_MAX || self.bytes + bytes > HELD_BYTES_MAX;
        if !full && let std::collections::btree_map::Entry::Vacant(place) = self.messages.entry(seq) {
            place.insert(message);
            self.bytes += bytes;
        }
    }

    /// The message with this number; those before it are of no use any more.
    fn take(&mut self, seq: u64) -> Option<Message> {
        while let Some(entry) = self.messages.first_entry() {
            if *entry.key() > seq {
                return None;
            }
            let (number, message) = entry.remove_entry();
            self.bytes -= message.bytes().len();
            if number == seq {
                return Some(message);
            }
        }
        None
    }
}

impl Engine {
    /// A message came whose turn it is not yet.
    pub(super) fn ahead(&mut self, seq: u64, message: &Message, now: Now) {
        self.hold(seq, message);
        self.note_gap(seq, now);
    }

    /// Keeps a copy: the message itself shares the memory of everything that was read with it.
    pub(super) fn hold(&mut self, seq: u64, message: &Message) {
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

    /// The next expected number has grown: whatever was kept for it has its turn.
    pub(super) fn catch_up(&mut self, now: Now) {
        while let Some(message) = self.held.take(self.numbers.next_in) {
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
