//! An HTTP answer as far as a load generator needs it: the status, and where the answer ends. It shares the machine with
//! the gateway it measures, so what it does not do counts.

use std::io;

use memchr::memmem;

/// Heads of answers are far smaller.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Of an answer that is no success, so much is kept to say why.
const REFUSAL_BYTES_MAX: usize = 16 * 1024;

/// One answer at a time, in whatever pieces it arrives.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The head as far as it has arrived; empty when it comes in one piece, which is the rule.
    head: Vec<u8>,
    open: Option<Open>,
    /// The body of an answer that is no success.
    pub(super) refusal: Vec<u8>,
}

/// Its head has been read.
#[derive(Clone, Copy, Debug)]
struct Open {
    status: u16,
    missing: usize,
}

impl Answer {
    /// Takes what has arrived; gives the status when the answer is whole, and is then ready for the next.
    pub(super) fn take(&mut self, piece: &[u8]) -> io::Result<Option<u16>> {
        let body = match self.open {
            Some(_) => piece,
            None if self.head.is_empty() => match self.begin(piece)? {
                Some(end) => &piece[end..],
                None => return Ok(None),
            },
            None => {
                let before = self.head.len();
                let mut head = std::mem::take(&mut self.head);
                head.extend_from_slice(piece);
                match self.begin(&head)? {
                    Some(end) => &piece[end - before..],
                    None => return Ok(None),
                }
            }
        };
        self.fill(body)
    }

    /// Reads the head if it is whole, and gives where it ends; else keeps what there is of it.
    fn begin(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let Some(end) = end_of_head(bytes) else {
            if bytes.len() > HEAD_BYTES_MAX {
                return Err(io::Error::other("the answer's head has no end"));
            }
            self.head = bytes.to_vec();
            return Ok(None);
        };
        let (status, missing) = parse_head(&bytes[..end])?;
        self.open = Some(Open { status, missing });
        self.refusal.clear();
        Ok(Some(end))
    }

    fn fill(&mut self, body: &[u8]) -> io::Result<Option<u16>> {
        let Some(Open { status, missing }) = self.open else { return Ok(None) };
        if !(200..300).contains(&status) {
            let room = REFUSAL_BYTES_MAX - self.refusal.len().min(REFUSAL_BYTES_MAX);
            self.refusal.extend_from_slice(&body[..body.len().min(room)]);
        }
        let missing =
            missing.checked_sub(body.len()).ok_or_else(|| io::Error::other("an answer to no request"))?;
        self.open = (missing > 0).then_some(Open { status, missing });
        Ok((missing == 0).then_some(status))
    }
}

/// Where the body begins.
pub(super) fn end_of_head(bytes: &[u8]) -> Option<usize> {
    memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The status and the length of the body.
pub(super) fn parse_head(head: &[u8]) -> io::Result<(u16, usize)> {
    const LENGTH: &[u8] = b"content-length:";
    let malformed = || io::Error::other("the answer is not HTTP/1.1 with a length");
    let status = head.strip_prefix(b"HTTP/1.1 ").and_then(|rest| number(rest.get(..3)?));
    let length = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(LENGTH.len())?;
        name.eq_ignore_ascii_case(LENGTH).then(|| number(value.trim_ascii()))?
    });
    match (status, length) {
        (Some(status), Some(length)) => Ok((u16::try_from(status).map_err(|_| malformed())?, length)),
        _ => Err(malformed()),
    }
}

fn number(digits: &[u8]) -> Option<usize> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read() {
        let head = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n";
        assert_eq!(end_of_head(head), Some(head.len()));
        assert_eq!(parse_head(head).unwrap(), (202, 12));
        assert!(parse_head(b"HTTP/1.1 202 Accepted\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"SMTP 202\r\ncontent-length: 1\r\n\r\n").is_err());
        assert_eq!(end_of_head(b"HTTP/1.1 202"), None);
    }

    #[test]
    fn answers_are_read_in_pieces_of_any_size() {
        let wire = b"HTTP/1.1 202 Accepted\r\ncontent-length: 5\r\n\r\nhello";
        let mut answer = Answer::default();
        for size in 1..=wire.len() {
            let mut taken = wire.chunks(size).map(|piece| answer.take(piece).unwrap()).peekable();
            while let Some(status) = taken.next() {
                assert_eq!(status, if taken.peek().is_none() { Some(202) } else { None }, "pieces of {size}");
            }
        }
    }

    #[test]
    fn what_a_refusal_says_is_kept_and_what_nobody_asked_for_is_an_error() {
        let mut answer = Answer::default();
        assert_eq!(answer.take(b"HTTP/1.1 429 No\r\ncontent-length: 2\r\n\r\n{}").unwrap(), Some(429));
        assert_eq!(answer.refusal, b"{}");
        assert_eq!(answer.take(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap(), Some(200));
        assert_eq!(answer.refusal, b"");
        assert!(answer.take(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nxx").is_err());
    }
}
