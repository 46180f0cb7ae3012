//! Batches: `[FHS] [BHS] { MSH … } [BTS] [FTS]` in one frame, taken apart into their messages.
//!
//! Works on bytes; each message is a slice of the frame. It must never hand out the messages of a batch whose trailer
//! counts differently: something has got lost on the way, and nobody knows what.
//!
//! Source: HL7 version 2.5.1, chapter 2, sections 2.10.3 (protocol) and 2.15 (FHS, FTS, BHS, BTS).

use bytes::Bytes;

use crate::header::{Delimiters, HeaderError};
use crate::mllp::CR;

const LF: u8 = 0x0a;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// FHS and BHS have the fields of MSH up to here, by the same numbers.
const SENDING_APPLICATION: usize = 3;
const CONTROL_ID: usize = 11;
const REFERENCE_ID: usize = 12;
/// The segments that a batch is taken apart at.
const BORDERS: [&str; 5] = ["FHS", "BHS", "MSH", "BTS", "FTS"];

/// Why a batch is not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum BatchError {
    #[error("the {0} segment does not name usable delimiters")]
    Delimiters(&'static str),
    #[error("a {0} segment stands where it has no place")]
    Misplaced(&'static str),
    #[error("a {0} segment follows an LF, and the segments of this batch end in CR")]
    Hidden(&'static str),
    #[error("the first segment in the batch is no MSH")]
    NoMessage,
    #[error("{trailer} counts {said}, and there are {found}")]
    Count { trailer: &'static str, said: u64, found: u64 },
    #[error("{0} is not a number")]
    NoCount(&'static str),
    #[error("more than {0} messages in one frame")]
    TooMany(usize),
    #[error("message {number} of the batch: {error}")]
    Message { number: usize, error: HeaderError },
}

/// The messages of a frame, in order.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// FHS-11.
    pub(crate) file_id: Bytes,
    pub(crate) messages: Vec<Member>,
    /// What the frame begins with, for an answer in its dialect.
    pub(crate) head: Head,
}

#[derive(PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) body: Bytes,
    /// BHS-11 of the batch that it stands in; a slice of the frame, which a thousand messages share.
    pub(crate) batch_id: Bytes,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Member({} bytes)", self.body.len())
    }
}

/// The first FHS or BHS: who sent the batch, and how it writes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) delimiters: Delimiters,
    /// BHS-2.
    pub(crate) encoding_characters: Vec<u8>,
    /// BHS-3 to BHS-6: sending application and facility, receiving application and facility.
    pub(crate) parties: [Vec<u8>; 4],
    /// BHS-11 of the first batch.
    pub(crate) control_id: Bytes,
    /// BHS-12 names the batch that this one answers.
    pub(crate) is_answer: bool,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Head").field("delimiters", &self.delimiters).finish_non_exhaustive()
    }
}

/// Whether a frame holds a batch and not one message.
pub(crate) fn is_batch(body: &[u8]) -> bool {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let body = body.trim_ascii_start();
    body.starts_with(b"FHS") || body.starts_with(b"BHS")
}

/// Takes a frame apart. The messages are not read.
pub(crate) fn split(body: &Bytes, messages_max: usize) -> Result<Batch, BatchError> {
    let mut open = Open::default();
    // An LF within a field of a CR message is text, but what ends a header ends every segment of its message.
    // This is the separator of a message that ends its segments so.
    let mut in_lf = None;
    for (start, end) in lines(body) {
        let line = &body[start..end];
        if border(line).is_some() {
            open.close_message(body, start, messages_max)?;
            in_lf = line.get(3).copied().filter(|_| line.contains(&LF));
        }
        if let Some(own) = in_lf
            && let Some((_, name)) = hidden(line, [open.separator(), own]).next()
        {
            return Err(BatchError::Hidden(name));
        }
        match line.get(..3) {
            Some(b"FHS") => open.file(body, line)?,
            Some(b"BHS") => open.batch(body, line)?,
            Some(b"MSH") => open.message = Some(start),
            Some(b"BTS") => open.batch_end(line)?,
            Some(b"FTS") => open.file_end(line)?,
            _ if open.message.is_none() && !line.is_empty() => return Err(BatchError::NoMessage),
            _ => {}
        }
    }
    open.close_message(body, body.len(), messages_max)?;
    open.finish()
}

