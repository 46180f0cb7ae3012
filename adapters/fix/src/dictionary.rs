//! Data dictionaries: which fields, messages and groups a version of FIX has.
//!
//! They are read from the XML files that QuickFIX has made common (`read`). None is part of Gatepost: QuickFIX's own carry an
//! advertising clause, and whoever trades with a venue needs that venue's anyhow.

mod read;
mod types;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

pub use read::DICTIONARY_BYTES_MAX;
pub use types::Type;

use crate::data_fields::DataFields;
use crate::message::Tag;
use crate::version::{ApplVerId, BeginString};

/// What is wrong with a dictionary's file.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {fault}", file.display(), Place(*line))]
pub struct DictionaryError {
    pub file: PathBuf,
    /// From 1; 0 where the file as a whole is meant.
    pub line: u32,
    pub fault: String,
}

struct Place(u32);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            line => write!(f, ":{line}"),
        }
    }
}

/// What a dictionary is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// FIX 4.0 to 4.4: session and application in one.
    Both(BeginString),
    /// FIXT.1.1: header, trailer and the messages of the session.
    Transport,
    /// FIX 5.0 and later: the messages of applications.
    Application(ApplVerId),
}

impl Layer {
    /// As the file's root says it: `FIX.4.4`, `FIXT.1.1`, `FIX.5.0SP2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Both(version) => version.as_str(),
            Self::Transport => BeginString::Fixt11.as_str(),
            Self::Application(version) => version.name(),
        }
    }

    /// The version of applications that it has. FIXT carries those of FIX 4 too.
    pub fn application(self) -> Option<ApplVerId> {
        match self {
            Self::Both(BeginString::Fix40) => Some(ApplVerId::Fix40),
            Self::Both(BeginString::Fix41) => Some(ApplVerId::Fix41),
            Self::Both(BeginString::Fix42) => Some(ApplVerId::Fix42),
            Self::Both(BeginString::Fix43) => Some(ApplVerId::Fix43),
            Self::Both(BeginString::Fix44) => Some(ApplVerId::Fix44),
            Self::Both(BeginString::Fixt11) | Self::Transport => None,
            Self::Application(version) => Some(version),
        }
    }
}

/// One dictionary.
#[derive(Debug)]
pub struct Dictionary {
    layer: Layer,
    fields: HashMap<Tag, FieldDef>,
    tags: HashMap<String, Tag>,
    header: Arc<Layout>,
    trailer: Arc<Layout>,
    messages: HashMap<Vec<u8>, MessageDef>,
    data_fields: DataFields,
}

/// A field, wherever it is used.
#[derive(Debug)]
pub struct FieldDef {
    pub name: String,
    pub kind: Type,
    /// The values that it may have, with what they mean; empty where every value of its type is allowed.
    values: HashMap<Vec<u8>, String>,
}

impl FieldDef {
    /// Whether this is among the values that are listed, if any are. Where several may stand side by side, each of them.
    pub fn allows(&self, value: &[u8]) -> bool {
        if self.values.is_empty() {
            return true;
        }
        match self.kind {
            Type::MultipleCharValue | Type::MultipleStringValue => {
                value.split(|byte| *byte == b' ').all(|single| self.values.contains_key(single))
            }
            _ => self.values.contains_key(value),
        }
    }

    /// What a value means, in the dictionary's words.
    pub fn meaning(&self, value: &[u8]) -> Option<&str> {
        self.values.get(value).map(String::as_str).filter(|meaning| !meaning.is_empty())
    }
}

/// A message and its body.
#[derive(Debug)]
pub struct MessageDef {
    pub name: String,
    pub body: Arc<Layout>,
}

/// The fields of a header, a body, a trailer or one entry of a group, in their order. Components are dissolved.
#[derive(Debug, Default)]
pub struct Layout {
    slots: Vec<Slot>,
    /// Tag and index among the slots, ascending.
    by_tag: Vec<(Tag, usize)>,
    /// Those without which a message is not whole.
    required: Vec<Tag>,
    conditions: Vec<Arc<Condition>>,
}

/// A field's place in a layout.
#[derive(Debug, Clone)]
pub struct Slot {
    pub tag: Tag,
    /// Of the entries, where the field counts a group.
    pub group: Option<Arc<Layout>>,
    /// FIX 4.0 lets a few fields appear several times without a group.
    pub repeats: bool,
}

/// A component that may be left out: once one of its fields is there, some others have to be.
#[derive(Debug)]
pub struct Condition {
    pub fields: Vec<Tag>,
    pub required: Vec<Tag>,
}

impl Layout {
    /// The first of two slots with the same tag counts: components overlap in published dictionaries.
    fn new(slots: Vec<Slot>, required: Vec<Tag>, conditions: Vec<Arc<Condition>>) -> Self {
        let mut by_tag: Vec<(Tag, usize)> =
            slots.iter().enumerate().map(|(at, slot)| (slot.tag, at)).collect();
        by_tag.sort_unstable();
        by_tag.dedup_by_key(|entry| entry.0);
        Self { slots, by_tag, required, conditions }
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn slot(&self, tag: Tag) -> Option<&Slot> {
        self.position(tag).and_then(|at| self.slots.get(at))
    }

    /// A field's place in the order.
    pub fn position(&self, tag: Tag) -> Option<usize> {
        let at = self.by_tag.binary_search_by_key(&tag, |entry| entry.0).ok()?;
        Some(self.by_tag[at].1)
    }

    /// The field that every entry of a group begins with.
    pub fn delimiter(&self) -> Option<Tag> {
        self.slots.first().map(|slot| slot.tag)
    }

    pub fn required(&self) -> &[Tag] {
        &self.required
    }

    pub fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.iter().map(Arc::as_ref)
    }
}

