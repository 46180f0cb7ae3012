//! The request for one attempt: the payload as body, the event's attributes as headers (CloudEvents HTTP binding, binary
//! mode), and the headers of Standard Webhooks.

use std::fmt::Write as _;

use gatepost_adapter::Event;
use http::header::{CONTENT_TYPE, InvalidHeaderValue};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::signature::{Secret, signatures};

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
/// What the gateway added for its own side: the sender's name is nobody's business outside.
const INTERNAL_PREFIX: &str = "gatepost";
const DATAREF: &str = "dataref";

/// Which attempt it is.
pub(crate) struct Attempt<'a> {
    /// The same over all attempts of a delivery: what the endpoint deduplicates by.
    pub(crate) id: &'a str,
    /// Seconds since 1970, now.
    pub(crate) timestamp: u64,
}

pub(crate) fn headers(
    event: &Event,
    body: &[u8],
    attempt: &Attempt<'_>,
    secrets: &[Secret],
) -> Result<HeaderMap, InvalidHeaderValue> {
    let mut headers = HeaderMap::new();
    let core = [
        ("specversion", Some("1.0")),
        ("id", Some(event.id.as_str())),
        ("source", Some(event.source.as_str())),
        ("type", Some(event.kind.as_str())),
        ("subject", event.subject.as_deref()),
        ("time", event.time.as_deref()),
        ("dataschema", event.dataschema.as_deref()),
    ];
    for (name, value) in core {
        if let Some(value) = value {
            put_attribute(&mut headers, name, value)?;
        }
    }
    for (name, value) in &event.extensions {
        if name != DATAREF && !name.starts_with(INTERNAL_PREFIX) {
            put_attribute(&mut headers, name, &value.to_text())?;
        }
    }
    // Without a type the payload is JSON, as CloudEvents has it.
    let media_type = event.datacontenttype.as_deref().unwrap_or("application/json");
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(media_type)?);
    headers.insert(WEBHOOK_ID, HeaderValue::from_str(attempt.id)?);
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(attempt.timestamp));
    if let Some(signatures) = signatures(secrets, attempt.id, attempt.timestamp, body) {
        headers.insert(WEBHOOK_SIGNATURE, HeaderValue::from_str(&signatures)?);
    }
    Ok(headers)
}

fn put_attribute(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), InvalidHeaderValue> {
    // Attribute names are a-z and 0-9, checked when the event was read; anything else could not be a header.
    if let Ok(name) = HeaderName::try_from(format!("ce-{name}")) {
        headers.insert(name, HeaderValue::from_str(&percent_encoded(value))?);
    }
    Ok(())
}

/// CloudEvents HTTP binding §3.1.3.2: visible ASCII stays, but for `"` and `%`.
fn percent_encoded(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' => write_escape(&mut encoded, byte),
            b'!'..=b'~' => encoded.push(char::from(byte)),
            _ => write_escape(&mut encoded, byte),
        }
    }
    encoded
}

fn write_escape(encoded: &mut String, byte: u8) {
    // Writing into a String cannot fail.
    let _ = write!(encoded, "%{byte:02X}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Event {
        serde_json::from_str(text).unwrap()
    }

    const ATTEMPT: Attempt<'static> = Attempt { id: "d-1", timestamp: 1_614_265_330 };

    #[test]
    fn attributes_become_headers_and_internal_ones_stay_here() {
        let event = event(
            r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"Dürer \"A\" 100%","time":"2026-01-02T03:04:05Z",
                "datacontenttype":"text/plain","partitionkey":"k","count":3,"gatepostapp":"ehr","gatepostid":"m","dataref":"/v1/x"}"#,
        );
        let headers = headers(&event, b"", &ATTEMPT, &[]).unwrap();
        let mut shown: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "ce-count: 3",
                "ce-id: 1",
                "ce-partitionkey: k",
                "ce-source: /s",
                "ce-specversion: 1.0",
                "ce-subject: D%C3%BCrer%20%22A%22%20100%25",
                "ce-time: 2026-01-02T03:04:05Z",
                "ce-type: t",
                "content-type: text/plain",
                "webhook-id: d-1",
                "webhook-timestamp: 1614265330",
            ]
        );
    }

    #[test]
    fn the_body_is_signed() {
        let event = event(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t"}"#);
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let attempt = Attempt { id: "msg_p5jXN8AQM9LWM0D4loKWxJek", ..ATTEMPT };
        let headers = headers(&event, br#"{"test": 2432232314}"#, &attempt, &[secret]).unwrap();
        assert_eq!(headers["webhook-signature"], "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(headers["content-type"], "application/json");
    }
}
