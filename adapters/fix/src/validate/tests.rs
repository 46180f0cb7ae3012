use std::sync::Arc;

use super::*;
use crate::data_fields::DataFields;
use crate::dictionary::Dictionary;
use crate::version::{ApplVerId, BeginString};
use crate::wire::parse;

fn dictionary(text: &str) -> Arc<Dictionary> {
    Arc::new(Dictionary::parse(text).unwrap())
}

fn fix44() -> Dictionaries {
    let small = dictionary(include_str!("../../tests/dictionaries/small-fix44.xml"));
    Dictionaries::one(BeginString::Fix44, small).unwrap()
}

fn fixt() -> Dictionaries {
    Dictionaries::fixt(
        dictionary(include_str!("../../tests/dictionaries/small-fixt11.xml")),
        [
            dictionary(include_str!("../../tests/dictionaries/small-fix50sp2.xml")),
            dictionary(include_str!("../../tests/dictionaries/small-fix44.xml")),
        ],
        ApplVerId::Fix50Sp2,
    )
    .unwrap()
}

/// The message with these fields behind 9; `|` stands for SOH.
fn message(begin_string: &str, fields: &str) -> Message {
    let fields = fields.replace('|', "\x01");
    let head = format!("8={begin_string}\x019={}\x01{fields}", fields.len());
    let sum = head.bytes().fold(0u8, u8::wrapping_add);
    let mut data_fields = DataFields::default();
    data_fields.add(9001, 9002);
    parse(format!("{head}10={sum:03}\x01").into(), &data_fields).unwrap()
}

const HEADER: &str = "49=TW44|56=ISLD|34=2|52=20260102-03:04:05.678|";
const ORDER: &str = "11=ID|21=3|55=INTC|54=1|60=20260102-03:04:05|38=200|40=1|";

/// `D` behind the usual header.
fn order(fields: &str) -> String {
    format!("35=D|{HEADER}{fields}")
}

fn check(validator: &Validator, fields: &str) -> Result<(), (Reason, Option<i64>)> {
    validator.check(&message("FIX.4.4", fields)).map_err(|violation| (violation.reason, violation.tag))
}

/// What each level says. Where it is the same for both it is written once.
struct Row {
    fields: String,
    structure: Option<(Reason, Option<i64>)>,
    full: Option<(Reason, Option<i64>)>,
}

fn both(fields: impl Into<String>, reason: Reason, tag: i64) -> Row {
    let violation = Some((reason, Some(tag)));
    Row { fields: fields.into(), structure: violation, full: violation }
}

fn full(fields: impl Into<String>, reason: Reason, tag: i64) -> Row {
    Row { fields: fields.into(), structure: None, full: Some((reason, Some(tag))) }
}

/// Where nobody asks for the field, its group is counted wrong.
fn full_over_count(fields: String, reason: Reason, tag: i64, counter: i64) -> Row {
    let structure = Some((Reason::GroupCount, Some(counter)));
    Row { fields, structure, full: Some((reason, Some(tag))) }
}

fn fine(fields: impl Into<String>) -> Row {
    Row { fields: fields.into(), structure: None, full: None }
}

fn run(rows: &[Row]) {
    let none = Validator::new(Level::None, Some(fix44())).unwrap();
    let structure = Validator::new(Level::Structure, Some(fix44())).unwrap();
    let full = Validator::new(Level::Full, Some(fix44())).unwrap();
    for row in rows {
        assert_eq!(check(&none, &row.fields), Ok(()), "none: {}", row.fields);
        assert_eq!(check(&structure, &row.fields).err(), row.structure, "structure: {}", row.fields);
        assert_eq!(check(&full, &row.fields).err(), row.full, "full: {}", row.fields);
    }
}

