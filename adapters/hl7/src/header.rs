//! Reading the few fields of a message that delivery needs: the header, an ordering key, an acknowledgement's verdict.
//!
//! Works on the bytes as received, whatever their character set, and never changes them. It must never guess: a field
//! that is not there is `None`, a header that cannot be read is an error.

pub(crate) use self::number::{SEQUENCE_NUMBER_MAX, SequenceNumber, expecting, inquiry, numbered};
use crate::charset::{Charset, Declared, looks_wide};
use crate::mllp::CR;
use crate::path::FieldPath;

mod number;

const LF: u8 = 0x0a;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// "This value is to be deleted": HL7's explicit null. As a key or an id it is no value.
const HL7_NULL: &[u8] = b"\"\"";

const MSH_SENDING_APPLICATION: usize = 3;
const MSH_SENDING_FACILITY: usize = 4;
const MSH_RECEIVING_APPLICATION: usize = 5;
const MSH_RECEIVING_FACILITY: usize = 6;
const MSH_MESSAGE_TYPE: usize = 9;
const MSH_CONTROL_ID: usize = 10;
const MSH_PROCESSING_ID: usize = 11;
const MSH_VERSION: usize = 12;
const MSH_CONTINUATION_POINTER: usize = 14;
const MSH_ACCEPT_ACKNOWLEDGEMENT: usize = 15;
const MSH_APPLICATION_ACKNOWLEDGEMENT: usize = 16;
const MSH_CHARACTER_SET: usize = 18;

/// Merges and moves of patients, accounts and visits (chapter 3): MRG says whose they were.
pub(crate) const MERGE_EVENTS: [&str; 18] = [
    "A18", "A30", "A34", "A35", "A36", "A39", "A40", "A41", "A42", "A43", "A44", "A45", "A46", "A47", "A48",
    "A49", "A50", "A51",
];

/// More bytes than a character has in any set, with the escape sequences before and after it.
const CHARACTER_BYTES_MAX: usize = 16;

/// Longest message code or trigger event that becomes part of an event type.
const TYPE_PART_BYTES_MAX: usize = 16;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HeaderError {
    #[error("the message does not begin with an MSH segment")]
    NoHeader,
    #[error(
        "the message is in UTF-16 or UTF-32, which MLLP cannot carry: its marks are single bytes; use UNICODE UTF-8"
    )]
    Wide,
    #[error(
        "this is a part of a message that continues in others (MSH-14, DSC or ADD), which are not put together here"
    )]
    Continued,
    #[error("a segment ends in LF or CR LF, and segment_end = \"cr\" asks for CR")]
    SegmentEnd,
    #[error("MSH-1 and MSH-2 do not name usable delimiters")]
    Delimiters,
    #[error("MSH-9 (message type) is missing or not made of letters and digits")]
    MessageType,
    #[error("MSH-10 (message control id) is missing")]
    ControlId,
}

/// The characters that a message declares for itself. An acknowledgement may use others than the message it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delimiters {
    pub(crate) field: u8,
    pub(crate) component: u8,
    pub(crate) repetition: u8,
    pub(crate) subcomponent: Option<u8>,
}

/// A message whose MSH segment was found and whose delimiters are known.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a> {
    /// From the `M` of MSH on.
    bytes: &'a [u8],
    delimiters: Delimiters,
    terminator: u8,
}

impl std::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Message({} bytes)", self.bytes.len())
    }
}

