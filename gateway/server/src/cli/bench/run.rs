//! One run: a gateway with an empty store, and all phases one after the other.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use indicatif::ProgressBar;
use tokio::time::sleep;

use super::super::client::Call;
use super::super::failure::Failure;
use super::super::scratch::{Directory, Ends, Gateway, Site};
use super::counter::Counter;
use super::cpu::{self, Cpu};
use super::databases::Databases;
use super::disk::Disk;
use super::plan::{Phase, Plan, Want};
use super::request::Shape;
use super::senders::{self, Load, Measured, Until};
use super::site::{KIND_ACCEPT, KIND_STRICT, QUEUE_STRICT, kind_through};
use super::spread::percentile;

/// How long an idle gateway is left alone before it is looked at, and how long the look takes.
const IDLE_BEFORE: Duration = Duration::from_millis(700);
const IDLE_LOOK: Duration = Duration::from_secs(1);
/// Messages of the strict phase per second of a phase: it is a latency, and some hundreds say it.
const STRICT_PER_SECOND: f64 = 300.0;
const STRICT_MESSAGES_MIN: u64 = 100;
const STRICT_BATCH: u64 = 100;
const STRICT_SENDERS: u64 = 1;

/// What one run found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) fdatasync_us_p50: u32,
    pub(super) append_per_s: f64,
    pub(super) idle_kib: u64,
    /// Of one core, percent.
    pub(super) idle_cpu_percent: f64,
    pub(super) peak_kib: u64,
    pub(super) phases: Vec<(Phase, Figures)>,
}

/// What one phase found.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) messages: u64,
    pub(super) per_s: f64,
    /// Of a request; in the strict phase of a delivery.
    pub(super) p50_us: u32,
    pub(super) p99_us: u32,
    /// Processor time of each process for all messages.
    pub(super) cpu: Cpu,
}

pub(super) struct Run<'a> {
    plan: &'a Plan,
    dir: PathBuf,
    nodes: Vec<Node>,
    adapters: Vec<u32>,
    counter: Counter,
    /// The next series of ids.
    series: u32,
}

/// One of the gateways.
struct Node {
    site: Site,
    gateway: Gateway,
}

/// Measures everything once, in a directory that is removed again.
pub(super) async fn run(
    plan: &Plan,
    payload_bytes: usize,
    parent: &Path,
    databases: &mut Databases,
    spinner: &ProgressBar,
    label: &str,
) -> Result<Found, Failure> {
    let say = |what: &str| spinner.set_message(format!("{label}{what}"));
    say("starting a gateway");
    let directory = Directory::create(Some(parent), "bench")?;
    let url_file = databases.create(directory.path()).await?;
    let mut run = Run::start(plan, directory.path(), url_file.as_deref()).await?;
    say("an idle gateway");
    sleep(IDLE_BEFORE).await;
    let (idle_kib, idle_cpu_percent) = run.idle().await;
    let mut disk = Disk::default();
    run.measure_disk(&mut disk)?;
    let mut phases = Vec::new();
    for phase in plan.phases(payload_bytes) {
        say(&phase.title());
        phases.push((phase.clone(), run.phase(&phase).await?));
    }
    run.measure_disk(&mut disk)?;
    let peak_kib = run.memory_kib("VmHWM");
    say("stopping the gateway");
    for node in run.nodes {
        node.gateway.stop().await?;
    }
    Ok(Found {
        fdatasync_us_p50: disk.percentile_us(0.5),
        append_per_s: disk.append_per_s(),
        idle_kib,
        idle_cpu_percent,
        peak_kib,
        phases,
    })
}

impl<'a> Run<'a> {
    async fn start(plan: &'a Plan, dir: &Path, url_file: Option<&Path>) -> Result<Self, Failure> {
        let tally = dir.join("tally.sock");
        let counter = Counter::bind(&tally).map_err(Failure::io("cannot create a socket"))?;
        let mut nodes: Vec<Node> = Vec::new();
        for number in 1..=plan.nodes {
            let own = dir.join(format!("node-{number}"));
            std::fs::create_dir(&own).map_err(Failure::io(format!("cannot create {}", own.display())))?;
            let site = plan.layout().write(&own, &tally, url_file)?;
            if let Some(first) = nodes.first() {
                copy_keys(&first.site, &site).map_err(Failure::io("cannot copy the first node's keys"))?;
            }
            let gateway = Gateway::start(&site, Ends::WithUs).await?;
            nodes.push(Node { site, gateway });
        }
        let adapters = nodes.iter().flat_map(|node| cpu::children(node.gateway.pid)).collect();
        Ok(Self { plan, dir: dir.to_path_buf(), nodes, adapters, counter, series: 0 })
    }

    fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.gateway.pid).collect()
    }

    fn sockets(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(|node| node.site.app_socket.clone()).collect()
    }

    /// Of the gateway that has the most.
    fn memory_kib(&self, name: &str) -> u64 {
        self.nodes.iter().filter_map(|node| node.gateway.memory_kib(name)).max().unwrap_or_default()
    }

    /// Memory, KiB, and processor time, percent of a core, of a gateway that has nothing to do.
    async fn idle(&self) -> (u64, f64) {
        let used = || self.pids().into_iter().map(cpu::precise).sum::<Duration>();
        let (before, begun) = (used(), Instant::now());
        sleep(IDLE_LOOK).await;
        let percent = used().saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        (self.memory_kib("VmRSS"), percent / self.nodes.len() as f64)
    }

    fn measure_disk(&self, disk: &mut Disk) -> Result<(), Failure> {
        let doing = || format!("cannot measure the disk of {}", self.dir.display());
        disk.measure(&self.dir).map_err(Failure::io(doing()))
    }

    /// Warms up, then measures.
    async fn phase(&mut self, phase: &Phase) -> Result<Figures, Failure> {
        if let Some(warm_up) = self.plan.warm_up(phase) {
            self.once(phase, warm_up).await?;
        }
        self.once(phase, self.plan.until(phase)).await
    }

    async fn once(&mut self, phase: &Phase, until: Until) -> Result<Figures, Failure> {
        match phase.want {
            Want::Serial | Want::Accept | Want::AcceptBatch => self.accept(phase, until).await,
            Want::EndToEnd | Want::EndToEndBatch => self.end_to_end(phase, until).await,
            Want::Strict => self.strict(phase, until).await,
        }
    }

    fn load(&mut self, phase: &Phase, kind: String, destinations: u64, until: Until) -> Load {
        self.series += 1;
        let shape = Shape {
            kind,
            destinations,
            batch: phase.batch,
            keys: self.plan.keys,
            payload_bytes: phase.payload_bytes,
            series: self.series,
            bearer: None,
        };
        Load { shape, senders: phase.senders, first: 0, until }
    }

    fn cpu(&self) -> Cpu {
        Cpu::now(&self.pids(), &self.adapters)
    }

    async fn accept(&mut self, phase: &Phase, until: Until) -> Result<Figures, Failure> {
        let load = self.load(phase, KIND_ACCEPT.to_owned(), 0, until);
        let before = self.cpu();
        let measured = senders::run(self.sockets(), load).await?;
        let cpu = self.cpu().since(before);
        Ok(figures(&measured, measured.per_second(), cpu))
    }

    /// Sends through the adapters, and waits until they have settled everything. The time runs from the first request to
    /// that.
    async fn end_to_end(&mut self, phase: &Phase, until: Until) -> Result<Figures, Failure> {
        let load = self.load(phase, kind_through(phase.delay_index), self.plan.destinations, until);
        self.counter.reset();
        let before = self.cpu();
        let sending = senders::run(self.sockets(), load);
        tokio::pin!(sending);
        let sent = loop {
            tokio::select! {
                sent = &mut sending => break sent?,
                heard = self.counter.hear() => heard?,
            }
        };
        self.counter.until(sent.messages).await?;
        let drained = self.counter.at.duration_since(sent.started);
        let cpu = self.cpu().since(before);
        Ok(figures(&sent, sent.messages as f64 / drained.as_secs_f64(), cpu))
    }

    /// Fills a paused queue in strict order, resumes it, and takes the time from one settle to the next: what a delivery
    /// costs that has to wait for the one before, when its partner takes none.
    async fn strict(&mut self, phase: &Phase, until: Until) -> Result<Figures, Failure> {
        let messages = match until {
            Until::Messages(messages) => messages,
            Until::Elapsed(span) => (span.as_secs_f64() * STRICT_PER_SECOND) as u64,
        };
        let messages = Until::Messages(messages.max(STRICT_MESSAGES_MIN));
        let filling = Phase { senders: STRICT_SENDERS, batch: STRICT_BATCH, ..phase.clone() };
        let load = self.load(&filling, KIND_STRICT.to_owned(), 0, messages);
        self.switch("pause").await?;
        let sent = senders::run(self.sockets(), load).await?;
        self.counter.reset();
        let (before, begun) = (self.cpu(), Instant::now());
        self.switch("resume").await?;
        self.counter.until(sent.messages).await?;
        let elapsed = self.counter.at.duration_since(begun);
        let cycles = self.counter.cycles_us();
        Ok(Figures {
            messages: sent.messages,
            per_s: sent.messages as f64 / elapsed.as_secs_f64(),
            p50_us: percentile(&cycles, 0.5),
            p99_us: percentile(&cycles, 0.99),
            cpu: self.cpu().since(before),
        })
    }

    async fn switch(&self, action: &str) -> Result<(), Failure> {
        let call = Call::post(
            format!("/v1/queues/{QUEUE_STRICT}/{action}"),
            HeaderValue::from_static("application/json"),
            Bytes::new(),
        );
        self.nodes[0].site.operator().call(call).await.map(drop)
    }
}

/// Nodes of one database have the same keys.
fn copy_keys(from: &Site, to: &Site) -> std::io::Result<()> {
    let (from, to) = (from.data_dir.join("keys"), to.data_dir.join("keys"));
    DirBuilder::new().recursive(true).mode(0o700).create(&to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

fn figures(measured: &Measured, per_s: f64, cpu: Cpu) -> Figures {
    Figures {
        messages: measured.messages,
        per_s,
        p50_us: measured.percentile_us(0.5),
        p99_us: measured.percentile_us(0.99),
        cpu,
    }
}
