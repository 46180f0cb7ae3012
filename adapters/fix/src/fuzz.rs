//! What must hold for any bytes that a partner sends, that an app hands in, or that stand in a dictionary's file. Driven by
//! the fuzzer, and by `cargo test` over the inputs that it has kept.

use std::sync::{Arc, LazyLock};

use bytes::{BufMut, Bytes};

use crate::content::{Form, Keys, MEDIA_TYPE, MEDIA_TYPE_JSON, Outgoing, View, attributes, is_apps};
use crate::data_fields::DataFields;
use crate::dictionary::{Dictionaries, Dictionary, Layout};
use crate::message::{Message, SOH, Tag, is_header, tag};
use crate::validate::{Level, Validator, is_session};
use crate::version::BeginString;
use crate::wire::{Decoder, Draft, Garbled, Item, parse};

/// A target and its name, which is also its corpus's.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("fix-stream", stream),
    ("fix-message", message),
    ("fix-content", content),
    ("fix-dictionary", dictionary),
];

static SMALL_FIX44: LazyLock<Dictionaries> = LazyLock::new(|| {
    let small = Dictionary::parse(include_str!("../tests/dictionaries/small-fix44.xml"));
    Dictionaries::one(BeginString::Fix44, Arc::new(small.expect("it is read by tests")))
        .expect("it is FIX 4.4")
});

// === The stream ===

/// The first byte chooses the limit, the second how many of the next ones are lengths of pieces; the rest is the stream.
fn stream(input: &[u8]) {
    let Some((&limit, rest)) = input.split_first() else { return };
    let Some((&cuts, rest)) = rest.split_first() else { return };
    // Small limits meet every edge; the largest is above what an input has.
    let limit = if limit == u8::MAX { 1 << 16 } else { usize::from(limit) + 1 };
    let (cuts, stream) = rest.split_at(usize::from(cuts % 16).min(rest.len()));
    let whole = decode(std::iter::once(stream), limit);
    assert_eq!(whole, decode(stream.chunks(1), limit), "byte by byte");
    assert_eq!(whole, decode(pieces(stream, cuts), limit), "in pieces");
    assert_eq!(whole, by_the_book(stream, limit));
    for item in &whole.items {
        let Found::Message(bytes) = item else { continue };
        let message = parse(bytes.clone(), &DataFields::default()).expect("what is found is whole");
        // Written anew, its body is the same.
        let Some(version) = BeginString::parse(message.begin_string()) else { continue };
        let body = message.body_bytes();
        let draft = Draft::new(version, message.msg_type()).header_number(34, 1);
        let Ok(again) = draft.body(&body, &DataFields::default()).encode() else { continue };
        let again = parse(again, &DataFields::default()).expect("what is written can be read");
        assert_eq!((again.msg_type(), again.body_bytes()), (message.msg_type(), body));
    }
}

#[derive(Debug, PartialEq)]
enum Found {
    Message(Bytes),
    Head,
    Oversize(u64),
    BodyLength,
    /// Its end is where it should be, and what lies before it is not.
    Frame,
}

#[derive(Debug, PartialEq)]
struct Decoded {
    items: Vec<Found>,
    junk_bytes: u64,
}

fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: usize) -> Decoded {
    let mut decoder = Decoder::new(limit, DataFields::default());
    let mut items = Vec::new();
    for piece in pieces {
        decoder.buffer().put_slice(piece);
        while let Some(item) = decoder.next_item() {
            items.push(match item {
                Item::Message(message) => Found::Message(message.bytes().clone()),
                Item::Garbled(Garbled::Head) => Found::Head,
                Item::Garbled(Garbled::Oversize { announced, .. }) => Found::Oversize(announced),
                Item::Garbled(Garbled::BodyLength) => Found::BodyLength,
                Item::Garbled(_) => Found::Frame,
            });
        }
        // A head that is still too short to say how long the message is.
        assert!(decoder.buffer().len() <= limit.max(64), "{} bytes held", decoder.buffer().len());
    }
    Decoded { items, junk_bytes: decoder.junk_bytes() }
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

/// The framing rules once more, with the whole stream in hand.
fn by_the_book(stream: &[u8], limit: usize) -> Decoded {
    let mut decoded = Decoded { items: Vec::new(), junk_bytes: 0 };
    let mut rest = stream;
    let junk = |decoded: &mut Decoded, bytes: usize| decoded.junk_bytes += bytes as u64;
    loop {
        let Some(start) = rest.windows(5).position(|window| window == b"8=FIX") else {
            let kept = (0..5).rev().find(|kept| rest.ends_with(&b"8=FIX"[..*kept])).unwrap_or(0);
            junk(&mut decoded, rest.len() - kept);
            return decoded;
        };
        junk(&mut decoded, start);
        rest = &rest[start..];
        let Some(head) = head_by_the_book(rest) else {
            if !could_become_a_head(rest) {
                decoded.items.push(Found::Head);
                junk(&mut decoded, 5);
                rest = &rest[5..];
                continue;
            }
            return decoded;
        };
        let (head, body) = head;
        let whole = head + body + 7;
        if whole > limit {
            decoded.items.push(Found::Oversize(body as u64));
            let skipped = whole.min(rest.len());
            junk(&mut decoded, skipped);
            rest = &rest[skipped..];
            continue;
        }
        let end = head + body;
        let Some(before) = rest.get(end - 1) else { return decoded };
        let trailer = &rest[end..rest.len().min(whole)];
        let pattern = |(at, byte): (usize, &u8)| match at {
            0 => *byte == b'1',
            1 => *byte == b'0',
            2 => *byte == b'=',
            6 => *byte == SOH,
            _ => byte.is_ascii_digit(),
        };
        if *before != SOH || !trailer.iter().enumerate().all(pattern) {
            decoded.items.push(Found::BodyLength);
            junk(&mut decoded, end);
            rest = &rest[end..];
            continue;
        }
        if trailer.len() < 7 {
            return decoded;
        }
        let frame = &rest[..whole];
        if frame_by_the_book(frame, end) {
            decoded.items.push(Found::Message(Bytes::copy_from_slice(frame)));
        } else {
            decoded.items.push(Found::Frame);
            junk(&mut decoded, whole);
        }
        rest = &rest[whole..];
    }
}

/// Length of `8=…|9=…|` and what it announces.
fn head_by_the_book(bytes: &[u8]) -> Option<(usize, usize)> {
    let begin_string = bytes[2..].iter().position(|byte| *byte == SOH).filter(|length| *length <= 16)?;
    let rest = bytes[2 + begin_string + 1..].strip_prefix(b"9=")?;
    let digits = rest.iter().position(|byte| *byte == SOH).filter(|digits| (1..=9).contains(digits))?;
    let number = std::str::from_utf8(&rest[..digits])
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    Some((2 + begin_string + 1 + 2 + digits + 1, number.parse().ok()?))
}

/// Whether more bytes may make a head of these.
fn could_become_a_head(bytes: &[u8]) -> bool {
    let ends: [&[u8]; 5] = [b"\x019=0\x01", b"9=0\x01", b"=0\x01", b"0\x01", b"\x01"];
    ends.iter().any(|end| head_by_the_book(&[bytes, end].concat()).is_some())
}

/// Whether a frame with its trailer at `end` is a message.
fn frame_by_the_book(frame: &[u8], end: usize) -> bool {
    let sum = frame[..end].iter().map(|byte| u32::from(*byte)).sum::<u32>() % 256;
    if frame[end + 3..end + 6] != *format!("{sum:03}").as_bytes() {
        return false;
    }
    let mut tags = Vec::new();
    let mut values: Vec<&[u8]> = Vec::new();
    let mut rest = frame;
    while !rest.is_empty() {
        let Some(equals) = rest.iter().position(|byte| *byte == b'=') else { return false };
        let number = &rest[..equals];
        let digits = number.strip_prefix(b"-").unwrap_or(number);
        if !(1..=18).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
            return false;
        }
        let is_tag = digits.len() == number.len() && digits.len() <= 9 && digits[0] != b'0';
        let number = std::str::from_utf8(digits).expect("digits are text");
        let tag: Tag = if is_tag { number.parse().expect("nine digits") } else { 0 };
        let after = &rest[equals + 1..];
        let announced = tags.last().and_then(|before| {
            let data = DataFields::default().announced_by(*before)?;
            let length = std::str::from_utf8(values.last()?).ok()?;
            let is_number = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            (data == tag && is_number).then(|| length.parse::<u64>().ok())?
        });
        let length = match announced {
            Some(length) => match usize::try_from(length) {
                Ok(length) if after.get(length) == Some(&SOH) => length,
                _ => return false,
            },
            None => match after.iter().position(|byte| *byte == SOH) {
                Some(length) => length,
                None => return false,
            },
        };
        tags.push(tag);
        values.push(&after[..length]);
        rest = &after[length + 1..];
    }
    tags.get(2) == Some(&35)
        && !values[2].is_empty()
        && tags.last() == Some(&10)
        && [8, 9, 10].iter().all(|once| tags.iter().filter(|tag| *tag == once).count() == 1)
}

// === A message ===

/// The message that has these fields behind BodyLength (9), with sums that are right.
fn framed(fields: &[u8]) -> Bytes {
    let mut message = format!("8=FIX.4.4\x019={}\x01", fields.len()).into_bytes();
    message.extend_from_slice(fields);
    let sum = message.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    message.extend(format!("10={sum:03}\x01").into_bytes());
    message.into()
}

