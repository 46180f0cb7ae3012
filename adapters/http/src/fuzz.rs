//! What must hold for any answer of an endpoint. Driven by the fuzzer, and by `cargo test` over the inputs that it has kept.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_adapter::{Data, Outcome};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::answer::Answer;

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[("http-answer", answer)];

/// A status in two bytes, whether the body was cut, header lines, an empty line, and the body.
fn answer(input: &[u8]) {
    let Some(([high, low, cut], rest)) = input.split_first_chunk() else { return };
    let Ok(status) = StatusCode::from_u16(u16::from_be_bytes([*high, *low])) else { return };
    let (head, body) = match rest.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&rest[..end], &rest[end + 2..]),
        None => (&[][..], rest),
    };
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(line[colon + 1..].trim_ascii()))
        {
            headers.append(name, value);
        }
    }
    let answer = Answer { status, headers, body: body.to_vec(), cut: cut % 2 == 1 };
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let (reply, delivered) = match answer.outcome(now) {
        Outcome::Delivered { reply, .. } => (reply, true),
        Outcome::Reject { reason, reply, .. } => {
            assert_eq!(reason, format!("the endpoint answered {}", status.as_u16()));
            (reply, false)
        }
        Outcome::Retry { reply, .. } => (reply, false),
        _ => panic!("an answer decides"),
    };
    assert_eq!(delivered, status.is_success(), "only a 2xx is a delivery");
    let Some(reply) = reply else { return };
    // What the application reads of the reply is what the endpoint sent.
    let read = match (&reply.data, &reply.data_base64) {
        (Some(raw), None) => read_data(raw.get(), reply.datacontenttype.as_deref()),
        (None, Some(text)) => BASE64.decode(text).expect("base64"),
        _ => panic!("one form of data"),
    };
    assert!(read == body || read == body.trim_ascii(), "{} bytes became {}", body.len(), read.len());
}

/// As the JSON format of CloudEvents has it: JSON as it stands, all else a string.
fn read_data(json: &str, media_type: Option<&str>) -> Vec<u8> {
    let event = format!(
        r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":{},"data":{json}}}"#,
        serde_json::to_string(&media_type).expect("a string")
    );
    let event: gatepost_adapter::Event = serde_json::from_str(&event).expect("an event");
    event.data.map(Data::into_bytes).expect("a payload stays one")
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
