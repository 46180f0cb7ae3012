use super::*;
use crate::dictionary::{Dictionaries, Mismatch};
use crate::version::ApplVerId;

const SMALL_FIX44: &str = include_str!("../../../tests/dictionaries/small-fix44.xml");

fn small() -> Dictionary {
    Dictionary::parse(SMALL_FIX44).unwrap()
}

fn tags(layout: &Layout) -> Vec<Tag> {
    layout.slots().iter().map(|slot| slot.tag).collect()
}

#[test]
fn what_the_file_says_is_found() {
    let dictionary = small();
    assert_eq!(dictionary.layer(), Layer::Both(BeginString::Fix44));
    assert_eq!(dictionary.tag("Side"), Some(54));
    assert_eq!(dictionary.tag("side"), None);
    let side = dictionary.field(54).unwrap();
    assert_eq!((side.name.as_str(), side.kind, side.meaning(b"1")), ("Side", Type::Char, Some("BUY")));
    assert!(side.allows(b"2") && !side.allows(b"3"));
    let exec_inst = dictionary.field(18).unwrap();
    assert!(exec_inst.allows(b"1 G") && !exec_inst.allows(b"1 x") && !exec_inst.allows(b""));
    assert!(dictionary.field(58).unwrap().allows(b"anything"));
    assert_eq!(dictionary.message(b"D").unwrap().name, "NewOrderSingle");
    assert!(dictionary.message(b"8").is_none());
    assert!(dictionary.message(b"n").unwrap().body.slots().is_empty());
    assert_eq!(tags(dictionary.trailer()), [93, 89, 10]);
    assert_eq!(dictionary.header().required(), [8, 9, 35, 49, 56, 34, 52]);
}

#[test]
fn components_dissolve_and_groups_nest() {
    let dictionary = small();
    let order = &dictionary.message(b"D").unwrap().body;
    assert_eq!(
        tags(order),
        [11, 453, 21, 18, 386, 55, 167, 235, 236, 54, 60, 38, 40, 44, 15, 58, 354, 355, 9001, 9002]
    );
    // What a component needs is needed where the component is.
    assert_eq!(order.required(), [11, 55, 54, 60, 40]);
    let conditions: Vec<_> =
        order.conditions().map(|when| (when.fields.clone(), when.required.clone())).collect();
    assert_eq!(conditions, [(vec![235, 236], vec![235])]);
    let parties = order.slot(453).unwrap().group.as_ref().unwrap();
    assert_eq!(
        (tags(parties), parties.delimiter(), parties.required()),
        (vec![448, 447, 452, 802], Some(448), &[452][..])
    );
    let sub = parties.slot(802).unwrap().group.as_ref().unwrap();
    assert_eq!((tags(sub), sub.delimiter()), (vec![523, 803], Some(523)));
    assert!(dictionary.message(b"B").unwrap().body.slot(46).unwrap().repeats);
}

#[test]
fn data_fields_are_known_by_name_and_by_the_specification() {
    let dictionary = small();
    assert_eq!(dictionary.data_fields().announced_by(9001), Some(9002));
    assert_eq!(dictionary.data_fields().announced_by(95), Some(96));
}

/// A file around `what`, whose line is the third.
fn around(section: &str, what: &str) -> String {
    let fields = "<fields>\n<field number='1' name='Account' type='STRING'/>\n\
                  <field number='2' name='AdvId' type='STRING'/></fields>";
    match section {
        "fields" => format!("<fix major='4' minor='4'>\n<fields>\n{what}</fields></fix>"),
        "" => format!("<fix major='4' minor='4'>\n\n{what}{fields}</fix>"),
        section => format!("<fix major='4' minor='4'>\n<{section}>\n{what}</{section}>{fields}</fix>"),
    }
}

