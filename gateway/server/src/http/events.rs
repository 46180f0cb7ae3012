//! The three content modes of CloudEvents over HTTP: which one a request uses, and the events that it holds. Pure.

use std::cell::Cell;
use std::fmt;

use axum::http::{HeaderMap, header};
use gatepost_api::event::{Data, Event, EventError};
use gatepost_api::problem::Code;
use gatepost_api::{BATCH_MEDIA_TYPE, EVENT_MEDIA_TYPE};
use gatepost_core::message::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use serde::de::{DeserializeSeed, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::binary;
use super::body::json_fault;
use super::headers::essence;
use super::problem::Refusal;

/// Room for the attributes of one event in structured mode, bytes.
const ATTRIBUTES_BYTES_MAX: u64 = 512 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Attributes in headers.
    Binary,
    /// One event as JSON.
    Structured,
    Batch,
}

impl Mode {
    /// The content type decides between structured and batch; binary mode is what has `ce-specversion`.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let mut content_types = headers.get_all(header::CONTENT_TYPE).iter();
        let content_type = content_types.next().and_then(|value| value.to_str().ok()).map(essence);
        if content_types.next().is_some() {
            return Err(Refusal::invalid("`Content-Type` must stand there once"));
        }
        match content_type.as_deref() {
            Some(EVENT_MEDIA_TYPE) => Ok(Self::Structured),
            Some(BATCH_MEDIA_TYPE) => Ok(Self::Batch),
            _ if binary::is_binary(headers) => Ok(Self::Binary),
            _ => {
                let detail = format!(
                    "a message is a CloudEvent: `{EVENT_MEDIA_TYPE}`, `{BATCH_MEDIA_TYPE}`, or any type with the headers `ce-specversion`, `ce-id`, `ce-source` and `ce-type`"
                );
                Err(Refusal::new(Code::UnsupportedMediaType, detail))
            }
        }
    }

    /// Largest body: payload in base64 and attributes for structured mode.
    pub(crate) fn body_bytes_max(self, max_message: u64) -> u64 {
        match self {
            Self::Binary => max_message,
            Self::Structured => {
                max_message.div_ceil(3).saturating_mul(4).saturating_add(ATTRIBUTES_BYTES_MAX)
            }
            Self::Batch => BATCH_BYTES_MAX,
        }
    }

    /// The events of a body, none of them with a payload above `max_message`.
    pub(crate) fn events(
        self,
        headers: &HeaderMap,
        body: &[u8],
        max_message: u64,
    ) -> Result<Vec<Event>, Refusal> {
        let events = match self {
            Self::Binary => {
                let event =
                    binary::decode(headers, body.to_vec()).map_err(|error| invalid_event(0, &error))?;
                vec![event]
            }
            Self::Structured => {
                let event = serde_json::from_slice(body).map_err(|error| event_fault(0, &error))?;
                vec![event]
            }
            Self::Batch => batch(body)?,
        };
        let too_large = |event: &Event| event.data.as_ref().is_some_and(|data| size(data) > max_message);
        match events.iter().position(too_large) {
            Some(index) => {
                let detail = format!("the payload of event {index} is larger than {max_message} bytes");
                Err(Refusal::new(Code::TooLarge, detail))
            }
            None => Ok(events),
        }
    }
}

fn size(data: &Data) -> u64 {
    data.as_bytes().len() as u64
}

pub(crate) fn invalid_event(index: usize, error: &EventError) -> Refusal {
    Refusal::new(Code::InvalidEvent, format!("event {index}: {error}"))
}

/// JSON that does not parse is the request's fault; JSON that is no CloudEvent is the event's.
fn event_fault(index: usize, error: &serde_json::Error) -> Refusal {
    if error.is_data() {
        Refusal::new(Code::InvalidEvent, format!("event {index}: {}", json_fault(error)))
    } else {
        Refusal::invalid(json_fault(error))
    }
}

fn batch(body: &[u8]) -> Result<Vec<Event>, Refusal> {
    let index = Cell::new(0);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = Batch { index: &index }.deserialize(&mut deserializer).and_then(|events| {
        deserializer.end()?;
        Ok(events)
    });
    let events = parsed.map_err(|error| {
        if index.get() > BATCH_EVENTS_MAX {
            Refusal::new(Code::TooLarge, format!("the batch has more than {BATCH_EVENTS_MAX} events"))
        } else {
            event_fault(index.get(), &error)
        }
    })?;
    if events.is_empty() { Err(Refusal::invalid("the batch has no event")) } else { Ok(events) }
}

