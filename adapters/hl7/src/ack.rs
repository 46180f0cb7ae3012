//! Acknowledgements: which one a received message is owed, and its bytes.
//!
//! Written in the sender's own delimiters and version, since devices refuse what does not look like their dialect. It
//! must never answer an acknowledgement, and never carry anything of the message but its header's routing fields.

use bytes::{BufMut, Bytes, BytesMut};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use uuid::Uuid;

use crate::header::{AckCode, Delimiters, HeaderError, Message};
use crate::mllp::{CR, FS};

const MSH_TIME: &[BorrowedFormatItem<'_>] = format_description!(
    "[year][month][day][hour][minute][second][offset_hour sign:mandatory][offset_minute]"
);

/// What became of a received message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// On stable storage.
    Accepted,
    /// Not stored, for a reason that will pass: the sender should send it again.
    TryLater,
    /// Not stored, and sending it again unchanged will not help.
    Refused,
}

/// When an acknowledgement is wanted (table 0155).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Always,
    Never,
    OnError,
    OnSuccess,
}

impl Condition {
    fn read(bytes: &[u8]) -> Self {
        match bytes {
            b"" | b"NE" => Self::Never,
            b"ER" => Self::OnError,
            b"SU" => Self::OnSuccess,
            // An unknown wish: one answer too many is ignored, one too few lets the sender repeat for ever.
            _ => Self::Always,
        }
    }

    fn wants(self, verdict: Verdict) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::OnError => verdict != Verdict::Accepted,
            Self::OnSuccess => verdict == Verdict::Accepted,
        }
    }
}

/// Why a message was not taken: for MSA-3 and, where the sender's version has it, for ERR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Of table 0357.
    pub(crate) code: ErrorCode,
    /// The field of MSH that it is about.
    pub(crate) field: Option<usize>,
    pub(crate) text: String,
}

/// Table 0357, as far as we say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorCode {
    SegmentSequence,
    RequiredFieldMissing,
    TableValueNotFound,
    UnsupportedMessageType,
    DuplicateKey,
    Internal,
}

impl ErrorCode {
    fn number_and_name(self) -> (&'static str, &'static str) {
        match self {
            Self::SegmentSequence => ("100", "Segment sequence error"),
            Self::RequiredFieldMissing => ("101", "Required field missing"),
            Self::TableValueNotFound => ("103", "Table value not found"),
            Self::UnsupportedMessageType => ("200", "Unsupported message type"),
            Self::DuplicateKey => ("205", "Duplicate key identifier"),
            Self::Internal => ("207", "Application internal error"),
        }
    }
}

impl Trouble {
    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self { code: ErrorCode::Internal, field: None, text: text.into() }
    }
}

impl From<&HeaderError> for Trouble {
    fn from(error: &HeaderError) -> Self {
        let (code, field) = match error {
            HeaderError::ControlId => (ErrorCode::RequiredFieldMissing, Some(10)),
            HeaderError::MessageType => (ErrorCode::RequiredFieldMissing, Some(9)),
            HeaderError::Wide => (ErrorCode::TableValueNotFound, Some(18)),
            HeaderError::Continued => (ErrorCode::SegmentSequence, Some(14)),
            HeaderError::SegmentEnd => (ErrorCode::SegmentSequence, None),
            HeaderError::NoHeader | HeaderError::Delimiters => (ErrorCode::SegmentSequence, None),
        };
        Self { code, field, text: error.to_string() }
    }
}

/// The code that answers this message, or `None` where no answer is wanted.
///
/// Original mode (MSH-15 and MSH-16 empty) is answered AA, AE or AR. In enhanced mode the accept acknowledgement is CA,
/// CE or CR as MSH-15 asks; a sender that wants only an application acknowledgement gets AA, AE or AR, which here says
/// the same: the message is stored.
pub(crate) fn code_owed(message: &Message<'_>, verdict: Verdict) -> Option<AckCode> {
    let is_ack = message.message_type().is_ok_and(|kind| kind.code == "ACK");
    if is_ack {
        return None;
    }
    let (accept, application) = (message.accept_acknowledgement(), message.application_acknowledgement());
    let is_answer = message.acknowledgement().is_some();
    if Condition::read(accept).wants(verdict) {
        return Some(accept_code(verdict));
    }
    // An answer to a query is itself an application acknowledgement: acknowledging it unasked would start a loop.
    if is_answer {
        return None;
    }
    let original_mode = accept.is_empty() && application.is_empty();
    let application_only = matches!(accept, b"" | b"NE") && Condition::read(application).wants(verdict);
    (original_mode || application_only).then(|| application_code(verdict))
}

