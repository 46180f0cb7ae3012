//! Whether a message is as the specification and the session's dictionary have it, and what to answer if not.
//!
//! The rules and their order are those of the specification (FIX 4.4 volume 2, "Message rejects") as QuickFIX applies them:
//! order of header, body and trailer; MsgType; required fields; then field by field the header, the trailer, the body. The
//! first one that is broken is told.

mod reason;
mod walk;

pub use reason::Reason;

use crate::data_fields::DataFields;
use crate::dictionary::{Dictionaries, Layout};
use crate::message::{Message, Span, Tag, is_header, is_trailer, tag};
use crate::validate::walk::{Checks, Found, Walk, is_empty_data};

/// How much of a message is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// Nothing beyond what makes it a message.
    None,
    /// What can be read at all: the order of header, body and trailer, numbers that are tags, fields with values, the
    /// header's own fields; with a dictionary also MsgType, fields that appear twice and how groups are built.
    Structure,
    /// All that a dictionary says.
    #[default]
    Full,
}

/// What is wrong with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub reason: Reason,
    /// RefTagID (371): the number before `=` as it stood there; `None` where no single field is meant.
    pub tag: Option<i64>,
}

impl Violation {
    fn of(reason: Reason, tag: Tag) -> Self {
        Self { reason, tag: Some(i64::from(tag)) }
    }

    fn of_message(reason: Reason) -> Self {
        Self { reason, tag: None }
    }
}

/// The rules of one session.
#[derive(Debug, Clone)]
pub struct Validator {
    level: Level,
    dictionaries: Option<Dictionaries>,
    data_fields: DataFields,
    /// Whether fields above 5000 that no dictionary knows are rejected as all others are.
    reject_unknown_user_fields: bool,
    /// The types that the session takes, if not all.
    msg_types: Option<Vec<String>>,
}

/// [`Level::Full`] means nothing without a dictionary.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("full validation needs a dictionary")]
pub struct NoDictionary;

/// Users and venues may define fields from here on.
const USER_TAG_MIN: Tag = 5000;
/// Without these a message cannot be told where it belongs; also where there is no dictionary.
const HEADER_REQUIRED: [Tag; 4] =
    [tag::SENDER_COMP_ID, tag::TARGET_COMP_ID, tag::MSG_SEQ_NUM, tag::SENDING_TIME];

impl Validator {
    pub fn new(level: Level, dictionaries: Option<Dictionaries>) -> Result<Self, NoDictionary> {
        if level == Level::Full && dictionaries.is_none() {
            return Err(NoDictionary);
        }
        let data_fields = dictionaries.as_ref().map(Dictionaries::data_fields).unwrap_or_default();
        Ok(Self { level, dictionaries, data_fields, reject_unknown_user_fields: true, msg_types: None })
    }

    /// Lets fields above 5000 pass that no dictionary knows.
    pub fn allowing_unknown_user_fields(mut self) -> Self {
        self.reject_unknown_user_fields = false;
        self
    }

    /// Takes no other applications' messages than these. Those of the session itself always pass.
    pub fn taking_only(mut self, msg_types: Vec<String>) -> Self {
        self.msg_types = Some(msg_types);
        self
    }

    pub fn dictionaries(&self) -> Option<&Dictionaries> {
        self.dictionaries.as_ref()
    }

    /// For the decoder.
    pub fn data_fields(&self) -> &DataFields {
        &self.data_fields
    }

    /// The first rule that the message breaks. Linear in its fields.
    pub fn check(&self, message: &Message) -> Result<(), Violation> {
        if self.level > Level::None {
            self.order(message)?;
            match &self.dictionaries {
                None => self.without_dictionary(message),
                Some(dictionaries) => self.by_dictionary(message, dictionaries),
            }?;
        }
        self.supported(message)
    }

    /// Whether header, body and trailer stand in this order.
    fn order(&self, message: &Message) -> Result<(), Violation> {
        let session = self.dictionaries.as_ref().map(Dictionaries::session);
        let in_header = |tag| is_header(tag) || session.is_some_and(|of| of.header().slot(tag).is_some());
        let in_trailer = |tag| is_trailer(tag) || session.is_some_and(|of| of.trailer().slot(tag).is_some());
        let body = self.body_layout(message);
        let in_body = |tag| body.is_some_and(|body| body.slot(tag).is_some());
        let (mut header_over, mut body_over) = (false, false);
        for field in message.fields() {
            match field.tag {
                tag if in_header(tag) && !header_over => {}
                // A few messages have a field of the header in their body.
                tag if in_header(tag) && !in_body(tag) => return Err(Violation::of(Reason::OutOfOrder, tag)),
                tag if in_trailer(tag) && !in_body(tag) => (header_over, body_over) = (true, true),
                tag if body_over => return Err(Violation::of(Reason::OutOfOrder, tag)),
                _ => header_over = true,
            }
        }
        Ok(())
    }

