//! Every split, every limit, every way a frame can end.

use bytes::BufMut;
use proptest::prelude::*;

use super::*;

const LIMIT: usize = 64;

fn decode_in_pieces(pieces: &[&[u8]], limit: usize) -> (Vec<Item>, Decoder) {
    let mut decoder = Decoder::new(limit, Ending::Strict);
    let mut items = Vec::new();
    for piece in pieces {
        decoder.buffer().put_slice(piece);
        while let Some(item) = decoder.next_item() {
            items.push(item);
        }
    }
    (items, decoder)
}

/// Whole, byte by byte, and cut in two at every place: all must say the same.
fn decode(stream: &[u8]) -> Vec<Item> {
    let (whole, end) = decode_in_pieces(&[stream], LIMIT);
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    let (by_byte, by_byte_end) = decode_in_pieces(&bytes, LIMIT);
    assert_eq!(by_byte, whole, "byte by byte");
    assert_eq!(by_byte_end.junk_bytes(), end.junk_bytes());
    assert_eq!(by_byte_end.finish(), end.finish());
    for at in 0..=stream.len() {
        let (parts, parts_end) = decode_in_pieces(&[&stream[..at], &stream[at..]], LIMIT);
        assert_eq!(parts, whole, "cut at {at}");
        assert_eq!(parts_end.finish(), end.finish(), "cut at {at}");
    }
    whole
}

fn frame_of(body: &[u8]) -> Item {
    Item::Frame(Bytes::copy_from_slice(body))
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut frame = frame(&Bytes::copy_from_slice(body)).unwrap();
    frame.copy_to_bytes(frame.remaining()).to_vec()
}

#[test]
fn frames_in_one_stream_stay_apart() {
    assert_eq!(decode(b"\x0bone\x1c\r\x0btwo\x1c\r"), [frame_of(b"one"), frame_of(b"two")]);
}

#[test]
fn a_body_may_hold_single_end_bytes() {
    assert_eq!(decode(b"\x0ba\x1cb\rc\x1c\x1c\r"), [frame_of(b"a\x1cb\rc\x1c")]);
}

#[test]
fn line_ends_between_frames_are_no_junk_and_other_bytes_are() {
    let stream = b"\r\nxyz\x0ba\x1c\r\r\n\x0bb\x1c\r";
    assert_eq!(decode(stream), [frame_of(b"a"), frame_of(b"b")]);
    assert_eq!(decode_in_pieces(&[stream], LIMIT).1.junk_bytes(), 3);
}

#[test]
fn doubled_framing_makes_no_empty_message() {
    assert_eq!(decode(b"\x0b\x0ba\x1c\r\x1c\r\x0b\x1c\r"), [frame_of(b"a")]);
}

#[test]
fn a_start_inside_a_frame_abandons_it() {
    assert_eq!(decode(b"\x0bhalf\x0bwhole\x1c\r"), [Item::Abandoned { length: 4 }, frame_of(b"whole")]);
    assert_eq!(decode(b"\x0bhalf\x1c\x0bwhole\x1c\r"), [Item::Abandoned { length: 5 }, frame_of(b"whole")]);
}

#[test]
fn a_body_at_the_limit_passes_and_one_byte_more_does_not() {
    let at_limit = vec![b'x'; LIMIT];
    assert_eq!(decode(&framed(&at_limit)), [frame_of(&at_limit)]);
    let over = vec![b'x'; LIMIT + 1];
    let head = Bytes::copy_from_slice(&over[..LIMIT]);
    assert_eq!(decode(&framed(&over)), [Item::Oversize { head, length: LIMIT as u64 + 1 }]);
}

#[test]
fn after_an_oversize_frame_the_stream_is_in_step_again() {
    let mut stream = framed(&[b'x'; 3 * LIMIT]);
    stream.extend(framed(b"next"));
    let items = decode(&stream);
    assert_eq!(items[0], Item::Oversize { head: vec![b'x'; LIMIT].into(), length: 3 * LIMIT as u64 });
    assert_eq!(items[1..], [frame_of(b"next")]);
}

