//! The session layer without sockets: rows after the specification's test cases, and two engines that talk to each other.

mod answers;
mod gaps;
mod lossy;
mod orders;
mod outbox;
mod owed;
mod proof;
mod reset;
mod room;
mod rows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::{Lease, Level};
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;
use crate::data_fields::DataFields;
use crate::message::Message;
use crate::validate::Validator;
use crate::version::BeginString;
use crate::wire;

fn config(role: Role) -> Config {
    let (sender, target) = match role {
        Role::Initiator => ("BUY", "SELL"),
        Role::Acceptor => ("SELL", "BUY"),
    };
    Config {
        name: sender.to_ascii_lowercase(),
        role,
        begin_string: BeginString::Fix44,
        appl_ver_id: None,
        sender_comp_id: sender.to_owned(),
        target_comp_id: target.to_owned(),
        header: Vec::new(),
        header_tags: Vec::new(),
        partner_header: Vec::new(),
        check_header: true,
        credentials: None,
        heartbeat: Duration::from_secs(30),
        logon_timeout: Duration::from_secs(10),
        logout_timeout: Duration::from_secs(2),
        latency_max: Some(Duration::from_secs(120)),
        reset_on_logon: false,
        reset_on_logout: false,
        reset_on_disconnect: false,
        reset_at: None,
        next_expected: false,
        last_processed: false,
        resend_chunk: 0,
        keep: 10_000,
        keep_bytes: 1024 * 1024,
        room: Arc::default(),
        held_bytes: 16 * 1024 * 1024,
        unconfirmed_max: 10_000,
        confirm: Level::Transport,
        confirm_within: Duration::from_secs(600),
        after_reset: AfterReset::Resend,
        business_ids: confirm::BUSINESS_IDS.to_vec(),
        ask_for: AskFor::Proof,
        schedule: None,
        validator: Validator::new(crate::validate::Level::None, None).unwrap(),
    }
}

/// 2026-11-30 09:00:00 UTC, and so many milliseconds.
fn at(ms: u64) -> Now {
    let start = OffsetDateTime::from_unix_timestamp(1_796_029_200).unwrap();
    let passed = Duration::from_millis(ms);
    Now { utc: start + passed, tick: passed }
}

/// What matters of messages: without 8, 9, 10 and what is the same in all.
fn short(bytes: &Bytes) -> String {
    let message = wire::parse(bytes.clone(), &DataFields::default()).unwrap();
    let fields = message.fields().filter(|field| !matches!(field.tag, 8 | 9 | 10 | 49 | 52 | 56));
    let fields: Vec<String> =
        fields.map(|field| format!("{}={}", field.tag, String::from_utf8_lossy(field.value))).collect();
    fields.join("|")
}

/// An engine with a store that remembers what was committed, like the adapter's state.
struct Side {
    config: Arc<Config>,
    engine: Engine,
    state: BTreeMap<String, Vec<u8>>,
    outcomes: Vec<(Uuid, Verdict)>,
    emits: Vec<Received>,
    alarms: Vec<Alarm>,
    closed: Option<Closing>,
    /// Bytes on their way out.
    out: Vec<Bytes>,
    begun: Vec<Uuid>,
}

impl Side {
    fn new(config: Config) -> Self {
        let config = Arc::new(config);
        let state = BTreeMap::new();
        let engine = Engine::restore(Arc::clone(&config), &state).unwrap();
        Self {
            config,
            engine,
            state,
            outcomes: Vec::new(),
            emits: Vec::new(),
            alarms: Vec::new(),
            closed: None,
            out: Vec::new(),
            begun: Vec::new(),
        }
    }

    /// Makes durable what has come of the inputs so far, then acts on it.
    fn settle(&mut self) {
        loop {
            let turn = self.engine.take();
            if turn.commit.is_empty() && turn.then.is_empty() {
                return;
            }
            self.commit(turn.commit);
            for effect in turn.then {
                match effect {
                    Effect::Write { bytes, carries } => {
                        self.out.push(bytes);
                        if let Some(place) = carries {
                            self.engine.written(place);
                        }
                    }
                    Effect::Begun(lease) => self.engine.begun(&lease),
                    Effect::Close(why) => self.closed = Some(why),
                    Effect::Alarm(alarm) => self.alarms.push(alarm),
                }
            }
        }
    }