impl Dictionary {
    pub fn layer(&self) -> Layer {
        self.layer
    }

    pub fn field(&self, tag: Tag) -> Option<&FieldDef> {
        self.fields.get(&tag)
    }

    /// The tag of a field by its name.
    pub fn tag(&self, name: &str) -> Option<Tag> {
        self.tags.get(name).copied()
    }

    pub fn header(&self) -> &Layout {
        &self.header
    }

    pub fn trailer(&self) -> &Layout {
        &self.trailer
    }

    pub fn message(&self, msg_type: &[u8]) -> Option<&MessageDef> {
        self.messages.get(msg_type)
    }

    /// Every MsgType (35) that has a message, in no order.
    pub fn msg_types(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.keys().map(Vec::as_slice)
    }

    /// The specification's data fields and this dictionary's own.
    pub fn data_fields(&self) -> &DataFields {
        &self.data_fields
    }
}

/// The dictionaries of one session: for FIX 4 one, for FIXT one for the session and one for each version of applications.
#[derive(Debug, Clone)]
pub struct Dictionaries {
    session: Arc<Dictionary>,
    applications: Vec<(ApplVerId, Arc<Dictionary>)>,
    default_application: Option<ApplVerId>,
}

/// Dictionaries that do not fit together, or not the session.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    #[error("the session speaks {session} and the dictionary is one of {dictionary}")]
    Version { session: &'static str, dictionary: &'static str },
    #[error("{dictionary} is no dictionary of applications; FIXT.1.1 takes those of FIX 4.0 to 5.0SP2")]
    NotApplication { dictionary: &'static str },
    #[error("there are two dictionaries of {0}")]
    Twice(&'static str),
    #[error("there is no dictionary of {0}, which the session's default_appl_ver_id names")]
    NoDefault(&'static str),
    #[error("{dictionary} is given without that of FIXT.1.1")]
    NoTransport { dictionary: &'static str },
    #[error("there is no dictionary of applications beside that of FIXT.1.1")]
    NoApplication,
}

impl Dictionaries {
    /// Of a session of FIX 4.
    pub fn one(begin_string: BeginString, dictionary: Arc<Dictionary>) -> Result<Self, Mismatch> {
        let of = dictionary.layer();
        let fits = match of {
            Layer::Both(version) => version == begin_string,
            Layer::Transport | Layer::Application(_) => false,
        };
        if !fits {
            return Err(Mismatch::Version { session: begin_string.as_str(), dictionary: of.name() });
        }
        Ok(Self { session: dictionary, applications: Vec::new(), default_application: None })
    }

    /// Of a session of FIXT.1.1, with what DefaultApplVerID (1137) says.
    pub fn fixt(
        transport: Arc<Dictionary>,
        applications: impl IntoIterator<Item = Arc<Dictionary>>,
        default: ApplVerId,
    ) -> Result<Self, Mismatch> {
        if transport.layer() != Layer::Transport {
            let dictionary = transport.layer().name();
            return Err(Mismatch::Version { session: BeginString::Fixt11.as_str(), dictionary });
        }
        let mut by_version: Vec<(ApplVerId, Arc<Dictionary>)> = Vec::new();
        for dictionary in applications {
            let version = dictionary
                .layer()
                .application()
                .ok_or(Mismatch::NotApplication { dictionary: dictionary.layer().name() })?;
            if by_version.iter().any(|(other, _)| *other == version) {
                return Err(Mismatch::Twice(version.name()));
            }
            by_version.push((version, dictionary));
        }
        if !by_version.iter().any(|(version, _)| *version == default) {
            return Err(Mismatch::NoDefault(default.name()));
        }
        Ok(Self { session: transport, applications: by_version, default_application: Some(default) })
    }

    /// That of header, trailer and the session's own messages.
    pub fn session(&self) -> &Dictionary {
        &self.session
    }

    /// Where a message is defined. `appl_ver_id` is its ApplVerID (1128), if it has one; `None` if there is no dictionary for
    /// that version.
    pub fn of_message(&self, msg_type: &[u8], appl_ver_id: Option<&[u8]>) -> Option<&Dictionary> {
        let Some(default) = self.default_application else { return Some(&self.session) };
        if self.session.message(msg_type).is_some() {
            return Some(&self.session);
        }
        let version = match appl_ver_id {
            Some(code) => ApplVerId::from_code(code)?,
            None => default,
        };
        self.applications.iter().find(|(of, _)| *of == version).map(|(_, dictionary)| dictionary.as_ref())
    }

    /// For the decoder: the data fields of all of them.
    pub fn data_fields(&self) -> DataFields {
        let mut all = self.session.data_fields().clone();
        for (_, dictionary) in &self.applications {
            all.add_all(dictionary.data_fields());
        }
        all
    }
}
