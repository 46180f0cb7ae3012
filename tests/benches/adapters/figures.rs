//! Figures over the rounds, what the disk can do by itself, and which machine it is.

use std::fmt;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Appends of one measurement of the disk.
const APPENDS: usize = 500;
const APPEND_BYTES: usize = 1024;

/// A row for each figure, in the order in which they were first measured.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    rounds: Vec<f64>,
}

impl Table {
    pub(crate) fn add(&mut self, name: &str, unit: &'static str, value: f64) {
        match self.0.iter_mut().find(|row| row.name == name) {
            Some(row) => row.rounds.push(value),
            None => self.0.push(Row { name: name.to_owned(), unit, rounds: vec![value] }),
        }
    }

    pub(crate) fn add_rate(&mut self, name: &str, messages: usize, took: Duration) {
        self.add(name, "messages/s", messages as f64 / took.as_secs_f64());
    }

    /// Median and 99th percentile.
    pub(crate) fn add_times(&mut self, name: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let at = |share: f64| {
            let rank = (times.len() as f64 * share).ceil() as usize;
            times.get(rank.saturating_sub(1)).map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        self.add(&format!("{name}, p50"), "µs", at(0.5));
        self.add(&format!("{name}, p99"), "µs", at(0.99));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, unit, rounds } in &self.0 {
            let mut sorted = rounds.clone();
            sorted.sort_unstable_by(f64::total_cmp);
            let (lowest, highest) = (sorted[0], sorted[sorted.len() - 1]);
            let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
            writeln!(f, "{name:<58} {median:>8.0} {unit} ({lowest:.0}–{highest:.0})")?;
        }
        Ok(())
    }
}

/// Appends of 1 KiB to a growing file, each followed by fdatasync: the yardstick for all other figures.
#[derive(Debug)]
pub(crate) struct Disk;

impl Disk {
    pub(crate) fn measure(table: &mut Table) {
        // Where the gateways' data is, too.
        let mut file = tempfile::tempfile().expect("there is a place for temporary files");
        let times = (0..APPENDS).map(|_| {
            let begun = Instant::now();
            file.write_all(&[0x61; APPEND_BYTES]).expect("there is room");
            file.sync_data().expect("the disk works");
            begun.elapsed()
        });
        let times = times.collect();
        table.add_times("fdatasync by itself", times);
    }
}

pub(crate) fn machine() -> String {
    let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{} · {cores} × {} · Linux {}",
        read("/proc/sys/kernel/hostname").trim(),
        cpu.map_or("unknown", |(_, name)| name.trim()),
        read("/proc/sys/kernel/osrelease").trim()
    )
}
