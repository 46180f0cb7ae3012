//! An adapter that misbehaves on command. Its partner is a file: every line is one effect there. It speaks with the gateway without
//! the SDK, so that it can do what the SDK never would.
//!
//! Settings: `effects` (the file), `fail_percent` and `seed` (the partner refuses at random), `batch` (most deliveries at a time),
//! `lease_ms`, `dead_key` (the partner never takes this key), `tokens` (a file in which it notes its leases: when it starts it settles those of
//! its earlier lives as `reject`, all of which must be stale), `counts` (a file in which it notes the count in its state when it starts),
//! `calls` (it answers operators: `look` with its epoch; `say` notes its `text` as an effect, `refuse` does nothing, `die` dies of it). A
//! payload's member `do` says what to do with that delivery; `emit`, with the setting of that name, settles it together with a message
//! that it emits and with that count, one higher.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as STANDARD;
use gatepost_tests::http::{Answer, Client};
use serde_json::{Value, json};

/// Pause before a call is repeated that had no answer.
const PAUSE: Duration = Duration::from_millis(50);
const REPEATS_MAX: u32 = 100;
/// `slow` takes this long.
const SLOW: Duration = Duration::from_millis(1500);
/// Leases of earlier lives that it comes back with.
const GHOSTS_MAX: usize = 16;
/// What `hog` wants, in pieces.
const HOG_BYTES: usize = 10 << 30;
const PIECE_BYTES: usize = 4 << 20;
/// Most processes that `bomb` starts where nothing stops it.
const BOMB_PROCESSES_MAX: usize = 1500;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("--manifest") => {
            let levels = ["sent", "transport", "business"];
            let manifest = json!({
                "protocol": 1, "version": "echo", "levels": levels, "query": true, "ordered_pipeline": true,
                "access": true, "settings_schema": {},
            });
            writeln!(std::io::stdout(), "{manifest}").expect("stdout takes a line");
        }
        Some("--access") => {
            let settings: Value = serde_json::from_reader(std::io::stdin()).expect("settings are JSON");
            let files = ["effects", "tokens", "counts"].map(|name| settings[name].as_str());
            let files: Vec<_> = files.into_iter().flatten().collect();
            writeln!(std::io::stdout(), "{}", json!({ "write": files })).expect("stdout takes a line");
        }
        Some("--check") => {}
        _ => Echo::start().work(),
    }
}

/// Uses more memory than anybody should have.
fn hog() {
    let mut kept = Vec::new();
    while kept.len() * PIECE_BYTES < HOG_BYTES {
        kept.push(std::hint::black_box(vec![1_u8; PIECE_BYTES]));
    }
}

/// Starts processes until it may not; gives how many.
fn bomb() -> usize {
    let start = || std::process::Command::new("/usr/bin/sleep").arg("1000").spawn().ok();
    std::iter::from_fn(start).take(BOMB_PROCESSES_MAX).count()
}

struct Echo {
    client: Client,
    session: Value,
    effects: File,
    tokens: Option<File>,
    random: u64,
    /// Deliveries that were settled together with an emitted message, as its state has it.
    count: u64,
}

impl Echo {
    fn start() -> Self {
        let socket = std::env::var_os("GATEPOST_SOCKET").expect("the gateway sets GATEPOST_SOCKET");
        let client = Client::new(socket);
        let session = call(&client, "/v1/session", &json!({ "version": "echo" })).expect(200);
        let settings = &session["settings"];
        let effects = settings["effects"].as_str().expect("`effects` names a file");
        let mut effects =
            File::options().create(true).append(true).open(effects).expect("effects can be noted");
        // A killed process may have left its last line unfinished: what is noted now is not its end.
        effects.write_all(b"\n").expect("effects can be noted");
        let random =
            settings["seed"].as_u64().unwrap_or(1) ^ session["epoch"].as_u64().unwrap_or(0) << 32 | 1;
        let tokens =
            settings["tokens"].as_str().map(|file| File::options().create(true).append(true).open(file));
        let tokens = tokens.transpose().expect("leases can be noted");
        let count = session["state"]["count"].as_str().map_or(0, decode);
        if let Some(file) = settings["counts"].as_str() {
            let mut counts =
                File::options().create(true).append(true).open(file).expect("the count can be noted");
            counts.write_all(format!("{count}\n").as_bytes()).expect("the count can be noted");
        }
        if settings["calls"] == true {
            let (socket, epoch) = (client.socket().to_owned(), session["epoch"].clone());
            let effects = effects.try_clone().expect("a file has two names");
            std::thread::spawn(move || answer_calls(&Client::new(socket), &epoch, effects));
        }
        let echo = Self { client, session, effects, tokens, random, count };
        echo.come_back_as_a_ghost();
        echo
    }

