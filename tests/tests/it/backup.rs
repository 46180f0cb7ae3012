//! A gateway at work is backed up, lost with its disk, and comes back: nothing that was accepted before is missing, nothing is sent
//! unasked, and the log says what happened.

use std::collections::HashSet;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use gatepost_postgres::Cluster;
use gatepost_tests::http::Client;
use gatepost_tests::{Gateway, faulty, settle_item, until};
use serde_json::{Value, json};

use crate::order_event;

/// Accepted between one step and the next.
const MORE: usize = 300;

/// Send one message after the other until they are told to stop.
struct Senders {
    stop: Arc<AtomicBool>,
    /// Ids of messages that were answered with 202.
    accepted: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(app: &Client) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<String>>>::default());
        let threads = (0..3).map(|sender| {
            let (app, stop, accepted) = (app.clone(), Arc::clone(&stop), Arc::clone(&accepted));
            thread::spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let event =
                        order_event(&format!("{sender}-{n}"), &format!("k{sender}-{}", n % 5), &json!(n));
                    let answer = app.event(&event).expect(202);
                    let id = answer["messages"][0]["id"].as_str().unwrap().to_owned();
                    accepted.lock().unwrap().push(id);
                }
            })
        });
        let threads = threads.collect();
        Self { stop, accepted, threads }
    }

    fn accepted(&self) -> Vec<String> {
        self.accepted.lock().unwrap().clone()
    }

    fn until_more(&self) {
        let goal = self.accepted().len() + MORE;
        until("more is accepted", || (self.accepted().len() >= goal).then_some(()));
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut self.accepted.lock().unwrap())
    }
}

/// An adapter in lanes, and an inbox.
fn builder() -> gatepost_tests::Builder {
    Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "")
        .echo("lab", "order = \"key\"", "")
        .route("shop", &["lab", "desk"])
}

