//! Batches by example.

use proptest::prelude::*;

use super::*;

const MAX: usize = 10;

fn message(id: &str) -> String {
    format!("MSH|^~\\&|A|B|C|D|||ADT^A01|{id}|P|2.5\rPID|1||42\r")
}

fn read(body: &str) -> Result<Batch, BatchError> {
    split(&Bytes::copy_from_slice(body.as_bytes()), MAX)
}

fn texts(body: &str) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let batch = read(body).unwrap();
    batch.messages.iter().map(|member| (text(&member.batch_id), text(&member.body))).collect()
}

#[test]
fn a_long_id_is_not_copied_for_each_message() {
    let body = Bytes::from(format!("BHS|^~\\&|||||||||{}\r{}", "B".repeat(5000), message("1").repeat(9)));
    for member in split(&body, MAX).unwrap().messages {
        assert_eq!(member.batch_id.len(), 5000);
        assert!(body.as_ptr_range().contains(&member.batch_id.as_ptr()));
    }
}

#[test]
fn a_file_is_its_messages_in_order_with_the_ids_of_their_batches() {
    let (one, two, three) = (message("1"), message("2"), message("3"));
    let body = format!(
        "FHS|^~\\&|A|B|C|D|||name||F1\rBHS|^~\\&|A|B|C|D|||||B1\r{one}{two}BTS|2\r\
         BHS|^~\\&|A|B|C|D|||||B2\r{three}BTS|1|last\rFTS|2\r"
    );
    let of = |id: &str, text: String| (id.to_owned(), text);
    assert_eq!(texts(&body), [of("B1", one), of("B1", two), of("B2", three)]);
    let batch = read(&body).unwrap();
    assert_eq!(batch.file_id, &b"F1"[..]);
    assert_eq!(batch.head.control_id, &b"B1"[..]);
    assert_eq!(batch.head.parties[0], b"A");
}

#[test]
fn what_is_optional_may_be_missing_and_lines_may_end_in_any_way() {
    let bare = format!("BHS|^~\\&\r{}{}", message("1"), message("2"));
    assert_eq!(texts(&bare).len(), 2);
    let file_only = format!("FHS|^~\\&\r{}FTS|0\r", message("1"));
    assert_eq!(texts(&file_only).len(), 1);
    for end in ["\n", "\r\n"] {
        let body = format!("\u{feff}\r\nBHS|^~\\&\r{}BTS|1\r", message("1"));
        let body = body.replace("\r\n", "\r").replace('\r', end);
        let expected = message("1").replace('\r', end);
        assert_eq!(texts(&body)[0].1, expected, "{end:?}");
    }
    let blank = format!("BHS|^~\\&\r\n\n{}\n\n{}\n\nBTS|2\r\n", message("1"), message("2"));
    assert_eq!(texts(&blank).len(), 2);
    assert_eq!(texts("BHS|^~\\&\rBTS|0\r"), []);
}

#[test]
fn a_batch_that_counts_otherwise_is_none() {
    let one = message("1");
    let error = |body: &str| read(body).unwrap_err();
    assert_eq!(
        error(&format!("BHS|^~\\&\r{one}BTS|2\r")),
        BatchError::Count { trailer: "BTS-1", said: 2, found: 1 }
    );
    assert_eq!(
        error(&format!("FHS|^~\\&\rBHS|^~\\&\r{one}BTS|1\rFTS|2\r")),
        BatchError::Count { trailer: "FTS-1", said: 2, found: 1 }
    );
    assert_eq!(error(&format!("BHS|^~\\&\r{one}BTS|many\r")), BatchError::NoCount("BTS-1"));
    assert_eq!(error(&format!("BHS:;~\\&\r{one}BTS:2\r")).to_string(), "BTS-1 counts 2, and there are 1");
}

#[test]
fn a_batch_out_of_order_is_none() {
    let one = message("1");
    for (body, error) in [
        (format!("BHS|^~\\&\r{one}BTS|1\r{one}"), BatchError::Misplaced("MSH")),
        (format!("BHS|^~\\&\rBHS|^~\\&\r{one}"), BatchError::Misplaced("BHS")),
        (format!("BHS|^~\\&\r{one}BTS\rBTS\r"), BatchError::Misplaced("BTS")),
        (format!("BHS|^~\\&\r{one}FTS\r"), BatchError::Misplaced("FTS")),
        (format!("BHS|^~\\&\r{one}FHS|^~\\&\r"), BatchError::Misplaced("FHS")),
        (format!("{one}BHS|^~\\&\r{one}"), BatchError::Misplaced("BHS")),
        (format!("BHS|^~\\&\n{one}{one}BTS\rBTS\r"), BatchError::Misplaced("BTS")),
        (format!("{one}FHS|^~\\&\r{one}"), BatchError::Misplaced("FHS")),
        ("FTS|\rFHS|^~\\&\r".to_owned(), BatchError::Misplaced("FTS")),
        (format!("BHS|^~\\&\rPID|1\r{one}BTS\r"), BatchError::NoMessage),
        (format!("BHS|^\r{one}"), BatchError::Delimiters("BHS")),
        (format!("BHS|^~\\&\r{}", one.repeat(MAX + 1)), BatchError::TooMany(MAX)),
    ] {
        assert_eq!(read(&body).unwrap_err(), error, "{body:?}");
    }
}

