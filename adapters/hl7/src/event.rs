//! A received message as an event: its bytes unchanged, its header's fields as attributes.

use bytes::Bytes;
use gatepost_adapter::{Data, Event, Extension, digest};

use crate::charset::{Charset, Declared};
use crate::header::{HeaderError, Message, attribute_text};
use crate::settings::{OnReusedId, SegmentEnd, Settings};

pub(crate) const MEDIA_TYPE: &str = "application/hl7-v2+er7";
const TYPE_PREFIX: &str = "org.hl7.v2.";
/// Keys and subjects are ids; longer ones are cut.
const ATTRIBUTE_CHARS_MAX: usize = 256;
/// MSH-10 has up to 199 characters, and the digest behind it tells messages apart anyway.
const CONTROL_ID_CHARS_MAX: usize = 64;

/// The attribute that says, of a merge, which id the surviving one replaces: routes and applications can go by it.
const MERGED_KEY: &str = "hl7mergedkey";
/// Larger bodies travel beside their event, without being copied.
const DATA_BYTES_MAX: usize = 1024 * 1024;

/// An event and the key under which the same message sent again is recognised.
pub(crate) struct Received {
    /// Without its data where that is large.
    pub(crate) event: Event,
    pub(crate) idempotency_key: String,
}

/// What goes into every event of one adapter.
pub(crate) struct Origin<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) source: &'a str,
}

impl Origin<'_> {
    pub(crate) fn event(&self, body: &Bytes, message: &Message<'_>) -> Result<Received, HeaderError> {
        let kind = message.message_type()?;
        if self.settings.segment_end == SegmentEnd::Cr && !message.ends_segments_in_cr() {
            return Err(HeaderError::SegmentEnd);
        }
        if message.is_continued() {
            return Err(HeaderError::Continued);
        }
        let charset = charset(message, self.settings)?;
        let control_id = message.control_id()?;
        let idempotency_key = match self.settings.on_reused_id {
            // Some senders put the same id into every message, so the id alone says nothing; with the digest it does.
            OnReusedId::Accept => format!("{}:{}", printable(control_id), digest(body)),
            OnReusedId::Refuse => {
                let separator = &[message.delimiters().field][..];
                let who = [message.sending_application(), message.sending_facility(), control_id];
                format!("{}={}", printable(control_id), digest(&who.join(separator)))
            }
        };
        let value = |path: &crate::settings::OptionalPath| {
            let value = message.value(path.0.as_ref()?)?;
            Some(attribute_text(value, charset, ATTRIBUTE_CHARS_MAX))
        };
        let former = message.merged_path().and_then(|path| message.value(&path));
        let former = former.map(|former| attribute_text(former, charset, ATTRIBUTE_CHARS_MAX));
        let extensions = [("partitionkey", value(&self.settings.partition_key)), (MERGED_KEY, former)];
        let extension =
            |(name, value): (&str, Option<String>)| Some((name.to_owned(), Extension::Text(value?)));
        let event = Event {
            id: idempotency_key.clone(),
            source: self.source.to_owned(),
            kind: format!("{TYPE_PREFIX}{kind}"),
            datacontenttype: Some(MEDIA_TYPE.to_owned()),
            dataschema: None,
            subject: value(&self.settings.subject),
            time: None,
            extensions: extensions.into_iter().filter_map(extension).collect(),
            data: (body.len() <= DATA_BYTES_MAX).then(|| Data::Binary(body.to_vec())),
        };
        Ok(Received { event, idempotency_key })
    }
}

/// What the message is written in: as the settings say for this partner, else as MSH-18 says, else as the settings say for
/// partners that say nothing. Never a guess.
pub(crate) fn charset(message: &Message<'_>, settings: &Settings) -> Result<Charset, HeaderError> {
    match (settings.charset, message.charset()) {
        (_, Declared::Wide) => Err(HeaderError::Wide),
        (Some(charset), _) | (None, Declared::Charset(charset)) => Ok(charset),
        (None, Declared::Unknown) => Ok(settings.default_charset),
    }
}

