//! Full disks, and disks that fail: nothing is acknowledged that is not stored, and work goes on when the disk does.

use std::time::Duration;

use gatepost_tests::disk::failing::{self, PLACES};
use gatepost_tests::disk::lost::{self, Run};
use gatepost_tests::disk::{Disk, Loss};
use gatepost_tests::lab::Report;
use gatepost_tests::{Dice, note, settle_item, skipped, until};
use serde_json::{Value, json};

use crate::order_event;

/// Large enough that the WAL is soon brought into the database.
const PAYLOAD_BYTES: usize = 24 * 1024;
/// Failures before all work is finished and looked at, in the long form.
const FAILURES_PER_RUN: usize = 20;

fn run() -> Option<Run> {
    let builder = lost::gateway();
    let Some(disk) = Disk::new(&builder.dir().join("data")) else {
        skipped("needs a C compiler");
        return None;
    };
    let gateway = builder.environment(disk.environment()).start();
    Some(Run::start(gateway, disk, PAYLOAD_BYTES))
}

/// Each kind of file fails for a while and then once; then the machine crashes and forgets what the failed syncs have lost.
#[test]
fn errors_at_every_kind_of_file_are_named_and_outlived() {
    let Some(mut run) = run() else { return };
    let mut dice = Dice::new(Dice::fresh_seed());
    let mut ended = 0;
    for place in PLACES {
        ended += usize::from(failing::fail_for_a_while(&mut run.gateway, &run.disk, &run.traffic, place));
        ended += usize::from(failing::fail_once(&mut run.gateway, &run.disk, &run.traffic, place));
        run.crash(Loss::All, &mut dice);
    }
    let refused = run.traffic.promises().refused.clone();
    let lost = run.finish();
    assert!(lost.broken.is_empty(), "{:#?}", lost.broken);
    note(&format!(
        "{} places failed, {ended} times only a new start helped; {} messages accepted, refused: {refused:?}",
        PLACES.len(),
        lost.accepted,
    ));
    assert!(
        refused.keys().any(|(status, code)| *status == 503 && code == "store_unavailable"),
        "{refused:?}"
    );
}

/// After a failed sync the system shows what the disk has never got. Who starts then must not build on it.
#[test]
fn a_start_after_failed_syncs_does_not_build_on_what_the_disk_never_got() {
    let Some(mut run) = run() else { return };
    let mut dice = Dice::new(Dice::fresh_seed());
    for loss in [Loss::All, Loss::Some, Loss::Torn] {
        failing::die_with_failed_syncs(&mut run.gateway, &run.disk, &run.traffic, &mut dice);
        run.crash(loss, &mut dice);
    }
    let lost = run.finish();
    assert!(lost.broken.is_empty(), "{:#?}", lost.broken);
}

#[test]
fn a_full_disk_settles_from_its_reserve_and_accepts_again_when_there_is_space() {
    let builder = lost::gateway();
    let Some(mut disk) = Disk::new(&builder.dir().join("data")) else {
        return skipped("needs a C compiler");
    };
    let mut gateway = builder.environment(disk.environment()).start();
    let payload = "x".repeat(50_000);
    let mut accepted = Vec::new();
    let mut send = |n: usize| {
        let answer = gateway.app().event(&order_event(&n.to_string(), "k", &json!(payload)));
        if answer.status == 202 {
            accepted.push(answer.json()["messages"][0]["id"].as_str().unwrap().to_owned());
        }
        answer
    };
    send(0).expect(202);
    disk.free_bytes(1_000_000);
    let refused = (1..200).map(&mut send).find(|answer| answer.status != 202);
    assert_eq!(refused.expect("a megabyte is full at some time").problem(507), "storage_full");
    let readyz = || gateway.admin().get("/readyz");
    until("readiness says what is wrong", || {
        let blocking = readyz().json()["blocking"].clone();
        (blocking == json!(["the store does not take writes"])).then_some(())
    });
    // All of it is settled, from the reserve.
    let mut settled = 0;
    until("everything in the inbox is settled", || {
        let leased = gateway.lease("desk", 4);
        let results: Vec<Value> = leased.iter().map(|delivery| settle_item(delivery, "delivered")).collect();
        settled += results.len();
        let answer = gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
        assert!(answer["results"].as_array().unwrap().iter().all(|result| result["status"] == "ok"));
        (gateway.unsettled("desk") == 0).then_some(())
    });
    assert_eq!(send(1000).problem(507), "storage_full");
    disk.unlimited();
    let mut n = 1000;
    until("it accepts again", || {
        n += 1;
        (send(n).status == 202).then_some(())
    });
    until("it is ready again", || (readyz().status == 200).then_some(()));
    assert_eq!(settled + 1, accepted.len());
    gateway.audit_verifies();
    gateway.kill();
    disk.crash(Loss::All, &mut Dice::new(1));
    gateway.restart();
    for message in &accepted {
        gateway.admin().get(&format!("/v1/messages/{message}")).expect(200);
    }
    gateway.audit_verifies();
    let log = gateway.audit_log();
    let kept = log.iter().filter(|leaf| leaf["event"] == "accepted").count();
    assert_eq!(kept, accepted.len(), "what was refused is not there");
}

/// The long form: places and kinds of failure at random, each followed by a crash.
pub(crate) fn failures(budget: Duration, report: &mut Report) {
    let mut accepted = 0;
    while report.has_time(budget) {
        let Some(mut run) = run() else { return report.note("skipped: needs a C compiler") };
        let seed = Dice::fresh_seed();
        let mut dice = Dice::new(seed);
        for _ in 0..FAILURES_PER_RUN {
            if !report.has_time(budget) {
                break;
            }
            let place = PLACES[dice.below(PLACES.len())];
            match dice.below(3) {
                0 => _ = failing::fail_for_a_while(&mut run.gateway, &run.disk, &run.traffic, place),
                1 => _ = failing::fail_once(&mut run.gateway, &run.disk, &run.traffic, place),
                _ => failing::die_with_failed_syncs(&mut run.gateway, &run.disk, &run.traffic, &mut dice),
            }
            let loss = [Loss::All, Loss::Some, Loss::Torn][dice.below(3)];
            run.crash(loss, &mut dice);
            report.rounds += 1;
            report.kills += 1;
        }
        let lost = run.finish();
        for broken in &lost.broken {
            report.fail(format!("seed {seed}: {broken}"));
        }
        accepted += lost.accepted;
    }
    report.note(format!("{accepted} messages accepted"));
}
