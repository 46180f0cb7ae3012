//! CloudEvents 1.0: one event, its JSON form, and the attribute rules. The payload's bytes pass through untouched: JSON
//! data is kept as the exact text that the sender wrote.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Longest attribute name, bytes (CloudEvents §3.1 recommends 20).
pub const ATTRIBUTE_NAME_BYTES_MAX: usize = 20;
/// Longest attribute value, bytes.
pub const ATTRIBUTE_VALUE_BYTES_MAX: usize = 4096;
/// Most extension attributes of one event.
pub const EXTENSIONS_MAX: usize = 64;

/// One CloudEvent. `Debug` shows no payload and no attribute values.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub source: String,
    /// The attribute `type`.
    pub kind: String,
    pub datacontenttype: Option<String>,
    pub dataschema: Option<String>,
    pub subject: Option<String>,
    /// RFC 3339, as the sender wrote it.
    pub time: Option<String>,
    pub extensions: BTreeMap<String, Extension>,
    pub data: Option<Data>,
}

/// An extension attribute's value in the JSON format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Extension {
    Bool(bool),
    Integer(i64),
    Text(String),
}

impl Extension {
    /// The attribute as a string, as HTTP binary mode writes it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Text(value) => value.clone(),
        }
    }
}

/// A payload and how the JSON format carries it.
#[derive(Clone, PartialEq, Eq)]
pub enum Data {
    /// One JSON value, the exact text of the sender; validated as JSON.
    Json(String),
    /// Text, carried as a JSON string.
    Text(String),
    /// Any bytes, carried as `data_base64`.
    Binary(Vec<u8>),
}

impl Data {
    /// Chooses the form for payload bytes: JSON text when the type says JSON and the bytes are one valid JSON value, a
    /// string for valid UTF-8 under `text/*`, otherwise base64. A type that says both, as `text/json` does, is JSON: its
    /// `data` is read as a JSON value, so what is none must not stand there as a string.
    pub fn from_bytes(bytes: Vec<u8>, datacontenttype: Option<&str>) -> Self {
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => return Self::Binary(error.into_bytes()),
        };
        if is_json_media_type(datacontenttype) {
            if is_json_value(&text) { Self::Json(text) } else { Self::Binary(text.into_bytes()) }
        } else if is_text_media_type(datacontenttype) {
            Self::Text(text)
        } else {
            Self::Binary(text.into_bytes())
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Json(text) | Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Json(text) | Self::Text(text) => text.into_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({} bytes)", self.as_bytes().len())
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("type", &self.kind).field("data", &self.data).finish_non_exhaustive()
    }
}

/// Why an event is not a valid CloudEvent. Names attributes, never their values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("attribute `{0}` is required")]
    Missing(&'static str),
    #[error("attribute `{0}` must be a string that is not empty")]
    NotText(String),
    #[error("attribute `{0}` is longer than {ATTRIBUTE_VALUE_BYTES_MAX} bytes")]
    ValueTooLong(String),
    #[error("attribute `{0}` contains a control character")]
    Control(String),
    #[error("`{0}` is not an attribute name: 1 to {ATTRIBUTE_NAME_BYTES_MAX} of a-z and 0-9")]
    Name(String),
    #[error("attribute `{0}` stands there twice")]
    Twice(String),
    #[error("attribute `{0}` must be a string, a boolean or an integer")]
    Type(String),
    #[error("more than {EXTENSIONS_MAX} extension attributes")]
    TooMany,
    #[error("`specversion` must be \"1.0\"")]
    Version,
    #[error("`time` and `expirytime` must be RFC 3339 timestamps; `{0}` is not")]
    Timestamp(&'static str),
    #[error("`data` and `data_base64` exclude each other")]
    TwoData,
    #[error("`data_base64` is not base64")]
    Base64,
    #[error("`data` must be a JSON string, since `datacontenttype` is not JSON")]
    DataNotText,
}

impl Event {
    /// An extension attribute that must be text.
    pub fn text_extension(&self, name: &str) -> Option<String> {
        self.extensions.get(name).map(Extension::to_text)
    }

    /// Checks names, lengths and characters of every attribute.
    pub fn validate(&self) -> Result<(), EventError> {
        for (name, value) in [("id", &self.id), ("source", &self.source), ("type", &self.kind)] {
            check_value(name, value)?;
        }
        let optional = [
            ("datacontenttype", &self.datacontenttype),
            ("dataschema", &self.dataschema),
            ("subject", &self.subject),
            ("time", &self.time),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                check_value(name, value)?;
            }
        }
        if self.extensions.len() > EXTENSIONS_MAX {
            return Err(EventError::TooMany);
        }
        for (name, value) in &self.extensions {
            check_name(name)?;
            if let Extension::Text(text) = value {
                check_value(name, text)?;
            }
        }
        Ok(())
    }
}

