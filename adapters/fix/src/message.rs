//! A whole message, read: where its fields are in its bytes.
//!
//! Nothing is copied. A message is as large as its bytes and twelve bytes for each field.

use std::fmt;

use bytes::Bytes;
use memchr::memchr;

use crate::data_fields::DataFields;
use crate::value;
pub use crate::value::Tag;

/// Ends every field.
pub const SOH: u8 = 0x01;

/// The tags that the session layer itself reads and writes.
pub mod tag {
    use super::Tag;

    pub const BEGIN_SEQ_NO: Tag = 7;
    pub const BEGIN_STRING: Tag = 8;
    pub const BODY_LENGTH: Tag = 9;
    pub const CHECK_SUM: Tag = 10;
    pub const END_SEQ_NO: Tag = 16;
    pub const MSG_SEQ_NUM: Tag = 34;
    pub const MSG_TYPE: Tag = 35;
    pub const NEW_SEQ_NO: Tag = 36;
    pub const POSS_DUP_FLAG: Tag = 43;
    pub const REF_SEQ_NUM: Tag = 45;
    pub const SENDER_COMP_ID: Tag = 49;
    pub const SENDER_SUB_ID: Tag = 50;
    pub const SENDING_TIME: Tag = 52;
    pub const TARGET_COMP_ID: Tag = 56;
    pub const TARGET_SUB_ID: Tag = 57;
    pub const TEXT: Tag = 58;
    pub const SIGNATURE: Tag = 89;
    pub const SIGNATURE_LENGTH: Tag = 93;
    pub const POSS_RESEND: Tag = 97;
    pub const ENCRYPT_METHOD: Tag = 98;
    pub const HEART_BT_INT: Tag = 108;
    pub const TEST_REQ_ID: Tag = 112;
    pub const ORIG_SENDING_TIME: Tag = 122;
    pub const GAP_FILL_FLAG: Tag = 123;
    pub const RESET_SEQ_NUM_FLAG: Tag = 141;
    pub const SENDER_LOCATION_ID: Tag = 142;
    pub const TARGET_LOCATION_ID: Tag = 143;
    pub const LAST_MSG_SEQ_NUM_PROCESSED: Tag = 369;
    pub const REF_TAG_ID: Tag = 371;
    pub const REF_MSG_TYPE: Tag = 372;
    pub const SESSION_REJECT_REASON: Tag = 373;
    pub const BUSINESS_REJECT_REF_ID: Tag = 379;
    pub const BUSINESS_REJECT_REASON: Tag = 380;
    pub const NEXT_EXPECTED_MSG_SEQ_NUM: Tag = 789;
    pub const APPL_VER_ID: Tag = 1128;
    pub const DEFAULT_APPL_VER_ID: Tag = 1137;
}

/// Whether a tag belongs into the standard header, in any version (FIXT 1.1 volume 2, "Standard message header").
pub fn is_header(tag: Tag) -> bool {
    matches!(
        tag,
        8 | 9
            | 34
            | 35
            | 43
            | 49
            | 50
            | 52
            | 56
            | 57
            | 90
            | 91
            | 97
            | 115
            | 116
            | 122
            | 128
            | 129
            | 142..=145
            | 212
            | 213
            | 347
            | 369
            | 370
            | 627..=630
            | 1128
            | 1129
            | 1156
    )
}

/// Whether a tag belongs into the standard trailer.
pub fn is_trailer(tag: Tag) -> bool {
    matches!(tag, 10 | 89 | 93)
}

/// Where one field is: its tag, and its value's place in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) tag: Tag,
    /// Of the value.
    pub(crate) from: u32,
    /// Of the SOH behind the value.
    pub(crate) to: u32,
}

/// A field as it stands in a message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    pub tag: Tag,
    pub value: &'a [u8],
}

/// Tag and length: a value may be anything, a password too.
impl fmt::Debug for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={} bytes", self.tag, self.value.len())
    }
}

/// Largest message that can be read, bytes: places are kept in 32 bits.
pub const MESSAGE_BYTES_MAX: usize = 1 << 30;
/// Digits of the largest tag.
const TAG_DIGITS_MAX: usize = 9;
/// Digits of the largest number that is taken for a wrong tag.
const NUMBER_DIGITS_MAX: usize = 18;

/// Why bytes are no fields. Places are offsets in the bytes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error(
        "the field at offset {at} does not begin with a tag and `=`; tags are digits without leading zeros"
    )]
    NoTag { at: usize },
    #[error("the field {tag} does not end with SOH")]
    NoEnd { tag: Tag },
    #[error("the data field {tag} is not as long as the length field before it says")]
    DataLength { tag: Tag },
    #[error("the message is larger than {MESSAGE_BYTES_MAX} bytes")]
    TooLarge,
}

