//! How fast messages go through `gatepost-hl7` and `gatepost-fix`: real gateway, real adapters, full durability, and partners within
//! this process that answer at once. Run by `scripts/bench-adapters`, on optimized programs. It prints figures and asserts only that
//! every message arrived, once and in its order.

mod figures;
mod fix;
mod hl7;
mod mllp;
mod played;
mod tap;
mod venue;

use std::process::ExitCode;

use figures::{Disk, Table, machine};

const ROUNDS_DEFAULT: usize = 3;
const USAGE: &str =
    "bench-adapters [--rounds N] [NAME…]: medians of N rounds (3) of the measurements whose names begin so";

/// One measurement; adds what it found.
type Measure = fn(&mut Table);

const MEASUREMENTS: [(&str, Measure); 5] = [
    ("hl7-strict", hl7::one_lane),
    ("hl7-lanes", hl7::many_lanes),
    ("fix-sent", fix::sent),
    ("fix-business", fix::business),
    ("fix-latency", fix::latency),
];

fn main() -> ExitCode {
    let mut rounds = ROUNDS_DEFAULT;
    let mut chosen: Vec<String> = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What `cargo bench` adds.
            "--bench" => {}
            "--rounds" => match arguments.next().and_then(|number| number.parse().ok()) {
                Some(number @ 1..) => rounds = number,
                _ => return misused(),
            },
            name if MEASUREMENTS.iter().any(|(known, _)| known.starts_with(name)) => {
                chosen.push(name.to_owned());
            }
            "--help" => {
                say_usage();
                return ExitCode::SUCCESS;
            }
            _ => return misused(),
        }
    }
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|begin| name.starts_with(begin));
    let mut table = Table::default();
    // One after the other, so that what the machine does meanwhile meets all of them alike.
    for _ in 0..rounds {
        Disk::measure(&mut table);
        for (_, measure) in MEASUREMENTS.iter().filter(|(name, _)| is_chosen(name)) {
            measure(&mut table);
        }
    }
    let kind = if cfg!(debug_assertions) { "NOT OPTIMIZED" } else { "optimized" };
    gatepost_tests::note(&format!(
        "{}\n{kind}, medians of {rounds} rounds (lowest–highest)\n{table}",
        machine()
    ));
    ExitCode::SUCCESS
}

fn say_usage() {
    let names: Vec<&str> = MEASUREMENTS.iter().map(|(name, _)| *name).collect();
    gatepost_tests::note(&format!("{USAGE}\nnames: {}", names.join(" ")));
}

fn misused() -> ExitCode {
    say_usage();
    ExitCode::from(2)
}
