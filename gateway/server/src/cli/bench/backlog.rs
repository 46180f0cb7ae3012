//! `gatepost bench --backlog`: whether a queue that holds millions is as quick as an empty one.
//!
//! Step by step an inbox is filled further. At each step one caller, alone, leases and settles a few and accepts as many, so
//! that the backlog stays; then the gateway is killed and started again over it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use nix::sys::statvfs::statvfs;
use serde::Serialize;
use tokio::time::sleep;

use super::super::failure::Failure;
use super::super::scratch::{Directory, Ends, Gateway, Site};
use super::super::text;
use super::super::ui::{Grid, Style, Ui};
use super::databases::Databases;
use super::disk::Disk;
use super::leases::{Items, settled};
use super::machine::Machine;
use super::plan::{Plan, SENDERS_BATCH, batch};
use super::report::mib;
use super::request::{Request, Shape};
use super::senders::{self, Load, Until};
use super::site::{KIND_HEAP, QUEUE_HEAP, write_heap};
use super::spread::{percentile, rounded};
use super::wire::{Wire, post_json};

/// The first step above nothing; each further one is ten times as many.
const FIRST_STEP: u64 = 10_000;
/// Deliveries of one lease, and messages accepted for them.
const FEW: u64 = 4;
/// Messages between two looks at the progress.
const FILL_CHUNK: u64 = 50_000;
/// After filling, what the gateway still does in the background is left to end.
const CALM: Duration = Duration::from_secs(2);
/// The first part of a measurement is not counted.
const WARM_UP_PART: u32 = 5;
const START_DEADLINE: Duration = Duration::from_secs(600);
/// What a waiting message takes on disk beside its payload, bytes; a little more than it does.
const ROW_BYTES: u64 = 1_000;

/// The names are those of `--json`, which scripts depend on.
#[derive(Debug, Serialize)]
pub(super) struct Curve {
    machine: Machine,
    debug_build: bool,
    payload_bytes: usize,
    ordering_keys: u64,
    steps: Vec<Step>,
    elapsed_s: f64,
}

#[derive(Debug, Serialize)]
struct Step {
    waiting: u64,
    /// The disk alone, in the same minute.
    fdatasync_us_p50: u32,
    fdatasync_us_p99: u32,
    fill_per_s: Option<f64>,
    accept_us_p50: u32,
    accept_us_p99: u32,
    lease_us_p50: u32,
    lease_us_p99: u32,
    settle_us_p50: u32,
    settle_us_p99: u32,
    /// Of the gateway: after the measurement, at most since its start, and after it was started over the backlog.
    rss_mib: f64,
    rss_peak_mib: f64,
    rss_started_mib: f64,
    /// From the start of the process after kill -9 until it is ready.
    start_ms: f64,
    data_mib: f64,
}

/// The numbers of waiting messages at which is measured.
fn steps(most: u64) -> Vec<u64> {
    let tens = std::iter::successors(Some(FIRST_STEP), |step| step.checked_mul(10));
    let mut steps = vec![0];
    steps.extend(tens.take_while(|step| *step < most));
    steps.push(most);
    steps
}

