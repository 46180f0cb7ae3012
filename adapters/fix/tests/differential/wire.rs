//! Messages on the wire: written here and read there, the other way round, and damaged ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gatepost_fix::data_fields::DataFields;
use gatepost_fix::message::Tag;
use gatepost_fix::version::BeginString;
use gatepost_fix::wire::{Draft, Garbled, parse};

use crate::oracle::Oracle;
use crate::{Dice, QUICKFIX, SIMPLEFIX, fields_of, framed};

/// Fields of a body, some of them data of any bytes.
fn any_body(dice: &mut Dice) -> Vec<(Tag, Vec<u8>)> {
    let mut fields = Vec::new();
    for _ in 0..dice.roll(12) {
        let tag = *dice.pick(&[1, 11, 15, 21, 38, 44, 55, 58, 60, 448, 999, 5001, 20_000]);
        let length = 1 + dice.roll(20);
        let value = (0..length).map(|_| 2 + dice.roll(254) as u8).collect();
        fields.push((tag, value));
        if dice.roll(4) == 0 {
            let data: Vec<u8> = (0..1 + dice.roll(30)).map(|_| dice.roll(256) as u8).collect();
            fields.push((95, data.len().to_string().into_bytes()));
            fields.push((96, data));
        }
    }
    fields
}

fn encoded(fields: &[(Tag, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, value) in fields {
        bytes.extend(format!("{tag}=").into_bytes());
        bytes.extend(value);
        bytes.push(1);
    }
    bytes
}

fn listed<'a>(fields: impl Iterator<Item = (Tag, &'a [u8])>) -> String {
    fields.map(|(tag, value)| format!("{tag}={}", STANDARD.encode(value))).collect::<Vec<_>>().join(" ")
}

#[test]
fn simplefix_reads_what_is_written_here() {
    let Some(mut oracle) = Oracle::start(&[SIMPLEFIX], &["read"]) else { return };
    let mut dice = Dice(1);
    let mut asked = Vec::new();
    for number in 0..400 {
        let body = encoded(&any_body(&mut dice));
        let message = Draft::new(BeginString::Fix44, "B")
            .header_number(34, number)
            .header(49, "US")
            .header(56, "THEM")
            .body(&body, &DataFields::default())
            .encode()
            .unwrap();
        asked.push(message);
    }
    let answers = oracle.answers(asked.iter().map(|message| STANDARD.encode(message)));
    for (message, answer) in asked.into_iter().zip(answers) {
        let read = parse(message, &DataFields::default()).unwrap();
        assert_eq!(answer, listed(read.fields().map(|field| (field.tag, field.value))));
    }
}

#[test]
fn what_simplefix_writes_is_read_here() {
    let Some(mut oracle) = Oracle::start(&[SIMPLEFIX], &["write"]) else { return };
    let mut dice = Dice(2);
    let mut asked = Vec::new();
    for number in 0..400 {
        let mut fields =
            vec![(8, b"FIX.4.4".to_vec()), (35, b"B".to_vec()), (34, format!("{number}").into_bytes())];
        fields.extend(any_body(&mut dice));
        asked.push(fields);
    }
    let listed_fields =
        |fields: &[(Tag, Vec<u8>)]| listed(fields.iter().map(|(tag, value)| (*tag, &value[..])));
    let answers = oracle.answers(asked.iter().map(|fields| listed_fields(fields)));
    for (fields, answer) in asked.into_iter().zip(answers) {
        let message = Bytes::from(STANDARD.decode(answer).unwrap());
        let read = parse(message, &DataFields::default()).unwrap();
        let ours = read.fields().filter(|field| !matches!(field.tag, 9 | 10));
        assert_eq!(listed(ours.map(|field| (field.tag, field.value))), listed_fields(&fields));
    }
}

/// One change to the bytes of a message, its sums left as they are or not. All is ASCII: QuickFIX's Python binding takes text.
fn damaged(message: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut bytes = message.to_vec();
    let at = dice.roll(bytes.len());
    match dice.roll(5) {
        0 => bytes[at] = dice.roll(128) as u8,
        1 => {
            bytes.remove(at);
        }
        2 => bytes.insert(at, *dice.pick(b"\x01=0189A")),
        3 => {
            let field = [&b"58=x\x01"[..], b"=x\x01", b"058=x\x01", b"5 8=x\x01", b"58\x01", b"\x01"];
            let end = bytes.len() - "10=nnn|".len();
            bytes.truncate(end);
            bytes.extend(*dice.pick(&field));
            bytes.extend(b"10=000\x01");
        }
        _ => bytes.truncate(at),
    }
    if dice.roll(2) == 0 { summed(&bytes) } else { bytes }
}

/// With a BodyLength and a CheckSum that are right, if there is anything to count.
fn summed(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(message.to_vec()).unwrap();
    let Some((head, rest)) = text.split_once("\x019=") else { return message.to_vec() };
    let Some((_, rest)) = rest.split_once('\x01') else { return message.to_vec() };
    let Some((body, _)) = rest.rsplit_once("10=") else { return message.to_vec() };
    let counted = format!("{head}\x019={}\x01{body}", body.len());
    let sum = counted.bytes().fold(0u8, u8::wrapping_add);
    format!("{counted}10={sum:03}\x01").into_bytes()
}

#[test]
fn quickfix_takes_the_same_bytes_for_messages() {
    let Some(mut oracle) = Oracle::start(&[QUICKFIX], &["garbled"]) else { return };
    let mut dice = Dice(4);
    let sound = framed(
        BeginString::Fix44,
        &fields_of("35=D|H|11=ID|21=1|55=X|54=1|60=20260102-03:04:05|38=200|40=2|"),
    );
    let asked: Vec<Vec<u8>> = (0..4000).map(|_| damaged(&sound, &mut dice)).collect();
    let answers = oracle.answers(asked.iter().map(|bytes| STANDARD.encode(bytes)));
    let mut taken = 0;
    for (bytes, theirs) in asked.into_iter().zip(answers) {
        let ours = parse(bytes.clone().into(), &DataFields::default());
        taken += usize::from(ours.is_ok());
        let stricter = match &ours {
            Ok(_) => false,
            // Three digits, whatever the number; BeginString has FIX in it; a message has a type.
            Err(Garbled::BodyLength) => !bytes[bytes.len().saturating_sub(7)..].starts_with(b"10="),
            Err(Garbled::Head) => !bytes.starts_with(b"8=FIX"),
            Err(Garbled::NoMsgType) => bytes.windows(5).any(|window| window == b"\x0135=\x01"),
            Err(_) => false,
        };
        assert!(
            ours.is_ok() == (theirs == "ok") || (stricter && theirs == "ok"),
            "{ours:?} here, {theirs} there: {}",
            String::from_utf8_lossy(&bytes).replace('\x01', "|")
        );
    }
    assert!((500..3500).contains(&taken), "{taken} were messages");
}
