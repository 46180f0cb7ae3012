//! kill -9 of the gateway or an adapter at random, again and again, under load; the audit log is verified after each.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gatepost_tests::http::Client;
use gatepost_tests::{Dice, Gateway, note, settle_item, until_within};
use serde_json::{Value, json};

use crate::order_event;

const ROUNDS: usize = 200;
const SENDERS: usize = 3;
const LANES_PER_SENDER: usize = 7;
/// Messages that are accepted between two kills, at most; the kill comes after fewer, so that it hits senders at work.
const MESSAGES_PER_ROUND: usize = 7;
const DRAINED: Duration = Duration::from_secs(90);
/// The app leaves one in so many of its leases lying until they have run out.
const LEFT_LYING: usize = 12;

/// What senders have got answers for, and how far they may go.
#[derive(Default)]
struct Progress {
    /// Message id → what it was: sender and number.
    accepted: HashMap<String, (usize, usize)>,
    allowed: usize,
    over: bool,
}

/// Send one message after the other as far as they are let; each is repeated until it is answered, as every sender has to.
struct Senders {
    progress: Arc<(Mutex<Progress>, Condvar)>,
    threads: Vec<JoinHandle<()>>,
}

impl Senders {
    fn start(app: &Client) -> Self {
        let progress = Arc::new((Mutex::new(Progress::default()), Condvar::new()));
        let threads = (0..SENDERS).map(|sender| {
            let (app, progress) = (app.clone(), Arc::clone(&progress));
            thread::spawn(move || Self::send(sender, &app, &progress))
        });
        Self { threads: threads.collect(), progress: Arc::clone(&progress) }
    }

    fn send(sender: usize, app: &Client, (progress, changed): &(Mutex<Progress>, Condvar)) {
        for n in 0.. {
            let may = |now: &mut Progress| !now.over && now.accepted.len() >= now.allowed;
            if changed.wait_while(progress.lock().unwrap(), may).unwrap().over {
                return;
            }
            let lane = format!("k{sender}-{}", n % LANES_PER_SENDER);
            let event = order_event(&format!("{sender}-{n}"), &lane, &json!({ "n": n }));
            let answer = loop {
                match app.try_event(&event) {
                    Ok(answer) if answer.status == 202 => break answer.json(),
                    Ok(answer) => assert!(answer.status >= 500, "{}", answer.text()),
                    Err(_) => thread::yield_now(),
                }
            };
            let id = text(&answer["messages"][0]["id"]);
            let twin = progress.lock().unwrap().accepted.insert(id, (sender, n));
            assert!(twin.is_none(), "two messages have one id");
            changed.notify_all();
        }
    }

    /// Lets them send so many more, and waits for the first of them.
    fn more(&self, allowed: usize, awaited: usize) {
        let (progress, changed) = &*self.progress;
        let mut now = progress.lock().unwrap();
        let goal = now.accepted.len() + awaited;
        now.allowed = now.accepted.len() + allowed;
        changed.notify_all();
        let (now, _) =
            changed.wait_timeout_while(now, gatepost_tests::WAIT, |now| now.accepted.len() < goal).unwrap();
        assert!(now.accepted.len() >= goal, "the senders make no progress");
    }

    fn finish(self) -> HashMap<String, (usize, usize)> {
        let (progress, changed) = &*self.progress;
        progress.lock().unwrap().over = true;
        changed.notify_all();
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        std::mem::take(&mut progress.lock().unwrap().accepted)
    }
}

/// An app that reads its inbox. Whatever it has settled, and whatever it left lying until somebody else could have it, it
/// settles once more with the token whose time is over; such a settle says `reject`, which it never says otherwise.
struct Reader {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Reader {
    fn start(app: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: thread::spawn(move || Self::read(&app, &stopped)) }
    }

