use bytes::BufMut;
use proptest::prelude::*;

use super::*;
use crate::message::Tag;
use crate::version::BeginString;
use crate::wire::Draft;

const LIMIT: usize = 512;

/// `|` stands for SOH.
fn soh(text: &str) -> Vec<u8> {
    text.replace('|', "\x01").into_bytes()
}

/// With the sums that belong to it.
fn framed(body: &str) -> Vec<u8> {
    framed_as(body, |length| length, |sum| sum)
}

/// With sums that are changed.
fn framed_as(body: &str, length: impl Fn(usize) -> usize, sum: impl Fn(u8) -> u8) -> Vec<u8> {
    let body = soh(body);
    let mut message = soh(&format!("8=FIX.4.4|9={}|", length(body.len())));
    message.extend(&body);
    let sum = sum(check_sum(&message));
    message.extend(soh(&format!("10={sum:03}|")));
    message
}

fn decode_in_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>, limit: usize) -> (Vec<Item>, Decoder) {
    let mut decoder = Decoder::new(limit, DataFields::default());
    let mut items = Vec::new();
    for piece in pieces {
        decoder.buffer().put_slice(piece);
        while let Some(item) = decoder.next_item() {
            items.push(item);
        }
        assert!(decoder.buffer().len() <= limit.max(BEGIN_STRING_BYTES_MAX + BODY_LENGTH_DIGITS_MAX + 8));
    }
    (items, decoder)
}

/// Whole, byte by byte, and cut in two at every place: all must say the same. A message as its MsgSeqNum.
fn decode(stream: &[u8]) -> Vec<Result<u64, Garbled>> {
    let (whole, end) = decode_in_pieces(std::iter::once(stream), LIMIT);
    let (by_byte, by_byte_end) = decode_in_pieces(stream.chunks(1), LIMIT);
    assert_eq!(by_byte, whole, "byte by byte");
    assert_eq!(by_byte_end.junk_bytes(), end.junk_bytes());
    for at in 0..=stream.len() {
        let (parts, parts_end) = decode_in_pieces([&stream[..at], &stream[at..]].into_iter(), LIMIT);
        assert_eq!(parts, whole, "cut at {at}");
        assert_eq!(parts_end.junk_bytes(), end.junk_bytes(), "cut at {at}");
        assert_eq!(parts_end.inside_message(), end.inside_message(), "cut at {at}");
    }
    let number = |item: Item| match item {
        Item::Message(message) => Ok(message.seq_num().unwrap()),
        Item::Garbled(garbled) => Err(garbled),
    };
    whole.into_iter().map(number).collect()
}

fn order(seq_num: u64) -> String {
    format!("35=D|34={seq_num}|49=TW44|52=20260102-03:04:05|56=ISLD|11=ID|21=3|40=1|54=1|55=INTC|")
}

