//! `gatepost status`: is it working, and if not, what blocks?

use gatepost_api::lists::{
    AdapterItem, NodeItem, NodeList, NodeShare, QueueItem, SandboxItem, SenderItem, SenderList,
};
use http::StatusCode;
use serde_json::{Value, json};

use super::client::{Call, Client, refused};
use super::failure::Failure;
use super::list::{pages, read};
use super::ui::{Style, Ui};
use super::{Context, Target, queue, text};

/// More queues or adapters than any configuration has.
const ITEMS_MAX: usize = 10_000;

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    #[command(flatten)]
    target: Target,
}

pub(super) async fn status(context: &Context, args: &Status) -> Result<(), Failure> {
    let mut client = context.operators(&args.target)?;
    let (ready, readiness) = readiness(&mut client).await?;
    let queues = pages(&mut client, "/v1/queues", "queues", ITEMS_MAX).await?.items;
    let adapters = pages(&mut client, "/v1/adapters", "adapters", ITEMS_MAX).await?.items;
    let nodes = nodes(&mut client).await?;
    let senders = senders(&mut client).await?;
    let audit = audit_head(&mut client).await?;
    let ui = &context.ui;
    if ui.json {
        let audit = audit.map(|head| json!({"origin": head.origin, "size": head.size, "root": head.root}));
        ui.json(&json!({
            "ready": ready, "readiness": readiness, "queues": queues, "adapters": adapters, "nodes": nodes, "senders": senders,
            "audit": audit,
        }))?;
    } else {
        print_head(ui, &client, ready, &readiness, audit.as_ref())?;
        print_nodes(ui, nodes)?;
        print_adapters(ui, adapters)?;
        let queues = queues.into_iter().map(read::<QueueItem>).collect::<Result<Vec<_>, _>>()?;
        if !queues.is_empty() {
            ui.line("")?;
            queue::grid(ui, &queues).print(ui)?;
        }
        print_senders(ui, senders)?;
    }
    if ready { Ok(()) } else { Err(Failure::unsuccessful("the gateway is not ready")) }
}

/// `/readyz` answers 200 or 503, both with what it found.
async fn readiness(client: &mut Client) -> Result<(bool, Value), Failure> {
    let answer = client.exchange(Call::get("/readyz")).await?;
    match answer.status {
        StatusCode::OK => Ok((true, answer.json().unwrap_or(Value::Null))),
        StatusCode::SERVICE_UNAVAILABLE => Ok((false, answer.json().unwrap_or(Value::Null))),
        _ => Err(refused(&answer)),
    }
}

/// The gateways that share the database; none where there is but one.
async fn nodes(client: &mut Client) -> Result<Vec<NodeItem>, Failure> {
    let answer = client.call(Call::get("/v1/nodes")).await?;
    let list: NodeList = answer.json()?;
    Ok(list.nodes)
}

/// What each has handed in and is not settled.
async fn senders(client: &mut Client) -> Result<Vec<SenderItem>, Failure> {
    let answer = client.call(Call::get("/v1/senders")).await?;
    let list: SenderList = answer.json()?;
    Ok(list.senders)
}

pub(super) struct AuditHead {
    pub(super) origin: String,
    pub(super) size: u64,
    pub(super) root: String,
}

/// The newest checkpoint; `None` without the right to audit, or before the first.
pub(super) async fn audit_head(client: &mut Client) -> Result<Option<AuditHead>, Failure> {
    let answer = client.exchange(Call::get("/v1/audit/checkpoint")).await?;
    if matches!(
        answer.status,
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE
    ) {
        return Ok(None);
    }
    if !answer.status.is_success() {
        return Err(refused(&answer));
    }
    let text = String::from_utf8_lossy(&answer.body);
    let mut lines = text.lines();
    let head = (|| {
        let origin = lines.next()?.to_owned();
        let size = lines.next()?.parse().ok()?;
        Some(AuditHead { origin, size, root: lines.next()?.to_owned() })
    })();
    head.map(Some).ok_or(Failure::Garbled { status: answer.status.as_u16() })
}

fn print_head(
    ui: &Ui,
    client: &Client,
    ready: bool,
    readiness: &Value,
    audit: Option<&AuditHead>,
) -> Result<(), Failure> {
    let state = if ready { ui.paint(Style::Good, "ready") } else { ui.paint(Style::Bad, "not ready") };
    let name = audit.map_or("gateway", |head| head.origin.as_str());
    ui.line(format_args!("{} {state}, on {}", ui.paint(Style::Strong, name), client.socket().display()))?;
    if let Some(user) = readiness.get("runs_as").and_then(Value::as_str) {
        ui.line(format_args!("  runs as {}", super::ui::harmless(user)))?;
    }
    for blocker in listed(readiness, "blocking") {
        ui.line(format_args!("  {} {}", ui.paint(Style::Bad, "blocks:"), super::ui::harmless(&blocker)))?;
    }
    for warning in listed(readiness, "warnings") {
        ui.line(format_args!("  {} {}", ui.paint(Style::Warn, "warning:"), super::ui::harmless(&warning)))?;
    }
    if let Some(head) = audit {
        let entries = text::plural(head.size, "signed entry", "signed entries");
        ui.line(format_args!("  audit log: {entries}, root {}", head.root))?;
    }
    Ok(())
}

