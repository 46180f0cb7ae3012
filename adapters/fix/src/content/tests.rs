use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::dictionary::Dictionary;
use crate::message::Message;
use crate::value;
use crate::wire::parse;

fn dictionaries() -> Dictionaries {
    let small = Dictionary::parse(include_str!("../../tests/dictionaries/small-fix44.xml")).unwrap();
    Dictionaries::one(BeginString::Fix44, Arc::new(small)).unwrap()
}

/// With a dictionary and without one.
fn read_as(media_type: &str, content: &[u8], with_dictionary: bool) -> Result<Outgoing, ContentError> {
    let dictionaries = with_dictionary.then(dictionaries);
    let data_fields = dictionaries.as_ref().map(Dictionaries::data_fields).unwrap_or_default();
    let form = Form {
        begin_string: BeginString::Fix44,
        dictionaries: dictionaries.as_ref(),
        data_fields: &data_fields,
        session_header: &[tag::SENDER_SUB_ID],
    };
    Outgoing::read(Some(media_type), content, &form)
}

fn body(outgoing: &Outgoing) -> String {
    text(outgoing.body()).replace('\x01', "|")
}

fn json(content: &str) -> Result<String, String> {
    read_as(MEDIA_TYPE_JSON, content.as_bytes(), true)
        .map(|outgoing| body(&outgoing))
        .map_err(|error| error.to_string())
}

fn plain_json(content: &str) -> Result<String, String> {
    read_as(MEDIA_TYPE_JSON, content.as_bytes(), false)
        .map(|outgoing| body(&outgoing))
        .map_err(|error| error.to_string())
}

fn raw(content: &str) -> Result<String, String> {
    let content = content.replace('|', "\x01");
    read_as(MEDIA_TYPE, content.as_bytes(), false)
        .map(|outgoing| body(&outgoing))
        .map_err(|error| error.to_string())
}

fn whole(begin_string: &str, fields: &str) -> String {
    let fields = fields.replace('|', "\x01");
    let head = format!("8={begin_string}\x019={}\x01{fields}", fields.len());
    let sum = head.bytes().fold(0u8, u8::wrapping_add);
    format!("{head}10={sum:03}\x01")
}