/// The fields of `bytes`, each ended by SOH. Linear in their number.
pub(crate) fn spans(bytes: &[u8], data_fields: &DataFields) -> Result<Vec<Span>, Malformed> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLarge);
    }
    // Most fields take eight bytes or more; a few reallocations for others do not matter.
    let mut spans = Vec::with_capacity(bytes.len() / 8 + 1);
    let mut announced: Option<(Tag, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        let (tag, from) = read_tag(bytes, at).ok_or(Malformed::NoTag { at })?;
        let to = match announced.take() {
            Some((data, length)) if data == tag => {
                let to = from.checked_add(length).ok_or(Malformed::DataLength { tag })?;
                if bytes.get(to) != Some(&SOH) {
                    return Err(Malformed::DataLength { tag });
                }
                to
            }
            _ => from + memchr(SOH, &bytes[from..]).ok_or(Malformed::NoEnd { tag })?,
        };
        if let Some(data) = data_fields.announced_by(tag) {
            // A length that is no number announces nothing; validation tells the sender.
            let length = value::unsigned(&bytes[from..to]).and_then(|length| usize::try_from(length).ok());
            announced = length.map(|length| (data, length));
        }
        // Within MESSAGE_BYTES_MAX.
        spans.push(Span { tag, from: from as u32, to: to as u32 });
        at = to + 1;
    }
    Ok(spans)
}

/// The tag that begins at `at`, and where its value begins.
fn read_tag(bytes: &[u8], at: usize) -> Option<(Tag, usize)> {
    let mut tag: Tag = 0;
    for (digits, byte) in bytes[at..].iter().enumerate().take(TAG_DIGITS_MAX + 1) {
        match byte {
            b'=' if digits > 0 => return Some((tag, at + digits + 1)),
            b'1'..=b'9' if digits < TAG_DIGITS_MAX => tag = tag * 10 + Tag::from(byte - b'0'),
            b'0' if digits < TAG_DIGITS_MAX && tag > 0 => tag *= 10,
            _ => break,
        }
    }
    let number = bytes[at..].iter().take(NUMBER_DIGITS_MAX + 2).position(|byte| *byte == b'=')?;
    wrong_tag(&bytes[at..at + number]).map(|_| (0, at + number + 1))
}

/// A number before `=`, whether it is a tag or not.
fn wrong_tag(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text).len();
    if digits > NUMBER_DIGITS_MAX { None } else { value::int(text) }
}

/// A message: a list of fields over its bytes. Header, body and trailer are told apart by the tags at both ends, so that a
/// header field which stands behind a body field counts as body, and validation finds it there.
#[derive(Clone)]
pub struct Message {
    bytes: Bytes,
    fields: Vec<Span>,
    header: usize,
    trailer: usize,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = String::from_utf8_lossy(self.msg_type()).into_owned();
        f.debug_struct("Message")
            .field("msg_type", &kind)
            .field("fields", &self.fields.len())
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Message {}

impl Message {
    /// Over bytes that are a whole frame; `fields` are its spans, the first three 8, 9 and 35, the last one 10.
    pub(crate) fn over(bytes: Bytes, fields: Vec<Span>) -> Self {
        let header = fields.iter().take_while(|span| is_header(span.tag)).count();
        let trailer = fields[header..].iter().rev().take_while(|span| is_trailer(span.tag)).count();
        let trailer = fields.len() - trailer;
        Self { bytes, fields, header, trailer }
    }

    /// As it stands on the wire.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// All fields in their order.
    pub fn fields(&self) -> Fields<'_> {
        self.part(0, self.fields.len())
    }

    /// The fields before the first one that belongs into no header.
    pub fn header(&self) -> Fields<'_> {
        self.part(0, self.header)
    }

    /// The fields between header and trailer.
    pub fn body(&self) -> Fields<'_> {
        self.part(self.header, self.trailer)
    }

    pub fn trailer(&self) -> Fields<'_> {
        self.part(self.trailer, self.fields.len())
    }

    /// The body as it stands on the wire, its last SOH included. Shares the message's memory.
    pub fn body_bytes(&self) -> Bytes {
        let from = end(&self.fields[..self.header]);
        let to = end(&self.fields[..self.trailer]);
        self.bytes.slice(from..to.max(from))
    }

    /// The value of the first field with this tag, wherever it stands.
    pub fn get(&self, tag: Tag) -> Option<&[u8]> {
        self.fields().find(|field| field.tag == tag).map(|field| field.value)
    }

    /// BeginString (8).
    pub fn begin_string(&self) -> &[u8] {
        self.first(0)
    }

    /// MsgType (35).
    pub fn msg_type(&self) -> &[u8] {
        self.first(2)
    }

    /// MsgSeqNum (34), if there is one and it is a number.
    pub fn seq_num(&self) -> Option<u64> {
        value::unsigned(self.get(tag::MSG_SEQ_NUM)?)
    }

    /// A flag that is `N` unless it is there and `Y`.
    pub fn flag(&self, tag: Tag) -> bool {
        self.get(tag).is_some_and(|value| value::boolean(value) == Some(true))
    }

    /// The value as text; `None` also where it is not UTF-8.
    pub fn text(&self, tag: Tag) -> Option<&str> {
        std::str::from_utf8(self.get(tag)?).ok()
    }

    pub(crate) fn spans(&self) -> &[Span] {
        &self.fields
    }

    /// The number before `=` of a field by its index, as it stands there: a tag, or what [`Tag`] 0 is put for.
    pub(crate) fn number_before(&self, index: usize) -> Option<i64> {
        let from = end(&self.fields[..index]);
        wrong_tag(&self.bytes[from..self.fields[index].from as usize - 1])
    }

    fn first(&self, at: usize) -> &[u8] {
        self.fields.get(at).map_or(&[], |span| slice(&self.bytes, span))
    }

    fn part(&self, from: usize, to: usize) -> Fields<'_> {
        Fields { bytes: &self.bytes, spans: self.fields[from..to].iter() }
    }
}

