//! Numbered transactions: which number a delivery gets, and what has to be asked first.

use std::sync::Arc;

use bytes::Bytes;
use gatepost_adapter::{Delivery, LeaseLost, Outcome};
use tokio::time::timeout;

use super::Link;
use crate::channel::ChannelError;
use crate::header::{Message, inquiry};
use crate::line::{Heard, Line};
use crate::mllp;
use crate::numbers::{Ask, Given, Numbers};
use crate::owed;

/// Questions before one message: what is expected, and where that does not fit, to forget it.
const QUESTIONS_MAX: usize = 3;

impl Link {
    /// The delivery's number, durable together with its begin. An error is the outcome of the attempt; nothing of it has left.
    pub(super) async fn number(
        &self,
        numbers: &Arc<Numbers>,
        line: &mut Line,
        body: &Bytes,
        delivery: &Delivery,
    ) -> Result<Given, Outcome> {
        let message = Message::parse(body).map_err(|error| Outcome::reject(error.to_string()))?;
        for _ in 0..QUESTIONS_MAX {
            let Some(ask) = numbers.ask(delivery.id()) else {
                match numbers.give(delivery).await {
                    Ok(Some(given)) => return Ok(given),
                    Ok(None) => continue,
                    Err(LeaseLost) => return Err(Outcome::LeaseLost),
                }
            };
            let asking = self.ask(line, &message, ask);
            let answered = match timeout(self.settings.ack_timeout(), asking).await {
                Ok(Ok(answered)) => answered,
                Ok(Err(error)) => {
                    let reason = format!("the partner was asked for its sequence number: {error}");
                    return Err(Outcome::destination_down(reason));
                }
                Err(_) => {
                    let reason = "the partner was asked for its sequence number and does not answer";
                    return Err(Outcome::destination_down(reason));
                }
            };
            let Some(expected) = answered else {
                let reason =
                    "the partner's answer has no sequence number (MSA-4): it does not number transactions";
                return Err(Outcome::destination_down(reason));
            };
            if let Err(mismatch) = numbers.answered(ask, delivery.id(), expected) {
                return Err(Outcome::destination_down(format!(
                    "{mismatch}: nothing is sent until they fit (`on_mismatch`, or an operator's call)"
                )));
            }
        }
        Err(Outcome::destination_down("the partner's sequence numbers do not become ours"))
    }

    /// MSA-4 of the answer to a transaction that is nothing but 0 or −1.
    async fn ask(
        &self,
        line: &mut Line,
        message: &Message<'_>,
        ask: Ask,
    ) -> Result<Option<i64>, ChannelError> {
        let stamp = owed::stamp();
        let inquiry = inquiry(message, ask.number(), &stamp);
        line.channel().write(mllp::enclosed(inquiry)).await?;
        loop {
            match line.hear().await? {
                Heard::Answer(answer) if answer.control_id == stamp.control_id() => {
                    let owed = owed::for_answer(&self.settings, &answer.body);
                    line.pay(owed).await?;
                    return Ok(answer.expected);
                }
                Heard::Answer(answer) => line.pass_on(answer, &self.awaited, &self.settings),
                Heard::Committed(_) | Heard::Nothing => {}
            }
        }
    }
}
