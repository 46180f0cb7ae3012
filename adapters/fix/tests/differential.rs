//! The same messages to other people's libraries: QuickFIX (C++) and simplefix, both from PyPI.

mod oracle;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use gatepost_fix::data_fields::DataFields;
use gatepost_fix::dictionary::{Dictionaries, Dictionary, Layer};
use gatepost_fix::message::Tag;
use gatepost_fix::validate::{Level, Reason, Validator};
use gatepost_fix::version::BeginString;
use gatepost_fix::wire::{Draft, Garbled, parse};

use crate::oracle::Oracle;

const QUICKFIX: &str = "quickfix-tls==1.16.0.1rc1";
const DICTIONARIES: &str = "fixcore-engine==0.15.0";
const SIMPLEFIX: &str = "simplefix==1.0.17";

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    /// Below `limit`.
    fn roll(&mut self, limit: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}

// === Messages on the wire ===

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

/// One change to the bytes of a message, its sums left as they are or not.
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
            // Only ASCII: QuickFIX's Python binding counts characters.
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

// === Messages against a dictionary ===

const HEADER: &str = "49=A|56=B|34=2|52=20260102-03:04:05.678|";

/// Messages of one version with which nothing is wrong.
struct Sound {
    /// Its dictionary's file, without the ending.
    file: &'static str,
    begin_string: BeginString,
    messages: &'static [&'static str],
}

const SOUND: [Sound; 5] = [
    Sound {
        file: "FIX50SP2",
        begin_string: BeginString::Fixt11,
        messages: &[
            "35=D|H|11=ID|453=2|448=X|447=D|452=1|802=1|523=a|803=1|448=Y|447=D|452=3|21=1|386=2|336=1|336=2|55=X|167=CS|54=1|60=20260102-03:04:05|38=200|40=2|44=10.5|15=EUR|59=0|",
            "35=8|H|37=O|11=C|17=E|150=0|39=0|55=X|54=1|151=0|14=0|60=20260102-03:04:05|",
            "35=0|H|112=T|",
        ],
    },
    Sound {
        file: "FIX44",
        begin_string: BeginString::Fix44,
        messages: &[
            "35=D|H|11=ID|453=2|448=X|447=D|452=1|802=1|523=a|803=1|448=Y|447=D|452=3|21=1|386=2|336=A|336=B|55=X|167=CS|54=1|60=20260102-03:04:05|38=200|40=2|44=10.5|15=EUR|59=0|",
            "35=8|H|37=O|11=C|17=E|150=0|39=0|55=X|54=1|151=0|14=0|6=0|60=20260102-03:04:05|",
            "35=B|H|148=h|33=2|58=a|58=b|",
            "35=0|H|112=T|",
            "35=V|H|262=r|263=1|264=0|267=2|269=0|269=1|146=2|55=A|55=B|",
            "35=F|H|41=o|11=c|55=X|54=1|60=20260102-03:04:05|38=5|",
        ],
    },
    Sound {
        file: "FIX43",
        begin_string: BeginString::Fix43,
        messages: &[
            "35=D|H|11=ID|453=2|448=X|447=D|452=1|448=Y|447=D|452=3|21=1|386=2|336=A|336=B|55=X|167=CS|54=1|60=20260102-03:04:05|38=200|40=2|44=10.5|15=EUR|59=0|",
            "35=8|H|37=O|11=C|17=E|150=0|39=0|55=X|54=1|151=0|14=0|6=0|60=20260102-03:04:05|",
            "35=0|H|112=T|",
        ],
    },
    Sound {
        file: "FIX42",
        begin_string: BeginString::Fix42,
        messages: &[
            "35=D|H|11=ID|21=1|386=2|336=A|336=B|55=X|167=CS|54=1|60=20260102-03:04:05|38=200|40=2|44=10.5|15=EUR|59=0|18=1 2|",
            "35=8|H|37=O|11=C|17=E|20=0|150=0|39=0|55=X|54=1|151=0|14=0|6=0|60=20260102-03:04:05|",
            "35=B|H|148=h|33=2|58=a|58=b|",
            "35=0|H|112=T|",
        ],
    },
    Sound {
        file: "FIX40",
        begin_string: BeginString::Fix40,
        messages: &[
            "35=D|H|11=ID|21=1|55=X|54=1|38=200|40=2|44=10.5|15=EUR|59=0|18=1|",
            "35=8|H|37=O|11=C|17=1|20=0|39=0|55=X|54=1|38=5|32=0|31=0|14=0|6=0|60=20260102-03:04:05|",
            "35=0|H|112=T|",
        ],
    },
];

