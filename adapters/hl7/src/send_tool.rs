//! `gatepost-hl7 send`: puts the messages of files on the wire and waits for each answer.

use std::borrow::Cow;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::Failure;
use gatepost_adapter::tls::{ConnectError, Connector};
use tokio::time::timeout;

use crate::channel::{Channel, ChannelError, Limits};
use crate::charset::Charset;
use crate::header::{Acknowledgement, Message, attribute_text};
use crate::mllp::{self, CR, Item};
use crate::tool_tls;

const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
const CONTROL_ID_CHARS_MAX: usize = 200;

#[derive(Debug, clap::Args)]
pub(crate) struct SendArgs {
    /// Where to send to
    #[arg(value_name = "HOST:PORT")]
    address: String,
    /// Files with one or more messages each; lines may end in CR, LF or both
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How long to wait for the connection and for each answer
    #[arg(long, default_value_t = 30_000)]
    timeout_ms: u64,
    #[command(flatten)]
    tls: tool_tls::SendTls,
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("cannot read {path}: {source}")]
    File { path: String, source: io::Error },
    #[error("{0} holds no HL7 message: nothing in it begins with MSH")]
    NoMessage(String),
    #[error("{}", tool_tls::told(.0))]
    Tls(#[from] Failure),
    #[error("{address}: {source}")]
    Connect { address: String, source: ConnectError },
    #[error("the message cannot be framed: {0}")]
    Unframeable(#[from] mllp::Unframeable),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("no answer within {0} ms")]
    Timeout(u64),
}

pub(crate) fn main(args: &SendArgs) -> ExitCode {
    let sent = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| SendError::Channel(source.into()))
        .and_then(|runtime| runtime.block_on(send(args)));
    match sent {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gatepost-hl7 send: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every message was taken.
async fn send(args: &SendArgs) -> Result<bool, SendError> {
    let mut messages = Vec::new();
    for path in &args.files {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| SendError::File { path: name.clone(), source })?;
        let found = split(&bytes);
        if found.is_empty() {
            return Err(SendError::NoMessage(name));
        }
        messages.extend(found);
    }
    let patience = Duration::from_millis(args.timeout_ms);
    let connector = Connector::new(&args.address, args.tls.settings().as_ref())?;
    let stream = connector.connect(patience).await;
    let stream = stream.map_err(|source| SendError::Connect { address: args.address.clone(), source })?;
    let mut channel =
        Channel::new(stream, Limits::new(BODY_BYTES_MAX, patience)).map_err(ChannelError::from)?;
    let mut all_taken = true;
    for message in messages {
        let frame = mllp::frame(&message)?;
        channel.write(frame).await.map_err(ChannelError::from)?;
        let answer = timeout(patience, next_answer(&mut channel))
            .await
            .map_err(|_| SendError::Timeout(args.timeout_ms))??;
        let (line, taken) = judge(&message, &answer);
        let _ = writeln!(io::stdout().lock(), "{line}");
        all_taken &= taken;
    }
    Ok(all_taken)
}

async fn next_answer(channel: &mut Channel) -> Result<Bytes, ChannelError> {
    loop {
        if let Item::Frame(body) = channel.next().await?.ok_or(ChannelError::Closed)? {
            return Ok(body);
        }
    }
}

/// What was answered, in words, and whether it was a yes to this message.
fn judge(message: &[u8], answer: &[u8]) -> (String, bool) {
    let control_id =
        Message::parse(message).ok().and_then(|message| message.control_id().ok()).unwrap_or_default();
    let shown = attribute_text(control_id, Charset::Utf8, CONTROL_ID_CHARS_MAX);
    let acknowledgement = Message::parse(answer).ok().and_then(|answer| answer.acknowledgement());
    match acknowledgement {
        None => (format!("{shown} answered without a verdict"), false),
        Some(Acknowledgement { control_id: named, .. }) if named != control_id => {
            (format!("{shown} answered with a verdict on another message"), false)
        }
        Some(Acknowledgement { code: Some(code), .. }) => {
            (format!("{shown} {}", code.as_str()), code.is_positive())
        }
        Some(Acknowledgement { code: None, .. }) => (format!("{shown} answered with an unknown code"), false),
    }
}

/// The messages of a file, each from its MSH on. A file whose lines end in LF was written by an editor: HL7 wants CR.
fn split(file: &[u8]) -> Vec<Bytes> {
    let text: Cow<'_, [u8]> = if file.contains(&CR) {
        Cow::Borrowed(file)
    } else {
        file.iter().map(|byte| if *byte == b'\n' { CR } else { *byte }).collect()
    };
    let starts: Vec<usize> = memchr::memmem::find_iter(&text, b"MSH")
        .filter(|at| *at == 0 || matches!(text[at - 1], CR | b'\n' | mllp::VT | 0xbf))
        .collect();
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| Bytes::copy_from_slice(trimmed(&text[*start..end]))).collect()
}

/// Without the framing and blank lines that may follow a message in a file; one segment end stays.
fn trimmed(message: &[u8]) -> &[u8] {
    let padding = |byte: &u8| matches!(*byte, CR | b'\n' | mllp::FS | mllp::VT);
    let content = message.iter().rposition(|byte| !padding(byte)).map_or(0, |last| last + 1);
    let kept = if message.get(content) == Some(&CR) { content + 1 } else { content };
    &message[..kept]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_messages_in_many_ways() {
        let messages =
            |file: &[u8]| -> Vec<Vec<u8>> { split(file).iter().map(|message| message.to_vec()).collect() };
        assert_eq!(messages(b"MSH|1\rPID|MSH\r"), [b"MSH|1\rPID|MSH\r".to_vec()]);
        assert_eq!(messages(b"MSH|1\nPID\n\nMSH|2\n"), [b"MSH|1\rPID\r".to_vec(), b"MSH|2\r".to_vec()]);
        assert_eq!(messages(b"MSH|1\r\nPID\r\n"), [b"MSH|1\r\nPID\r".to_vec()]);
        assert_eq!(
            messages(b"\x0bMSH|1\r\x1c\r\x0bMSH|2\r\x1c\r"),
            [b"MSH|1\r".to_vec(), b"MSH|2\r".to_vec()]
        );
        assert_eq!(messages(b"\xef\xbb\xbfMSH|1"), [b"MSH|1".to_vec()]);
        assert!(messages(b"hello\n").is_empty());
    }

    #[test]
    fn only_a_yes_to_the_message_is_a_yes() {
        let message = b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5\r";
        let answer = |verdict: &str| format!("MSH|^~\\&|C|D|A|B|||ACK|9|P|2.5\r{verdict}\r").into_bytes();
        let judged = |verdict: &str| judge(message, &answer(verdict));
        assert_eq!(judged("MSA|AA|M1"), ("M1 AA".to_owned(), true));
        assert_eq!(judged("MSA|CA|M1"), ("M1 CA".to_owned(), true));
        assert_eq!(judged("MSA|AE|M1"), ("M1 AE".to_owned(), false));
        assert!(!judged("MSA|AA|M2").1);
        assert!(!judged("ERR|").1);
        assert!(!judge(message, b"\x06").1);
    }
}
