//! MLLP framing: `VT body FS CR`, as a streaming decoder and an encoder.
//!
//! The decoder takes bytes as the network hands them out, in whatever pieces, in time linear in their number. It must
//! never hand out a partial frame as a message, never join two frames, and never hold more than its limit and one read.

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr_iter, memchr2};

/// Starts a frame.
pub(crate) const VT: u8 = 0x0b;
/// Ends a frame together with the CR that follows it.
pub(crate) const FS: u8 = 0x1c;
pub(crate) const CR: u8 = 0x0d;
const LF: u8 = 0x0a;
const END: [u8; 2] = [FS, CR];

/// What is kept of a frame above the limit: enough for the MSH segment, so that the refusal names the message.
pub(crate) const OVERSIZE_HEAD_BYTES: usize = 4 * 1024;

/// What the decoder found.
#[derive(PartialEq, Eq)]
pub(crate) enum Item {
    /// A whole body, without its framing. Never empty.
    Frame(Bytes),
    /// A frame that ended properly but was longer than the limit; the stream is in step again.
    Oversize { head: Bytes, length: u64 },
    /// A frame that never ended because the sender started another one.
    Abandoned { length: u64 },
}

impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Frame(body) => write!(f, "Frame({} bytes)", body.len()),
            Self::Oversize { length, .. } => write!(f, "Oversize({length} bytes)"),
            Self::Abandoned { length } => write!(f, "Abandoned({length} bytes)"),
        }
    }
}

/// The stream ended inside a frame: that message was never completely sent and must not be answered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the connection ended inside a frame, after {received} bytes of it")]
pub(crate) struct EndInsideFrame {
    pub(crate) received: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Between frames: everything up to the next VT is thrown away.
    Outside,
    /// In a body that starts at the beginning of the buffer; the first `scanned` bytes hold no end.
    Inside { scanned: usize },
    /// In a body above the limit; `length` bytes of it have been thrown away after its head was kept.
    Skipping { length: u64 },
}

/// Finds frames in a stream of bytes.
pub(crate) struct Decoder {
    buffer: BytesMut,
    place: Place,
    oversize_head: Bytes,
    body_bytes_max: usize,
    junk_bytes: u64,
}

impl Decoder {
    pub(crate) fn new(body_bytes_max: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            place: Place::Outside,
            oversize_head: Bytes::new(),
            body_bytes_max,
            junk_bytes: 0,
        }
    }

    /// Where the next bytes from the network go (appended at its end).
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Bytes outside of any frame that were neither CR nor LF. Those two between frames are common and harmless.
    pub(crate) fn junk_bytes(&self) -> u64 {
        self.junk_bytes
    }

    /// True while a frame has begun and not ended: the sender owes us bytes.
    pub(crate) fn inside_frame(&self) -> bool {
        self.place != Place::Outside
    }

    /// The next item in the bytes received so far, or `None` when more are needed.
    pub(crate) fn next_item(&mut self) -> Option<Item> {
        loop {
            let step = match self.place {
                Place::Outside => self.seek_start(),
                Place::Inside { scanned } => self.scan_body(scanned),
                Place::Skipping { length } => self.skip_body(length),
            };
            match step {
                Step::Again => {}
                Step::Starved => return None,
                Step::Found(item) => return Some(item),
            }
        }
    }

    /// To be called when the peer has closed: an error if that cut a frame.
    pub(crate) fn finish(&self) -> Result<(), EndInsideFrame> {
        match self.place {
            Place::Outside => Ok(()),
            Place::Inside { .. } => Err(EndInsideFrame { received: self.buffer.len() as u64 }),
            Place::Skipping { length } => {
                Err(EndInsideFrame { received: length.saturating_add(self.buffer.len() as u64) })
            }
        }
    }

    fn seek_start(&mut self) -> Step {
        let start = memchr(VT, &self.buffer);
        let junk = &self.buffer[..start.unwrap_or(self.buffer.len())];
        let counted = junk.iter().filter(|byte| !matches!(**byte, CR | LF)).count();
        self.junk_bytes = self.junk_bytes.saturating_add(counted as u64);
        match start {
            Some(at) => {
                self.buffer.advance(at + 1);
                self.place = Place::Inside { scanned: 0 };
                Step::Again
            }
            None => {
                // Not `clear()`: an idle connection would keep the memory of its largest message.
                self.buffer = BytesMut::new();
                Step::Starved
            }
        }
    }

    fn scan_body(&mut self, scanned: usize) -> Step {
        match find_mark(&self.buffer, scanned) {
            Mark::End { at } if at > self.body_bytes_max => self.begin_skipping(),
            Mark::Start { at } if at > self.body_bytes_max => self.begin_skipping(),
            Mark::None { scanned } if scanned > self.body_bytes_max => self.begin_skipping(),
            Mark::End { at } => {
                let body = self.buffer.split_to(at).freeze();
                self.buffer.advance(END.len());
                self.place = Place::Outside;
                // `VT FS CR`, and what senders that double their framing leave behind: not a message.
                if body.is_empty() { Step::Again } else { Step::Found(Item::Frame(body)) }
            }
            Mark::Start { at } => {
                self.buffer.advance(at + 1);
                self.place = Place::Inside { scanned: 0 };
                // A doubled VT loses nothing.
                if at == 0 { Step::Again } else { Step::Found(Item::Abandoned { length: at as u64 }) }
            }
            Mark::None { scanned } => {
                self.place = Place::Inside { scanned };
                Step::Starved
            }
        }
    }

    /// Keeps the head and goes on without storing the rest.
    fn begin_skipping(&mut self) -> Step {
        let head_bytes = OVERSIZE_HEAD_BYTES.min(self.body_bytes_max);
        // Copied, so that the head does not keep the whole body's memory alive.
        self.oversize_head = Bytes::copy_from_slice(&self.buffer[..head_bytes]);
        self.buffer.advance(head_bytes);
        self.place = Place::Skipping { length: head_bytes as u64 };
        Step::Again
    }

    fn skip_body(&mut self, length: u64) -> Step {
        match find_mark(&self.buffer, 0) {
            Mark::End { at } => {
                self.buffer.advance(at + END.len());
                self.place = Place::Outside;
                let length = length.saturating_add(at as u64);
                Step::Found(Item::Oversize { head: std::mem::take(&mut self.oversize_head), length })
            }
            Mark::Start { at } => {
                self.buffer.advance(at + 1);
                self.place = Place::Inside { scanned: 0 };
                self.oversize_head = Bytes::new();
                Step::Found(Item::Abandoned { length: length.saturating_add(at as u64) })
            }
            Mark::None { scanned } => {
                self.buffer.advance(scanned);
                self.place = Place::Skipping { length: length.saturating_add(scanned as u64) };
                Step::Starved
            }
        }
    }
}

