//! What must hold for any bytes that a partner sends, or that an app has sent for one. Driven by the fuzzer, and by
//! `cargo test` over the inputs that it has kept.

use bytes::{Buf, BufMut, Bytes};
use time::macros::datetime;
use uuid::Uuid;

use crate::ack::{self, Stamp, Trouble, Verdict};
use crate::answer;
use crate::batch;
use crate::charset::Charset;
use crate::event::{Origin, Received};
use crate::header::{AckCode, Message, attribute_text};
use crate::mllp::{self, CR, Decoder, Ending, FS, Item, OVERSIZE_HEAD_BYTES, VT};
use crate::path::FieldPath;
use crate::settings::Settings;
use crate::view;
use gatepost_adapter::Network;

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("mllp", stream),
    ("hl7", header),
    ("hl7-ack", acknowledgement),
    ("hl7-batch", batch),
    ("hl7-settings", settings),
];

const LF: u8 = b'\n';
const MESSAGES_MAX: usize = 8;
/// Longest `Idempotency-Key` that the gateway takes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

// === MLLP ===

/// The first byte chooses the limit, the second how many of the next ones are lengths of pieces; the rest is the stream.
fn stream(input: &[u8]) {
    let Some((&limit, rest)) = input.split_first() else { return };
    let Some((&cuts, rest)) = rest.split_first() else { return };
    // Small limits meet every edge; the largest one is above what is kept of an oversize frame.
    let limit = if limit == u8::MAX { 2 * OVERSIZE_HEAD_BYTES } else { usize::from(limit) + 1 };
    let ending = if cuts & 0x80 == 0 { Ending::Strict } else { Ending::Lenient };
    let (cuts, stream) = rest.split_at(usize::from(cuts % 16).min(rest.len()));
    let whole = decode(std::iter::once(stream), limit, ending);
    assert_eq!(whole, decode(stream.chunks(1), limit, ending), "byte by byte");
    assert_eq!(whole, decode(pieces(stream, cuts), limit, ending), "in pieces");
    assert_eq!(whole, by_the_book(stream, limit, ending));
    for item in &whole.items {
        if let Item::Frame(body) = item {
            let mut frame = mllp::frame(body).expect("what came in a frame fits into one");
            let framed = frame.copy_to_bytes(frame.remaining());
            let again = decode(std::iter::once(&framed[..]), limit, ending);
            assert_eq!(again.items, [Item::Frame(body.clone())]);
        }
    }
    // What we would send: the partner's decoder sees exactly that, or we refuse to send it.
    let body = Bytes::copy_from_slice(stream);
    if let Ok(mut frame) = mllp::frame(&body) {
        let framed = frame.copy_to_bytes(frame.remaining());
        assert_eq!(by_the_book(&framed, usize::MAX, Ending::Strict).items, [Item::Frame(body)]);
    }
}

/// Everything that a stream led to.
#[derive(Debug, PartialEq)]
struct Decoded {
    items: Vec<Item>,
    junk_bytes: u64,
    /// Bytes of a frame that did not end.
    cut: Option<u64>,
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: usize, ending: Ending) -> Decoded {
    let mut decoder = Decoder::new(limit, ending);
    let mut items = Vec::new();
    for piece in pieces {
        decoder.buffer().put_slice(piece);
        items.extend(std::iter::from_fn(|| decoder.next_item()));
        // One byte more than a body: an FS whose follower has not come yet.
        assert!(decoder.buffer().len() <= limit + 1, "{} bytes held", decoder.buffer().len());
    }
    // The connection's end: what a lenient decoder takes for a whole frame, it takes now.
    items.extend(decoder.take_open_end());
    let cut = decoder.finish().err().map(|end| end.received);
    assert_eq!(cut.is_some(), decoder.inside_frame());
    Decoded { items, junk_bytes: decoder.junk_bytes(), cut }
}

fn pieces<'a>(stream: &'a [u8], cuts: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = stream;
    let mut cuts = cuts.iter().cycle();
    std::iter::from_fn(move || {
        let length = cuts.next().map_or(rest.len(), |cut| usize::from(*cut)).clamp(1, rest.len().max(1));
        let (piece, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(piece)
    })
}

