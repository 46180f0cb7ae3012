//! The JSON of an event as it is leased: the stored attributes, the gateway's own ones, and the payload in the form that was
//! fixed when it was accepted. JSON is spliced as it is, since accept has parsed it as one value; all else is encoded.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_core::MessageId;
use gatepost_core::message::{DataForm, INLINE_DATA_BYTES_MAX};
use gatepost_store::StoredMessage;

/// The attribute that stands in place of data above the inline limit (CloudEvents extension `dataref`).
pub(crate) const DATAREF: &str = "dataref";

/// Room for the gateway's own attributes, bytes.
const OWN_ATTRIBUTES_BYTES: usize = 256;

/// Where a message's payload is read.
pub(crate) fn data_path(message: MessageId) -> String {
    format!("/v1/messages/{message}/data")
}

/// What is stored is not what accept stores.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {message}: the stored {part} is not what accept stores")]
pub(crate) struct Unreadable {
    message: MessageId,
    part: &'static str,
}

/// Appends the event as one JSON object. A purged payload is left out. After an error `json` is as it was.
pub(crate) fn append_event(json: &mut String, message: &StoredMessage) -> Result<(), Unreadable> {
    let unreadable = |part| Unreadable { message: message.id, part };
    let attributes = std::str::from_utf8(&message.attributes).map_err(|_| unreadable("attributes"))?;
    let head = attributes.strip_suffix('}').filter(|head| head.starts_with('{'));
    let head = head.ok_or_else(|| unreadable("attributes"))?;
    let text = match (&message.data, message.form) {
        (Some(data), DataForm::Json | DataForm::Text) => {
            Some(std::str::from_utf8(data).map_err(|_| unreadable("payload"))?)
        }
        _ => None,
    };
    let payload = message.data.as_ref().map_or(0, |data| data.len());
    json.reserve(head.len() + OWN_ATTRIBUTES_BYTES + payload.div_ceil(3) * 4);
    json.push_str(head);
    append_own(json, message);
    match (&message.data, message.form) {
        (Some(_), DataForm::Json) => {
            json.push_str(r#","data":"#);
            json.push_str(text.unwrap_or("null"));
        }
        (Some(_), DataForm::Text) => {
            json.push_str(r#","data":"#);
            append_string(json, text.unwrap_or_default());
        }
        (Some(data), DataForm::Base64) => {
            json.push_str(r#","data_base64":""#);
            BASE64.encode_string(data, json);
            json.push('"');
        }
        (None, _) if message.size > INLINE_DATA_BYTES_MAX && !message.purged => {
            json.push_str(r#",""#);
            json.push_str(DATAREF);
            json.push_str(r#"":"#);
            append_string(json, &data_path(message.id));
        }
        (Some(_), DataForm::None) | (None, _) => {}
    }
    json.push('}');
    Ok(())
}

fn append_own(json: &mut String, message: &StoredMessage) {
    // Writing into a String does not fail.
    let _ = write!(json, r#","gatepostid":"{}","gatepostapp":"#, message.id);
    append_string(json, &message.sender.name);
    let _ = write!(json, r#","gateposttime":"{}""#, message.accepted_at.to_rfc3339());
}

/// Appends `text` as a JSON string.
pub(crate) fn append_string(json: &mut String, text: &str) {
    // Strings always have a JSON form.
    json.push_str(&serde_json::to_string(text).unwrap_or_else(|_| "\"\"".to_owned()));
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use gatepost_api::event::{Data, Event};
    use gatepost_core::Timestamp;
    use gatepost_core::message::NewMessage;
    use gatepost_core::principal::{Actor, ActorKind};

    use super::*;
    use crate::http::binary;
    use crate::http::intake::{Context, Draft};

    fn stored(message: NewMessage) -> StoredMessage {
        StoredMessage {
            id: MessageId::from_bytes([7; 16]),
            sender: Actor::new(ActorKind::App, "ehr"),
            accepted_at: Timestamp::from_micros(0),
            attributes: message.attributes.into(),
            form: message.form,
            size: message.data.len() as u64,
            data: Some(Bytes::from(message.data)),
            purged: false,
        }
    }

    /// What accept makes of a request in binary mode.
    fn accepted(content_type: &str, body: &[u8]) -> StoredMessage {
        let mut headers = axum::http::HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("ce-type", "t"),
            ("content-type", content_type),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let event = binary::decode(&headers, body.to_vec()).unwrap();
        stored(Draft::from_event(event, Context::default()).unwrap().message)
    }

    fn event(message: &StoredMessage) -> Event {
        let mut json = String::new();
        append_event(&mut json, message).unwrap();
        serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"))
    }

    #[test]
    fn r13_12_every_payload_comes_back_as_the_senders_bytes() {
        for content_type in
            ["application/json", "text/plain", "application/hl7-v2+er7", "application/fhir+json"]
        {
            for body in [
                &b""[..],
                b"null",
                br#"{"b" : 1.0,  "a":"\u00e9"}"#,
                b" [1] ",
                b"a \"quoted\" line\nand \x7f \x01",
                b"\x00\xff\"}",
                // Each of these would break out of its place if it were spliced.
                br#"1},{"x":1"#,
                br#"1,"gatepostapp":"admin""#,
                br#"{} {}"#,
                br#"","gatepostapp":"admin","x":""#,
            ] {
                let event = event(&accepted(content_type, body));
                let bytes = event.data.as_ref().map_or(&[][..], Data::as_bytes);
                let same = bytes == body || bytes == body.trim_ascii();
                assert!(same, "{content_type}: {:?} became {:?}", body, bytes);
                assert_eq!(event.text_extension("gatepostapp").as_deref(), Some("ehr"), "{body:?}");
            }
        }
    }

    #[test]
    fn the_gateways_attributes_are_there_and_the_name_is_escaped() {
        let mut message = accepted("text/plain", b"hi");
        message.sender.name = "a\"},{".into();
        let event = event(&message);
        assert_eq!(event.text_extension("gatepostapp").as_deref(), Some("a\"},{"));
        assert_eq!(event.text_extension("gatepostid"), Some(message.id.to_string()));
        assert_eq!(event.text_extension("gateposttime").as_deref(), Some("1970-01-01T00:00:00.000000Z"));
    }

    #[test]
    fn corrupt_rows_are_reported_and_leave_no_trace_in_the_answer() {
        let mut json = String::from("[");
        let mut message = accepted("text/plain", b"hi");
        message.attributes = Bytes::from_static(b"{\"a\":1");
        assert!(append_event(&mut json, &message).is_err());
        let mut message = accepted("text/plain", b"hi");
        message.data = Some(Bytes::from_static(b"\xff"));
        assert!(append_event(&mut json, &message).is_err());
        assert_eq!(json, "[");
    }

    #[test]
    fn r13_12_above_the_inline_limit_the_payload_is_referred_to() {
        let mut message = accepted("application/octet-stream", b"");
        message.data = None;
        message.size = INLINE_DATA_BYTES_MAX + 1;
        assert_eq!(event(&message).text_extension(DATAREF), Some(data_path(message.id)));
        message.purged = true;
        assert_eq!(event(&message).text_extension(DATAREF), None);
    }
}
