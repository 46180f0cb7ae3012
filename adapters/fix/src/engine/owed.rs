//! Refusals that the partner has still to be told of: the gateway does not take a message of its, whose number counts all the same, and
//! a BusinessMessageReject answers it.
//!
//! What is owed is durable in the commit that lets the message go; its number it gets behind that, in one that takes it out again. So neither
//! a death between the two nor another refusal in the same settlement loses it. A session that has no room left tells its partner all the
//! same; that a death loses.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Engine, Link, Now, Place, Received, keys};

/// BusinessRejectReason (380).
const APPLICATION_NOT_AVAILABLE: u16 = 4;
/// Longest MsgType (35) and Text (58) that are given back, bytes.
const MSG_TYPE_BYTES_MAX: usize = 64;
const TEXT_BYTES_MAX: usize = 255;
/// Most that are remembered and not kept: of a session that cannot tell them just now, as while it logs out.
const UNKEPT_MAX: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Refusal {
    /// Of the message that was refused.
    msg_type: String,
    text: String,
}

/// By the message that was refused.
#[derive(Debug, Default)]
pub(super) struct Owed {
    all: BTreeMap<Place, Refusal>,
    /// Those that are only here.
    unkept: BTreeSet<Place>,
}

impl Owed {
    pub(super) fn insert(&mut self, place: Place, refusal: Refusal) {
        self.all.insert(place, refusal);
    }

    fn kept(&self) -> usize {
        self.all.len() - self.unkept.len()
    }

    /// The oldest one, and whether it is in the adapter's state; `only_kept`: of those that are.
    fn pop(&mut self, only_kept: bool) -> Option<(Place, Refusal, bool)> {
        let place = *self.all.keys().find(|place| !only_kept || !self.unkept.contains(place))?;
        let refusal = self.all.remove(&place)?;
        Some((place, refusal, !self.unkept.remove(&place)))
    }
}

/// What is to be made durable of a refusal with the message's number, before the partner is told.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Owing {
    /// This key and value.
    Kept(String, Vec<u8>),
    /// Nothing: the session has no room left. The partner is told, unless the process dies before.
    Unkept,
    /// Nothing, and the partner is not told: it has had more refused than can be remembered, and takes none of what it is to be told.
    Untold,
}

impl Engine {
    /// An application message that the gateway does not take: the partner is to be told, once the gateway has what this gives with the
    /// message's number.
    pub(crate) fn owe(&mut self, received: &Received, text: &str) -> Owing {
        let cut = |text: &str, most| text[..text.floor_char_boundary(most)].to_owned();
        let msg_type = String::from_utf8_lossy(received.message.msg_type());
        let refusal =
            Refusal { msg_type: cut(&msg_type, MSG_TYPE_BYTES_MAX), text: cut(text, TEXT_BYTES_MAX) };
        let place = (received.epoch, received.seq);
        self.account.set(self.bytes_kept());
        if self.account.take([self.cost_of_refusal()]) == 1 {
            let value = serde_json::json!(refusal).to_string().into_bytes();
            self.owed.insert(place, refusal);
            Owing::Kept(keys::owed_key(&self.config.name, place), value)
        } else if self.owed.unkept.len() < UNKEPT_MAX {
            self.owed.insert(place, refusal);
            self.owed.unkept.insert(place);
            Owing::Unkept
        } else {
            Owing::Untold
        }
    }

    /// Tells the partner what it is owed, all of which must be durable by now. Where there is no connection it is kept like what has left, and
    /// asked for at the next; what cannot be kept waits for that.
    pub(crate) fn tell_owed(&mut self, now: Now) {
        let is_down = match self.link {
            Link::Up => false,
            Link::Down => true,
            _ => return,
        };
        // Two keys each.
        while self.turn.commit.room() >= 2 {
            let Some((place, Refusal { msg_type, text }, is_kept)) = self.owed.pop(is_down) else { return };
            if is_kept {
                self.turn.commit.state.insert(keys::owed_key(&self.config.name, place), None);
            }
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
        self.owed.kept() * self.cost_of_refusal()
    }

    fn cost_of_refusal(&self) -> usize {
        // Quotes and the like are longer in JSON.
        self.outbox.cost(self.config.header_bytes() + 2 * (MSG_TYPE_BYTES_MAX + TEXT_BYTES_MAX))
    }
}
