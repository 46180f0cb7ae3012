//! `gatepost bench`: how fast this machine's gateway is, with everything switched on.
//!
//! A temporary gateway, senders and an adapter, each a real process or a real connection; every message is fsynced before
//! it is answered and stands in the audit log. The disk is measured in the same run, since nothing durable is faster.

mod adapter;
mod disk;
mod load;
mod machine;
mod wire;

use std::io;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::UnixDatagram;
use tokio::time::{sleep, timeout};

use super::failure::Failure;
use super::scratch::{App, Directory, Ends, Gateway, Site, quoted, this_program};
use super::text;
use super::ui::{Style, Ui};
use super::{BENCH_ADAPTER, Context};
use disk::Disk;
use load::{BATCH, Measured, PAYLOAD_BYTES, Phase, Until};
use machine::Machine;

pub(super) use adapter::{BenchAdapter, run as run_adapter};
pub(super) use machine::filesystem;

/// Seconds of a phase.
const SECONDS_DEFAULT: u64 = 5;
const SECONDS_QUICK: u64 = 1;
const SENDERS_SINGLE: u64 = 64;
const SENDERS_BATCH: u64 = 8;
/// How long an idle gateway is left alone before its memory is read.
const IDLE_BEFORE_READING: Duration = Duration::from_millis(500);
/// How long the queue may take to drain without any progress.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// Accepted into an inbox that nobody reads.
const KIND_ACCEPT: &str = "bench.accept";
/// Delivered by the adapter.
const KIND_THROUGH: &str = "bench.through";

#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    /// Length of each phase under load, seconds [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: Option<u64>,
    /// Messages of each phase under load, in place of a time
    #[arg(long, value_name = "N", conflicts_with_all = ["seconds", "quick"], value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    messages: Option<u64>,
    /// One second for each phase
    #[arg(long, conflicts_with = "seconds")]
    quick: bool,
    /// Give the messages one of N ordering keys and deliver in order per key (0: no order)
    #[arg(long, value_name = "N", default_value_t = 0)]
    keys: u64,
    /// Where to put the temporary data: the disk that is measured [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Bench {
    fn until(&self) -> Until {
        match (self.messages, self.quick) {
            (Some(messages), _) => Until::Messages(messages),
            (None, true) => Until::Elapsed(Duration::from_secs(SECONDS_QUICK)),
            (None, false) => Until::Elapsed(Duration::from_secs(self.seconds.unwrap_or(SECONDS_DEFAULT))),
        }
    }
}

/// What was measured; the names are those of `--json`, which scripts depend on.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    /// Not optimised: the figures are not those of a release.
    debug_build: bool,
    payload_bytes: usize,
    ordering_keys: u64,
    fdatasync_us_p50: u32,
    append_per_s: f64,
    accept_serial_us_p50: u32,
    accept_serial_us_p99: u32,
    accept_per_s: f64,
    accept_us_p50: u32,
    accept_us_p99: u32,
    accept_batch_per_s: f64,
    e2e_per_s: f64,
    e2e_messages: u64,
    /// Most memory that the gateway had at any time.
    rss_mib: f64,
    idle_rss_mib: f64,
    /// Accepted over all phases.
    messages: u64,
    elapsed_s: f64,
}

pub(super) async fn bench(context: &Context, args: &Bench) -> Result<(), Failure> {
    let ui = &context.ui;
    let directory = Directory::create(args.dir.as_deref(), "bench")?;
    tokio::select! {
        report = measure(ui, args, directory.path()) => print(ui, &report?),
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
    }
}