#[test]
fn an_oversize_frame_that_never_ends_is_abandoned_at_the_next_start() {
    let mut stream = vec![VT];
    stream.extend([b'x'; 2 * LIMIT]);
    stream.extend(framed(b"next"));
    assert_eq!(decode(&stream), [Item::Abandoned { length: 2 * LIMIT as u64 }, frame_of(b"next")]);
}

#[test]
fn an_oversize_frame_keeps_its_head_and_no_more() {
    let limit = 1024 * 1024;
    let mut decoder = Decoder::new(limit, Ending::Strict);
    decoder.buffer().put_slice(&[VT]);
    let mut held = 0;
    for _ in 0..64 {
        decoder.buffer().put_slice(&[b'x'; 64 * 1024]);
        assert_eq!(decoder.next_item(), None);
        held = held.max(decoder.buffer().len());
    }
    assert!(held <= limit + 64 * 1024, "{held} bytes held");
    assert_eq!(decoder.buffer().len(), 0);
    decoder.buffer().put_slice(b"\x1c\r");
    let Some(Item::Oversize { head, length }) = decoder.next_item() else { panic!("no oversize") };
    assert_eq!((head.len(), length), (OVERSIZE_HEAD_BYTES, 64 * 64 * 1024));
}

#[test]
fn an_end_inside_a_frame_is_an_error_and_between_frames_is_not() {
    assert_eq!(decode_in_pieces(&[b"\x0ba\x1c\r\n"], LIMIT).1.finish(), Ok(()));
    assert_eq!(decode_in_pieces(&[b"\x0babc"], LIMIT).1.finish(), Err(EndInsideFrame { received: 3 }));
    assert_eq!(decode_in_pieces(&[b"\x0babc\x1c"], LIMIT).1.finish(), Err(EndInsideFrame { received: 4 }));
    let long = [&[VT][..], &[b'x'; 2 * LIMIT]].concat();
    let received = 2 * LIMIT as u64;
    assert_eq!(decode_in_pieces(&[&long], LIMIT).1.finish(), Err(EndInsideFrame { received }));
}

#[test]
fn a_body_that_would_split_the_frame_is_refused() {
    let refusal = |body: &'static [u8]| frame(&Bytes::from_static(body)).err();
    assert_eq!(refusal(b""), Some(Unframeable::Empty));
    assert_eq!(refusal(b"a\x0bb"), Some(Unframeable::StartInside { at: 1 }));
    assert_eq!(refusal(b"a\x1cb\x1c\rc"), Some(Unframeable::EndInside { at: 3 }));
    assert_eq!(refusal(b"a\x1cb\r"), None);
}

#[test]
fn scanning_a_large_body_byte_by_byte_takes_linear_time() {
    // 2 MiB in single bytes: a scan that restarted would look at 2 * 10^12 bytes and never come back.
    let body = vec![b'x'; 2 * 1024 * 1024];
    let mut decoder = Decoder::new(body.len(), Ending::Strict);
    for byte in framed(&body) {
        decoder.buffer().put_u8(byte);
        if let Some(item) = decoder.next_item() {
            assert_eq!(item, frame_of(&body));
            return;
        }
    }
    panic!("no frame");
}

proptest! {
    #[test]
    fn what_is_framed_comes_out_unchanged_however_it_is_cut(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..LIMIT), 1..6),
        cuts in prop::collection::vec(1usize..20, 1..40),
    ) {
        let bodies: Vec<Bytes> = bodies.into_iter().map(Bytes::from).filter(|body| frame(body).is_ok()).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| framed(body)).collect();
        let mut rest = &stream[..];
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() { break; }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        let (items, decoder) = decode_in_pieces(&pieces, LIMIT);
        prop_assert_eq!(items, bodies.into_iter().map(Item::Frame).collect::<Vec<_>>());
        prop_assert_eq!(decoder.finish(), Ok(()));
        prop_assert_eq!(decoder.junk_bytes(), 0);
    }

    #[test]
    fn any_stream_means_the_same_in_any_pieces_and_stays_within_the_limit(
        // Few different bytes, so that the marks meet in every combination.
        stream in prop::collection::vec(prop::sample::select(vec![VT, FS, CR, LF, b'a']), 0..200),
        limit in 1usize..16,
    ) {
        let (whole, end) = decode_in_pieces(&[&stream], limit);
        let bytes: Vec<&[u8]> = stream.chunks(1).collect();
        let (by_byte, by_byte_end) = decode_in_pieces(&bytes, limit);
        prop_assert_eq!(&by_byte, &whole);
        prop_assert_eq!(by_byte_end.finish(), end.finish());
        prop_assert_eq!(by_byte_end.junk_bytes(), end.junk_bytes());
        for item in &whole {
            if let Item::Frame(body) = item {
                prop_assert!(!body.is_empty() && body.len() <= limit);
                prop_assert!(frame(body).is_ok(), "a body with a mark in it");
            }
        }
    }
}

