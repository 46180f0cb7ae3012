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
pub(crate) fn build(message: &Message<'_>, code: AckCode, trouble: Option<&Trouble>, stamp: &Stamp) -> Bytes {
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
    let verdict: [&[u8]; 3] = [code.as_str().as_bytes(), message.control_id().unwrap_or_default(), &text];
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
mod tests {
    use super::*;

    fn stamp() -> Stamp {
        Stamp { control_id: "G1".to_owned(), time: "20260102030405+0000".to_owned() }
    }

    fn message(header_tail: &str) -> Vec<u8> {
        format!("MSH|^~\\&|EHR|CLINIC|LAB|HOSP|2026||{header_tail}\rPID|1||42\r").into_bytes()
    }

    fn built(body: &[u8], code: AckCode) -> String {
        let message = Message::parse(body).unwrap();
        String::from_utf8(build(&message, code, None, &stamp()).to_vec()).unwrap()
    }

    #[test]
    fn the_acknowledgement_goes_back_the_way_the_message_came() {
        assert_eq!(
            built(&message("ADT^A01^ADT_A01|MSG1|T|2.5.1||||||UNICODE UTF-8"), AckCode::Aa),
            "MSH|^~\\&|LAB|HOSP|EHR|CLINIC|20260102030405+0000||ACK^A01^ACK|G1|T|2.5.1||||||UNICODE UTF-8\rMSA|AA|MSG1\r"
        );
    }

    #[test]
    fn a_stamp_fits_the_oldest_versions() {
        let id = Uuid::from_u128(0x0123_4567_89ab_7def_8123_4567_89ab_cdef);
        let stamp = Stamp::new(id, time::macros::datetime!(2026-01-02 03:04:05 UTC));
        assert_eq!(stamp.control_id, "0123456789ab89abcdef");
        assert_eq!(stamp.time, "20260102030405+0000");
    }

    #[test]
    fn its_type_has_the_shape_of_the_version() {
        let kind = |version: &str| {
            let ack = built(&message(&format!("ADT^A01|MSG1|P|{version}")), AckCode::Aa);
            Message::parse(ack.as_bytes()).unwrap().message_type().unwrap();
            ack.split('|').nth(8).unwrap().to_owned()
        };
        assert_eq!(kind(""), "ACK");
        assert_eq!(kind("2.2"), "ACK");
        assert_eq!(kind("2.3"), "ACK^A01");
        assert_eq!(kind("2.3.1"), "ACK^A01^ACK");
        assert_eq!(kind("2.5^DEU"), "ACK^A01^ACK");
    }

    #[test]
    fn it_is_written_in_the_senders_delimiters_and_its_text_cannot_break_out() {
        let body = b"MSH:;~\\&:A:B:C:D:::ADT;A01:M^1:P:2.4\r";
        let parsed = Message::parse(body).unwrap();
        let trouble = Trouble::internal("queue: full;\r\nMSA");
        let ack = build(&parsed, AckCode::Ae, Some(&trouble), &stamp());
        assert_eq!(
            &ack[..],
            b"MSH:;~\\&:C:D:A:B:20260102030405+0000::ACK;A01;ACK:G1:P:2.4\rMSA:AE:M^1:queue  full   MSA\rERR:;;;207&Application internal error&HL70357\r"
        );
        let read = Message::parse(&ack).unwrap().acknowledgement().unwrap();
        assert_eq!((read.code, read.control_id), (Some(AckCode::Ae), &b"M^1"[..]));
    }

    #[test]
    fn the_error_segment_has_the_shape_of_the_version() {
        let err = |version: &str, trouble: &Trouble| {
            let body = message(&format!("ADT^A01|MSG1|P|{version}"));
            let ack = build(&Message::parse(&body).unwrap(), AckCode::Ar, Some(trouble), &stamp());
            let told = Message::parse(&ack).unwrap().error_code().map(str::to_owned);
            let text = String::from_utf8(ack.to_vec()).unwrap();
            let segment = text.split('\r').nth(2).unwrap().to_owned();
            assert_eq!(told.is_some(), !segment.is_empty());
            segment
        };
        let missing = Trouble::from(&HeaderError::ControlId);
        let text = "MSH-10 (message control id) is missing";
        let newer = format!("ERR||MSH^1^10|101^Required field missing^HL70357|E||||{text}");
        let older = "ERR|MSH^1^10^101&Required field missing&HL70357";
        for (version, expected) in [
            ("2.8", newer.as_str()),
            ("2.5.1", &newer),
            ("2.5^USA", &newer),
            ("2.4", older),
            ("2.3", older),
            ("2.1", older),
            ("", ""),
            ("x", ""),
        ] {
            assert_eq!(err(version, &missing), expected, "{version}");
        }
        let internal = Trouble::internal("later");
        assert_eq!(err("2.5", &internal), "ERR|||207^Application internal error^HL70357|E||||later");
        assert_eq!(err("2.3", &internal), "ERR|^^^207&Application internal error&HL70357");
    }

    #[test]
    fn a_field_that_ends_in_fs_does_not_end_the_frame() {
        let body = Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1\x1c|P|2.5\x1c\nPID|1\n");
        assert!(crate::mllp::frame(&body).is_ok(), "such a message can come in");
        let parsed = Message::parse(&body).unwrap();
        let ack = build(&parsed, AckCode::Aa, None, &stamp());
        assert!(crate::mllp::frame(&ack).is_ok(), "and so its answer must go out");
        let read = Message::parse(&ack).unwrap().acknowledgement().unwrap();
        assert_eq!((read.code, read.control_id), (Some(AckCode::Aa), &b"M1\x1c"[..]));
    }

    #[test]
    fn a_sender_that_separates_by_plus_gets_no_offset_in_its_time() {
        let body = b"MSH+^~\\&+A+B+C+D+++ADT^A01+M1+P+2.5\rPID+1\r";
        let ack = built(body, AckCode::Aa);
        assert_eq!(ack, "MSH+^~\\&+C+D+A+B+20260102030405++ACK^A01^ACK+G1+P+2.5\rMSA+AA+M1\r");
    }

    #[test]
    fn without_a_header_it_is_a_generic_refusal() {
        let ack = build_generic_refusal("no header", &stamp());
        assert_eq!(&ack[..], b"MSH|^~\\&|||||20260102030405+0000||ACK|G1|P|2.3\rMSA|AR||no header\r");
    }

    #[test]
    fn the_code_follows_mode_and_verdict() {
        use AckCode::{Aa, Ae, Ar, Ca, Ce, Cr};
        let verdicts = [Verdict::Accepted, Verdict::TryLater, Verdict::Refused];
        // MSH-15, MSH-16, and what is owed when accepted, to be tried later, refused.
        let table = [
            ("", "", [Some(Aa), Some(Ae), Some(Ar)]),
            ("AL", "", [Some(Ca), Some(Ce), Some(Cr)]),
            ("AL", "AL", [Some(Ca), Some(Ce), Some(Cr)]),
            ("ER", "NE", [None, Some(Ce), Some(Cr)]),
            ("SU", "NE", [Some(Ca), None, None]),
            ("NE", "NE", [None, None, None]),
            ("NE", "AL", [Some(Aa), Some(Ae), Some(Ar)]),
            ("", "ER", [None, Some(Ae), Some(Ar)]),
            ("NE", "", [None, None, None]),
            ("??", "", [Some(Ca), Some(Ce), Some(Cr)]),
        ];
        for (accept, application, owed) in table {
            let body = message(&format!("ADT^A01|1|P|2.5|||{accept}|{application}"));
            let parsed = Message::parse(&body).unwrap();
            let codes = verdicts.map(|verdict| code_owed(&parsed, verdict));
            assert_eq!(codes, owed, "MSH-15 {accept:?}, MSH-16 {application:?}");
        }
    }

    #[test]
    fn an_application_acknowledgement_follows_only_an_accept_acknowledgement_and_as_asked() {
        use AckCode::{Aa, Ae};
        for (accept, application, owed) in [
            ("AL", "AL", [Some(Aa), Some(Ae)]),
            ("AL", "ER", [None, Some(Ae)]),
            ("SU", "SU", [Some(Aa), None]),
            ("AL", "NE", [None, None]),
            ("AL", "", [None, None]),
            ("NE", "AL", [None, None]),
            ("", "", [None, None]),
        ] {
            let body = message(&format!("ADT^A01|1|P|2.5|||{accept}|{application}"));
            let parsed = Message::parse(&body).unwrap();
            let codes =
                [Verdict::Accepted, Verdict::TryLater].map(|verdict| application_code_owed(&parsed, verdict));
            assert_eq!(codes, owed, "{accept} {application}");
        }
    }

    #[test]
    fn an_acknowledgement_is_never_acknowledged() {
        for modes in ["", "|||AL|AL"] {
            let body = format!("MSH|^~\\&|A|B|C|D|||ACK^A01|1|P|2.5{modes}\rMSA|AA|9\r");
            let parsed = Message::parse(body.as_bytes()).unwrap();
            assert_eq!(code_owed(&parsed, Verdict::Accepted), None);
            assert_eq!(code_owed(&parsed, Verdict::Refused), None);
        }
    }

    #[test]
    fn an_answer_to_a_query_is_acknowledged_only_when_it_asks() {
        let owed = |modes: &str| {
            let body = format!("MSH|^~\\&|A|B|C|D|||RSP^K22|1|P|2.5|||{modes}\rMSA|AA|9\r");
            code_owed(&Message::parse(body.as_bytes()).unwrap(), Verdict::Accepted)
        };
        assert_eq!(owed("|"), None);
        assert_eq!(owed("NE|AL"), None);
        assert_eq!(owed("AL|"), Some(AckCode::Ca));
    }
}
