//! A message as a JSON object: tag, or name where there is a dictionary, to value; groups as arrays of objects under the tag
//! that counts them.
//!
//! ```json
//! {"35": "D", "11": "A1", "453": [{"448": "X", "447": "D", "452": "1"}], "38": 100, "96": {"base64": "AQI="}}
//! ```
//!
//! The order of keys is the order of fields. Entries of a group are put into the dictionary's order, if there is one: their
//! first field tells them apart on the wire. Counts and lengths of data fields are written here.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memchr;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::content::raw::header;
use crate::content::{ContentError, FieldFault, Form, Outgoing, Parts, Path, Place, Step};
use crate::dictionary::{Dictionary, Layout};
use crate::message::{SOH, Tag, tag};
use crate::value;
use crate::wire::{Digits, write_field};

/// Groups within groups, of which FIX 5.0 SP2 has up to seven. Each is read once more than the one around it.
const DEPTH_MAX: usize = 8;
/// Of a key that a fault repeats.
const KEY_BYTES_MAX: usize = 64;
const TAG_DIGITS_MAX: usize = 9;

pub(super) fn read(content: &[u8], form: &Form<'_>) -> Result<Outgoing, ContentError> {
    let object: Object<'_> = serde_json::from_slice(content).map_err(|error| not_json(&error))?;
    let mut parts = Parts::default();
    let given = |tag: Tag| {
        let session = form.dictionaries.map(|dictionaries| dictionaries.session());
        let text = tag.to_string();
        object.0.iter().find(|(key, _)| *key == text || session.is_some_and(|of| of.tag(key) == Some(tag)))
    };
    let Some((_, msg_type)) = given(tag::MSG_TYPE) else { return Err(ContentError::NoMsgType) };
    parts.msg_type = scalar(tag::MSG_TYPE, msg_type, &Path::default())?.into_owned();
    let version = given(tag::APPL_VER_ID)
        .map(|(_, version)| scalar(tag::APPL_VER_ID, version, &Path::default()))
        .transpose()?;
    let dictionary = form.dictionary(&parts.msg_type, version.as_deref());
    let layout = dictionary.and_then(|of| of.message(&parts.msg_type)).map(|message| message.body.as_ref());
    let reader = Reader { form, dictionary };
    let fields = reader.fields(&object, &Path::default())?;
    reader.write(fields, layout, &Path::default(), 0, &mut parts)?;
    parts.finish()
}

fn not_json(error: &serde_json::Error) -> ContentError {
    ContentError::Json { line: error.line(), column: error.column() }
}

/// The members of an object in their order, values unread.
struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    members.push((key, map.next_value()?));
                }
                Ok(Object(members))
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// A key, borrowed where nothing is escaped in it.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Key(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

struct Reader<'a> {
    form: &'a Form<'a>,
    dictionary: Option<&'a Dictionary>,
}