/// The framing rules once more, with the whole stream in hand and no regard for memory.
fn by_the_book(stream: &[u8], limit: usize, ending: Ending) -> Decoded {
    let mut decoded = Decoded { items: Vec::new(), junk_bytes: 0, cut: None };
    let mut body: Option<Vec<u8>> = None;
    let mut bytes = stream.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match &mut body {
            None if byte == VT => body = Some(Vec::new()),
            None => decoded.junk_bytes += u64::from(!matches!(byte, CR | LF)),
            Some(begun) if byte == VT => {
                let length = begun.len() as u64;
                if length > 0 {
                    decoded.items.push(Item::Abandoned { length });
                }
                begun.clear();
            }
            Some(ended)
                if byte == FS
                    && (bytes.peek() == Some(&CR)
                        || (ending == Ending::Lenient && matches!(bytes.peek(), Some(&VT) | None))) =>
            {
                if bytes.peek() == Some(&CR) {
                    bytes.next();
                }
                if ended.len() > limit {
                    let head = Bytes::copy_from_slice(&ended[..limit.min(OVERSIZE_HEAD_BYTES)]);
                    decoded.items.push(Item::Oversize { head, length: ended.len() as u64 });
                } else if !ended.is_empty() {
                    decoded.items.push(Item::Frame(Bytes::copy_from_slice(ended)));
                }
                body = None;
            }
            Some(open) => open.push(byte),
        }
    }
    decoded.cut = body.map(|open| open.len() as u64);
    decoded
}

// === header ===

/// A line that may be a field's path, then a message.
fn header(input: &[u8]) {
    let end = input.iter().position(|byte| *byte == LF).unwrap_or(0);
    let path = std::str::from_utf8(&input[..end]).ok().and_then(|text| {
        let path: FieldPath = text.parse().ok()?;
        assert_eq!(path.to_string(), text, "a path has one spelling");
        Some(path)
    });
    let body = Bytes::copy_from_slice(input.get(end + 1..).unwrap_or_default());
    let message = match Message::parse(&body) {
        Ok(message) => message,
        Err(error) => {
            assert!(!body.starts_with(b"MSH|^~\\&|"), "{error}: the usual header is always read");
            return;
        }
    };
    for field in fields(&message) {
        assert!(lies_in(field, &body));
        let separator = message.delimiters().field;
        assert!(!field.iter().any(|byte| *byte == separator || matches!(*byte, CR | LF)));
    }
    if let Ok(kind) = message.message_type() {
        assert!(kind.to_string().bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'));
    }
    if let Some(path) = &path
        && let Some(value) = message.value(path)
    {
        assert!(lies_in(value, &body) && !value.is_empty());
        let text = attribute_text(value, Charset::Utf8, 256);
        assert!(text.chars().count() <= 256 && !text.chars().any(char::is_control));
    }
    line_ends_say_the_same(&body, &message, path.as_ref());
    as_an_event(&body, &message);
}

/// Every field that delivery reads.
fn fields<'a>(message: &Message<'a>) -> Vec<&'a [u8]> {
    let mut fields = vec![
        message.encoding_characters(),
        message.sending_application(),
        message.sending_facility(),
        message.receiving_application(),
        message.receiving_facility(),
        message.processing_id(),
        message.version(),
        message.character_set(),
        message.accept_acknowledgement(),
        message.application_acknowledgement(),
    ];
    fields.extend(message.control_id().ok());
    fields.extend(message.message_type().ok().map(|kind| kind.code.as_bytes()));
    fields
}

fn lies_in(part: &[u8], whole: &[u8]) -> bool {
    let (part, whole) = (part.as_ptr_range(), whole.as_ptr_range());
    part.start == part.end || (whole.start <= part.start && part.end <= whole.end)
}

/// Segments may end in CR, LF or both: the message is the same.
fn line_ends_say_the_same(body: &[u8], message: &Message<'_>, path: Option<&FieldPath>) {
    if body.contains(&LF) {
        return;
    }
    for end in [&b"\n"[..], b"\r\n"] {
        let parts: Vec<&[u8]> = body.split(|byte| *byte == CR).collect();
        let other = parts.join(end);
        let other = Message::parse(&other).expect("the same message");
        assert_eq!(fields(&other), fields(message));
        assert_eq!(other.acknowledgement(), message.acknowledgement());
        assert_eq!(path.and_then(|path| other.value(path)), path.and_then(|path| message.value(path)));
    }
}

/// What is read is a valid event, and its payload the bytes as they came.
fn as_an_event(body: &Bytes, message: &Message<'_>) {
    let settings = Settings::default();
    let origin = Origin { settings: &settings, source: "/adapters/lab" };
    let Ok(Received { event, idempotency_key }) = origin.event(body, message) else { return };
    event.validate().expect("a valid event");
    assert!(event.data.as_ref().is_none_or(|data| data.as_bytes() == &body[..]));
    assert!((1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&idempotency_key.len()));
    assert!(idempotency_key.bytes().all(|byte| byte.is_ascii_graphic()));
    let json = serde_json::to_string(&event).expect("an event has a JSON form");
    let read: gatepost_adapter::Event = serde_json::from_str(&json).expect("which can be read");
    assert!(read == event, "which says the same");
}

// === acknowledgements ===

