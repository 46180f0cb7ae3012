//! A message for people: its segments and fields by name.
//!
//! The names are data (`names.txt`: a segment's id, what it is, and its fields in order), of versions 2.3 to 2.8 and in words
//! of our own. What has no name there is shown by its number. It must never print a byte that a terminal takes for a command.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use crate::charset::{Charset, Declared};
use crate::header::Message;

const NAMES: &str = include_str!("names.txt");
/// Longer values, such as documents in base64, are cut.
const VALUE_CHARS_MAX: usize = 200;
const NAME_WIDTH: usize = 28;
/// What is read for showing.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct ViewArgs {
    /// The message [default: standard input]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Its character set, by the name in table 0211, where MSH-18 names none
    #[arg(long, value_name = "NAME", default_value = "UNICODE UTF-8")]
    charset: Charset,
}

pub(crate) fn main(args: &ViewArgs) -> ExitCode {
    let shown = read(args).and_then(|message| {
        let text = view(&message, args.charset).map_err(io::Error::other)?;
        io::stdout().lock().write_all(text.as_bytes())
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gatepost-hl7 view: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(args: &ViewArgs) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    match &args.file {
        Some(file) => std::fs::File::open(file)?.take(BYTES_MAX).read_to_end(&mut message)?,
        None => io::stdin().lock().take(BYTES_MAX).read_to_end(&mut message)?,
    };
    Ok(message)
}

/// A segment's name and those of its fields.
struct Names {
    segment: &'static str,
    fields: Vec<&'static str>,
}

fn names(id: &str) -> Option<Names> {
    let line = NAMES.lines().find(|line| line.strip_prefix(id).is_some_and(|rest| rest.starts_with('|')))?;
    let mut parts = line.split('|').skip(1);
    Some(Names { segment: parts.next()?, fields: parts.collect() })
}

/// The message as lines of text; an error if it is none.
pub(crate) fn view(body: &[u8], default: Charset) -> Result<String, crate::header::HeaderError> {
    let message = Message::parse(body)?;
    let charset = match message.charset() {
        Declared::Charset(charset) => charset,
        Declared::Unknown | Declared::Wide => default,
    };
    let separator = message.delimiters().field;
    let mut text = String::new();
    for segment in message.segments().filter(|segment| !segment.trim_ascii().is_empty()) {
        let mut fields = segment.split(|byte| *byte == separator);
        let id = shown(fields.next().unwrap_or_default(), charset);
        let names = names(&id);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{id}  {}", names.as_ref().map_or("", |names| names.segment));
        // The separator is the header's first field.
        let before = usize::from(id == "MSH");
        for (index, value) in fields.enumerate().filter(|(_, value)| !value.is_empty()) {
            let number = index + 1 + before;
            let name = names.as_ref().and_then(|names| names.fields.get(number - 1)).copied().unwrap_or("");
            let _ = writeln!(text, "  {number:>3}  {name:<NAME_WIDTH$}  {}", shown(value, charset));
        }
    }
    Ok(text)
}

fn shown(value: &[u8], charset: Charset) -> String {
    let text: Cow<'_, str> = charset.decode(value);
    let harmless =
        |character: char| if is_harmful(character) { char::REPLACEMENT_CHARACTER } else { character };
    let mut shown: String = text.chars().take(VALUE_CHARS_MAX).map(harmless).collect();
    let more = text.chars().count().saturating_sub(VALUE_CHARS_MAX);
    if more > 0 {
        let _ = write!(shown, "… ({more} more characters)");
    }
    shown
}

/// Control characters, and those that turn the direction of writing.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_segment_is_named_once_and_in_the_shape_of_the_table() {
        let mut seen = HashSet::new();
        for line in NAMES.lines() {
            let (id, rest) = line.split_once('|').unwrap();
            assert!(id.len() == 3 && seen.insert(id), "{line}");
            assert!(rest.split('|').all(|name| !name.is_empty() && name.len() <= 40), "{line}");
            assert!(rest.split('|').count() >= 2, "{line}");
        }
        for (id, number, name) in [
            ("MSH", 10, "Control id"),
            ("PID", 3, "Patient ids"),
            ("PID", 7, "Birth time"),
            ("OBX", 5, "Value"),
            ("PV1", 19, "Visit number"),
            ("PV1", 44, "Admission time"),
            ("OBR", 25, "Result status"),
            ("ORC", 12, "Ordered by"),
            ("ERR", 3, "Error code"),
            ("TXA", 12, "Document number"),
        ] {
            assert_eq!(names(id).unwrap().fields[number - 1], name, "{id}-{number}");
        }
    }

    #[test]
    fn segments_and_fields_are_shown_by_name() {
        let body =
            b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|M1|P|2.5||||||8859/1\rPID|1||42^^^MR||D\xfcrer\rZZ1|x\r\r";
        assert_eq!(
            view(body, Charset::Utf8).unwrap(),
            "MSH  Message header\n    \
               2  Encoding characters           ^~\\&\n    \
               3  Sending application           EHR\n    \
               4  Sending facility              C\n    \
               5  Receiving application         LAB\n    \
               6  Receiving facility            H\n    \
               7  Time of message               2026\n    \
               9  Message type                  ADT^A01\n   \
              10  Control id                    M1\n   \
              11  Processing id                 P\n   \
              12  Version                       2.5\n   \
              18  Character set                 8859/1\n\
             PID  Patient\n    \
               1  Number in message             1\n    \
               3  Patient ids                   42^^^MR\n    \
               5  Name                          Dürer\n\
             ZZ1  \n    \
               1                                x\n"
        );
    }

    #[test]
    fn nothing_in_a_message_commands_the_terminal_and_long_values_are_cut() {
        let body =
            [b"MSH|^~\\&|\x1b[2J\x07|\xe2\x80\xae|||||ADT^A01|M1|P|2.5\rOBX|1|ED|||", &[b'x'; 1000][..]]
                .concat();
        let text = view(&body, Charset::Utf8).unwrap();
        assert!(!text.chars().any(|character| is_harmful(character) && character != '\n'), "{text:?}");
        assert!(text.contains("x… (800 more characters)"));
        assert!(view(b"hello", Charset::Utf8).is_err());
    }
}