impl<'a> Message<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<Self, HeaderError> {
        if looks_wide(body) {
            return Err(HeaderError::Wide);
        }
        let bytes = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
        let leading = bytes.iter().take_while(|byte| matches!(**byte, CR | LF)).count();
        let bytes = &bytes[leading..];
        let after_name = bytes.strip_prefix(b"MSH").ok_or(HeaderError::NoHeader)?;
        // Whatever ends the header ends every segment; an LF inside a field of a CR message is text.
        let end = after_name.iter().position(|byte| matches!(*byte, CR | LF));
        let terminator = end.map_or(CR, |at| after_name[at]);
        let delimiters = Delimiters::read(&after_name[..end.unwrap_or(after_name.len())])?;
        Ok(Self { bytes, delimiters, terminator })
    }

    pub(crate) fn delimiters(&self) -> Delimiters {
        self.delimiters
    }

    /// MSH-2 as it stands, to be repeated in the acknowledgement.
    pub(crate) fn encoding_characters(&self) -> &'a [u8] {
        self.header_field(2)
    }

    pub(crate) fn sending_application(&self) -> &'a [u8] {
        self.header_field(MSH_SENDING_APPLICATION)
    }

    pub(crate) fn sending_facility(&self) -> &'a [u8] {
        self.header_field(MSH_SENDING_FACILITY)
    }

    pub(crate) fn receiving_application(&self) -> &'a [u8] {
        self.header_field(MSH_RECEIVING_APPLICATION)
    }

    pub(crate) fn receiving_facility(&self) -> &'a [u8] {
        self.header_field(MSH_RECEIVING_FACILITY)
    }

    /// The whole of MSH-10, which is a plain string: components in it are part of the id.
    pub(crate) fn control_id(&self) -> Result<&'a [u8], HeaderError> {
        present(self.header_field(MSH_CONTROL_ID)).ok_or(HeaderError::ControlId)
    }

    pub(crate) fn processing_id(&self) -> &'a [u8] {
        self.header_field(MSH_PROCESSING_ID)
    }

    pub(crate) fn version(&self) -> &'a [u8] {
        self.header_field(MSH_VERSION)
    }

    /// What MSH-18 says the rest is written in.
    pub(crate) fn charset(&self) -> Declared {
        Declared::read(nth(self.character_set(), self.delimiters.repetition, 0))
    }

    /// Whether segments end in CR alone, as HL7 wants it.
    pub(crate) fn ends_segments_in_cr(&self) -> bool {
        let end = self.bytes.iter().position(|byte| *byte == self.terminator);
        self.terminator == CR && end.is_none_or(|at| self.bytes.get(at + 1) != Some(&LF))
    }

    pub(crate) fn character_set(&self) -> &'a [u8] {
        self.header_field(MSH_CHARACTER_SET)
    }

    pub(crate) fn accept_acknowledgement(&self) -> &'a [u8] {
        self.header_field(MSH_ACCEPT_ACKNOWLEDGEMENT).trim_ascii()
    }

    pub(crate) fn application_acknowledgement(&self) -> &'a [u8] {
        self.header_field(MSH_APPLICATION_ACKNOWLEDGEMENT).trim_ascii()
    }

    /// Whether this is one of several parts of a message (2.10.2): it continues an earlier one, or another one continues it.
    /// In queries and their answers the same segments only point to further answers, each of which is whole.
    pub(crate) fn is_continued(&self) -> bool {
        let is_query = self.message_type().is_ok_and(|kind| kind.code.starts_with('Q'));
        if is_query || self.acknowledgement().is_some() {
            return false;
        }
        present(self.header_field(MSH_CONTINUATION_POINTER)).is_some()
            || self.segment(b"ADD").is_some()
            || self.segment(b"DSC").is_some_and(|dsc| present(nth(dsc, self.delimiters.field, 1)).is_some())
    }

    /// Of an event that merges or moves patients' records, or gives them other ids: how many, each of which has an MRG segment.
    pub(crate) fn merges(&self) -> Option<usize> {
        let kind = self.message_type().ok()?;
        let merges = kind.code == "ADT" && kind.trigger.is_some_and(|event| MERGE_EVENTS.contains(&event));
        merges.then(|| self.segments_named(b"MRG").count())
    }

    pub(crate) fn message_type(&self) -> Result<MessageType<'a>, HeaderError> {
        let field = self.header_field(MSH_MESSAGE_TYPE);
        let mut components = field.split(|byte| *byte == self.delimiters.component);
        let code = components.next().and_then(type_part).ok_or(HeaderError::MessageType)?;
        let trigger = match components.next().and_then(present) {
            Some(raw) => Some(type_part(raw).ok_or(HeaderError::MessageType)?),
            None => None,
        };
        Ok(MessageType { code, trigger })
    }

    /// The verdict, if this message is an acknowledgement or an answer.
    pub(crate) fn acknowledgement(&self) -> Option<Acknowledgement<'a>> {
        let segment = self.segment(b"MSA")?;
        Some(Acknowledgement {
            code: AckCode::from_bytes(nth(segment, self.delimiters.field, 1).trim_ascii()),
            control_id: nth(segment, self.delimiters.field, 2).trim_ascii(),
            expected: std::str::from_utf8(nth(segment, self.delimiters.field, 4).trim_ascii())
                .ok()
                .and_then(|number| number.parse().ok()),
        })
    }

    /// The code of table 0357 in the first ERR segment: ERR-3 since version 2.5, part of ERR-1 before.
    pub(crate) fn error_code(&self) -> Option<&'a str> {
        let segment = self.segment(b"ERR")?;
        let Delimiters { field, component, repetition, subcomponent } = self.delimiters;
        let newer = nth(nth(nth(segment, field, 3), repetition, 0), component, 0);
        let older = nth(nth(nth(segment, field, 1), repetition, 0), component, 3);
        let older = subcomponent.map_or(older, |separator| nth(older, separator, 0));
        let code = present(newer).or_else(|| present(older))?;
        std::str::from_utf8(code).ok()
    }

    /// Whether the partner is asked for an application acknowledgement of success: in original mode always, else as MSH-16
    /// says.
    pub(crate) fn wants_application_acknowledgement(&self) -> bool {
        match (self.accept_acknowledgement(), self.application_acknowledgement()) {
            (b"", b"") => true,
            (_, application) => !matches!(application, b"" | b"NE" | b"ER"),
        }
    }

    /// The value at a path, in the first segment of that name and the field's first repetition.
    pub(crate) fn value(&self, path: &FieldPath) -> Option<&'a [u8]> {
        let field = if path.segment == *b"MSH" {
            match path.field {
                // MSH-1 is the separator itself, and MSH-2 is made of the delimiters: neither can be a key.
                1 | 2 => return None,
                number => self.header_field(number),
            }
        } else {
            nth(self.segment(&path.segment)?, self.delimiters.field, path.field)
        };
        let repetition = nth(field, self.delimiters.repetition, 0);
        let component = match path.component {
            Some(number) => nth(repetition, self.delimiters.component, number - 1),
            None => repetition,
        };
        let value = match (path.subcomponent, self.delimiters.subcomponent) {
            (Some(number), Some(separator)) => nth(component, separator, number - 1),
            (Some(1) | None, _) => component,
            (Some(_), None) => return None,
        };
        present(value)
    }

    /// A field of MSH by its HL7 number. MSH-1 is the separator, so the numbers are one higher than elsewhere.
    fn header_field(&self, number: usize) -> &'a [u8] {
        debug_assert!(number >= 2, "MSH-1 is not a field between separators");
        nth(self.segments().next().unwrap_or_default(), self.delimiters.field, number - 1)
    }

    fn segment(&self, name: &[u8; 3]) -> Option<&'a [u8]> {
        self.segments_named(name).next()
    }

    fn segments_named(&self, name: &[u8; 3]) -> impl Iterator<Item = &'a [u8]> {
        self.segments().filter(|segment| self.is_named(segment, name))
    }

    fn is_named(&self, segment: &[u8], name: &[u8; 3]) -> bool {
        let rest = segment.strip_prefix(name.as_slice());
        rest.is_some_and(|rest| rest.first().is_none_or(|byte| *byte == self.delimiters.field))
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.lines().map(|line| line.strip_prefix(&[LF]).unwrap_or(line))
    }

    /// What stands between terminators; where these are CR LF, with the LF in front.
    fn lines(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let terminator = self.terminator;
        self.bytes.split(move |byte| *byte == terminator)
    }
}