#[test]
fn each_rule_and_its_scripts() {
    let heartbeat = |fields: &str| format!("35=0|{HEADER}{fields}");
    run(&[
        fine(order(ORDER)),
        fine(heartbeat("")),
        // 14a: numbers that are no field of the specification.
        full(heartbeat("999=HI|"), Reason::InvalidTagNumber, 999),
        both(heartbeat("0=HI|"), Reason::InvalidTagNumber, 0),
        both(heartbeat("-1=HI|"), Reason::InvalidTagNumber, -1),
        both(heartbeat("0112=HI|"), Reason::InvalidTagNumber, 112),
        full(heartbeat("5000=HI|"), Reason::InvalidTagNumber, 5000),
        // 14b: required fields, first of the header, then of the body.
        both("35=0|49=TW44|34=2|52=20260102-03:04:05|", Reason::RequiredTagMissing, 56),
        both("35=0|56=ISLD|34=2|52=20260102-03:04:05|", Reason::RequiredTagMissing, 49),
        full(order("11=id|21=3|54=1|60=20260102-03:04:05|40=1|"), Reason::RequiredTagMissing, 55),
        full(order("21=3|55=A|54=1|60=20260102-03:04:05|40=1|"), Reason::RequiredTagMissing, 11),
        // 14c: a field of another message.
        full(heartbeat("55=MSFT|"), Reason::NotDefinedForMessage, 55),
        full("35=0|49=TW44|56=ISLD|34=2|52=20260102-03:04:05|142=X|", Reason::InvalidTagNumber, 142),
        // 14d: a field without a value.
        both("35=0|49=TW44|34=2|52=20260102-03:04:05|56=|", Reason::NoValue, 56),
        both(order(&format!("{ORDER}58=|")), Reason::NoValue, 58),
        // 14e: a value that is not among those listed.
        full(order(&ORDER.replace("21=3", "21=4")), Reason::ValueIncorrect, 21),
        full(order(&ORDER.replace("55=INTC|", "55=INTC|167=BOO|")), Reason::ValueIncorrect, 167),
        fine(order(&ORDER.replace("55=INTC|", "55=INTC|167=CS|"))),
        full(order(&ORDER.replace("21=3|", "21=3|18=1 X|")), Reason::ValueIncorrect, 18),
        fine(order(&ORDER.replace("21=3|", "21=3|18=1 G|"))),
        // 14f: a value that has not the form of its type.
        full(order(&ORDER.replace("38=200", "38=+200.00")), Reason::BadFormat, 38),
        full(order(&ORDER.replace("54=1", "54=11")), Reason::BadFormat, 54),
        full(order(&ORDER.replace("60=20260102-03:04:05", "60=20260102")), Reason::BadFormat, 60),
        fine(order(&format!("{ORDER}15=USDT|"))),
        full("35=0|49=TW44|56=ISLD|34=x|52=20260102-03:04:05|", Reason::BadFormat, 34),
        full("35=0|49=TW44|56=ISLD|34=2|52=yesterday|", Reason::BadFormat, 52),
        // 14g: header, body, trailer.
        both("35=D|11=id|34=2|49=TW|52=20260102-03:04:05|56=ISLD|", Reason::OutOfOrder, 34),
        both("35=D|55=MSFT|34=3|49=TW|52=20260102-03:04:05|56=ISLD|11=id|", Reason::OutOfOrder, 34),
        both(order("11=id|93=1|89=x|58=y|"), Reason::OutOfOrder, 58),
        both(order("11=id|93=1|89=x|43=Y|"), Reason::OutOfOrder, 43),
        fine(order(&format!("{ORDER}93=1|89=x|"))),
        // 14h: a field twice, in each part.
        both(order(&ORDER.replace("40=1|", "40=1|40=2|")), Reason::Twice, 40),
        both(order(&format!("{ORDER}11=ID|")), Reason::Twice, 11),
        both("35=0|49=TW44|56=ISLD|34=2|34=3|52=20260102-03:04:05|", Reason::Twice, 34),
        // 15: within header and body the order is free.
        fine("35=D|52=20260102-03:04:05|34=2|56=ISLD|49=TW44|40=1|60=20260102-03:04:05|54=1|55=A|11=ID|"),
        // FIX 4.0 lets some fields stand several times.
        fine(format!("35=B|{HEADER}148=h|33=1|58=a|46=IBM|46=MSFT|")),
    ]);
}

