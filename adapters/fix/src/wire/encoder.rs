//! Writes messages: BeginString (8), BodyLength (9), MsgType (35), the header ascending, the body as it was given, CheckSum
//! (10).

use bytes::Bytes;
use memchr::memchr;

use crate::data_fields::DataFields;
use crate::message::{Malformed, Message, SOH, Tag, is_header, is_trailer, spans, tag};
use crate::version::BeginString;
use crate::wire::{TRAILER_BYTES, check_sum};

/// What cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unencodable {
    #[error("the field {tag} has no value")]
    Empty { tag: Tag },
    #[error("the value of field {tag} contains SOH (0x01), which would end it")]
    SohInside { tag: Tag },
    #[error("{tag} is no field of the header")]
    NotHeader { tag: Tag },
    #[error("the field {tag} belongs to header or trailer and stands in the body")]
    NotBody { tag: Tag },
    #[error("a field of the body has a number that is no tag")]
    NoTag,
    #[error("the body cannot be read back")]
    Body(#[from] Malformed),
}

/// A message to be written. Header fields may be given in any order; the body's order is kept.
///
/// A fault is kept until [`Draft::encode`], so that a message is written in one chain of calls.
pub struct Draft {
    begin_string: BeginString,
    msg_type: Vec<u8>,
    /// Encoded fields, and where each of them ends; in the order of the calls.
    header: Vec<u8>,
    header_fields: Vec<HeaderField>,
    body: Vec<u8>,
    fault: Option<Unencodable>,
}

struct HeaderField {
    tag: Tag,
    from: usize,
    to: usize,
}

impl Draft {
    pub fn new(begin_string: BeginString, msg_type: impl AsRef<[u8]>) -> Self {
        let mut draft = Self {
            begin_string,
            msg_type: msg_type.as_ref().to_vec(),
            header: Vec::with_capacity(128),
            header_fields: Vec::with_capacity(8),
            body: Vec::new(),
            fault: None,
        };
        draft.fault = unfit(tag::MSG_TYPE, msg_type.as_ref());
        draft
    }

    /// A field of the header other than 8, 9 and 35.
    pub fn header(mut self, tag: Tag, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        if !is_header(tag) || matches!(tag, tag::BEGIN_STRING | tag::BODY_LENGTH | tag::MSG_TYPE) {
            self.fault.get_or_insert(Unencodable::NotHeader { tag });
        }
        if let Some(fault) = unfit(tag, value) {
            self.fault.get_or_insert(fault);
        }
        let from = self.header.len();
        write_field(&mut self.header, tag, value);
        self.header_fields.push(HeaderField { tag, from, to: self.header.len() });
        self
    }

    pub fn header_number(self, tag: Tag, value: u64) -> Self {
        self.header(tag, Digits::of(value))
    }

    /// A data field of the header with its length before it; the value may hold any bytes.
    pub fn header_data(mut self, length: Tag, data: Tag, value: &[u8]) -> Self {
        if !is_header(length) || !is_header(data) {
            self.fault.get_or_insert(Unencodable::NotHeader { tag: data });
        }
        let from = self.header.len();
        write_field(&mut self.header, length, Digits::of(value.len() as u64).as_ref());
        write_field(&mut self.header, data, value);
        self.header_fields.push(HeaderField { tag: length, from, to: self.header.len() });
        self
    }

    /// Fields of another message's header, as they stand there, data fields among them: for a message that is sent again. 8, 9
    /// and 35 are never taken.
    pub fn header_of(mut self, message: &Message, keep: impl Fn(Tag) -> bool) -> Self {
        let written = |tag| matches!(tag, tag::BEGIN_STRING | tag::BODY_LENGTH | tag::MSG_TYPE);
        for field in message.header().filter(|field| !written(field.tag) && keep(field.tag)) {
            let from = self.header.len();
            write_field(&mut self.header, field.tag, field.value);
            self.header_fields.push(HeaderField { tag: field.tag, from, to: self.header.len() });
        }
        self
    }

    /// A field of the body, behind those already given.
    pub fn field(mut self, tag: Tag, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        if let Some(fault) = unfit_in_body(tag).or(unfit(tag, value)) {
            self.fault.get_or_insert(fault);
        }
        write_field(&mut self.body, tag, value);
        self
    }

    pub fn number(self, tag: Tag, value: u64) -> Self {
        self.field(tag, Digits::of(value))
    }

    /// A data field with its length before it; the value may hold any bytes.
    pub fn data(mut self, length: Tag, data: Tag, value: &[u8]) -> Self {
        write_field(&mut self.body, length, Digits::of(value.len() as u64).as_ref());
        write_field(&mut self.body, data, value);
        self
    }

