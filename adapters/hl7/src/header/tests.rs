//! Headers, paths and acknowledgements, as senders write them.

use proptest::prelude::*;

use super::*;

const ADT: &[u8] = b"MSH|^~\\&|EHR|CLINIC|LAB|HOSP|20260102030405||ADT^A01^ADT_A01|MSG0001|P|2.5.1|||AL|NE|US|UNICODE UTF-8\r\
    EVN|A01|20260102\r\
    PID|1||12345^^^HOSP^MR~67890&X^^^CLINIC^PI||DOE^JANE||\"\"\r";

fn text<'a>(message: &Message<'a>, path: &str) -> Option<&'a str> {
    message.value(&path.parse().unwrap()).map(|bytes| std::str::from_utf8(bytes).unwrap())
}

#[test]
fn the_header_is_read() {
    let message = Message::parse(ADT).unwrap();
    assert_eq!(message.encoding_characters(), br"^~\&");
    assert_eq!(message.sending_application(), b"EHR");
    assert_eq!(message.sending_facility(), b"CLINIC");
    assert_eq!(message.receiving_application(), b"LAB");
    assert_eq!(message.receiving_facility(), b"HOSP");
    assert_eq!(message.message_type().unwrap().to_string(), "ADT_A01");
    assert_eq!(message.control_id(), Ok(&b"MSG0001"[..]));
    assert_eq!(message.processing_id(), b"P");
    assert_eq!(message.version(), b"2.5.1");
    assert_eq!(message.accept_acknowledgement(), b"AL");
    assert_eq!(message.application_acknowledgement(), b"NE");
    assert_eq!(message.character_set(), b"UNICODE UTF-8");
    assert_eq!(message.acknowledgement(), None);
}

#[test]
fn paths_reach_fields_components_and_subcomponents() {
    let message = Message::parse(ADT).unwrap();
    assert_eq!(text(&message, "PID-3"), Some("12345^^^HOSP^MR"));
    assert_eq!(text(&message, "PID-3.1"), Some("12345"));
    assert_eq!(text(&message, "PID-3.1.1"), Some("12345"));
    assert_eq!(text(&message, "PID-3.1.2"), None);
    assert_eq!(text(&message, "PID-3.4"), Some("HOSP"));
    assert_eq!(text(&message, "PID-5.2"), Some("JANE"));
    assert_eq!(text(&message, "PID-7"), None, "an explicit null is no value");
    assert_eq!(text(&message, "PID-99"), None);
    assert_eq!(text(&message, "ZZZ-1"), None);
    assert_eq!(text(&message, "MSH-10"), Some("MSG0001"));
    assert_eq!(text(&message, "MSH-9.2"), Some("A01"));
}

#[test]
fn a_message_has_its_own_delimiters() {
    let message = Message::parse(b"MSH:;~\\&:A:B:C:D:::ACK;A01:9:P:2.3\rMSA:CA:MSG^0001\r").unwrap();
    let acknowledgement = message.acknowledgement().unwrap();
    assert_eq!(acknowledgement.code, Some(AckCode::Ca));
    assert_eq!(acknowledgement.control_id, b"MSG^0001");
    assert_eq!(message.message_type().unwrap().trigger, Some("A01"));
}

#[test]
fn the_truncation_character_of_version_2_7_is_allowed() {
    let message = Message::parse(b"MSH|^~\\&#|A|B|C|D|||ADT^A01|1|P|2.7\r").unwrap();
    assert_eq!(message.encoding_characters(), br"^~\&#");
}

#[test]
fn line_ends_of_every_kind_end_segments() {
    for end in ["\r", "\n", "\r\n"] {
        let body = format!("MSH|^~\\&|||||||ADT^A01|7|P|2.3{end}PID|1||42^x{end}");
        let message = Message::parse(body.as_bytes()).unwrap();
        assert_eq!(text(&message, "PID-3.1"), Some("42"), "{end:?}");
        assert_eq!(message.version(), b"2.3");
    }
}