    fn commit(&mut self, commit: Commit) {
        for (key, value) in commit.state {
            match value {
                Some(value) => drop(self.state.insert(key, value)),
                None => drop(self.state.remove(&key)),
            }
        }
        self.begun.extend(commit.begins.into_iter().map(|lease| lease.delivery));
        self.outcomes.extend(commit.outcomes.into_iter().map(|(lease, verdict)| (lease.delivery, verdict)));
        self.emits.extend(commit.emits);
    }

    fn connect(&mut self, now: Now) {
        self.closed = None;
        self.engine.connected(now);
        self.settle();
    }

    fn receive(&mut self, text: &str, now: Now) {
        self.engine.received(&message(self.config.begin_string, text, now), now);
        self.settle();
    }

    fn send(&mut self, numbers: &[u128], now: Now) {
        let deliveries: Vec<Outgoing> = numbers.iter().map(|number| order(*number)).collect();
        self.engine.send(&deliveries, now);
        self.settle();
    }

    /// Whether one more may leave now.
    fn takes_one_more(&mut self) -> bool {
        let takes = self.engine.can_send() && self.engine.admit([order(999_999)].iter(), at(0)) == 1;
        self.settle();
        takes
    }

    /// What has left since it was last asked.
    fn left(&mut self) -> Vec<String> {
        std::mem::take(&mut self.out).iter().map(short).collect()
    }

    fn crash(&mut self) {
        self.engine = Engine::restore(Arc::clone(&self.config), &self.state).unwrap();
        self.out.clear();
    }
}

fn lease(number: u128, token: &str) -> Lease {
    let json = serde_json::json!({ "delivery": Uuid::from_u128(number), "token": token });
    serde_json::from_value(json).unwrap()
}

fn token(lease: &Lease) -> String {
    serde_json::to_value(lease).unwrap()["token"].as_str().unwrap().to_owned()
}

fn content(fields: &str) -> crate::content::Outgoing {
    let config = config(Role::Initiator);
    let raw = fields.replace('|', "\x01");
    crate::content::Outgoing::read(Some("application/fix"), raw.as_bytes(), &config.form()).unwrap()
}

fn order(number: u128) -> Outgoing {
    Outgoing {
        lease: lease(number, &format!("t{number}")),
        message: format!("m{number}"),
        content: content(&format!("35=D|11=O{number}|55=X|")),
        expires: None,
        in_doubt: false,
    }
}

/// From the partner: header fields first, 52 as now unless given. `35=0|34=2|…`.
fn message(version: BeginString, text: &str, now: Now) -> Message {
    let stamp = crate::value::write_timestamp(now.utc, version.time_precision());
    let mut fields = format!("{text}|");
    let stamp = String::from_utf8_lossy(stamp.as_ref());
    for (tag, value) in [("49", "SELL"), ("56", "BUY"), ("52", &*stamp)] {
        if !format!("|{fields}").contains(&format!("|{tag}=")) {
            let end = fields
                .find("|34=")
                .map_or(fields.len(), |from| from + 1 + fields[from + 1..].find('|').unwrap() + 1);
            fields.insert_str(end, &format!("{tag}={value}|"));
        }
    }
    // `tag=` alone leaves the field out.
    let fields: String = fields
        .split_inclusive('|')
        .filter(|field| !field.ends_with("=|"))
        .collect::<String>()
        .replace('|', "\x01");
    let begin_string = version.as_str();
    let head = format!("8={begin_string}\x019={}\x01", fields.len());
    let whole = format!("{head}{fields}");
    let sum: u32 = whole.bytes().map(u32::from).sum();
    let whole = format!("{whole}10={:03}\x01", sum % 256);
    wire::parse(whole.into(), &DataFields::default()).unwrap()
}

const LOGON: &str = "35=A|34=1|98=0|108=30";

/// Logged on as initiator; both have used number 1.
fn up(change: impl FnOnce(&mut Config)) -> Side {
    let mut config = config(Role::Initiator);
    change(&mut config);
    let mut side = Side::new(config);
    side.connect(at(0));
    assert_eq!(side.left(), ["35=A|34=1|98=0|108=30"]);
    side.receive(LOGON, at(0));
    assert!(side.engine.is_up());
    assert_eq!(side.left(), NOTHING);
    side
}

const NOTHING: [&str; 0] = [];

fn delivered(side: &Side) -> Vec<u128> {
    let delivered = side.outcomes.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Delivered(_)));
    delivered.map(|(delivery, _)| delivery.as_u128()).collect()
}
