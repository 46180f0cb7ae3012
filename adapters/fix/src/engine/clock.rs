//! What time brings: heartbeats, TestRequests, and the end of patience.

use std::time::Duration;

use super::{Closing, Engine, Link, Now};

impl Engine {
    /// To be called several times a second.
    pub(crate) fn tick(&mut self, now: Now) {
        let passed = |since: Duration| now.tick.saturating_sub(since);
        match self.link {
            Link::Down | Link::Closing => {}
            Link::Arrived { since } | Link::LogonSent { since, .. } | Link::ResetSent { since } => {
                if passed(since) >= self.config.logon_timeout {
                    self.close(Closing::NoLogon);
                }
            }
            Link::LogoutSent { since } => {
                if passed(since) >= self.config.logout_timeout {
                    self.close(Closing::LoggedOut);
                }
            }
            Link::Up => {
                if !self.is_open(now) {
                    return self.log_out("the session's window ends", now);
                }
                self.keep_alive(now);
                self.watch_gap(now);
                self.watch_barrier(now);
                self.watch_reset(now);
            }
        }
    }

    fn keep_alive(&mut self, now: Now) {
        if self.heartbeat.is_zero() {
            return;
        }
        let silence = now.tick.saturating_sub(self.last_received);
        // 1.2 and 2.4 times the interval: room for what a message takes on its way, then once more for the answer.
        if silence >= self.heartbeat * 12 / 5 {
            return self.close(Closing::Silent(silence.as_secs()));
        }
        if silence >= self.heartbeat * 6 / 5 && !self.probed {
            self.send_test_request("TEST", now);
            self.probed = true;
        }
        if now.tick.saturating_sub(self.last_sent) >= self.heartbeat {
            self.send_heartbeat(None, now);
        }
    }
}
