//! MLLP framing: `VT body FS CR`, as a streaming decoder and an encoder.
//!
//! The decoder takes bytes as the network hands them out, in whatever pieces, in time linear in their number. It must
//! never hand out a partial frame as a message, never join two frames, and never hold more than its limit and one read.
//!
//! Source: HL7 Implementation Support Guide, appendix C (MLLP release 1).

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr_iter, memchr2};

/// Starts a frame.
pub(crate) const VT: u8 = 0x0b;
/// Ends a frame together with the CR that follows it.
pub(crate) const FS: u8 = 0x1c;
pub(crate) const CR: u8 = 0x0d;
const LF: u8 = 0x0a;
const END: [u8; 2] = [FS, CR];

/// How far a frame above the limit is followed to its end. A sender that goes on beyond that is not in step with us.
const SKIPPED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is kept of a frame above the limit: enough for the MSH segment, so that the refusal names the message.
pub(crate) const OVERSIZE_HEAD_BYTES: usize = 4 * 1024;

/// The body by which release 2 says that what came is on stable storage; no message.
pub(crate) const COMMITTED: &[u8] = &[0x06];
/// Likewise that it is not.
pub(crate) const NOT_COMMITTED: &[u8] = &[0x15];

/// What the decoder found.
#[derive(PartialEq, Eq)]
pub(crate) enum Item {
    /// A whole body, without its framing. Never empty.
    Frame(Bytes),
    /// A frame longer than the limit. It has ended, or has gone on for so long that its end is not worth waiting for.
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

/// What ends a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// FS CR. An FS that no CR follows is a byte of the body.
    Strict,
    /// Also FS and the start of the next frame, or FS and nothing more: for senders that leave the CR away.
    Lenient,
}

/// Finds frames in a stream of bytes.
pub(crate) struct Decoder {
    ending: Ending,
    buffer: BytesMut,
    place: Place,
    oversize_head: Bytes,
    body_bytes_max: usize,
    junk_bytes: u64,
}

impl Decoder {
    pub(crate) fn new(body_bytes_max: usize, ending: Ending) -> Self {
        Self {
            ending,
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

    /// An FS has come and nothing after it: if nothing does, the frame has ended, as [`Decoder::take_open_end`] says.
    /// Never in strict mode.
    pub(crate) fn end_is_open(&self) -> bool {
        self.ending == Ending::Lenient && self.inside_frame() && self.buffer.last() == Some(&FS)
    }

    /// Takes the frame whose end is open, after silence or the connection's end has shown that no CR will come.
    pub(crate) fn take_open_end(&mut self) -> Option<Item> {
        if !self.end_is_open() {
            return None;
        }
        // Whatever is scanned next is outside of the frame; a CR that comes after all is harmless there.
        self.buffer.extend_from_slice(&[CR]);
        self.next_item()
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
        match find_mark(&self.buffer, scanned, self.ending) {
            Mark::End { at, .. } if at > self.body_bytes_max => self.begin_skipping(),
            Mark::Start { at } if at > self.body_bytes_max => self.begin_skipping(),
            Mark::None { scanned } if scanned > self.body_bytes_max => self.begin_skipping(),
            Mark::End { at, length } => {
                let body = self.buffer.split_to(at).freeze();
                self.buffer.advance(length);
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
        match find_mark(&self.buffer, 0, self.ending) {
            Mark::End { at, length: end } => {
                self.buffer.advance(at + end);
                self.found_oversize(length.saturating_add(at as u64))
            }
            Mark::Start { at } => {
                self.buffer.advance(at + 1);
                self.place = Place::Inside { scanned: 0 };
                self.oversize_head = Bytes::new();
                Step::Found(Item::Abandoned { length: length.saturating_add(at as u64) })
            }
            Mark::None { scanned } => {
                self.buffer.advance(scanned);
                let length = length.saturating_add(scanned as u64);
                if length > SKIPPED_BYTES_MAX.saturating_add(self.body_bytes_max as u64) {
                    return self.found_oversize(length);
                }
                self.place = Place::Skipping { length };
                Step::Starved
            }
        }
    }

    fn found_oversize(&mut self, length: u64) -> Step {
        self.place = Place::Outside;
        Step::Found(Item::Oversize { head: std::mem::take(&mut self.oversize_head), length })
    }
}

enum Step {
    Again,
    Starved,
    Found(Item),
}

enum Mark {
    /// An end of so many bytes at this index.
    End { at: usize, length: usize },
    /// A VT at this index.
    Start { at: usize },
    /// Neither; the next search may begin at this index (an FS whose follower is still to come is not passed).
    None { scanned: usize },
}

fn find_mark(buffer: &[u8], from: usize, ending: Ending) -> Mark {
    let mut at = from;
    while let Some(found) = memchr2(VT, FS, &buffer[at..]) {
        at += found;
        if buffer[at] == VT {
            return Mark::Start { at };
        }
        match buffer.get(at + 1) {
            Some(&CR) => return Mark::End { at, length: END.len() },
            Some(&VT) if ending == Ending::Lenient => return Mark::End { at, length: 1 },
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
    Ok(enclosed(body.clone()))
}

/// The frame around a body in two parts, the first of which may be empty; what is put into one that fits must fit too.
pub(crate) fn framed_in_parts(head: Bytes, rest: Bytes) -> impl Buf + use<> {
    const START: &[u8] = &[VT];
    START.chain(head).chain(rest).chain(&END[..])
}

/// The frame around bytes of our own that are known to fit.
pub(crate) fn enclosed(body: Bytes) -> impl Buf + use<> {
    const START: &[u8] = &[VT];
    START.chain(body).chain(&END[..])
}

#[cfg(test)]
mod tests;
