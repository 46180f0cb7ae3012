//! Torn and flipped, with the real programs: a sample of what the store's own tests try at every page and at every cut.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use gatepost_tests::lab::Report;
use gatepost_tests::{Dice, Gateway, program, settle_item, until};
use serde_json::{Value, json};

use crate::order_event;

/// The new directory is there, and not everything could be saved.
const EXIT_INCOMPLETE: i32 = 9;
const DATABASE: &str = "gatepost.db";
const WAL: &str = "gatepost.db-wal";

/// What was accepted, by message id: the number that each carries.
type Accepted = BTreeMap<String, usize>;

fn desk() -> Gateway {
    Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "").route("shop", &["desk"]).start()
}

fn send(gateway: &Gateway, numbers: std::ops::Range<usize>, accepted: &mut Accepted) {
    for n in numbers {
        let event = order_event(
            &n.to_string(),
            &format!("k{}", n % 5),
            &json!({ "n": n, "pad": "x".repeat(n % 7 * 900) }),
        );
        let answer = gateway.app().event(&event).expect(202);
        accepted.insert(answer["messages"][0]["id"].as_str().expect("an id").to_owned(), n);
    }
}

/// A killed gateway with messages in every part of its way, and what it had promised.
fn killed() -> (Gateway, Accepted) {
    let mut gateway = desk();
    let mut accepted = Accepted::new();
    send(&gateway, 0..60, &mut accepted);
    for leased in gateway.lease("desk", 20) {
        let results = json!({ "results": [settle_item(&leased, "delivered")] });
        gateway.app().post("/v1/settle", &results).expect(200);
    }
    gateway.kill();
    gateway.restart();
    send(&gateway, 60..90, &mut accepted);
    gateway.kill();
    (gateway, accepted)
}

fn data(gateway: &Gateway) -> PathBuf {
    gateway.path("data")
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let copy = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &copy);
        } else if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy).unwrap();
        }
    }
}

fn put_back(gateway: &Gateway, kept: &Path) {
    fs::remove_dir_all(data(gateway)).unwrap();
    copy_dir(kept, &data(gateway));
}

fn change(path: &Path, at: u64, length: usize, make: impl Fn(u8) -> u8) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = make(*byte));
    file.write_all_at(&bytes, at).unwrap();
}

/// What doctor says of the data: the findings that are not well.
fn doctor_names(gateway: &Gateway) -> Vec<Value> {
    let output = gateway.cli(&["--json", "doctor"]);
    let said: Value = serde_json::from_slice(&output.stdout).expect("doctor answers in JSON");
    let findings = said["findings"].as_array().expect("a list").clone();
    findings.into_iter().filter(|finding| finding["what"] == "data" && finding["verdict"] != "ok").collect()
}

/// The messages that a gateway serves; each must be what was accepted.
fn served(gateway: &Gateway, accepted: &Accepted, context: &str) -> BTreeSet<String> {
    let mut served = BTreeSet::new();
    for (id, n) in accepted {
        let answer = gateway.admin().get(&format!("/v1/messages/{id}/data"));
        if answer.status == 200 {
            let data: Value = serde_json::from_str(&answer.text()).unwrap_or_default();
            assert_eq!(data["n"], *n, "{context}: message {id} is served with other content");
            served.insert(id.clone());
        }
    }
    served
}

/// Starts it, if it starts.
fn starts(gateway: &mut Gateway) -> bool {
    gateway.spawn();
    gateway.becomes_ready()
}

#[test]
fn a_torn_or_flipped_directory_is_named_or_serves_all_that_it_served() {
    let (mut gateway, accepted) = killed();
    let kept = gateway.path("kept");
    copy_dir(&data(&gateway), &kept);
    let mut dice = Dice::new(4);
    for round in 0..8 {
        put_back(&gateway, &kept);
        torn_round(&mut gateway, &accepted, round, &mut dice);
    }
}

