//! Writing a leaf: keys in order, nothing optional in the spelling, one allocation.

use super::{INTEGER_MAX, Leaf, LeafDelivery, LeafError, instant, is_code};
use crate::tiles::ENTRY_BYTES_MAX;

/// Room for an ordinary leaf, so that it is allocated once.
const LEAF_BYTES_USUAL: usize = 416;
const DELIVERY_BYTES_USUAL: usize = 80;

const HEX: &[u8; 16] = b"0123456789abcdef";

impl Leaf<'_> {
    /// The canonical bytes.
    pub fn encode(&self) -> Result<Vec<u8>, LeafError> {
        let mut out = Vec::with_capacity(LEAF_BYTES_USUAL + DELIVERY_BYTES_USUAL * self.deliveries.len());
        self.write(&mut out)?;
        if out.len() > ENTRY_BYTES_MAX {
            return Err(LeafError::TooLong(out.len()));
        }
        Ok(out)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), LeafError> {
        out.extend_from_slice(b"{\"at\":\"");
        let at = instant::format(self.at);
        out.extend_from_slice(&at.ok_or(LeafError::WrongValue { key: "at", expected: AT_EXPECTED })?);
        out.push(b'"');
        integer(out, "attempt", self.attempt.map(u64::from))?;
        integer(out, "attempts", self.attempts.map(u64::from))?;
        key(out, "by");
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(self.by.kind.as_str().as_bytes());
        out.extend_from_slice(b"\",\"name\":");
        quoted(out, &self.by.name);
        out.push(b'}');
        if self.code.as_deref().is_some_and(|code| !is_code(code)) {
            return Err(LeafError::WrongValue { key: "code", expected: CODE_EXPECTED });
        }
        text(out, "code", self.code.as_deref());
        digest(out, "content", self.content.as_ref());
        integer(out, "count", self.count)?;
        deliveries(out, &self.deliveries);
        uuid(out, "delivery", self.delivery.as_ref());
        text(out, "destination", self.destination.as_deref());
        if let Some(doubt) = self.doubt {
            key(out, "doubt");
            out.extend_from_slice(if doubt { b"true" } else { b"false" });
        }
        word(out, "event", Some(self.event.as_str()));
        digest(out, "evidence", self.evidence.as_ref());
        word(out, "level", self.level.map(super::Level::as_str));
        uuid(out, "message", self.message.as_ref());
        integer(out, "series", self.series.map(u64::from))?;
        integer(out, "session", self.session)?;
        integer(out, "size", self.size)?;
        word(out, "state", self.state.map(super::State::as_str));
        text(out, "subject_of", self.subject_of.as_deref());
        out.extend_from_slice(b",\"v\":1}");
        Ok(())
    }
}

pub(super) const AT_EXPECTED: &str = "a UTC time with six decimals between 1970 and 9999";
pub(super) const CODE_EXPECTED: &str = "a code of 1 to 40 characters a-z, 0-9 and _";
pub(super) const INTEGER_EXPECTED: &str = "an integer up to 2^53-1";

fn key(out: &mut Vec<u8>, key: &'static str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn integer(out: &mut Vec<u8>, name: &'static str, value: Option<u64>) -> Result<(), LeafError> {
    let Some(mut value) = value else { return Ok(()) };
    if value > INTEGER_MAX {
        return Err(LeafError::WrongValue { key: name, expected: INTEGER_EXPECTED });
    }
    key(out, name);
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
    Ok(())
}

/// A value that needs no escaping.
fn word(out: &mut Vec<u8>, name: &'static str, word: Option<&str>) {
    if let Some(word) = word {
        key(out, name);
        out.push(b'"');
        out.extend_from_slice(word.as_bytes());
        out.push(b'"');
    }
}

fn text(out: &mut Vec<u8>, name: &'static str, text: Option<&str>) {
    if let Some(text) = text {
        key(out, name);
        quoted(out, text);
    }
}

fn digest(out: &mut Vec<u8>, name: &'static str, digest: Option<&[u8; 32]>) {
    if let Some(digest) = digest {
        key(out, name);
        out.push(b'"');
        hex(out, digest);
        out.push(b'"');
    }
}

fn uuid(out: &mut Vec<u8>, name: &'static str, id: Option<&[u8; 16]>) {
    if let Some(id) = id {
        key(out, name);
        quoted_uuid(out, id);
    }
}

fn deliveries(out: &mut Vec<u8>, deliveries: &[LeafDelivery<'_>]) {
    if deliveries.is_empty() {
        return;
    }
    key(out, "deliveries");
    let mut separator = b'[';
    for delivery in deliveries {
        out.push(separator);
        out.extend_from_slice(b"{\"id\":");
        quoted_uuid(out, &delivery.id);
        out.extend_from_slice(b",\"to\":");
        quoted(out, &delivery.to);
        out.push(b'}');
        separator = b',';
    }
    out.push(b']');
}

fn quoted_uuid(out: &mut Vec<u8>, id: &[u8; 16]) {
    out.push(b'"');
    hex(out, &id[..4]);
    for group in [&id[4..6], &id[6..8], &id[8..10], &id[10..]] {
        out.push(b'-');
        hex(out, group);
    }
    out.push(b'"');
}

fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.iter().flat_map(|byte| [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]));
}

/// RFC 8785 §3.2.2.2: the two-character escapes where JSON has them, `\u00xx` for other controls, all else literal.
fn quoted(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(stop) = rest.iter().position(|&byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        out.extend_from_slice(&rest[..stop]);
        let byte = rest[stop];
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            _ => {
                out.extend_from_slice(b"\\u00");
                hex(out, &[byte]);
            }
        }
        rest = &rest[stop + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}
