//! `gatepost bench`: how fast this machine's gateway is, with everything switched on.
//!
//! A temporary gateway, senders and adapters, each a real process or a real connection; every message is fsynced before
//! it is answered and stands in the audit log. The disk is measured in the same run, since nothing durable is faster.

mod adapter;
mod answer;
mod backlog;
mod counter;
mod cpu;
mod databases;
mod disk;
mod leases;
mod machine;
mod neighbours;
mod plan;
mod report;
mod request;
mod run;
mod senders;
mod site;
mod spread;
mod wire;

use std::path::Path;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};

use super::Context;
use super::failure::Failure;
use super::ui::Ui;
use backlog::Curve;
use databases::Databases;
use machine::Machine;
use neighbours::Neighbourhood;
use plan::Plan;
use report::Report;
use spread::rounded;

pub(super) use adapter::{BenchAdapter, run as run_adapter};
pub(super) use machine::filesystem;
pub(super) use neighbours::{BenchNeighbour, run_neighbour};
pub(super) use plan::Bench;

pub(super) async fn bench(context: &Context, args: &Bench) -> Result<(), Failure> {
    let ui = &context.ui;
    let mut terminated = signal(SignalKind::terminate()).map_err(Failure::io("cannot wait for signals"))?;
    let plan = Plan::new(args);
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let machine = Machine::detect(&parent);
    if cfg!(debug_assertions) {
        ui.note("note: this is a debug build, several times slower than a release");
    }
    if machine.is_volatile() {
        ui.note(
            "note: this directory is in memory (tmpfs), where fsync costs nothing; name a disk with --dir",
        );
    }
    let mut databases = Databases::new(plan.postgres.as_deref())?;
    if let Some(kinds) = &args.neighbours {
        let mut found = Neighbourhood::of(&plan, machine);
        let measured = tokio::select! {
            measured = found.measure(ui, &plan, kinds, &parent, &mut databases) => measured,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
            _ = terminated.recv() => Err(Failure::Interrupted),
        };
        let removed = databases.remove().await;
        // What whole rounds have found is shown even if the rest is not to come.
        if !found.is_empty() {
            found.print(ui)?;
        }
        return measured.and(removed);
    }
    let Some(most) = args.backlog else {
        // Whatever is dropped here takes its gateway and its directory along.
        let measured = tokio::select! {
            measured = measure(ui, &plan, &parent, machine, &mut databases) => measured,
            _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
            _ = terminated.recv() => Err(Failure::Interrupted),
        };
        let removed = databases.remove().await;
        measured?.print(ui, &plan)?;
        return removed;
    };
    let mut curve = Curve::new(&plan, machine);
    let measured = tokio::select! {
        measured = curve.measure(ui, &plan, most, &parent, &mut databases) => measured,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted),
        _ = terminated.recv() => Err(Failure::Interrupted),
    };
    let removed = databases.remove().await;
    // Filling takes long: what has been measured is shown even if the rest is not to come.
    if !curve.is_empty() {
        curve.print(ui)?;
    }
    measured.and(removed)
}

async fn measure(
    ui: &Ui,
    plan: &Plan,
    parent: &Path,
    machine: Machine,
    databases: &mut Databases,
) -> Result<Report, Failure> {
    let begun = Instant::now();
    let mut report = Report::new(machine, plan);
    let spinner = ui.spinner("");
    for run in 1..=plan.runs {
        for payload_bytes in &plan.payloads {
            let label = format!("run {run} of {}, {payload_bytes} bytes: ", plan.runs);
            report.add(&run::run(plan, *payload_bytes, parent, databases, &spinner, &label).await?);
            databases.remove().await?;
        }
    }
    spinner.finish_and_clear();
    report.elapsed_s = rounded(begun.elapsed().as_secs_f64());
    Ok(report)
}