/// Damages one of the files a little; it is named before the start, at the start or by the gateway's health, or nothing is missing
/// but what was not signed.
fn torn_round(gateway: &mut Gateway, accepted: &Accepted, round: usize, dice: &mut Dice) {
    let dir = data(gateway);
    let size = |name: &str| fs::metadata(dir.join(name)).unwrap().len();
    let (context, cut) = match round % 4 {
        0 => {
            let sector = dice.below(usize::try_from(size(WAL) / 512).unwrap()) as u64;
            fs::File::options().write(true).open(dir.join(WAL)).unwrap().set_len(sector * 512).unwrap();
            (format!("the log is cut after {sector} sectors"), true)
        }
        kind => {
            let file = [WAL, DATABASE, "audit/checkpoint"][kind - 1];
            let at = dice.below(usize::try_from(size(file)).unwrap()) as u64;
            let bit = dice.below(8);
            change(&dir.join(file), at, 1, |byte| byte ^ 1 << bit);
            (format!("bit {bit} of byte {at} of {file}"), false)
        }
    };
    let named = !doctor_names(gateway).is_empty();
    if starts(gateway) {
        let served = served(gateway, accepted, &context);
        let names =
            !gateway.list("/v1/queues", "queues").is_empty() && gateway.admin().get("/readyz").status != 200;
        assert!(
            named || names || cut || served.len() == accepted.len(),
            "{context}: messages are missing, unnamed"
        );
        if !named {
            // What a cut takes away unnamed is what no checkpoint signed: the last second at most.
            assert!(accepted.len() - served.len() <= 30, "{context}: {} are left", served.len());
        }
        gateway.kill();
    } else {
        assert!(named, "{context}: the start is refused, and doctor sees nothing");
    }
}

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
fn repair_round(gateway: &mut Gateway, accepted: &Accepted, context: &str) -> usize {
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

#[test]
fn a_flipped_bit_of_the_configuration_is_named_or_leaves_the_data_as_it_is() {
    let (gateway, _) = killed();
    let good = fs::read(gateway.config()).unwrap();
    let mut dice = Dice::new(7);
    let database = fs::read(data(&gateway).join(DATABASE)).unwrap();
    let mut named = 0;
    for _ in 0..40 {
        let mut bad = good.clone();
        let (byte, bit) = (dice.below(good.len()), dice.below(8));
        bad[byte] ^= 1 << bit;
        fs::write(gateway.config(), &bad).unwrap();
        let checked = gateway.cli(&["check"]);
        named += usize::from(!checked.status.success());
        if !checked.status.success() {
            let said = [checked.stdout, checked.stderr].concat();
            assert!(!said.is_empty(), "bit {bit} of byte {byte}: refused without a word");
        }
        assert!(database == fs::read(data(&gateway).join(DATABASE)).unwrap(), "checking changes no data");
    }
    assert!(named > 10, "{named} of 40 were named");
}

/// The long form: the store's own, at every page and every cut, then rounds with the programs.
pub(crate) fn torn(budget: Duration, report: &mut Report) {
    let seed = Dice::fresh_seed();
    let output = Command::new(env!("CARGO"))
        .args(["test", "--locked", "--package", "gatepost-store", "--test", "conformance", "--"])
        .args(["--exact", "torn::everything_torn_and_flipped", "--ignored", "--nocapture"])
        .env("GATEPOST_TORN_SECONDS", (budget / 2).as_secs().to_string())
        .env("GATEPOST_SEED", seed.to_string())
        .output()
        .expect("cargo can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    match said.lines().find(|line| line.contains("torn: ")).filter(|_| output.status.success()) {
        Some(line) => report.note(format!("seed {seed}: {line}")),
        None => report.fail(format!("seed {seed}: {said}{}", String::from_utf8_lossy(&output.stdout))),
    }
    let mut dice = Dice::new(seed);
    let (mut gateway, accepted) = killed();
    let kept = gateway.path("kept");
    copy_dir(&data(&gateway), &kept);
    let (mut rounds, mut incomplete) = (0, 0);
    while report.has_time(budget) {
        put_back(&gateway, &kept);
        torn_round(&mut gateway, &accepted, rounds, &mut dice);
        put_back(&gateway, &kept);
        let pages = fs::metadata(kept.join(DATABASE)).unwrap().len() / 4096;
        let page = dice.below(usize::try_from(pages).unwrap()) as u64;
        change(&data(&gateway).join(DATABASE), page * 4096, 512, |byte| byte ^ 0x5a);
        incomplete +=
            repair_round(&mut gateway, &accepted, &format!("seed {seed}, round {rounds}, page {page}"));
        rounds += 1;
    }
    report.note(format!("{rounds} rounds with the programs, {incomplete} of them could not be saved whole"));
}