/// A message as it came in a frame: whatever it holds, its answer is well-formed, names it, and goes back in a frame.
fn acknowledgement(input: &[u8]) {
    // Only what fits into a frame comes out of one.
    let body = Bytes::copy_from_slice(input);
    if mllp::frame(&body).is_err() {
        return;
    }
    let stamp = Stamp::new(
        Uuid::from_u128(0x0123_4567_89ab_7def_8123_4567_89ab_cdef),
        datetime!(2026-01-02 03:04:05 UTC),
    );
    let Ok(message) = Message::parse(&body) else {
        let refusal = ack::build_generic_refusal("what came is no message", &stamp);
        assert!(mllp::frame(&refusal).is_ok());
        let refusal = Message::parse(&refusal).expect("a message");
        assert_eq!(refusal.acknowledgement().and_then(|ack| ack.code), Some(AckCode::Ar));
        return;
    };
    for verdict in [Verdict::Accepted, Verdict::TryLater, Verdict::Refused] {
        let owed = ack::code_owed(&message, verdict);
        if owed.is_some_and(AckCode::is_positive) {
            assert_eq!(verdict, Verdict::Accepted, "only what is stored is acknowledged");
        }
        let Some(code) = owed else { continue };
        let ack = ack::build(
            &message,
            code,
            Some(&Trouble::internal("a reason | with ^~\\& \r\n everything")),
            None,
            &stamp,
        );
        assert!(mllp::frame(&ack).is_ok(), "an answer that cannot be sent");
        let read = Message::parse(&ack).expect("a message");
        assert_eq!(read.delimiters(), message.delimiters());
        assert_eq!(read.message_type().map(|kind| kind.code), Ok("ACK"));
        assert_eq!(read.sending_application(), message.receiving_application());
        assert_eq!(read.acknowledgement().and_then(|ack| ack.code), Some(code));
        assert_eq!(ack::code_owed(&read, Verdict::Accepted), None, "an answer to an answer");
        if let Ok(control_id) = message.control_id() {
            let answer = answer::read(&ack).expect("the sender knows it by its id");
            assert_eq!((answer.code, &answer.control_id[..]), (code, control_id));
            let error = message.version().iter().any(u8::is_ascii_digit);
            assert!(answer.error.as_deref() == Some("207") || answer.error.is_none() || !error);
        }
    }
}

// === batches and what people are shown ===

/// A frame that may be a batch: its messages are slices of it, in order, and apart. Any frame can be shown.
fn batch(input: &[u8]) {
    let body = Bytes::copy_from_slice(input);
    for charset in [Charset::Utf8, Charset::Latin1, Charset::Latin5, Charset::Ascii] {
        if let Ok(text) = view::view(&body, charset) {
            assert!(!text.chars().any(|character| character.is_control() && character != '\n'));
        }
    }
    let Ok(batch) = batch::split(&body, MESSAGES_MAX) else {
        if let Some(batch) = batch::split_unchecked(&body, MESSAGES_MAX) {
            assert!(batch.messages.len() <= MESSAGES_MAX);
        }
        return;
    };
    assert!(batch::is_batch(&body) && batch.messages.len() <= MESSAGES_MAX);
    let mut end = body.as_ptr();
    for member in &batch.messages {
        assert!(lies_in(&member.body, &body) && member.body.starts_with(b"MSH"));
        assert!(member.body.as_ptr() >= end, "in order and apart");
        end = member.body.as_ptr_range().end;
        assert!(!holds_another(&member.body), "a message within a message");
        assert!(batch::split_unchecked(&member.body, MESSAGES_MAX).is_none(), "a batch in a batch");
    }
}

/// Whether a message whose header ends in LF, as then all of its segments do, goes on into a second one.
fn holds_another(message: &[u8]) -> bool {
    let mut lines = message.split_inclusive(|byte| matches!(*byte, CR | LF));
    let header = lines.next().unwrap_or_default();
    let begins_alike = |line: &[u8]| line.len() > 4 && line.get(..4) == header.get(..4);
    header.ends_with(&[LF]) && lines.any(begins_alike)
}

// === settings ===

/// The adapter's settings: what can be read has a second form that says the same, and faults do not change.
fn settings(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(network) = Network::try_from(text.to_owned()) {
        let written = String::from(network);
        let again = Network::try_from(written.clone()).expect("what was written can be read");
        assert_eq!(again, network);
        assert!(
            written == text
                || written == format!("{text}/32")
                || written == format!("{text}/128")
                || text.contains(':')
        );
    }
    if let Ok(path) = text.parse::<FieldPath>() {
        assert_eq!(path.to_string(), text);
    }
    let Ok(settings) = serde_json::from_str::<Settings>(text) else { return };
    let faults = |settings: &Settings| -> Vec<String> {
        settings.faults().into_iter().map(|fault| format!("{}: {}", fault.key, fault.message)).collect()
    };
    assert_eq!(faults(&settings), faults(&settings.clone()));
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
