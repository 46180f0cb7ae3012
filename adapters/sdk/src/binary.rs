//! Binary content mode of the CloudEvents HTTP binding: attributes in `ce-` headers, and a large payload as the body, neither
//! copied nor encoded.

use gatepost_api::event::Event;
use http::{HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// What the binding asks to encode (§3.1.3.2): all but the visible ASCII characters, and of these the quote and the percent
/// sign. Characters beyond ASCII are encoded in any case.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers of an event whose data travels as the body. `None` where an attribute's name is no header's.
pub(crate) fn headers(event: &Event) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut headers = Vec::new();
    let mut add = |name: &str, value: &str| -> Option<()> {
        let name = HeaderName::from_bytes(format!("ce-{name}").as_bytes()).ok()?;
        let value = utf8_percent_encode(value, ENCODED).to_string();
        headers.push((name, HeaderValue::try_from(value).ok()?));
        Some(())
    };
    add("specversion", "1.0")?;
    add("id", &event.id)?;
    add("source", &event.source)?;
    add("type", &event.kind)?;
    let optional = [("dataschema", &event.dataschema), ("subject", &event.subject), ("time", &event.time)];
    for (name, value) in optional.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        add(name, value)?;
    }
    for (name, value) in &event.extensions {
        add(name, &value.to_text())?;
    }
    if let Some(datacontenttype) = &event.datacontenttype {
        headers.push((header::CONTENT_TYPE, HeaderValue::try_from(datacontenttype).ok()?));
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use gatepost_api::event::Extension;

    use super::*;

    #[test]
    fn attributes_become_headers_in_visible_ascii() {
        let event = Event {
            id: "1".to_owned(),
            source: "/s".to_owned(),
            kind: "t".to_owned(),
            datacontenttype: Some("application/hl7-v2+er7".to_owned()),
            dataschema: None,
            subject: Some("Müller \"x\" 5%".to_owned()),
            time: None,
            extensions: BTreeMap::from([("number".to_owned(), Extension::Integer(7))]),
            data: None,
        };
        let told: Vec<(String, String)> = headers(&event)
            .unwrap()
            .into_iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            told,
            [
                pair("ce-specversion", "1.0"),
                pair("ce-id", "1"),
                pair("ce-source", "/s"),
                pair("ce-type", "t"),
                pair("ce-subject", "M%C3%BCller%20%22x%22%205%25"),
                pair("ce-number", "7"),
                pair("content-type", "application/hl7-v2+er7"),
            ]
        );
    }
}