/// Reads a batch and keeps in `index` which event it is at.
struct Batch<'a> {
    index: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Batch<'_> {
    type Value = Vec<Event>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Event>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Batch<'_> {
    type Value = Vec<Event>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a batch of CloudEvents (a JSON array)")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<Vec<Event>, A::Error> {
        let mut batch = Vec::new();
        while let Some(event) = events.next_element()? {
            batch.push(event);
            self.index.set(batch.len());
            if batch.len() > BATCH_EVENTS_MAX {
                self.index.set(BATCH_EVENTS_MAX + 1);
                return Err(serde::de::Error::custom("too many events"));
            }
        }
        Ok(batch)
    }
}

/// Which event in a member `emit` made a whole request fail, if one did. Only asked when it has failed.
pub(crate) fn emit_fault(body: &[u8]) -> Option<Refusal> {
    #[derive(serde::Deserialize)]
    struct Emits<'a> {
        #[serde(borrow, default)]
        emit: Vec<&'a RawValue>,
    }
    let emits: Emits<'_> = serde_json::from_slice(body).ok()?;
    emits.emit.iter().enumerate().find_map(|(index, event)| {
        let error = serde_json::from_str::<Event>(event.get()).err()?;
        Some(event_fault(index, &error))
    })
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const MAX: u64 = 100;

    fn headers(content_type: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))])
    }

    fn event(id: &str) -> String {
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t"}}"#)
    }

    fn batch_fault(body: &str) -> Refusal {
        Mode::Batch.events(&HeaderMap::new(), body.as_bytes(), MAX).unwrap_err()
    }

    #[test]
    fn the_mode_follows_from_the_headers() {
        assert_eq!(
            Mode::of(&headers("application/cloudevents+json; charset=UTF-8")).unwrap(),
            Mode::Structured
        );
        assert_eq!(Mode::of(&headers("application/CloudEvents-Batch+json")).unwrap(), Mode::Batch);
        assert_eq!(Mode::of(&headers("application/json")).unwrap_err().code, Code::UnsupportedMediaType);
        let mut binary = headers("application/json");
        binary.insert("ce-specversion", HeaderValue::from_static("1.0"));
        assert_eq!(Mode::of(&binary).unwrap(), Mode::Binary);
        // Which of two it is would be a guess, and the payload's form follows from it.
        binary.append(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        assert_eq!(Mode::of(&binary).unwrap_err().code, Code::InvalidRequest);
    }

    #[test]
    fn a_faulty_event_of_a_batch_is_named_by_its_position() {
        let body = format!("[{},{}]", event("1"), r#"{"specversion":"1.0","id":"canary","source":"/s"}"#);
        let refusal = batch_fault(&body);
        assert_eq!(refusal.code, Code::InvalidEvent);
        let detail = format!("{refusal:?}");
        assert!(
            detail.contains("event 1") && detail.contains("`type`") && !detail.contains("canary"),
            "{detail}"
        );
        assert_eq!(batch_fault(&format!("[{},", event("1"))).code, Code::InvalidRequest);
        assert_eq!(batch_fault(&format!("[{}] []", event("1"))).code, Code::InvalidRequest);
        assert_eq!(batch_fault("[]").code, Code::InvalidRequest);
        assert_eq!(batch_fault(&event("1")).code, Code::InvalidEvent);
    }

    #[test]
    fn r13_12_batches_and_payloads_are_bounded() {
        let batch = |count: usize| format!("[{}]", vec![event("1"); count].join(","));
        let read = |body: String| Mode::Batch.events(&HeaderMap::new(), body.as_bytes(), MAX);
        assert_eq!(read(batch(BATCH_EVENTS_MAX)).unwrap().len(), BATCH_EVENTS_MAX);
        assert_eq!(read(batch(BATCH_EVENTS_MAX + 1)).unwrap_err().code, Code::TooLarge);
        let big = event("1").replace('}', &format!(r#","data":"{}"}}"#, "x".repeat(MAX as usize)));
        assert_eq!(read(format!("[{},{big}]", event("1"))).unwrap_err().code, Code::TooLarge);
    }

    #[test]
    fn a_faulty_emit_is_found_in_a_settle() {
        let body = format!(r#"{{"results":[],"emit":[{},{{"specversion":"1.0"}}]}}"#, event("1"));
        assert!(format!("{:?}", emit_fault(body.as_bytes()).unwrap()).contains("event 1"));
        assert!(emit_fault(br#"{"results":7,"emit":[]}"#).is_none());
    }
}
