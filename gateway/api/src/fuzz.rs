//! What must hold for any bytes that are read as one of the wire's types. Driven by the fuzzer, and by `cargo test` over the
//! inputs that it has kept.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::event::{Data, Event, is_json_media_type};
use crate::lists::{ReasonRequest, ResolveRequest};
use crate::messages::Reply;
use crate::queues::{LeaseRequest, LeaseResponse};
use crate::session::SessionRequest;
use crate::settle::{SettleRequest, SettleResponse};

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("event", event), ("payload", payload), ("wire", wire)];

/// A CloudEvent in the JSON format: what was read, written and read again is the same event.
fn event(input: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Event>(input) else { return };
    event.validate().expect("what was read is valid");
    let json = serde_json::to_string(&event).expect("an event has a JSON form");
    let read: Event = serde_json::from_str(&json).expect("which can be read");
    assert!(read == event, "and says the same");
    assert_eq!(serde_json::to_string(&read).expect("an event has a JSON form"), json);
}

/// A media type, a line end, and payload bytes: they come through the JSON format unchanged.
fn payload(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let media_type = std::str::from_utf8(&input[..end]).ok().filter(|text| !text.is_empty());
    let bytes = input.get(end + 1..).unwrap_or_default();
    let event = Event {
        id: "1".to_owned(),
        source: "/s".to_owned(),
        kind: "t".to_owned(),
        datacontenttype: media_type.map(str::to_owned),
        dataschema: None,
        subject: None,
        time: None,
        extensions: Default::default(),
        data: Some(Data::from_bytes(bytes.to_vec(), media_type)),
    };
    if event.validate().is_err() {
        return;
    }
    let json = serde_json::to_string(&event).expect("an event has a JSON form");
    let read: Event = serde_json::from_str(&json).expect("which can be read");
    let came = read.data.as_ref().map(Data::as_bytes).expect("a payload stays one");
    // Space around a JSON value is no part of it, and the JSON format has no place for it.
    let same = came == bytes || (is_json_media_type(media_type) && came == bytes.trim_ascii());
    assert!(same, "{} bytes became {}", bytes.len(), came.len());
}

/// Bodies of requests and answers: what was read, written and read again is written the same.
fn wire(input: &[u8]) {
    same_again::<LeaseRequest>(input);
    same_again::<LeaseResponse>(input);
    same_again::<SettleRequest>(input);
    same_again::<SettleResponse>(input);
    same_again::<SessionRequest>(input);
    same_again::<ReasonRequest>(input);
    same_again::<ResolveRequest>(input);
    same_again::<Reply>(input);
}

fn same_again<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(input) else { return };
    let json = serde_json::to_string(&value).expect("it has a JSON form");
    let read: T = serde_json::from_str(&json).expect("which can be read");
    assert_eq!(serde_json::to_string(&read).expect("it has a JSON form"), json);
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
