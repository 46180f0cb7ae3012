//! kill -9 of the gateway while large messages are handed in, which it writes in pieces: what was acknowledged is whole, nothing is
//! there by half, and what the dead had begun goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gatepost_tests::http::Client;
use gatepost_tests::{Dice, Gateway, note, on_postgres, skipped, until_within};
use serde_json::{Value, json};

use crate::order_event;

const ROUNDS: usize = 30;
const SENDERS: usize = 3;
const LARGE_BYTES: usize = 16 << 20;
/// Acknowledged between two kills, at most and about.
const MESSAGES_PER_ROUND: usize = 2;
/// The kill comes when so many bytes have been written since the start, of which some are pieces;
const PIECES_BYTES: u64 = 1 << 20;
/// and so many more at most: less than what is handed in at a time.
const WRITTEN_BYTES: usize = 24 << 20;
const WRITTEN: Duration = Duration::from_secs(30);
/// Rounds after which all that the dead have left must have gone.
const SWEPT_EVERY: usize = 3;
const SWEPT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Progress {
    /// Message id → sender and number.
    accepted: BTreeMap<String, (usize, usize)>,
    /// Senders that wait for an answer.
    in_flight: usize,
    allowed: usize,
    holds: bool,
    over: bool,
}

type Shared = Arc<(Mutex<Progress>, Condvar)>;

/// Of which no part is like that of another message.
fn content(sender: usize, n: usize) -> String {
    let word = format!("{sender}-{n} ");
    word.repeat(LARGE_BYTES.div_ceil(word.len()))
}

