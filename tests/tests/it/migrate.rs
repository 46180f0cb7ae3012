//! A gateway on SQLite is killed at work and moved to PostgreSQL by a program that is killed too: nothing is lost, doubled or out of
//! order, and what was signed before still proves what it proved.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use gatepost_tests::lab::Report;
use gatepost_tests::{Gateway, faulty, note, program, settle_item, until, until_within};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::order_event;

/// Messages that nobody reads, so that there is something to move: in the short form, and in the long one.
const BULK: usize = 10_000;
const BULK_LONG: usize = 100_000;
const EVENTS_PER_BATCH: usize = 1000;
/// Messages for the adapter, and for the inbox that is read.
const LANES: usize = 50;
const PER_LANE: usize = 30;
/// Of these so many are delivered before the last ones are handed in, in the middle of which the gateway is killed.
const DONE: usize = LANES * PER_LANE / 3;
const DRAINED: Duration = Duration::from_secs(120);
/// Deliveries whose receipts are kept.
const RECEIPTS: usize = 20;
/// After how long a migration is killed that pauses behind each batch.
const KILLED_AFTER: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(600)];

fn gateway() -> Gateway {
    let gateway = Gateway::builder()
        .sqlite()
        .app("shop", &["*"], &["desk", "shelf"])
        .echo("lab", "order = \"key\"", "batch = 20")
        .inbox("desk", "order = \"key\"")
        .inbox("shelf", "order = \"key\"")
        .route_when("shop", "subject == \"bulk\"", &["shelf"])
        .route_when("shop", "subject == \"work\"", &["lab", "desk"]);
    gateway.start()
}

fn event(id: String, lane: usize, n: usize, subject: &str) -> Value {
    let mut event = order_event(&id, &format!("lane-{lane}"), &json!({ "n": n }));
    event["subject"] = subject.into();
    event
}

fn work() -> Vec<Value> {
    let numbers = (0..PER_LANE).flat_map(|n| (0..LANES).map(move |lane| (lane, n)));
    numbers.map(|(lane, n)| event(format!("{lane}-{n}"), lane, n, "work")).collect()
}

/// Hands events in; the answer to each.
fn accept(gateway: &Gateway, events: &[Value]) -> Vec<Value> {
    let batches = events.chunks(EVENTS_PER_BATCH);
    batches
        .flat_map(|batch| {
            let answer = gateway.app().try_batch(batch).unwrap().expect(202);
            answer["messages"].as_array().unwrap().clone()
        })
        .collect()
}

/// Reads so many from an inbox, or somewhat more; what each lane gave, in its order.
fn read(gateway: &Gateway, least: usize) -> HashMap<String, Vec<u64>> {
    let mut lanes: HashMap<String, Vec<u64>> = HashMap::new();
    let mut done = 0;
    while done < least {
        let leased = until("there is more in the inbox", || {
            Some(gateway.lease("desk", 100)).filter(|leased| !leased.is_empty())
        });
        for one in &leased {
            let lane = one["event"]["partitionkey"].as_str().unwrap().to_owned();
            lanes.entry(lane).or_default().push(one["event"]["data"]["n"].as_u64().unwrap());
        }
        done += leased.len();
        let results: Vec<Value> = leased.iter().map(|one| settle_item(one, "delivered")).collect();
        gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
    }
    lanes
}

/// What the adapter's partner took first of each delivery, by lane.
fn effects(gateway: &Gateway) -> HashMap<String, Vec<u64>> {
    let mut seen = std::collections::HashSet::new();
    let mut lanes: HashMap<String, Vec<u64>> = HashMap::new();
    for effect in gateway.effects("lab") {
        if seen.insert(effect["delivery"].as_str().unwrap().to_owned()) {
            let lane = effect["key"].as_str().unwrap().to_owned();
            lanes.entry(lane).or_default().push(effect["data"]["n"].as_u64().unwrap());
        }
    }
    lanes
}

/// From now on the configuration says PostgreSQL.
fn configure_postgres(gateway: &Gateway) {
    let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
    gatepost_postgres::write_address(&gateway.path("postgres-url"), &url).unwrap();
    let mut config = std::fs::File::options().append(true).open(gateway.config()).unwrap();
    let file = gateway.path("postgres-url").display().to_string();
    writeln!(config, "\n[store]\npostgres = {{ url_file = {file:?} }}").unwrap();
}

fn migrate(gateway: &Gateway, faults: &str) -> Command {
    let mut command = Command::new(if faults.is_empty() { program("gatepost") } else { faulty("gatepost") });
    command.arg("--config").arg(gateway.config()).args(["--json", "migrate", "--to", "postgres"]);
    command.env("GATEPOST_FAULTS", faults).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn assert_killed(output: &Output, when: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(Signal::SIGKILL as i32), "{when}: {} {said}", output.status);
}

/// Kills migrations at named points and at any time, until one is done; how often that was.
fn migrate_under_fire(gateway: &Gateway) -> usize {
    let mut kills = 0;
    for fault in ["copy.before_commit=kill@3", "copy.after_commit=kill@5", "copy.before_commit=kill@8"] {
        assert_killed(&migrate(gateway, fault).output().unwrap(), fault);
        kills += 1;
    }
    let refused = String::from_utf8(gateway.cli(&["serve"]).stderr).unwrap();
    assert!(refused.contains("gatepost migrate --to postgres"), "{refused}");
    for after in KILLED_AFTER {
        let mut running = migrate(gateway, "copy.after_commit=pause:500").spawn().unwrap();
        std::thread::sleep(after);
        running.kill().unwrap();
        let ended = running.wait_with_output().unwrap();
        assert_killed(&ended, "in the middle");
        kills += 1;
    }
    for fault in ["copy.finished=kill", "copy.renamed=kill"] {
        assert_killed(&migrate(gateway, fault).output().unwrap(), fault);
        kills += 1;
    }
    kills
}