fn check_value(name: &str, value: &str) -> Result<(), EventError> {
    if value.is_empty() {
        return Err(EventError::NotText(name.to_owned()));
    }
    if value.len() > ATTRIBUTE_VALUE_BYTES_MAX {
        return Err(EventError::ValueTooLong(name.to_owned()));
    }
    if value.chars().any(char::is_control) {
        return Err(EventError::Control(name.to_owned()));
    }
    Ok(())
}

/// Checks an extension attribute's name (CloudEvents §3.1).
pub fn check_name(name: &str) -> Result<(), EventError> {
    let legal = (1..=ATTRIBUTE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if legal { Ok(()) } else { Err(EventError::Name(name.chars().take(40).collect())) }
}

/// Whether a media type says JSON; no type means JSON (CloudEvents JSON format §3.1).
pub fn is_json_media_type(media_type: Option<&str>) -> bool {
    let Some(media_type) = media_type else { return true };
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

fn is_text_media_type(media_type: Option<&str>) -> bool {
    media_type.is_some_and(|name| name.trim_start().to_ascii_lowercase().starts_with("text/"))
}

fn is_json_value(text: &str) -> bool {
    serde_json::from_str::<de::IgnoredAny>(text).is_ok()
}

// === JSON format ===

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("specversion", "1.0")?;
        map.serialize_entry("id", &self.id)?;
        map.serialize_entry("source", &self.source)?;
        map.serialize_entry("type", &self.kind)?;
        let optional = [
            ("datacontenttype", &self.datacontenttype),
            ("dataschema", &self.dataschema),
            ("subject", &self.subject),
            ("time", &self.time),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                map.serialize_entry(name, value)?;
            }
        }
        for (name, value) in &self.extensions {
            map.serialize_entry(name, value)?;
        }
        match &self.data {
            None => {}
            Some(Data::Json(text)) => {
                let raw = serde_json::from_str::<&RawValue>(text).map_err(serde::ser::Error::custom)?;
                map.serialize_entry("data", raw)?;
            }
            Some(Data::Text(text)) => map.serialize_entry("data", text)?,
            Some(Data::Binary(bytes)) => map.serialize_entry("data_base64", &BASE64.encode(bytes))?,
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EventVisitor)
    }
}

struct EventVisitor;

#[derive(Default)]
struct Parts {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    datacontenttype: Option<String>,
    dataschema: Option<String>,
    subject: Option<String>,
    time: Option<String>,
    extensions: BTreeMap<String, Extension>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a CloudEvent (a JSON object)")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
        let mut parts = Parts::default();
        while let Some(name) = map.next_key::<String>()? {
            parts.take(name, &mut map)?;
        }
        parts.finish().map_err(de::Error::custom)
    }
}

impl Parts {
    fn take<'de, A: MapAccess<'de>>(&mut self, name: String, map: &mut A) -> Result<(), A::Error> {
        let slot = match name.as_str() {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "datacontenttype" => &mut self.datacontenttype,
            "dataschema" => &mut self.dataschema,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "data_base64" => &mut self.data_base64,
            "data" => {
                let raw: Box<RawValue> = map.next_value()?;
                return once(&mut self.data, Some(raw), name);
            }
            _ => return self.take_extension(name, map),
        };
        let value: Option<String> =
            map.next_value().map_err(|_| de::Error::custom(EventError::NotText(name.clone())))?;
        once(slot, value, name)
    }

    fn take_extension<'de, A: MapAccess<'de>>(&mut self, name: String, map: &mut A) -> Result<(), A::Error> {
        check_name(&name).map_err(de::Error::custom)?;
        let value: Option<Extension> =
            map.next_value().map_err(|_| de::Error::custom(EventError::Type(name.clone())))?;
        let Some(value) = value else { return Ok(()) };
        match self.extensions.insert(name.clone(), value) {
            None => Ok(()),
            Some(_) => Err(de::Error::custom(EventError::Twice(name))),
        }
    }

