//! `gatepost doctor --repair`: what is sound is saved, the gateway starts on it, and what could not be saved is listed.

use std::fs;
use std::process::{Command, Stdio};

use gatepost_tests::{Dice, Gateway, program, settle_item, until};
use serde_json::{Value, json};

use super::{Accepted, DATABASE, change, copy_dir, data, killed, put_back, served};

/// The new directory is there, and not everything could be saved.
const EXIT_INCOMPLETE: i32 = 9;

#[test]
fn doctor_saves_what_is_sound_and_the_gateway_delivers_the_rest() {
    let (mut gateway, accepted) = killed();
    // Started and stopped, all of it is in the database.
    gateway.restart();
    assert!(gateway.stop().success());
    let kept = gateway.path("kept");
    copy_dir(&data(&gateway), &kept);
    let pages = fs::metadata(kept.join(DATABASE)).unwrap().len() / 4096;
    let mut dice = Dice::new(9);
    let mut incomplete = 0;
    for round in 0..4 {
        put_back(&gateway, &kept);
        let damaged: Vec<u64> = (0..=round * 2).map(|_| 1 + dice.below(pages as usize - 1) as u64).collect();
        for page in &damaged {
            change(&data(&gateway).join(DATABASE), page * 4096, 4096, |byte| byte ^ 0x5a);
        }
        incomplete += repair_round(&mut gateway, &accepted, &format!("pages {damaged:?}"));
    }
    gatepost_tests::note(&format!("{incomplete} of 4 directories could not be saved whole"));
}

/// Saves the directory, starts on what was saved, and delivers. How many of the two were incomplete.
pub(super) fn repair_round(gateway: &mut Gateway, accepted: &Accepted, context: &str) -> usize {
    let new = gateway.path("new");
    let output = gateway.cli(&["--json", "doctor", "--repair", &new.display().to_string()]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let exit = output.status.code();
    assert!(matches!(exit, Some(0 | EXIT_INCOMPLETE)), "{context}: {exit:?} {stderr}");
    let said: Value = serde_json::from_slice(&output.stdout).expect("the list is JSON");
    let damage = said["damage"].as_array().expect("a list");
    let gone: Vec<&Value> =
        damage.iter().filter(|damage| damage["fate"] == "dead" || damage["fate"] == "lost").collect();
    assert_eq!(exit == Some(EXIT_INCOMPLETE), !gone.is_empty(), "{context}: {said}");
    assert!(
        new.join(said["note"].as_str().expect("a name")).exists(),
        "{context}: the list stands beside the log"
    );
    fs::remove_dir_all(data(gateway)).unwrap();
    fs::rename(&new, data(gateway)).unwrap();
    gateway.restart();
    gateway.audit_verifies();
    let served = served(gateway, accepted, context);
    // Without the log's word on what was accepted, a row that is gone has no id.
    let known = said["log_continued"] == true;
    for id in accepted.keys().filter(|id| known && !served.contains(*id)) {
        assert!(
            gone.iter().any(|damage| damage["id"] == **id),
            "{context}: message {id} is neither there nor listed: {said:#}"
        );
    }
    until("everything is delivered", || {
        let leased = gateway.lease("desk", 100);
        for leased in &leased {
            let results = json!({ "results": [settle_item(leased, "delivered")] });
            gateway.app().post("/v1/settle", &results).expect(200);
        }
        (gateway.unsettled("desk") == 0).then_some(())
    });
    gateway.cli_ok(&["audit", "reconcile"]);
    assert!(gateway.stop().success());
    usize::from(!gone.is_empty())
}

#[test]
fn a_salvage_that_is_killed_leaves_nothing_that_looks_finished() {
    let (gateway, _) = killed();
    let mut dice = Dice::new(2);
    let mut finished = 0;
    for _ in 0..12 {
        let new = gateway.path("new");
        let mut child = Command::new(program("gatepost"))
            .args(["doctor", "--repair"])
            .arg(&new)
            .arg("--config")
            .arg(gateway.config())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Somewhere between its first and its last step, wherever that is on this machine.
        let building = gateway.path(".new.unfinished");
        let deep = dice.below(4);
        until("it has begun to build, or is done", || {
            let steps = ["", "keys/store.key", DATABASE, "audit/vkey"];
            let there = building.join(steps[deep]).exists() || new.exists();
            (there || child.try_wait().unwrap().is_some()).then_some(())
        });
        let _ = child.kill();
        child.wait().unwrap();
        if new.exists() {
            // It has its name: then it is whole.
            finished += 1;
            assert!(new.join(DATABASE).exists() && new.join("audit/checkpoint").exists());
            fs::remove_dir_all(&new).unwrap();
        }
    }
    let new = gateway.path("new").display().to_string();
    gateway.cli_ok(&["doctor", "--repair", &new]);
    assert!(!gateway.path(".new.unfinished").exists(), "the rest of a killed one is gone");
    gatepost_tests::note(&format!("{finished} of 12 were done before they were killed"));
}