#[test]
fn a_line_feed_inside_a_field_starts_no_segment() {
    let message =
        Message::parse(b"MSH|^~\\&|||||||ORU^R01|7|P|2.3\rOBX|1|FT|||line\nPID|1||666\rPID|1||42\r").unwrap();
    assert_eq!(text(&message, "PID-3"), Some("42"));
}

#[test]
fn a_byte_order_mark_and_leading_line_ends_are_passed_over() {
    let mut body = b"\xef\xbb\xbf\r\n".to_vec();
    body.extend_from_slice(ADT);
    assert_eq!(Message::parse(&body).unwrap().control_id(), Ok(&b"MSG0001"[..]));
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let error = |body: &[u8]| Message::parse(body).map(|_| ()).unwrap_err();
    assert_eq!(error(b""), HeaderError::NoHeader);
    assert_eq!(error(b"\x06"), HeaderError::NoHeader);
    assert_eq!(error(b"PID|1"), HeaderError::NoHeader);
    assert_eq!(error(b"MSH"), HeaderError::Delimiters);
    assert_eq!(error(b"MSH|"), HeaderError::Delimiters);
    assert_eq!(error(b"MSH|^|A"), HeaderError::Delimiters);
    assert_eq!(error(b"MSH|^^\\&|A"), HeaderError::Delimiters);
    assert_eq!(error(b"MSHabcde|A"), HeaderError::Delimiters);

    let short = Message::parse(b"MSH|^~\\&|A").unwrap();
    assert_eq!(short.control_id(), Err(HeaderError::ControlId));
    assert_eq!(short.message_type().unwrap_err(), HeaderError::MessageType);
    let strange = Message::parse(b"MSH|^~\\&|||||||AD/T^A01|\"\"|P|2.3").unwrap();
    assert_eq!(strange.message_type().unwrap_err(), HeaderError::MessageType);
    assert_eq!(strange.control_id(), Err(HeaderError::ControlId));
}

#[test]
fn attributes_are_text_whatever_the_bytes() {
    assert_eq!(attribute_text("Müller".as_bytes(), Charset::Utf8, 99), "Müller");
    assert_eq!(attribute_text(b"M\xfcller", Charset::Latin1, 99), "Müller");
    assert_eq!(attribute_text(b"M\xfcller", Charset::Utf8, 99), "M\u{fffd}ller");
    assert_eq!(attribute_text(b"a\tb\x85", Charset::Latin1, 99), "a\u{fffd}b\u{fffd}");
    assert_eq!(attribute_text(b"abcdef", Charset::Ascii, 3), "abc");
}

#[test]
fn the_error_code_stands_where_the_version_has_it() {
    let code = |err: &str| {
        let body = format!("MSH|^~\\&|A|B|C|D|||ACK|1|P|2.5\rMSA|AE|9\r{err}");
        Message::parse(body.as_bytes()).unwrap().error_code().map(str::to_owned)
    };
    assert_eq!(code("ERR||PID^1^3|206^Locked^HL70357|E\r").as_deref(), Some("206"));
    assert_eq!(code("ERR|PID^1^3^101&Required&HL70357\r").as_deref(), Some("101"));
    assert_eq!(code("ERR|||207\rERR|||101\r").as_deref(), Some("207"));
    assert_eq!(code("ERR|PID^1^3\r"), None);
    assert_eq!(code(""), None);
}

#[test]
fn parts_of_a_message_are_told_from_whole_ones() {
    let continued = |kind: &str, pointer: &str, rest: &str| {
        let body = format!("MSH|^~\\&|A|B|C|D|||{kind}|1|P|2.5||{pointer}\r{rest}");
        Message::parse(body.as_bytes()).unwrap().is_continued()
    };
    assert!(continued("ORU^R01", "P2", "OBX|1\r"));
    assert!(continued("ORU^R01", "", "OBX|1\rDSC|P2|F\r"));
    assert!(continued("ORU^R01", "", "ADD|more\rOBX|2\r"));
    assert!(!continued("ORU^R01", "", "OBX|1\rDSC||F\r"));
    assert!(!continued("QBP^Q22", "", "QPD|x\rDSC|P2|I\r"));
    assert!(!continued("RSP^K22", "", "MSA|AA|7\rDSC|P2|I\r"));
}