type Fields = Vec<(String, String)>;

fn fields_of(text: &str) -> Fields {
    let text = text.replace("H|", HEADER);
    text.split_terminator('|')
        .map(|field| field.split_once('=').unwrap())
        .map(|(tag, value)| (tag.to_owned(), value.to_owned()))
        .collect()
}

/// One change somewhere behind MsgType.
fn changed(fields: &Fields, dice: &mut Dice) -> Fields {
    let mut fields = fields.clone();
    let at = 1 + dice.roll(fields.len() - 1);
    match dice.roll(6) {
        0 => {
            fields.remove(at);
        }
        1 => {
            let twice = fields[at].clone();
            fields.insert(1 + dice.roll(fields.len() - 1), twice);
        }
        2 => {
            let other = 1 + dice.roll(fields.len() - 1);
            fields.swap(at, other);
        }
        3 => {
            let values = [
                "",
                "0",
                "1",
                "2",
                "-1",
                "+1",
                "x",
                "xx",
                "1.5",
                "Y",
                "20260102-03:04:05",
                "20260230-03:04:05",
                "20260102",
                "1 2",
            ];
            fields[at].1 = (*dice.pick(&values)).to_owned();
        }
        4 => {
            let tags = [
                "1", "11", "18", "55", "58", "99", "112", "336", "448", "523", "999", "5000", "20000", "0",
                "-3", "43", "97", "34", "89",
            ];
            fields
                .insert(at, ((*dice.pick(&tags)).to_owned(), (*dice.pick(&["1", "x", "Y", ""])).to_owned()));
        }
        _ => fields[0].1 = (*dice.pick(&["D", "8", "ZZ", "*", "0", "B", "n", "i"])).to_owned(),
    }
    fields
}

fn framed(begin_string: BeginString, fields: &Fields) -> Bytes {
    let body: String = fields.iter().map(|(tag, value)| format!("{tag}={value}\x01")).collect();
    let head = format!("8={begin_string}\x019={}\x01{body}", body.len());
    let sum = head.bytes().fold(0u8, u8::wrapping_add);
    format!("{head}10={sum:03}\x01").into()
}

/// What QuickFIX calls a reason; `None` for what it does not look at.
fn quickfix_name(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::InvalidTagNumber => Some("InvalidTagNumber"),
        Reason::RequiredTagMissing => Some("RequiredTagMissing"),
        Reason::NotDefinedForMessage => Some("TagNotDefinedForMessage"),
        Reason::NoValue => Some("NoTagValue"),
        Reason::ValueIncorrect => Some("IncorrectTagValue"),
        Reason::BadFormat => Some("IncorrectDataFormat"),
        Reason::InvalidMsgType => Some("InvalidMessageType"),
        Reason::Twice => Some("RepeatedTag"),
        Reason::OutOfOrder => Some("TagOutOfOrder"),
        Reason::GroupCount => Some("RepeatingGroupCountMismatch"),
        Reason::GroupOutOfOrder
        | Reason::UnsupportedVersion
        | Reason::UnsupportedMsgType
        | Reason::ConditionallyRequiredMissing => None,
    }
}

