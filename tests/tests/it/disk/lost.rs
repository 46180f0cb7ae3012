//! What was not synced is forgotten, and nothing that was promised is among it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use gatepost_tests::disk::lost::{self, Lost, Run};
use gatepost_tests::disk::{Disk, Loss};
use gatepost_tests::lab::Report;
use gatepost_tests::{Builder, Dice, Gateway, note, program, skipped};
use serde_json::json;

use crate::order_event;

const ROUNDS: usize = 9;
/// Rounds in which the counter-proof must have been caught; about every third catches it, and the first that does ends it.
const ROUNDS_TO_BE_CAUGHT: usize = 60;
/// Crashes before all work is finished and looked at, in the long form.
const ROUNDS_PER_RUN: usize = 60;
const PAYLOAD_BYTES: usize = 300;
/// Of the steps of a first start, about one in so many is tried.
const STRIDE: usize = 16;
const LOSSES: [Loss; 3] = [Loss::All, Loss::Some, Loss::Torn];

fn disk_for(builder: &Builder) -> Option<Disk> {
    let disk = Disk::new(&builder.dir().join("data"));
    if disk.is_none() {
        skipped("needs a C compiler");
    }
    disk
}

fn crashes(gateway: Gateway, disk: Disk, seed: u64, rounds: usize) -> Lost {
    let mut run = Run::start(gateway, disk, PAYLOAD_BYTES);
    run.rounds(&mut Dice::new(seed), |so_far| so_far.rounds < rounds);
    run.finish()
}

#[test]
fn crashes_that_forget_lose_nothing_that_was_answered() {
    let builder = lost::gateway();
    let Some(disk) = disk_for(&builder) else { return };
    let gateway = builder.environment(disk.environment()).start();
    let seed = Dice::fresh_seed();
    let lost = crashes(gateway, disk, seed, ROUNDS);
    assert!(lost.broken.is_empty(), "seed {seed}: {:#?}", lost.broken);
    note(&format!(
        "seed {seed}: {} crashes forgot {} writes and {} names; {} messages accepted, {} deliveries settled",
        lost.rounds, lost.writes_forgotten, lost.names_forgotten, lost.accepted, lost.settled,
    ));
    assert!(lost.writes_forgotten > ROUNDS && lost.accepted > ROUNDS, "{lost:?}");
}

/// The counter-proof: a build of the laboratory that syncs less is caught by the very same crashes.
#[test]
fn with_less_syncing_the_same_crashes_lose_messages_or_refuse_the_start() {
    let builder = lost::gateway().faults("");
    let Some(disk) = disk_for(&builder) else { return };
    let mut environment = disk.environment();
    environment.push(("GATEPOST_FAULT_SYNCHRONOUS", "NORMAL".into()));
    let gateway = builder.environment(environment).start();
    let lost = crashes(gateway, disk, 1, ROUNDS_TO_BE_CAUGHT);
    let seen = |what: &str| lost.broken.iter().any(|broken| broken.contains(what));
    assert!(seen("is lost") || seen("it does not start"), "{lost:?}");
    note(&format!("synchronous=NORMAL is found out in round {}: {}", lost.rounds, lost.broken[0]));
}

/// A first start that dies at any of its steps leaves what the next start can begin from.
#[test]
fn a_first_start_can_be_killed_at_any_step() {
    let mut dice = Dice::new(Dice::fresh_seed());
    let mut step = 1 + dice.below(STRIDE);
    let mut tried = 0;
    loop {
        let builder = Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "");
        let builder = builder.route("shop", &["desk"]);
        let Some(mut disk) = disk_for(&builder) else { return };
        let mut gateway = builder.environment(disk.environment()).prepare();
        disk.kill_at(step as u64);
        gateway.spawn();
        if gateway.becomes_ready() {
            break;
        }
        let loss = LOSSES[tried % LOSSES.len()];
        disk.crash(loss, &mut dice);
        gateway.spawn();
        assert!(gateway.becomes_ready(), "killed at step {step}, {loss:?}: it does not start");
        let answer = gateway.app().event(&order_event("1", "k", &json!(1))).expect(202);
        let dir = gateway.path("data/keys");
        let keys = || ["store.key", "audit.key", "seal-1.key"].map(|key| fs::read(dir.join(key)).unwrap());
        let (id, made) = (answer["messages"][0]["id"].as_str().unwrap(), keys());
        gateway.audit_verifies();
        gateway.kill();
        disk.crash(Loss::All, &mut dice);
        assert_eq!(keys(), made, "killed at step {step}, {loss:?}");
        gateway.restart();
        gateway.admin().get(&format!("/v1/messages/{id}")).expect(200);
        gateway.audit_verifies();
        tried += 1;
        step += 1 + dice.below(2 * STRIDE - 1);
    }
    assert!(tried > 2, "a first start of {step} steps");
    note(&format!("a first start was killed at {tried} of {step} steps"));
}

/// `gatepost init` has written the whole configuration when it says so, and before that all of it or nothing.
#[test]
fn a_configuration_is_written_whole_or_not_at_all() {
    let mut dice = Dice::new(Dice::fresh_seed());
    for step in 1.. {
        let dir = tempfile::Builder::new().prefix("gp-").tempdir().unwrap();
        let target = dir.path().join("etc");
        let Some(mut disk) = Disk::new(&target) else { return skipped("needs a C compiler") };
        disk.kill_at(step);
        let mut init = Command::new(program("gatepost"));
        let output = init.arg("init").arg(&target).envs(disk.environment()).output().unwrap();
        let done = output.status.success();
        for loss in if done { [Loss::All; 3] } else { LOSSES } {
            disk.crash(loss, &mut dice);
            let file = target.join("gatepost.toml");
            assert!(file.exists() || !done, "it said that the file is written");
            if file.exists() {
                let check =
                    Command::new(program("gatepost")).arg("-c").arg(&file).arg("check").output().unwrap();
                assert!(check.status.success(), "step {step}: {}", String::from_utf8_lossy(&check.stderr));
            }
        }
        if done {
            assert!(step > 3, "{step}");
            return;
        }
    }
}

/// The long form: crash after crash, run after run.
pub(crate) fn lost_writes(budget: Duration, report: &mut Report) {
    let (mut accepted, mut settled, mut writes, mut names) = (0, 0, 0, 0);
    while report.has_time(budget) {
        let builder = lost::gateway();
        let Some(disk) = disk_for(&builder) else { return report.note("skipped: needs a C compiler") };
        let gateway = builder.environment(disk.environment()).start();
        let seed = Dice::fresh_seed();
        let mut run = Run::start(gateway, disk, PAYLOAD_BYTES);
        run.rounds(&mut Dice::new(seed), |so_far| so_far.rounds < ROUNDS_PER_RUN && report.has_time(budget));
        let lost = run.finish();
        for broken in &lost.broken {
            report.fail(format!("seed {seed}: {broken}"));
        }
        report.rounds += lost.rounds as u64;
        report.kills += lost.rounds as u64;
        accepted += lost.accepted;
        settled += lost.settled;
        writes += lost.writes_forgotten;
        names += lost.names_forgotten;
    }
    report.note(format!(
        "{accepted} messages accepted, {settled} deliveries settled; forgotten in crashes: {writes} writes, {names} names"
    ));
}
