//! Messages of a session that is up, checked in the order that the specification gives (FIX 4.4 volume 2, "Message
//! validation"; FIX session layer test cases 2 and 8 to 14).

use std::cmp::Ordering;

use time::OffsetDateTime;

use super::compose::RejectReason;
use super::{Alarm, Closing, Engine, Link, Now, Received};
use crate::message::{Message, tag};
use crate::validate::Violation;
use crate::value;

impl Engine {
    pub(super) fn in_session(&mut self, message: &Message, now: Now) {
        if message.begin_string() != self.config.begin_string.as_str().as_bytes() {
            return self.log_out("Incorrect BeginString", now);
        }
        let Some(seq) = message.seq_num().filter(|seq| *seq > 0) else {
            self.send_logout("MsgSeqNum missing or not a number", now);
            return self.close(Closing::Broken("a message has no MsgSeqNum (34)".to_owned()));
        };
        if !self.is_between_us(message) {
            self.send_reject(message, RejectReason::CompIdProblem, None, "CompID problem", now);
            self.pass(seq);
            return self.log_out("CompID problem", now);
        }
        if let Err((reason, text)) = self.check_sending_time(message, now) {
            self.send_reject(message, reason, Some(tag::SENDING_TIME.into()), text, now);
            self.pass(seq);
            return self.log_out(text, now);
        }
        if let Some(processed) = message.get(tag::LAST_MSG_SEQ_NUM_PROCESSED).and_then(value::unsigned) {
            self.confirm_through(processed, "last_msg_seq_num_processed");
        }
        match message.msg_type() {
            // Whoever begins anew begins at 1. With another number it is an answer to an answer, as some partners give it.
            b"A" if message.flag(tag::RESET_SEQ_NUM_FLAG) && seq == 1 => self.reset_in_session(message, now),
            b"4" if !message.flag(tag::GAP_FILL_FLAG) => self.sequence_reset(message, now),
            b"5" => self.logout_received(seq, now),
            b"2" => self.resend_request_received(seq, message, now),
            _ => match seq.cmp(&self.numbers.next_in) {
                Ordering::Greater => self.ahead(seq, message, now),
                Ordering::Less => self.behind(seq, message, now),
                Ordering::Equal => {
                    self.in_turn(message, now);
                    self.catch_up(now);
                }
            },
        }
    }

    pub(super) fn is_between_us(&self, message: &Message) -> bool {
        let config = &self.config;
        let says = |tag, id: &str| message.get(tag) == Some(id.as_bytes());
        says(tag::SENDER_COMP_ID, &config.target_comp_id)
            && says(tag::TARGET_COMP_ID, &config.sender_comp_id)
            && (!config.check_header || config.partner_header.iter().all(|(tag, id)| says(*tag, id)))
    }

    pub(super) fn check_sending_time(
        &self,
        message: &Message,
        now: Now,
    ) -> Result<OffsetDateTime, (RejectReason, &'static str)> {
        let stamp = message
            .get(tag::SENDING_TIME)
            .ok_or((RejectReason::RequiredTagMissing, "Required tag missing"))?;
        let at =
            value::timestamp(stamp).ok_or((RejectReason::Other(6), "Incorrect data format for value"))?;
        match self.config.latency_max {
            Some(most) if (now.utc - at).unsigned_abs() > most => {
                Err((RejectReason::SendingTimeAccuracy, "SendingTime accuracy problem"))
            }
            _ => Ok(at),
        }
    }

    /// The number was used, whatever became of the message.
    fn pass(&mut self, seq: u64) {
        if seq == self.numbers.next_in {
            self.advance_in(seq + 1);
        }
    }

    /// Says goodbye and why; the partner answers, or does not in time.
    pub(super) fn log_out(&mut self, text: &str, now: Now) {
        if self.link == Link::Up {
            self.send_logout(text, now);
            self.link = Link::LogoutSent { since: now.tick };
        }
    }

    /// A message whose number has been there before.
    pub(super) fn behind(&mut self, seq: u64, message: &Message, now: Now) {
        if !message.flag(tag::POSS_DUP_FLAG) {
            return self.too_low(seq, now);
        }
        let sent = message.get(tag::SENDING_TIME).and_then(value::timestamp);
        match message.get(tag::ORIG_SENDING_TIME) {
            // A GapFill has nothing that was sent before.
            None if message.msg_type() == b"4" => {}
            None => {
                let missing = RejectReason::RequiredTagMissing;
                self.send_reject(
                    message,
                    missing,
                    Some(tag::ORIG_SENDING_TIME.into()),
                    "Required tag missing",
                    now,
                );
            }
            Some(first) => {
                if let (Some(first), Some(sent)) = (value::timestamp(first), sent)
                    && first > sent
                {
                    let text = "SendingTime accuracy problem";
                    self.send_reject(message, RejectReason::SendingTimeAccuracy, None, text, now);
                    self.log_out(text, now);
                }
            }
        }
    }

