//! A received message's attributes as an event.

use crate::content::text;
use crate::message::{Message, Tag};

const TYPE_PREFIX: &str = "org.fixtrading.";
/// Keys and subjects are ids; longer ones are cut.
const ATTRIBUTE_CHARS_MAX: usize = 256;
/// MsgType (35) has one or two characters in the specification, and a few more with some venues.
const MSG_TYPE_CHARS_MAX: usize = 16;

/// Which fields become attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keys {
    pub subject: Option<Tag>,
    pub partition_key: Option<Tag>,
}

/// What an event says of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// `org.fixtrading.<BeginString>.<MsgType>`.
    pub kind: String,
    pub subject: Option<String>,
    pub partition_key: Option<String>,
}

/// The attributes of `message`. A field that is missing or empty makes none.
pub fn attributes(message: &Message, keys: Keys) -> Attributes {
    let value = |tag: Option<Tag>| {
        let value = message.get(tag?).filter(|value| !value.is_empty())?;
        Some(attribute(value))
    };
    Attributes {
        kind: format!(
            "{TYPE_PREFIX}{}.{}",
            name(message.begin_string(), usize::MAX),
            name(message.msg_type(), MSG_TYPE_CHARS_MAX)
        ),
        subject: value(keys.subject),
        partition_key: value(keys.partition_key),
    }
}

/// Of a type's name: letters, digits and points.
fn name(value: &[u8], chars_max: usize) -> String {
    let shown =
        |byte: &u8| if byte.is_ascii_alphanumeric() || *byte == b'.' { char::from(*byte) } else { '_' };
    value.iter().map(shown).take(chars_max).collect()
}

/// Text without control characters, which attributes must not have.
fn attribute(value: &[u8]) -> String {
    let shown = |char: char| if char.is_control() { ' ' } else { char };
    text(value).chars().map(shown).take(ATTRIBUTE_CHARS_MAX).collect()
}
