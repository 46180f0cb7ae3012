//! Logon, both ways, and resets of the sequence numbers.

use std::time::Duration;

use subtle::ConstantTimeEq as _;

use super::{Alarm, Closing, Engine, Link, Now, Renewal, Role};
use crate::message::{Message, Tag, tag};
use crate::value;

const USERNAME: Tag = 553;
const PASSWORD: Tag = 554;
/// Longest HeartBtInt (108) that is taken, seconds.
const HEARTBEAT_SECONDS_MAX: u64 = 3600;

impl Engine {
    /// A connection stands. An initiator says who it is; an acceptor waits to be told.
    pub(crate) fn connected(&mut self, now: Now) {
        self.forget_connection();
        self.last_received = now.tick;
        self.last_sent = now.tick;
        self.heartbeat = self.config.heartbeat;
        if self.config.role == Role::Acceptor {
            self.link = Link::Arrived { since: now.tick };
            return;
        }
        self.begin_window(now);
        let reset = self.config.reset_on_logon || self.numbers.renewal == Some(Renewal::Asked);
        if reset {
            if self.numbers.next_out + self.numbers.next_in > 2 {
                self.reset(None);
            }
            // Whether the partner has heard of it is not known before it answers.
            self.numbers.renewal = Some(Renewal::Asked);
            self.numbers_changed = true;
        }
        self.link = Link::LogonSent { since: now.tick, reset };
        self.send_logon(reset, now);
    }

    /// A new window of the schedule: numbers begin anew, if it says so.
    fn begin_window(&mut self, now: Now) {
        let Some(schedule) = &self.config.schedule else { return };
        let Some(window) = schedule.window_at(now.unix()).map(|window| window.start) else { return };
        match self.numbers.window {
            Some(before) if before != window && schedule.resets() => self.reset(Some(window)),
            Some(before) if before == window => {}
            Some(_) | None => {
                self.numbers.window = Some(window);
                self.numbers_changed = true;
            }
        }
    }

    /// The first message of somebody who has connected. Whoever is not the partner is told nothing.
    pub(super) fn logon_received(&mut self, message: &Message, now: Now) {
        let (seq, heartbeat) = match self.check_logon(message, now) {
            Ok(checked) => checked,
            Err(why) => return self.close(Closing::NotWelcome(why.to_owned())),
        };
        let asked = message.flag(tag::RESET_SEQ_NUM_FLAG);
        self.begin_window(now);
        let reset = asked || self.config.reset_on_logon || self.numbers.renewal == Some(Renewal::Asked);
        if reset {
            self.reset(None);
        }
        if reset && !asked {
            return self.welcome_anew(heartbeat, now);
        }
        if seq < self.numbers.next_in {
            return self.too_low(seq, now);
        }
        self.heartbeat = heartbeat;
        self.link = Link::Up;
        let expected = self.numbers.next_in;
        let before = self.numbers.last_out();
        if seq == expected {
            self.advance_in(seq + 1);
        }
        self.send_logon(reset, now);
        self.catch_up_after_logon(message, seq > expected, seq, before, now);
    }

    /// The partner's answer to our Logon.
    pub(super) fn logon_answered(&mut self, message: &Message, reset: bool, now: Now) {
        if message.msg_type() == b"5" {
            return self.logon_refused(message);
        }
        let (seq, heartbeat) = match self.check_logon(message, now) {
            Ok(checked) => checked,
            Err(why) => return self.close(Closing::NotWelcome(why.to_owned())),
        };
        if message.flag(tag::RESET_SEQ_NUM_FLAG) && !reset {
            // It has begun anew without being asked. Our Logon's number went with the old ones.
            self.reset(None);
        }
        if self.numbers.renewal == Some(Renewal::Asked) {
            self.numbers.renewal = None;
            self.numbers_changed = true;
        }
        if seq < self.numbers.next_in {
            return self.too_low(seq, now);
        }
        self.heartbeat = heartbeat;
        self.link = Link::Up;
        let expected = self.numbers.next_in;
        if seq == expected {
            self.advance_in(seq + 1);
        }
        let before = self.numbers.last_out();
        self.catch_up_after_logon(message, seq > expected, seq, before, now);
    }

    fn logon_refused(&mut self, message: &Message) {
        let text = message.text(tag::TEXT).unwrap_or_default();
        let clean: String = text.chars().filter(|char| !char.is_control()).take(200).collect();
        tracing::warn!(session = self.config.name, text = clean, "the partner refuses the logon");
        if clean.to_ascii_lowercase().contains("too low") {
            self.alarm(Alarm::OursTooLow);
            self.close(Closing::NumbersDiffer);
        } else {
            self.close(Closing::Refused);
        }
    }