    /// Fields that are encoded already, behind those already given: a body that passes through. They must be whole, none of
    /// header or trailer, and stay unchanged.
    pub fn body(mut self, fields: &[u8], data_fields: &DataFields) -> Self {
        match spans(fields, data_fields) {
            Ok(spans) => {
                for span in &spans {
                    if let Some(fault) = unfit_in_body(span.tag) {
                        self.fault.get_or_insert(fault);
                    }
                }
            }
            Err(malformed) => {
                self.fault.get_or_insert(Unencodable::Body(malformed));
            }
        }
        self.body.extend_from_slice(fields);
        self
    }

    /// The message as it goes onto the wire.
    pub fn encode(mut self) -> Result<Bytes, Unencodable> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        // Stable: hops that were given in order stay so.
        self.header_fields.sort_by_key(|field| order(field.tag));
        let begin_string = self.begin_string.as_str();
        let body_length = "35=|".len() + self.msg_type.len() + self.header.len() + self.body.len();
        let head = "8=|9=|".len() + begin_string.len() + Digits::BYTES_MAX;
        let mut message = Vec::with_capacity(head + body_length + TRAILER_BYTES);
        write_field(&mut message, tag::BEGIN_STRING, begin_string.as_bytes());
        write_field(&mut message, tag::BODY_LENGTH, Digits::of(body_length as u64).as_ref());
        write_field(&mut message, tag::MSG_TYPE, &self.msg_type);
        for field in &self.header_fields {
            message.extend_from_slice(&self.header[field.from..field.to]);
        }
        message.extend_from_slice(&self.body);
        let sum = check_sum(&message);
        let digits = [b'0' + sum / 100, b'0' + sum / 10 % 10, b'0' + sum % 10];
        write_field(&mut message, tag::CHECK_SUM, &digits);
        Ok(message.into())
    }
}

/// Header fields go out ascending; those of a hop stay with the count of hops (627), whatever their own numbers.
fn order(tag: Tag) -> Tag {
    match tag {
        628..=630 => 627,
        tag => tag,
    }
}

fn unfit_in_body(tag: Tag) -> Option<Unencodable> {
    match tag {
        0 => Some(Unencodable::NoTag),
        _ if is_header(tag) || is_trailer(tag) => Some(Unencodable::NotBody { tag }),
        _ => None,
    }
}

fn unfit(tag: Tag, value: &[u8]) -> Option<Unencodable> {
    if value.is_empty() {
        return Some(Unencodable::Empty { tag });
    }
    memchr(SOH, value).map(|_| Unencodable::SohInside { tag })
}

/// `tag=value` and SOH.
pub(crate) fn write_field(to: &mut Vec<u8>, tag: Tag, value: &[u8]) {
    to.extend_from_slice(Digits::of(u64::from(tag)).as_ref());
    to.push(b'=');
    to.extend_from_slice(value);
    to.push(SOH);
}

/// A number in decimal, without memory of its own.
pub(crate) struct Digits {
    text: [u8; Self::BYTES_MAX],
    from: usize,
}

impl Digits {
    const BYTES_MAX: usize = "18446744073709551615".len();

    pub(crate) fn of(mut number: u64) -> Self {
        let mut text = [0; Self::BYTES_MAX];
        let mut from = Self::BYTES_MAX;
        loop {
            from -= 1;
            // A digit.
            text[from] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return Self { text, from };
            }
        }
    }
}