#[test]
fn a_fault_says_where_and_what() {
    let message = |body: &str| format!("<message name='M' msgtype='M'>{body}</message>");
    let field = "<field number='1' name='Account' type='STRING'/>";
    let rows = [
        ("fields", "<field name='A' type='INT'/>".to_owned(), "<field> has no number"),
        ("fields", "<field number='1' type='INT'/>".to_owned(), "<field> has no name"),
        ("fields", "<field number='1' name='A'/>".to_owned(), "<field> has no type"),
        ("fields", "<field number='0' name='A' type='INT'/>".to_owned(), "the number \"0\" is no tag"),
        ("fields", "<field number='1000000000' name='A' type='INT'/>".to_owned(), "is no tag"),
        ("fields", "<field number='x' name='A' type='INT'/>".to_owned(), "the number \"x\" is no tag"),
        (
            "fields",
            format!("{field}<field number='2' name='Account' type='INT'/>"),
            "two fields named \"Account\"",
        ),
        ("fields", format!("{field}<field number='1' name='B' type='INT'/>"), "two fields with the number 1"),
        (
            "fields",
            "<field number='1' name='A' type='INT'><value/></field>".to_owned(),
            "<value> has no enum",
        ),
        ("fields", "<group name='A'/>".to_owned(), "<group> stands where only <field> may"),
        ("fields", String::new(), "there is no <fields> with a <field> in it"),
        ("messages", message("<field name='Nobody'/>"), "the field \"Nobody\" is not among <fields>"),
        ("messages", message("<field/>"), "<field> has no name"),
        ("messages", message("<component name='C'/>"), "the component \"C\" is not among <components>"),
        ("messages", message("<group name='Account'/>"), "the group \"Account\" has no fields"),
        (
            "messages",
            message("<fields name='Account'/>"),
            "<fields> stands where only <field>, <group>, <component> may",
        ),
        ("messages", "<message name='M'/>".to_owned(), "<message> has no msgtype"),
        ("messages", message("") + &message(""), "two messages with the msgtype \"M\""),
        ("components", "<component name='C'/><component name='C'/>".to_owned(), "two components \"C\""),
        ("", "<header/><header/>".to_owned(), "there are two <header>"),
    ];
    for (section, what, expected) in rows {
        let fault = Dictionary::parse(&around(section, &what)).unwrap_err();
        assert!(fault.what.contains(expected), "{what}: {fault:?}");
        let line = if expected.contains("no <fields>") { 1 } else { 3 };
        assert_eq!(fault.line, line, "{what}: {fault:?}");
    }
    for (root, expected) in [
        ("<fix minor='4'/>", "<fix> has no major"),
        ("<fix major='4'/>", "<fix> has no minor"),
        ("<fix major='4' minor='5'/>", "there is no version \"FIX.4.5\""),
        ("<fix type='FIXT' major='1' minor='2'/>", "there is no version \"FIXT.1.2\""),
        ("<fix major='5' minor='0' servicepack='3'/>", "there is no version \"FIX.5.0SP3\""),
        ("<fixml/>", "the root is <fixml>"),
        ("<fix major='4' minor='4'>", "is not XML"),
        ("", "is not XML"),
    ] {
        let fault = Dictionary::parse(root).unwrap_err();
        assert!(fault.what.contains(expected), "{root}: {fault:?}");
        assert_eq!(fault.line, 1, "{root}");
    }
}

#[test]
fn a_document_type_is_refused_and_with_it_every_entity() {
    for declared in [
        "<!DOCTYPE fix SYSTEM 'file:///etc/passwd'>",
        "<!DOCTYPE fix [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>",
        "<!DOCTYPE fix [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]>",
    ] {
        let fault = Dictionary::parse(&format!("{declared}{}", around("", ""))).unwrap_err();
        assert!(fault.what.contains("DTD"), "{fault:?}");
    }
    let fault = Dictionary::parse(&around("", "<!-- x -->&x;")).unwrap_err();
    assert!(fault.what.contains("is not XML"), "{fault:?}");
}

#[test]
fn components_that_name_each_other_come_to_an_end() {
    let around = |components: &str| {
        let fields = "<fields><field number='1' name='A' type='INT'/></fields>";
        let message = "<messages><message name='M' msgtype='M'><component name='C0'/></message></messages>";
        format!("<fix major='4' minor='4'>{fields}{message}<components>{components}</components></fix>")
    };
    let circle = "<component name='C0'><component name='C1'/></component><component name='C1'><component name='C0'/></component>";
    let fault = Dictionary::parse(&around(circle)).unwrap_err();
    assert!(fault.what.contains("more than 32 deep"), "{fault:?}");
    // Each one holds the next twice: without end to those that count them one by one.
    let doubling: String = (0..31)
        .map(|number| {
            let next = format!("<component name='C{}'/>", number + 1);
            format!("<component name='C{number}'>{next}{next}</component>")
        })
        .chain(["<component name='C31'><field name='A'/></component>".to_owned()])
        .collect();
    let dictionary = Dictionary::parse(&around(&doubling)).unwrap();
    assert_eq!(tags(&dictionary.message(b"M").unwrap().body), [1]);
}

#[test]
fn groups_nest_so_deep_and_no_deeper() {
    let nested = |depth: usize| {
        let open = "<group name='Account'><field name='AdvId'/>".repeat(depth);
        around(
            "messages",
            &format!("<message name='M' msgtype='M'>{open}{}</message>", "</group>".repeat(depth)),
        )
    };
    Dictionary::parse(&nested(DEPTH_MAX)).unwrap();
    let fault = Dictionary::parse(&nested(DEPTH_MAX + 1)).unwrap_err();
    assert!(fault.what.contains("more than 32 deep"), "{fault:?}");
    // Elements that nobody asks for, as deep as the size allows: no stack is used up.
    let depth = 200_000;
    let fault = Dictionary::parse(&around("", &("<a>".repeat(depth) + &"</a>".repeat(depth))));
    assert!(fault.is_ok());
}