    fn body_layout(&self, message: &Message) -> Option<&Layout> {
        let dictionaries = self.dictionaries.as_ref()?;
        let dictionary = dictionaries.of_message(message.msg_type(), message.get(tag::APPL_VER_ID))?;
        Some(&dictionary.message(message.msg_type())?.body)
    }

    fn by_dictionary(&self, message: &Message, dictionaries: &Dictionaries) -> Result<(), Violation> {
        let session = dictionaries.session();
        let msg_type = message.msg_type();
        let Some(application) = dictionaries.of_message(msg_type, message.get(tag::APPL_VER_ID)) else {
            return Err(Violation::of(Reason::UnsupportedVersion, tag::APPL_VER_ID));
        };
        let Some(defined) = application.message(msg_type) else {
            return Err(Violation::of_message(Reason::InvalidMsgType));
        };
        let full = self.level == Level::Full;
        let checks = Checks { full, required: full, unknown_user_fields: self.reject_unknown_user_fields };
        let spans = message.spans();
        let in_header = |span: &&Span| is_header(span.tag) || session.header().slot(span.tag).is_some();
        let in_trailer = |span: &&Span| is_trailer(span.tag) || session.trailer().slot(span.tag).is_some();
        let header_end = spans.iter().take_while(in_header).count();
        let body_end = spans.len() - spans[header_end..].iter().rev().take_while(in_trailer).count();
        let walk = |dictionary, layout, checks, from, to| {
            let mut found = Found::default();
            Walk { message, dictionary, checks, found: &mut found }.part(layout, from, to);
            found
        };
        let always = Checks { required: true, ..checks };
        let header = walk(session, session.header(), always, 0, header_end);
        let trailer = walk(session, session.trailer(), always, body_end, spans.len());
        let body = walk(application, &defined.body, checks, header_end, body_end);
        let missing = [&header, &trailer, &body].into_iter().find_map(|found| found.missing);
        if let Some(tag) = missing {
            return Err(Violation::of(Reason::RequiredTagMissing, tag));
        }
        let first = [header.first, trailer.first, body.first].into_iter().flatten().next();
        if let Some(violation) = first {
            return Err(violation);
        }
        match body.condition {
            Some(tag) => Err(Violation::of(Reason::ConditionallyRequiredMissing, tag)),
            None => Ok(()),
        }
    }

    /// What can be said of a message without any dictionary.
    fn without_dictionary(&self, message: &Message) -> Result<(), Violation> {
        let header = message.header();
        for required in HEADER_REQUIRED {
            if !header.clone().any(|field| field.tag == required) {
                return Err(Violation::of(Reason::RequiredTagMissing, required));
            }
        }
        let in_hop = |tag: Tag| matches!(tag, 628..=630);
        // As long as the list of tags that a header may have, and no longer.
        let mut seen: Vec<Tag> = Vec::new();
        for field in header.filter(|field| !in_hop(field.tag)) {
            if seen.contains(&field.tag) {
                return Err(Violation::of(Reason::Twice, field.tag));
            }
            seen.push(field.tag);
        }
        for (index, span) in message.spans().iter().enumerate() {
            if span.tag == 0 {
                let tag = message.number_before(index);
                return Err(Violation { reason: Reason::InvalidTagNumber, tag });
            }
            if span.from == span.to && !is_empty_data(message, &self.data_fields, index) {
                return Err(Violation::of(Reason::NoValue, span.tag));
            }
        }
        Ok(())
    }

    /// Whether the session takes messages of this type at all.
    fn supported(&self, message: &Message) -> Result<(), Violation> {
        let Some(msg_types) = &self.msg_types else { return Ok(()) };
        let msg_type = message.msg_type();
        if is_session(msg_type) || msg_types.iter().any(|taken| taken.as_bytes() == msg_type) {
            return Ok(());
        }
        Err(Violation::of_message(Reason::UnsupportedMsgType))
    }
}

/// Heartbeat, TestRequest, ResendRequest, Reject, SequenceReset, Logout, Logon.
pub fn is_session(msg_type: &[u8]) -> bool {
    matches!(msg_type, b"0" | b"1" | b"2" | b"3" | b"4" | b"5" | b"A")
}

#[cfg(test)]
mod tests;