impl AsRef<[u8]> for Digits {
    fn as_ref(&self) -> &[u8] {
        &self.text[self.from..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::parse;

    fn text(message: &[u8]) -> String {
        String::from_utf8_lossy(message).replace('\x01', "|")
    }

    #[test]
    fn digits_of_every_length() {
        for number in [0, 1, 9, 10, 99, 100, 4_294_967_295, u64::MAX] {
            assert_eq!(Digits::of(number).as_ref(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn both_sums_are_right() {
        // The heartbeat of QuickFIX's script 2t, whose length stands there; the sum comes from simplefix.
        let draft = Draft::new(BeginString::Fix44, "0")
            .header(tag::TARGET_COMP_ID, "TW44")
            .header(tag::SENDING_TIME, "20260102-03:04:05.678")
            .header_number(tag::MSG_SEQ_NUM, 2)
            .header(tag::SENDER_COMP_ID, "ISLD")
            .field(tag::TEST_REQ_ID, "HELLO");
        assert_eq!(
            text(&draft.encode().unwrap()),
            "8=FIX.4.4|9=61|35=0|34=2|49=ISLD|52=20260102-03:04:05.678|56=TW44|112=HELLO|10=087|"
        );
    }

    #[test]
    fn the_header_goes_out_ascending_and_hops_stay_together() {
        let draft = Draft::new(BeginString::Fix44, "D")
            .header(1128, "9")
            .header_number(627, 2)
            .header(628, "A")
            .header_number(630, 7)
            .header(628, "B")
            .header_number(630, 9)
            .header(122, "x")
            .header_number(34, 5)
            .header(43, "Y")
            .field(58, "t")
            .field(11, "c");
        let message = draft.encode().unwrap();
        let parsed = parse(message, &DataFields::default()).unwrap();
        let tags: Vec<Tag> = parsed.fields().map(|field| field.tag).collect();
        assert_eq!(tags, [8, 9, 35, 34, 43, 122, 627, 628, 630, 628, 630, 1128, 58, 11, 10]);
        assert_eq!(text(&parsed.body_bytes()), "58=t|11=c|");
    }

    #[test]
    fn what_would_break_the_frame_is_refused() {
        let draft = || Draft::new(BeginString::Fix44, "D");
        let data_fields = DataFields::default();
        let refusals = [
            (draft().field(58, ""), Unencodable::Empty { tag: 58 }),
            (draft().field(58, "a\x0110=000"), Unencodable::SohInside { tag: 58 }),
            (draft().header(49, "a\x01"), Unencodable::SohInside { tag: 49 }),
            (draft().header(58, "a"), Unencodable::NotHeader { tag: 58 }),
            (draft().header(8, "FIX.4.2"), Unencodable::NotHeader { tag: 8 }),
            (draft().field(34, "1"), Unencodable::NotBody { tag: 34 }),
            (draft().field(0, "1"), Unencodable::NoTag),
            (draft().body(b"011=a\x01", &data_fields), Unencodable::NoTag),
            (draft().field(10, "000"), Unencodable::NotBody { tag: 10 }),
            (Draft::new(BeginString::Fix44, ""), Unencodable::Empty { tag: 35 }),
            (Draft::new(BeginString::Fix44, "D\x01"), Unencodable::SohInside { tag: 35 }),
            (draft().body(b"11=a\x0143=Y\x01", &data_fields), Unencodable::NotBody { tag: 43 }),
            (draft().body(b"11=a", &data_fields), Unencodable::Body(Malformed::NoEnd { tag: 11 })),
        ];
        for (draft, refusal) in refusals {
            assert_eq!(draft.encode(), Err(refusal));
        }
    }

    #[test]
    fn a_message_sent_again_keeps_what_is_not_the_sessions() {
        let data_fields = DataFields::default();
        let first = Draft::new(BeginString::Fix44, "n")
            .header(49, "US")
            .header_number(34, 5)
            .header(52, "20260102-03:04:05.678")
            .header(115, "FOR")
            .header_data(212, 213, b"<\x01>")
            .body(b"58=\xfc\x01", &data_fields);
        let first = parse(first.encode().unwrap(), &data_fields).unwrap();
        let again = Draft::new(BeginString::Fix44, first.msg_type())
            .header(43, "Y")
            .header_number(34, 5)
            .header_of(&first, |tag| !matches!(tag, 34 | 43 | 49 | 52))
            .header(122, first.get(52).unwrap())
            .body(&first.body_bytes(), &data_fields);
        let again = parse(again.encode().unwrap(), &data_fields).unwrap();
        let tags: Vec<Tag> = again.fields().map(|field| field.tag).collect();
        assert_eq!(tags, [8, 9, 35, 34, 43, 115, 122, 212, 213, 58, 10]);
        assert_eq!(again.get(213), first.get(213));
        assert_eq!(again.body_bytes(), first.body_bytes());
    }

    #[test]
    fn data_may_hold_any_bytes() {
        let value = b"a\x0110=000\x018=FIX.4.4\x01";
        let message =
            Draft::new(BeginString::Fix44, "B").data(95, 96, value).field(58, "x").encode().unwrap();
        let parsed = parse(message, &DataFields::default()).unwrap();
        assert_eq!(parsed.get(96), Some(&value[..]));
        assert_eq!(parsed.get(58), Some(&b"x"[..]));
        let message =
            Draft::new(BeginString::Fix44, "n").header_data(212, 213, value).header(34, "1").encode();
        let parsed = parse(message.unwrap(), &DataFields::default()).unwrap();
        let tags: Vec<Tag> = parsed.header().map(|field| field.tag).collect();
        assert_eq!((tags, parsed.get(213)), (vec![8, 9, 35, 34, 212, 213], Some(&value[..])));
        let refusal = Draft::new(BeginString::Fix44, "n").header_data(95, 96, value).encode();
        assert_eq!(refusal, Err(Unencodable::NotHeader { tag: 96 }));
    }
}