/// Where the last of these fields ends, its SOH included.
fn end(spans: &[Span]) -> usize {
    spans.last().map_or(0, |span| span.to as usize + 1)
}

fn slice<'a>(bytes: &'a [u8], span: &Span) -> &'a [u8] {
    &bytes[span.from as usize..span.to as usize]
}

/// Fields in the order in which they stand.
#[derive(Clone)]
pub struct Fields<'a> {
    bytes: &'a [u8],
    spans: std::slice::Iter<'a, Span>,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let span = self.spans.next()?;
        Some(Field { tag: span.tag, value: slice(self.bytes, span) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.spans.size_hint()
    }
}

impl ExactSizeIterator for Fields<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(Tag, String)>, Malformed> {
        let bytes = text.replace('|', "\x01").into_bytes();
        let spans = spans(&bytes, &DataFields::default())?;
        let text = |field: Field<'_>| String::from_utf8_lossy(field.value).replace('\x01', "|");
        Ok(Fields { bytes: &bytes, spans: spans.iter() }.map(|field| (field.tag, text(field))).collect())
    }

    fn fields(expected: &[(Tag, &str)]) -> Result<Vec<(Tag, String)>, Malformed> {
        Ok(expected.iter().map(|(tag, value)| (*tag, (*value).to_owned())).collect())
    }

    #[test]
    fn fields_by_the_book() {
        for (text, expected) in [
            ("", fields(&[])),
            ("35=D|11=A=B|", fields(&[(35, "D"), (11, "A=B")])),
            ("11=|", fields(&[(11, "")])),
            ("999999999=x|", fields(&[(999_999_999, "x")])),
            ("1000000000=x|58=y|", fields(&[(0, "x"), (58, "y")])),
            ("35=D|011=x|", fields(&[(35, "D"), (0, "x")])),
            ("0=x|", fields(&[(0, "x")])),
            ("-1=x|", fields(&[(0, "x")])),
            ("-999999999999999999=x|", fields(&[(0, "x")])),
            ("9999999999999999999=x|", Err(Malformed::NoTag { at: 0 })),
            ("-=x|", Err(Malformed::NoTag { at: 0 })),
            ("+1=x|", Err(Malformed::NoTag { at: 0 })),
            ("3 5=x|", Err(Malformed::NoTag { at: 0 })),
            ("4garbled9=TW|", Err(Malformed::NoTag { at: 0 })),
            ("=x|", Err(Malformed::NoTag { at: 0 })),
            ("35=D||11=x|", Err(Malformed::NoTag { at: 5 })),
            ("35", Err(Malformed::NoTag { at: 0 })),
            ("35|", Err(Malformed::NoTag { at: 0 })),
            ("35=D|11=x", Err(Malformed::NoEnd { tag: 11 })),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn data_fields_hold_what_their_length_says() {
        for (text, expected) in [
            ("95=5|96=a|b=c|58=x|", fields(&[(95, "5"), (96, "a|b=c"), (58, "x")])),
            ("95=0|96=|58=x|", fields(&[(95, "0"), (96, ""), (58, "x")])),
            // Only the length directly before counts, and only for its own data.
            ("95=5|58=x|96=a|", fields(&[(95, "5"), (58, "x"), (96, "a")])),
            ("96=a|58=x|", fields(&[(96, "a"), (58, "x")])),
            ("95=3|355=ab|", fields(&[(95, "3"), (355, "ab")])),
            ("95=x|96=ab|", fields(&[(95, "x"), (96, "ab")])),
            ("93=3|89=a|b|10=000|", fields(&[(93, "3"), (89, "a|b"), (10, "000")])),
            ("95=2|96=abc|", Err(Malformed::DataLength { tag: 96 })),
            ("95=4|96=abc|", Err(Malformed::DataLength { tag: 96 })),
            ("95=18446744073709551615|96=abc|", Err(Malformed::DataLength { tag: 96 })),
            ("95=99999999999999999999|96=abc|", fields(&[(95, "99999999999999999999"), (96, "abc")])),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }

    #[test]
    fn a_message_and_its_fields_are_shown_without_their_values() {
        let field = Field { tag: 554, value: b"secret" };
        assert_eq!(format!("{field:?}"), "554=6 bytes");
    }
}
