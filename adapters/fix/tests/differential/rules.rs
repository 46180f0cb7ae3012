//! Messages against a dictionary: what QuickFIX rejects, and for which reason.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gatepost_fix::dictionary::{Dictionaries, Dictionary, Layer};
use gatepost_fix::validate::{Level, Reason, Validator};
use gatepost_fix::version::BeginString;
use gatepost_fix::wire::parse;

use crate::oracle::Oracle;
use crate::{DICTIONARIES, Dice, Fields, QUICKFIX, fields_of, framed};

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
