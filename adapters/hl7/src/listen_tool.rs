//! `gatepost-hl7 listen`: a partner that takes messages and answers them, well or badly, as told.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::digest;
use gatepost_adapter::tls::{Acceptor, Stream};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::ack::{self, Stamp, Verdict};
use crate::channel::{Channel, ChannelError, Limits};
use crate::charset::Charset;
use crate::header::{AckCode, Message, attribute_text};
use crate::mllp::{self, Item};
use crate::tool_tls;

const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(60);
const CONTROL_ID_CHARS_MAX: usize = 200;

#[derive(Debug, clap::Args)]
pub(crate) struct ListenArgs {
    /// Port to listen on; 0 takes a free one and says which
    #[arg(long)]
    port: u16,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Answer every message with this code [default: AA or CA, as the message asks]
    #[arg(long, ignore_case = true)]
    ack: Option<AckCode>,
    /// Share of the messages, from 0 to 1, that fail, evenly spread
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    fail_rate: f64,
    /// How the failing ones fail
    #[arg(long, value_enum, default_value_t = FailWith::Ae, ignore_case = true)]
    fail_with: FailWith,
    /// Wait this long before each answer
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Append one line of JSON for each message: time, control_id, sha256 of the body, bytes, connection, ack
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    tls: tool_tls::ListenTlsArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FailWith {
    #[value(name = "AE")]
    Ae,
    #[value(name = "AR")]
    Ar,
    #[value(name = "CE")]
    Ce,
    #[value(name = "CR")]
    Cr,
    /// No answer at all
    Silence,
    /// Close the connection in place of an answer
    Close,
}

/// What happens to one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The code that the message is owed for having been taken.
    Owed,
    Code(AckCode),
    Silence,
    Close,
}

