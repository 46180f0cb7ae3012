//! The long forms of the laboratory's scenarios, one after the other within a given time: `make torture MINUTES=30`.
//!
//! A new scenario is a function in the module of its short form and a line in [`SCENARIOS`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use gatepost_tests::lab::Report;
use gatepost_tests::note;
use serde_json::{Value, json};

/// Works for about as long as its budget says and puts what it did and found into the report. What cannot be: a panic, which ends
/// this scenario and fails the run; the gateway's directory is then kept, and named.
type Scenario = fn(Duration, &mut Report);

/// Every scenario, with its share of the time.
const SCENARIOS: &[(&str, u32, Scenario)] = &[("kills", 4, crate::lab::kills)];

/// `GATEPOST_TORTURE_MINUTES` says how long, `GATEPOST_TORTURE_ONLY` names scenarios if not all are wanted, and
/// `GATEPOST_TORTURE_REPORT` a file for the report as JSON.
#[test]
#[ignore = "long: make torture"]
fn torture() {
    let minutes = std::env::var("GATEPOST_TORTURE_MINUTES").ok().and_then(|text| text.parse::<f64>().ok());
    let mut left = Duration::from_secs_f64(60.0 * minutes.expect("GATEPOST_TORTURE_MINUTES is a number"));
    let only = std::env::var("GATEPOST_TORTURE_ONLY").unwrap_or_default();
    let chosen: Vec<_> = SCENARIOS
        .iter()
        .filter(|(name, ..)| only.is_empty() || only.split(',').any(|chosen| chosen == *name))
        .collect();
    assert!(!chosen.is_empty(), "GATEPOST_TORTURE_ONLY={only} names no scenario");
    let mut shares: u32 = chosen.iter().map(|(_, share, _)| share).sum();
    let mut reports: Vec<Report> = Vec::new();
    for (name, share, scenario) in chosen {
        // Time that one leaves, or takes too much, is shared by those after it.
        let budget = left * *share / shares;
        note(&format!("{name}: {} s", budget.as_secs()));
        let (started, mut report) = (Instant::now(), Report::new(name));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(budget, &mut report))) {
            report.fail(message(panic.as_ref()));
        }
        left = left.saturating_sub(started.elapsed());
        shares -= share;
        note(&report.to_string());
        reports.push(report);
    }
    let clean = reports.iter().all(Report::is_clean);
    if let Some(file) = std::env::var_os("GATEPOST_TORTURE_REPORT") {
        let scenarios: Vec<Value> = reports.iter().map(Report::to_json).collect();
        let document = json!({ "ok": clean, "scenarios": scenarios });
        std::fs::write(file, format!("{document:#}\n")).expect("the report can be written");
    }
    assert!(clean, "something is wrong; see the report");
}

fn message(panic: &dyn std::any::Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
