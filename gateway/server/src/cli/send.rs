//! `gatepost send`: hands in one message, or a file of them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use gatepost_api::event::check_name;
use gatepost_api::messages::{AcceptResponse, AcceptedDelivery, AcceptedMessage};
use gatepost_api::{BATCH_MEDIA_TYPE, Event, IDEMPOTENCY_HEADER};
use gatepost_core::message::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use http::{HeaderName, HeaderValue};
use serde_json::Value;
use uuid::Uuid;

use super::client::{Call, Client};
use super::failure::Failure;
use super::ui::{Style, Ui, state_style};
use super::{Context, Target, receive, text};

const TYPE_DEFAULT: &str = "gatepost.message";
const SOURCE_DEFAULT: &str = "/gatepost/cli";
/// Room in a batch for what stands around the events.
const BATCH_FRAME_BYTES: usize = 2;

#[derive(Debug, clap::Args)]
pub(super) struct Send {
    /// The payload; `-` reads standard input
    #[arg(value_name = "FILE", required_unless_present = "batch")]
    file: Option<PathBuf>,
    /// Send CloudEvents, one JSON object per line (`-` reads standard input); every 1,000 of them are accepted whole or not at all
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["file", "kind", "source", "subject", "key", "content_type", "id", "idempotency_key", "attributes"])]
    batch: Option<PathBuf>,
    /// CloudEvents type; routes and rights go by it
    #[arg(long = "type", value_name = "TYPE", default_value = TYPE_DEFAULT)]
    kind: String,
    /// CloudEvents source
    #[arg(long, default_value = SOURCE_DEFAULT)]
    source: String,
    /// CloudEvents subject
    #[arg(long)]
    subject: Option<String>,
    /// Ordering key (`partitionkey`): messages with the same key arrive in the order they were accepted
    #[arg(long)]
    key: Option<String>,
    /// Media type of the payload [default: by the file's name, else application/octet-stream]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// CloudEvents id; sending the same source and id again is a duplicate [default: a new one]
    #[arg(long)]
    id: Option<String>,
    /// What makes a second try the same, in place of source and id
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Any other CloudEvents attribute, for example expirytime=2026-12-31T00:00:00Z
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = parse_attribute)]
    attributes: Vec<(String, String)>,
    /// Wait up to N seconds for the outcome and print the reply
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u32>,
    #[command(flatten)]
    target: Target,
}

fn parse_attribute(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    check_name(name).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn send(context: &Context, args: &Send) -> Result<(), Failure> {
    let mut client = context.apps(&args.target)?;
    match (&args.batch, &args.file) {
        (Some(batch), _) => send_batch(&context.ui, &mut client, batch, args.wait).await,
        (None, Some(file)) => send_one(&context.ui, &mut client, args, file).await,
        (None, None) => Err(Failure::usage("name a FILE, `-` or --batch")),
    }
}

async fn send_one(ui: &Ui, client: &mut Client, args: &Send, file: &Path) -> Result<(), Failure> {
    let call = waiting(binary_call(args, file)?, args.wait);
    let answer = client.call(call).await?;
    let accepted: AcceptResponse = answer.json()?;
    if ui.json {
        ui.json(&answer.json::<Value>()?)?;
    } else {
        for message in &accepted.messages {
            print_accepted(ui, message)?;
        }
    }
    outcome(&accepted.messages, args.wait)
}

/// One event in binary mode: the payload's bytes travel as they are.
fn binary_call(args: &Send, file: &Path) -> Result<Call, Failure> {
    let payload = read(file)?;
    let media_type = args.content_type.clone().unwrap_or_else(|| media_type(file).to_owned());
    let mut call = Call::post("/v1/messages", header_value("content type", &media_type)?, payload.into());
    let id = args.id.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
    let mut attributes =
        vec![("specversion", "1.0"), ("id", &id), ("type", &args.kind), ("source", &args.source)];
    attributes.extend(args.subject.as_deref().map(|subject| ("subject", subject)));
    attributes.extend(args.key.as_deref().map(|key| ("partitionkey", key)));
    attributes.extend(args.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    for (name, value) in attributes {
        let header = HeaderName::from_bytes(format!("ce-{name}").as_bytes())
            .map_err(|_| Failure::usage(format!("`{name}` is not an attribute name")))?;
        call = call.header(header, header_value(name, &ce_encoded(value))?);
    }
    if let Some(key) = &args.idempotency_key {
        let name = HeaderName::from_static(IDEMPOTENCY_HEADER);
        call = call.header(name, header_value("idempotency key", key)?);
    }
    Ok(call)
}

fn header_value(what: &str, value: &str) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(value)
        .map_err(|_| Failure::usage(format!("the {what} has characters that a header cannot carry")))
}

/// CloudEvents HTTP binding §3.1.3.2: what is not printable ASCII, and space, `"` and `%`, travel percent-encoded.
fn ce_encoded(value: &str) -> String {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'"' | b'%' | 0..=0x20 | 0x7f.. => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map_err(Failure::io("cannot read standard input"))?;
    } else {
        let doing = || format!("cannot read {}", file.display());
        std::fs::File::open(file)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(Failure::io(doing()))?;
    }
    Ok(bytes)
}

