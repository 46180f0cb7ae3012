//! `gatepost receive INBOX`: reads an inbox. A delivery is settled only after its payload has been written out.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_api::messages::Reply;
use gatepost_api::queues::{LEASE_WAIT_MS_MAX, LeaseRequest, LeaseResponse, LeasedDelivery};
use gatepost_api::settle::{Outcome, SettleItem, SettleRequest, SettleResponse, SettleStatus};
use gatepost_api::{Event, Extension};
use serde_json::Value;

use super::client::{Call, Client, percent_encoded};
use super::failure::Failure;
use super::ui::{Style, Ui, harmless};
use super::{Context, Target, text};

/// Deliveries of one lease.
const LEASE_MAX: u64 = 100;
/// How long one lease call waits with --follow, ms.
const FOLLOW_WAIT_MS: u64 = 25_000;

#[derive(Debug, clap::Args)]
pub(super) struct Receive {
    /// The inbox to read
    #[arg(value_name = "INBOX")]
    inbox: String,
    /// Keep waiting for more
    #[arg(short, long)]
    follow: bool,
    /// Stop after N messages
    #[arg(long, value_name = "N")]
    max: Option<u64>,
    /// Wait up to N seconds for the first message
    #[arg(long, value_name = "SECONDS", default_value_t = 0, conflicts_with = "follow")]
    wait: u64,
    /// Write each payload into DIR, named by its message id, and make it durable before it is settled
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only look: give everything back in the end
    #[arg(long, conflicts_with = "follow")]
    no_settle: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) async fn receive(context: &Context, args: &Receive) -> Result<(), Failure> {
    let mut client = context.apps(&args.target)?;
    if let Some(dir) = &args.out {
        std::fs::create_dir_all(dir).map_err(Failure::io(format!("cannot create {}", dir.display())))?;
    }
    let mut looked_at = Vec::new();
    let result = drain(&context.ui, &mut client, args, &mut looked_at).await;
    if !looked_at.is_empty() {
        settle(&mut client, looked_at, Outcome::Release).await?;
    }
    if result? == 0 && !context.ui.json {
        context.ui.note("nothing there");
    }
    Ok(())
}

async fn drain(
    ui: &Ui,
    client: &mut Client,
    args: &Receive,
    looked_at: &mut Vec<LeasedDelivery>,
) -> Result<u64, Failure> {
    let mut received = 0;
    let mut paused = false;
    loop {
        let left = args.max.unwrap_or(u64::MAX) - received;
        if left == 0 {
            return Ok(received);
        }
        let wait_ms = match (args.follow, received) {
            (true, _) => FOLLOW_WAIT_MS,
            (false, 0) => args.wait.saturating_mul(1000).min(LEASE_WAIT_MS_MAX),
            (false, _) => 0,
        };
        let answer = lease(client, &args.inbox, left.min(LEASE_MAX), wait_ms).await?;
        // Once per pause, also with --json: it is a remark, not a result.
        if answer.paused && !paused {
            ui.note(paused_remark(&args.inbox));
        }
        paused = answer.paused;
        let deliveries = answer.deliveries;
        if deliveries.is_empty() && !args.follow {
            return Ok(received);
        }
        received += deliveries.len() as u64;
        let mut done = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            // What was written out before a failure is settled all the same: it has been received.
            if let Err(failure) = take(ui, client, &delivery, args.out.as_deref()).await {
                looked_at.push(delivery);
                settle_done(client, done).await?;
                return Err(failure);
            }
            if args.no_settle { looked_at.push(delivery) } else { done.push(delivery) }
        }
        settle_done(client, done).await?;
    }
}

async fn lease(client: &mut Client, inbox: &str, max: u64, wait_ms: u64) -> Result<LeaseResponse, Failure> {
    let max = u32::try_from(max).unwrap_or(u32::MAX);
    let request = LeaseRequest { max, wait_ms: Some(wait_ms), ..LeaseRequest::default() };
    let path = format!("/v1/queues/{}/lease", percent_encoded(inbox));
    let call = Call::post_json(path, &request).held_for(Duration::from_millis(wait_ms));
    client.call(call).await?.json()
}

fn paused_remark(inbox: &str) -> String {
    let inbox = harmless(inbox);
    format!("{inbox} is paused; an operator resumes it with `gatepost queue resume {inbox}`")
}

async fn settle_done(client: &mut Client, done: Vec<LeasedDelivery>) -> Result<(), Failure> {
    if done.is_empty() { Ok(()) } else { settle(client, done, Outcome::Delivered).await }
}

async fn settle(
    client: &mut Client,
    deliveries: Vec<LeasedDelivery>,
    outcome: Outcome,
) -> Result<(), Failure> {
    let results = deliveries.into_iter().map(|delivery| SettleItem {
        delivery: delivery.id,
        token: delivery.token,
        outcome,
        after_ms: None,
        scope: None,
        reason: None,
        evidence: None,
        reply: None,
    });
    let request = SettleRequest { results: results.collect(), ..empty_settle() };
    let answer: SettleResponse = client.call(Call::post_json("/v1/settle", &request)).await?.json()?;
    let stale = answer.results.iter().filter(|item| item.status == SettleStatus::Stale).count() as u64;
    if stale == 0 {
        return Ok(());
    }
    Err(Failure::Unsuccessful {
        what: format!(
            "{} lost before it was settled and will come again",
            text::plural(stale, "lease was", "leases were")
        ),
        hint: Some("receive fewer at a time with --max".to_owned()),
    })
}

