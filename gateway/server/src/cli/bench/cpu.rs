//! Processor time of the processes that take part, as the kernel counts it.

use std::fs;
use std::time::Duration;

/// Unit of the times in /proc/PID/stat, µs. USER_HZ is 100 on every Linux that this runs on.
const TICK_US: u64 = 10_000;

/// Processor time used so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cpu {
    /// All gateways together.
    pub(super) gateway: Duration,
    /// All adapters together.
    pub(super) adapter: Duration,
    /// This process: the senders.
    pub(super) client: Duration,
}

impl Cpu {
    pub(super) fn now(gateways: &[u32], adapters: &[u32]) -> Self {
        let all = |pids: &[u32]| pids.iter().map(|pid| of(*pid)).sum();
        Self { gateway: all(gateways), adapter: all(adapters), client: of(std::process::id()) }
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            gateway: self.gateway.saturating_sub(before.gateway),
            adapter: self.adapter.saturating_sub(before.adapter),
            client: self.client.saturating_sub(before.client),
        }
    }
}

/// User and system time of a process; zero of one that has gone.
fn of(pid: u32) -> Duration {
    let ticks = stat(pid).and_then(|stat| Some(stat.field(14)? + stat.field(15)?));
    Duration::from_micros(ticks.unwrap_or_default() * TICK_US)
}

/// The children of a process.
pub(super) fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| stat(*pid).and_then(|stat| stat.field(4)) == Some(parent.into())).collect()
}

/// To the nanosecond, for times too short for ticks: the threads that live now.
pub(super) fn precise(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// /proc/PID/stat behind the program's name, which may hold anything.
struct Stat(String);

impl Stat {
    /// By its number in proc(5), from 3 on.
    fn field(&self, number: usize) -> Option<u64> {
        self.0.split_whitespace().nth(number - 3)?.parse().ok()
    }
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')').map(|(_, rest)| Stat(rest.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_counted_and_children_are_found() {
        let before = (of(std::process::id()), precise(std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut sum = 0u64;
        while of(std::process::id()) - before.0 < Duration::from_micros(2 * TICK_US) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(precise(std::process::id()) > before.1);
        assert_eq!(of(u32::MAX), Duration::ZERO);
    }
}
