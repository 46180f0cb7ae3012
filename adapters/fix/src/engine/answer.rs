//! Answers to the partner's ResendRequests: application messages and Rejects again, runs of everything else as one GapFill.
//!
//! An answer goes out in pieces, so that a request for everything neither fills memory nor keeps the session from the rest
//! of its work. What must not be sent any more is filled over, and its delivery told so.

use bytes::Bytes;

use super::{Alarm, Closing, Effect, Engine, Link, Now, Place, Verdict};
use crate::message::{Message, tag};
use crate::version::BeginString;
use crate::wire;

/// Most messages and bytes of one piece.
const PIECE_MESSAGES_MAX: usize = 256;
const PIECE_BYTES_MAX: usize = 1024 * 1024;

/// What is still to be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    next: u64,
    through: u64,
}

/// What goes out for one number.
enum Piece {
    Again(Bytes),
    Stale,
}

impl Engine {
    /// Whether there is more to do than went into one turn; [`Engine::go_on`] does the next piece.
    pub(crate) fn has_more(&self) -> bool {
        self.catching_up
            || self.confirming.is_some()
            || self.orphans_from.is_some()
            || self.answer.is_some()
            || self.sweeping
    }

    /// Takes in more of what was held behind a gap, settles more of what has been confirmed, sends more of what an earlier epoch
    /// left, or the next piece of an answer.
    pub(crate) fn go_on(&mut self, now: Now) {
        if self.catching_up {
            self.catch_up(now);
        } else if self.confirming.is_some() {
            self.settle_confirmed();
        } else if self.orphans_from.is_some() {
            self.send_more_orphans(now);
        } else if self.answer.is_some() {
            self.answer_more(now);
        }
        // What is swept out goes with whatever is committed next.
    }

    /// The partner asks for messages again. `false` where the request makes no sense.
    pub(super) fn answer_resend_request(&mut self, message: &Message, now: Now) -> bool {
        let number = |tag| message.get(tag).and_then(crate::value::unsigned);
        let (Some(from), Some(through)) = (number(tag::BEGIN_SEQ_NO), number(tag::END_SEQ_NO)) else {
            return false;
        };
        if self.config.begin_string <= BeginString::Fix41 && through == ALL_BEFORE_4_2 || through == 0 {
            self.answer_from(from, self.numbers.last_out(), now);
            return true;
        }
        if through < from {
            return false;
        }
        self.answer_from(from, through.min(self.numbers.last_out()), now);
        true
    }

    /// Sends again what stands from `from` through `through`.
    pub(super) fn answer_from(&mut self, from: u64, through: u64, now: Now) {
        let from = from.max(1);
        // What it now asks for again it has not processed; and the question itself is not sent again.
        if self.barrier.as_ref().is_some_and(|barrier| barrier.seq >= from) {
            self.barrier = None;
        }
        if from > through {
            return;
        }
        if from <= self.numbers.forgotten {
            self.alarm(Alarm::NotKept { from, through: self.numbers.forgotten });
        }
        if let Some(answer) = &mut self.answer {
            // One that is under way is not forgotten: both in one, which may send some once more, marked as all of it is.
            answer.next = answer.next.min(from);
            answer.through = answer.through.max(through);
            return;
        }
        self.answer = Some(Answer { next: from, through });
        self.answer_more(now);
    }

    /// Sends the next piece of an answer.
    fn answer_more(&mut self, now: Now) {
        let Some(Answer { next, through }) = self.answer.take() else { return };
        if !matches!(self.link, Link::Up | Link::LogoutSent { .. }) {
            return;
        }
        let mut filled_from = next;
        let (last, pieces) = self.piece(next, through, now);
        for (seq, piece) in pieces {
            match piece {
                Piece::Again(bytes) => {
                    if filled_from < seq {
                        self.send_gap_fill(filled_from, seq, now);
                    }
                    self.last_sent = now.tick;
                    self.turn.then.push(Effect::Write { bytes, carries: Some((self.numbers.epoch, seq)) });
                    filled_from = seq + 1;
                }
                Piece::Stale => self.give_up((self.numbers.epoch, seq)),
            }
        }
        if filled_from <= last {
            self.send_gap_fill(filled_from, last + 1, now);
        }
        if last < through {
            self.answer = Some(Answer { next: last + 1, through });
        } else {
            self.ask_for_proof(now);
        }
    }

    /// Messages to be sent again, from `next` on, and the last number that is done with them.
    fn piece(&mut self, next: u64, through: u64, now: Now) -> (u64, Vec<(u64, Piece)>) {
        let mut pieces = Vec::new();
        let mut bytes = 0;
        let mut broken = false;
        for (seq, record) in self.outbox.within(self.numbers.epoch, next, through) {
            if pieces.len() == PIECE_MESSAGES_MAX || bytes >= PIECE_BYTES_MAX {
                return (seq - 1, pieces);
            }
            let stale = record.expires.is_some_and(|at| at <= now.unix_ms()) && seq > self.numbers.confirmed;
            if stale {
                pieces.push((seq, Piece::Stale));
                continue;
            }
            let again = wire::parse(record.bytes.clone(), self.config.validator.data_fields())
                .ok()
                .and_then(|message| self.again(&message, seq, now).ok());
            match again {
                Some(again) => {
                    bytes += again.len();
                    pieces.push((seq, Piece::Again(again)));
                }
                None => broken = true,
            }
        }
        if broken {
            self.close(Closing::Unencodable);
        }
        (through, pieces)
    }

    /// The message must not be sent any more: the partner is told that there is nothing, and the gateway that it has not got it.
    fn give_up(&mut self, place: Place) {
        if let Some(pending) = self.settle_pending(place) {
            let retry =
                Verdict::Retry("its expirytime had passed when the partner asked for it again".to_owned());
            self.turn.commit.outcomes.push((pending.lease, retry));
        }
        self.forget(place);
    }
}

/// What EndSeqNo (16) was before FIX 4.2 to mean "all".
pub(super) const ALL_BEFORE_4_2: u64 = 999_999;
