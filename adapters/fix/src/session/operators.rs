//! What operators have a session do, and how it stands.

use gatepost_adapter::Failure;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Driver;
use crate::calls::Wish;

impl Driver {
    /// What an operator wants; the answer once it is durable.
    pub(super) async fn grant(&mut self, wish: Wish) -> Result<Result<Value, String>, Failure> {
        match wish {
            Wish::State => {}
            Wish::SetNumbers { next_out, next_in } => {
                if !self.connecting.is_empty() || !self.engine.set_numbers(next_out, next_in) {
                    return Ok(Err("the session is connected; log it out first".to_owned()));
                }
                self.gather().await?;
                self.flush().await?;
                self.halted = None;
            }
            Wish::BeginAnew => {
                let now = self.now();
                if let Err(why) = self.engine.begin_anew(now) {
                    return Ok(Err(why.to_owned()));
                }
                self.gather().await?;
                self.flush().await?;
            }
            Wish::Logout => {
                self.enabled = false;
                self.connecting.shutdown().await;
                let now = self.now();
                self.engine.log_out_now("", now);
                self.gather().await?;
                self.flush().await?;
            }
            Wish::Logon => {
                self.enabled = true;
                self.halted = None;
                self.connect_at = Instant::now();
            }
        }
        Ok(Ok(self.state()))
    }

    fn state(&self) -> Value {
        let numbers = self.engine.numbers();
        let link = match () {
            () if self.link.is_some() && self.engine.begins_anew() => "resetting",
            () if self.engine.is_up() => "logged_on",
            () if self.link.is_some() => "connected",
            () if !self.enabled => "logged_out",
            () if self.halted.is_some() => "numbers_differ",
            () => "disconnected",
        };
        json!({
            "state": link,
            "epoch": numbers.epoch,
            "next_out": numbers.next_out,
            "next_in": numbers.next_in,
            "confirmed": numbers.confirmed,
            "waiting_for_proof": self.engine.pending(),
            "waiting_to_be_sent": self.waiting.len(),
            "held_up": self.held_up.why(),
        })
    }
}