fn decode_leniently(stream: &[u8]) -> (Vec<Item>, Result<(), EndInsideFrame>) {
    let decode = |pieces: &[&[u8]]| {
        let mut decoder = Decoder::new(LIMIT, Ending::Lenient);
        let mut items = Vec::new();
        for piece in pieces {
            decoder.buffer().put_slice(piece);
            items.extend(std::iter::from_fn(|| decoder.next_item()));
        }
        items.extend(decoder.take_open_end());
        (items, decoder.finish())
    };
    let whole = decode(&[stream]);
    for at in 0..=stream.len() {
        assert_eq!(decode(&[&stream[..at], &stream[at..]]), whole, "cut at {at}");
    }
    whole
}

#[test]
fn a_lenient_end_needs_no_cr_but_something_that_shows_it() {
    // The next start, the connection's end, or the CR that should be there.
    let (items, end) = decode_leniently(b"\x0bone\x1c\x0btwo\x1c\r\x0bthree\x1c");
    assert_eq!((items, end), (vec![frame_of(b"one"), frame_of(b"two"), frame_of(b"three")], Ok(())));
    // Any other byte after FS says that it was text.
    let (items, end) = decode_leniently(b"\x0ba\x1cb\x1c\n\x1c\x1c\r");
    assert_eq!((items, end), (vec![frame_of(b"a\x1cb\x1c\n\x1c")], Ok(())));
    // Without FS there is no end, however lenient.
    assert_eq!(decode_leniently(b"\x0bhalf\x0bmore").0, [Item::Abandoned { length: 4 }]);
    assert_eq!(decode_leniently(b"\x0bhalf").1, Err(EndInsideFrame { received: 4 }));
    // In strict mode the same bytes are no message.
    assert_eq!(decode(b"\x0bone\x1c"), []);
}

#[test]
fn a_lenient_end_closes_an_oversize_frame_too() {
    let stream = [&[VT][..], &[b'x'; 2 * LIMIT], &[FS]].concat();
    let head = Bytes::from(vec![b'x'; LIMIT]);
    assert_eq!(decode_leniently(&stream).0, [Item::Oversize { head, length: 2 * LIMIT as u64 }]);
}

#[test]
fn a_cr_that_comes_after_an_open_end_was_taken_is_no_junk() {
    let mut decoder = Decoder::new(LIMIT, Ending::Lenient);
    decoder.buffer().put_slice(b"\x0bone\x1c");
    assert_eq!(decoder.next_item(), None);
    assert_eq!(decoder.take_open_end(), Some(frame_of(b"one")));
    decoder.buffer().put_slice(b"\r\x0btwo\x1c\r");
    assert_eq!(decoder.next_item(), Some(frame_of(b"two")));
    assert_eq!(decoder.junk_bytes(), 0);
}

#[test]
fn a_frame_that_goes_on_and_on_is_given_up() {
    let mut decoder = Decoder::new(LIMIT, Ending::Strict);
    decoder.buffer().put_slice(&[VT]);
    let piece = vec![b'x'; 1024 * 1024];
    let found = (0..80).find_map(|_| {
        decoder.buffer().put_slice(&piece);
        decoder.next_item()
    });
    let Some(Item::Oversize { head, length }) = found else { panic!("still reading") };
    assert_eq!(head.len(), LIMIT);
    assert!(length <= SKIPPED_BYTES_MAX + 2 * piece.len() as u64, "{length}");
}