impl Reader<'_> {
    /// The members with their tags; none twice.
    fn fields<'o>(
        &self,
        object: &'o Object<'_>,
        path: &Path,
    ) -> Result<Vec<(Tag, &'o RawValue)>, ContentError> {
        let mut seen = HashSet::with_capacity(object.0.len());
        let mut fields = Vec::with_capacity(object.0.len());
        for (key, value) in &object.0 {
            let Some(tag) = self.tag(key) else {
                let path = path.to(Step::Key(shown(key)));
                return Err(ContentError::At { path, fault: FieldFault::UnknownKey });
            };
            if !seen.insert(tag) {
                return Err(path.fault(tag, FieldFault::Twice));
            }
            fields.push((tag, *value));
        }
        Ok(fields)
    }

    fn tag(&self, key: &str) -> Option<Tag> {
        let digits = key.as_bytes();
        if digits.iter().all(u8::is_ascii_digit) && digits.first().is_some_and(|first| *first != b'0') {
            return (digits.len() <= TAG_DIGITS_MAX).then(|| key.parse().ok())?;
        }
        let session = self.form.dictionaries.map(|dictionaries| dictionaries.session());
        let known = |dictionary: Option<&Dictionary>| dictionary.and_then(|dictionary| dictionary.tag(key));
        known(self.dictionary).or_else(|| known(session))
    }

    fn write(
        &self,
        fields: Vec<(Tag, &RawValue)>,
        layout: Option<&Layout>,
        path: &Path,
        depth: usize,
        parts: &mut Parts,
    ) -> Result<(), ContentError> {
        let given: HashSet<Tag> = fields.iter().map(|(tag, _)| *tag).collect();
        for (tag, raw) in &fields {
            let tag = *tag;
            if tag == tag::MSG_TYPE && depth == 0 {
                continue;
            }
            match self.form.place(tag) {
                Place::Body => {}
                Place::Header if depth == 0 => {
                    self.header(tag, raw, &fields, path, parts)?;
                    continue;
                }
                Place::Header | Place::Session => return Err(path.fault(tag, FieldFault::Ours)),
                Place::Nowhere => return Err(path.fault(tag, FieldFault::NotPassedOn)),
            }
            let slot = layout.and_then(|layout| layout.slot(tag));
            match raw.get().as_bytes().first() {
                Some(b'[') => {
                    if slot.is_some_and(|slot| slot.group.is_none()) {
                        return Err(path.fault(tag, FieldFault::NoGroup));
                    }
                    self.group(tag, raw, slot.and_then(|slot| slot.group.as_deref()), path, depth, parts)?;
                }
                _ if slot.is_some_and(|slot| slot.group.is_some()) => {
                    return Err(path.fault(tag, FieldFault::Group));
                }
                _ => self.field(tag, raw, &fields, &given, path, parts)?,
            }
        }
        Ok(())
    }

    /// A field that is no group. The length of a data field is written with it, wherever it was given.
    fn field(
        &self,
        tag: Tag,
        raw: &RawValue,
        fields: &[(Tag, &RawValue)],
        given: &HashSet<Tag>,
        path: &Path,
        parts: &mut Parts,
    ) -> Result<(), ContentError> {
        if self.form.data_fields.announced_by(tag).is_some_and(|data| given.contains(&data)) {
            return Ok(());
        }
        match self.form.data_fields.length_of(tag) {
            None => write_field(&mut parts.body, tag, &scalar(tag, raw, path)?),
            Some(length) => {
                let data = data(tag, raw, path)?;
                check_length(length, data.len(), fields, path)?;
                write_field(&mut parts.body, length, Digits::of(data.len() as u64).as_ref());
                write_field(&mut parts.body, tag, &data);
            }
        }
        Ok(())
    }

    /// A field of the header that is the app's.
    fn header(
        &self,
        tag: Tag,
        raw: &RawValue,
        fields: &[(Tag, &RawValue)],
        path: &Path,
        parts: &mut Parts,
    ) -> Result<(), ContentError> {
        let data_fields = self.form.data_fields;
        if let Some(length) = data_fields.length_of(tag) {
            let data = data(tag, raw, path)?;
            check_length(length, data.len(), fields, path)?;
            return header(parts, tag, &data);
        }
        match data_fields.announced_by(tag) {
            Some(data) if fields.iter().any(|(other, _)| *other == data) => Ok(()),
            Some(_) => Err(path.fault(tag, FieldFault::Length)),
            None => header(parts, tag, &scalar(tag, raw, path)?),
        }
    }

    fn group(
        &self,
        tag: Tag,
        raw: &RawValue,
        layout: Option<&Layout>,
        path: &Path,
        depth: usize,
        parts: &mut Parts,
    ) -> Result<(), ContentError> {
        if depth == DEPTH_MAX {
            return Err(path.fault(tag, FieldFault::Depth));
        }
        let path = path.to(Step::Tag(tag));
        let entries: Vec<&RawValue> = serde_json::from_str(raw.get()).map_err(|error| not_json(&error))?;
        write_field(&mut parts.body, tag, Digits::of(entries.len() as u64).as_ref());
        for (index, entry) in entries.iter().enumerate() {
            let path = path.to(Step::Entry(index));
            if !entry.get().starts_with('{') {
                return Err(ContentError::At { path, fault: FieldFault::Form });
            }
            let object: Object<'_> = serde_json::from_str(entry.get()).map_err(|error| not_json(&error))?;
            let mut fields = self.fields(&object, &path)?;
            if fields.is_empty() {
                return Err(ContentError::At { path, fault: FieldFault::EmptyEntry });
            }
            if let Some(layout) = layout {
                // Stable: what the dictionary does not have stays behind, in its own order.
                fields.sort_by_key(|(tag, _)| layout.position(*tag).unwrap_or(usize::MAX));
            }
            self.write(fields, layout, &path, depth + 1, parts)?;
        }
        Ok(())
    }
}

