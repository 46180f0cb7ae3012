//! What apps hand in, made ready for a session; and what partners send, as attributes and for people.
//!
//! Apps give a message's type and body, as raw FIX (`application/fix`) or as JSON (`application/fix+json`,
//! `application/json`). Header and trailer are the session's, but for the fields of the header that only the app can know
//! ([`is_apps`]).

mod attributes;
mod json;
mod raw;
mod view;

use std::borrow::Cow;
use std::fmt;

pub use attributes::{Attributes, Keys, attributes};
use bytes::Bytes;
pub use view::View;

use crate::data_fields::DataFields;
use crate::dictionary::{Dictionaries, Dictionary};
use crate::message::{Malformed, Tag, is_header, is_trailer, tag};
use crate::validate::is_session;
use crate::version::BeginString;
use crate::wire::{Draft, Garbled};

/// A field of the header besides its value: tag, `=` and SOH; and of data the field with its length.
pub(crate) const FIELD_BYTES_MAX: usize = 2 * 8 + 7;

/// Of raw messages, both ways.
pub const MEDIA_TYPE: &str = "application/fix";
/// Of messages as JSON objects.
pub const MEDIA_TYPE_JSON: &str = "application/fix+json";

/// What content is read for.
#[derive(Clone, Copy)]
pub struct Form<'a> {
    pub begin_string: BeginString,
    pub dictionaries: Option<&'a Dictionaries>,
    pub data_fields: &'a DataFields,
    /// Tags of the header that the session's settings fill in, beyond those that every session does.
    pub session_header: &'a [Tag],
}

/// A message without what the session adds.
#[derive(Clone, PartialEq, Eq)]
pub struct Outgoing {
    msg_type: Vec<u8>,
    /// Fields of the header that are the app's.
    header: Vec<(Tag, Vec<u8>)>,
    /// Encoded fields.
    body: Bytes,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({} bytes)", self.body.len())
    }
}

impl Outgoing {
    /// Reads content by its media type; parameters behind `;` do not matter. Raw FIX may be a whole message, whose header and
    /// trailer are then replaced.
    pub fn read(media_type: Option<&str>, content: &[u8], form: &Form<'_>) -> Result<Self, ContentError> {
        let essence = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let is = |known: &str| essence.eq_ignore_ascii_case(known);
        let outgoing = if is(MEDIA_TYPE) {
            raw::read(content, form)
        } else if is(MEDIA_TYPE_JSON) || is("application/json") {
            json::read(content, form)
        } else {
            Err(ContentError::MediaType)
        }?;
        if is_session(&outgoing.msg_type) {
            return Err(ContentError::SessionMessage);
        }
        Ok(outgoing)
    }

    /// What it takes within a message, bytes; rather too much.
    pub(crate) fn bytes(&self) -> usize {
        let of_field = |(_, value): &(Tag, Vec<u8>)| value.len() + FIELD_BYTES_MAX;
        self.msg_type.len() + self.header.iter().map(of_field).sum::<usize>() + self.body.len()
    }

    /// MsgType (35).
    pub fn msg_type(&self) -> &[u8] {
        &self.msg_type
    }

    /// The encoded fields of the body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The message so far; the session adds its header.
    pub fn draft(&self, form: &Form<'_>) -> Draft {
        let mut draft = Draft::new(form.begin_string, &self.msg_type);
        for (tag, value) in &self.header {
            draft = match form.data_fields.length_of(*tag) {
                Some(length) => draft.header_data(length, *tag, value),
                None => draft.header(*tag, value),
            };
        }
        draft.body(&self.body, form.data_fields)
    }
}

/// Fields of the header that say where a message comes from and goes to beyond the session, or how it is to be read, or that
/// are content (XmlData).
pub fn is_apps(tag: Tag) -> bool {
    matches!(tag, 50 | 57 | 115 | 116 | 128 | 129 | 142..=145 | 212 | 213 | 347 | 1128 | 1129 | 1156)
}

/// Fields that every session writes itself.
fn is_sessions(tag: Tag) -> bool {
    matches!(tag, 8 | 9 | 10 | 34 | 35 | 43 | 49 | 52 | 56 | 97 | 122 | 369)
}

/// What becomes of a field that is handed in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Body,
    Header,
    /// The session writes it.
    Session,
    /// It would say something of other bytes than those that leave: signatures, encryption, hops.
    Nowhere,
}