impl Curve {
    pub(super) fn new(plan: &Plan, machine: Machine) -> Self {
        Self {
            machine,
            debug_build: cfg!(debug_assertions),
            payload_bytes: plan.payload_bytes(),
            ordering_keys: plan.keys,
            steps: Vec::new(),
            elapsed_s: 0.0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Measures step by step. Whoever interrupts it has what was measured until then.
    pub(super) async fn measure(
        &mut self,
        ui: &Ui,
        plan: &Plan,
        most: u64,
        parent: &Path,
        databases: &mut Databases,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let payload_bytes = self.payload_bytes;
        room(parent, most * (payload_bytes as u64 + ROW_BYTES))?;
        let directory = Directory::create(Some(parent), "bench")?;
        let url_file = databases.create(directory.path()).await?;
        let site = write_heap(directory.path(), plan.keys, url_file.as_deref())?;
        let bar = ui.progress(most, "starting a gateway");
        let mut gateway = Gateway::start(&site, Ends::WithUs).await?;
        let mut heap = Heap { plan, payload_bytes, site, bar, dir: directory.path(), waiting: 0, series: 0 };
        for step in steps(most) {
            let measured;
            (measured, gateway) = heap.step(step, gateway).await?;
            self.steps.push(measured);
            self.elapsed_s = rounded(begun.elapsed().as_secs_f64());
        }
        heap.bar.finish_and_clear();
        gateway.stop().await
    }
}

/// Refuses what would fill the disk.
fn room(dir: &Path, bytes: u64) -> Result<(), Failure> {
    // A filesystem that does not tell is tried.
    let free = statvfs(dir).map_or(u64::MAX, |found| found.blocks_available() * found.fragment_size());
    if bytes < free {
        return Ok(());
    }
    Err(Failure::Unsuccessful {
        what: format!(
            "{} has {} free, and such a backlog takes up to {}",
            dir.display(),
            text::bytes(free),
            text::bytes(bytes)
        ),
        hint: Some("take smaller payloads with --payload, or another disk with --dir".to_owned()),
    })
}

struct Heap<'a> {
    plan: &'a Plan,
    payload_bytes: usize,
    site: Site,
    bar: ProgressBar,
    dir: &'a Path,
    waiting: u64,
    /// The next series of ids.
    series: u32,
}

/// Latencies of each kind of call, µs.
#[derive(Debug, Default)]
struct Calls {
    accept: Vec<u32>,
    lease: Vec<u32>,
    settle: Vec<u32>,
}

impl Heap<'_> {
    async fn step(&mut self, waiting: u64, gateway: Gateway) -> Result<(Step, Gateway), Failure> {
        let fill_per_s = self.fill(waiting).await?;
        self.bar.set_message(format!("{} waiting: measuring", text::count(waiting)));
        sleep(CALM).await;
        let mut disk = Disk::default();
        disk.measure(self.dir).map_err(Failure::io("cannot measure the disk"))?;
        let doing = "the gateway's socket failed";
        let calls = self.calls().await.map_err(Failure::io(doing))?;
        let memory = |gateway: &Gateway, name| mib(gateway.memory_kib(name).unwrap_or_default());
        let (rss_mib, rss_peak_mib) = (memory(&gateway, "VmRSS"), memory(&gateway, "VmHWM"));
        self.bar.set_message(format!("{} waiting: kill -9, start", text::count(waiting)));
        gateway.kill().await?;
        let started = Gateway::start_within(&self.site, Ends::WithUs, START_DEADLINE).await?;
        let step = Step {
            waiting,
            fdatasync_us_p50: disk.percentile_us(0.5),
            fdatasync_us_p99: disk.percentile_us(0.99),
            fill_per_s,
            accept_us_p50: percentile(&calls.accept, 0.5),
            accept_us_p99: percentile(&calls.accept, 0.99),
            lease_us_p50: percentile(&calls.lease, 0.5),
            lease_us_p99: percentile(&calls.lease, 0.99),
            settle_us_p50: percentile(&calls.settle, 0.5),
            settle_us_p99: percentile(&calls.settle, 0.99),
            rss_mib,
            rss_peak_mib,
            rss_started_mib: memory(&started, "VmRSS"),
            start_ms: rounded(started.ready_after.as_secs_f64() * 1e3),
            data_mib: mib(size(&self.site.data_dir) / 1024),
        };
        Ok((step, started))
    }

    fn shape(&mut self, batch: u64) -> Shape {
        self.series += 1;
        Shape {
            kind: KIND_HEAP.to_owned(),
            destinations: 0,
            batch,
            keys: self.plan.keys,
            payload_bytes: self.payload_bytes,
            series: self.series,
            bearer: None,
        }
    }

    /// Accepts until so many wait. How many a second, if there were any.
    async fn fill(&mut self, waiting: u64) -> Result<Option<f64>, Failure> {
        self.bar.set_message("filling");
        let (begun, before) = (Instant::now(), self.waiting);
        while self.waiting < waiting {
            let missing = (waiting - self.waiting).min(FILL_CHUNK);
            let batch = batch(self.payload_bytes).min(missing);
            let senders = SENDERS_BATCH.min(missing / batch);
            let messages = missing / (batch * senders) * (batch * senders);
            // Each sender goes on among the keys where it stopped.
            let first = self.waiting / SENDERS_BATCH;
            let load = Load { shape: self.shape(batch), senders, first, until: Until::Messages(messages) };
            self.waiting += senders::run(vec![self.site.app_socket.clone()], load).await?.messages;
            self.bar.set_position(self.waiting);
        }
        let filled = self.waiting - before;
        Ok((filled > 0).then(|| rounded(filled as f64 / begun.elapsed().as_secs_f64())))
    }

