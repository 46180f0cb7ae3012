//! Character sets: what MSH-18 names (table 0211), and text out of bytes in it.
//!
//! Messages pass through as bytes. Text is made only of the few values that become attributes, and for people to read; a
//! byte that means nothing in the set becomes U+FFFD there and nowhere else. It must never guess: what MSH-18 does not
//! say, the configuration says.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use encoding_rs::Encoding;

/// A character set that bytes can be read in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charset {
    Ascii,
    /// ISO 8859-1, all 256 of it. The web's standard takes windows-1252 for it, and so does the crate.
    Latin1,
    /// ISO 8859-9, for the same reason (there windows-1254).
    Latin5,
    Utf8,
    /// Any other, by the web's standard.
    Other(&'static Encoding, &'static str),
}

/// What MSH-18 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Declared {
    Charset(Charset),
    /// UTF-16 or UTF-32: MLLP's marks are single bytes, which occur inside of such characters.
    Wide,
    /// Nothing, or a name that table 0211 does not have or that nobody decodes (CNS 11643-1992).
    Unknown,
}

const UTF16_UTF32: [&str; 2] = ["UNICODE UTF-16", "UNICODE UTF-32"];

/// Names of table 0211 that are other encodings' by the web's standard. JIS X 0208 and 0212 come in escape sequences of
/// ISO 2022, of which the standard knows the former.
const OTHERS: [(&str, &Encoding); 15] = [
    ("8859/2", encoding_rs::ISO_8859_2),
    ("8859/3", encoding_rs::ISO_8859_3),
    ("8859/4", encoding_rs::ISO_8859_4),
    ("8859/5", encoding_rs::ISO_8859_5),
    ("8859/6", encoding_rs::ISO_8859_6),
    ("8859/7", encoding_rs::ISO_8859_7),
    ("8859/8", encoding_rs::ISO_8859_8),
    ("8859/15", encoding_rs::ISO_8859_15),
    ("ISO IR14", encoding_rs::SHIFT_JIS),
    ("ISO IR87", encoding_rs::ISO_2022_JP),
    ("ISO IR159", encoding_rs::ISO_2022_JP),
    ("GB 18030-2000", encoding_rs::GB18030),
    ("KS X 1001", encoding_rs::EUC_KR),
    ("BIG-5", encoding_rs::BIG5),
    // Not of the table: for senders that say nothing, or 8859/1, and mean this.
    ("windows-1252", encoding_rs::WINDOWS_1252),
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "not a character set of table 0211 that can be read, like \"UNICODE UTF-8\", \"8859/1\" or \"8859/15\", nor \"windows-1252\""
)]
pub(crate) struct CharsetError;

impl FromStr for Charset {
    type Err = CharsetError;

    fn from_str(name: &str) -> Result<Self, CharsetError> {
        match name {
            "ASCII" | "ISO IR6" => return Ok(Self::Ascii),
            "8859/1" => return Ok(Self::Latin1),
            "8859/9" => return Ok(Self::Latin5),
            // Without saying which transformation, everybody means this one.
            "UNICODE UTF-8" | "UNICODE" | "UTF-8" => return Ok(Self::Utf8),
            _ => {}
        }
        let known = OTHERS.iter().find(|(known, _)| *known == name);
        known.map(|(name, encoding)| Self::Other(encoding, name)).ok_or(CharsetError)
    }
}

impl fmt::Display for Charset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ascii => "ASCII",
            Self::Latin1 => "8859/1",
            Self::Latin5 => "8859/9",
            Self::Utf8 => "UNICODE UTF-8",
            Self::Other(_, name) => name,
        })
    }
}

impl fmt::Debug for Charset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Charset({self})")
    }
}

impl TryFrom<String> for Charset {
    type Error = CharsetError;

    fn try_from(name: String) -> Result<Self, CharsetError> {
        name.parse()
    }
}

impl<'de> serde::Deserialize<'de> for Charset {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        name.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Charset {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Declared {
    /// From MSH-18's first repetition, which is what a message is in where no escape says otherwise. It is ASCII itself.
    pub(crate) fn read(name: &[u8]) -> Self {
        let Ok(name) = std::str::from_utf8(name.trim_ascii()) else { return Self::Unknown };
        let name = name.to_ascii_uppercase();
        if UTF16_UTF32.contains(&name.as_str()) {
            return Self::Wide;
        }
        // In capitals, no name finds windows-1252, which the table does not have.
        name.parse().map_or(Self::Unknown, Self::Charset)
    }
}

impl Charset {
    /// The text. Never fails: what the set does not have becomes U+FFFD.
    pub(crate) fn decode(self, bytes: &[u8]) -> Cow<'_, str> {
        match self {
            Self::Ascii => {
                let character =
                    |byte: &u8| if byte.is_ascii() { char::from(*byte) } else { char::REPLACEMENT_CHARACTER };
                bytes.iter().map(character).collect()
            }
            Self::Latin1 => bytes.iter().map(|byte| char::from(*byte)).collect(),
            Self::Latin5 => bytes.iter().map(|byte| latin5(*byte)).collect(),
            Self::Utf8 => String::from_utf8_lossy(bytes),
            Self::Other(encoding, _) => encoding.decode_without_bom_handling(bytes).0,
        }
    }
}

/// ISO 8859-9 is Latin-1 with six letters of Turkish in place of Icelandic.
fn latin5(byte: u8) -> char {
    match byte {
        0xd0 => 'Ğ',
        0xdd => 'İ',
        0xde => 'Ş',
        0xf0 => 'ğ',
        0xfd => 'ı',
        0xfe => 'ş',
        other => char::from(other),
    }
}

/// Whether bytes are UTF-16 or UTF-32 of a message: its first letters with zero bytes between, or a mark that says so.
pub(crate) fn looks_wide(body: &[u8]) -> bool {
    body.starts_with(b"\xff\xfe")
        || body.starts_with(b"\xfe\xff")
        || body.starts_with(b"\0\0\xfe\xff")
        || body.starts_with(b"M\0S\0")
        || body.starts_with(b"\0M\0S")
        || body.starts_with(b"M\0\0\0")
        || body.starts_with(b"\0\0\0M")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, bytes: &[u8]) -> String {
        let Declared::Charset(charset) = Declared::read(name.as_bytes()) else {
            panic!("{name} is not known")
        };
        charset.decode(bytes).into_owned()
    }