/// An id as it may stand in a header: visible ASCII.
fn printable(id: &[u8]) -> String {
    let shown = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '_' };
    id.iter().map(shown).take(CONTROL_ID_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(body: &[u8], settings: &Settings) -> Received {
        let origin = Origin { settings, source: "/adapters/lab" };
        origin.event(&Bytes::copy_from_slice(body), &Message::parse(body).unwrap()).unwrap()
    }

    #[test]
    fn the_header_becomes_attributes_and_the_bytes_stay() {
        let body = b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01^ADT_A01|M 1|P|2.5\rPID|1||42^^^MR||D\xfcrer\r";
        let Received { event, idempotency_key } = received(body, &Settings::default());
        assert_eq!(event.kind, "org.hl7.v2.ADT_A01");
        assert_eq!(event.source, "/adapters/lab");
        assert_eq!(event.subject.as_deref(), Some("M 1"));
        assert_eq!(event.text_extension("partitionkey").as_deref(), Some("42"));
        assert_eq!(event.datacontenttype.as_deref(), Some("application/hl7-v2+er7"));
        assert_eq!(event.data.as_ref().unwrap().as_bytes(), body);
        assert_eq!(idempotency_key, format!("M_1:{}", digest(body)));
        assert_eq!(event.id, idempotency_key);
        event.validate().unwrap();
    }

    #[test]
    fn a_missing_key_is_no_key() {
        let body = b"MSH|^~\\&|||||||ADT^A01|1|P|2.5\rPID|1||\"\"\r";
        assert_eq!(received(body, &Settings::default()).event.text_extension("partitionkey"), None);
    }

    #[test]
    fn hostile_fields_still_make_a_valid_event() {
        let body = b"MSH|^~\\&|||||||ADT^A01|\x01\xff\x85\xe2\x82|P|2.5\rPID|1||\x00\x01\r";
        let Received { event, idempotency_key } = received(body, &Settings::default());
        event.validate().unwrap();
        assert!(idempotency_key.is_ascii());
    }

    #[test]
    fn a_merge_says_both_ids_and_a_part_of_a_message_is_refused() {
        let body = b"MSH|^~\\&|||||||ADT^A40|1|P|2.5\rPID|1||42\rMRG|41\r";
        let event = received(body, &Settings::default()).event;
        assert_eq!(event.text_extension("partitionkey").as_deref(), Some("42"));
        assert_eq!(event.text_extension("hl7mergedkey").as_deref(), Some("41"));
        let part = Bytes::from_static(b"MSH|^~\\&|||||||ORU^R01|1|P|2.5||P2\r");
        let settings = Settings::default();
        let origin = Origin { settings: &settings, source: "/adapters/lab" };
        assert_eq!(origin.event(&part, &Message::parse(&part).unwrap()).err(), Some(HeaderError::Continued));
    }

    #[test]
    fn where_ids_count_the_same_id_of_one_sender_is_one_key() {
        let refuse: Settings = serde_json::from_str(r#"{"on_reused_id":"refuse"}"#).unwrap();
        let key = |sender: &str, text: &str, settings| {
            let body = format!("MSH|^~\\&|{sender}|||||ADT^A01|1|P|2.5\rPID|1||{text}\r");
            received(body.as_bytes(), settings).idempotency_key
        };
        assert_eq!(key("A|B", "x", &refuse), key("A|B", "y", &refuse));
        assert_ne!(key("A|B", "x", &refuse), key("A|C", "x", &refuse));
        let accept = Settings::default();
        assert_ne!(key("A|B", "x", &accept), key("A|B", "y", &accept));
        assert_eq!(key("A|B", "x", &accept), key("A|B", "x", &accept));
    }

    fn key(settings: &str, charset: &str, key: &[u8]) -> Option<String> {
        let settings: Settings = serde_json::from_str(settings).unwrap();
        let head = format!("MSH|^~\\&|||||||ADT^A01|1|P|2.5||||||{charset}\rPID|1||");
        let body = [head.as_bytes(), key, b"\r"].concat();
        received(&body, &settings).event.text_extension("partitionkey")
    }

    #[test]
    fn keys_are_read_in_the_character_set_that_the_message_or_else_the_configuration_names() {
        assert_eq!(key("{}", "8859/1", b"M\xfcl").unwrap(), "Mül");
        assert_eq!(key("{}", "8859/15", b"\xa4").unwrap(), "€");
        assert_eq!(key("{}", "", "Mül".as_bytes()).unwrap(), "Mül");
        assert_eq!(key(r#"{"default_charset":"windows-1252"}"#, "", b"\x80").unwrap(), "€");
        assert_eq!(key(r#"{"default_charset":"windows-1252"}"#, "8859/1", b"\xa4").unwrap(), "¤");
        assert_eq!(key(r#"{"charset":"windows-1252"}"#, "8859/1", b"\x80").unwrap(), "€");
    }

    #[test]
    fn wide_sets_and_where_it_is_asked_for_line_feeds_are_refused() {
        let refused = |settings: &str, body: &'static [u8]| {
            let settings: Settings = serde_json::from_str(settings).unwrap();
            let origin = Origin { settings: &settings, source: "/adapters/lab" };
            origin.event(&Bytes::from_static(body), &Message::parse(body).unwrap()).err()
        };
        let wide = b"MSH|^~\\&|||||||ADT^A01|1|P|2.5||||||UNICODE UTF-16\r";
        assert_eq!(refused("{}", wide), Some(HeaderError::Wide));
        let lines = b"MSH|^~\\&|||||||ADT^A01|1|P|2.5\nPID|1\n";
        assert_eq!(refused("{}", lines), None);
        assert_eq!(refused(r#"{"segment_end":"cr"}"#, lines), Some(HeaderError::SegmentEnd));
    }
}