    /// Leases, settles and accepts a few, over and over.
    async fn calls(&mut self) -> io::Result<Calls> {
        let mut wire = Wire::connect(&self.site.app_socket).await?;
        let mut accept = Request::new(&self.shape(1), 0, 1);
        let body = format!(r#"{{"max":{FEW}}}"#);
        let lease = post_json(&format!("/v1/queues/{QUEUE_HEAP}/lease"), body.as_bytes());
        let mut calls = Calls::default();
        let mut accepted = 0;
        let mut owed = FEW;
        let begun = Instant::now();
        let warm_up = self.plan.span / WARM_UP_PART;
        while begun.elapsed() < self.plan.span + warm_up {
            for _ in 0..owed {
                accept.renumber(accepted);
                accepted += 1;
                timed(&mut wire, &accept.bytes, &mut calls.accept).await?;
            }
            let items = Items::delivered(timed(&mut wire, &lease, &mut calls.lease).await?)?;
            if items.count == 0 {
                return Err(io::Error::other("nothing to lease, though messages wait"));
            }
            let settle = post_json("/v1/settle", &items.settle(None));
            owed = settled(timed(&mut wire, &settle, &mut calls.settle).await?);
            if begun.elapsed() < warm_up {
                calls = Calls::default();
            }
        }
        for latencies in [&mut calls.accept, &mut calls.lease, &mut calls.settle] {
            latencies.sort_unstable();
        }
        Ok(calls)
    }
}

async fn timed<'w>(wire: &'w mut Wire, request: &[u8], latencies: &mut Vec<u32>) -> io::Result<&'w [u8]> {
    let begun = Instant::now();
    let answer = wire.call(request).await?;
    latencies.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
    Ok(answer)
}

/// Of all files below, bytes. What goes away meanwhile counts as nothing.
fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

impl Curve {
    pub(super) fn print(&self, ui: &Ui) -> Result<(), Failure> {
        if ui.json {
            return ui.json(self);
        }
        ui.line(self.machine.line(ui))?;
        let order = match self.ordering_keys {
            0 => "no order".to_owned(),
            keys => text::plural(keys, "lane", "lanes"),
        };
        let conditions = format!(
            "{} of payload, {order}; one caller alone; × is the p99 against the empty queue's",
            text::bytes(self.payload_bytes as u64)
        );
        ui.line(ui.paint(Style::Faint, conditions))?;
        ui.line("")?;
        self.table(ui).print(ui)?;
        ui.line("")?;
        ui.line(ui.paint(Style::Faint, format_args!("{} s in all", self.elapsed_s)))
    }

    fn table(&self, ui: &Ui) -> Grid {
        let mut grid = ui.table(&[
            "WAITING",
            "FILL",
            "ACCEPT P50",
            "P99",
            "×",
            "LEASE P50",
            "P99",
            "×",
            "SETTLE P50",
            "P99",
            "×",
            "START",
            "RSS",
            "STARTED",
            "DATA",
            "FDATASYNC P50",
            "P99",
        ]);
        let micros = |us: u32| text::span(Duration::from_micros(us.into()));
        let memory = |mib: f64| text::bytes((mib * 1024.0 * 1024.0) as u64);
        let Some(empty) = self.steps.first() else { return grid };
        for step in &self.steps {
            let against = |p99: u32, of_empty: u32| {
                let times = f64::from(p99) / f64::from(of_empty.max(1));
                (if times > 1.2 { Style::Warn } else { Style::Good }, format!("{times:.2}"))
            };
            let plain = |text: String| (Style::Plain, text);
            grid.row(vec![
                (Style::Strong, text::count(step.waiting)),
                (
                    Style::Faint,
                    step.fill_per_s
                        .map_or_else(|| "-".to_owned(), |rate| format!("{}/s", text::count(rate as u64))),
                ),
                plain(micros(step.accept_us_p50)),
                plain(micros(step.accept_us_p99)),
                against(step.accept_us_p99, empty.accept_us_p99),
                plain(micros(step.lease_us_p50)),
                plain(micros(step.lease_us_p99)),
                against(step.lease_us_p99, empty.lease_us_p99),
                plain(micros(step.settle_us_p50)),
                plain(micros(step.settle_us_p99)),
                against(step.settle_us_p99, empty.settle_us_p99),
                plain(text::span(Duration::from_secs_f64(step.start_ms / 1e3))),
                plain(memory(step.rss_mib)),
                plain(memory(step.rss_started_mib)),
                (Style::Faint, memory(step.data_mib)),
                (Style::Faint, micros(step.fdatasync_us_p50)),
                (Style::Faint, micros(step.fdatasync_us_p99)),
            ]);
        }
        grid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_tens_up_to_the_last() {
        assert_eq!(steps(5), [0, 5]);
        assert_eq!(steps(10_000), [0, 10_000]);
        assert_eq!(steps(250_000), [0, 10_000, 100_000, 250_000]);
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_begins() {
        let dir = tempfile::tempdir().unwrap();
        assert!(room(dir.path(), 1).is_ok());
        assert!(room(dir.path(), u64::MAX).is_err());
    }

    #[test]
    fn sizes_are_of_everything_below() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        std::fs::write(dir.path().join("below/a"), [0; 1000]).unwrap();
        let alone = size(dir.path());
        std::fs::write(dir.path().join("b"), [0; 24]).unwrap();
        assert_eq!(size(dir.path()) - alone, 24);
        assert!(alone >= 1000);
    }
}