/// A length that is given along with its data has to be the data's.
fn check_length(
    length: Tag,
    bytes: usize,
    fields: &[(Tag, &RawValue)],
    path: &Path,
) -> Result<(), ContentError> {
    let Some((_, raw)) = fields.iter().find(|(other, _)| *other == length) else { return Ok(()) };
    match value::unsigned(&scalar(length, raw, path)?) == Some(bytes as u64) {
        true => Ok(()),
        false => Err(path.fault(length, FieldFault::Length)),
    }
}

/// The value of an ordinary field.
fn scalar<'a>(tag: Tag, raw: &'a RawValue, path: &Path) -> Result<Cow<'a, [u8]>, ContentError> {
    let json = raw.get();
    let value: Cow<'_, [u8]> = match json.as_bytes().first() {
        Some(b'"') => match serde_json::from_str::<Key<'_>>(json).map_err(|error| not_json(&error))?.0 {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        },
        Some(b't') => Cow::Borrowed(b"Y"),
        Some(b'f') => Cow::Borrowed(b"N"),
        // The digits as they stand: a price of 1.10 stays one.
        Some(b'-' | b'0'..=b'9') if json.contains(['e', 'E']) => {
            return Err(path.fault(tag, FieldFault::Exponent));
        }
        Some(b'-' | b'0'..=b'9') => Cow::Borrowed(json.as_bytes()),
        Some(b'{') => return Err(path.fault(tag, FieldFault::Base64)),
        _ => return Err(path.fault(tag, FieldFault::Form)),
    };
    if value.is_empty() {
        return Err(path.fault(tag, FieldFault::Empty));
    }
    if memchr(SOH, &value).is_some() {
        return Err(path.fault(tag, FieldFault::SohInside));
    }
    Ok(value)
}

/// The value of a data field: text, or any bytes as base64.
fn data<'a>(tag: Tag, raw: &'a RawValue, path: &Path) -> Result<Cow<'a, [u8]>, ContentError> {
    let json = raw.get();
    let value = if json.starts_with('{') {
        let Object(members) = serde_json::from_str(json).map_err(|error| not_json(&error))?;
        let [(key, encoded)] = &members[..] else { return Err(path.fault(tag, FieldFault::Base64)) };
        if key != "base64" || !encoded.get().starts_with('"') {
            return Err(path.fault(tag, FieldFault::Base64));
        }
        let Key(encoded) = serde_json::from_str(encoded.get()).map_err(|error| not_json(&error))?;
        let decoded = STANDARD.decode(encoded.as_bytes()).map_err(|_| path.fault(tag, FieldFault::Base64))?;
        Cow::Owned(decoded)
    } else if json.starts_with('"') {
        match serde_json::from_str::<Key<'_>>(json).map_err(|error| not_json(&error))?.0 {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }
    } else {
        return Err(path.fault(tag, FieldFault::Form));
    };
    if value.is_empty() {
        return Err(path.fault(tag, FieldFault::Empty));
    }
    Ok(value)
}

/// A key as a fault may show it: only what looks like the name of a field, never what may be somebody's data.
fn shown(key: &str) -> String {
    let is_name = key.len() <= KEY_BYTES_MAX && key.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_name && !key.is_empty() { key.to_owned() } else { "a key".to_owned() }
}