    /// How many settles came too late.
    fn read(app: &Client, stopped: &AtomicBool) -> usize {
        let mut left_lying: HashMap<String, Value> = HashMap::new();
        let (mut seen, mut late) = (0_usize, 0);
        while !stopped.load(Ordering::Relaxed) {
            let request = json!({ "max": 8, "lease_ms": 300, "wait_ms": 300 });
            let Ok(answer) = app.try_post("/v1/queues/desk/lease", &request) else {
                thread::yield_now();
                continue;
            };
            let answer = if answer.status == 200 { answer.json() } else { Value::Null };
            for leased in answer["deliveries"].as_array().into_iter().flatten() {
                seen += 1;
                if let Some(old) = left_lying.remove(&text(&leased["id"])) {
                    assert_eq!(Self::settle(app, &old, "reject"), "stale", "its token had run out");
                    late += 1;
                } else if seen.is_multiple_of(LEFT_LYING) {
                    left_lying.insert(text(&leased["id"]), leased.clone());
                    continue;
                }
                // `stale` if it ran out while the gateway was away.
                Self::settle(app, leased, "delivered");
                assert_eq!(Self::settle(app, leased, "reject"), "stale", "it was settled");
                late += 1;
            }
        }
        late
    }

    /// Repeated until it is answered.
    fn settle(app: &Client, leased: &Value, outcome: &str) -> String {
        loop {
            match app.try_post("/v1/settle", &json!({ "results": [settle_item(leased, outcome)] })) {
                Ok(answer) if answer.status == 200 => return text(&answer.json()["results"][0]["status"]),
                Ok(answer) => assert!(answer.status >= 500, "{}", answer.text()),
                Err(_) => thread::yield_now(),
            }
        }
    }

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Verifies the whole log, and that it goes on from what was signed when it was verified before.
struct Auditor {
    signed: PathBuf,
    took: Duration,
}

impl Auditor {
    fn new(gateway: &Gateway) -> Self {
        let auditor = Self { signed: gateway.path("signed-before"), took: Duration::ZERO };
        auditor.keep(gateway);
        auditor
    }

    fn keep(&self, gateway: &Gateway) {
        std::fs::copy(gateway.path("data/audit/checkpoint"), &self.signed).unwrap();
    }

    fn verify(&mut self, gateway: &Gateway) {
        let started = Instant::now();
        gateway.cli_ok(&["audit", "verify", "--since", &self.signed.display().to_string()]);
        self.keep(gateway);
        self.took += started.elapsed();
    }
}

#[test]
fn two_hundred_kills_lose_nothing_and_double_only_what_had_begun() {
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }")
        .echo(
            "resend",
            "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\" }",
            "seed = 3\nfail_percent = 5",
        )
        .echo(
            "hold",
            "order = \"key\"\non_doubt = \"hold\"\nretry = { initial = \"50ms\", max = \"200ms\" }",
            "batch = 4",
        )
        .route("shop", &["resend", "hold", "desk"])
        .start();
    // When and whom to kill.
    let mut dice = Dice::new(Dice::fresh_seed());
    let (senders, reader) = (Senders::start(&gateway.app()), Reader::start(gateway.app()));
    let mut auditor = Auditor::new(&gateway);
    let started = Instant::now();
    let mut kills = BTreeMap::from([("gateway", 0), ("resend", 0), ("hold", 0)]);
    for _ in 0..ROUNDS {
        senders.more(MESSAGES_PER_ROUND, 1 + dice.below(MESSAGES_PER_ROUND / 2));
        let victim = ["gateway", "gateway", "resend", "hold"][dice.below(4)];
        // An adapter that is between two lives cannot be killed; the gateway always can.
        if victim != "gateway" && gateway.kill_adapter(victim) {
            auditor.verify(&gateway);
            *kills.get_mut(victim).unwrap() += 1;
        } else {
            gateway.kill();
            auditor.verify(&gateway);
            gateway.restart();
            *kills.get_mut("gateway").unwrap() += 1;
        }
        look_at_the_partner(&gateway);
        assert!(!reader.thread.is_finished(), "the app found something wrong");
    }
    assert_eq!(kills.values().sum::<usize>(), ROUNDS);
    let accepted = senders.finish();
    note(&format!(
        "kills: {kills:?} in {:.1} s, of which {:.1} s to verify; {} messages",
        started.elapsed().as_secs_f32(),
        auditor.took.as_secs_f32(),
        accepted.len(),
    ));
    // Whoever looks at it would do the same: after so many deaths the pauses between restarts are long.
    for adapter in ["resend", "hold"] {
        gateway.admin().post(&format!("/v1/adapters/{adapter}/restart"), &json!({}));
    }
    until_within(DRAINED, "everything is settled", || {
        look_at_the_partner(&gateway);
        DESTINATIONS.iter().all(|queue| gateway.unsettled(queue) == 0).then_some(())
    });
    let late = reader.finish();
    assert!(late > ROUNDS, "only {late} settles came too late");
    auditor.verify(&gateway);
    check(&gateway, &accepted);
}