    /// What one side has missed, and everything that waited for this.
    fn catch_up_after_logon(&mut self, logon: &Message, ahead: bool, seq: u64, before: u64, now: Now) {
        let theirs = logon.get(tag::NEXT_EXPECTED_MSG_SEQ_NUM).and_then(value::unsigned);
        if ahead {
            self.hold(seq, logon);
            // With 789 both ways the partner sees from our Logon what it has to send again.
            if self.config.next_expected && theirs.is_some() {
                self.expect_gap(seq, now);
            } else {
                self.note_gap(seq, now);
            }
        }
        if let Some(next) = theirs {
            // Our Logon, whichever came first, may or may not have been counted.
            if next > self.numbers.next_out {
                let own = self.numbers.next_out;
                let text = format!("NextExpectedMsgSeqNum(789) {next} is higher than expected, {own}");
                self.send_logout(&text, now);
                self.alarm(Alarm::OursTooLow);
                return self.close(Closing::NumbersDiffer);
            }
            self.confirm_through(next.saturating_sub(1), "next_expected_msg_seq_num");
            if next <= before {
                self.answer_from(next, self.numbers.last_out(), now);
            }
        }
        self.send_orphans(now);
    }

    /// The Logon's number and HeartBtInt, or what is wrong with it.
    pub(super) fn check_logon(&self, message: &Message, now: Now) -> Result<(u64, Duration), &'static str> {
        if message.msg_type() != b"A" {
            return Err("the first message is no Logon");
        }
        if message.begin_string() != self.config.begin_string.as_str().as_bytes() {
            return Err("its BeginString (8) is not the session's");
        }
        if !self.is_between_us(message) {
            return Err(
                "its CompIDs, SubIDs or LocationIDs (49, 56, 50, 57, 142, 143) are not the session's",
            );
        }
        self.check_sending_time(message, now)
            .map_err(|_| "its SendingTime (52) is missing or too far from ours")?;
        let seq = message.seq_num().filter(|seq| *seq > 0).ok_or("it has no MsgSeqNum (34)")?;
        if message.get(tag::ENCRYPT_METHOD).is_some_and(|method| method != b"0") {
            return Err("its EncryptMethod (98) is not 0");
        }
        let heartbeat = message
            .get(tag::HEART_BT_INT)
            .and_then(value::unsigned)
            .filter(|seconds| *seconds <= HEARTBEAT_SECONDS_MAX)
            .ok_or("its HeartBtInt (108) is missing or not from 0 to 3600")?;
        if let Some(version) = self.config.appl_ver_id
            && message.get(tag::DEFAULT_APPL_VER_ID) != Some(version.code().as_bytes())
        {
            return Err("its DefaultApplVerID (1137) is not the session's");
        }
        if !self.is_open(now) {
            return Err("the session's window is closed");
        }
        if self.config.role == Role::Acceptor && !self.knows_password(message) {
            return Err("its Username (553) or Password (554) is wrong");
        }
        Ok((seq, Duration::from_secs(heartbeat)))
    }

    fn knows_password(&self, message: &Message) -> bool {
        let Some(credentials) = &self.config.credentials else { return true };
        let equal = |tag, own: &str| {
            let given = message.get(tag).unwrap_or_default();
            bool::from(given.ct_eq(own.as_bytes()))
        };
        let username = equal(USERNAME, &credentials.username);
        let password = equal(PASSWORD, &credentials.password);
        username & password
    }

    /// Ends the session in good order.
    pub(crate) fn log_out_now(&mut self, text: &str, now: Now) {
        match self.link {
            Link::Up => self.log_out(text, now),
            Link::Arrived { .. } | Link::LogonSent { .. } | Link::ResetSent { .. } => {
                self.close(Closing::LoggedOut);
            }
            Link::Down | Link::LogoutSent { .. } | Link::Closing => {}
        }
    }

    /// Sets the numbers, as an operator has asked for; `None` leaves one as it is. Only while nobody is connected, which is
    /// what `false` says.
    pub(crate) fn set_numbers(&mut self, next_out: Option<u64>, next_in: Option<u64>) -> bool {
        if self.link != Link::Down {
            return false;
        }
        let before = self.numbers.clone();
        // Numbers that have been used may come again, so it is a new epoch whichever way they go.
        self.reset(None);
        self.numbers.next_out = next_out.unwrap_or(before.next_out).max(1);
        self.numbers.next_in = next_in.unwrap_or(before.next_in).max(1);
        self.numbers.confirmed = self.numbers.last_out();
        true
    }
}
