//! Errors of the disk at every kind of file, while messages come and go.

use serde_json::Value;

use super::Disk;
use super::traffic::Traffic;
use crate::dice::Dice;
use crate::gateway::Gateway;
use crate::wait::until;

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

/// Every kind of file that changes while a gateway runs.
pub const PLACES: [Place; 9] = [
    Place { files: "*/gatepost.db-wal", operation: Operation::Write, obstacle: STORE },
    Place { files: "*/gatepost.db-wal", operation: Operation::Sync, obstacle: STORE },
    Place { files: "*/gatepost.db", operation: Operation::Write, obstacle: STORE },
    Place { files: "*/gatepost.db", operation: Operation::Sync, obstacle: STORE },
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
    let mut ended = false;
    until(&format!("{place:?} shows"), || {
        if !gateway.runs() {
            ended = true;
            return Some(());
        }
        let answer = gateway.admin().send("GET", "/readyz", &[], b"").ok()?;
        let ready: Value = serde_json::from_slice(&answer.body).ok()?;
        let named = ready["blocking"].as_array()?.iter().any(|what| what == place.obstacle);
        (answer.status == 503 && named).then_some(())
    });
    order(disk, place, 0);
    if ended {
        gateway.ended();
        gateway.restart();
    }
    goes_on(gateway, traffic, place);
    ended
}

/// Fails once; whether that ended the gateway.
pub fn fail_once(gateway: &mut Gateway, disk: &Disk, traffic: &Traffic, place: Place) -> bool {
    order(disk, place, 1);
    let mut ended = false;
    until(&format!("{place:?} is met"), || {
        ended = !gateway.runs();
        (ended || disk.failures_left() == 0).then_some(())
    });
    if ended {
        gateway.ended();
        gateway.restart();
    }
    goes_on(gateway, traffic, place);
    ended
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

fn goes_on(gateway: &Gateway, traffic: &Traffic, place: Place) {
    until(&format!("it is ready again after {place:?}"), || {
        let answer = gateway.admin().send("GET", "/readyz", &[], b"").ok()?;
        (answer.status == 200).then_some(())
    });
    let before = traffic.promises().accepted.len();
    until(&format!("it accepts again after {place:?}"), || {
        (traffic.promises().accepted.len() > before).then_some(())
    });
}