    /// What a process would do that was stopped in the middle and goes on long after another has taken its place.
    fn come_back_as_a_ghost(&self) {
        let Some(file) = self.session["settings"]["tokens"].as_str() else { return };
        let noted = std::fs::read_to_string(file).expect("noted leases can be read");
        // A killed process may have left its last line unfinished.
        let noted: Vec<Value> = noted.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let newest = noted.iter().rev().take(GHOSTS_MAX);
        let results: Vec<Value> = newest.map(|lease| item(lease, "reject")).collect();
        // One delivery may have been leased several times, and a settle names it once.
        for result in results {
            let settled = self.settle(vec![result]);
            assert_eq!(settled["results"][0]["status"], "stale", "a token of an earlier life was taken");
        }
    }

    fn work(mut self) {
        let path = format!("/v1/queues/{}/lease", self.session["name"].as_str().unwrap_or_default());
        let max = self.session["settings"]["batch"].as_u64().unwrap_or(32);
        loop {
            let lease_ms = &self.session["settings"]["lease_ms"];
            let mut request = json!({ "max": max, "wait_ms": 20_000, "epoch": self.session["epoch"] });
            if lease_ms.is_u64() {
                request["lease_ms"] = lease_ms.clone();
            }
            let leased = call(&self.client, &path, &request).expect(200);
            let leased = leased["deliveries"].as_array().cloned().unwrap_or_default();
            self.note_leases(&leased);
            let mut results = Vec::new();
            for delivery in &leased {
                results.extend(self.attempt(delivery));
            }
            if !results.is_empty() {
                self.settle(results);
            }
        }
    }

    /// What came of it; nothing if it was settled here or is to be left lying.
    fn attempt(&mut self, delivery: &Value) -> Option<Value> {
        let command = delivery["event"]["data"]["do"].as_str().unwrap_or_default().to_owned();
        match command.as_str() {
            "crash" => std::process::abort(),
            "hang" => loop {
                std::thread::park();
            },
            "leave" => return None,
            "slow" => std::thread::sleep(SLOW),
            "hog" => hog(),
            "bomb" => {
                let started = bomb();
                self.effects
                    .write_all(format!("{{\"started\":{started}}}\n").as_bytes())
                    .expect("effects can be noted");
            }
            "garbage" => self.garbage(),
            "reject" => return Some(item(delivery, "reject")),
            "down" => return Some(with(item(delivery, "retry"), "scope", json!("destination"))),
            _ => {}
        }
        if self.session["on_doubt"] != "resend" {
            let begun = self.settle(vec![item(delivery, "begin")]);
            if begun["results"][0]["status"] != "ok" {
                return None;
            }
        }
        let key = &delivery["event"]["partitionkey"];
        let dead_key = &self.session["settings"]["dead_key"];
        let fail_percent = self.session["settings"]["fail_percent"].as_u64().unwrap_or(0);
        if command == "fail" || (key.is_string() && key == dead_key) || self.roll() < fail_percent {
            return Some(item(delivery, "retry"));
        }
        if command == "pause" && delivery["in_doubt"] == false {
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).expect("a process can stop itself");
        }
        self.note(delivery, key);
        let delivered = with(item(delivery, "delivered"), "evidence", json!({ "level": "transport" }));
        match command.as_str() {
            "double" => {
                self.settle(vec![delivered.clone()]);
            }
            "stale" => {
                let stale = self.settle(vec![with(delivered.clone(), "token", json!("bm90IHRoZSB0b2tlbg"))]);
                assert_ne!(stale["results"][0]["status"], "ok", "the gateway took a wrong token");
            }
            "in_doubt" => return Some(item(delivery, "in_doubt")),
            "emit" if self.emits() => {
                self.settle_with_emit(delivery, delivered);
                return None;
            }
            _ => {}
        }
        Some(delivered)
    }

    fn emits(&self) -> bool {
        self.session["settings"]["emit"] == true
    }

    /// Outcome, message and state in one: all or nothing.
    fn settle_with_emit(&mut self, delivery: &Value, delivered: Value) {
        let mark = emitted(delivery);
        let event = json!({
            "specversion": "1.0", "id": mark, "source": "/echo", "type": "answers.new", "data": { "mark": mark },
        });
        let settle = json!({
            "results": [delivered], "emit": [event], "state": { "count": encode(self.count + 1) },
            "epoch": self.session["epoch"],
        });
        // 409 is a lease that has been lost: nothing of it is there.
        let answer = call(&self.client, "/v1/settle", &settle);
        if answer.status != 409 {
            answer.expect(200);
            self.count += 1;
        }
    }

    fn settle(&self, results: Vec<Value>) -> Value {
        let settle = json!({ "results": results, "epoch": self.session["epoch"] });
        let answer = call(&self.client, "/v1/settle", &settle);
        // A bad token is malformed to some and stale to others; both write nothing.
        if answer.status == 400 {
            json!({ "results": [{ "status": "malformed" }] })
        } else {
            answer.expect(200)
        }
    }

    /// The partner takes it. One write, so that a killed process leaves whole lines.
    fn note(&mut self, delivery: &Value, key: &Value) {
        let mut line = json!({
            "delivery": delivery["id"], "message": delivery["event"]["gatepostid"], "key": key,
            "attempt": delivery["attempt"], "in_doubt": delivery["in_doubt"], "data": delivery["event"]["data"],
        });
        if delivery["event"]["data"]["do"] == "emit" && self.emits() {
            line["emitted"] = emitted(delivery).into();
        }
        self.effects.write_all(format!("{line}\n").as_bytes()).expect("effects can be noted");
    }

    fn note_leases(&mut self, leased: &[Value]) {
        let Some(tokens) = &mut self.tokens else { return };
        let line =
            |delivery: &Value| format!("{}\n", json!({ "id": delivery["id"], "token": delivery["token"] }));
        let lines: String = leased.iter().map(line).collect();
        tokens.write_all(lines.as_bytes()).expect("leases can be noted");
    }

    fn garbage(&self) {
        let mut stream = UnixStream::connect(self.client.socket()).expect("the gateway listens");
        // The gateway may have hung up already, which is its right.
        let _ = stream.write_all(b"\x16\x03\x01\0\xff\xfe GET / \0\r\n\r\n");
    }

    /// 0 to 99.
    fn roll(&mut self) -> u64 {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100
    }
}