impl Delimiters {
    /// From what follows "MSH", up to the end of the segment.
    pub(crate) fn read(after_name: &[u8]) -> Result<Self, HeaderError> {
        let (&field, rest) = after_name.split_first().ok_or(HeaderError::Delimiters)?;
        let encoding = nth(rest, field, 0);
        let read = match *encoding {
            [component, repetition] | [component, repetition, _] => {
                Self { field, component, repetition, subcomponent: None }
            }
            // A fifth one is the truncation character of version 2.7.
            [component, repetition, _, subcomponent] | [component, repetition, _, subcomponent, _] => {
                Self { field, component, repetition, subcomponent: Some(subcomponent) }
            }
            _ => return Err(HeaderError::Delimiters),
        };
        let mut all = vec![field];
        all.extend_from_slice(encoding);
        let usable = |byte: &u8| byte.is_ascii_punctuation();
        let distinct = all.iter().enumerate().all(|(at, byte)| !all[..at].contains(byte));
        if all.iter().all(usable) && distinct { Ok(read) } else { Err(HeaderError::Delimiters) }
    }
}

/// MSH-9: what the message is and what happened. Only letters and digits, so it may stand in an event type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MessageType<'a> {
    pub(crate) code: &'a str,
    pub(crate) trigger: Option<&'a str>,
}