fn message(input: &[u8]) {
    let dictionaries = &*SMALL_FIX44;
    let Ok(message) = parse(framed(input), &dictionaries.data_fields()) else { return };
    check_parts(&message);
    let broken = |level, dictionaries| {
        let validator = Validator::new(level, dictionaries).expect("full only with a dictionary");
        let strict = validator.check(&message).is_err();
        let tolerant = validator.allowing_unknown_user_fields().check(&message).is_err();
        assert!(strict || !tolerant, "what is allowed beyond makes nothing wrong");
        strict
    };
    assert!(!broken(Level::None, None));
    let structure = broken(Level::Structure, Some(dictionaries.clone()));
    let full = broken(Level::Full, Some(dictionaries.clone()));
    assert!(full || !structure, "each level has the rules of those below it");
    broken(Level::Structure, None);
    for known in [Some(dictionaries), None] {
        let shown = serde_json::to_string(&View::of(&message, known)).expect("a view is JSON");
        let again: serde_json::Value = serde_json::from_str(&shown).expect("a view is JSON");
        assert!(again.get("body").is_some());
    }
    let keys = Keys { subject: Some(11), partition_key: Some(55) };
    let attributes = attributes(&message, keys);
    assert!(attributes.kind.is_ascii() && !attributes.kind.contains(char::is_control));
    for text in [attributes.subject, attributes.partition_key].into_iter().flatten() {
        assert!(!text.is_empty() && !text.contains(char::is_control) && text.chars().count() <= 256);
    }
}

/// Header, body and trailer are all of it.
fn check_parts(message: &Message) {
    let parts = message.header().len() + message.body().len() + message.trailer().len();
    assert_eq!(parts, message.fields().len());
    let written: usize = message.body().map(|field| field.value.len() + 2).sum();
    assert!(message.body_bytes().len() >= written);
    assert!(message.header().all(|field| is_header(field.tag)));
}

// === What apps hand in ===

/// The first byte chooses form and dictionary; the rest is the content.
fn content(input: &[u8]) {
    let Some((&choice, content)) = input.split_first() else { return };
    let media_type = if choice & 1 == 0 { MEDIA_TYPE_JSON } else { MEDIA_TYPE };
    let dictionaries = (choice & 2 == 0).then_some(&*SMALL_FIX44);
    let data_fields = dictionaries.map(Dictionaries::data_fields).unwrap_or_default();
    let session_header: &[Tag] = if choice & 4 == 0 { &[] } else { &[50, 57] };
    let form =
        Form { begin_string: BeginString::Fix44, dictionaries, data_fields: &data_fields, session_header };
    let outgoing = match Outgoing::read(Some(media_type), content, &form) {
        Ok(outgoing) => outgoing,
        Err(error) => {
            assert!(error.to_string().len() < 4096, "a reason and no content");
            return;
        }
    };
    assert!(!is_session(outgoing.msg_type()));
    let sent = outgoing.draft(&form).header_number(34, 7).header(49, "US").header(56, "THEM").encode();
    let sent =
        parse(sent.expect("what is taken can be sent"), &data_fields).expect("what is sent can be read");
    assert_eq!((sent.msg_type(), &sent.body_bytes()), (outgoing.msg_type(), outgoing.body()));
    for field in sent.header() {
        let ours = matches!(field.tag, 8 | 9 | 34 | 35 | 49 | 56);
        assert!(ours || (is_apps(field.tag) && !session_header.contains(&field.tag)), "{}", field.tag);
    }
    // The whole message handed in again is the same one.
    let again = Outgoing::read(Some(MEDIA_TYPE), sent.bytes(), &form).expect("it is a whole message");
    assert_eq!(again.msg_type(), outgoing.msg_type());
    assert_eq!(again.body(), outgoing.body());
    let once_more = again.draft(&form).header_number(34, 7).header(49, "US").header(56, "THEM").encode();
    assert_eq!(once_more.as_ref(), Ok(sent.bytes()));
    assert_eq!(sent.get(tag::MSG_SEQ_NUM), Some(&b"7"[..]));
}

// === A dictionary's file ===

fn dictionary(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let dictionary = match Dictionary::parse(text) {
        Ok(dictionary) => dictionary,
        Err(fault) => {
            let lines = text.lines().count().max(1) + 1;
            assert!(fault.line as usize <= lines && !fault.what.is_empty(), "{fault:?}");
            return;
        }
    };
    check_layout(&dictionary, dictionary.header(), 0);
    check_layout(&dictionary, dictionary.trailer(), 0);
    for msg_type in dictionary.msg_types() {
        let message = dictionary.message(msg_type).expect("it is listed");
        check_layout(&dictionary, &message.body, 0);
    }
}

fn check_layout(dictionary: &Dictionary, layout: &Layout, depth: usize) {
    assert!(depth <= 33, "as deep as is allowed");
    for (position, slot) in layout.slots().iter().enumerate() {
        let field = dictionary.field(slot.tag).expect("a slot's field is defined");
        assert_eq!(dictionary.tag(&field.name), Some(slot.tag));
        assert_eq!(layout.position(slot.tag), Some(position), "once in a layout");
        if let Some(group) = &slot.group {
            assert!(group.delimiter().is_some());
            check_layout(dictionary, group, depth + 1);
        }
    }
    assert!(layout.required().iter().all(|tag| layout.slot(*tag).is_some()));
    for condition in layout.conditions() {
        assert!(condition.required.iter().all(|tag| condition.fields.contains(tag)));
    }
}

#[test]
fn the_corpus_replays() {
    gatepost_replay::replay(TARGETS);
}