async fn measure(ui: &Ui, args: &Bench, dir: &Path) -> Result<Report, Failure> {
    let begun = Instant::now();
    let machine = Machine::detect(dir);
    if cfg!(debug_assertions) {
        ui.note("note: this is a debug build, several times slower than a release");
    }
    if machine.is_volatile() {
        ui.note(
            "note: this directory is in memory (tmpfs), where fsync costs nothing; name a disk with --dir",
        );
    }
    let tally = dir.join("tally.sock");
    let counter = Counter::bind(&tally).map_err(Failure::io("cannot create a socket"))?;
    let site = configure(dir, args.keys, &tally)?;
    let spinner = ui.spinner("starting a gateway");
    let gateway = Gateway::start(&site, Ends::WithUs).await?;
    sleep(IDLE_BEFORE_READING).await;
    let idle_kib = gateway.memory_kib("VmRSS").unwrap_or_default();
    let mut disk = Disk::default();
    let phase = |kind, senders, batch| Phase { kind, senders, batch, keys: args.keys, until: args.until() };

    spinner.set_message("one sender at a time");
    measure_disk(&mut disk, dir)?;
    let serial = load::run(&site.app_socket, &serial_phase(args)).await?;
    measure_disk(&mut disk, dir)?;
    spinner.set_message("64 senders");
    let single = load::run(&site.app_socket, &phase(KIND_ACCEPT, SENDERS_SINGLE, 1)).await?;
    spinner.set_message("8 senders, batches of 100");
    let batched = load::run(&site.app_socket, &phase("bench.accept.batch", SENDERS_BATCH, BATCH)).await?;
    spinner.set_message("8 senders, batches of 100, through the adapter");
    let (through, drained) = end_to_end(&site, &phase(KIND_THROUGH, SENDERS_BATCH, BATCH), counter).await?;
    spinner.finish_and_clear();

    let peak_kib = gateway.memory_kib("VmHWM").unwrap_or_default();
    gateway.stop().await?;
    Ok(Report {
        machine,
        debug_build: cfg!(debug_assertions),
        payload_bytes: PAYLOAD_BYTES,
        ordering_keys: args.keys,
        fdatasync_us_p50: disk.fdatasync_us_p50(),
        append_per_s: rounded(disk.append_per_s()),
        accept_serial_us_p50: serial.percentile_us(0.5),
        accept_serial_us_p99: serial.percentile_us(0.99),
        accept_per_s: rounded(single.per_second()),
        accept_us_p50: single.percentile_us(0.5),
        accept_us_p99: single.percentile_us(0.99),
        accept_batch_per_s: rounded(batched.per_second()),
        e2e_per_s: rounded(through.messages as f64 / drained.as_secs_f64()),
        e2e_messages: through.messages,
        rss_mib: mib(peak_kib),
        idle_rss_mib: mib(idle_kib),
        messages: serial.messages + single.messages + batched.messages + through.messages,
        elapsed_s: rounded(begun.elapsed().as_secs_f64()),
    })
}

/// One sender is slow by design: a tenth of the messages says as much.
fn serial_phase(args: &Bench) -> Phase {
    let until = match args.until() {
        Until::Messages(messages) => Until::Messages(messages.div_ceil(10)),
        elapsed @ Until::Elapsed(_) => elapsed,
    };
    Phase { kind: "bench.accept.serial", senders: 1, batch: 1, keys: args.keys, until }
}

fn measure_disk(disk: &mut Disk, dir: &Path) -> Result<(), Failure> {
    disk.measure(dir).map_err(Failure::io(format!("cannot measure the disk of {}", dir.display())))
}

fn configure(dir: &Path, keys: u64, tally: &Path) -> Result<Site, Failure> {
    let program = quoted(&this_program()?.to_string_lossy());
    let tally = quoted(&tally.to_string_lossy());
    let order = if keys > 0 { "key" } else { "none" };
    let rest = format!(
        r#"[inboxes.sink]
order = "{order}"

[adapters.partner]
run = [{program}, "{BENCH_ADAPTER}"]
order = "{order}"
max_in_flight = 4096
settings = {{ tally = {tally} }}

[[routes]]
from = "sender"
when = 'type.startsWith("{KIND_ACCEPT}")'
to = ["sink"]

[[routes]]
from = "sender"
when = 'type == "{KIND_THROUGH}"'
to = ["partner"]
"#
    );
    Site::write(dir, "bench", &App { name: "sender", send: "bench.*" }, &rest)
}