fn media_type(file: &Path) -> &'static str {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => "application/json",
        Some("xml") => "application/xml",
        Some("txt") => "text/plain",
        Some("csv") => "text/csv",
        Some("hl7") => "application/hl7-v2+er7",
        _ => "application/octet-stream",
    }
}

fn waiting(call: Call, wait: Option<u32>) -> Call {
    let Some(seconds) = wait else { return call };
    // Unwrap safety: digits and ASCII letters.
    let prefer = HeaderValue::from_str(&format!("wait={seconds}")).unwrap_or(HeaderValue::from_static(""));
    call.header(HeaderName::from_static("prefer"), prefer).held_for(Duration::from_secs(seconds.into()))
}

// === batches ===

async fn send_batch(ui: &Ui, client: &mut Client, file: &Path, wait: Option<u32>) -> Result<(), Failure> {
    let text = String::from_utf8(read(file)?)
        .map_err(|_| Failure::usage(format!("{} is not UTF-8", file.display())))?;
    let events = parse_lines(&text)?;
    let bar = ui.progress(events.len() as u64, "messages");
    let (mut accepted, mut duplicates) = (0, 0);
    let mut waited = Vec::new();
    for batch in batches(&events) {
        let body = format!("[{}]", batch.join(","));
        let media_type = HeaderValue::from_static(BATCH_MEDIA_TYPE);
        let call = waiting(Call::post("/v1/messages", media_type, Bytes::from(body)), wait);
        let answer = client.call(call).await.inspect_err(|_| {
            bar.abandon();
            if accepted > 0 {
                ui.note(format_args!(
                    "{} had been accepted before; sending the file again is safe",
                    text::count(accepted)
                ));
            }
        })?;
        let response: AcceptResponse = answer.json()?;
        if ui.json {
            ui.json_line(&answer.json::<Value>()?)?;
        }
        accepted += response.messages.len() as u64;
        duplicates += response.messages.iter().filter(|message| message.duplicate).count() as u64;
        bar.inc(response.messages.len() as u64);
        if wait.is_some() {
            waited.extend(response.messages);
        }
    }
    bar.finish_and_clear();
    if !ui.json {
        let messages = text::plural(accepted, "message", "messages");
        ui.line(format_args!("accepted {messages}, {} of them known already", text::count(duplicates)))?;
    }
    outcome(&waited, wait)
}

/// The lines that hold an event, each checked, so that a fault is named by its line before anything is sent.
fn parse_lines(text: &str) -> Result<Vec<&str>, Failure> {
    let mut events = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        serde_json::from_str::<Event>(line)
            .map_err(|error| Failure::usage(faulty_line(index + 1, &error)))?;
        events.push(line);
    }
    if events.is_empty() { Err(Failure::usage("there is no event in the file")) } else { Ok(events) }
}