#[test]
fn a_cr_batch_that_hides_a_segment_behind_an_lf_is_none() {
    let (one, two) = (message("1"), message("2"));
    let (lf_one, lf_two) = (one.replace('\r', "\n"), two.replace('\r', "\n"));
    for (body, name) in [
        (format!("BHS|^~\\&\r{lf_one}{lf_two}BTS|2\n"), "MSH"),
        (format!("BHS|^~\\&\r\n{lf_one}{lf_two}"), "MSH"),
        (format!("BHS:;~\\&\r{}", [&*lf_one, &lf_two].concat().replace('|', ":")), "MSH"),
        // Each by its own separator.
        (format!("BHS:;~\\&\r{lf_one}{lf_two}"), "MSH"),
        (format!("BHS|^~\\&\r{lf_one}BTS|1\n"), "BTS"),
        (format!("BHS|^~\\&\r{lf_one}BTS\nFTS"), "BTS"),
        (format!("BHS|^~\\&\r{lf_one}FTS"), "FTS"),
        (format!("BHS|^~\\&\r{lf_one}BHS|^~\\&\n"), "BHS"),
        (format!("BHS|^~\\&\r{lf_one}FHS|^~\\&\n"), "FHS"),
        // By separators that nobody else has.
        (format!("BHS|^~\\&\r{lf_one}{}", lf_two.replace('|', ":")), "MSH"),
        (format!("BHS|^~\\&\r{lf_one}BHS:;~\\&\n"), "BHS"),
        // A line further on in a message whose header ended in LF.
        (format!("BHS|^~\\&\r{lf_one}NTE|1\rNTE|2\n{lf_two}BTS|2\n"), "MSH"),
        (format!("BHS:;~\\&\r{lf_one}NTE|1\rNTE+2\n{lf_two}BTS:2\n"), "MSH"),
        // Behind the envelope's own segments.
        (format!("FHS|^~\\&\rBHS|^~\\&\n{lf_one}BTS|1\nFTS|1\n"), "MSH"),
        (format!("FHS|^~\\&\rBHS|^~\\&\r{one}BTS|1|last\nBHS|^~\\&\n{lf_two}FTS\r"), "BHS"),
    ] {
        assert_eq!(read(&body).unwrap_err(), BatchError::Hidden(name), "{body:?}");
    }
    // Refused by the ids of all of them.
    let body = Bytes::from(format!("BHS|^~\\&\r{}BTS|12\n", lf_one.repeat(12)));
    assert_eq!(split_unchecked(&body, MAX).unwrap().messages.len(), MAX);
    // An LF that ends nothing, or ends a segment that is no border, hides nothing.
    for body in [
        format!("BHS|^~\\&\r{one}NTE|1||as sent:\nMSH|^~\\&|A\nBTS|1\r{two}BTS|2\r"),
        format!("BHS|^~\\&\r{lf_one}NTE|1||MSH|\nMSHA\r{two}BTS|2\r"),
    ] {
        assert_eq!(texts(&body).len(), 2, "{body:?}");
    }
}

#[test]
fn only_a_frame_that_begins_as_one_is_a_batch() {
    assert!(is_batch(b"FHS|^~\\&") && is_batch(b"\xef\xbb\xbf\r\nBHS|^~\\&"));
    assert!(!is_batch(b"MSH|^~\\&") && !is_batch(b"") && !is_batch(b"\x06"));
}

proptest! {
    #[test]
    fn every_byte_of_a_message_is_in_exactly_one(
        parts in prop::collection::vec(prop::sample::select(vec!["BHS|^~\\&\r", "BTS\r", "FHS|^~\\&\r", "FTS\r", "MSH|a\r", "PID|b\r", "\r"]), 0..20),
    ) {
        let body = Bytes::from(parts.concat());
        if let Ok(batch) = split(&body, MAX) {
            let whole: usize = batch.messages.iter().map(|member| member.body.len()).sum();
            let around = ["BHS|^~\\&\r", "BTS\r", "FHS|^~\\&\r", "FTS\r"];
            let envelope: usize = parts.iter().filter(|part| around.contains(*part)).map(|part| part.len()).sum();
            prop_assert!(whole + envelope <= body.len());
            let starts = parts.iter().filter(|part| part.starts_with("MSH")).count();
            prop_assert_eq!(batch.messages.len(), starts);
        }
    }
}
