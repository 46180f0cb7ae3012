//! Refusals that the partner has still to be told of: the gateway does not take a message of its, whose number counts all the same, and
//! a BusinessMessageReject answers it.
//!
//! What is owed is durable in the commit that lets the message go; its number it gets behind that, in one that takes it out again. So neither
//! a death between the two nor another refusal in the same settlement loses it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Engine, Link, Now, Place, Received, keys};

/// BusinessRejectReason (380).
const APPLICATION_NOT_AVAILABLE: u16 = 4;
/// Longest MsgType (35) and Text (58) that are given back, bytes.
const MSG_TYPE_BYTES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 255;
/// Most that get their numbers in one turn.
const TOLD_PER_TURN: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    /// Of the message that was refused.
    msg_type: String,
    text: String,
}

/// By the message that was refused.
#[derive(Debug, Default)]
pub(super) struct Owed(BTreeMap<Place, Refusal>);

impl Owed {
    pub(super) fn insert(&mut self, place: Place, refusal: Refusal) {
        self.0.insert(place, refusal);
    }
}

impl Engine {
    /// An application message that the gateway does not take: the partner is to be told, once the gateway has what this gives with the
    /// message's number. `None`: there is no room for it, and the partner will not be told.
    pub(crate) fn owe(&mut self, received: &Received, text: &str) -> Option<(String, Vec<u8>)> {
        self.account.set(self.bytes_kept());
        if self.account.take([self.cost_of_refusal()]) == 0 {
            return None;
        }
        let cut = |text: &str, most| text[..text.floor_char_boundary(most)].to_owned();
        let msg_type = String::from_utf8_lossy(received.message.msg_type());
        let refusal =
            Refusal { msg_type: cut(&msg_type, MSG_TYPE_BYTES_MAX), text: cut(text, TEXT_BYTES_MAX) };
        let place = (received.epoch, received.seq);
        let key = keys::owed_key(&self.config.name, place);
        let value = serde_json::json!(refusal).to_string().into_bytes();
        self.owed.insert(place, refusal);
        Some((key, value))
    }

    /// Tells the partner what it is owed, all of which must be durable by now. Where there is no connection it is kept like what has left, and
    /// asked for at the next.
    pub(crate) fn tell_owed(&mut self, now: Now) {
        if !matches!(self.link, Link::Up | Link::Down) {
            return;
        }
        for _ in 0..TOLD_PER_TURN {
            let Some((place, Refusal { msg_type, text })) = self.owed.0.pop_first() else { return };
            self.turn.commit.state.insert(keys::owed_key(&self.config.name, place), None);
            let (epoch, seq) = place;
            if epoch == self.numbers.epoch {
                self.send_business_reject(seq, msg_type.as_bytes(), APPLICATION_NOT_AVAILABLE, &text, now);
            } else {
                tracing::warn!(
                    session = self.config.name,
                    epoch,
                    seq,
                    "the numbers have begun anew before the partner was told that its message is not taken"
                );
            }
        }
    }

    /// In the adapter's state; as much as the reject itself, for which there is room then.
    pub(super) fn bytes_owed(&self) -> usize {
        self.owed.0.len() * self.cost_of_refusal()
    }

    fn cost_of_refusal(&self) -> usize {
        // Quotes and the like are longer in JSON.
        self.outbox.cost(self.config.header_bytes() + 2 * (MSG_TYPE_BYTES_MAX + TEXT_BYTES_MAX))
    }
}