fn faulty_line(line: usize, error: &serde_json::Error) -> String {
    let text = error.to_string();
    let why = text.rsplit_once(" at line ").map_or(text.as_str(), |(why, _)| why);
    format!("line {line}: not a CloudEvent as one JSON object: {why} (column {})", error.column())
}

/// Cuts the events into batches within the API's limits.
fn batches<'a>(events: &[&'a str]) -> Vec<Vec<&'a str>> {
    let bytes_max = usize::try_from(BATCH_BYTES_MAX).unwrap_or(usize::MAX) - BATCH_FRAME_BYTES;
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for &event in events {
        // Unwrap safety: there is always one batch.
        let full = batches.last().is_none_or(|batch: &Vec<&str>| {
            !batch.is_empty() && (batch.len() == BATCH_EVENTS_MAX || bytes + event.len() + 1 > bytes_max)
        });
        if full {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += event.len() + 1;
        if let Some(batch) = batches.last_mut() {
            batch.push(event);
        }
    }
    batches
}

// === what came of it ===

fn print_accepted(ui: &Ui, message: &AcceptedMessage) -> Result<(), Failure> {
    let known = if message.duplicate { ui.paint(Style::Warn, " (known already)") } else { String::new() };
    ui.line(format_args!("{} {}{known}", ui.paint(Style::Good, "accepted"), message.id))?;
    for delivery in &message.deliveries {
        let state = ui.paint(state_style(&delivery.state), &delivery.state);
        ui.line(format_args!(
            "  → {}: {state}  {}",
            delivery.destination,
            ui.paint(Style::Faint, delivery.id)
        ))?;
        if let Some(reply) = &delivery.reply {
            receive::print_reply(ui, reply)?;
        }
    }
    Ok(())
}

/// Whoever waited wants to know by the exit code.
fn outcome(messages: &[AcceptedMessage], wait: Option<u32>) -> Result<(), Failure> {
    if wait.is_none() {
        return Ok(());
    }
    let failed =
        |delivery: &&AcceptedDelivery| matches!(delivery.state.as_str(), "dead" | "expired" | "discarded");
    let failed = messages.iter().flat_map(|message| &message.deliveries).filter(failed).count() as u64;
    if failed == 0 {
        return Ok(());
    }
    Err(Failure::Unsuccessful {
        what: format!("{} not delivered", text::plural(failed, "delivery was", "deliveries were")),
        hint: Some("see why with `gatepost show ID`".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_travel_percent_encoded() {
        assert_eq!(ce_encoded("Euro € \"100%\""), "Euro%20%E2%82%AC%20%22100%25%22");
        assert_eq!(ce_encoded("/plain/path?x=1"), "/plain/path?x=1");
    }

    #[test]
    fn a_faulty_line_is_named_before_anything_is_sent() {
        let good = r#"{"specversion":"1.0","id":"1","source":"s","type":"t"}"#;
        assert_eq!(parse_lines(&format!("{good}\n\n{good}\n")).unwrap().len(), 2);
        let failure = parse_lines(&format!("{good}\n{{}}\n")).unwrap_err();
        assert!(failure.to_string().starts_with("line 2:"), "{failure}");
        assert!(parse_lines("\n").is_err());
    }

    #[test]
    fn batches_keep_within_the_limits_of_count() {
        let events = vec!["{}"; 2_001];
        let sizes: Vec<usize> = batches(&events).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1_000, 1_000, 1]);
    }

    #[test]
    fn batches_keep_within_the_limits_of_size() {
        let big = "x".repeat(40 * 1024 * 1024);
        let sizes: Vec<usize> = batches(&[&big, &big, "{}"]).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 2]);
    }

    #[test]
    fn an_attribute_is_a_name_and_a_value() {
        assert_eq!(parse_attribute("traceparent=00-a=b").unwrap(), ("traceparent".into(), "00-a=b".into()));
        assert!(parse_attribute("Bad=1").is_err());
        assert!(parse_attribute("novalue").is_err());
    }
}