fn json_of(gateway: &Gateway, arguments: &[&str]) -> Value {
    serde_json::from_str(&gateway.cli_ok(&[&["--json"], arguments].concat())).unwrap()
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// `renew` makes what the lost gateway had besides its data directory empty again.
fn is_lost_and_restored(mut gateway: Gateway, renew: impl Fn(&Gateway)) {
    let backup = gateway.path("backup");
    let senders = Senders::start(&gateway.app());
    senders.until_more();
    let before = senders.accepted();
    let made = json_of(&gateway, &["backup", &shown(&backup)]);
    assert!(
        made["has_keys"] == true && made["entries"].as_u64() >= made["signed_entries"].as_u64(),
        "{made}"
    );
    senders.until_more();
    let proof = json_of(&gateway, &["restore", "--verify", &shown(&backup)]);
    assert_eq!(proof["ok"], true, "{proof}");
    assert!(proof["messages"].as_u64().unwrap() >= before.len() as u64, "{proof}");
    assert_eq!(proof["entries"], made["entries"], "{proof}");
    let all = senders.finish();
    assert!(all.len() > before.len());
    gateway.kill();
    let refused = gateway.cli(&["restore", &shown(&backup)]);
    assert_eq!(refused.status.code(), Some(2), "its data directory is not empty");
    fs::remove_dir_all(gateway.path("data")).unwrap();
    renew(&gateway);

    assert_eq!(json_of(&gateway, &["restore", "--verify", &shown(&backup)])["entries"], proof["entries"]);
    assert!(!gateway.path("data").exists(), "a drill touches nothing");
    let restored = json_of(&gateway, &["restore", &shown(&backup)]);
    assert_eq!(restored["paused"], json!(["desk", "lab"]), "{restored}");
    let seen = gateway.effects("lab").len();
    gateway.restart();
    until("the adapter asks for work", || (gateway.adapter("lab")["state"] == "running").then_some(()));
    for queue in ["lab", "desk"] {
        assert_eq!(gateway.queue(queue)["paused"], true, "{queue}");
    }
    let answer =
        gateway.app().post("/v1/queues/desk/lease", &json!({ "max": 10, "wait_ms": 1000 })).expect(200);
    assert_eq!((&answer["deliveries"], &answer["paused"]), (&json!([]), &json!(true)), "{answer}");
    assert_eq!(gateway.effects("lab").len(), seen, "nothing is sent before somebody says so");

    for queue in ["lab", "desk"] {
        gateway.cli_ok(&["queue", "resume", queue]);
    }
    while gateway.unsettled("desk") > 0 {
        let leased = until("there is more in the inbox", || {
            Some(gateway.lease("desk", 100)).filter(|leased| !leased.is_empty())
        });
        let results: Vec<Value> = leased.iter().map(|leased| settle_item(leased, "delivered")).collect();
        gateway.app().post("/v1/settle", &json!({ "results": results })).expect(200);
    }
    gateway.until_settled("lab");
    let effects: HashSet<String> =
        gateway.effects("lab").iter().map(|effect| text(&effect["message"])).collect();
    for id in &before {
        let message = gateway.admin().get(&format!("/v1/messages/{id}")).expect(200);
        let deliveries = message["deliveries"].as_array().unwrap();
        assert!(deliveries.iter().all(|delivery| delivery["state"] == "delivered"), "{message}");
        assert!(effects.contains(id), "the partner has {id}");
    }
    the_log_says_so(&gateway, made["made_at"].as_str().unwrap());
}

fn the_log_says_so(gateway: &Gateway, made_at: &str) {
    let log = gateway.audit_log();
    let adopted =
        log.iter().find(|entry| entry["event"] == "audit_adopted").expect("an entry of the restore");
    assert_eq!(
        (&adopted["code"], &adopted["by"]["kind"]),
        (&json!("restored"), &json!("operator")),
        "{adopted}"
    );
    let notes = fs::read_dir(gateway.path("data/audit")).unwrap().map(|entry| entry.unwrap().path());
    let note = notes.into_iter().find(|path| shown(path).contains("/restored-")).expect("its reason");
    assert!(fs::read_to_string(&note).unwrap().contains(made_at));
    let sum = Command::new("sha256sum").arg(&note).output().unwrap().stdout;
    let sum = String::from_utf8(sum).unwrap();
    assert_eq!(adopted["subject_of"], format!("sha256:{}", &sum[..64]));
    assert_eq!(log.iter().filter(|entry| entry["event"] == "queue_paused").count(), 2);
    gateway.audit_verifies();
    gateway.cli_ok(&["audit", "reconcile"]);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

#[test]
fn a_gateway_that_was_lost_with_its_disk_comes_back_paused_with_all_that_was_accepted_before() {
    is_lost_and_restored(builder().start(), |gateway| {
        // On PostgreSQL, where the whole suite runs there, its rows are lost too.
        if gatepost_tests::on_postgres() {
            use_another_database(gateway);
        }
    });
}

#[test]
fn a_gateway_whose_shared_database_was_lost_comes_back_in_an_empty_one() {
    let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
    is_lost_and_restored(builder().postgres(&url).start(), use_another_database);
}

#[test]
fn a_drill_on_postgresql_uses_the_database_that_it_is_given_and_leaves_it_empty() {
    // Its own server: what is left there is left by this test.
    let server = Cluster::start(&[]).expect("a PostgreSQL server for the tests");
    let gateway = builder().postgres(&server.create_database("used").unwrap()).start();
    gateway.app().event(&order_event("1", "k", &json!(1))).expect(202);
    let (backup, given) = (shown(&gateway.path("backup")), gateway.path("given-url"));
    gateway.cli_ok(&["backup", &backup]);
    fs::write(&given, server.create_database("given").unwrap()).unwrap();
    for _ in 0..2 {
        gateway.cli_ok(&["restore", "--verify", &backup, "--database-url-file", &shown(&given)]);
    }
    gateway.cli_ok(&["restore", "--verify", &backup]);
    let left = "SELECT count(*) FROM pg_database WHERE datname LIKE 'gatepost_verify_%'";
    assert_eq!(server.query("postgres", left).unwrap().trim(), "0");

    // One who may not make a database is told what to do.
    server.query("postgres", "CREATE ROLE poor LOGIN").unwrap();
    let url = fs::read_to_string(gateway.path("postgres-url")).unwrap();
    let sign = if url.contains('?') { '&' } else { '?' };
    fs::write(gateway.path("postgres-url"), format!("{url}{sign}user=poor")).unwrap();
    let refused = gateway.cli(&["restore", "--verify", &backup]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("--database-url-file"), "{said}");
}

fn use_another_database(gateway: &Gateway) {
    let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
    fs::write(gateway.path("postgres-url"), url).unwrap();
}

#[test]
fn a_backup_that_is_killed_is_none_and_the_next_one_leaves_nothing_of_it() {
    let gateway = builder().start();
    let senders = Senders::start(&gateway.app());
    senders.until_more();
    let backup = gateway.path("backup");
    for point in ["backup.snapshot_taken", "backup.complete"] {
        let killed = Command::new(faulty("gatepost"))
            .env("GATEPOST_FAULTS", format!("{point}=kill"))
            .arg("--config")
            .arg(gateway.config())
            .arg("backup")
            .arg(&backup)
            .status()
            .unwrap();
        assert_eq!(killed.signal(), Some(9), "{point}");
        assert!(!backup.exists(), "{point}");
        let refused = gateway.cli(&["restore", "--verify", &shown(&backup)]);
        assert_eq!(refused.status.code(), Some(1), "{point}");
    }
    let unfinished = gateway.path(".backup.unfinished");
    assert!(unfinished.is_dir());
    gateway.cli_ok(&["backup", &shown(&backup)]);
    assert!(!unfinished.exists());
    gateway.cli_ok(&["restore", "--verify", &shown(&backup)]);
    senders.finish();
    gateway.until_settled("lab");
    gateway.audit_verifies();
}