/// What the readiness names as blocking, or warns of.
fn listed(readiness: &Value, what: &str) -> Vec<String> {
    let list = readiness.get(what).and_then(Value::as_array);
    list.map_or_else(Vec::new, |items| items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn print_nodes(ui: &Ui, nodes: Vec<NodeItem>) -> Result<(), Failure> {
    if nodes.is_empty() {
        return Ok(());
    }
    ui.line("")?;
    let mut grid = ui.table(&["NODE", "STATE", "EPOCH", "VERSION", "UP SINCE", "DOES", "QUEUES"]);
    for node in nodes {
        let (style, state) = match node.lease_ms {
            Some(_) if node.here => (Style::Good, "this one"),
            Some(_) => (Style::Good, "works"),
            None => (Style::Bad, "gone"),
        };
        let log = node.sequencer.then(|| "numbers the log".to_owned());
        let does: Vec<String> =
            log.into_iter().chain(node.adapters.iter().map(|name| format!("runs {name}"))).collect();
        let share = |share: &NodeShare| format!("{} {}/{}", share.queue, share.buckets, share.of);
        let queues: Vec<String> = node.queues.iter().map(share).collect();
        let or_dash = |list: Vec<String>| if list.is_empty() { "-".to_owned() } else { list.join(", ") };
        grid.row(vec![
            (Style::Strong, node.name),
            (style, state.to_owned()),
            (Style::Faint, node.epoch),
            (Style::Faint, node.version),
            (Style::Faint, text::ago(&node.started_at)),
            (Style::Plain, or_dash(does)),
            (Style::Plain, or_dash(queues)),
        ]);
    }
    grid.print(ui)
}

/// Its level and its parts; what is missing is in `--json` and in the log.
fn sandbox(item: &SandboxItem) -> String {
    let landlock = match item.landlock_abi {
        0 => ", no landlock".to_owned(),
        version => format!(", landlock {version}"),
    };
    let calls = if item.seccomp { ", seccomp" } else { ", no seccomp" };
    let whose = match (item.own_uid, item.uid) {
        (true, uid) => format!("its own user {uid}"),
        (false, 0) => "root".to_owned(),
        (false, _) => "the gateway's user".to_owned(),
    };
    let memory = item.memory_bytes.map(|bytes| format!(", {}", text::bytes(bytes)));
    let memory = memory.unwrap_or_else(|| ", no memory limit".to_owned());
    let processes = item.processes.map(|count| format!(", {count} processes")).unwrap_or_default();
    let cpus = item.cpu_percent.map(|percent| format!(", {percent} % cpu")).unwrap_or_default();
    format!("{}{landlock}{calls}{memory}{processes}{cpus}, as {whose}", item.level)
}

/// Those that have a limit: of the others it is the queues that say what is behind.
fn print_senders(ui: &Ui, senders: Vec<SenderItem>) -> Result<(), Failure> {
    let limited: Vec<SenderItem> = senders.into_iter().filter(|sender| sender.limit.is_some()).collect();
    if limited.is_empty() {
        return Ok(());
    }
    ui.line("")?;
    let mut grid = ui.table(&["SENDER", "UNSETTLED", "OF AT MOST", "BYTES", "OF AT MOST"]);
    for sender in limited {
        let (deliveries, bytes) = sender.limit.map_or((None, None), |limit| (limit.deliveries, limit.bytes));
        let style = |has: u64, most: Option<u64>| {
            if most.is_some_and(|most| has >= most) { Style::Bad } else { Style::Plain }
        };
        let most = |most: Option<u64>, shown: fn(u64) -> String| most.map_or_else(|| "-".to_owned(), shown);
        grid.row(vec![
            (Style::Strong, sender.sender),
            (style(sender.deliveries, deliveries), text::count(sender.deliveries)),
            (Style::Faint, most(deliveries, text::count)),
            (style(sender.bytes, bytes), text::bytes(sender.bytes)),
            (Style::Faint, most(bytes, text::bytes)),
        ]);
    }
    grid.print(ui)
}

fn print_adapters(ui: &Ui, adapters: Vec<Value>) -> Result<(), Failure> {
    if adapters.is_empty() {
        return Ok(());
    }
    ui.line("")?;
    let mut grid =
        ui.table(&["ADAPTER", "STATE", "PID", "VERSION", "RESTARTS", "UP SINCE", "SANDBOX", "LAST ERROR"]);
    for adapter in adapters {
        let adapter: AdapterItem = read(adapter)?;
        let style = match adapter.state.as_str() {
            "running" | "external" => Style::Good,
            "starting" | "stopping" => Style::Plain,
            _ => Style::Bad,
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        grid.row(vec![
            (Style::Strong, adapter.name),
            (style, adapter.state),
            (Style::Faint, or_dash(adapter.pid.map(|pid| pid.to_string()))),
            (Style::Faint, or_dash(adapter.version)),
            (if adapter.restarts == 0 { Style::Faint } else { Style::Warn }, adapter.restarts.to_string()),
            (Style::Faint, or_dash(adapter.started_at.map(|at| text::ago(&at)))),
            (Style::Plain, or_dash(adapter.sandbox.as_ref().map(sandbox))),
            (Style::Bad, or_dash(adapter.last_error)),
        ]);
    }
    grid.print(ui)
}