impl std::fmt::Display for MessageType<'_> {
    /// `ADT_A01`; without a trigger event the code alone.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.trigger {
            Some(trigger) => write!(f, "{}_{trigger}", self.code),
            None => f.write_str(self.code),
        }
    }
}

/// MSA-1, of table 0008.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
#[value(rename_all = "UPPER")]
pub(crate) enum AckCode {
    Aa,
    Ae,
    Ar,
    Ca,
    Ce,
    Cr,
}

impl AckCode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Aa => "AA",
            Self::Ae => "AE",
            Self::Ar => "AR",
            Self::Ca => "CA",
            Self::Ce => "CE",
            Self::Cr => "CR",
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        [Self::Aa, Self::Ae, Self::Ar, Self::Ca, Self::Ce, Self::Cr]
            .into_iter()
            .find(|code| code.as_str().as_bytes() == bytes)
    }

    /// The partner says that it has taken the message over.
    pub(crate) fn is_positive(self) -> bool {
        matches!(self, Self::Aa | Self::Ca)
    }
}

/// MSA: which message is answered, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Acknowledgement<'a> {
    /// `None` for a code that HL7 does not know.
    pub(crate) code: Option<AckCode>,
    pub(crate) control_id: &'a [u8],
    /// MSA-4, where transactions are numbered: the number that it accepts next, or has accepted.
    pub(crate) expected: Option<i64>,
}

impl std::fmt::Debug for Acknowledgement<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Acknowledgement({:?})", self.code)
    }
}

/// Bytes as an attribute. What cannot be shown becomes U+FFFD; two values that fall together this way share a lane, which
/// costs parallelism and never order.
pub(crate) fn attribute_text(bytes: &[u8], charset: Charset, chars_max: usize) -> String {
    let clean =
        |character: char| if character.is_control() { char::REPLACEMENT_CHARACTER } else { character };
    charset.decode(start(bytes, chars_max)).chars().map(clean).take(chars_max).collect()
}

/// What the first characters can be made of: a field may be as long as a frame, and stand in each message of a batch.
fn start(bytes: &[u8], chars_max: usize) -> &[u8] {
    &bytes[..bytes.len().min(chars_max * CHARACTER_BYTES_MAX)]
}

fn nth(bytes: &[u8], separator: u8, index: usize) -> &[u8] {
    bytes.split(|byte| *byte == separator).nth(index).unwrap_or_default()
}

fn present(bytes: &[u8]) -> Option<&[u8]> {
    let trimmed = bytes.trim_ascii();
    (!trimmed.is_empty() && trimmed != HL7_NULL).then_some(trimmed)
}

fn type_part(bytes: &[u8]) -> Option<&str> {
    let trimmed = bytes.trim_ascii();
    let fits = !trimmed.is_empty() && trimmed.len() <= TYPE_PART_BYTES_MAX;
    let plain = trimmed.iter().all(u8::is_ascii_alphanumeric);
    if fits && plain { std::str::from_utf8(trimmed).ok() } else { None }
}

#[cfg(test)]
mod tests;