/// The three messages in one stream.
fn stream(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn messages_in_one_stream_stay_apart() {
    assert_eq!(decode(&stream(&[framed(&order(1)), framed(&order(2))])), [Ok(1), Ok(2)]);
}

#[test]
fn def_2d_3c_a_garbled_message_is_passed_over() {
    // The lines of the scripts, whose lengths are wrong, and the same with all sums right.
    let as_scripted = soh("8=FIX.4.4|9=52|35=0|34=2|4garbled9=TW|52=20260102-03:04:05|56=ISLD|10=0|");
    assert_eq!(
        decode(&stream(&[framed(&order(1)), as_scripted, framed(&order(2))])),
        [Ok(1), Err(Garbled::BodyLength), Ok(2)]
    );
    let body = "35=D|34=3|49garbled=TW|52=20260102-03:04:05|56=ISLD|11=ID|";
    assert_eq!(
        decode(&stream(&[framed(body), framed(&order(4))])),
        [Err(Malformed::NoTag { at: 25 }.into()), Ok(4)]
    );
}

#[test]
fn def_2m_a_length_that_is_too_short() {
    let short = framed_as(&order(2), |_| 30, |sum| sum);
    assert_eq!(decode(&stream(&[short, framed(&order(3))])), [Err(Garbled::BodyLength), Ok(3)]);
}

#[test]
fn def_2m_a_length_that_is_too_long_swallows_the_next_message() {
    let long = framed_as(&order(4), |length| length + 14, |sum| sum);
    let messages = stream(&[long, framed(&order(5)), framed(&order(6))]);
    assert_eq!(decode(&messages), [Err(Garbled::BodyLength), Ok(6)]);
}

#[test]
fn def_2t_the_first_three_fields_out_of_order() {
    // 35 first: what follows is a frame without a MsgType.
    let mut first = soh("35=0|");
    first.extend(framed("34=2|49=TW|52=20260102-03:04:05|56=ISLD|"));
    assert_eq!(decode(&stream(&[first, framed(&order(2))])), [Err(Garbled::NoMsgType), Ok(2)]);
    // 34 in the place of 9.
    let second = soh("8=FIX.4.4|34=3|35=0|49=TW44|52=20260102-03:04:05|56=ISLD|10=000|");
    assert_eq!(decode(&stream(&[second, framed(&order(3))])), [Err(Garbled::Head), Ok(3)]);
}

#[test]
fn def_3b_a_wrong_check_sum() {
    let wrong = framed_as(&order(2), |length| length, |sum| sum.wrapping_add(1));
    let sum = framed(&order(2));
    let expected = check_sum(&sum[..sum.len() - TRAILER_BYTES]);
    let found = u16::from(expected.wrapping_add(1));
    assert_eq!(
        decode(&stream(&[wrong, framed(&order(2))])),
        [Err(Garbled::CheckSum { found, expected }), Ok(2)]
    );
    let mut above = framed(&order(2));
    let at = above.len() - 4;
    above[at..at + 3].copy_from_slice(b"256");
    assert_eq!(
        decode(&stream(&[above, framed(&order(2))])),
        [Err(Garbled::CheckSum { found: 256, expected }), Ok(2)]
    );
}

#[test]
fn heads_that_are_none() {
    for head in [
        "8=FIX.4.4|9=|35=0|34=1|",
        "8=FIX.4.4|9=-5|35=0|34=1|",
        "8=FIX.4.4|9=1x|35=0|34=1|",
        "8=FIX.4.4|9=1234567890|35=0|34=1|",
        "8=FIX.4.4|9=18446744073709551616|35=0|",
        "8=FIX.4.4|09=10|35=0|34=1|",
        "8=FIX.4.4.4.4.4.4.4.4|9=10|35=0|",
        "8=FIXFIXFIXFIXFIXFIXFIX",
    ] {
        assert_eq!(decode(&stream(&[soh(head), framed(&order(7))])), [Err(Garbled::Head), Ok(7)], "{head}");
    }
}

#[test]
fn trailers_that_are_none() {
    for end in ["10=12|", "10=1234|", "10=1x3|", "10:123|", "110=123|", "10=123"] {
        let mut message = soh("8=FIX.4.4|9=10|35=0|34=1|");
        message.extend(soh(end));
        assert_eq!(
            decode(&stream(&[message, framed(&order(7))])),
            [Err(Garbled::BodyLength), Ok(7)],
            "{end}"
        );
    }
    // The SOH before the trailer is the body's.
    let message = soh("8=FIX.4.4|9=9|35=0|34=110=123|");
    assert_eq!(decode(&stream(&[message, framed(&order(7))])), [Err(Garbled::BodyLength), Ok(7)]);
}

#[test]
fn a_frame_without_a_body_has_no_type() {
    assert_eq!(decode(&framed("")), [Err(Garbled::NoMsgType)]);
    assert_eq!(decode(&framed("35=|34=1|")), [Err(Garbled::NoMsgType)]);
    assert_eq!(decode(&framed("34=1|35=0|")), [Err(Garbled::NoMsgType)]);
}

#[test]
fn a_second_head_or_trailer_makes_it_garbled() {
    assert_eq!(decode(&framed("35=0|34=1|8=FIX.4.4|")), [Err(Garbled::FrameInside)]);
    assert_eq!(decode(&framed("35=0|9=5|34=1|")), [Err(Garbled::FrameInside)]);
    assert_eq!(decode(&framed("35=0|34=1|10=000|58=x|")), [Err(Garbled::FrameInside)]);
    // Data that is said to reach over the trailer.
    assert_eq!(decode(&framed("35=0|34=1|95=9|96=x|")), [Err(Malformed::DataLength { tag: 96 }.into())]);
    assert_eq!(decode(&framed("35=0|34=1|95=8|96=x|")), [Err(Garbled::FrameInside)]);
}

#[test]
fn a_message_inside_a_data_field_is_no_message() {
    let forged = String::from_utf8(framed("35=D|34=2|49=EVE|")).unwrap();
    let carrying = format!("35=B|34=1|95={}|96={forged}|58=x|", forged.len());
    assert_eq!(decode(&stream(&[framed(&carrying), framed(&order(2))])), [Ok(1), Ok(2)]);
    // Not when the carrier is refused for a wrong sum, nor when it is too large.
    let wrong = framed_as(&carrying, |length| length, |sum| sum.wrapping_add(1));
    assert!(matches!(
        decode(&stream(&[wrong, framed(&order(2))]))[..],
        [Err(Garbled::CheckSum { .. }), Ok(2)]
    ));
    let large = format!("{carrying}58={}|", "y".repeat(LIMIT));
    assert!(matches!(
        decode(&stream(&[framed(&large), framed(&order(2))]))[..],
        [Err(Garbled::Oversize { .. }), Ok(2)]
    ));
}

#[test]
fn a_message_at_the_limit_passes_and_one_byte_more_does_not() {
    let base = framed("35=D|34=1|58=|").len();
    // Both lengths of the body have three digits, and this one has two.
    let fill = LIMIT - base - 1;
    let at_limit = framed(&format!("35=D|34=1|58={}|", "x".repeat(fill)));
    assert_eq!(at_limit.len(), LIMIT);
    assert_eq!(decode(&at_limit), [Ok(1)]);
    let above = framed(&format!("35=D|34=1|58={}|", "x".repeat(fill + 1)));
    let announced = (above.len() - TRAILER_BYTES - "8=FIX.4.4|9=nnn|".len()) as u64;
    assert_eq!(decode(&above), [Err(Garbled::Oversize { announced, limit: LIMIT })]);
}

#[test]
fn nothing_is_allocated_for_an_announced_length() {
    let mut decoder = Decoder::new(64 * 1024 * 1024, DataFields::default());
    decoder.buffer().put_slice(&soh("8=FIX.4.4|9=60000000|35=D|"));
    assert_eq!(decoder.next_item(), None);
    assert!(decoder.buffer().capacity() < 4096);
    let mut decoder = Decoder::new(LIMIT, DataFields::default());
    decoder.buffer().put_slice(&soh("8=FIX.4.4|9=999999999|35=D|"));
    assert_eq!(
        decoder.next_item(),
        Some(Item::Garbled(Garbled::Oversize { announced: 999_999_999, limit: LIMIT }))
    );
    for _ in 0..1000 {
        decoder.buffer().put_slice(&[b'x'; 64 * 1024]);
        assert_eq!(decoder.next_item(), None);
        assert!(decoder.buffer().is_empty());
    }
    assert!(decoder.inside_message());
}

#[test]
fn garbage_between_messages_is_counted() {
    let messages = [b"GARBAGE8=FI".to_vec(), framed(&order(1)), soh("108=30|98=0|58=8=F"), framed(&order(2))];
    assert_eq!(decode(&stream(&messages)), [Ok(1), Ok(2)]);
    let (_, decoder) = decode_in_pieces(std::iter::once(&stream(&messages)[..]), LIMIT);
    assert_eq!(decoder.junk_bytes(), (messages[0].len() + messages[2].len()) as u64);
    assert!(!decoder.inside_message());
}

#[test]
fn a_large_message_byte_by_byte_takes_linear_time() {
    // 512 KiB in single bytes: a scan that restarted would look at 10^11 bytes and never come back.
    let message = framed(&format!("35=D|34=1|58={}|", "x".repeat(512 * 1024)));
    let mut decoder = Decoder::new(message.len(), DataFields::default());
    for byte in &message {
        decoder.buffer().put_u8(*byte);
        if let Some(item) = decoder.next_item() {
            assert!(matches!(item, Item::Message(read) if read.bytes()[..] == message[..]));
            return;
        }
    }
    panic!("no message");
}

#[test]
fn parsing_a_whole_message_takes_nothing_else() {
    let data_fields = DataFields::default();
    let message = framed(&order(3));
    assert_eq!(parse(message.clone().into(), &data_fields).unwrap().seq_num(), Some(3));
    for bytes in [&message[1..], &message[..message.len() - 1], &[&message[..], b"x"].concat()] {
        parse(Bytes::copy_from_slice(bytes), &data_fields).unwrap_err();
    }
    parse(Bytes::new(), &data_fields).unwrap_err();
}

/// A value that can stand in an ordinary field.
fn ordinary() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(2u8..=255, 1..12)
}

