//! Reading a leaf strictly: keys in order and known, values of their types, and the same bytes when written again.

use std::borrow::Cow;

use super::encode::{AT_EXPECTED, CODE_EXPECTED, INTEGER_EXPECTED};
use super::{
    ActorKind, By, Event, INTEGER_MAX, Leaf, LeafDelivery, LeafError, Level, State, instant, is_code,
};
use crate::tiles::ENTRY_BYTES_MAX;

/// Every key in canonical order. Those that a leaf must have: `at`, `by`, `event`, `v`.
const KEYS: [&str; 21] = [
    "at",
    "attempt",
    "attempts",
    "by",
    "code",
    "content",
    "count",
    "deliveries",
    "delivery",
    "destination",
    "doubt",
    "event",
    "evidence",
    "level",
    "message",
    "series",
    "session",
    "size",
    "state",
    "subject_of",
    "v",
];
const REQUIRED: [&str; 4] = ["at", "by", "event", "v"];
/// Characters of a foreign word that an error repeats.
const WORD_CHARS_SHOWN: usize = 40;

impl<'a> Leaf<'a> {
    /// Reads the canonical bytes of a leaf, and nothing else.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, LeafError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(LeafError::TooLong(bytes.len()));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| LeafError::NotUtf8)?;
        let leaf = Cursor { text, at: 0 }.leaf()?;
        // The cursor may be lenient about spelling; this makes one meaning have one encoding.
        let canonical = leaf.encode()?;
        if canonical == bytes {
            return Ok(leaf);
        }
        let offset = canonical.iter().zip(bytes).take_while(|(ours, theirs)| ours == theirs).count();
        Err(LeafError::NotCanonical { offset })
    }

    fn set(&mut self, key: &'static str, cursor: &mut Cursor<'a>) -> Result<(), LeafError> {
        match key {
            "at" => self.at = cursor.instant()?,
            "attempt" => self.attempt = Some(cursor.integer32(key)?),
            "attempts" => self.attempts = Some(cursor.integer32(key)?),
            "by" => self.by = cursor.by()?,
            "code" => self.code = Some(cursor.code()?),
            "content" => self.content = Some(cursor.digest(key)?),
            "count" => self.count = Some(cursor.integer(key)?),
            "deliveries" => self.deliveries = cursor.deliveries()?,
            "delivery" => self.delivery = Some(cursor.uuid(key)?),
            "destination" => self.destination = Some(cursor.text(key)?),
            "doubt" => self.doubt = Some(cursor.boolean(key)?),
            "event" => self.event = cursor.word(key, Event::from_word)?,
            "evidence" => self.evidence = Some(cursor.digest(key)?),
            "level" => self.level = Some(cursor.word(key, Level::from_word)?),
            "message" => self.message = Some(cursor.uuid(key)?),
            "series" => self.series = Some(cursor.integer32(key)?),
            "session" => self.session = Some(cursor.integer(key)?),
            "size" => self.size = Some(cursor.integer(key)?),
            "state" => self.state = Some(cursor.word(key, State::from_word)?),
            "subject_of" => self.subject_of = Some(cursor.text(key)?),
            _ => cursor.version()?,
        }
        Ok(())
    }
}

struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    fn leaf(&mut self) -> Result<Leaf<'a>, LeafError> {
        let mut leaf = Leaf::new(0, By::new(ActorKind::Gateway, ""), Event::LogOpened);
        let mut seen = [false; KEYS.len()];
        let mut next = 0;
        self.expect("{")?;
        loop {
            let start = self.at;
            let name = self.string().ok_or(LeafError::NotCanonical { offset: start })?;
            let Some(ahead) = KEYS[next..].iter().position(|key| *key == name) else {
                let known = KEYS.contains(&name.as_ref());
                let repeated = LeafError::NotCanonical { offset: start };
                return Err(if known { repeated } else { LeafError::UnknownKey(shown(&name)) });
            };
            let position = next + ahead;
            self.expect(":")?;
            leaf.set(KEYS[position], self)?;
            seen[position] = true;
            next = position + 1;
            if !self.skip(",") {
                break;
            }
        }
        self.expect("}")?;
        if self.at != self.text.len() {
            return Err(LeafError::NotCanonical { offset: self.at });
        }
        let missing = |required: &&str| KEYS.iter().zip(seen).any(|(key, seen)| key == required && !seen);
        match REQUIRED.iter().find(|required| missing(required)) {
            Some(key) => Err(LeafError::MissingKey(key)),
            None => Ok(leaf),
        }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), LeafError> {
        if self.skip(token) { Ok(()) } else { Err(LeafError::NotCanonical { offset: self.at }) }
    }

    /// A string; `None` when there is none here or it does not end.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let body = self.rest().strip_prefix('"')?;
        let stop = end_of_plain(body)?;
        if body.as_bytes()[stop] == b'"' {
            self.at += stop + 2;
            return Some(Cow::Borrowed(&body[..stop]));
        }
        let mut text = String::new();
        let mut rest = body;
        loop {
            let stop = end_of_plain(rest)?;
            text.push_str(&rest[..stop]);
            let end = rest.as_bytes()[stop] == b'"';
            rest = &rest[stop + 1..];
            if end {
                self.at = self.text.len() - rest.len();
                return Some(Cow::Owned(text));
            }
            let (character, length) = escape(rest)?;
            text.push(character);
            rest = &rest[length..];
        }
    }

    fn text(&mut self, key: &'static str) -> Result<Cow<'a, str>, LeafError> {
        self.string().ok_or(LeafError::WrongValue { key, expected: "a string" })
    }

    fn integer(&mut self, key: &'static str) -> Result<u64, LeafError> {
        let rest = self.rest();
        let digits = &rest[..rest.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len())];
        // "1.5" or "1e3" must not be read as the integer before the point.
        let whole = !rest[digits.len()..].starts_with(['.', 'e', 'E']);
        let value = digits.parse().ok().filter(|&value| whole && value <= INTEGER_MAX);
        self.at += digits.len();
        value.ok_or(LeafError::WrongValue { key, expected: INTEGER_EXPECTED })
    }

    fn integer32(&mut self, key: &'static str) -> Result<u32, LeafError> {
        let expected = "an integer below 2^32";
        let value = self.integer(key).map_err(|_| LeafError::WrongValue { key, expected })?;
        u32::try_from(value).map_err(|_| LeafError::WrongValue { key, expected })
    }

    fn boolean(&mut self, key: &'static str) -> Result<bool, LeafError> {
        if self.skip("true") {
            Ok(true)
        } else if self.skip("false") {
            Ok(false)
        } else {
            Err(LeafError::WrongValue { key, expected: "true or false" })
        }
    }

    fn version(&mut self) -> Result<(), LeafError> {
        let wrong = LeafError::WrongValue { key: "v", expected: "1, the version that this program reads" };
        if self.integer("v").is_ok_and(|version| version == 1) { Ok(()) } else { Err(wrong) }
    }

    fn word<T>(&mut self, key: &'static str, from_word: impl Fn(&str) -> Option<T>) -> Result<T, LeafError> {
        let word = self.text(key)?;
        from_word(&word).ok_or_else(|| LeafError::UnknownWord { key, word: shown(&word) })
    }

    fn instant(&mut self) -> Result<i64, LeafError> {
        let text = self.string();
        let at = text.and_then(|text| instant::parse(&text));
        at.ok_or(LeafError::WrongValue { key: "at", expected: AT_EXPECTED })
    }

    fn code(&mut self) -> Result<Cow<'a, str>, LeafError> {
        let code = self.string().filter(|code| is_code(code));
        code.ok_or(LeafError::WrongValue { key: "code", expected: CODE_EXPECTED })
    }

    fn digest(&mut self, key: &'static str) -> Result<[u8; 32], LeafError> {
        let digest = self.string().and_then(|text| hex(text.bytes()));
        digest.ok_or(LeafError::WrongValue { key, expected: "64 hexadecimal digits" })
    }

    fn uuid(&mut self, key: &'static str) -> Result<[u8; 16], LeafError> {
        let id = self.string().and_then(|text| hex(text.bytes().filter(|&byte| byte != b'-')));
        id.ok_or(LeafError::WrongValue { key, expected: "a UUID" })
    }

    fn by(&mut self) -> Result<By<'a>, LeafError> {
        let wrong = |_| LeafError::WrongValue { key: "by", expected: "an object of kind and name" };
        self.expect("{\"kind\":").map_err(wrong)?;
        let kind = self.word("by.kind", ActorKind::from_word)?;
        self.expect(",\"name\":").map_err(wrong)?;
        let name = self.text("by.name")?;
        self.expect("}").map_err(wrong)?;
        Ok(By { kind, name })
    }

    fn deliveries(&mut self) -> Result<Vec<LeafDelivery<'a>>, LeafError> {
        let expected = "a list of objects of id and to";
        let wrong = |_| LeafError::WrongValue { key: "deliveries", expected };
        let mut deliveries = Vec::new();
        self.expect("[").map_err(wrong)?;
        loop {
            self.expect("{\"id\":").map_err(wrong)?;
            let id = self.uuid("deliveries.id")?;
            self.expect(",\"to\":").map_err(wrong)?;
            let to = self.text("deliveries.to")?;
            self.expect("}").map_err(wrong)?;
            deliveries.push(LeafDelivery { id, to });
            if !self.skip(",") {
                break;
            }
        }
        self.expect("]").map_err(wrong)?;
        Ok(deliveries)
    }
}

/// Where the next quote or backslash is; both are single bytes wherever they occur in UTF-8.
fn end_of_plain(text: &str) -> Option<usize> {
    text.bytes().position(|byte| byte == b'"' || byte == b'\\')
}

/// The character that an escape stands for, and its length after the backslash. Escapes that the canonical form never
/// uses are left out.
fn escape(rest: &str) -> Option<(char, usize)> {
    let simple = match rest.as_bytes().first()? {
        b'"' => '"',
        b'\\' => '\\',
        b'b' => '\u{8}',
        b't' => '\t',
        b'n' => '\n',
        b'f' => '\u{c}',
        b'r' => '\r',
        b'u' => {
            let code = u8::from_str_radix(rest.strip_prefix("u00")?.get(..2)?, 16).ok()?;
            return Some((char::from(code), "u00xx".len()));
        }
        _ => return None,
    };
    Some((simple, 1))
}

fn hex<const N: usize>(digits: impl Iterator<Item = u8>) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let mut count = 0;
    for digit in digits {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        let byte = bytes.get_mut(count / 2)?;
        *byte = *byte << 4 | value;
        count += 1;
    }
    (count == 2 * N).then_some(bytes)
}

fn shown(word: &str) -> String {
    word.chars().take(WORD_CHARS_SHOWN).collect()
}