#[test]
fn groups_by_the_book() {
    let with = |group: &str| order(&ORDER.replace("55=INTC|", &format!("{group}55=INTC|")));
    run(&[
        // 14i: the count.
        both(with("386=3|336=PRE-OPEN|336=AFTER-HOURS|"), Reason::GroupCount, 386),
        both(with("386=1|336=PRE-OPEN|336=AFTER-HOURS|"), Reason::GroupCount, 386),
        both(with("386=2|"), Reason::GroupCount, 386),
        both(with("386=0|336=PRE-OPEN|"), Reason::GroupCount, 386),
        fine(with("386=2|336=PRE-OPEN|336=AFTER-HOURS|")),
        fine(with("386=2|336=PRE-OPEN|625=A|336=AFTER-HOURS|625=B|")),
        // 21: a count of zero is no entry.
        fine(with("386=0|")),
        both(with("386=two|336=A|336=B|"), Reason::BadFormat, 386),
        both(with("386=-1|"), Reason::BadFormat, 386),
        both(with("386=99999999999999999999|336=A|"), Reason::BadFormat, 386),
        both(with("386=|336=A|"), Reason::NoValue, 386),
        // An entry begins with the group's first field.
        both(with("386=1|625=A|336=PRE-OPEN|"), Reason::GroupOutOfOrder, 625),
        // A field twice within an entry.
        both(with("386=1|336=A|625=B|625=C|"), Reason::Twice, 625),
        // Entries of a group without its count.
        full(with("336=A|"), Reason::NotDefinedForMessage, 336),
        // The order within an entry, and what an entry has to have.
        full(with("453=1|448=X|452=1|447=D|"), Reason::GroupOutOfOrder, 447),
        full(with("453=1|448=X|447=D|"), Reason::RequiredTagMissing, 452),
        full(with("453=2|448=X|452=1|448=Y|"), Reason::RequiredTagMissing, 452),
        fine(with("453=1|448=X|452=1|")),
        full(with("453=1|448=X|452=x|"), Reason::BadFormat, 452),
        // What ends a group before its time is told, not the count that is wrong for it.
        both(with("386=2|336=A|21=1|336=B|"), Reason::GroupCount, 386),
        full_over_count(with("386=2|336=A|112=y|336=B|"), Reason::NotDefinedForMessage, 112, 386),
        full_over_count(with("386=2|336=A|999=y|336=B|"), Reason::InvalidTagNumber, 999, 386),
        both(with("386=2|336=A|-3=y|336=B|"), Reason::InvalidTagNumber, -3),
        full_over_count(
            with("453=2|448=X|452=1|802=2|523=a|999=y|523=b|448=Y|452=1|"),
            Reason::InvalidTagNumber,
            999,
            802,
        ),
        // Groups in groups.
        fine(with("453=2|448=X|447=D|452=1|802=2|523=a|803=1|523=b|448=Y|452=3|")),
        both(with("453=1|448=X|452=1|802=3|523=a|803=1|523=b|"), Reason::GroupCount, 802),
        both(with("453=2|448=X|452=1|802=1|803=1|523=b|448=Y|452=3|"), Reason::GroupOutOfOrder, 803),
        // In the header.
        fine("35=0|49=T|56=I|34=2|52=20260102-03:04:05|627=2|628=A|630=1|628=B|630=2|"),
        both(
            "35=0|49=T|56=I|34=2|52=20260102-03:04:05|627=1|628=A|630=1|628=B|630=2|",
            Reason::GroupCount,
            627,
        ),
        // A group that is required, and its own required field.
        full(format!("35=B|{HEADER}148=h|"), Reason::RequiredTagMissing, 33),
        // What is missing is told before what is out of order.
        Row {
            fields: format!("35=B|{HEADER}148=h|33=1|354=1|355=x|58=y|"),
            structure: Some((Reason::GroupOutOfOrder, Some(354))),
            full: Some((Reason::RequiredTagMissing, Some(58))),
        },
        fine(format!("35=B|{HEADER}148=h|33=0|")),
    ]);
}