fn body_tag() -> impl Strategy<Value = Tag> {
    let data_fields = DataFields::default();
    (1u32..6000).prop_filter("a plain field of a body", move |tag| {
        !crate::message::is_header(*tag)
            && !crate::message::is_trailer(*tag)
            && data_fields.announced_by(*tag).is_none()
    })
}

proptest! {
    #[test]
    fn what_is_encoded_comes_out_unchanged_however_it_is_cut(
        bodies in prop::collection::vec(
            (prop::collection::vec((body_tag(), ordinary()), 0..6), prop::collection::vec(any::<u8>(), 0..20)), 1..5),
        garbage in prop::collection::vec(prop::collection::vec(
            prop::sample::select(&b"8=FIXT.41|9=0\x01"[..]), 0..12), 5),
        cuts in prop::collection::vec(1usize..40, 1..20),
    ) {
        let mut sent = Vec::new();
        let mut stream = Vec::new();
        for (seq_num, (fields, data)) in bodies.iter().enumerate() {
            // No start among the garbage: that would begin a message.
            let between = &garbage[seq_num];
            if memmem::find(between, START).is_none() {
                stream.extend(between);
            }
            let mut draft = Draft::new(BeginString::Fix44, "B").header_number(34, seq_num as u64).data(95, 96, data);
            for (tag, value) in fields {
                draft = draft.field(*tag, value);
            }
            let message = draft.encode().unwrap();
            stream.extend(&message);
            sent.push(message);
        }
        let mut rest = &stream[..];
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        let (items, decoder) = decode_in_pieces(pieces.into_iter(), 4096);
        let received: Vec<Bytes> = items
            .into_iter()
            .map(|item| match item {
                Item::Message(message) => message.bytes().clone(),
                Item::Garbled(garbled) => panic!("{garbled}"),
            })
            .collect();
        prop_assert_eq!(&received, &sent);
        for (message, (fields, data)) in received.into_iter().zip(&bodies) {
            let message = parse(message, &DataFields::default()).unwrap();
            let expected: Vec<(Tag, &[u8])> = fields.iter().map(|(tag, value)| (*tag, &value[..])).collect();
            let body: Vec<(Tag, &[u8])> = message.body().skip(2).map(|field| (field.tag, field.value)).collect();
            prop_assert_eq!(body, expected);
            prop_assert_eq!(message.get(96), Some(&data[..]));
        }
        prop_assert!(!decoder.inside_message());
    }

    #[test]
    fn any_stream_means_the_same_in_any_pieces(
        // The marks meet in every combination.
        parts in prop::collection::vec(prop::sample::select(vec![
            "8=FIX.4.4", "8=FIX", "|", "9=5|", "9=10|", "35=0|", "34=1|", "10=163|", "10=", "1", "95=3|", "96=a|b|", "8", "=",
        ]), 0..30),
        limit in 20usize..64,
    ) {
        let stream = soh(&parts.concat());
        let (whole, end) = decode_in_pieces(std::iter::once(&stream[..]), limit);
        let (by_byte, by_byte_end) = decode_in_pieces(stream.chunks(1), limit);
        prop_assert_eq!(&by_byte, &whole);
        prop_assert_eq!(by_byte_end.junk_bytes(), end.junk_bytes());
        for item in &whole {
            if let Item::Message(message) = item {
                prop_assert!(message.bytes().len() <= limit);
                prop_assert!(parse(message.bytes().clone(), &DataFields::default()).is_ok());
            }
        }
    }
}