#[test]
fn merges_are_counted_in_events_that_have_them() {
    let merges = |kind: &str, rest: &str| {
        let body = format!("MSH|^~\\&|A|B|C|D|||{kind}|1|P|2.5\rPID|1||42^^^MR\r{rest}");
        Message::parse(body.as_bytes()).unwrap().merges()
    };
    for kind in ["ADT^A18", "ADT^A34", "ADT^A40^ADT_A39"] {
        assert_eq!(merges(kind, "MRG|41^^^MR\r"), Some(1), "{kind}");
    }
    assert_eq!(merges("ADT^A40", "MRG|41\rPID|2||52\rMRG|51\r"), Some(2));
    assert_eq!(merges("ADT^A40", "MRGX|41\r"), Some(0));
    assert_eq!(merges("ADT^A08", "MRG|41\r"), None);
    assert_eq!(merges("ORU^A40", "MRG|41\r"), None);
}

#[test]
fn control_ids_are_whole_however_long() {
    for id in ["1".repeat(20), "1".repeat(199), "A^B&C~D".to_owned(), "1".repeat(5000)] {
        let body = format!("MSH|^~\\&|A|B|C|D|||ADT^A01|{id}|P|2.7\rMSA|AA|{id}\r");
        let message = Message::parse(body.as_bytes()).unwrap();
        assert_eq!(message.control_id(), Ok(id.as_bytes()));
        assert_eq!(message.acknowledgement().unwrap().control_id, id.as_bytes());
    }
}

#[test]
fn the_character_set_is_the_first_that_msh_18_names() {
    let declared = |field: &str| {
        let body = format!("MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5||||||{field}\r");
        Message::parse(body.as_bytes()).unwrap().charset()
    };
    assert_eq!(declared("8859/1~ISO IR87"), Declared::Charset(Charset::Latin1));
    assert_eq!(declared(" UNICODE UTF-8 "), Declared::Charset(Charset::Utf8));
    assert_eq!(declared(""), Declared::Unknown);
    assert_eq!(declared("UNICODE UTF-16"), Declared::Wide);
}

#[test]
fn a_message_in_wide_characters_says_why_it_cannot_be_read() {
    let wide: Vec<u8> = "MSH|^~\\&|".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(Message::parse(&wide).unwrap_err(), HeaderError::Wide);
}

#[test]
fn what_ends_segments_is_told() {
    let in_cr = |end: &str| {
        let body = format!("MSH|^~\\&|A|B|C|D|||ADT^A01|1|P|2.5{end}PID|1{end}");
        Message::parse(body.as_bytes()).unwrap().ends_segments_in_cr()
    };
    assert!(in_cr("\r") && !in_cr("\n") && !in_cr("\r\n"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(tail in prop::collection::vec(any::<u8>(), 0..120), path in "[A-Z]{3}-[1-9](\\.[1-9]){0,2}") {
        let body = [b"MSH|^~\\&|", &tail[..]].concat();
        for body in [&body[..], &tail[..]] {
            if let Ok(message) = Message::parse(body) {
                let _ = (message.message_type(), message.control_id(), message.acknowledgement());
                if let Ok(path) = path.parse() {
                    let _ = message.value(&path);
                }
            }
        }
    }
}

#[test]
fn of_a_long_value_only_the_start_is_decoded() {
    let long = "ü".repeat(100_000);
    assert_eq!(attribute_text(long.as_bytes(), Charset::Utf8, 5), "üüüüü");
    assert_eq!(start(long.as_bytes(), 5).len(), 5 * CHARACTER_BYTES_MAX);
    assert_eq!(start(b"abc", 5), b"abc");
}