/// The application acknowledgement that follows the accept acknowledgement of a message in enhanced mode, as MSH-16 asks.
pub(crate) fn application_code_owed(message: &Message<'_>, verdict: Verdict) -> Option<AckCode> {
    let is_answer = message.acknowledgement().is_some();
    let accepted_first = !matches!(message.accept_acknowledgement(), b"" | b"NE");
    let wanted = Condition::read(message.application_acknowledgement()).wants(verdict);
    (!is_answer && accepted_first && wanted).then(|| application_code(verdict))
}

/// In enhanced mode with an accept acknowledgement, whatever comes of the message.
pub(crate) fn is_two_phase(message: &Message<'_>) -> bool {
    !matches!(message.accept_acknowledgement(), b"" | b"NE")
}

fn accept_code(verdict: Verdict) -> AckCode {
    match verdict {
        Verdict::Accepted => AckCode::Ca,
        Verdict::TryLater => AckCode::Ce,
        Verdict::Refused => AckCode::Cr,
    }
}

fn application_code(verdict: Verdict) -> AckCode {
    match verdict {
        Verdict::Accepted => AckCode::Aa,
        Verdict::TryLater => AckCode::Ae,
        Verdict::Refused => AckCode::Ar,
    }
}

/// What makes an acknowledgement a message of its own.
#[derive(Debug)]
pub(crate) struct Stamp {
    /// MSH-10 of the acknowledgement.
    control_id: String,
    /// MSH-7.
    time: String,
}

impl Stamp {
    /// The id must be a version 7 UUID. MSH-10 has 20 characters before version 2.7, so of its 32 digits the 12 of the
    /// time and the last 8, which are random, are taken.
    pub(crate) fn new(id: Uuid, now: OffsetDateTime) -> Self {
        let digits = id.simple().to_string();
        let control_id = format!("{}{}", &digits[..12], &digits[24..]);
        // A time that cannot be written leaves the field empty, which HL7 allows.
        let time = now.format(MSH_TIME).unwrap_or_default();
        Self { control_id, time }
    }

    pub(crate) fn control_id(&self) -> &[u8] {
        self.control_id.as_bytes()
    }

    /// The offset from UTC is optional in HL7, and a sender that separates by plus would read another field in it.
    pub(crate) fn time(&self, delimiters: Delimiters, encoding: &[u8]) -> &[u8] {
        let special = delimiters.field == b'+' || encoding.contains(&b'+');
        let time = if special { self.time.split('+').next().unwrap_or_default() } else { &self.time };
        time.as_bytes()
    }
}

/// The acknowledgement of a message whose header could be read.
///
/// `expected`: MSA-4, where transactions are numbered.
pub(crate) fn build(
    message: &Message<'_>,
    code: AckCode,
    trouble: Option<&Trouble>,
    expected: Option<i64>,
    stamp: &Stamp,
) -> Bytes {
    let delimiters = message.delimiters();
    let kind = acknowledgement_type(message);
    let header: [&[u8]; 17] = [
        message.encoding_characters(),
        message.receiving_application(),
        message.receiving_facility(),
        message.sending_application(),
        message.sending_facility(),
        stamp.time(delimiters, message.encoding_characters()),
        b"",
        &kind,
        stamp.control_id.as_bytes(),
        message.processing_id(),
        message.version(),
        b"",
        b"",
        b"",
        b"",
        b"",
        message.character_set(),
    ];
    let text = trouble.map(|trouble| trouble.text.as_str()).unwrap_or_default();
    let text = plain_text(text, delimiters, message.encoding_characters());
    let expected = expected.map(|number| number.to_string()).unwrap_or_default();
    let verdict: [&[u8]; 4] =
        [code.as_str().as_bytes(), message.control_id().unwrap_or_default(), &text, expected.as_bytes()];
    let mut bytes = BytesMut::new();
    put_segment(&mut bytes, delimiters.field, b"MSH", &header);
    put_segment(&mut bytes, delimiters.field, b"MSA", &verdict);
    if let Some(trouble) = trouble {
        put_error(&mut bytes, message, trouble, &text);
    }
    bytes.freeze()
}

