//! `gatepost bench --neighbours`: what a greedy or broken client costs a well-behaved one.
//!
//! For each kind of neighbour the well-behaved client is measured three times, one right after the other: alone; beside the neighbour's
//! process while that talks to a stand-in of its own, so that the machine is as busy and the gateway is not; and beside it at the gateway.
//! The second against the first is what a busy machine costs, the third against the second what the gateway adds. Where nobody is the
//! neighbour, the same comparison shows the noise.

mod greedy;
pub(super) mod kind;
mod paced;
mod report;
mod site;
mod stand_in;

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::super::BENCH_NEIGHBOUR;
use super::super::failure::Failure;
use super::super::scratch::{Directory, Ends, Gateway, Site, this_program};
use super::super::ui::Ui;
use super::cpu::Cpu;
use super::databases::Databases;
use super::machine::Machine;
use super::plan::Plan;
use super::request::Shape;
use super::spread::{percentile, rounded};
use greedy::Done;
use paced::Paced;

pub(crate) use greedy::{BenchNeighbour, run as run_neighbour};
pub(crate) use kind::Kind;
pub(super) use report::Neighbourhood;

/// The first part of a measurement is not counted; a neighbour has begun by then.
const WARM_UP_PART: u32 = 4;
/// After a neighbour, what the gateway still does for it is left to end.
const CALM: Duration = Duration::from_millis(500);
/// How long a neighbour may take to end when it is told to.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// How the well-behaved client fared while something went on beside it.
#[derive(Clone, Copy, Debug)]
struct Fared {
    p50_us: u32,
    p99_us: u32,
    /// Of one core, percent.
    gateway_cpu_percent: f64,
    /// What the neighbour did, if there was one.
    done: Option<Done>,
}

/// One kind of neighbour in one round.
#[derive(Clone, Copy, Debug)]
struct Triple {
    alone: Fared,
    elsewhere: Fared,
    beside: Fared,
}

/// Where the neighbour is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nobody,
    Elsewhere(Kind),
    Gateway(Kind),
}

impl Neighbourhood {
    /// Measures round by round. Whoever interrupts it has the rounds until then.
    pub(super) async fn measure(
        &mut self,
        ui: &Ui,
        plan: &Plan,
        kinds: &[Kind],
        parent: &Path,
        databases: &mut Databases,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let kinds = if kinds.is_empty() { &Kind::ALL[..] } else { kinds };
        // The first is nobody: what differs there is noise.
        let rows: Vec<Option<Kind>> = std::iter::once(None).chain(kinds.iter().copied().map(Some)).collect();
        let spinner = ui.spinner("");
        for round in 1..=plan.runs {
            let directory = Directory::create(Some(parent), "bench")?;
            let url_file = databases.create(directory.path()).await?;
            let site = site::write(directory.path(), url_file.as_deref())?;
            let gateway = Gateway::start(&site, Ends::WithUs).await?;
            let mut street = Street { plan, site, gateway, dir: directory.path(), series: 0 };
            let mut found = Vec::new();
            for kind in &rows {
                let name = kind.map_or("nobody", Kind::title);
                let label = format!("round {round} of {}, a neighbour that {name}: ", plan.runs);
                found.push(street.triple(*kind, &spinner, &label).await?);
            }
            street.gateway.stop().await?;
            databases.remove().await?;
            self.add(&rows, &found);
            self.elapsed_s = rounded(begun.elapsed().as_secs_f64());
        }
        spinner.finish_and_clear();
        Ok(())
    }

    pub(super) fn of(plan: &Plan, machine: Machine) -> Self {
        let per_s = paced::CONNECTIONS as f64 / paced::INTERVAL.as_secs_f64();
        Self::new(machine, plan.payload_bytes(), plan.span, per_s)
    }
}

/// A gateway and who is about.
struct Street<'a> {
    plan: &'a Plan,
    site: Site,
    gateway: Gateway,
    dir: &'a Path,
    /// The next series of ids.
    series: u32,
}

impl Street<'_> {
    async fn triple(
        &mut self,
        kind: Option<Kind>,
        say: &ProgressBar,
        label: &str,
    ) -> Result<Triple, Failure> {
        let elsewhere = kind.map_or(Beside::Nobody, Beside::Elsewhere);
        let gateway = kind.map_or(Beside::Nobody, Beside::Gateway);
        say.set_message(format!("{label}alone"));
        let alone = self.fare(Beside::Nobody).await?;
        say.set_message(format!("{label}elsewhere"));
        let elsewhere = self.fare(elsewhere).await?;
        say.set_message(format!("{label}at the gateway"));
        let beside = self.fare(gateway).await?;
        Ok(Triple { alone, elsewhere, beside })
    }

    async fn fare(&mut self, beside: Beside) -> Result<Fared, Failure> {
        let (warm_up, span) = (self.plan.span / WARM_UP_PART, self.plan.span);
        self.series += 1;
        let shape = Shape {
            kind: site::KIND_GOOD.to_owned(),
            destinations: 0,
            batch: 1,
            keys: 0,
            payload_bytes: self.plan.payload_bytes(),
            series: self.series,
            bearer: Some(site::TOKEN_GOOD),
        };
        // It was there first, as one that keeps its connections is.
        let paced = Paced::connect(&self.site.app_socket, &shape)?;
        let neighbour = self.neighbour(beside)?;
        let (before, begun) = (self.cpu(), Instant::now());
        let latencies = paced.measure(warm_up, span).await?;
        let (used, elapsed) = (self.cpu().saturating_sub(before), begun.elapsed());
        let done = match neighbour {
            Some(neighbour) => Some(end(neighbour).await?),
            None => None,
        };
        sleep(CALM).await;
        Ok(Fared {
            p50_us: percentile(&latencies, 0.5),
            p99_us: percentile(&latencies, 0.99),
            gateway_cpu_percent: used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
            done,
        })
    }

    fn cpu(&self) -> Duration {
        Cpu::now(&[self.gateway.pid], &[]).gateway
    }

    fn neighbour(&self, beside: Beside) -> Result<Option<Child>, Failure> {
        let (kind, socket) = match beside {
            Beside::Nobody => return Ok(None),
            Beside::Elsewhere(kind) => (kind, self.dir.join(format!("stand-in-{}.sock", self.series))),
            Beside::Gateway(kind) => (kind, self.site.app_socket.clone()),
        };
        let mut command = Command::new(this_program()?);
        command.arg(BENCH_NEIGHBOUR).args(["--kind", kind.name()]).arg("--socket").arg(socket);
        command.args(["--payload", &self.plan.payload_bytes().to_string()]);
        command.args(["--series", &self.series.to_string()]);
        if matches!(beside, Beside::Elsewhere(_)) {
            command.arg("--elsewhere");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.spawn().map(Some).map_err(Failure::io("cannot start a neighbour"))
    }
}

/// Tells a neighbour to end, and hears what it has done.
async fn end(mut neighbour: Child) -> Result<Done, Failure> {
    drop(neighbour.stdin.take());
    let said = async {
        let mut text = String::new();
        if let Some(mut stdout) = neighbour.stdout.take() {
            stdout.read_to_string(&mut text).await?;
        }
        neighbour.wait().await?;
        Ok::<_, io::Error>(text)
    };
    let said = timeout(END_DEADLINE, said).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let said = said.map_err(Failure::io("cannot hear a neighbour"))?;
    serde_json::from_str(&said).map_err(|_| Failure::unsuccessful("a neighbour ended by itself"))
}