/// The messages of a frame that is no proper batch, so that they can be refused by their ids. `None` when it has not even a
/// head; of very many the first ones.
pub(crate) fn split_unchecked(body: &Bytes, messages_max: usize) -> Option<Batch> {
    let mut open = Open::default();
    let mut starts = Vec::new();
    for (start, end) in lines(body) {
        let line = &body[start..end];
        match line.get(..3) {
            Some(name @ (b"FHS" | b"BHS")) if open.head.is_none() => {
                let name = if name == b"FHS" { "FHS" } else { "BHS" };
                open.head = read_head(body, line, name).ok();
            }
            Some(b"MSH") => {
                let is_message = |(at, name)| (name == "MSH").then_some(start + at);
                let separators = [open.separator(), line.get(3).copied().unwrap_or(LF)];
                starts.push(start);
                starts.extend(hidden(line, separators).filter_map(is_message).take(messages_max));
                starts.truncate(messages_max);
            }
            _ => {}
        }
    }
    let ends = starts.iter().skip(1).copied().chain([body.len()]);
    let member = |(start, end)| Member { body: body.slice(start..end), batch_id: Bytes::new() };
    let messages = starts.iter().copied().zip(ends).map(member).collect();
    Some(Batch { file_id: Bytes::new(), messages, head: open.head? })
}

/// Start and end of each segment. Whatever ends the first one ends all, and CR does in any case: behind a head that ends in LF it would
/// else hide messages and a trailer. A mark and blank lines before it are passed over.
fn lines(body: &[u8]) -> impl Iterator<Item = (usize, usize)> {
    let marked = if body.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
    let blank = body[marked..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let mut at = marked + blank;
    let terminator = body[at..].iter().copied().find(|byte| matches!(*byte, CR | LF)).unwrap_or(CR);
    std::iter::from_fn(move || {
        // The LF of CR LF belongs to the end before it, and so do those of blank lines.
        while body.get(at) == Some(&LF) && terminator == CR {
            at += 1;
        }
        let rest = body.get(at..).filter(|rest| !rest.is_empty())?;
        let start = at;
        let length = if terminator == CR { memchr::memchr(CR, rest) } else { memchr::memchr2(CR, LF, rest) };
        let end = length.map_or(body.len(), |length| at + length);
        at = end + 1;
        Some((start, end))
    })
}

fn border(line: &[u8]) -> Option<&'static str> {
    BORDERS.into_iter().find(|name| line.starts_with(name.as_bytes()))
}

/// Borders behind an LF within a line, and where they begin. The separators are the batch's and the message's; a header may bring its own.
fn hidden(line: &[u8], separators: [u8; 2]) -> impl Iterator<Item = (usize, &'static str)> {
    memchr::memchr_iter(LF, line).filter_map(move |at| {
        let behind = &line[at + 1..];
        let name = border(behind)?;
        let brings_its_own = !matches!(name, "BTS" | "FTS");
        let is_segment = behind.get(3).is_none_or(|next| {
            *next == LF || separators.contains(next) || brings_its_own && next.is_ascii_punctuation()
        });
        is_segment.then_some((at + 1, name))
    })
}

#[derive(Default)]
struct Open {
    head: Option<Head>,
    file_id: Bytes,
    /// Batches that have begun.
    batches: u64,
    /// The batch that is open: its id, and its messages so far.
    batch: Option<(Bytes, u64)>,
    /// Where the message that is open begins.
    message: Option<usize>,
    messages: Vec<Member>,
    ended: bool,
}

impl Open {
    fn separator(&self) -> u8 {
        self.head.as_ref().map_or(b'|', |head| head.delimiters.field)
    }