/// Sends through the adapter, and waits until it has settled everything. Gives the time from the first request to that.
async fn end_to_end(
    site: &Site,
    phase: &Phase,
    mut counter: Counter,
) -> Result<(Measured, Duration), Failure> {
    let sending = load::run(&site.app_socket, phase);
    tokio::pin!(sending);
    let sent = loop {
        tokio::select! {
            sent = &mut sending => break sent?,
            counted = counter.next() => counted?,
        }
    };
    while counter.settled < sent.messages {
        timeout(DRAIN_PATIENCE, counter.next()).await.map_err(|_| {
            Failure::unsuccessful(format!(
                "the adapter settled {} of {} messages, then nothing for {} s",
                counter.settled,
                sent.messages,
                DRAIN_PATIENCE.as_secs()
            ))
        })??;
    }
    let drained = counter.at.duration_since(sent.started);
    Ok((sent, drained))
}

/// Hears from the adapter how many deliveries it has settled.
struct Counter {
    socket: UnixDatagram,
    settled: u64,
    /// When the last figure came.
    at: Instant,
}

impl Counter {
    fn bind(path: &Path) -> io::Result<Self> {
        let socket = StdDatagram::bind(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixDatagram::from_std(socket)?, settled: 0, at: Instant::now() })
    }

    async fn next(&mut self) -> Result<(), Failure> {
        let mut figure = [0; 8];
        self.socket.recv(&mut figure).await.map_err(Failure::io("cannot hear the adapter"))?;
        self.at = Instant::now();
        // A restarted adapter would count from zero again: the wait then ends by its patience, not with a wrong figure.
        self.settled = u64::from_le_bytes(figure);
        Ok(())
    }
}

fn rounded(value: f64) -> f64 {
    if value >= 100.0 { value.round() } else { (value * 10.0).round() / 10.0 }
}

fn mib(kib: u64) -> f64 {
    rounded(kib as f64 / 1024.0)
}

fn print(ui: &Ui, report: &Report) -> Result<(), Failure> {
    if ui.json {
        return ui.json(report);
    }
    let machine = &report.machine;
    ui.line(format_args!(
        "{} · {} × {} · Linux {} · {}",
        ui.paint(Style::Strong, &machine.name),
        machine.cores,
        machine.cpu,
        machine.kernel,
        machine.filesystem
    ))?;
    let order = match report.ordering_keys {
        0 => "no order".to_owned(),
        keys => format!("in order per key, {}", text::plural(keys, "key", "keys")),
    };
    ui.line(ui.paint(
        Style::Faint,
        format_args!(
            "{} of payload, every message fsynced, {order}",
            text::bytes(report.payload_bytes as u64)
        ),
    ))?;
    ui.line("")?;
    let mut grid = ui.table(&["WHAT", "RATE", "P50", "P99"]);
    let micros = |us: u32| text::span(Duration::from_micros(us.into()));
    let rate = |per_s: f64| format!("{}/s", text::count(per_s as u64));
    let dash = || "-".to_owned();
    let mut row = |what: &str, rate: String, p50: String, p99: String| {
        grid.row(vec![
            (Style::Plain, what.to_owned()),
            (Style::Good, rate),
            (Style::Plain, p50),
            (Style::Faint, p99),
        ]);
    };
    row("disk: append 1 KiB + fdatasync", rate(report.append_per_s), micros(report.fdatasync_us_p50), dash());
    let serial_rate = 1e6 / f64::from(report.accept_serial_us_p50.max(1));
    row(
        "accept, one sender",
        format!("≈ {}", rate(serial_rate)),
        micros(report.accept_serial_us_p50),
        micros(report.accept_serial_us_p99),
    );
    row(
        "accept, 64 senders",
        rate(report.accept_per_s),
        micros(report.accept_us_p50),
        micros(report.accept_us_p99),
    );
    row("accept, 8 senders, batches of 100", rate(report.accept_batch_per_s), dash(), dash());
    row("end to end, batches in and out", rate(report.e2e_per_s), dash(), dash());
    grid.print(ui)?;
    ui.line("")?;
    ui.line(format_args!(
        "memory of the gateway: {} MiB idle, {} MiB at most",
        report.idle_rss_mib, report.rss_mib
    ))?;
    let summary =
        format!("{} in {} s", text::plural(report.messages, "message", "messages"), report.elapsed_s);
    ui.line(ui.paint(Style::Faint, summary))
}
