//! A message for people: names where a dictionary has them, what values mean, groups as they nest. What may be secret is shown
//! by its length alone.

use std::collections::HashMap;

use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

use crate::content::text;
use crate::data_fields::DataFields;
use crate::dictionary::{Dictionaries, Dictionary, Layout};
use crate::message::{Field, Message, Tag, tag};
use crate::value;

/// Password and NewPassword; the encrypted ones are data fields.
const SECRETS: [Tag; 2] = [554, 925];

/// Serializes as JSON: `{"message", "header", "body", "trailer"}`, each a map from name or tag to value. A value is its text,
/// with its meaning behind it in parentheses; a field that stands several times is an array of texts, a group one of maps.
pub struct View {
    name: Option<String>,
    header: Entry,
    body: Entry,
    trailer: Entry,
}

/// Fields by their names, in order.
#[derive(Default)]
struct Entry(Vec<(String, Shown)>);

enum Shown {
    Text(String),
    Several(Vec<String>),
    Group(Vec<Entry>),
}

impl View {
    pub fn of(message: &Message, dictionaries: Option<&Dictionaries>) -> Self {
        let version = message.get(tag::APPL_VER_ID);
        let session = dictionaries.map(Dictionaries::session);
        let body = dictionaries.and_then(|all| all.of_message(message.msg_type(), version));
        let defined = body.and_then(|body| body.message(message.msg_type()));
        let data_fields = dictionaries.map(Dictionaries::data_fields).unwrap_or_default();
        let part = |dictionary, layout, fields: Vec<Field<'_>>| {
            let shower = Shower { dictionary, data_fields: &data_fields };
            let mut at = 0;
            shower.entry(&fields, &mut at, layout, None)
        };
        Self {
            name: defined.map(|message| message.name.clone()),
            header: part(session, session.map(Dictionary::header), message.header().collect()),
            body: part(body, defined.map(|message| message.body.as_ref()), message.body().collect()),
            trailer: part(session, session.map(Dictionary::trailer), message.trailer().collect()),
        }
    }
}

struct Shower<'a> {
    dictionary: Option<&'a Dictionary>,
    data_fields: &'a DataFields,
}

impl Shower<'_> {
    /// The fields from `at` on: all of them, or those of one entry of the group that `within` is the layout of.
    fn entry(
        &self,
        fields: &[Field<'_>],
        at: &mut usize,
        layout: Option<&Layout>,
        within: Option<&Layout>,
    ) -> Entry {
        let mut entry = Entry::default();
        let mut places: HashMap<Tag, usize> = HashMap::new();
        while let Some(field) = fields.get(*at) {
            if let Some(group) = within {
                let again = group.delimiter() == Some(field.tag) && !entry.0.is_empty();
                if again || group.position(field.tag).is_none() {
                    break;
                }
            }
            *at += 1;
            let group =
                layout.and_then(|layout| layout.slot(field.tag)).and_then(|slot| slot.group.as_deref());
            let shown = match group {
                Some(group) => self.group(fields, at, group, field.value),
                None => Shown::Text(self.value(*field)),
            };
            match places.get(&field.tag).and_then(|place| entry.0.get_mut(*place)) {
                Some((_, before)) => before.join(shown),
                None => {
                    places.insert(field.tag, entry.0.len());
                    entry.0.push((self.name(field.tag), shown));
                }
            }
        }
        entry
    }

    fn group(&self, fields: &[Field<'_>], at: &mut usize, layout: &Layout, count: &[u8]) -> Shown {
        let announced = value::unsigned(count).unwrap_or(0);
        let mut entries = Vec::new();
        while (entries.len() as u64) < announced
            && fields.get(*at).is_some_and(|field| layout.position(field.tag).is_some())
        {
            entries.push(self.entry(fields, at, Some(layout), Some(layout)));
        }
        Shown::Group(entries)
    }

    fn name(&self, tag: Tag) -> String {
        match self.dictionary.and_then(|dictionary| dictionary.field(tag)) {
            Some(field) => field.name.clone(),
            None => tag.to_string(),
        }
    }

    fn value(&self, field: Field<'_>) -> String {
        if SECRETS.contains(&field.tag) || self.data_fields.length_of(field.tag).is_some() {
            return format!("({} bytes)", field.value.len());
        }
        let meaning =
            self.dictionary.and_then(|of| of.field(field.tag)).and_then(|of| of.meaning(field.value));
        match meaning {
            Some(meaning) => format!("{} ({meaning})", text(field.value)),
            None => text(field.value).into_owned(),
        }
    }
}

impl Shown {
    /// A field that stands once more; of a group only what comes first is a group.
    fn join(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Several(all), Self::Text(text)) => all.push(text),
            (Self::Text(first), Self::Text(second)) => {
                *self = Self::Several(vec![std::mem::take(first), second]);
            }
            (Self::Group(all), Self::Group(more)) => all.extend(more),
            (Self::Group(_), Self::Text(_)) | (Self::Text(_) | Self::Several(_), Self::Group(_)) => {}
            (_, Self::Several(_)) => {}
        }
    }
}

impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(name) = &self.name {
            map.serialize_entry("message", name)?;
        }
        map.serialize_entry("header", &self.header)?;
        map.serialize_entry("body", &self.body)?;
        map.serialize_entry("trailer", &self.trailer)?;
        map.end()
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, shown) in &self.0 {
            map.serialize_entry(name, shown)?;
        }
        map.end()
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Several(texts) => texts.serialize(serializer),
            Self::Group(entries) => {
                let mut all = serializer.serialize_seq(Some(entries.len()))?;
                for entry in entries {
                    all.serialize_element(entry)?;
                }
                all.end()
            }
        }
    }
}