    pub(super) fn too_low(&mut self, seq: u64, now: Now) {
        let expected = self.numbers.next_in;
        let text = format!("MsgSeqNum too low, expecting {expected} but received {seq}");
        self.send_logout(&text, now);
        self.alarm(Alarm::TooLow { expected, received: seq });
        self.close(Closing::NumbersDiffer);
    }

    /// A message whose turn it is.
    pub(super) fn in_turn(&mut self, message: &Message, now: Now) {
        self.goes_on();
        let seq = self.numbers.next_in;
        if let Err(violation) = self.config.validator.check(message) {
            self.refuse_invalid(message, &violation, now);
            return self.advance_in(seq + 1);
        }
        match message.msg_type() {
            b"4" => return self.gap_filled(message, now),
            b"0" => {
                if let Some(id) = message.get(tag::TEST_REQ_ID) {
                    let id = id.to_vec();
                    self.test_request_answered(&id, now);
                }
            }
            b"1" => match message.get(tag::TEST_REQ_ID).filter(|id| !id.is_empty()) {
                Some(id) => self.send_heartbeat(Some(id), now),
                None => {
                    let missing = RejectReason::RequiredTagMissing;
                    self.send_reject(
                        message,
                        missing,
                        Some(tag::TEST_REQ_ID.into()),
                        "Required tag missing",
                        now,
                    );
                }
            },
            b"3" => self.rejected(message),
            b"A" if message.flag(tag::RESET_SEQ_NUM_FLAG) => {}
            b"A" => self.send_reject(message, RejectReason::Other(99), None, "logged on already", now),
            _ => self.take_in(seq, message),
        }
        self.advance_in(seq + 1);
    }

    fn refuse_invalid(&mut self, message: &Message, violation: &Violation, now: Now) {
        let text = violation.reason.text();
        match violation.reason.business_code() {
            Some(code) => {
                let seq = message.seq_num().unwrap_or(0);
                self.send_business_reject(seq, message.msg_type(), code.into(), text, now);
            }
            None => {
                let code = violation.reason.session_code_in(self.config.begin_string);
                self.send_reject(message, RejectReason::of(code), violation.tag, text, now);
            }
        }
    }

    /// An application message: to be handed on, and perhaps the answer to one of ours.
    fn take_in(&mut self, seq: u64, message: &Message) {
        let answers = self.business_answer(message);
        let epoch = self.numbers.epoch;
        let received = Received { epoch, seq, message: message.clone(), answers, by_number: false };
        self.turn.commit.emits.push(received);
    }

    /// SequenceReset-GapFill, in turn.
    fn gap_filled(&mut self, message: &Message, now: Now) {
        let expected = self.numbers.next_in;
        match new_seq_no(message) {
            Some(next) if next > expected => self.advance_in(next),
            _ => self.refuse_new_seq_no(message, now),
        }
    }

    /// SequenceReset-Reset: whatever its own number is.
    fn sequence_reset(&mut self, message: &Message, now: Now) {
        let expected = self.numbers.next_in;
        match new_seq_no(message) {
            Some(next) if next > expected => {
                tracing::warn!(
                    session = self.config.name,
                    expected,
                    next,
                    "the partner goes on with a higher number: what it sent in between is lost to this side"
                );
                self.advance_in(next);
                self.catch_up(now);
            }
            Some(next) if next == expected => {}
            _ => self.refuse_new_seq_no(message, now),
        }
    }

    fn refuse_new_seq_no(&mut self, message: &Message, now: Now) {
        let text = "Value is incorrect (out of range) for this tag";
        self.send_reject(message, RejectReason::ValueIsIncorrect, Some(tag::NEW_SEQ_NO.into()), text, now);
    }

    /// Acted on at once, also within a gap: two sides that ask each other would wait for ever otherwise.
    fn resend_request_received(&mut self, seq: u64, message: &Message, now: Now) {
        let order = seq.cmp(&self.numbers.next_in);
        if order == Ordering::Less {
            return self.behind(seq, message, now);
        }
        if order == Ordering::Equal {
            self.advance_in(seq + 1);
        }
        if !self.answer_resend_request(message, now) {
            let text = "BeginSeqNo and EndSeqNo must be numbers in ascending order";
            self.send_reject(
                message,
                RejectReason::ValueIsIncorrect,
                Some(tag::BEGIN_SEQ_NO.into()),
                text,
                now,
            );
        }
        match order {
            Ordering::Greater => self.ahead(seq, message, now),
            _ => self.catch_up(now),
        }
    }

    /// Answered at once, also within a gap.
    fn logout_received(&mut self, seq: u64, now: Now) {
        self.pass(seq);
        if self.link == Link::Up {
            self.send_logout("", now);
        }
        if self.config.reset_on_logout {
            self.reset(None);
        }
        self.close(Closing::LoggedOut);
    }
}

/// Highest number that a partner may jump to: no session ever comes near it, and what follows it can still be counted.
const SEQ_NUM_MAX: u64 = 1 << 53;

fn new_seq_no(message: &Message) -> Option<u64> {
    message.get(tag::NEW_SEQ_NO).and_then(value::unsigned).filter(|next| *next <= SEQ_NUM_MAX)
}