#[test]
fn json_becomes_fields_in_the_order_of_its_keys() {
    for (content, expected) in [
        (r#"{"35":"D","11":"A1","55":"X","54":"1"}"#, "11=A1|55=X|54=1|"),
        (r#"{"55":"X","35":"D","11":"A1"}"#, "55=X|11=A1|"),
        (
            r#"{"35":"D","38":100,"44":1.10,"43008":-0.5,"141":true,"377":false}"#,
            "38=100|44=1.10|43008=-0.5|141=Y|377=N|",
        ),
        (r#"{"35":"D","58":"a=b \u00fc \ud83d\ude00 \"q\""}"#, "58=a=b ü 😀 \"q\"|"),
        (r#"{"35":"D"}"#, ""),
        (r#" {"35" : "D" , "453" : [ ] } "#, "453=0|"),
        (
            r#"{"35":"D","453":[{"448":"X","447":"D","452":"1"},{"448":"Y"}],"55":"X"}"#,
            "453=2|448=X|447=D|452=1|448=Y|55=X|",
        ),
        (
            r#"{"35":"D","453":[{"448":"X","802":[{"523":"a","803":1},{"523":"b"}]}]}"#,
            "453=1|448=X|802=2|523=a|803=1|523=b|",
        ),
    ] {
        assert_eq!(plain_json(content).as_deref(), Ok(expected), "{content}");
    }
    for (content, expected) in [
        // Names, and entries in the dictionary's order; what it does not have comes last.
        (r#"{"MsgType":"D","ClOrdID":"A1","Side":1}"#, "11=A1|54=1|"),
        (
            r#"{"35":"D","NoPartyIDs":[{"7777":"q","PartyRole":1,"PartyIDSource":"D","PartyID":"X"}]}"#,
            "453=1|448=X|447=D|452=1|7777=q|",
        ),
        (r#"{"35":"D","453":[{"802":[{"803":1,"523":"a"}],"448":"X"}]}"#, "453=1|448=X|802=1|523=a|803=1|"),
    ] {
        assert_eq!(json(content).as_deref(), Ok(expected), "{content}");
    }
}

#[test]
fn data_fields_get_their_lengths() {
    for (content, expected) in [
        (r#"{"35":"D","355":"äb","58":"x"}"#, "354=3|355=äb|58=x|"),
        (r#"{"35":"D","354":3,"355":"äb"}"#, "354=3|355=äb|"),
        // Wherever the length stood: it goes where the data is.
        (r#"{"35":"D","355":"äb","58":"x","354":"3"}"#, "354=3|355=äb|58=x|"),
        (r#"{"35":"D","96":{"base64":"YQFi"}}"#, "95=3|96=a|b|"),
        (r#"{"35":"D","96":"a\u0001b"}"#, "95=3|96=a|b|"),
        (r#"{"35":"D","95":3}"#, "95=3|"),
        (r#"{"35":"B","33":[{"58":"t","355":"u"}]}"#, "33=1|58=t|354=1|355=u|"),
    ] {
        assert_eq!(plain_json(content).as_deref(), Ok(expected), "{content}");
    }
    assert_eq!(json(r#"{"35":"D","VenueBlob":"ab"}"#).as_deref(), Ok("9001=2|9002=ab|"));
}

#[test]
fn json_that_is_refused_says_where_and_why() {
    use FieldFault::*;
    let at = |path: &str, fault: FieldFault| format!("{path}: {fault}");
    for (content, expected) in [
        (r#"{"35":"D","34":1}"#, at("34", Ours)),
        (r#"{"35":"D","8":"FIX.4.4"}"#, at("8", Ours)),
        (r#"{"35":"D","49":"ME"}"#, at("49", Ours)),
        (r#"{"35":"D","50":"sub, which the settings fill in"}"#, at("50", Ours)),
        (r#"{"35":"D","97":"Y"}"#, at("97", Ours)),
        (r#"{"35":"D","10":"000"}"#, at("10", Ours)),
        (r#"{"35":"D","453":[{"448":"X","52":"now"}]}"#, at("453[0].52", Ours)),
        (r#"{"35":"D","453":[{"448":"X","57":"sub"}]}"#, at("453[0].57", Ours)),
        (r#"{"35":"D","453":[{"448":"X","35":"D"}]}"#, at("453[0].35", Ours)),
        (r#"{"35":"D","89":"sig"}"#, at("89", NotPassedOn)),
        (r#"{"35":"D","627":[{"628":"hop"}]}"#, at("627", NotPassedOn)),
        (r#"{"35":"D","11":""}"#, at("11", Empty)),
        (r#"{"35":"","11":"a"}"#, at("35", Empty)),
        (r#"{"35":"D","96":""}"#, at("96", Empty)),
        (r#"{"35":"D","11":"a\u000110=000"}"#, at("11", SohInside)),
        (r#"{"35":"D\u0001","11":"a"}"#, at("35", SohInside)),
        (r#"{"35":"D","ClOrdId":"a"}"#, at("ClOrdId", UnknownKey)),
        (r#"{"35":"D","Jane Doe":"a"}"#, at("a key", UnknownKey)),
        (r#"{"35":"D","0":"a"}"#, at("0", UnknownKey)),
        (r#"{"35":"D","011":"a"}"#, at("011", UnknownKey)),
        (r#"{"35":"D","-1":"a"}"#, at("a key", UnknownKey)),
        (r#"{"35":"D","1000000000":"a"}"#, at("1000000000", UnknownKey)),
        (r#"{"35":"D","11":"a","11":"b"}"#, at("11", Twice)),
        (r#"{"35":"D","ClOrdID":"a","11":"b"}"#, at("11", Twice)),
        (r#"{"35":"D","453":[{"448":"X"},{"448":"Y","448":"Z"}]}"#, at("453[1].448", Twice)),
        (r#"{"35":"D","38":1e3}"#, at("38", Exponent)),
        (r#"{"35":"D","38":null}"#, at("38", Form)),
        (r#"{"35":"D","453":["X"]}"#, at("453[0]", Form)),
        (r#"{"35":["D"],"11":"a"}"#, at("35", Form)),
        (r#"{"35":"D","453":[{}]}"#, at("453[0]", EmptyEntry)),
        (r#"{"35":"D","58":{"base64":"YQ=="}}"#, at("58", Base64)),
        (r#"{"35":"D","96":{"base64":"!"}}"#, at("96", Base64)),
        (r#"{"35":"D","96":{"base64":1}}"#, at("96", Base64)),
        (r#"{"35":"D","96":{"base32":"YQ=="}}"#, at("96", Base64)),
        (r#"{"35":"D","96":{}}"#, at("96", Base64)),
        (r#"{"35":"D","96":12}"#, at("96", Form)),
        (r#"{"35":"D","354":4,"355":"abc"}"#, at("354", Length)),
        (r#"{"35":"D","354":"x","355":"abc"}"#, at("354", Length)),
        (r#"{"35":"n","212":3}"#, at("212", Length)),
        (r#"{"35":"D","55":[{"1":"a"}]}"#, at("55", NoGroup)),
        (r#"{"35":"D","453":"2"}"#, at("453", Group)),
        (r#"{"11":"a"}"#, ContentError::NoMsgType.to_string()),
        (r#"{"35":"A","98":0}"#, ContentError::SessionMessage.to_string()),
        (r#"{"35":"5"}"#, ContentError::SessionMessage.to_string()),
        (r#"["35"]"#, ContentError::Json { line: 1, column: 0 }.to_string()),
        ("{\"35\":\"D\",\n\"11\":}", ContentError::Json { line: 2, column: 6 }.to_string()),
        (r#"{"35":"D"} x"#, ContentError::Json { line: 1, column: 12 }.to_string()),
        ("", ContentError::Json { line: 1, column: 0 }.to_string()),
    ] {
        assert_eq!(json(content), Err(expected), "{content}");
    }
    assert_eq!(plain_json(r#"{"35":"D","ClOrdID":"a"}"#), Err(at("ClOrdID", UnknownKey)));
}

#[test]
fn groups_lie_only_so_deep() {
    let nested = |depth: usize| {
        let open = "\"900\":[{\"901\":1,".repeat(depth);
        format!("{{\"35\":\"D\",{open}\"902\":2{}}}", "}]".repeat(depth))
    };
    plain_json(&nested(8)).unwrap();
    assert!(plain_json(&nested(9)).unwrap_err().ends_with("groups lie too deep in each other"));
    // Deeper than any stack.
    assert!(plain_json(&nested(50_000)).is_err());
    let arrays = format!("{{\"35\":\"D\",\"1\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(plain_json(&arrays).is_err());
}

#[test]
fn raw_fields_pass_unchanged() {
    for (content, expected) in [
        ("35=D|11=A1|55=X|", "11=A1|55=X|"),
        ("11=A1|35=D|55=X|", "11=A1|55=X|"),
        ("35=D|58= a=b |", "58= a=b |"),
        ("35=D|95=3|96=a|b|58=x|", "95=3|96=a|b|58=x|"),
        ("35=D|453=2|448=X|448=Y|448=Z|", "453=2|448=X|448=Y|448=Z|"),
        ("35=D|", ""),
    ] {
        assert_eq!(raw(content).as_deref(), Ok(expected), "{content}");
    }
    // Bytes that are no UTF-8.
    let outgoing = read_as(MEDIA_TYPE, b"35=D\x0158=\xfc\xff\x01", false).unwrap();
    assert_eq!(outgoing.body()[..], b"58=\xfc\xff\x01"[..]);
}

#[test]
fn a_whole_raw_message_loses_header_and_trailer_and_nothing_else() {
    let fields = "35=D|49=A|56=B|34=7|43=Y|97=Y|52=20260102-03:04:05|122=20260102-03:04:04|369=6|115=FOR|50=sub|11=A1|55=X|";
    let outgoing = read_as(MEDIA_TYPE, whole("FIX.4.4", fields).as_bytes(), false).unwrap();
    assert_eq!((outgoing.msg_type(), body(&outgoing).as_str()), (&b"D"[..], "11=A1|55=X|"));
    assert_eq!(outgoing.header, [(115, b"FOR".to_vec())]);
    let refused = |content: String| raw(&content).unwrap_err();
    assert_eq!(
        refused(whole("FIX.4.2", "35=D|11=A1|")),
        ContentError::Version { session: BeginString::Fix44 }.to_string()
    );
    let garbled = "the content begins with 8= and is no whole message";
    assert_eq!(refused(whole("FIX.4.4", "35=D|11=A1|").replace("A1", "A2")), garbled);
    assert_eq!(refused(whole("FIX.4.4", "35=D|11=A1|") + "x"), garbled);
    assert_eq!(refused(whole("FIX.4.4", "35=D|11=A1|").replace("10=", "11=")), garbled);
    // What would be lost, and is not the session's.
    assert!(refused(whole("FIX.4.4", "35=D|90=1|91=x|11=A1|")).starts_with("90: signatures"));
    assert!(refused(whole("FIX.4.4", "35=D|627=1|628=H|11=A1|")).starts_with("627: signatures"));
}

#[test]
fn raw_content_that_is_refused_says_where_and_why() {
    use FieldFault::*;
    let at = |path: &str, fault: FieldFault| format!("{path}: {fault}");
    for (content, expected) in [
        ("35=D|34=1|11=a|", at("34", Ours)),
        ("35=D|11=a|10=000|", at("10", Ours)),
        ("35=D|11=|", at("11", Empty)),
        ("35=D|35=8|", at("35", Twice)),
        ("35=D|57=a|57=b|", at("57", Twice)),
        ("35=n|212=3|58=x|", at("212", Length)),
        ("35=D|-5=a|", at("0", UnknownKey)),
        ("35=D|89=x|", at("89", NotPassedOn)),
        ("11=a|", ContentError::NoMsgType.to_string()),
        ("", ContentError::NoMsgType.to_string()),
        ("35=4|36=9|", ContentError::SessionMessage.to_string()),
        ("35=D|11=a", "the content is no list of FIX fields".to_owned()),
        ("hello", "the content is no list of FIX fields".to_owned()),
        ("35=D|95=9|96=a|", "the content is no list of FIX fields".to_owned()),
    ] {
        assert_eq!(raw(content), Err(expected), "{content}");
    }
}

#[test]
fn the_media_type_decides() {
    for media_type in ["application/fix+json", "application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(body(&read_as(media_type, br#"{"35":"D","11":"a"}"#, false).unwrap()), "11=a|");
    }
    assert_eq!(body(&read_as("application/fix;version=4.4", b"35=D\x0111=a\x01", false).unwrap()), "11=a|");
    for media_type in ["", "text/plain", "application/fixml"] {
        assert_eq!(read_as(media_type, b"35=D\x01", false), Err(ContentError::MediaType));
    }
}

#[test]
fn the_apps_own_header_fields_go_into_the_header() {
    let data_fields = DataFields::default();
    let form = Form {
        begin_string: BeginString::Fix44,
        dictionaries: None,
        data_fields: &data_fields,
        session_header: &[],
    };
    let as_json = br#"{"35":"n","115":"FOR","213":{"base64":"PAE+"},"57":"T","58":"x"}"#;
    let as_raw = b"35=n\x01115=FOR\x01212=3\x01213=<\x01>\x0157=T\x0158=x\x01";
    for (media_type, content) in [(MEDIA_TYPE_JSON, &as_json[..]), (MEDIA_TYPE, &as_raw[..])] {
        let outgoing = Outgoing::read(Some(media_type), content, &form).unwrap();
        let message = outgoing.draft(&form).header_number(34, 9).encode().unwrap();
        let message = parse(message, &data_fields).unwrap();
        let tags: Vec<Tag> = message.fields().map(|field| field.tag).collect();
        assert_eq!(tags, [8, 9, 35, 34, 57, 115, 212, 213, 58, 10], "{media_type}");
        assert_eq!(message.get(213), Some(&b"<\x01>"[..]));
    }
    let given_wrong = br#"{"35":"n","212":4,"213":"abc"}"#;
    let error = Outgoing::read(Some(MEDIA_TYPE_JSON), given_wrong, &form).unwrap_err();
    assert_eq!(error, Path::default().fault(212, FieldFault::Length));
}

#[test]
fn nothing_that_was_handed_in_is_told() {
    let secret = "S3CRET";
    for content in [
        format!(r#"{{"35":"D","554":"{secret}","34":"{secret}"}}"#),
        format!(r#"{{"35":"D","38":"{secret}","x {secret}":"{secret}"}}"#),
        format!(r#"{{"35":"D","96":{{"base64":"{secret}!"}}}}"#),
        format!(r#"{{"35":"D","554":"{secret}" {secret}"#),
    ] {
        let error = read_as(MEDIA_TYPE_JSON, content.as_bytes(), true).unwrap_err();
        assert!(!format!("{error} {error:?}").contains(secret), "{error:?}");
    }
    let outgoing = read_as(MEDIA_TYPE, format!("35=D\x0158={secret}\x01").as_bytes(), false).unwrap();
    assert!(!format!("{outgoing:?}").contains(secret));
}

#[test]
fn the_pages_examples_hold() {
    let page = include_str!("../../../../docs/adapters/fix-messages.md");
    let examples: Vec<&str> = page.split("```json\n").skip(1).collect();
    assert_eq!(examples.len(), 3, "the examples are not found any more");
    for example in examples {
        let (content, rest) = example.split_once("```\n```text\n").unwrap();
        let expected = rest.split_once("\n```").unwrap().0;
        assert_eq!(
            json(content).as_deref(),
            Ok(&*expected.replace("(bytes 01 02 03)", "|\x02\x03")),
            "{content}"
        );
    }
}

// === What partners send ===

fn message(fields: &str) -> Message {
    parse(whole("FIX.4.4", fields).into_bytes().into(), &dictionaries().data_fields()).unwrap()
}

#[test]
fn a_message_becomes_attributes() {
    let keys = Keys { subject: Some(11), partition_key: Some(55) };
    let of = |fields: &str| attributes(&message(fields), keys);
    assert_eq!(
        of("35=D|11=A1|55=MSFT|"),
        Attributes {
            kind: "org.fixtrading.FIX.4.4.D".to_owned(),
            subject: Some("A1".to_owned()),
            partition_key: Some("MSFT".to_owned()),
        }
    );
    assert_eq!(
        of("35=AE|11=|"),
        Attributes { kind: "org.fixtrading.FIX.4.4.AE".to_owned(), subject: None, partition_key: None }
    );
    let hostile = of("35=* \u{e4}/\n|11=a\n\u{1b}[0m|55=\u{e4}|");
    assert_eq!(hostile.kind, "org.fixtrading.FIX.4.4.______");
    assert_eq!(hostile.subject.as_deref(), Some("a  [0m"));
    assert_eq!(hostile.partition_key.as_deref(), Some("ä"));
    let long = of(&format!("35={}|11={}|", "D".repeat(300), "x".repeat(300)));
    assert_eq!((long.kind.len(), long.subject.unwrap().len()), ("org.fixtrading.FIX.4.4.".len() + 16, 256));
}

#[test]
fn a_message_is_shown_with_names_and_without_secrets() {
    let dictionaries = dictionaries();
    let fields = "35=D|49=A|56=B|34=7|52=20260102-03:04:05|11=A1|453=2|448=X|447=D|452=1|802=1|523=a|448=Y|452=2|55=MSFT|\
                  54=1|9999=q|9999=r|354=3|355=a|b|";
    let shown = serde_json::to_string_pretty(&View::of(&message(fields), Some(&dictionaries))).unwrap();
    assert_eq!(
        shown,
        r#"{
  "message": "NewOrderSingle",
  "header": {
    "BeginString": "FIX.4.4",
    "BodyLength": "136",
    "MsgType": "D",
    "SenderCompID": "A",
    "TargetCompID": "B",
    "MsgSeqNum": "7",
    "SendingTime": "20260102-03:04:05"
  },
  "body": {
    "ClOrdID": "A1",
    "NoPartyIDs": [
      {
        "PartyID": "X",
        "PartyIDSource": "D",
        "PartyRole": "1",
        "NoPartySubIDs": [
          {
            "PartySubID": "a"
          }
        ]
      },
      {
        "PartyID": "Y",
        "PartyRole": "2"
      }
    ],
    "Symbol": "MSFT",
    "Side": "1 (BUY)",
    "9999": [
      "q",
      "r"
    ],
    "EncodedTextLen": "3",
    "EncodedText": "(3 bytes)"
  },
  "trailer": {
    "CheckSum": "094"
  }
}"#
    );
    let logon = message("35=A|98=0|108=30|95=6|96=S3CRET|553=me|554=S3CRET|925=S3CRET|1401=6|1402=S3CRET|");
    for dictionaries in [Some(&dictionaries), None] {
        let shown = serde_json::to_string(&View::of(&logon, dictionaries)).unwrap();
        assert!(!shown.contains("S3CRET"), "{shown}");
        assert!(shown.contains("(6 bytes)") && shown.contains("\"me\""), "{shown}");
    }
    let bare = serde_json::to_string(&View::of(&message("35=D|453=1|448=X|"), None)).unwrap();
    assert!(bare.contains(r#""body":{"453":"1","448":"X"}"#), "{bare}");
}

#[test]
fn groups_that_are_none_are_shown_as_they_stand() {
    let dictionaries = dictionaries();
    for fields in [
        "35=D|453=5|448=X|",
        "35=D|453=x|448=X|",
        "35=D|453=0|448=X|",
        "35=D|453=2|452=1|448=X|",
        "35=D|453=1|453=1|453=x|",
    ] {
        let shown = serde_json::to_string(&View::of(&message(fields), Some(&dictionaries))).unwrap();
        serde_json::from_str::<serde_json::Value>(&shown).unwrap();
        assert_eq!(shown.matches("\"X\"").count(), fields.matches("=X").count(), "{shown}");
    }
}

proptest! {
    #[test]
    fn json_and_raw_fields_say_the_same(
        fields in prop::collection::btree_map(1u32..10_000, "[ -~\u{e4}\u{20ac}]{1,12}", 0..8),
        data in prop::collection::vec(any::<u8>(), 1..20),
    ) {
        let data_fields = DataFields::default();
        let plain = |tag: &Tag| !is_header(*tag) && !is_trailer(*tag)
            && data_fields.announced_by(*tag).is_none() && data_fields.length_of(*tag).is_none();
        let fields: Vec<_> = fields.into_iter().filter(|(tag, _)| plain(tag)).collect();
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(&data);
        let mut members = vec![r#""35":"D""#.to_owned()];
        let mut raw = b"35=D\x01".to_vec();
        for (tag, text) in &fields {
            members.push(format!("\"{tag}\":{}", serde_json::to_string(text).unwrap()));
            raw.extend(format!("{tag}={text}\x01").bytes());
        }
        members.push(format!(r#""96":{{"base64":"{encoded}"}}"#));
        raw.extend(format!("95={}\x0196=", data.len()).bytes());
        raw.extend(&data);
        raw.push(1);
        let from_json = read_as(MEDIA_TYPE_JSON, format!("{{{}}}", members.join(",")).as_bytes(), false).unwrap();
        let from_raw = read_as(MEDIA_TYPE, &raw, false).unwrap();
        prop_assert_eq!(from_json.body(), from_raw.body());
        // And what is read can be written and read again.
        let form = Form { begin_string: BeginString::Fix44, dictionaries: None, data_fields: &data_fields, session_header: &[] };
        let message = from_raw.draft(&form).encode().unwrap();
        let message = parse(message, &data_fields).unwrap();
        prop_assert_eq!(&message.body_bytes(), from_raw.body());
        prop_assert_eq!(value::unsigned(message.get(9).unwrap()).is_some(), true);
    }
}