impl FailWith {
    fn answer(self) -> Answer {
        match self {
            Self::Ae => Answer::Code(AckCode::Ae),
            Self::Ar => Answer::Code(AckCode::Ar),
            Self::Ce => Answer::Code(AckCode::Ce),
            Self::Cr => Answer::Code(AckCode::Cr),
            Self::Silence => Answer::Silence,
            Self::Close => Answer::Close,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

pub(crate) fn main(args: &ListenArgs) -> ExitCode {
    let ended = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(listen(args)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "gatepost-hl7 listen: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn listen(args: &ListenArgs) -> io::Result<()> {
    let log = match &args.log {
        Some(path) => Some(Mutex::new(File::options().create(true).append(true).open(path)?)),
        None => None,
    };
    let acceptor = Arc::new(
        Acceptor::new(args.tls.settings().as_ref())
            .map_err(|failure| io::Error::other(tool_tls::told(&failure)))?,
    );
    let listener = TcpListener::bind((args.host.as_str(), args.port)).await?;
    say(&format!("listening on {}", listener.local_addr()?));
    let partner = Arc::new(Partner {
        ack: args.ack,
        fail_rate: args.fail_rate,
        fail_answer: args.fail_with.answer(),
        delay: Duration::from_millis(args.delay_ms),
        log,
        messages: AtomicU64::new(0),
    });
    let mut connection = 0;
    loop {
        let (stream, _) = listener.accept().await?;
        connection += 1;
        let (partner, acceptor) = (Arc::clone(&partner), Arc::clone(&acceptor));
        tokio::spawn(async move {
            let served = match acceptor.accept(stream, HANDSHAKE_DEADLINE).await {
                Ok(stream) => partner.serve(stream, connection).await.map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = served {
                let _ = writeln!(io::stderr(), "connection {connection}: {error}");
            }
        });
    }
}

struct Partner {
    ack: Option<AckCode>,
    fail_rate: f64,
    fail_answer: Answer,
    delay: Duration,
    log: Option<Mutex<File>>,
    messages: AtomicU64,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    control_id: &'a str,
    sha256: String,
    bytes: usize,
    connection: u64,
    /// The code sent back; `null` for silence or a closed connection.
    ack: Option<&'static str>,
}

impl Partner {
    async fn serve(&self, stream: Stream, connection: u64) -> Result<(), ChannelError> {
        let mut channel = Channel::new(stream, Limits::new(BODY_BYTES_MAX, PAUSE_MAX))?;
        while let Some(item) = channel.next().await? {
            let Item::Frame(body) = item else {
                say(&format!("connection {connection}: {item:?}"));
                continue;
            };
            let number = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
            let answer = self.answer(number);
            let (code, acknowledgement) = acknowledge(&body, answer);
            // Before the answer leaves: whoever sees it acknowledged must find it here.
            self.record(&body, code, connection)?;
            sleep(self.delay).await;
            if answer == Answer::Close {
                return Ok(());
            }
            if let Some(acknowledgement) = acknowledgement {
                let frame = mllp::frame(&acknowledgement).map_err(io::Error::other)?;
                channel.write(frame).await?;
            }
        }
        Ok(())
    }

    /// The n-th message fails when the share of n passes a whole number there, so failures are spread evenly.
    fn answer(&self, number: u64) -> Answer {
        let failures_until = |count: u64| (count as f64 * self.fail_rate).floor();
        if failures_until(number) > failures_until(number - 1) {
            self.fail_answer
        } else {
            self.ack.map_or(Answer::Owed, Answer::Code)
        }
    }

    fn record(&self, body: &[u8], code: Option<AckCode>, connection: u64) -> io::Result<()> {
        let control_id = Message::parse(body)
            .ok()
            .and_then(|message| message.control_id().ok())
            .map(|id| attribute_text(id, Charset::Utf8, CONTROL_ID_CHARS_MAX))
            .unwrap_or_default();
        let ack = code.map(AckCode::as_str);
        say(&format!("{control_id} {} (connection {connection})", ack.unwrap_or("-")));
        let Some(log) = &self.log else { return Ok(()) };
        let time = time::OffsetDateTime::now_utc()
            .format(&time::format_description::well_known::Rfc3339)
            .unwrap_or_default();
        let line =
            Line { time, control_id: &control_id, sha256: digest(body), bytes: body.len(), connection, ack };
        let mut text = serde_json::to_vec(&line)?;
        text.push(b'\n');
        // One write for each line, so that whoever reads along never sees half of one.
        log.lock().unwrap_or_else(PoisonError::into_inner).write_all(&text)
    }
}

fn acknowledge(body: &[u8], answer: Answer) -> (Option<AckCode>, Option<Bytes>) {
    let stamp = Stamp::new(uuid::Uuid::now_v7(), time::OffsetDateTime::now_utc());
    let message = match Message::parse(body) {
        Ok(message) => message,
        Err(error) => {
            return (Some(AckCode::Ar), Some(ack::build_generic_refusal(&error.to_string(), &stamp)));
        }
    };
    let code = match answer {
        Answer::Owed => ack::code_owed(&message, Verdict::Accepted),
        Answer::Code(code) => Some(code),
        Answer::Silence | Answer::Close => None,
    };
    (code, code.map(|code| ack::build(&message, code, None, None, &stamp)))
}

/// A line for the person at the bench; nobody reading it is no reason to stop.
fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(rate: f64) -> Vec<u64> {
        let partner = Partner {
            ack: None,
            fail_rate: rate,
            fail_answer: Answer::Silence,
            delay: Duration::ZERO,
            log: None,
            messages: AtomicU64::new(0),
        };
        (1..=10).filter(|number| partner.answer(*number) == Answer::Silence).collect()
    }

    #[test]
    fn failures_are_spread_evenly() {
        assert_eq!(failures(0.0), [0; 0]);
        assert_eq!(failures(0.25), [4, 8]);
        assert_eq!(failures(0.5), [2, 4, 6, 8, 10]);
        assert_eq!(failures(1.0).len(), 10);
    }
}