impl Form<'_> {
    fn place(&self, tag: Tag) -> Place {
        match tag {
            _ if is_sessions(tag) || self.session_header.contains(&tag) => Place::Session,
            _ if is_apps(tag) => Place::Header,
            _ if is_header(tag) || is_trailer(tag) => Place::Nowhere,
            _ => Place::Body,
        }
    }

    /// The dictionary of a message with this type and ApplVerID (1128).
    fn dictionary(&self, msg_type: &[u8], appl_ver_id: Option<&[u8]>) -> Option<&Dictionary> {
        self.dictionaries?.of_message(msg_type, appl_ver_id)
    }
}

/// Why content is no message for a session. Values are never quoted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    #[error("the media type is none of {MEDIA_TYPE}, {MEDIA_TYPE_JSON}, application/json")]
    MediaType,
    #[error("there is no MsgType (35)")]
    NoMsgType,
    #[error("messages of the session itself (35 = 0 to 5 and A) are the adapter's and cannot be handed in")]
    SessionMessage,
    #[error("the message is one of another version than the session's {session}")]
    Version { session: BeginString },
    #[error("the content begins with 8= and is no whole message")]
    Garbled(#[source] Garbled),
    #[error("the content is no list of FIX fields")]
    Fields(#[source] Malformed),
    #[error("the content is not JSON as it has to be: line {line}, column {column}")]
    Json { line: usize, column: usize },
    #[error("{path}: {fault}")]
    At { path: Path, fault: FieldFault },
}

/// What is wrong with one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldFault {
    #[error("header and trailer are written by the adapter; leave this field out")]
    Ours,
    #[error("signatures, encrypted parts and hops cannot be passed on")]
    NotPassedOn,
    #[error("the field has no value")]
    Empty,
    #[error("the value contains SOH (0x01), which only data fields may")]
    SohInside,
    #[error("the key is neither a tag nor a name that the session's dictionary has")]
    UnknownKey,
    #[error("the field stands twice in the same object")]
    Twice,
    #[error("the number is written with an exponent, which FIX does not have")]
    Exponent,
    #[error("a value is a string, a number, true or false, and a group an array of objects")]
    Form,
    #[error("a value that is given as base64 needs {{\"base64\": \"…\"}} and belongs into a data field")]
    Base64,
    #[error("the length is not that of the data field, and may be left out")]
    Length,
    #[error("groups lie too deep in each other")]
    Depth,
    #[error("the field is no group in the session's dictionary")]
    NoGroup,
    #[error("the field is a group in the session's dictionary and takes an array of objects")]
    Group,
    #[error("the entry has no fields")]
    EmptyEntry,
}

/// Where a field stands: `453[0].448`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Tag(Tag),
    Entry(usize),
    /// A key that names no tag, if it looks like a name at all.
    Key(String),
}

impl Path {
    fn to(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    fn fault(&self, tag: Tag, fault: FieldFault) -> ContentError {
        ContentError::At { path: self.to(Step::Tag(tag)), fault }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Entry(entry) => write!(f, "[{entry}]")?,
                Step::Tag(_) | Step::Key(_) if index > 0 => f.write_str(".")?,
                Step::Tag(_) | Step::Key(_) => {}
            }
            match step {
                Step::Tag(tag) => write!(f, "{tag}")?,
                Step::Key(key) => f.write_str(key)?,
                Step::Entry(_) => {}
            }
        }
        Ok(())
    }
}

/// Text of a value, for people and attributes: what is not UTF-8 is replaced.
fn text(value: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(value)
}

/// Parts of a message that content may bring, and the checks that both forms share.
#[derive(Default)]
struct Parts {
    msg_type: Vec<u8>,
    header: Vec<(Tag, Vec<u8>)>,
    body: Vec<u8>,
}

impl Parts {
    fn finish(self) -> Result<Outgoing, ContentError> {
        if self.msg_type.is_empty() {
            return Err(ContentError::NoMsgType);
        }
        debug_assert!(!self.header.iter().any(|(tag, _)| *tag == tag::MSG_TYPE));
        Ok(Outgoing { msg_type: self.msg_type, header: self.header, body: self.body.into() })
    }
}

#[cfg(test)]
mod tests;