#[test]
fn quickfix_rejects_the_same_messages_for_the_same_reasons() {
    for sound in &SOUND {
        let packages = [QUICKFIX, DICTIONARIES];
        let load = |file| {
            let mut oracle = Oracle::start(&packages, &["dictionary", file])?;
            let path = oracle.answers(std::iter::empty::<String>()).pop().unwrap();
            Some(Arc::new(Dictionary::load(path.as_ref()).unwrap()))
        };
        let Some(application) = load(sound.file) else { return };
        let dictionaries = match application.layer() {
            Layer::Application(version) => {
                let Some(session) = load("FIXT11") else { return };
                Dictionaries::fixt(session, [application], version)
            }
            _ => Dictionaries::one(sound.begin_string, application),
        }
        .unwrap();
        let validator = Validator::new(Level::Full, Some(dictionaries)).unwrap();

        let mut dice = Dice(3);
        let mut asked: Vec<Fields> = sound.messages.iter().map(|text| fields_of(text)).collect();
        for number in 0..4000 {
            asked.push(changed(&asked[number % sound.messages.len()], &mut dice));
        }
        let Some(mut oracle) = Oracle::start(&packages, &["validate", sound.file]) else { return };
        let encoded = asked.iter().map(|fields| STANDARD.encode(framed(sound.begin_string, fields)));
        let answers = oracle.answers(encoded);
        let mut same = 0;
        for (number, (fields, theirs)) in asked.iter().zip(answers).enumerate() {
            let ours = verdict(sound.begin_string, fields, &validator);
            let named =
                fields.iter().map(|(tag, value)| format!("{tag}={value}")).collect::<Vec<_>>().join("|");
            assert!(number >= sound.messages.len() || ours == "ok", "{}: {ours}: {named}", sound.file);
            match (ours == theirs, excuse(&ours, &theirs, fields)) {
                (true, _) => same += 1,
                (false, Some(_)) => {}
                (false, None) => panic!("{}: {ours} here, {theirs} there: {named}", sound.file),
            }
        }
        assert!(same > asked.len() * 4 / 5, "{}: {same} of {} say the same", sound.file, asked.len());
    }
}

/// What is said here, in QuickFIX's words.
fn verdict(begin_string: BeginString, fields: &Fields, validator: &Validator) -> String {
    let Ok(message) = parse(framed(begin_string, fields), validator.data_fields()) else {
        return "InvalidMessage 0".to_owned();
    };
    let Err(violation) = validator.check(&message) else { return "ok".to_owned() };
    let name =
        quickfix_name(violation.reason).map_or_else(|| format!("{:?}", violation.reason), str::to_owned);
    format!("{name} {}", violation.tag.unwrap_or(0))
}

/// Counters and fields of the groups in the messages above.
const OF_GROUPS: [&str; 14] =
    ["453", "448", "447", "452", "802", "523", "803", "386", "336", "33", "58", "267", "269", "146"];

/// Why both may say something else. What QuickFIX rejects is never taken here.
fn excuse(ours: &str, theirs: &str, fields: &Fields) -> Option<&'static str> {
    let (our_name, our_tag) = ours.split_once(' ')?;
    let their_name = theirs.split(' ').next()?;
    let value = |tag: &str| fields.iter().find(|field| field.0 == tag).map(|field| field.1.as_str());
    let in_a_group = OF_GROUPS.contains(&our_tag) || our_tag == "55";
    match (our_name, their_name) {
        (_, "ok") if in_a_group => {
            Some("QuickFIX looks at no values, no repetition and no order within groups")
        }
        ("IncorrectDataFormat", "ok") if value(our_tag) == Some("20260230-03:04:05") => {
            Some("QuickFIX knows no calendar")
        }
        ("RequiredTagMissing", "ok") if matches!(our_tag, "49" | "56" | "34" | "52") => {
            Some("QuickFIX does not ask FIXT's dictionary what a header needs; its session finds out")
        }
        (_, "ok") => None,
        (ours, theirs) if ours == theirs => {
            Some("several faults: QuickFIX goes by tags, the order here is the message's")
        }
        ("TagOutOfOrder", "InvalidMessage") if value("89").is_some() => {
            Some("data without a length is data up to SOH here")
        }
        ("InvalidTagNumber", "NoTagValue") => Some("both are right, of one field"),
        _ if fields.iter().any(|field| OF_GROUPS.contains(&field.0.as_str())) => {
            Some("a field that breaks a group makes several faults, see above")
        }
        _ => None,
    }
}
