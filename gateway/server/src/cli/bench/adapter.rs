//! `gatepost bench-adapter`: an adapter whose partner takes everything at once. A process of its own, supervised by the
//! gateway like any other; it leases in batches over several connections and settles each batch as delivered.

use std::cell::Cell;
use std::io::{self, Read as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use gatepost_api::session::SessionResponse;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::task::LocalSet;

use super::super::failure::Failure;
use super::super::ui::Ui;
use super::wire::{Wire, post};

/// Most deliveries of one lease.
const LEASE_MAX: u32 = 256;
/// Lease calls open at a time.
const WORKERS: u32 = 4;
const LEASE_WAIT_MS: u32 = 10_000;

#[derive(Debug, clap::Parser)]
#[command(name = "bench-adapter")]
pub(crate) struct BenchAdapter {
    #[arg(long, conflicts_with = "check")]
    manifest: bool,
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// A datagram socket that is told the number of settled deliveries after each settle.
    tally: PathBuf,
}

/// A lease answer, read without looking at the events.
#[derive(Deserialize)]
struct Leases<'a> {
    #[serde(borrow)]
    deliveries: Vec<Lease<'a>>,
}

#[derive(Deserialize)]
struct Lease<'a> {
    id: &'a str,
    token: &'a str,
    #[serde(rename = "event")]
    _event: IgnoredAny,
}

#[derive(Deserialize)]
struct Settled<'a> {
    #[serde(borrow)]
    results: Vec<SettledItem<'a>>,
}

#[derive(Deserialize)]
struct SettledItem<'a> {
    status: &'a str,
}

pub(crate) fn run(ui: &Ui, args: &BenchAdapter) -> Result<(), Failure> {
    if args.manifest {
        return ui.json_line(&serde_json::json!({
            "protocol": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "levels": ["sent", "transport"],
            "query": false,
            "ordered_pipeline": false,
            "settings_schema": {"type": "object", "properties": {"tally": {"type": "string"}}, "required": ["tally"]},
        }));
    }
    if args.check {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map_err(Failure::io("cannot read the settings"))?;
        let read = serde_json::from_str::<Settings>(&text);
        return read.map(drop).map_err(|error| Failure::usage(error.to_string()));
    }
    let socket = std::env::var_os("GATEPOST_SOCKET")
        .ok_or_else(|| Failure::usage("GATEPOST_SOCKET is not set: `gatepost bench` starts this program"))?;
    super::super::runtime()?.block_on(LocalSet::new().run_until(work(PathBuf::from(socket))))
}

async fn work(socket: PathBuf) -> Result<(), Failure> {
    let lost = |source| Failure::Io { doing: "the gateway's socket failed".to_owned(), source };
    let mut wire = Wire::connect(&socket).await.map_err(lost)?;
    let opened = post_json(&mut wire, "/v1/session", "{}").await.map_err(lost)?;
    let session: SessionResponse =
        serde_json::from_slice(opened).map_err(|_| Failure::Garbled { status: 200 })?;
    let settings: Settings = serde_json::from_str(session.settings.get())
        .map_err(|error| Failure::usage(format!("settings: {error}")))?;
    let tally = UnixDatagram::unbound()
        .and_then(|tally| tally.connect(&settings.tally).map(|()| tally))
        .map_err(lost)?;
    let tally = Rc::new(Tally { socket: tally, settled: Cell::new(0) });
    let path = Rc::from(format!("/v1/queues/{}/lease", session.name));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..WORKERS {
        let (tally, path) = (Rc::clone(&tally), Rc::clone(&path));
        let socket = socket.clone();
        workers.spawn_local(async move { lease_and_settle(&socket, &path, session.epoch, &tally).await });
    }
    // They end only by failing.
    match workers.join_next().await {
        Some(Ok(Err(source))) => Err(lost(source)),
        _ => Err(Failure::unsuccessful("a worker ended")),
    }
}

struct Tally {
    socket: UnixDatagram,
    settled: Cell<u64>,
}

impl Tally {
    fn add(&self, settled: u64) {
        self.settled.set(self.settled.get() + settled);
        // Whoever counts sees the newest figure with the next datagram; the last one finds a reader that waits for it.
        let _ = self.socket.send(&self.settled.get().to_le_bytes());
    }
}

async fn lease_and_settle(socket: &Path, path: &str, epoch: u64, tally: &Tally) -> io::Result<()> {
    let mut leasing = Wire::connect(socket).await?;
    let mut settling = Wire::connect(socket).await?;
    let body = format!(r#"{{"max":{LEASE_MAX},"wait_ms":{LEASE_WAIT_MS},"epoch":{epoch}}}"#);
    let request = post(path, "application/json", "", body.as_bytes());
    loop {
        let status = leasing.exchange(&request).await?;
        let leases: Leases<'_> = read(status, leasing.body())?;
        if leases.deliveries.is_empty() {
            continue;
        }
        let body = settle_body(&leases, epoch);
        let answer = post_json(&mut settling, "/v1/settle", &body).await?;
        let settled: Settled<'_> = read(200, answer)?;
        tally.add(settled.results.iter().filter(|item| item.status == "ok").count() as u64);
    }
}

fn settle_body(leases: &Leases<'_>, epoch: u64) -> String {
    let mut body = String::with_capacity(64 + leases.deliveries.len() * 160);
    body.push_str(r#"{"results":["#);
    for (index, lease) in leases.deliveries.iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        // Ids and tokens are hexadecimal.
        for part in [
            r#"{"delivery":""#,
            lease.id,
            r#"","token":""#,
            lease.token,
            r#"","outcome":"delivered","evidence":{"level":"transport"}}"#,
        ] {
            body.push_str(part);
        }
    }
    body.push_str(&format!(r#"],"epoch":{epoch}}}"#));
    body
}

async fn post_json<'w>(wire: &'w mut Wire, path: &str, body: &str) -> io::Result<&'w [u8]> {
    let request = post(path, "application/json", "", body.as_bytes());
    match wire.exchange(&request).await? {
        200 | 202 => Ok(wire.body()),
        status => Err(refused(status, wire.body())),
    }
}

fn read<'a, T: Deserialize<'a>>(status: u16, body: &'a [u8]) -> io::Result<T> {
    if status != 200 {
        return Err(refused(status, body));
    }
    serde_json::from_slice(body).map_err(io::Error::other)
}

fn refused(status: u16, body: &[u8]) -> io::Error {
    let code = serde_json::from_slice::<gatepost_api::Problem>(body).map(|problem| problem.code);
    io::Error::other(format!("the gateway answered {status} ({})", code.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gatepost_api::settle::{Outcome, SettleRequest};

    #[test]
    fn settles_what_was_leased_in_the_apis_own_words() {
        let id = "0193b3f0-0000-7000-8000-000000000001";
        let answer = format!(
            r#"{{"deliveries":[{{"id":"{id}","token":"00ff","attempt":1,"in_doubt":false,"lease_ms":30000,"event":{{"a":["b"]}}}}]}}"#
        );
        let leases: Leases<'_> = serde_json::from_str(&answer).unwrap();
        let request: SettleRequest = serde_json::from_str(&settle_body(&leases, 7)).unwrap();
        assert_eq!(request.epoch, Some(7));
        assert_eq!(request.results[0].delivery.to_string(), id);
        assert_eq!(request.results[0].token, "00ff");
        assert_eq!(request.results[0].outcome, Outcome::Delivered);
        assert!(request.results[0].evidence.is_some());
    }
}