fn empty_settle() -> SettleRequest {
    SettleRequest {
        results: Vec::new(),
        emit: Vec::new(),
        state: Default::default(),
        atomic: None,
        epoch: None,
    }
}

/// Writes one delivery out.
async fn take(
    ui: &Ui,
    client: &mut Client,
    delivery: &LeasedDelivery,
    out: Option<&Path>,
) -> Result<(), Failure> {
    if ui.json && out.is_none() {
        let event: Value =
            serde_json::from_str(delivery.event.get()).map_err(|_| Failure::Garbled { status: 200 })?;
        return ui.json_line(&event);
    }
    let event: Event =
        serde_json::from_str(delivery.event.get()).map_err(|_| Failure::Garbled { status: 200 })?;
    let payload = payload(client, &event).await?;
    let Some(dir) = out else {
        print_head(ui, &event, payload.len())?;
        return print_payload(ui, &payload);
    };
    let id = event.text_extension("gatepostid").unwrap_or_else(|| delivery.id.to_string());
    let path = dir.join(file_name(&id, event.datacontenttype.as_deref()));
    write_durable(dir, &path, &payload).map_err(Failure::io(format!("cannot write {}", path.display())))?;
    if ui.json {
        let file = path.display().to_string();
        return ui.json_line(
            &serde_json::json!({"id": id, "type": event.kind, "bytes": payload.len(), "file": file}),
        );
    }
    ui.line(path.display())
}

/// The payload, fetched by reference when it did not come with the event.
async fn payload(client: &mut Client, event: &Event) -> Result<Vec<u8>, Failure> {
    match event.extensions.get("dataref") {
        Some(Extension::Text(path)) if event.data.is_none() => {
            Ok(client.call(Call::get(path.as_str())).await?.body.to_vec())
        }
        _ => Ok(event.data.clone().map(gatepost_api::Data::into_bytes).unwrap_or_default()),
    }
}

/// A name that no sender can choose: ids are the gateway's.
fn file_name(id: &str, media_type: Option<&str>) -> String {
    let id: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let media_type = media_type.unwrap_or("application/json");
    let extension = match media_type.split(';').next().unwrap_or_default().trim() {
        "application/json" => "json",
        "application/xml" | "text/xml" => "xml",
        "text/csv" => "csv",
        other if other.contains("hl7-v2") => "hl7",
        other if other.ends_with("+json") => "json",
        other if other.starts_with("text/") => "txt",
        _ => "bin",
    };
    format!("{id}.{extension}")
}

/// After a crash the file is whole or absent.
fn write_durable(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("part");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(dir)?.sync_all()
}

fn print_head(ui: &Ui, event: &Event, bytes: usize) -> Result<(), Failure> {
    let id = event.text_extension("gatepostid").unwrap_or_default();
    let from = event.text_extension("gatepostapp").map(|app| format!(" from {app}")).unwrap_or_default();
    let kind = ui.paint(Style::Strong, harmless(&event.kind));
    let rest = ui.paint(Style::Faint, format_args!("{id}{from}, {}", text::bytes(bytes as u64)));
    ui.line(format_args!("{} {kind} {rest}", ui.paint(Style::Accent, "◆")))
}

/// The bytes as they are when piped; made harmless, and with line ends that a terminal knows, on a terminal.
pub(crate) fn print_payload(ui: &Ui, payload: &[u8]) -> Result<(), Failure> {
    if !ui.on_terminal() {
        ui.raw(payload)?;
        return if payload.ends_with(b"\n") { Ok(()) } else { ui.raw(b"\n") };
    }
    match std::str::from_utf8(payload) {
        Ok(text) => {
            let text = text.replace("\r\n", "\n").replace('\r', "\n");
            ui.line(harmless(text.trim_end_matches('\n')))
        }
        Err(_) => ui.line(
            ui.paint(Style::Faint, format_args!("({} that are not text)", text::bytes(payload.len() as u64))),
        ),
    }
}

pub(crate) fn print_reply(ui: &Ui, reply: &Reply) -> Result<(), Failure> {
    let bytes = match (&reply.data, &reply.data_base64) {
        // A JSON string is text, whatever the media type; other JSON is shown as it stands.
        (Some(data), _) => {
            serde_json::from_str::<String>(data.get()).map_or_else(|_| data.get().into(), String::into_bytes)
        }
        (None, Some(text)) => BASE64.decode(text).map_err(|_| Failure::Garbled { status: 200 })?,
        (None, None) => return Ok(()),
    };
    print_payload(ui, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_cannot_leave_the_directory() {
        assert_eq!(file_name("../../etc/passwd", Some("text/plain")), "etcpasswd.txt");
        assert_eq!(file_name("01-ab", None), "01-ab.json");
        assert_eq!(file_name("01", Some("application/fhir+json; fhirVersion=4.0")), "01.json");
        assert_eq!(file_name("01", Some("x-application/hl7-v2+er7")), "01.hl7");
    }

    #[test]
    fn files_are_whole_and_leave_nothing_beside_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_durable(dir.path(), &path, b"one").unwrap();
        write_durable(dir.path(), &path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
