//! The long forms of the laboratory's scenarios within a given time, one after the other, and beside them the fuzzer:
//! `make torture MINUTES=30`.
//!
//! A new scenario is a function in the module of its short form and a line in [`SCENARIOS`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use gatepost_tests::lab::Report;
use gatepost_tests::{Dice, fuzzing, note};
use serde_json::{Value, json};

/// Works for about as long as its budget says and puts what it did and found into the report. What cannot be: a panic, which ends
/// this scenario and fails the run; the gateway's directory is then kept, and named.
type Scenario = fn(Duration, &mut Report);

/// Every scenario, with its share of the time.
const SCENARIOS: &[(&str, u32, Scenario)] = &[
    ("simulation", 1, simulation),
    ("lost writes", 2, crate::disk::lost_writes),
    ("failing disks", 2, crate::disk::failures),
    ("torn and flipped", 2, crate::torn::torn),
    ("migration", 1, crate::migrate::migration),
    ("trouble", 3, crate::trouble::trouble),
    ("kills", 18, crate::lab::kills),
];
/// It needs one processor and a minute for each of its targets, and disturbs the others just as any neighbour does.
const FUZZER: &str = "fuzzer";

/// `GATEPOST_TORTURE_MINUTES` says how long, `GATEPOST_TORTURE_ONLY` names scenarios if not all are wanted, and
/// `GATEPOST_TORTURE_REPORT` a file for the report as JSON.
#[test]
#[ignore = "long: make torture"]
fn torture() {
    let minutes = std::env::var("GATEPOST_TORTURE_MINUTES").ok().and_then(|text| text.parse::<f64>().ok());
    let all = Duration::from_secs_f64(60.0 * minutes.expect("GATEPOST_TORTURE_MINUTES is a number"));
    let only = std::env::var("GATEPOST_TORTURE_ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only.split(',').any(|chosen| chosen == name);
    let chosen: Vec<_> = SCENARIOS.iter().filter(|(name, ..)| wanted(name)).collect();
    let fuzzer = wanted(FUZZER).then(|| thread::spawn(move || run(FUZZER, all, fuzz)));
    assert!(!chosen.is_empty() || fuzzer.is_some(), "GATEPOST_TORTURE_ONLY={only} names no scenario");
    let mut shares: u32 = chosen.iter().map(|(_, share, _)| share).sum();
    let mut left = all;
    let mut reports: Vec<Report> = Vec::new();
    for (name, share, scenario) in chosen {
        // Time that one leaves, or takes too much, is shared by those after it.
        let started = Instant::now();
        reports.push(run(name, left * *share / shares, *scenario));
        left = left.saturating_sub(started.elapsed());
        shares -= share;
    }
    reports.extend(fuzzer.map(|thread| thread.join().expect("panics are in its report")));
    let clean = reports.iter().all(Report::is_clean);
    if let Some(file) = std::env::var_os("GATEPOST_TORTURE_REPORT") {
        let scenarios: Vec<Value> = reports.iter().map(Report::to_json).collect();
        let document = json!({ "ok": clean, "scenarios": scenarios });
        std::fs::write(file, format!("{document:#}\n")).expect("the report can be written");
    }
    note("\nreport");
    reports.iter().for_each(|report| note(&report.to_string()));
    assert!(clean, "something is wrong; see the report");
}

fn run(name: &str, budget: Duration, scenario: Scenario) -> Report {
    note(&format!("{name}: {} s", budget.as_secs()));
    let mut report = Report::new(name);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(budget, &mut report))) {
        report.fail(message(panic.as_ref()));
    }
    report.end();
    note(&report.to_string());
    report
}

fn message(panic: &dyn std::any::Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// The store's own simulation, from a seed on that has not been tried.
fn simulation(budget: Duration, report: &mut Report) {
    let from = Dice::fresh_seed() >> 1;
    let output = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--package", "gatepost-store", "--lib", "--"])
        .args(["--exact", "writer::sim::tests::the_laws_hold_for_every_seed", "--nocapture"])
        .env("GATEPOST_SIM_FROM", from.to_string())
        .env("GATEPOST_SIM_SECONDS", budget.as_secs().to_string())
        .output()
        .expect("cargo can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    let summary = said.lines().find(|line| line.starts_with("simulation: "));
    match summary.filter(|_| output.status.success()) {
        Some(line) => report.note(format!("from seed {from}: {line}")),
        None => report.fail(said),
    }
}

fn fuzz(budget: Duration, report: &mut Report) {
    match fuzzing::fuzz(budget) {
        Ok(said) => said.lines().for_each(|line| report.note(line)),
        Err(said) => report.fail(said),
    }
}
