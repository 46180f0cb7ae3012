//! A delivery in doubt, leased again: what the partner can be asked.
//!
//! The session itself knows whether the partner has processed a message: by its numbers, or by a TestRequest that is answered. For
//! its business answer there is OrderStatusRequest (35=H), where the session is set to send it.

use super::confirm::msg_type_of;
use super::outbox::Query;
use super::{AskFor, Engine, Link, Now, Place};
use crate::message::{Message, Tag, tag};
use crate::wire;
use gatepost_adapter::Level;

const CL_ORD_ID: Tag = 11;
/// What an OrderStatusRequest says of the order in every version, in the order of tags: ClOrdID, IDSource, SecurityID, Side,
/// Symbol, SymbolSfx.
const REPEATED: [Tag; 6] = [CL_ORD_ID, 22, 48, 54, 55, 65];
const ORD_STATUS: Tag = 39;
const ORD_REJ_REASON: Tag = 103;

impl Engine {
    /// Asks how an order stands. Gives the place of the question, which is kept like any message.
    pub(super) fn ask_for_status(&mut self, place: Place, now: Now) -> Option<Place> {
        let bytes = self.outbox.get(place)?.bytes.clone();
        let order = wire::parse(bytes, self.config.validator.data_fields()).ok()?;
        let mut draft = self.draft(b"H", self.numbers.next_out, now);
        for tag in REPEATED {
            if let Some(value) = order.get(tag) {
                draft = draft.field(tag, value);
            }
        }
        self.outbox.set_query(place, Query::Asked);
        self.send_kept(draft, now)
    }

    /// Whether there is such a question for this message, and it can be asked now.
    pub(super) fn asks(&self, place: Place) -> bool {
        let is_order = self.outbox.get(place).is_some_and(|record| msg_type_of(&record.bytes) == b"D");
        self.config.ask_for == AskFor::OrderStatus
            && self.config.confirm == Level::Business
            && self.link == Link::Up
            && is_order
    }

    /// The partner has been asked, and does not know it.
    pub(super) fn is_unknown(&self, place: Place) -> bool {
        let pending = self.outbox.get(place).and_then(|record| record.pending.as_ref());
        pending.is_some_and(|pending| pending.query == Query::Unknown)
    }

    /// The answer to such a question: the partner does not know the order. Only where one was asked: an order that is refused has
    /// been seen.
    pub(super) fn says_unknown(&self, query: Query, message: &Message) -> bool {
        query == Query::Asked
            && message.msg_type() == b"8"
            && message.get(ORD_STATUS) == Some(b"8")
            && message.get(ORD_REJ_REASON) == Some(b"5")
    }

    /// What was sent again after a reset is refused because the partner has had it before (FIX 4.4 volume 4, OrdRejReason 6).
    pub(super) fn says_duplicate(&self, place: Place, message: &Message) -> bool {
        let is_marked = self.outbox.get(place).is_some_and(|record| {
            let again = wire::parse(record.bytes.clone(), self.config.validator.data_fields());
            again.is_ok_and(|again| again.flag(tag::POSS_RESEND))
        });
        let by_code = message.msg_type() == b"8" && message.get(ORD_REJ_REASON) == Some(b"6");
        let by_text = message.msg_type() == b"j"
            && message.text(tag::TEXT).is_some_and(|text| {
                let text = text.to_ascii_lowercase();
                ["duplicate", "already in use"].into_iter().any(|words| text.contains(words))
            });
        is_marked && (by_code || by_text)
    }
}
