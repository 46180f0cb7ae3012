//! `gatepost-fix show`: FIX messages in a file or a log, for people.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bytes::BufMut as _;

use crate::content::View;
use crate::data_fields::DataFields;
use crate::dictionary::{Dictionaries, Dictionary, DictionaryError, Layer, Mismatch};
use crate::message::SOH;
use crate::wire::{Decoder, Item};

const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
const READ_BYTES: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// A dictionary in QuickFIX's XML, for names and meanings; for FIX 5.0 that of FIXT 1.1 and that of the application
    #[arg(long = "dictionary", value_name = "FILE")]
    dictionaries: Vec<PathBuf>,
    /// What stands in the place of SOH (0x01), as logs often have it
    #[arg(long, value_name = "CHARACTER", value_parser = separator)]
    separator: Option<u8>,
    /// Where the messages are; whatever else stands there is passed over [default: standard input]
    file: Option<PathBuf>,
}

fn separator(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] if byte.is_ascii_punctuation() || *byte == b' ' => Ok(*byte),
        _ => Err("must be one character: punctuation or a space".to_owned()),
    }
}

#[derive(Debug, thiserror::Error)]
enum ShowError {
    #[error(transparent)]
    Dictionary(#[from] DictionaryError),
    #[error("the dictionaries do not belong together: {0}")]
    Mismatch(#[from] Mismatch),
    #[error("{}: {source}", file.display())]
    Open { file: PathBuf, source: io::Error },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Shows every message as JSON on standard output, and says on standard error what is none. Success means that all were
/// messages, and at least one.
pub fn main(args: &ShowArgs) -> ExitCode {
    let mut told = io::stderr();
    match show(args, &mut io::stdout().lock(), &mut told) {
        Ok(Shown { messages: 1.., garbled: 0 }) => ExitCode::SUCCESS,
        Ok(Shown { messages, garbled }) => {
            let _ = writeln!(told, "gatepost-fix show: {messages} messages, {garbled} garbled");
            ExitCode::FAILURE
        }
        Err(error) => {
            let _ = writeln!(told, "gatepost-fix show: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Shown {
    messages: u64,
    garbled: u64,
}

fn show(args: &ShowArgs, output: &mut impl Write, told: &mut impl Write) -> Result<Shown, ShowError> {
    let dictionaries = dictionaries(args)?;
    match &args.file {
        None => show_all(args, dictionaries.as_ref(), &mut io::stdin().lock(), output, told),
        Some(file) => {
            let mut input =
                File::open(file).map_err(|source| ShowError::Open { file: file.clone(), source })?;
            show_all(args, dictionaries.as_ref(), &mut input, output, told)
        }
    }
}

fn show_all(
    args: &ShowArgs,
    dictionaries: Option<&Dictionaries>,
    input: &mut impl Read,
    output: &mut impl Write,
    told: &mut impl Write,
) -> Result<Shown, ShowError> {
    let data_fields = dictionaries.map_or_else(DataFields::default, Dictionaries::data_fields);
    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX, data_fields);
    let mut shown = Shown { messages: 0, garbled: 0 };
    let mut piece = vec![0; READ_BYTES];
    loop {
        let read = input.read(&mut piece)?;
        if read == 0 {
            break;
        }
        let piece = &mut piece[..read];
        if let Some(separator) = args.separator {
            piece.iter_mut().filter(|byte| **byte == separator).for_each(|byte| *byte = SOH);
        }
        decoder.buffer().put_slice(piece);
        while let Some(item) = decoder.next_item() {
            match item {
                Item::Message(message) => {
                    shown.messages += 1;
                    let dictionaries = dictionaries
                        .filter(|known| known.session().layer().name().as_bytes() == message.begin_string());
                    serde_json::to_writer_pretty(&mut *output, &View::of(&message, dictionaries))?;
                    writeln!(output)?;
                }
                Item::Garbled(garbled) => {
                    shown.garbled += 1;
                    writeln!(told, "after {} messages: {garbled}", shown.messages)?;
                }
            }
        }
    }
    if decoder.inside_message() {
        shown.garbled += 1;
        writeln!(told, "the input ends inside a message")?;
    }
    output.flush()?;
    Ok(shown)
}

/// All of those given; for FIXT the newest version of applications stands in for what a session's logon would say.
fn dictionaries(args: &ShowArgs) -> Result<Option<Dictionaries>, ShowError> {
    let mut transport = None;
    let mut newest = None;
    let mut others = Vec::new();
    for file in &args.dictionaries {
        let dictionary = Arc::new(Dictionary::load(file)?);
        match dictionary.layer() {
            Layer::Transport if transport.is_none() => transport = Some(dictionary),
            Layer::Transport => return Err(Mismatch::Twice(Layer::Transport.name()).into()),
            layer => {
                newest = newest.max(layer.application());
                others.push(dictionary);
            }
        }
    }
    match (transport, &others[..]) {
        (None, []) => Ok(None),
        (None, [one]) => match one.layer() {
            Layer::Both(version) => Ok(Some(Dictionaries::one(version, Arc::clone(one))?)),
            layer => Err(Mismatch::NoTransport { dictionary: layer.name() }.into()),
        },
        (None, [_, another, ..]) => Err(Mismatch::NoTransport { dictionary: another.layer().name() }.into()),
        (Some(transport), _) => match newest {
            Some(newest) => Ok(Some(Dictionaries::fixt(transport, others, newest)?)),
            None => Err(Mismatch::NoApplication.into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        show: ShowArgs,
    }

    fn dictionary(name: &str) -> String {
        format!("--dictionary={}/tests/dictionaries/{name}.xml", env!("CARGO_MANIFEST_DIR"))
    }

    /// What is printed, what is told, and the counts.
    fn shown(arguments: &[&str], input: &[u8]) -> (String, String, u64, u64) {
        let args = Cli::try_parse_from([&["show"], arguments].concat()).unwrap().show;
        let dictionaries = dictionaries(&args).unwrap();
        let (mut output, mut told) = (Vec::new(), Vec::new());
        let shown = show_all(&args, dictionaries.as_ref(), &mut &input[..], &mut output, &mut told).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output), text(told), shown.messages, shown.garbled)
    }

    fn refused(arguments: &[&str]) -> String {
        let args = Cli::try_parse_from([&["show"], arguments].concat()).unwrap().show;
        dictionaries(&args).unwrap_err().to_string()
    }

    /// A line of a log, `|` for SOH, with the right sum in place of `sum`.
    fn line(message: &str) -> String {
        let (summed, _) = message.split_once("10=sum").unwrap();
        let sum = summed.replace('|', "\x01").bytes().fold(0u8, u8::wrapping_add);
        format!("12:00 {}\n", message.replace("sum", &format!("{sum:03}")))
    }

    fn read(view: &str) -> serde_json::Value {
        serde_json::from_str(view).unwrap()
    }

    #[test]
    fn messages_in_a_log_are_shown_and_the_rest_is_told() {
        let log =
            line("8=FIX.4.4|9=25|35=D|34=1|11=A|54=1|58=x|10=sum|") + "12:01 8=FIX.4.4|9=5|35=0|10=000|\n";
        let fix44 = dictionary("small-fix44");
        let (view, told, messages, garbled) = shown(&["--separator", "|", &fix44], log.as_bytes());
        assert_eq!((messages, garbled), (1, 1), "{told}");
        assert_eq!(read(&view)["message"], "NewOrderSingle");
        assert_eq!(read(&view)["body"]["Side"], "1 (BUY)");
        assert!(told.starts_with("after 1 messages: CheckSum (10) is 0 and ought to be"), "{told}");
        let (view, ..) = shown(&["--separator", "|"], log.as_bytes());
        assert_eq!(read(&view)["body"]["54"], "1");
        // The names of another version say nothing.
        let other = line("8=FIX.4.2|9=10|35=D|54=1|10=sum|");
        let (view, ..) = shown(&["--separator", "|", &fix44], other.as_bytes());
        assert_eq!(read(&view)["body"]["54"], "1");
        let (_, told, messages, garbled) = shown(&[], b"8=FIX.4.4\x019=100\x0135=D\x01");
        assert_eq!((messages, garbled, told.as_str()), (0, 1, "the input ends inside a message\n"));
    }

    #[test]
    fn dictionaries_have_to_belong_together() {
        let (fix44, fixt, sp2) =
            (dictionary("small-fix44"), dictionary("small-fixt11"), dictionary("small-fix50sp2"));
        assert!(refused(&[&fix44, &fix44]).contains("without that of FIXT.1.1"));
        assert!(refused(&[&sp2]).contains("without that of FIXT.1.1"));
        assert!(refused(&[&fixt]).contains("no dictionary of applications"));
        assert!(refused(&[&fixt, &fixt, &sp2]).contains("two dictionaries of FIXT.1.1"));
        assert!(
            refused(&["--dictionary=/nowhere/fix.xml"]).starts_with("/nowhere/fix.xml: cannot be opened")
        );
        let args = Cli::try_parse_from(["show", &fixt, &sp2, &fix44]).unwrap().show;
        let all = dictionaries(&args).unwrap().unwrap();
        assert_eq!(all.of_message(b"g", None).unwrap().layer().name(), "FIX.5.0SP2");
        assert!(Cli::try_parse_from(["show", "--separator", "ab"]).is_err());
        assert!(Cli::try_parse_from(["show", "--separator", "8"]).is_err());
    }
}
