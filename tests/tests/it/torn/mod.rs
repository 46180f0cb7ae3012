//! Torn and flipped, with the real programs: a sample of what the store's own tests try at every page and at every cut.

mod named;
mod saved;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gatepost_tests::lab::Report;
use gatepost_tests::{Dice, Gateway, settle_item};
use serde_json::{Value, json};

use crate::order_event;

/// Rounds with the programs in the long form, however long the store's own took.
const ROUNDS_MIN: usize = 4;
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
    while rounds < ROUNDS_MIN || report.has_time(budget) {
        put_back(&gateway, &kept);
        named::torn_round(&mut gateway, &accepted, rounds, &mut dice);
        put_back(&gateway, &kept);
        let pages = fs::metadata(kept.join(DATABASE)).unwrap().len() / 4096;
        let page = dice.below(usize::try_from(pages).unwrap()) as u64;
        change(&data(&gateway).join(DATABASE), page * 4096, 512, |byte| byte ^ 0x5a);
        incomplete += saved::repair_round(
            &mut gateway,
            &accepted,
            &format!("seed {seed}, round {rounds}, page {page}"),
        );
        rounds += 1;
    }
    report.note(format!("{rounds} rounds with the programs, {incomplete} of them could not be saved whole"));
}
