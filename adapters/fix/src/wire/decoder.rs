//! Messages in a stream of bytes.
//!
//! The decoder takes bytes as the network hands them out, in whatever pieces, in time linear in their number, and never
//! holds more than its limit and one read. What BodyLength (9) announces is believed as far as to find the end: bytes that
//! a message's own data fields hold are never looked at for another message, or who fills such a field could forge one.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memmem};

use crate::data_fields::DataFields;
use crate::message::{Malformed, Message, SOH, Span, spans, tag};
use crate::value;
use crate::wire::{TRAILER_BYTES, check_sum};

/// What every message begins with, in all versions.
const START: &[u8] = b"8=FIX";
/// Longest BeginString (8); the longest that exists is `FIXT.1.1`.
const BEGIN_STRING_BYTES_MAX: usize = 16;
/// Digits of the largest BodyLength (9).
const BODY_LENGTH_DIGITS_MAX: usize = 9;

/// What the decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A whole message: 8, 9 and 35 first, 10 last, both of its sums right.
    Message(Message),
    /// Something that began like a message and is none. To be passed over without counting it in sequence.
    Garbled(Garbled),
}

/// Why something is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    #[error("BeginString (8) is not followed by a BodyLength (9) of up to nine digits")]
    Head,
    #[error("a body of {announced} bytes is announced, which makes the message larger than {limit} bytes")]
    Oversize { announced: u64, limit: usize },
    #[error("there is no CheckSum (10) where BodyLength (9) says that it is")]
    BodyLength,
    #[error("CheckSum (10) is {found} and ought to be {expected:03}")]
    CheckSum { found: u16, expected: u8 },
    #[error("the third field is not MsgType (35), or MsgType is empty")]
    NoMsgType,
    #[error("BeginString (8), BodyLength (9) or CheckSum (10) stands within the message")]
    FrameInside,
    #[error(transparent)]
    Field(#[from] Malformed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Everything up to the next start is passed over.
    Outside,
    /// A message begins where the buffer does.
    Inside,
    /// So many bytes belong to a message that is larger than the limit.
    Skipping { left: u64 },
}

/// Finds messages in a stream of bytes.
pub struct Decoder {
    buffer: BytesMut,
    place: Place,
    data_fields: DataFields,
    message_bytes_max: usize,
    junk_bytes: u64,
}

impl Decoder {
    /// `message_bytes_max` counts a whole message, from `8=` to the last SOH.
    pub fn new(message_bytes_max: usize, data_fields: DataFields) -> Self {
        Self { buffer: BytesMut::new(), place: Place::Outside, data_fields, message_bytes_max, junk_bytes: 0 }
    }

    /// Where the next bytes from the network go (appended at its end).
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes that were part of no message, garbled ones among them.
    pub fn junk_bytes(&self) -> u64 {
        self.junk_bytes
    }

    /// True while a message has begun and not ended: the sender owes us bytes.
    pub fn inside_message(&self) -> bool {
        self.place != Place::Outside
    }

    /// The next item in the bytes received so far, or `None` when more are needed.
    pub fn next_item(&mut self) -> Option<Item> {
        loop {
            let step = match self.place {
                Place::Outside => self.seek_start(),
                Place::Inside => self.take_message(),
                Place::Skipping { left } => self.skip(left),
            };
            match step {
                Step::Again => {}
                Step::Starved => return None,
                Step::Found(item) => return Some(item),
            }
        }
    }

    fn seek_start(&mut self) -> Step {
        match memmem::find(&self.buffer, START) {
            Some(at) => {
                self.pass_over(at);
                self.place = Place::Inside;
                Step::Again
            }
            None => {
                // The last bytes may be the beginning of a start.
                let kept = (1..START.len()).rev().find(|length| self.buffer.ends_with(&START[..*length]));
                let kept = kept.unwrap_or(0);
                self.pass_over(self.buffer.len() - kept);
                if self.buffer.is_empty() {
                    // An idle connection would keep the memory of its largest message.
                    self.buffer = BytesMut::new();
                }
                Step::Starved
            }
        }
    }

    fn take_message(&mut self) -> Step {
        let head = match read_head(&self.buffer) {
            Head::Incomplete => return Step::Starved,
            Head::Bad => return self.garbled(Garbled::Head, START.len()),
            Head::Good(head) => head,
        };
        let limit = self.message_bytes_max;
        let whole = head.bytes.saturating_add(head.body_length).saturating_add(TRAILER_BYTES);
        if whole > limit {
            let announced = head.body_length as u64;
            self.place = Place::Skipping { left: whole as u64 };
            return Step::Found(Item::Garbled(Garbled::Oversize { announced, limit }));
        }
        let trailer_at = whole - TRAILER_BYTES;
        // Most wrong lengths show before the last byte has come.
        match read_trailer(&self.buffer, trailer_at) {
            Trailer::Incomplete => Step::Starved,
            Trailer::Bad => self.garbled(Garbled::BodyLength, trailer_at),
            Trailer::Good { check_sum } => {
                self.place = Place::Outside;
                let frame = self.buffer.split_to(whole).freeze();
                match read_frame(frame, &head, check_sum, &self.data_fields) {
                    Ok(message) => Step::Found(Item::Message(message)),
                    Err(garbled) => {
                        self.junk_bytes = self.junk_bytes.saturating_add(whole as u64);
                        Step::Found(Item::Garbled(garbled))
                    }
                }
            }
        }
    }

