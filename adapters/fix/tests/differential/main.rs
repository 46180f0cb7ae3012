//! The same messages to other people's libraries: QuickFIX (C++) and simplefix, both from PyPI.

mod oracle;
mod rules;
mod wire;

use bytes::Bytes;
use gatepost_fix::version::BeginString;

const QUICKFIX: &str = "quickfix-tls==1.16.0.1rc1";
const DICTIONARIES: &str = "fixcore-engine==0.15.0";
const SIMPLEFIX: &str = "simplefix==1.0.17";

const HEADER: &str = "49=A|56=B|34=2|52=20260102-03:04:05.678|";

type Fields = Vec<(String, String)>;

fn fields_of(text: &str) -> Fields {
    let text = text.replace("H|", HEADER);
    text.split_terminator('|')
        .map(|field| field.split_once('=').unwrap())
        .map(|(tag, value)| (tag.to_owned(), value.to_owned()))
        .collect()
}

fn framed(begin_string: BeginString, fields: &Fields) -> Bytes {
    let body: String = fields.iter().map(|(tag, value)| format!("{tag}={value}\x01")).collect();
    let head = format!("8={begin_string}\x019={}\x01{body}", body.len());
    let sum = head.bytes().fold(0u8, u8::wrapping_add);
    format!("{head}10={sum:03}\x01").into()
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    /// Below `limit`.
    fn roll(&mut self, limit: usize) -> usize {
        // Knuth's MMIX generator; its upper bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.roll(from.len())]
    }
}
