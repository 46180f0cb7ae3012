//! The runs. `GATEPOST_SIM_FROM=seed` begins elsewhere, `GATEPOST_SIM_SEEDS=n` runs so many, `GATEPOST_SIM_SECONDS=n` runs for so long.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::machine::Machine;
use super::ops::steps;
use super::run::{Trace, run};
use super::shrink::{as_test, shrink};
use crate::sqlite::{BackfillError, Sqlite};
use crate::writer::{Condition, Writer};

/// Seeds of the short form.
const SEEDS: u64 = 2_000;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs seeds on every processor and panics with the first that fails, made short.
fn run_seeds(from: u64, count: u64, within: Option<Duration>) -> (u64, Trace) {
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let failed: Mutex<Option<u64>> = Mutex::new(None);
    let sum: Mutex<(u64, Trace)> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = within.map_or(seed >= from + count, |within| started.elapsed() >= within);
                    if over {
                        return;
                    }
                    match run(seed, &steps(seed)) {
                        Ok(trace) => add(&mut sum.lock().unwrap(), &trace),
                        Err(_) => {
                            let mut failed = failed.lock().unwrap();
                            *failed = Some(failed.map_or(seed, |other: u64| other.min(seed)));
                        }
                    }
                }
            });
        }
    });
    if let Some(seed) = failed.into_inner().unwrap() {
        let steps = steps(seed);
        let failure = run(seed, &steps).expect_err("a seed that failed fails again");
        eprintln!("seed {seed}: {} does not hold; looking for a shorter run", failure.broken.law);
        let (steps, failure) = shrink(seed, steps, failure);
        panic!(
            "seed {seed}: {} does not hold in step {}\n{}\n{}",
            failure.broken.law,
            failure.step,
            failure.broken.seen,
            as_test(seed, &steps, &failure)
        );
    }
    sum.into_inner().unwrap()
}

fn add(sum: &mut (u64, Trace), trace: &Trace) {
    sum.0 += 1;
    sum.1.commits += trace.commits;
    sum.1.crashes += trace.crashes;
    sum.1.struck += trace.struck;
    sum.1.deliveries += trace.deliveries;
}

#[test]
fn the_laws_hold_for_every_seed() {
    let from = setting("GATEPOST_SIM_FROM").unwrap_or(1);
    let within = setting("GATEPOST_SIM_SECONDS").map(Duration::from_secs);
    let count = setting("GATEPOST_SIM_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let (seeds, sum) = run_seeds(from, count, within);
    eprintln!(
        "simulation: {seeds} seeds in {:.1} s: {} steps, {} faults struck, {} crashes, {} deliveries; lost 0, reordered 0",
        started.elapsed().as_secs_f64(),
        sum.commits,
        sum.struck,
        sum.crashes,
        sum.deliveries
    );
    assert!(sum.crashes > 0 && sum.struck > 0 && sum.deliveries > seeds, "the runs did too little: {sum:?}");
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 1..=40 {
        let steps = steps(seed);
        assert_eq!(run(seed, &steps), run(seed, &steps), "seed {seed}");
    }
}

/// SQLite counts what was brought in, and does not bring it in again; what it has not counted, it does.
#[test]
fn a_sync_beside_the_writer_that_failed_needs_a_new_start_and_a_checkpoint_that_failed_does_not() {
    let sync = || BackfillError::Sync(std::io::ErrorKind::StorageFull.into());
    let checkpoint = || {
        let io = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
        BackfillError::Checkpoint(rusqlite::Error::SqliteFailure(io, None))
    };
    let backfilled = |writer: &mut Writer<Sqlite>, done| {
        if let Err(error) = writer.database.backfilled(done) {
            writer.failed(&error);
        }
    };
    let mut machine = Machine::new(1);
    let mut writer = machine.start().unwrap();
    backfilled(&mut writer, Err(checkpoint()));
    assert!(matches!(writer.condition, Condition::Broken(_)), "{:?}", writer.condition);
    writer.reopen();
    assert_eq!(writer.condition, Condition::Working);
    backfilled(&mut writer, Ok(()));
    assert_eq!(writer.condition, Condition::Working);
    backfilled(&mut writer, Err(sync()));
    assert_eq!(writer.condition, Condition::Lost);
}