const DESTINATIONS: [&str; 3] = ["resend", "hold", "desk"];

/// Deliveries held in doubt block their lanes until a person decides; here the person looks at what the partner has.
fn look_at_the_partner(gateway: &Gateway) {
    let held = gateway.list("/v1/deliveries?state=in_doubt&destination=hold", "deliveries");
    if held.is_empty() {
        return;
    }
    let partner = std::fs::read_to_string(gateway.path("hold.effects")).unwrap_or_default();
    for held in held {
        let id = held["id"].as_str().unwrap();
        let took = partner.contains(id);
        let decision =
            json!({ "as": if took { "delivered" } else { "retry" }, "reason": "looked at the partner" });
        gateway.admin().post(&format!("/v1/deliveries/{id}/resolve"), &decision).expect(200);
    }
}

fn check(gateway: &Gateway, accepted: &HashMap<String, (usize, usize)>) {
    let states = terminal_states(gateway, accepted);
    let log = gateway.audit_log();
    let mut begun: HashMap<String, usize> = HashMap::new();
    for leaf in log.iter().filter(|leaf| leaf["event"] == "attempt") {
        *begun.entry(text(&leaf["delivery"])).or_default() += 1;
    }
    for adapter in ["resend", "hold"] {
        let mut effects: HashMap<String, usize> = HashMap::new();
        let mut lanes: HashMap<String, usize> = HashMap::new();
        for effect in gateway.effects(adapter) {
            let delivery = text(&effect["delivery"]);
            let (sender, n) = accepted[&text(&effect["message"])];
            let times = effects.entry(delivery).or_default();
            *times += 1;
            if *times == 1 {
                let lane = format!("{sender}-{}", n % LANES_PER_SENDER);
                let before = lanes.insert(lane, n);
                assert!(before < Some(n), "{adapter} got {n} after {before:?}");
            }
        }
        for (delivery, times) in &effects {
            let begun = begun.get(delivery).copied().unwrap_or(0);
            let story =
                || log.iter().filter(|leaf| leaf["delivery"] == delivery.as_str()).collect::<Vec<_>>();
            assert!(*times <= begun, "{delivery} reached the partner {times} times with {begun} attempts");
            let sent_again = adapter == "hold" && *times > 1;
            assert!(!sent_again, "`hold` was sent again without anybody's word: {:#?}", story());
        }
        for ((_, to), (delivery, state)) in &states {
            let arrived = effects.contains_key(delivery);
            assert!(to != adapter || state != "delivered" || arrived, "{delivery} never reached {adapter}");
        }
        let doubled = effects.values().filter(|&&times| times > 1).count();
        note(&format!(
            "{adapter}: {} deliveries at the partner, {doubled} of them more than once",
            effects.len()
        ));
    }
}

/// Message and destination → delivery and state. All that was answered is there once and nothing else; all of it has ended.
fn terminal_states(
    gateway: &Gateway,
    accepted: &HashMap<String, (usize, usize)>,
) -> HashMap<(String, String), (String, String)> {
    let mut states = HashMap::new();
    for message in gateway.list("/v1/messages", "messages") {
        assert!(accepted.contains_key(message["id"].as_str().unwrap()), "accepted twice: {message}");
        for delivery in message["deliveries"].as_array().unwrap() {
            let state = text(&delivery["state"]);
            // Three deaths of the adapter with the same delivery alone in its hands make it poison, rightly. Had a settle that
            // came too late changed anything, it would be dead as rejected.
            let ended = state == "delivered" || state == "dead" && delivery["reason"] == "poison";
            assert!(ended, "{delivery}");
            let key = (text(&delivery["message"]), text(&delivery["destination"]));
            let twin = states.insert(key, (text(&delivery["id"]), state));
            assert!(twin.is_none(), "a delivery is there twice");
        }
    }
    for id in accepted.keys() {
        for destination in DESTINATIONS {
            let key = (id.clone(), destination.to_owned());
            assert!(states.contains_key(&key), "{id} to {destination} is lost");
        }
    }
    states
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
