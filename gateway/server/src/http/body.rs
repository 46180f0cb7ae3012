//! Bodies of requests: read up to a limit that holds while they stream in, and parsed as JSON with faults that name a
//! position and a field, never a value. How slowly a body may come in is the listener's business.

use axum::body::{Body, Bytes};
use gatepost_api::problem::Code;
use gatepost_core::principal::Actor;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;

use super::allowance::Flight;
use super::places::{BodyMemory, Room, SMALL_BODY_BYTES};
use super::problem::Refusal;
use crate::listen::BodyError;

/// Largest body of calls other than accept and settle, bytes.
pub(crate) const SMALL_REQUEST_BYTES_MAX: u64 = 64 * 1024;
/// Longest name of a field that an error repeats, characters.
const NAME_CHARS_MAX: usize = 64;

/// A body in memory, with its place there.
pub(crate) struct Received {
    pub(crate) bytes: Bytes,
    pub(crate) room: Option<Room>,
    /// What it takes of its sender's bytes, as long as this is kept.
    pub(crate) flight: Option<Flight>,
}

/// Reads a body of at most `limit` bytes, within the share of memory that its sender has.
pub(crate) async fn receive(
    body: Body,
    limit: u64,
    memory: &BodyMemory,
    sender: &Actor,
) -> Result<Received, Refusal> {
    receive_in(body, limit, memory, sender, None).await
}

/// Likewise, on the sender's own account of bytes if it has one.
pub(crate) async fn receive_in(
    body: Body,
    limit: u64,
    memory: &BodyMemory,
    sender: &Actor,
    mut flight: Option<Flight>,
) -> Result<Received, Refusal> {
    let too_large = || Refusal::new(Code::TooLarge, format!("the body is larger than {limit} bytes"));
    let hint = body.size_hint();
    if hint.lower() > limit {
        return Err(too_large());
    }
    if let Some(flight) = &mut flight {
        // What is announced is taken at once: it is refused before it has come in.
        flight.grow_to(hint.lower())?;
    }
    let most = hint.upper().map_or(limit, |upper| upper.min(limit));
    let mut room = None;
    let mut body = body;
    let mut first: Option<Bytes> = None;
    let mut whole: Vec<u8> = Vec::new();
    let mut length = 0u64;
    while let Some(frame) = body.frame().await {
        // Trailers say nothing here.
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        length += data.len() as u64;
        if length > limit {
            return Err(too_large());
        }
        if let Some(flight) = &mut flight {
            flight.grow_to(length)?;
        }
        if length > SMALL_BODY_BYTES && room.is_none() {
            // Whoever waits here holds little, and those who have room are not held up by it: no deadlock.
            room = Some(memory.reserve(sender, most).await?);
        }
        match (&first, whole.is_empty()) {
            (None, true) => first = Some(data),
            (Some(head), true) => {
                let expected = hint.exact().unwrap_or(0).max(length);
                whole.reserve(usize::try_from(expected).unwrap_or(0));
                whole.extend_from_slice(head);
                whole.extend_from_slice(&data);
            }
            (_, false) => whole.extend_from_slice(&data),
        }
    }
    if let Some(room) = &mut room {
        room.shrink(length);
    }
    let bytes = if whole.is_empty() { first.unwrap_or_default() } else { whole.into() };
    Ok(Received { bytes, room, flight })
}

fn broken(error: axum::Error) -> Refusal {
    match error.into_inner().downcast_ref::<BodyError>() {
        Some(BodyError::Stalled) => Refusal::new(Code::RequestTimeout, "the body stopped coming in"),
        Some(BodyError::Broken(_)) | None => Refusal::invalid("the body did not arrive whole"),
    }
}

/// Reads a JSON body.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| Refusal::invalid(json_fault(&error)))
}

