//! Errors of the disk at every kind of file, while messages come and go.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;

use super::Disk;
use super::traffic::Traffic;
use crate::dice::Dice;
use crate::gateway::Gateway;
use crate::wait::{WAIT, until, until_within};

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Write,
    Sync,
}

/// One kind of file, one operation, and what readiness says meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub files: &'static str,
    pub operation: Operation,
    pub obstacle: &'static str,
}

const STORE: &str = "the store does not take writes";
const AUDIT: &str = "the audit log cannot be written";
const DATABASE: &str = "*/gatepost.db";
/// A WAL begins anew after tens of megabytes.
const WAL_FILLS: Duration = Duration::from_secs(180);

/// Every kind of file that changes while a gateway runs.
pub const PLACES: [Place; 9] = [
    Place { files: "*/gatepost.db-wal", operation: Operation::Write, obstacle: STORE },
    Place { files: "*/gatepost.db-wal", operation: Operation::Sync, obstacle: STORE },
    Place { files: DATABASE, operation: Operation::Write, obstacle: STORE },
    Place { files: DATABASE, operation: Operation::Sync, obstacle: STORE },
    Place { files: "*/audit/.checkpoint.tmp", operation: Operation::Write, obstacle: AUDIT },
    Place { files: "*/audit/.checkpoint.tmp", operation: Operation::Sync, obstacle: AUDIT },
    Place { files: "*/audit/tile/*", operation: Operation::Write, obstacle: AUDIT },
    // The checkpoint's directory, and the file system when tiles are filed.
    Place { files: "*/audit", operation: Operation::Sync, obstacle: AUDIT },
    Place { files: "*/audit/tile/entries/*", operation: Operation::Write, obstacle: AUDIT },
];

/// Fails until readiness says what is wrong, then a few times more, then no longer; and the gateway goes on by itself. A sync of the
/// database that fails may end it, and then it is started again: that much is its right, since nothing less repairs it.
/// Whether that was so.
pub fn fail_for_a_while(gateway: &mut Gateway, disk: &Disk, traffic: &Traffic, place: Place) -> bool {
    order(disk, place, u64::MAX);
    until(&format!("{place:?} shows"), || {
        if !gateway.runs() {
            return Some(());
        }
        let answer = gateway.admin().send("GET", "/readyz", &[], b"").ok()?;
        let ready: Value = serde_json::from_slice(&answer.body).ok()?;
        let named = ready["blocking"].as_array()?.iter().any(|what| what == place.obstacle);
        (answer.status == 503 && named).then_some(())
    });
    order(disk, place, 0);
    goes_on(gateway, traffic, place)
}

/// Fails once; whether that ended the gateway.
pub fn fail_once(gateway: &mut Gateway, disk: &Disk, traffic: &Traffic, place: Place) -> bool {
    order(disk, place, 1);
    until(&format!("{place:?} is met"), || (disk.failures_left() == 0).then_some(()));
    goes_on(gateway, traffic, place)
}

/// Kills it while syncs of its WAL fail, and starts it again while the machine runs on: it reads what the disk has never got.
pub fn die_with_failed_syncs(gateway: &mut Gateway, disk: &Disk, traffic: &Traffic, dice: &mut Dice) {
    let place = PLACES[1];
    order(disk, place, u64::MAX);
    let before = disk.failures_left();
    let awaited = 1 + dice.below(3) as u64;
    until("some syncs of the WAL fail", || (before - disk.failures_left() >= awaited).then_some(()));
    gateway.kill();
    order(disk, place, 0);
    gateway.restart();
    goes_on(gateway, traffic, place);
}

fn order(disk: &Disk, place: Place, count: u64) {
    match place.operation {
        Operation::Write => disk.fail_writes(place.files, count),
        Operation::Sync => disk.fail_syncs(place.files, count),
    }
}

/// Whether only a new start helped.
fn goes_on(gateway: &mut Gateway, traffic: &Traffic, place: Place) -> bool {
    let mut recovery = Recovery { gateway, place, ended: false };
    let mut said = String::new();
    recovery.until(WAIT, "it is ready again", |gateway| {
        let Ok(answer) = gateway.admin().send("GET", "/readyz", &[], b"") else { return false };
        // Shown when the test fails: why it was not ready.
        if answer.text() != said {
            said = answer.text();
            eprintln!("readiness after {place:?}: {said}");
        }
        answer.status == 200
    });
    let before = traffic.promises().accepted.len();
    recovery.until(WAIT, "it accepts again", |_| traffic.promises().accepted.len() > before);
    if place.files == DATABASE {
        // As long as the WAL has it too, nobody notices what the database lacks.
        let mut first = None;
        recovery.until(WAL_FILLS, "the WAL begins anew", |gateway| {
            wal_generation(gateway).is_some_and(|now| *first.get_or_insert(now) != now)
        });
    }
    recovery.ended
}

/// A gateway after a failure, which may end it at any moment of these.
struct Recovery<'g> {
    gateway: &'g mut Gateway,
    place: Place,
    ended: bool,
}

impl Recovery<'_> {
    fn until(&mut self, limit: Duration, what: &str, mut done: impl FnMut(&Gateway) -> bool) {
        until_within(limit, &format!("{what} after {:?}", self.place), || {
            self.start_again_once();
            done(self.gateway).then_some(())
        });
    }

    fn start_again_once(&mut self) {
        if self.ended || self.gateway.runs() {
            return;
        }
        self.ended = true;
        let status = self.gateway.ended();
        let Place { files, operation, .. } = self.place;
        assert_eq!((files, operation), (DATABASE, Operation::Sync), "{status}");
        assert!(status.code().is_some_and(|code| code != 0), "{status}");
        self.gateway.restart();
    }
}

/// The WAL's checkpoint sequence number (bytes 12 to 15 of its header, SQLite file format section 4.1): another each time that the
/// WAL begins anew. `None` where the WAL is empty or absent.
fn wal_generation(gateway: &Gateway) -> Option<[u8; 4]> {
    let mut generation = [0; 4];
    let wal = File::open(gateway.path("data/gatepost.db-wal")).ok()?;
    wal.read_exact_at(&mut generation, 12).ok().map(|()| generation)
}