/// ERR, in the shape that the sender's version has: since 2.5 a location, a code and a text of their own, before that all in
/// ERR-1. A sender that names no version gets none.
fn put_error(bytes: &mut BytesMut, message: &Message<'_>, trouble: &Trouble, text: &[u8]) {
    let Delimiters { field: separator, component, subcomponent, .. } = message.delimiters();
    let (number, name) = trouble.code.number_and_name();
    let location = trouble.field.map(|field| format!("MSH\01\0{field}")).unwrap_or_default();
    let coded = format!("{number}\0{name}\0HL70357");
    let join = |parts: &str, by: u8| -> Vec<u8> {
        parts.bytes().map(|byte| if byte == 0 { by } else { byte }).collect()
    };
    match version(message) {
        None => {}
        Some(version) if version >= (2, 5) => {
            let fields: [&[u8]; 8] =
                [b"", &join(&location, component), &join(&coded, component), b"E", b"", b"", b"", text];
            put_segment(bytes, separator, b"ERR", &fields);
        }
        Some(_) => {
            let coded = match subcomponent {
                Some(by) => join(&coded, by),
                None => number.as_bytes().to_vec(),
            };
            let location = if location.is_empty() { "\0\0".to_owned() } else { location };
            let whole = [&join(&location, component)[..], &[component], &coded].concat();
            put_segment(bytes, separator, b"ERR", &[&whole]);
        }
    }
}

/// MSH-12.1, as major and minor number.
fn version(message: &Message<'_>) -> Option<(u32, u32)> {
    let separator = message.delimiters().component;
    let whole = message.version().split(|byte| *byte == separator).next()?;
    let mut numbers = std::str::from_utf8(whole).ok()?.trim().split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// The refusal of bytes that are not an HL7 message at all: there is no dialect to follow and no id to name.
pub(crate) fn build_generic_refusal(text: &str, stamp: &Stamp) -> Bytes {
    let header: [&[u8]; 11] = [
        br"^~\&",
        b"",
        b"",
        b"",
        b"",
        stamp.time.as_bytes(),
        b"",
        b"ACK",
        stamp.control_id.as_bytes(),
        b"P",
        b"2.3",
    ];
    let mut bytes = BytesMut::new();
    put_segment(&mut bytes, b'|', b"MSH", &header);
    put_segment(&mut bytes, b'|', b"MSA", &[b"AR", b"", text.as_bytes()]);
    bytes.freeze()
}

/// `ACK`, `ACK^A01` or `ACK^A01^ACK`, as the message's version has it.
fn acknowledgement_type(message: &Message<'_>) -> Vec<u8> {
    let separator = message.delimiters().component;
    let trigger = message.message_type().ok().and_then(|kind| kind.trigger);
    let version = message.version().split(|byte| *byte == separator).next().unwrap_or_default().trim_ascii();
    let mut kind = b"ACK".to_vec();
    let Some(trigger) = trigger else { return kind };
    if !matches!(version, b"" | b"2.0" | b"2.1" | b"2.2") {
        kind.push(separator);
        kind.extend_from_slice(trigger.as_bytes());
        // The structure component came with 2.3.1.
        if version != b"2.3" {
            kind.push(separator);
            kind.extend_from_slice(b"ACK");
        }
    }
    kind
}

/// Text for MSA-3 without anything that would end the field.
pub(crate) fn plain_text(text: &str, delimiters: Delimiters, encoding: &[u8]) -> Vec<u8> {
    let special =
        |byte: u8| byte == delimiters.field || encoding.contains(&byte) || !(b' '..=b'~').contains(&byte);
    text.bytes().map(|byte| if special(byte) { b' ' } else { byte }).collect()
}

/// Name and fields; empty ones at the end are left away. For MSH the first field is MSH-2.
///
/// A field that ends in FS, as in a message whose lines end in LF, is not followed by the CR: to MLLP that is the frame's end.
pub(crate) fn put_segment(bytes: &mut BytesMut, separator: u8, name: &[u8], fields: &[&[u8]]) {
    let used = fields.iter().rposition(|field| !field.is_empty()).map_or(0, |last| last + 1);
    bytes.put_slice(name);
    for field in &fields[..used] {
        bytes.put_u8(separator);
        bytes.put_slice(field);
    }
    if bytes.last() == Some(&FS) {
        bytes.put_u8(separator);
    }
    bytes.put_u8(CR);
}

#[cfg(test)]
mod tests;