#[test]
fn data_by_the_book() {
    run(&[
        fine(order(&format!("{ORDER}58=x|354=3|355=a|b|"))),
        fine(order(&format!("{ORDER}9001=3|9002=a|b|"))),
        fine(format!("35=A|{HEADER}98=0|108=30|95=0|96=|")),
        both(format!("35=A|{HEADER}98=0|108=30|96=|"), Reason::NoValue, 96),
        full(order(&format!("{ORDER}354=x|355=ab|")), Reason::BadFormat, 354),
    ]);
}

#[test]
fn a_component_that_is_there_has_to_be_whole() {
    let with = |fields: &str| order(&ORDER.replace("55=INTC|", &format!("55=INTC|{fields}")));
    run(&[
        fine(with("235=AFTERTAX|236=0.05|")),
        fine(with("235=AFTERTAX|")),
        full(with("236=0.05|"), Reason::ConditionallyRequiredMissing, 235),
    ]);
    assert_eq!(Reason::ConditionallyRequiredMissing.business_code(), Some(5));
}

#[test]
fn types_of_messages() {
    // 2q: one that the dictionary does not have.
    let validator = Validator::new(Level::Structure, Some(fix44())).unwrap();
    assert_eq!(check(&validator, &format!("35=*|{HEADER}")), Err((Reason::InvalidMsgType, None)));
    assert_eq!(check(&validator, &format!("35=DD|{HEADER}")), Err((Reason::InvalidMsgType, None)));
    // 2r: one that this side does not take.
    for level in [Level::None, Level::Structure, Level::Full] {
        let validator = Validator::new(level, Some(fix44())).unwrap().taking_only(vec!["B".to_owned()]);
        assert_eq!(check(&validator, &order(ORDER)), Err((Reason::UnsupportedMsgType, None)), "{level:?}");
        assert_eq!(check(&validator, &format!("35=B|{HEADER}148=h|33=1|58=a|")), Ok(()));
        assert_eq!(check(&validator, &format!("35=0|{HEADER}")), Ok(()));
    }
}

#[test]
fn user_fields_that_nobody_knows_may_pass() {
    let validator = Validator::new(Level::Full, Some(fix44())).unwrap().allowing_unknown_user_fields();
    assert_eq!(check(&validator, &order(&format!("{ORDER}5000=x|"))), Ok(()));
    let within = "453=2|448=X|452=1|7777=q|448=Y|8888=r|452=2|";
    assert_eq!(
        check(&validator, &order(&format!("11=A|{within}55=B|54=1|60=20260102-03:04:05|40=1|"))),
        Ok(())
    );
    assert_eq!(
        check(&validator, &order(&format!("{ORDER}4999=x|"))),
        Err((Reason::InvalidTagNumber, Some(4999)))
    );
    assert_eq!(check(&validator, &order(&format!("{ORDER}5000=|"))), Err((Reason::NoValue, Some(5000))));
    // One that the dictionary knows, in a message that does not have it.
    let heartbeat = format!("35=0|{HEADER}9100=x|");
    assert_eq!(check(&validator, &heartbeat), Ok(()), "a field of the venue's header");
    let heartbeat = format!("35=0|{HEADER}9002=x|");
    assert_eq!(check(&validator, &heartbeat), Err((Reason::NotDefinedForMessage, Some(9002))));
}

#[test]
fn without_a_dictionary_structure_is_what_every_version_has() {
    let validator = Validator::new(Level::Structure, None).unwrap();
    let rows = [
        (order("11=a|11=b|5000=x|"), Ok(())),
        (format!("35=ZZ|{HEADER}"), Ok(())),
        ("35=0|49=T|56=I|34=2|52=x|627=2|628=A|628=B|".to_owned(), Ok(())),
        ("35=0|49=T|56=I|52=x|".to_owned(), Err((Reason::RequiredTagMissing, Some(34)))),
        ("35=0|49=T|56=I|34=1|34=2|52=x|".to_owned(), Err((Reason::Twice, Some(34)))),
        (order("11=|"), Err((Reason::NoValue, Some(11)))),
        (order("95=0|96=|"), Ok(())),
        (order("-7=x|"), Err((Reason::InvalidTagNumber, Some(-7)))),
        ("35=D|11=a|34=2|49=T|56=I|52=x|".to_owned(), Err((Reason::OutOfOrder, Some(34)))),
    ];
    for (fields, expected) in rows {
        assert_eq!(check(&validator, &fields), expected, "{fields}");
    }
    assert_eq!(Validator::new(Level::Full, None).unwrap_err(), NoDictionary);
}