/// What is wrong and where, without any value that stands in the text: serde's own messages quote strings and numbers.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    let place = format!("line {}, column {}", error.line(), error.column());
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(text, _)| text);
    match error.classify() {
        Category::Syntax | Category::Eof => format!("the body is not JSON: {message} ({place})"),
        Category::Io => format!("the body could not be read ({place})"),
        Category::Data => format!("{} ({place})", without_values(message)),
    }
}

fn without_values(message: &str) -> String {
    for fault in ["unknown field", "missing field", "duplicate field"] {
        if let Some(name) = message.strip_prefix(fault).and_then(|rest| rest.split('`').nth(1)) {
            let name: String = name.chars().take(NAME_CHARS_MAX).collect();
            return format!("{fault} `{name}`");
        }
    }
    let quotes = ["invalid type", "invalid value", "invalid length", "unknown variant"];
    if quotes.iter().any(|start| message.starts_with(start)) {
        // serde's sentence ends with what it wanted, which our types say and not the request.
        return match message.rsplit_once(", expected ") {
            Some((_, expected)) => format!("a value is not what it must be: expected {expected}"),
            None => "a value is not what it must be".to_owned(),
        };
    }
    if message.starts_with("UUID") {
        return "an id is not a UUID".to_owned();
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use gatepost_api::queues::LeaseRequest;
    use gatepost_api::settle::SettleRequest;
    use gatepost_core::principal::ActorKind;

    use super::*;

    fn fault<T: DeserializeOwned>(text: &str) -> String {
        serde_json::from_str::<T>(text).map(drop).map_err(|error| json_fault(&error)).unwrap_err()
    }

    #[test]
    fn faults_name_field_and_position_and_never_a_value() {
        assert_eq!(
            fault::<LeaseRequest>(r#"{"max":1,"maxx":2}"#),
            "unknown field `maxx` (line 1, column 15)"
        );
        assert_eq!(fault::<LeaseRequest>("{}"), "missing field `max` (line 1, column 2)");
        assert!(fault::<LeaseRequest>("{\"max\":").starts_with("the body is not JSON: EOF"));
        for text in [
            r#"{"max":"canary"}"#,
            r#"{"max":1,"wait_ms":"a, expected canary"}"#,
            r#"["canary"]"#,
            r#"{"max":-4711}"#,
        ] {
            let fault = fault::<LeaseRequest>(text);
            assert!(!fault.contains("canary\"") && !fault.contains("4711"), "{fault}");
            assert!(fault.contains("expected"), "{fault}");
        }
        for text in [
            r#"{"results":[{"delivery":"canary","token":"","outcome":"begin"}]}"#,
            r#"{"results":[{"delivery":"018f0000-0000-7000-8000-000000000000","token":"","outcome":"canary"}]}"#,
            r#"{"state":{"canary":7}}"#,
        ] {
            assert!(!fault::<SettleRequest>(text).contains("canary"), "{}", fault::<SettleRequest>(text));
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_while_it_streams() {
        let memory = BodyMemory::for_requests();
        let sender = Actor::new(ActorKind::App, "ehr");
        let chunks = |count: usize| {
            let chunks = (0..count).map(|_| Ok::<_, std::io::Error>(Bytes::from_static(&[7; 10])));
            Body::from_stream(futures_util::stream::iter(chunks))
        };
        assert_eq!(receive(chunks(3), 30, &memory, &sender).await.ok().unwrap().bytes, vec![7u8; 30]);
        assert_eq!(receive(chunks(1), 30, &memory, &sender).await.ok().unwrap().bytes, vec![7u8; 10]);
        let endless =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[7; 10])));
        assert_eq!(
            receive(Body::from_stream(endless), 25, &memory, &sender).await.err().unwrap().code,
            Code::TooLarge
        );
        assert_eq!(
            receive(Body::from(vec![0; 26]), 25, &memory, &sender).await.err().unwrap().code,
            Code::TooLarge
        );
        assert!(receive(Body::empty(), 25, &memory, &sender).await.ok().unwrap().bytes.is_empty());
    }
}