#[test]
fn sizes_are_bounded() {
    let many = "<a/>".repeat(NODES_MAX as usize + 1);
    let fault = Dictionary::parse(&around("", &many)).unwrap_err();
    assert!(fault.what.contains("nodes limit"), "{fault:?}");
    let long = " ".repeat(usize::try_from(DICTIONARY_BYTES_MAX).unwrap());
    let fault = Dictionary::parse(&around("", &long)).unwrap_err();
    assert!(fault.what.contains("larger than"), "{fault:?}");
    // Fields that a few components put into many messages.
    let fields: String =
        (1..=5000).map(|tag| format!("<field number='{tag}' name='F{tag}' type='INT'/>")).collect();
    let used: String = (1..=5000).map(|tag| format!("<field name='F{tag}'/>")).collect();
    let messages: String = (0..120)
        .map(|number| format!("<message name='M' msgtype='{number}'><component name='C'/></message>"))
        .collect();
    let fault = Dictionary::parse(&format!(
        "<fix major='4' minor='4'><fields>{fields}</fields><messages>{messages}</messages>\
         <components><component name='C'>{used}</component></components></fix>"
    ))
    .unwrap_err();
    assert!(fault.what.contains("more than 500000 fields"), "{fault:?}");
}

#[test]
fn a_file_that_is_none_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fix44.xml");
    let said = |path: &Path| Dictionary::load(path).unwrap_err().to_string();
    assert!(said(&path).starts_with(&format!("{}: cannot be opened: ", path.display())));
    assert!(said(directory.path()).contains("cannot be read: "));
    std::fs::write(&path, b"<fix>\xff</fix>").unwrap();
    assert_eq!(said(&path), format!("{}: is not UTF-8 from byte 5 on", path.display()));
    std::fs::write(&path, "\n\n<fix major='4' minor='9'/>").unwrap();
    assert!(said(&path).starts_with(&format!("{}:3: there is no version", path.display())));
    std::fs::write(&path, SMALL_FIX44).unwrap();
    Dictionary::load(&path).unwrap();
}

#[test]
fn a_session_takes_the_dictionaries_of_its_version() {
    let fix44 = || Arc::new(small());
    let fixt =
        Arc::new(Dictionary::parse(include_str!("../../../tests/dictionaries/small-fixt11.xml")).unwrap());
    let sp2 =
        Arc::new(Dictionary::parse(include_str!("../../../tests/dictionaries/small-fix50sp2.xml")).unwrap());
    assert_eq!(sp2.layer(), Layer::Application(ApplVerId::Fix50Sp2));

    let one = Dictionaries::one(BeginString::Fix44, fix44()).unwrap();
    assert!(one.of_message(b"D", None).unwrap().message(b"D").is_some());
    let mismatch = Mismatch::Version { session: "FIX.4.2", dictionary: "FIX.4.4" };
    assert_eq!(Dictionaries::one(BeginString::Fix42, fix44()).unwrap_err(), mismatch);
    let mismatch = Mismatch::Version { session: "FIXT.1.1", dictionary: "FIXT.1.1" };
    assert_eq!(Dictionaries::one(BeginString::Fixt11, Arc::clone(&fixt)).unwrap_err(), mismatch);

    let both = [Arc::clone(&sp2), fix44()];
    let all = Dictionaries::fixt(Arc::clone(&fixt), both, ApplVerId::Fix50Sp2).unwrap();
    let of = |msg_type: &[u8], version| all.of_message(msg_type, version).map(Dictionary::layer);
    assert_eq!(of(b"0", None), Some(Layer::Transport));
    assert_eq!(of(b"g", None), Some(Layer::Application(ApplVerId::Fix50Sp2)));
    assert_eq!(of(b"D", Some(b"6")), Some(Layer::Both(BeginString::Fix44)));
    assert_eq!(of(b"D", Some(b"7")), None);
    assert_eq!(of(b"D", Some(b"x")), None);
    assert_eq!(all.data_fields().announced_by(9001), Some(9002));

    let transport = || Arc::clone(&fixt);
    let refused = |applications: Vec<Arc<Dictionary>>, default| {
        Dictionaries::fixt(transport(), applications, default).unwrap_err()
    };
    assert_eq!(refused(vec![], ApplVerId::Fix50), Mismatch::NoDefault("FIX.5.0"));
    assert_eq!(
        refused(vec![Arc::clone(&sp2), Arc::clone(&sp2)], ApplVerId::Fix50Sp2),
        Mismatch::Twice("FIX.5.0SP2")
    );
    assert_eq!(
        refused(vec![transport()], ApplVerId::Fix50),
        Mismatch::NotApplication { dictionary: "FIXT.1.1" }
    );
    let mismatch = Mismatch::Version { session: "FIXT.1.1", dictionary: "FIX.4.4" };
    assert_eq!(Dictionaries::fixt(fix44(), [sp2], ApplVerId::Fix50Sp2).unwrap_err(), mismatch);
}