    fn finish(self) -> Result<Event, EventError> {
        if self.specversion.as_deref() != Some("1.0") {
            return Err(EventError::Version);
        }
        let data = match (self.data, self.data_base64) {
            (Some(_), Some(_)) => return Err(EventError::TwoData),
            (Some(raw), None) => data_from_json(&raw, self.datacontenttype.as_deref())?,
            (None, Some(text)) => {
                let bytes = BASE64.decode(text).map_err(|_| EventError::Base64)?;
                Some(Data::from_bytes(bytes, self.datacontenttype.as_deref()))
            }
            (None, None) => None,
        };
        let event = Event {
            id: self.id.ok_or(EventError::Missing("id"))?,
            source: self.source.ok_or(EventError::Missing("source"))?,
            kind: self.kind.ok_or(EventError::Missing("type"))?,
            datacontenttype: self.datacontenttype,
            dataschema: self.dataschema,
            subject: self.subject,
            time: self.time,
            extensions: self.extensions,
            data,
        };
        event.validate()?;
        Ok(event)
    }
}

fn data_from_json(raw: &RawValue, datacontenttype: Option<&str>) -> Result<Option<Data>, EventError> {
    if is_json_media_type(datacontenttype) {
        return Ok(Some(Data::Json(raw.get().to_owned())));
    }
    let text: String = serde_json::from_str(raw.get()).map_err(|_| EventError::DataNotText)?;
    Ok(Some(Data::from_bytes(text.into_bytes(), datacontenttype)))
}

fn once<T, E: de::Error>(slot: &mut Option<T>, value: Option<T>, name: String) -> Result<(), E> {
    if slot.is_some() {
        return Err(E::custom(EventError::Twice(name)));
    }
    *slot = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Event, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn json_data_keeps_the_senders_exact_text() {
        let text =
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b" : 1.0,  "a":"\u00e9"}}"#;
        let event = parse(text).unwrap();
        assert_eq!(event.data.as_ref().unwrap().as_bytes(), br#"{"b" : 1.0,  "a":"\u00e9"}"#);
        assert_eq!(parse(&serde_json::to_string(&event).unwrap()).unwrap(), event);
    }

    #[test]
    fn payload_forms_follow_the_content_type() {
        assert!(matches!(Data::from_bytes(b"{}".to_vec(), Some("application/json")), Data::Json(_)));
        assert!(matches!(Data::from_bytes(b"{} {}".to_vec(), Some("application/json")), Data::Binary(_)));
        assert!(matches!(Data::from_bytes(b"hi".to_vec(), Some("text/plain; charset=utf-8")), Data::Text(_)));
        assert!(matches!(Data::from_bytes(vec![0xff], Some("text/plain")), Data::Binary(_)));
        assert!(matches!(Data::from_bytes(b"{}".to_vec(), Some("text/json")), Data::Json(_)));
        // As a string it would come back in quotes.
        assert!(matches!(Data::from_bytes(b"hi".to_vec(), Some("text/json")), Data::Binary(_)));
        assert!(matches!(
            Data::from_bytes(b"MSH|".to_vec(), Some("application/hl7-v2+er7")),
            Data::Binary(_)
        ));
    }

    #[test]
    fn base64_of_json_becomes_json_again() {
        let event =
            parse(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"e30="}"#).unwrap();
        assert_eq!(event.data, Some(Data::Json("{}".into())));
    }

    #[test]
    fn every_fault_is_named() {
        let base =
            |extra: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t"{extra}}}"#);
        for (text, expected) in [
            (r#"{"id":"1","source":"s","type":"t"}"#.to_owned(), "specversion"),
            (r#"{"specversion":"1.0","source":"s","type":"t"}"#.to_owned(), "`id` is required"),
            (r#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#.to_owned(), "`id` must be a string"),
            (base(r#","id":"2""#), "twice"),
            (base(r#","Bad_Name":"x""#), "not an attribute name"),
            (base(r#","ext":{"a":1}"#), "must be a string, a boolean or an integer"),
            (base(r#","data":1,"data_base64":"AA==""#), "exclude each other"),
            (base(r#","data_base64":"%%""#), "not base64"),
            (base(r#","datacontenttype":"text/plain","data":{"a":1}"#), "must be a JSON string"),
            (base(",\"subject\":\"a\\u0000b\""), "control character"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