    /// The same names in every set of table 0211, written by Python's codecs.
    #[test]
    fn every_set_of_the_table_is_read() {
        for (name, bytes, expected) in [
            ("ASCII", &b"D\xfcrer"[..], "D\u{fffd}rer"),
            ("ISO IR6", b"Durer", "Durer"),
            ("8859/1", b"D\xfcrer\x80\x9f\xa4", "Dürer\u{80}\u{9f}¤"),
            ("8859/2", b"\xa3\xf3d\xbc", "Łódź"),
            ("8859/3", b"\xd8ego", "Ĝego"),
            ("8859/4", b"R\xefga", "Rīga"),
            ("8859/5", b"\xb8\xd2\xd0\xdd", "Иван"),
            ("8859/6", b"\xe5\xcd\xe5\xcf", "محمد"),
            ("8859/7", b"\xcd\xdf\xea\xef\xf2", "Νίκος"),
            ("8859/8", b"\xf9\xec\xe5\xed", "שלום"),
            ("8859/9", b"\xde\xfdk \x80", "Şık \u{80}"),
            ("8859/15", b"\xa4 \xbcuvre", "€ Œuvre"),
            ("UNICODE UTF-8", "Dürer 山田".as_bytes(), "Dürer 山田"),
            ("UNICODE", "Dürer".as_bytes(), "Dürer"),
            ("unicode utf-8", "Dürer".as_bytes(), "Dürer"),
            ("ISO IR14", b"\xd4\xcf\xc0\xde", "ﾔﾏﾀﾞ"),
            ("ISO IR87", b"\x1b$B;3ED\x1b(B^A", "山田^A"),
            ("GB 18030-2000", b"\xcd\xf5\xd0\xa1\xb6\xab", "王小东"),
            ("KS X 1001", b"\xb1\xe8\xc8\xf1\xc1\xdf", "김희중"),
            ("BIG-5", b"\xa4\xfd\xa4p\xaaF", "王小東"),
        ] {
            assert_eq!(text(name, bytes), expected, "{name}");
        }
    }

    #[test]
    fn wide_sets_are_known_as_such_and_other_names_are_unknown() {
        assert_eq!(Declared::read(b"UNICODE UTF-16"), Declared::Wide);
        assert_eq!(Declared::read(b"UNICODE UTF-32"), Declared::Wide);
        for name in ["", "CNS 11643-1992", "8859/99", "windows-1252", "latin1", "\u{fffd}"] {
            assert_eq!(Declared::read(name.as_bytes()), Declared::Unknown, "{name}");
        }
        assert_eq!(Declared::read(b"\xff"), Declared::Unknown);
    }

    #[test]
    fn windows_1252_is_only_what_the_configuration_says() {
        let windows: Charset = "windows-1252".parse().unwrap();
        assert_eq!(windows.decode(b"\x80 \x93x\x94"), "€ “x”");
        assert_eq!(text("8859/1", b"\x80"), "\u{80}");
    }

    #[test]
    fn a_set_is_written_as_it_is_read() {
        for name in ["ASCII", "8859/1", "8859/9", "UNICODE UTF-8", "GB 18030-2000", "windows-1252"] {
            assert_eq!(name.parse::<Charset>().unwrap().to_string(), name);
        }
        assert_eq!("UNICODE UTF-16".parse::<Charset>(), Err(CharsetError));
    }

    #[test]
    fn wide_messages_are_recognised_by_their_first_bytes() {
        let utf16: Vec<u8> = "MSH|".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert!(looks_wide(&utf16));
        assert!(looks_wide(&[b"\xfe\xff", &b"\0M\0S\0H"[..]].concat()));
        assert!(looks_wide(b"\0\0\0M\0\0\0S"));
        assert!(!looks_wide(b"MSH|^~\\&|"));
        assert!(!looks_wide("\u{feff}MSH|".as_bytes()));
    }
}
