use proptest::prelude::*;
use time::OffsetDateTime;
use time::macros::format_description;

use super::*;

fn id(first: u8) -> [u8; 16] {
    std::array::from_fn(|position| first.wrapping_add(position as u8))
}

/// Every field set, with strings that need every kind of escape.
fn full_leaf() -> Leaf<'static> {
    Leaf {
        attempt: Some(2),
        attempts: Some(u32::MAX),
        code: Some("queue_full".into()),
        content: Some([0xab; 32]),
        count: Some(INTEGER_MAX),
        deliveries: vec![
            LeafDelivery { id: id(1), to: "lab".into() },
            LeafDelivery { id: id(2), to: "ehr\u{1}\u{1f}".into() },
        ],
        delivery: Some(id(3)),
        destination: Some("a\"b\\c\u{8}\t\n\u{c}\r\u{7f}/é€\u{1f600}\u{2028}".into()),
        doubt: Some(false),
        evidence: Some([0x01; 32]),
        level: Some(Level::Transport),
        message: Some(id(4)),
        series: Some(0),
        session: Some(7),
        size: Some(0),
        state: Some(State::InDoubt),
        subject_of: Some("".into()),
        ..Leaf::new(1_795_423_812_123_456, By::new(ActorKind::Adapter, "lab"), Event::InDoubt)
    }
}

#[test]
fn the_encoding_is_pinned() {
    let small = Leaf::new(0, By::new(ActorKind::Gateway, "clinic-1"), Event::LogOpened);
    assert_eq!(
        String::from_utf8(small.encode().unwrap()).unwrap(),
        r#"{"at":"1970-01-01T00:00:00.000000Z","by":{"kind":"gateway","name":"clinic-1"},"event":"log_opened","v":1}"#
    );
    insta::assert_snapshot!(String::from_utf8(full_leaf().encode().unwrap()).unwrap());
}

/// An independent JSON library with sorted maps agrees on everything but the escapes that RFC 8785 leaves to it.
#[test]
fn the_encoding_is_json_with_sorted_keys() {
    let bytes = full_leaf().encode().unwrap();
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(serde_json::to_vec(&value).unwrap(), bytes);
    assert_eq!(value["destination"], full_leaf().destination.unwrap().as_ref());
    assert_eq!(value.as_object().unwrap().len(), 21, "a field is missing from this test");
}

