//! A received message as an event: its bytes unchanged, its header's fields as attributes.

use bytes::Bytes;
use gatepost_adapter::{Data, Event, Extension, digest};

use crate::header::{HeaderError, Message, attribute_text};
use crate::settings::Settings;

pub(crate) const MEDIA_TYPE: &str = "application/hl7-v2+er7";
const TYPE_PREFIX: &str = "org.hl7.v2.";
/// Keys and subjects are ids; longer ones are cut.
const ATTRIBUTE_CHARS_MAX: usize = 256;
/// MSH-10 has up to 199 characters, and the digest behind it tells messages apart anyway.
const CONTROL_ID_CHARS_MAX: usize = 64;

/// An event and the key under which the same message sent again is recognised.
pub(crate) struct Received {
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
        // Some senders put the same id into every message, so the id alone says nothing; with the digest it does.
        let idempotency_key = format!("{}:{}", printable(message.control_id()?), digest(body));
        let value = |path: &crate::settings::OptionalPath| {
            let value = message.value(path.0.as_ref()?)?;
            Some(attribute_text(value, ATTRIBUTE_CHARS_MAX))
        };
        let key =
            value(&self.settings.partition_key).map(|key| ("partitionkey".to_owned(), Extension::Text(key)));
        let event = Event {
            id: idempotency_key.clone(),
            source: self.source.to_owned(),
            kind: format!("{TYPE_PREFIX}{kind}"),
            datacontenttype: Some(MEDIA_TYPE.to_owned()),
            dataschema: None,
            subject: value(&self.settings.subject),
            time: None,
            extensions: key.into_iter().collect(),
            data: Some(Data::Binary(body.to_vec())),
        };
        Ok(Received { event, idempotency_key })
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

    fn received(body: &'static [u8], settings: &Settings) -> Received {
        let origin = Origin { settings, source: "/adapters/lab" };
        origin.event(&Bytes::from_static(body), &Message::parse(body).unwrap()).unwrap()
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
}