    fn skip(&mut self, left: u64) -> Step {
        let here = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.pass_over(here);
        match left - here as u64 {
            0 => {
                self.place = Place::Outside;
                Step::Again
            }
            left => {
                self.place = Place::Skipping { left };
                Step::Starved
            }
        }
    }

    /// What began here is no message; the search goes on behind these bytes.
    fn garbled(&mut self, why: Garbled, bytes: usize) -> Step {
        self.pass_over(bytes);
        self.place = Place::Outside;
        Step::Found(Item::Garbled(why))
    }

    fn pass_over(&mut self, bytes: usize) {
        self.junk_bytes = self.junk_bytes.saturating_add(bytes as u64);
        self.buffer.advance(bytes);
    }
}

enum Step {
    Again,
    Starved,
    Found(Item),
}

/// A whole message in `bytes`, and nothing else: as it was stored, or handed in.
pub fn parse(bytes: Bytes, data_fields: &DataFields) -> Result<Message, Garbled> {
    let Head::Good(head) = read_head(&bytes) else { return Err(Garbled::Head) };
    let whole = head.bytes.saturating_add(head.body_length).saturating_add(TRAILER_BYTES);
    match read_trailer(&bytes, whole - TRAILER_BYTES) {
        Trailer::Good { check_sum } if bytes.len() == whole => {
            read_frame(bytes, &head, check_sum, data_fields)
        }
        _ => Err(Garbled::BodyLength),
    }
}

struct GoodHead {
    /// Of `8=…|9=…|`.
    bytes: usize,
    body_length: usize,
}

enum Head {
    Incomplete,
    Bad,
    Good(GoodHead),
}

/// `8=FIX…|9=n|` at the beginning of `bytes`.
fn read_head(bytes: &[u8]) -> Head {
    if !bytes.starts_with(START) {
        return if START.starts_with(bytes) { Head::Incomplete } else { Head::Bad };
    }
    let begin_string = &bytes[b"8=".len()..];
    let window = &begin_string[..begin_string.len().min(BEGIN_STRING_BYTES_MAX + 1)];
    let Some(begin_string_bytes) = memchr(SOH, window) else {
        return if window.len() > BEGIN_STRING_BYTES_MAX { Head::Bad } else { Head::Incomplete };
    };
    let length_at = b"8=".len() + begin_string_bytes + 1;
    let Some(rest) = bytes.get(length_at..) else { return Head::Incomplete };
    let Some(digits) = rest.strip_prefix(b"9=") else {
        return if b"9=".starts_with(rest) { Head::Incomplete } else { Head::Bad };
    };
    let window = &digits[..digits.len().min(BODY_LENGTH_DIGITS_MAX + 1)];
    let digits = window.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match window.get(digits) {
        None if digits <= BODY_LENGTH_DIGITS_MAX => Head::Incomplete,
        Some(&SOH) => {
            match value::unsigned(&window[..digits]).and_then(|length| usize::try_from(length).ok()) {
                Some(body_length) => {
                    Head::Good(GoodHead { bytes: length_at + b"9=".len() + digits + 1, body_length })
                }
                None => Head::Bad,
            }
        }
        _ => Head::Bad,
    }
}

enum Trailer {
    Incomplete,
    Bad,
    Good { check_sum: u16 },
}

/// `10=nnn|` at this place, behind a SOH.
fn read_trailer(bytes: &[u8], at: usize) -> Trailer {
    // Without a byte of body the SOH is that of BodyLength.
    let Some(before) = bytes.get(at - 1) else { return Trailer::Incomplete };
    let here = &bytes[at..bytes.len().min(at + TRAILER_BYTES)];
    let fits = |(place, byte): (usize, &u8)| match place {
        0..3 => *byte == b"10="[place],
        3..6 => byte.is_ascii_digit(),
        _ => *byte == SOH,
    };
    if *before != SOH || !here.iter().enumerate().all(fits) {
        return Trailer::Bad;
    }
    if here.len() < TRAILER_BYTES {
        return Trailer::Incomplete;
    }
    let check_sum = here[3..6].iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    Trailer::Good { check_sum }
}

/// The message in a frame whose end is where it should be.
fn read_frame(
    frame: Bytes,
    head: &GoodHead,
    found: u16,
    data_fields: &DataFields,
) -> Result<Message, Garbled> {
    let expected = check_sum(&frame[..frame.len() - TRAILER_BYTES]);
    if found != u16::from(expected) {
        return Err(Garbled::CheckSum { found, expected });
    }
    let fields = spans(&frame, data_fields)?;
    let third = fields.get(2).filter(|field| field.tag == tag::MSG_TYPE && field.from < field.to);
    if third.is_none() || head.body_length == 0 {
        return Err(Garbled::NoMsgType);
    }
    // A second frame's fields, or a data field that reaches into the trailer.
    let inside = |span: &Span| matches!(span.tag, tag::BEGIN_STRING | tag::BODY_LENGTH | tag::CHECK_SUM);
    let (last, rest) = fields.split_last().ok_or(Garbled::NoMsgType)?;
    if last.tag != tag::CHECK_SUM || rest[2..].iter().any(inside) {
        return Err(Garbled::FrameInside);
    }
    Ok(Message::over(frame, fields))
}

#[cfg(test)]
mod tests;