#[test]
fn what_cannot_be_said_is_refused() {
    let leaf = |change: fn(&mut Leaf<'_>)| {
        let mut leaf = full_leaf();
        change(&mut leaf);
        leaf.encode().unwrap_err().to_string()
    };
    assert_eq!(leaf(|l| l.count = Some(INTEGER_MAX + 1)), r#""count" is not an integer up to 2^53-1"#);
    assert_eq!(leaf(|l| l.session = Some(u64::MAX)), r#""session" is not an integer up to 2^53-1"#);
    for code in ["", "Upper", "with space", "dash-ed", "é", &"a".repeat(41)] {
        let leaf = Leaf { code: Some(code.into()), ..full_leaf() };
        assert!(matches!(leaf.encode(), Err(LeafError::WrongValue { key: "code", .. })), "{code}");
    }
    for at in [-1, AT_US_MAX + 1, i64::MIN, i64::MAX] {
        let leaf = Leaf { at, ..full_leaf() };
        assert!(matches!(leaf.encode(), Err(LeafError::WrongValue { key: "at", .. })), "{at}");
    }
    let long = "x".repeat(ENTRY_BYTES_MAX);
    let leaf = Leaf { subject_of: Some(long.into()), ..full_leaf() };
    assert!(matches!(leaf.encode(), Err(LeafError::TooLong(bytes)) if bytes > ENTRY_BYTES_MAX));
}

#[test]
fn the_longest_leaf_is_read_back_and_one_byte_more_is_not_written() {
    let leaf = |chars: usize| Leaf {
        subject_of: Some("x".repeat(chars).into()),
        ..Leaf::new(0, By::new(ActorKind::Peer, ""), Event::Refused)
    };
    let room = ENTRY_BYTES_MAX - leaf(0).encode().unwrap().len();
    let longest = leaf(room).encode().unwrap();
    assert_eq!(longest.len(), ENTRY_BYTES_MAX);
    assert_eq!(Leaf::parse(&longest), Ok(leaf(room)));
    assert_eq!(leaf(room + 1).encode(), Err(LeafError::TooLong(ENTRY_BYTES_MAX + 1)));
    assert_eq!(Leaf::parse(&vec![b' '; ENTRY_BYTES_MAX + 1]), Err(LeafError::TooLong(ENTRY_BYTES_MAX + 1)));
}

/// Each line: what is changed in a good leaf, and what the reader says about it.
#[test]
fn a_bad_leaf_is_refused_by_name() {
    let good = r#"{"at":"2026-11-23T08:50:12.123456Z","by":{"kind":"app","name":"ehr"},"count":5,"doubt":true,"event":"accepted","v":1}"#;
    assert!(Leaf::parse(good.as_bytes()).is_ok());
    let cases = [
        (r#"{"at""#, r#" {"at""#, "it is not canonical JSON at byte 0"),
        (r#"{"at""#, r#"{ "at""#, "it is not canonical JSON at byte 1"),
        (r#""v":1}"#, r#""v":1} "#, "it is not canonical JSON at byte 117"),
        (r#""v":1}"#, r#""v":1"#, "it is not canonical JSON at byte 116"),
        (r#""v":1}"#, r#""v":1,}"#, "it is not canonical JSON at byte 117"),
        (r#""v":1}"#, r#""v":1,"v":1}"#, "it is not canonical JSON at byte 117"),
        (r#""v":1}"#, r#""v":1,"w":1}"#, r#"unknown key "w""#),
        (r#""v":1}"#, r#""v":2}"#, r#""v" is not 1, the version that this program reads"#),
        (r#","v":1}"#, r#"}"#, r#"the key "v" is missing"#),
        (r#""event":"accepted","#, "", r#"the key "event" is missing"#),
        (r#""at":"2026-11-23T08:50:12.123456Z","#, "", r#"the key "at" is missing"#),
        (r#""by":{"kind":"app","name":"ehr"},"#, "", r#"the key "by" is missing"#),
        (r#""accepted""#, r#""exploded""#, r#""exploded" is not a known event"#),
        (r#""accepted""#, r#"7"#, r#""event" is not a string"#),
        (r#""app""#, r#""cat""#, r#""cat" is not a known by.kind"#),
        (r#"{"kind":"app","name":"ehr"}"#, r#""ehr""#, r#""by" is not an object of kind and name"#),
        (r#""name":"ehr"}"#, r#""name":"ehr","age":5}"#, r#""by" is not an object of kind and name"#),
        (r#""count":5"#, r#""count":05"#, "it is not canonical JSON at byte 77"),
        (r#""count":5"#, r#""count":-5"#, r#""count" is not an integer up to 2^53-1"#),
        (r#""count":5"#, r#""count":5.0"#, r#""count" is not an integer up to 2^53-1"#),
        (r#""count":5"#, r#""count":5e0"#, r#""count" is not an integer up to 2^53-1"#),
        (r#""count":5"#, r#""count":"5""#, r#""count" is not an integer up to 2^53-1"#),
        (r#""count":5"#, r#""count":null"#, r#""count" is not an integer up to 2^53-1"#),
        (r#""count":5"#, r#""count":9007199254740992"#, r#""count" is not an integer up to 2^53-1"#),
        (r#""count":5"#, r#""attempt":4294967296"#, r#"it is not canonical JSON at byte 69"#),
        (r#""by""#, r#""attempt":4294967296,"by""#, r#""attempt" is not an integer below 2^32"#),
        (r#""count":5"#, r#""content":"ab""#, r#""content" is not 64 hexadecimal digits"#),
        (r#""count":5"#, r#""code":"No!""#, r#""code" is not a code of 1 to 40 characters a-z, 0-9 and _"#),
        (r#""count":5"#, r#""delivery":"0""#, r#""delivery" is not a UUID"#),
        (r#""count":5"#, r#""deliveries":[]"#, r#""deliveries" is not a list of objects of id and to"#),
        (r#""doubt":true"#, r#""doubt":1"#, r#""doubt" is not true or false"#),
        (r#""doubt":true,"#, r#""doubt":true,"level":"legal","#, r#""legal" is not a known level"#),
        (r#""ehr""#, r#""\u0065hr""#, "it is not canonical JSON at byte 63"),
        (r#""ehr""#, r#""e\/hr""#, r#""by.name" is not a string"#),
        (r#""ehr""#, "\"e\thr\"", "it is not canonical JSON at byte 64"),
        (r#""ehr""#, r#""e\u0009hr""#, "it is not canonical JSON at byte 65"),
        (r#""ehr""#, r#""e\u001Fhr""#, "it is not canonical JSON at byte 69"),
        ("2026-11-23T", "2026-02-29T", "it is not canonical JSON at byte 13"),
        ("08:50", "24:00", "it is not canonical JSON at byte 16"),
        (
            "12.123456Z",
            "12.123456+00:00",
            r#""at" is not a UTC time with six decimals between 1970 and 9999"#,
        ),
        ("12.123456Z", "12.123Z", r#""at" is not a UTC time with six decimals between 1970 and 9999"#),
        ("2026-11", "1969-11", r#""at" is not a UTC time with six decimals between 1970 and 9999"#),
    ];
    for (old, new, error) in cases {
        let bad = good.replacen(old, new, 1);
        assert_ne!(bad, good, "{old}");
        assert_eq!(Leaf::parse(bad.as_bytes()).unwrap_err().to_string(), error, "{bad}");
    }
    assert_eq!(Leaf::parse(b"{\"at\":\"\xff\"}"), Err(LeafError::NotUtf8));
}

#[test]
fn a_foreign_word_is_shown_short_and_escaped() {
    let bad = format!(
        r#"{{"at":"2026-11-23T08:50:12.123456Z","by":{{"kind":"app","name":"e"}},"event":"{}","v":1}}"#,
        "\u{1b}[2J\u{202e}x".repeat(40)
    );
    let message = Leaf::parse(bad.as_bytes()).unwrap_err().to_string();
    assert!(message.len() < 400 && !message.contains(['\u{1b}', '\u{202e}']), "{message}");
}

/// Every byte of a leaf replaced by every other byte: what is still accepted must be another leaf, not another
/// spelling of this one.
#[test]
fn no_leaf_has_a_second_spelling() {
    let leaf = full_leaf();
    let bytes = leaf.encode().unwrap();
    let mut changed = bytes.clone();
    for position in 0..bytes.len() {
        for byte in (0..=255u8).filter(|&byte| byte != bytes[position]) {
            changed[position] = byte;
            if let Ok(other) = Leaf::parse(&changed) {
                assert_ne!(other, leaf);
            }
        }
        changed[position] = bytes[position];
    }
}

#[test]
fn every_word_reads_back() {
    assert_eq!(Event::ALL.len(), 40);
    assert!(Event::ALL.iter().all(|&event| Event::from_word(event.as_str()) == Some(event)));
    assert!(State::ALL.iter().all(|&state| State::from_word(state.as_str()) == Some(state)));
    assert!(Level::ALL.iter().all(|&level| Level::from_word(level.as_str()) == Some(level)));
    assert!(ActorKind::ALL.iter().all(|&kind| ActorKind::from_word(kind.as_str()) == Some(kind)));
}

fn any_leaf() -> impl Strategy<Value = Leaf<'static>> {
    let text = || prop::option::of(any::<String>().prop_map(Cow::Owned));
    let integer = || prop::option::of(0..=INTEGER_MAX);
    let numbers =
        (any::<[Option<u32>; 3]>(), integer(), integer(), integer(), prop::option::of(any::<bool>()));
    let words = (
        prop::sample::select(Event::ALL),
        prop::sample::select(ActorKind::ALL),
        prop::option::of(prop::sample::select(State::ALL)),
        prop::option::of(prop::sample::select(Level::ALL)),
    );
    let texts = (any::<String>(), text(), text(), prop::option::of("[a-z0-9_]{1,40}"));
    let deliveries = prop::collection::vec((any::<[u8; 16]>(), any::<String>()), 0..4);
    let digests = any::<([Option<[u8; 32]>; 2], [Option<[u8; 16]>; 2])>();
    (0..=AT_US_MAX, numbers, words, texts, deliveries, digests).prop_map(
        |(
            at,
            (small, count, session, size, doubt),
            (event, kind, state, level),
            texts,
            deliveries,
            digests,
        )| {
            let (name, destination, subject_of, code) = texts;
            let ([content, evidence], [delivery, message]) = digests;
            let [attempt, attempts, series] = small;
            Leaf {
                attempt,
                attempts,
                code: code.map(Cow::Owned),
                content,
                count,
                deliveries: deliveries
                    .into_iter()
                    .map(|(id, to)| LeafDelivery { id, to: to.into() })
                    .collect(),
                delivery,
                destination,
                doubt,
                evidence,
                level,
                message,
                series,
                session,
                size,
                state,
                subject_of,
                ..Leaf::new(at, By::new(kind, name), event)
            }
        },
    )
}

proptest! {
    #[test]
    fn any_leaf_reads_back(leaf in any_leaf()) {
        let bytes = leaf.encode().unwrap();
        prop_assert_eq!(Leaf::parse(&bytes).unwrap(), leaf);
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(serde_json::to_vec(&value).unwrap(), bytes);
    }

    #[test]
    fn times_agree_with_the_time_crate(at in 0..=AT_US_MAX) {
        let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        let instant = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1_000).unwrap();
        let text = instant::format(at).unwrap();
        prop_assert_eq!(instant.format(&format).unwrap(), String::from_utf8_lossy(&text));
        prop_assert_eq!(instant::parse(std::str::from_utf8(&text).unwrap()), Some(at));
    }

    #[test]
    fn hostile_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..900usize) {
        let _ = Leaf::parse(&bytes);
        let mut leaf = full_leaf().encode().unwrap();
        leaf.truncate(cut);
        leaf.extend_from_slice(&bytes);
        let _ = Leaf::parse(&leaf);
    }
}