#[test]
fn fixt_has_a_dictionary_for_each_layer() {
    let validator = Validator::new(Level::Full, Some(fixt())).unwrap();
    let check = |fields: &str| {
        let checked = validator.check(&message("FIXT.1.1", fields));
        checked.map_err(|violation| (violation.reason, violation.tag))
    };
    let header = "49=T|56=I|34=2|52=20260102-03:04:05|";
    let request = |version: &str| format!("35=g|{version}{header}335=a|263=1|");
    assert_eq!(check(&format!("35=0|{header}112=x|")), Ok(()));
    assert_eq!(check(&request("")), Ok(()));
    assert_eq!(check(&request("1128=9|")), Ok(()));
    assert_eq!(check(&request("1128=8|")), Err((Reason::UnsupportedVersion, Some(1128))));
    assert_eq!(check(&request("1128=6|")), Err((Reason::InvalidMsgType, None)));
    assert_eq!(check(&format!("35=D|1128=6|{header}{ORDER}")), Ok(()));
    assert_eq!(check(&format!("35=g|{header}335=a|263=7|")), Err((Reason::ValueIncorrect, Some(263))));
    assert_eq!(
        check("35=g|49=T|34=2|52=20260102-03:04:05|335=a|263=1|"),
        Err((Reason::RequiredTagMissing, Some(56)))
    );
}

#[test]
fn the_first_rule_in_order_is_told() {
    let validator = Validator::new(Level::Full, Some(fix44())).unwrap();
    // Each of these breaks the rule that is told and all that follow it.
    let rows = [
        ("35=*|11=|34=2|", Reason::OutOfOrder),
        ("35=*|34=2|11=|", Reason::InvalidMsgType),
        ("35=D|34=x|11=|236=1|", Reason::RequiredTagMissing),
    ];
    for (fields, reason) in rows {
        assert_eq!(check(&validator, fields).unwrap_err().0, reason, "{fields}");
    }
    let fields = order(&ORDER.replace("55=INTC|", "55=INTC|236=x|"));
    assert_eq!(check(&validator, &fields), Err((Reason::BadFormat, Some(236))));
    let header_first = order(ORDER).replace("34=2", "34=x").replace("38=200", "38=x");
    assert_eq!(check(&validator, &header_first), Err((Reason::BadFormat, Some(34))));
}

#[test]
fn versions_know_different_reasons() {
    let rows = [
        (Reason::NoValue, [None, None, Some(4), Some(4), Some(4), Some(4)]),
        (Reason::InvalidMsgType, [None, None, Some(11), Some(11), Some(11), Some(11)]),
        (Reason::Twice, [None, None, None, Some(13), Some(13), Some(13)]),
        (Reason::GroupCount, [None, None, None, Some(16), Some(16), Some(16)]),
        (Reason::UnsupportedVersion, [None, None, None, None, None, Some(18)]),
        (Reason::UnsupportedMsgType, [None; 6]),
    ];
    for (reason, codes) in rows {
        assert_eq!(BeginString::ALL.map(|version| reason.session_code_in(version)), codes, "{reason:?}");
    }
    assert_eq!(Reason::UnsupportedMsgType.business_code(), Some(3));
    assert_eq!(Reason::Twice.business_code(), None);
}

#[test]
fn many_entries_take_linear_time() {
    // A scan of all earlier fields for each one would be 10^10 steps.
    let entries = "336=A|625=B|".repeat(50_000);
    let fields = order(&ORDER.replace("55=INTC|", &format!("386=50000|{entries}55=INTC|")));
    assert_eq!(check(&Validator::new(Level::Full, Some(fix44())).unwrap(), &fields), Ok(()));
}
