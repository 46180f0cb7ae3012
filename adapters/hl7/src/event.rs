//! A received message as an event: its bytes unchanged, its header's fields as attributes.

use bytes::Bytes;
use gatepost_adapter::{Data, Event, Extension, digest};

use crate::charset::{Charset, Declared};
use crate::header::{HeaderError, Message, attribute_text};
use crate::partners::PARTNER;
use crate::settings::{OnReusedId, SegmentEnd, Settings};

pub(crate) const MEDIA_TYPE: &str = "application/hl7-v2+er7";
const TYPE_PREFIX: &str = "org.hl7.v2.";
/// Keys and subjects are ids; longer ones are cut.
const ATTRIBUTE_CHARS_MAX: usize = 256;
/// MSH-10 has up to 199 characters, and the digest behind it tells messages apart anyway.
const CONTROL_ID_CHARS_MAX: usize = 64;

/// The attribute that says how many merges a message holds, which as a rule is one: a delivery stands in two lanes, and where there are
/// more those of the first are its two. Routes can go by it.
const MERGES: &str = "hl7merges";
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
        let merges = message.merges();
        let barrier = merges.and_then(|_| value(&self.settings.barrier_key));
        let texts = [
            ("partitionkey", value(&self.settings.partition_key)),
            ("barrierkey", barrier),
            (PARTNER, self.settings.partner.clone()),
        ];
        let texts = texts.map(|(name, value)| value.map(|value| (name, Extension::Text(value))));
        let merges = merges.and_then(|merges| i64::try_from(merges).ok());
        let merges = merges.map(|merges| (MERGES, Extension::Integer(merges)));
        let extensions = texts.into_iter().chain([merges]).flatten();
        let event = Event {
            id: idempotency_key.clone(),
            source: self.source.to_owned(),
            kind: format!("{TYPE_PREFIX}{kind}"),
            datacontenttype: Some(MEDIA_TYPE.to_owned()),
            dataschema: None,
            subject: value(&self.settings.subject),
            time: None,
            extensions: extensions.map(|(name, value)| (name.to_owned(), value)).collect(),
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
    use crate::header::MERGE_EVENTS;

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
    fn a_merge_is_ordered_by_both_ids_and_other_events_by_one() {
        let event = |trigger: &str, rest: &str, settings: &str| {
            let body = format!("MSH|^~\\&|||||||ADT^{trigger}|1|P|2.5\rPID|1||42^^^MR~7\r{rest}");
            received(body.as_bytes(), &serde_json::from_str(settings).unwrap()).event
        };
        let keys = |event: &Event| ["partitionkey", "barrierkey"].map(|name| event.text_extension(name));
        let both = [Some("42".to_owned()), Some("41".to_owned())];
        for trigger in MERGE_EVENTS {
            let merge = event(trigger, "MRG|41^^^MR~6|||9||8\r", "{}");
            assert_eq!(keys(&merge), both, "{trigger}");
            assert_eq!(merge.extensions.get("hl7merges"), Some(&Extension::Integer(1)));
        }
        for (trigger, rest) in [("A40", ""), ("A40", "MRG|\r"), ("A08", "MRG|41\r")] {
            assert_eq!(keys(&event(trigger, rest, "{}")), [Some("42".to_owned()), None], "{trigger} {rest}");
        }
        let visit = event("A42", "MRG|41||||9\r", r#"{"partition_key":"","barrier_key":"MRG-5"}"#);
        assert_eq!(keys(&visit), [None, Some("9".to_owned())]);
        assert_eq!(keys(&event("A40", "MRG|41\r", r#"{"barrier_key":""}"#)), [both[0].clone(), None]);
    }

    /// A delivery has two lanes: the first merge's. The others are counted, so that a route can tell.
    #[test]
    fn several_merges_in_one_message_are_ordered_by_the_first_and_counted() {
        let body =
            b"MSH|^~\\&|||||||ADT^A40|1|P|2.5\rPID|1||42\rMRG|41\rPID|2||52\rMRG|51\rPID|3||62\rMRG|61\r";
        let event = received(body, &Settings::default()).event;
        assert_eq!(event.text_extension("partitionkey").as_deref(), Some("42"));
        assert_eq!(event.text_extension("barrierkey").as_deref(), Some("41"));
        assert_eq!(event.extensions.get("hl7merges"), Some(&Extension::Integer(3)));
        event.validate().unwrap();
    }

    #[test]
    fn a_part_of_a_message_is_refused() {
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