fn answer_calls(client: &Client, epoch: &Value, mut effects: File) {
    let offer = |name: &str, changes: bool| json!({ "name": name, "changes": changes, "about": "for tests" });
    let offers = [offer("look", false), offer("say", true), offer("refuse", true), offer("die", true)];
    loop {
        let request = json!({ "epoch": epoch, "offers": offers, "wait_ms": 20_000 });
        let next = call(client, "/v1/calls/next", &request).expect(200);
        let asked = &next["call"];
        let said = match asked["call"].as_str() {
            None => continue,
            Some("look") => json!({ "answer": { "epoch": epoch } }),
            Some("say") => {
                let line = json!({ "said": asked["arguments"]["text"], "by": asked["operator"] });
                effects.write_all(format!("{line}\n").as_bytes()).expect("effects can be noted");
                json!({ "answer": { "said": true } })
            }
            Some("refuse") => json!({ "refused": "not on a Monday" }),
            Some(_) => std::process::abort(),
        };
        let path = format!("/v1/calls/{}/answer", asked["id"].as_str().unwrap_or_default());
        call(client, &path, &with(said, "epoch", epoch.clone())).expect(200);
    }
}

/// The mark of what is emitted in reply.
fn emitted(delivery: &Value) -> String {
    format!("reply-to-{}", delivery["event"]["data"]["mark"].as_str().unwrap_or_default())
}

fn encode(count: u64) -> String {
    STANDARD.encode(count.to_string())
}

fn decode(state: &str) -> u64 {
    let digits = STANDARD.decode(state).ok().and_then(|digits| String::from_utf8(digits).ok());
    digits.and_then(|digits| digits.parse().ok()).expect("the state is a count")
}

fn item(delivery: &Value, outcome: &str) -> Value {
    gatepost_tests::settle_item(delivery, outcome)
}

fn with(mut item: Value, member: &str, value: Value) -> Value {
    item[member] = value;
    item
}

/// Repeats a call until the gateway answers; without a gateway this process has no purpose.
fn call(client: &Client, path: &str, body: &Value) -> Answer {
    for _ in 0..REPEATS_MAX {
        match client.try_post(path, body) {
            Ok(answer) if answer.status < 500 => return answer,
            _ => std::thread::sleep(PAUSE),
        }
    }
    std::process::exit(4);
}