enum Step {
    Again,
    Starved,
    Found(Item),
}

enum Mark {
    /// FS CR, with FS at this index.
    End { at: usize },
    /// A VT at this index.
    Start { at: usize },
    /// Neither; the next search may begin at this index (an FS whose follower is still to come is not passed).
    None { scanned: usize },
}

/// Strict: an FS that no CR follows is a byte of the body.
fn find_mark(buffer: &[u8], from: usize) -> Mark {
    let mut at = from;
    while let Some(found) = memchr2(VT, FS, &buffer[at..]) {
        at += found;
        if buffer[at] == VT {
            return Mark::Start { at };
        }
        match buffer.get(at + 1) {
            Some(&CR) => return Mark::End { at },
            Some(_) => at += 1,
            None => return Mark::None { scanned: at },
        }
    }
    Mark::None { scanned: buffer.len() }
}

/// A body that MLLP cannot carry.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Unframeable {
    #[error("the body is empty")]
    Empty,
    #[error(
        "the body contains the frame start byte 0x0B at offset {at}; the receiver would cut the message there"
    )]
    StartInside { at: usize },
    #[error(
        "the body contains the frame end 0x1C 0x0D at offset {at}; the receiver would cut the message there"
    )]
    EndInside { at: usize },
}

/// The frame around a body, to be written with one vectored write. The body is not copied.
pub(crate) fn frame(body: &Bytes) -> Result<impl Buf + use<>, Unframeable> {
    if body.is_empty() {
        return Err(Unframeable::Empty);
    }
    if let Some(at) = memchr(VT, body) {
        return Err(Unframeable::StartInside { at });
    }
    if let Some(at) = memchr_iter(FS, body).find(|at| body.get(at + 1) == Some(&CR)) {
        return Err(Unframeable::EndInside { at });
    }
    const START: &[u8] = &[VT];
    Ok(START.chain(body.clone()).chain(&END[..]))
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64;

    fn decode_in_pieces(pieces: &[&[u8]], limit: usize) -> (Vec<Item>, Decoder) {
        let mut decoder = Decoder::new(limit);
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
        assert_eq!(
            decode(b"\x0bhalf\x1c\x0bwhole\x1c\r"),
            [Item::Abandoned { length: 5 }, frame_of(b"whole")]
        );
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
        let mut decoder = Decoder::new(limit);
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
        assert_eq!(
            decode_in_pieces(&[b"\x0babc\x1c"], LIMIT).1.finish(),
            Err(EndInsideFrame { received: 4 })
        );
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
        let mut decoder = Decoder::new(body.len());
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
}