/// Keeps what an auditor would: receipts, the key and the newest checkpoint.
fn keep_proofs(gateway: &Gateway, messages: &[Value]) -> Vec<PathBuf> {
    let step = messages.len() / RECEIPTS;
    for name in ["vkey", "checkpoint"] {
        std::fs::copy(gateway.path("data/audit").join(name), gateway.path(&format!("kept.{name}"))).unwrap();
    }
    let receipts = messages.iter().step_by(step).enumerate().map(|(number, message)| {
        let id = message["id"].as_str().unwrap();
        let receipt = until("the receipt is there", || {
            let answer = gateway.cli(&["audit", "receipt", id]);
            answer.status.success().then_some(answer.stdout)
        });
        let file = gateway.path(&format!("kept.receipt-{number}"));
        std::fs::write(&file, receipt).unwrap();
        file
    });
    receipts.collect()
}

fn assert_proofs_hold(gateway: &Gateway, receipts: &[PathBuf]) {
    let key = gateway.path("kept.vkey");
    for receipt in receipts {
        let verify = Command::new(program("gatepost-verify"))
            .arg("proof")
            .arg(receipt)
            .arg("--vkey")
            .arg(&key)
            .output();
        let verify = verify.unwrap();
        assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
    }
    let checkpoint = gateway.path("kept.checkpoint").display().to_string();
    gateway.cli_ok(&["audit", "verify", "--since", &checkpoint]);
    // The same by a program that knows files alone.
    let exported = gateway.path("exported");
    gateway.cli_ok(&["audit", "export", &exported.display().to_string()]);
    let verify = Command::new(program("gatepost-verify"))
        .arg(&exported)
        .args(["--since", &checkpoint, "--vkey"])
        .arg(&key)
        .output()
        .unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
}

#[test]
fn a_gateway_killed_at_work_is_moved_however_often_that_is_killed() {
    note(&moved(BULK));
}

/// The long form.
pub(crate) fn migration(_: Duration, report: &mut Report) {
    report.note(moved(BULK_LONG));
}

/// The whole of it, with so many messages that nobody reads; what was measured.
fn moved(messages: usize) -> String {
    let started = Instant::now();
    let mut gateway = gateway();
    let bulk: Vec<Value> = (0..messages).map(|n| event(format!("bulk-{n}"), n % 1000, n, "bulk")).collect();
    let shelved = accept(&gateway, &bulk);
    let work = work();
    let worked = accept(&gateway, &work[..DONE]);
    let mut received = read(&gateway, DONE / 2);
    until_within(DRAINED, "the partner has these", || (gateway.unsettled("lab") == 0).then_some(()));
    let receipts = keep_proofs(&gateway, &[&shelved[..], &worked[..]].concat());
    accept(&gateway, &work[DONE..]);
    until("the partner has more", || (gateway.effects("lab").len() > DONE).then_some(()));
    gateway.kill();
    let left_lab = LANES * PER_LANE - effects(&gateway).values().map(Vec::len).sum::<usize>();
    let filled = started.elapsed();

    configure_postgres(&gateway);
    let started = Instant::now();
    let kills = migrate_under_fire(&gateway);
    let moved = migrate(&gateway, "").output().unwrap();
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    let moved: Value = serde_json::from_slice(&moved.stdout).unwrap();
    assert_eq!(moved["moved_before"], true, "it was killed behind its last step: {moved}");
    let moved_in = started.elapsed();
    gateway.cli_ok(&["audit", "verify"]);

    let started = Instant::now();
    gateway.restart();
    // What was handed in before is known still: the same ids, and other content is refused.
    let newest = messages - EVENTS_PER_BATCH;
    let again = accept(&gateway, &bulk[newest..]);
    for (before, now) in shelved[newest..].iter().zip(&again) {
        assert_eq!((&now["id"], &now["duplicate"]), (&before["id"], &json!(true)));
    }
    let mut other = bulk[7].clone();
    other["data"] = json!("other");
    gateway.app().event(&other).expect(422);
    assert_eq!(gateway.queue("shelf")["depth"]["waiting"], messages);
    // What was not done is, in its order.
    let left_desk = usize::try_from(gateway.unsettled("desk")).unwrap();
    until_within(DRAINED, "everything is delivered", || (gateway.unsettled("lab") == 0).then_some(()));
    for (lane, rest) in read(&gateway, left_desk) {
        received.entry(lane).or_default().extend(rest);
    }
    let in_order: Vec<u64> = (0..PER_LANE as u64).collect();
    for (who, lanes) in [("the partner", effects(&gateway)), ("the inbox", received)] {
        assert_eq!(lanes.len(), LANES, "{who}");
        for (lane, order) in &lanes {
            assert_eq!(order, &in_order, "{who} got {lane}");
        }
    }
    until("the newest entries are signed", || {
        let verified: Value = serde_json::from_str(&gateway.cli_ok(&["--json", "audit", "verify"])).unwrap();
        (verified["unsigned"] == 0).then_some(())
    });
    assert_proofs_hold(&gateway, &receipts);
    gateway.stop();
    gateway.cli_ok(&["audit", "reconcile"]);
    format!(
        "{} messages filled in {filled:.1?}, moved with {kills} kills in {moved_in:.1?}, the {left_lab} left for the partner and the log's \
         proofs done in {:.1?}",
        messages + LANES * PER_LANE,
        started.elapsed()
    )
}
