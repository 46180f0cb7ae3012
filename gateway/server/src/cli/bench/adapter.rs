//! `gatepost bench-adapter`: an adapter whose partner takes everything at once, or after a fixed time. A process of its own,
//! supervised by the gateway like any other.
//!
//! It consumes as fast as the API allows: the next lease is asked for while the last is being settled, and what has been
//! leased meanwhile is settled together.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use gatepost_api::session::SessionResponse;
use gatepost_api::settle::SETTLE_RESULTS_MAX;
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use super::super::failure::Failure;
use super::super::ui::Ui;
use super::leases::{Items, settled};
use super::wire::{Wire, post_json};

/// Most deliveries of one lease.
const LEASE_MAX: u32 = 500;
/// Lease calls, and settle calls, open at a time.
const LEASES_OPEN: u32 = 2;
const SETTLES_OPEN: u32 = 2;
const LEASE_WAIT_MS: u32 = 10_000;
/// The gateway closes connections that are idle for longer; a fresh one is taken sooner.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// A message to whoever counts: settled deliveries, and the time since the settle before, µs.
pub(super) const TALLY_BYTES: usize = 16;

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
    /// A datagram socket that is told of each settle.
    tally: PathBuf,
    /// How long the partner takes to answer.
    partner_delay_us: u64,
}

pub(crate) fn run(ui: &Ui, args: &BenchAdapter) -> Result<(), Failure> {
    if args.manifest {
        return ui.json_line(&serde_json::json!({
            "protocol": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "levels": ["sent", "transport"],
            "query": false,
            "ordered_pipeline": false,
            "settings_schema": {"type": "object", "required": ["tally", "partner_delay_us"], "properties": {
                "tally": {"type": "string"},
                "partner_delay_us": {"type": "integer"},
            }},
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
    let opened = wire.call(&post_json("/v1/session", b"{}")).await.map_err(lost)?;
    let session: SessionResponse =
        serde_json::from_slice(opened).map_err(|_| Failure::Garbled { status: 200 })?;
    let settings: Settings = serde_json::from_str(session.settings.get())
        .map_err(|error| Failure::usage(format!("settings: {error}")))?;
    let tally = UnixDatagram::unbound()
        .and_then(|tally| tally.connect(&settings.tally).map(|()| tally))
        .map_err(lost)?;
    let flow = Rc::new(Flow {
        epoch: session.epoch,
        partner_delay: Duration::from_micros(settings.partner_delay_us),
        done: RefCell::default(),
        more: Notify::new(),
        tally,
        settled_at: Cell::new(Instant::now()),
    });
    let body = format!(r#"{{"max":{LEASE_MAX},"wait_ms":{LEASE_WAIT_MS},"epoch":{}}}"#, session.epoch);
    let lease: Rc<[u8]> = post_json(&format!("/v1/queues/{}/lease", session.name), body.as_bytes()).into();
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..LEASES_OPEN {
        let (flow, socket, lease) = (Rc::clone(&flow), socket.clone(), Rc::clone(&lease));
        workers.spawn_local(async move { flow.lease(&socket, &lease).await });
    }
    for _ in 0..SETTLES_OPEN {
        let (flow, socket) = (Rc::clone(&flow), socket.clone());
        workers.spawn_local(async move { flow.settle(&socket).await });
    }
    // They end only by failing.
    match workers.join_next().await {
        Some(Ok(Err(source))) => Err(lost(source)),
        _ => Err(Failure::unsuccessful("a worker ended")),
    }
}

/// From the leases to the settles.
struct Flow {
    epoch: u64,
    partner_delay: Duration,
    /// What the partner has taken and is not settled yet. `max_in_flight` bounds it.
    done: RefCell<Vec<Items>>,
    more: Notify,
    tally: UnixDatagram,
    settled_at: Cell<Instant>,
}

impl Flow {
    async fn lease(self: &Rc<Self>, socket: &Path, request: &[u8]) -> io::Result<()> {
        let mut wire = Wire::connect(socket).await?;
        loop {
            let items = Items::delivered(wire.call(request).await?)?;
            if items.count == 0 {
                continue;
            }
            if self.partner_delay.is_zero() {
                self.push(items);
                continue;
            }
            let flow = Rc::clone(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(flow.partner_delay).await;
                flow.push(items);
            });
        }
    }

    fn push(&self, items: Items) {
        self.done.borrow_mut().push(items);
        self.more.notify_one();
    }

    async fn settle(&self, socket: &Path) -> io::Result<()> {
        let mut wire = Wire::connect(socket).await?;
        let mut used = Instant::now();
        loop {
            let items = loop {
                match self.take() {
                    Some(items) => break items,
                    None => self.more.notified().await,
                }
            };
            if used.elapsed() > IDLE_MAX {
                wire = Wire::connect(socket).await?;
            }
            let request = post_json("/v1/settle", &items.settle(Some(self.epoch)));
            let settled = settled(wire.call(&request).await?);
            self.tell(settled);
            used = Instant::now();
        }
    }

    /// As much as one settle takes.
    fn take(&self) -> Option<Items> {
        let mut done = self.done.borrow_mut();
        let mut taken = done.pop()?;
        while let Some(next) = done.pop_if(|next| taken.count + next.count <= SETTLE_RESULTS_MAX) {
            taken.append(next);
        }
        if !done.is_empty() {
            self.more.notify_one();
        }
        Some(taken)
    }

    fn tell(&self, settled: u64) {
        let now = Instant::now();
        let since = (now - self.settled_at.replace(now)).as_micros();
        let mut message = [0; TALLY_BYTES];
        message[..8].copy_from_slice(&settled.to_le_bytes());
        message[8..].copy_from_slice(&u64::try_from(since).unwrap_or(u64::MAX).to_le_bytes());
        // If nobody counts any more, the measurement is over.
        let _ = self.tally.send(&message);
    }
}
