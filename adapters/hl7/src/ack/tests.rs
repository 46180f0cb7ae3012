//! Which answer is owed, and its bytes.

use super::*;

fn stamp() -> Stamp {
    Stamp { control_id: "G1".to_owned(), time: "20260102030405+0000".to_owned() }
}

fn message(header_tail: &str) -> Vec<u8> {
    format!("MSH|^~\\&|EHR|CLINIC|LAB|HOSP|2026||{header_tail}\rPID|1||42\r").into_bytes()
}

fn built(body: &[u8], code: AckCode) -> String {
    let message = Message::parse(body).unwrap();
    String::from_utf8(build(&message, code, None, None, &stamp()).to_vec()).unwrap()
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
    let ack = build(&parsed, AckCode::Ae, Some(&trouble), None, &stamp());
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
        let ack = build(&Message::parse(&body).unwrap(), AckCode::Ar, Some(trouble), None, &stamp());
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
    let ack = build(&parsed, AckCode::Aa, None, None, &stamp());
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
