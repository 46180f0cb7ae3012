//! Both sides' numbers begin at 1 again while the session is up: a Logon with ResetSeqNumFlag (141), and one in answer (FIX 4.4
//! volume 2, "Logon", and "24-hour connectivity").
//!
//! Ours in steps, each durable before anything of it leaves. First the partner confirms all that it was sent, and sends what is
//! missing of its own. Then our Logon leaves, and nothing after it; what comes until the answer is numbered as before, for it
//! would never come again. With the answer the new epoch begins. If the connection ends before, nobody knows whether the partner
//! has begun anew: then the next Logon has the flag.

use super::{Alarm, Engine, Link, Now, Renewal};
use crate::message::Message;
use crate::version::BeginString;

use std::time::Duration;

impl Engine {
    /// Begins a reset within the session; an error says why not.
    pub(crate) fn begin_anew(&mut self, now: Now) -> Result<(), &'static str> {
        if self.config.begin_string < BeginString::Fix41 {
            return Err("FIX.4.0 has no ResetSeqNumFlag (141); log the session out, then set its numbers");
        }
        match self.link {
            Link::Up => {
                if self.numbers.renewal.is_none() {
                    self.numbers.renewal = Some(Renewal::Wanted);
                    self.numbers_changed = true;
                    self.watch_reset(now);
                }
                Ok(())
            }
            Link::ResetSent { .. } => Ok(()),
            Link::Down
            | Link::Arrived { .. }
            | Link::LogonSent { .. }
            | Link::LogoutSent { .. }
            | Link::Closing => Err("the session is not logged on; `reset` is for one that is logged out"),
        }
    }

    /// A reset of ours has begun and is not done.
    pub(crate) fn begins_anew(&self) -> bool {
        self.numbers.renewal.is_some()
    }

    /// Until the partner has answered, nothing may have a number: it would belong to neither epoch.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self.link, Link::ResetSent { .. })
    }

    /// Goes on with a reset that is wanted, and begins one whose time has come.
    pub(super) fn watch_reset(&mut self, now: Now) {
        self.look_at_the_clock(now);
        let busy = self.gap.is_some() || self.answer.is_some() || self.orphans_from.is_some();
        if self.numbers.renewal != Some(Renewal::Wanted) || busy || self.confirming.is_some() {
            return;
        }
        if self.keeps_unconfirmed() {
            if self.barrier.is_none() {
                self.raise_barrier(self.numbers.last_out(), now);
            }
            return;
        }
        self.barrier = None;
        self.numbers.renewal = Some(Renewal::Asked);
        self.numbers_changed = true;
        self.send_reset_logon(now);
        self.link = Link::ResetSent { since: now.tick };
    }

    /// A moment of `reset_at` counts once, whoever has been down when it came. One before the session was first up is none.
    fn look_at_the_clock(&mut self, now: Now) {
        let Some(moments) = &self.config.reset_at else { return };
        let latest = moments.window_at(now.unix()).map(|window| window.start);
        match self.numbers.reset_at {
            None => self.numbers.reset_at = Some(latest.unwrap_or_else(|| now.unix())),
            Some(before) if latest.is_some_and(|latest| latest > before) => {
                self.numbers.reset_at = latest;
                self.numbers.renewal = self.numbers.renewal.or(Some(Renewal::Wanted));
            }
            Some(_) => return,
        }
        self.numbers_changed = true;
    }

    /// A Logon with ResetSeqNumFlag within the session: the partner wants to begin anew, or answers that we do.
    pub(super) fn reset_in_session(&mut self, message: &Message, now: Now) {
        let Ok((_, heartbeat)) = self.check_logon(message, now) else {
            return self.log_out("the Logon is not acceptable", now);
        };
        let answers = self.numbers.renewal == Some(Renewal::Asked);
        let is_in_session = self.is_silent();
        if self.gap.is_some() {
            self.alarm(Alarm::GapStays(self.numbers.next_in));
        }
        if !answers || is_in_session {
            self.reset(None);
        }
        if is_in_session {
            // Our Logon's.
            self.allocate();
        }
        self.numbers.renewal = None;
        self.numbers_changed = true;
        self.heartbeat = heartbeat;
        self.link = Link::Up;
        self.advance_in(2);
        if !answers {
            self.send_logon(true, now);
        }
        self.send_orphans(now);
    }

    /// Answers a Logon with one that says that the numbers begin anew, which the partner's did not. Its number went with the old
    /// ones. Some partners take ours for a reset of its own and answer that; it must not be answered in turn for ever.
    pub(super) fn welcome_anew(&mut self, heartbeat: Duration, now: Now) {
        self.heartbeat = heartbeat;
        self.link = Link::Up;
        self.numbers.renewal = Some(Renewal::Asked);
        self.send_logon(true, now);
        self.send_orphans(now);
    }

    /// The partner goes on with the new numbers, and has said nothing to our beginning anew at its Logon.
    pub(super) fn goes_on(&mut self) {
        if self.link == Link::Up && self.numbers.renewal == Some(Renewal::Asked) {
            self.numbers.renewal = None;
            self.numbers_changed = true;
        }
    }
}
