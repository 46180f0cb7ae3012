//! Binary content mode of the CloudEvents HTTP binding (§3.1): attributes in `ce-` headers, the body is the payload.

use std::collections::BTreeMap;

use axum::http::{HeaderMap, header};
use gatepost_api::event::{Data, Event, EventError, Extension};
use percent_encoding::percent_decode_str;

/// Every attribute's header starts with it.
const PREFIX: &str = "ce-";

/// Whether a request is in binary mode: it says the one thing that only binary mode says.
pub(crate) fn is_binary(headers: &HeaderMap) -> bool {
    headers.contains_key("ce-specversion")
}

/// The event that the headers and the body make. Faults name attributes, never their values.
pub(crate) fn decode(headers: &HeaderMap, body: Vec<u8>) -> Result<Event, EventError> {
    let mut attributes = attributes(headers)?;
    if attributes.remove("specversion").as_deref() != Some("1.0") {
        return Err(EventError::Version);
    }
    for (reserved, instead) in [("datacontenttype", "Content-Type"), ("data", "the body")] {
        if attributes.contains_key(reserved) {
            return Err(EventError::Name(format!("{PREFIX}{reserved} (use {instead})")));
        }
    }
    let datacontenttype = match headers.get(header::CONTENT_TYPE) {
        None => None,
        Some(value) => {
            let text = value.to_str().map_err(|_| EventError::Control("datacontenttype".into()))?;
            Some(text.to_owned())
        }
    };
    let mut required = |name: &'static str| attributes.remove(name).ok_or(EventError::Missing(name));
    let (id, source, kind) = (required("id")?, required("source")?, required("type")?);
    let (dataschema, subject, time) =
        (attributes.remove("dataschema"), attributes.remove("subject"), attributes.remove("time"));
    // A body without a type is bytes, not JSON: the HTTP binding has no default type.
    let data = match (&datacontenttype, body.is_empty()) {
        (None, true) => None,
        (None, false) => Some(Data::Binary(body)),
        (Some(_), _) => Some(Data::from_bytes(body, datacontenttype.as_deref())),
    };
    let extensions = attributes.into_iter().map(|(name, value)| (name, Extension::Text(value))).collect();
    let event = Event { id, source, kind, datacontenttype, dataschema, subject, time, extensions, data };
    event.validate()?;
    Ok(event)
}

fn attributes(headers: &HeaderMap) -> Result<BTreeMap<String, String>, EventError> {
    let mut attributes = BTreeMap::new();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix(PREFIX) else { continue };
        let value = decode_value(value.as_bytes()).ok_or_else(|| EventError::Control(name.to_owned()))?;
        if attributes.insert(name.to_owned(), value).is_some() {
            return Err(EventError::Twice(name.to_owned()));
        }
    }
    Ok(attributes)
}

/// A header's value as the HTTP binding encodes it (§3.1.3.2): percent-encoded UTF-8, perhaps in double quotes.
fn decode_value(raw: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(raw).ok()?.trim();
    let unquoted = match text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(content) => unescape(content)?,
        None => text.to_owned(),
    };
    Some(percent_decode_str(&unquoted).decode_utf8().ok()?.into_owned())
}

/// Quoted pairs (RFC 9110 §5.6.4).
fn unescape(content: &str) -> Option<String> {
    let mut plain = String::with_capacity(content.len());
    let mut chars = content.chars();
    while let Some(next) = chars.next() {
        plain.push(if next == '\\' { chars.next()? } else { next });
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn decode_pairs(pairs: &[(&'static str, &str)], body: &[u8]) -> Result<Event, EventError> {
        let base = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
        let mut headers = HeaderMap::new();
        for (name, value) in base.iter().chain(pairs) {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        decode(&headers, body.to_vec())
    }

    #[test]
    fn attributes_are_percent_decoded_and_the_content_type_is_the_datas() {
        let event = decode_pairs(
            &[
                ("ce-subject", "M%C3%BCller%20%22x%22%25"),
                ("ce-partitionkey", "\"a\\\"b\""),
                ("content-type", "text/plain"),
            ],
            b"hello",
        )
        .unwrap();
        assert_eq!(event.subject.as_deref(), Some("Müller \"x\"%"));
        assert_eq!(event.text_extension("partitionkey").as_deref(), Some("a\"b"));
        assert_eq!(event.data, Some(Data::Text("hello".into())));
    }

    #[test]
    fn a_body_without_a_type_is_bytes_and_json_is_only_json_if_it_parses() {
        assert_eq!(decode_pairs(&[], b"{}").unwrap().data, Some(Data::Binary(b"{}".to_vec())));
        assert_eq!(decode_pairs(&[], b"").unwrap().data, None);
        let json = [("content-type", "application/json")];
        assert_eq!(decode_pairs(&json, b"{}").unwrap().data, Some(Data::Json("{}".into())));
        assert_eq!(decode_pairs(&json, b"{},").unwrap().data, Some(Data::Binary(b"{},".to_vec())));
    }

    #[test]
    fn faults_name_the_attribute() {
        let fault = |pairs: &[(&'static str, &str)]| decode_pairs(pairs, b"").unwrap_err().to_string();
        assert!(fault(&[("ce-id", "2")]).contains("`id`"));
        assert!(fault(&[("ce-data", "x")]).contains("the body"));
        assert!(fault(&[("ce-datacontenttype", "x")]).contains("Content-Type"));
        assert!(fault(&[("ce-subject", "a%0Ab")]).contains("`subject`"));
        assert!(fault(&[("ce-subject", "%ff")]).contains("`subject`"));
        assert!(fault(&[("ce-bad_name", "x")]).contains("bad_name"));
        let mut headers = HeaderMap::new();
        headers.insert("ce-specversion", HeaderValue::from_static("1.0"));
        assert_eq!(decode(&headers, vec![]), Err(EventError::Missing("id")));
    }
}