/// Hands in one after the other, each again until it is answered.
fn send(sender: usize, app: &Client, (progress, changed): &(Mutex<Progress>, Condvar)) {
    for n in 0.. {
        let event = order_event(&format!("{sender}-{n}"), "k", &json!(content(sender, n)));
        let waits = |now: &mut Progress| !now.over && now.accepted.len() >= now.allowed;
        if changed.wait_while(progress.lock().unwrap(), waits).unwrap().over {
            return;
        }
        let id = loop {
            let now = progress.lock().unwrap();
            changed.wait_while(now, |now| now.holds).unwrap().in_flight += 1;
            changed.notify_all();
            let answer = app.try_event(&event);
            progress.lock().unwrap().in_flight -= 1;
            changed.notify_all();
            match answer {
                Ok(answer) if answer.status == 202 => {
                    break answer.json()["messages"][0]["id"].as_str().unwrap().to_owned();
                }
                Ok(answer) => assert!(answer.status >= 500, "{}", answer.text()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        let twin = progress.lock().unwrap().accepted.insert(id, (sender, n));
        assert_eq!(twin, None, "two messages have one id");
    }
}

struct Senders {
    shared: Shared,
    threads: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(app: &Client) -> Self {
        let shared = Shared::default();
        let threads = (0..SENDERS).map(|sender| {
            let (app, shared) = (app.clone(), Arc::clone(&shared));
            thread::spawn(move || send(sender, &app, &shared))
        });
        Self { threads: threads.collect(), shared }
    }

    /// Lets them go on, with what they had begun and some more; waits until one of them has.
    fn go_on(&self) {
        let (progress, changed) = &*self.shared;
        let mut now = progress.lock().unwrap();
        (now.holds, now.allowed) = (false, now.accepted.len() + MESSAGES_PER_ROUND);
        changed.notify_all();
        drop(changed.wait_while(now, |now| now.in_flight == 0).unwrap());
    }

    /// Nobody hands anything in from now on; only when the gateway is gone, or has answered all.
    fn hold(&self) {
        let (progress, changed) = &*self.shared;
        let mut now = progress.lock().unwrap();
        now.holds = true;
        drop(changed.wait_while(now, |now| now.in_flight > 0).unwrap());
    }

    /// Nobody has anything under way.
    fn rest(&self) -> bool {
        self.shared.0.lock().unwrap().in_flight == 0
    }

    fn accepted(&self) -> BTreeMap<String, (usize, usize)> {
        self.shared.0.lock().unwrap().accepted.clone()
    }

    /// Each ends what it has begun.
    fn finish(self) -> BTreeMap<String, (usize, usize)> {
        {
            let mut now = self.shared.0.lock().unwrap();
            (now.holds, now.over) = (false, true);
        }
        self.shared.1.notify_all();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut self.shared.0.lock().unwrap().accepted)
    }
}

/// What stands in the database: of messages that are not there, and of pieces that no message claims; and its bytes, which PostgreSQL,
/// whose files keep room for what comes, counts as those of the pieces.
struct Left {
    unclaimed: u64,
    orphans: u64,
    bytes: u64,
}

fn left(gateway: &Gateway) -> Left {
    if on_postgres() { left_on_postgres(gateway) } else { left_on_sqlite(&gateway.path("data")) }
}

fn left_on_postgres(gateway: &Gateway) -> Left {
    const LOOK: &str = "SELECT (SELECT count(*) FROM gatepost.piece_ahead), (SELECT count(*) FROM gatepost.piece p \
        WHERE NOT EXISTS (SELECT 1 FROM gatepost.message m WHERE m.id = p.message)), \
        (SELECT coalesce(sum(length(bytes)), 0) FROM gatepost.piece)";
    let url = std::fs::read_to_string(gateway.path("postgres-url")).unwrap();
    let mut psql = Command::new("psql");
    let output = psql.args(["-X", "-A", "-t", "-F", " ", "-d", url.trim(), "-c", LOOK]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
    Left { unclaimed: numbers[0], orphans: numbers[1], bytes: numbers[2] }
}

/// Bytes that have been written since the start, as far as can be told: of SQLite's log, or of PostgreSQL's pieces.
fn written(gateway: &Gateway, pieces_before: u64) -> u64 {
    if on_postgres() {
        return left(gateway).bytes.saturating_sub(pieces_before);
    }
    gateway.path("data").join("gatepost.db-wal").metadata().map_or(0, |metadata| metadata.len())
}

fn left_on_sqlite(data: &Path) -> Left {
    const LOOK: &str = "import sqlite3, sys
found = sqlite3.connect('file:' + sys.argv[1] + '?mode=ro', uri=True, timeout=20)
print(*found.execute('''SELECT (SELECT count(*) FROM piece WHERE number = 0),
    (SELECT count(*) FROM piece WHERE message NOT IN (SELECT id FROM message))''').fetchone())";
    let database = data.join("gatepost.db");
    let output = Command::new("python3").args(["-c", LOOK]).arg(&database).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|number| number.parse::<u64>().unwrap());
    Left {
        unclaimed: numbers.next().unwrap(),
        orphans: numbers.next().unwrap(),
        bytes: database.metadata().unwrap().len(),
    }
}

fn is_whole(gateway: &Gateway, message: &str, sender: usize, n: usize) {
    let data = gateway.app().get(&format!("/v1/messages/{message}/data"));
    assert_eq!(data.status, 200, "{message}: {}", data.text());
    let text = data.text();
    assert!(text.trim_matches('"') == content(sender, n), "{message} is not what was handed in");
}

#[test]
fn thirty_kills_among_large_messages_leave_whole_ones_and_no_pieces() {
    if !on_postgres()
        && !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
    {
        return skipped("needs python3");
    }
    let mut gateway =
        Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "").route("shop", &["desk"]).start();
    let seed = Dice::fresh_seed();
    let mut dice = Dice::new(seed);
    let senders = Senders::start(&gateway.app());
    let (mut interrupted, mut most_beside, mut seen) = (0, 0, BTreeSet::new());
    for round in 1..=ROUNDS {
        let before = if on_postgres() { left(&gateway).bytes } else { 0 };
        senders.go_on();
        let enough = PIECES_BYTES + dice.below(WRITTEN_BYTES) as u64;
        until_within(WRITTEN, "some of it is written", || {
            (written(&gateway, before) >= enough || senders.rest()).then_some(())
        });
        gateway.kill();
        senders.hold();
        // Before the next start, which begins to clear it away.
        interrupted += usize::from(left(&gateway).unclaimed > 0);
        gateway.restart();
        if round % SWEPT_EVERY > 0 {
            continue;
        }
        until_within(SWEPT, &format!("seed {seed}: nothing is left of what the dead had begun"), || {
            let left = left(&gateway);
            (left.unclaimed == 0 && left.orphans == 0).then_some(())
        });
        let accepted = senders.accepted();
        for (message, (sender, n)) in accepted {
            if seen.insert(message.clone()) {
                is_whole(&gateway, &message, sender, n);
            }
        }
        let stored = gateway.list("/v1/messages", "messages").len() * LARGE_BYTES;
        most_beside = most_beside.max(left(&gateway).bytes.saturating_sub(stored as u64));
    }
    // Whatever could be begun between two looks, and a sixteenth for pages and rows.
    let begun = (SWEPT_EVERY * SENDERS * LARGE_BYTES) as u64;
    let room = begun + (senders.accepted().len() * LARGE_BYTES / 16) as u64;
    assert!(most_beside < room, "seed {seed}: {most_beside} bytes beside the messages");
    // What was under way is handed in again: if it is there, that is the one.
    let accepted = senders.finish();
    for (message, (sender, n)) in &accepted {
        is_whole(&gateway, message, *sender, *n);
    }
    let listed = gateway.list("/v1/messages", "messages");
    let unknown: Vec<&Value> = listed
        .iter()
        .filter(|message| !accepted.contains_key(message["id"].as_str().unwrap_or_default()))
        .collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    gateway.audit_verifies();
    let log = gateway.audit_log();
    assert_eq!(log.iter().filter(|leaf| leaf["event"] == "accepted").count(), accepted.len());
    assert!(interrupted > ROUNDS / 6, "only {interrupted} kills met a message half written");
    note(&format!(
        "seed {seed}: {ROUNDS} kills, {interrupted} of them left pieces; {} messages, at most {most_beside} bytes beside them",
        accepted.len()
    ));
}