    fn file(&mut self, body: &Bytes, line: &[u8]) -> Result<(), BatchError> {
        if self.head.is_some() || !self.messages.is_empty() {
            return Err(BatchError::Misplaced("FHS"));
        }
        let mut head = read_head(body, line, "FHS")?;
        self.file_id = std::mem::take(&mut head.control_id);
        self.head = Some(head);
        Ok(())
    }

    fn batch(&mut self, body: &Bytes, line: &[u8]) -> Result<(), BatchError> {
        let is_behind_messages = self.head.is_none() && !self.messages.is_empty();
        if self.ended || self.batch.is_some() || is_behind_messages {
            return Err(BatchError::Misplaced("BHS"));
        }
        let head = read_head(body, line, "BHS")?;
        self.batch = Some((head.control_id.clone(), 0));
        self.batches += 1;
        match &mut self.head {
            None => self.head = Some(head),
            Some(first) => {
                first.is_answer |= head.is_answer;
                if first.control_id.is_empty() {
                    first.control_id = head.control_id;
                }
            }
        }
        Ok(())
    }

    fn batch_end(&mut self, line: &[u8]) -> Result<(), BatchError> {
        let (_, found) = self.batch.take().ok_or(BatchError::Misplaced("BTS"))?;
        self.check_count(line, "BTS-1", found)
    }

    fn file_end(&mut self, line: &[u8]) -> Result<(), BatchError> {
        if self.ended || self.batch.is_some() || self.head.is_none() {
            return Err(BatchError::Misplaced("FTS"));
        }
        self.ended = true;
        self.check_count(line, "FTS-1", self.batches)
    }

    fn check_count(&self, line: &[u8], trailer: &'static str, found: u64) -> Result<(), BatchError> {
        let separator = self.separator();
        let field = line.split(|byte| *byte == separator).nth(1).unwrap_or_default().trim_ascii();
        if field.is_empty() {
            // Optional, and then nothing is said.
            return Ok(());
        }
        let said = std::str::from_utf8(field).ok().and_then(|text| text.parse().ok());
        match said {
            None => Err(BatchError::NoCount(trailer)),
            Some(said) if said == found => Ok(()),
            Some(said) => Err(BatchError::Count { trailer, said, found }),
        }
    }

    fn close_message(&mut self, body: &Bytes, end: usize, messages_max: usize) -> Result<(), BatchError> {
        let Some(start) = self.message.take() else { return Ok(()) };
        if self.ended || (self.batches > 0 && self.batch.is_none()) {
            return Err(BatchError::Misplaced("MSH"));
        }
        if self.messages.len() == messages_max {
            return Err(BatchError::TooMany(messages_max));
        }
        let mut batch_id = Bytes::new();
        if let Some((id, messages)) = &mut self.batch {
            *messages += 1;
            batch_id.clone_from(id);
        }
        self.messages.push(Member { body: body.slice(start..end), batch_id });
        Ok(())
    }

    fn finish(self) -> Result<Batch, BatchError> {
        let head = self.head.ok_or(BatchError::NoMessage)?;
        Ok(Batch { file_id: self.file_id, messages: self.messages, head })
    }
}

/// From a line of `body`.
fn read_head(body: &Bytes, line: &[u8], name: &'static str) -> Result<Head, BatchError> {
    let delimiters = Delimiters::read(&line[3..]).map_err(|_| BatchError::Delimiters(name))?;
    // The separator is the first field, so numbers are one higher than indexes.
    let mut fields = line.split(|byte| *byte == delimiters.field).skip(1);
    let encoding_characters = fields.next().unwrap_or_default().to_vec();
    let rest: Vec<&[u8]> = fields.take(REFERENCE_ID + 1 - SENDING_APPLICATION).collect();
    let field =
        |number: usize| rest.get(number - SENDING_APPLICATION).copied().unwrap_or_default().trim_ascii();
    Ok(Head {
        delimiters,
        encoding_characters,
        parties: [3, 4, 5, 6].map(|number| field(number).to_vec()),
        control_id: body.slice_ref(field(CONTROL_ID)),
        is_answer: !field(REFERENCE_ID).is_empty(),
    })
}

#[cfg(test)]
mod tests;
