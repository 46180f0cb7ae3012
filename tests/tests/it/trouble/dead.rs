//! A thousand dead destinations beside one that is well.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gatepost_tests::http::Client;
use gatepost_tests::lab::Order;
use gatepost_tests::{Gateway, note, settle_item, until, until_within};
use serde_json::{Value, json};

use super::{hand_in, judged};
use crate::order_event;

/// Those whose partner is out of reach, and as many that nobody serves.
const UNREACHABLE: usize = 500;
const UNSERVED: usize = 500;
/// Messages that wait for each of them.
const BACKLOG: usize = 3;
const WELL: usize = 100;
/// First pause of a breaker; the next ones are longer.
const PROBE_S: u64 = 20;
/// All thousand queues have been asked once.
const ALL_ASKED: Duration = Duration::from_secs(120);

fn names() -> (Vec<String>, Vec<String>) {
    let named = |kind: &str, count| (0..count).map(|n| format!("{kind}-{n}")).collect();
    (named("down", UNREACHABLE), named("alone", UNSERVED))
}

/// One healthy destination, and the dead ones if so told: inboxes, since a thousand processes would measure the machine.
fn gateway(with_dead: bool) -> Gateway {
    let (down, alone) = names();
    let all: Vec<&str> = down.iter().chain(&alone).map(String::as_str).collect();
    let inboxes: &[&str] = if with_dead { &all } else { &[] };
    let mut builder = Gateway::builder()
        .app("shop", &["*"], inboxes)
        .echo("well", "order = \"key\"", "")
        .route_when("shop", "type == \"orders.new\"", &["well"]);
    if with_dead {
        let retry = format!("retry = {{ initial = \"{PROBE_S}s\", max = \"1h\" }}");
        for name in &all {
            builder = builder.inbox(name, &format!("order = \"key\"\n{retry}"));
        }
        builder = builder.route_when("shop", "type == \"to.dead\"", &all);
    }
    let gateway = builder.start();
    if with_dead {
        for n in 0..BACKLOG {
            let mut event = order_event(&format!("dead-{n}"), "k", &json!({ "n": n }));
            event["type"] = "to.dead".into();
            gateway.app().event(&event).expect(202);
        }
    }
    gateway
}

/// One program that serves all the destinations whose partner is out of reach.
struct Prober {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<usize>,
}

impl Prober {
    /// `pace` is its pause between two destinations.
    fn start(app: Client, pace: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (down, _) = names();
        let thread = thread::spawn(move || {
            let mut tried = 0;
            while !stopped.load(Ordering::Relaxed) {
                for name in &down {
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    tried += Self::try_one(&app, name);
                    thread::sleep(pace);
                }
            }
            tried
        });
        Self { stop, thread }
    }

    fn try_one(app: &Client, name: &str) -> usize {
        let leased = app.post(&format!("/v1/queues/{name}/lease"), &json!({ "max": 10 })).expect(200);
        let leased = leased["deliveries"].as_array().unwrap();
        let trouble = leased.iter().map(|delivery| {
            let mut item = settle_item(delivery, "retry");
            item["scope"] = "destination".into();
            item
        });
        let results: Vec<Value> = trouble.collect();
        if !results.is_empty() {
            app.post("/v1/settle", &json!({ "results": results })).expect(200);
        }
        results.len()
    }

    fn finish(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the prober found something wrong")
    }
}

#[test]
fn a_thousand_dead_destinations_cost_nobody_anything_and_the_one_that_is_well_delivers_all() {
    let started = Instant::now();
    let gateway = gateway(true);
    let prober = Prober::start(gateway.app(), Duration::ZERO);
    let (down, alone) = names();
    until_within(ALL_ASKED, "all that are down are known to be", || {
        let queues = gateway.list("/v1/queues", "queues");
        let tripped = queues.iter().filter(|queue| queue["tripped"] == "unreachable").count();
        (tripped == down.len()).then_some(())
    });
    let submissions: Vec<_> = (0..WELL)
        .map(|n| {
            hand_in(&gateway.app(), "shop", &format!("w{n}"), &format!("k{}", n % 4), &json!({}), &["well"])
        })
        .collect();
    gateway.until_settled("well");
    let tried = prober.finish();
    // With nobody who asks, the dead ones cost no commit at all: time is looked at, and nothing is written.
    let quiet = gateway.metric("gatepost_commits_total");
    let since = Instant::now();
    until("the gateway has been left alone", || (since.elapsed() > Duration::from_secs(3)).then_some(()));
    let commits = gateway.metric("gatepost_commits_total") - quiet;
    let most = since.elapsed().as_secs_f64();
    assert!(commits <= most, "{commits} commits in {most} s while nobody did anything");

    let dead: Vec<Value> = gateway
        .list("/v1/deliveries", "deliveries")
        .into_iter()
        .filter(|delivery| delivery["destination"] != "well")
        .collect();
    assert_eq!(dead.len(), BACKLOG * (down.len() + alone.len()));
    for delivery in &dead {
        assert_eq!((&delivery["state"], &delivery["attempts"]), (&json!("waiting"), &json!(0)), "{delivery}");
    }
    // Each was tried at first and then no more often than its breaker lets probes through.
    let mut tries: BTreeMap<String, u64> = BTreeMap::new();
    let log = gateway.audit_log();
    for leaf in log.iter().filter(|leaf| leaf["event"] == "attempt" && leaf["destination"] != "well") {
        *tries.entry(leaf["destination"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    // Jitter may halve a pause.
    let most = 1 + started.elapsed().as_secs() / (PROBE_S / 2);
    assert_eq!(tries.len(), down.len(), "those whom nobody serves are not tried");
    for (name, times) in &tries {
        assert!(*times <= most, "{name} was tried {times} times in {:?}", started.elapsed());
    }
    note(&format!(
        "{} dead destinations, {tried} tries in {:?}",
        down.len() + alone.len(),
        started.elapsed()
    ));
    let mut verdict = judged(&gateway, submissions, &[("well", Order::Key)]);
    // The dead ones are still there, and that is right.
    verdict.findings.retain(|finding| {
        !finding.what.contains("waiting, and nobody") && !finding.what.contains("nobody was told so")
    });
    verdict.expect_clean();
}

/// Times from hand-in to the partner's acknowledgement, in microseconds, sorted.
fn round_trips(gateway: &Gateway, round: usize, count: usize) -> Vec<u128> {
    let mut times: Vec<u128> = (0..count)
        .map(|n| {
            let event = order_event(&format!("m{round}-{n}"), &format!("k{n}"), &json!({ "n": n }));
            let headers = ["content-type: application/cloudevents+json", "prefer: wait=20"];
            let began = Instant::now();
            let answer = gateway.app().send("POST", "/v1/messages", &headers, event.to_string().as_bytes());
            assert_eq!(answer.expect("the gateway answers").status, 200, "delivered within the wait");
            began.elapsed().as_micros()
        })
        .collect();
    times.sort_unstable();
    times
}

/// What the healthy one's times are, alone and beside the dead ones, measured in turns: lines to read.
pub(crate) fn beside(rounds: usize) -> Vec<String> {
    const PER_ROUND: usize = 200;
    let (alone, beside) = (gateway(false), gateway(true));
    let prober = Prober::start(beside.app(), Duration::ZERO);
    until_within(ALL_ASKED, "all that are down are known to be", || {
        let queues = beside.list("/v1/queues", "queues");
        (queues.iter().filter(|queue| queue["tripped"] == "unreachable").count() == UNREACHABLE).then_some(())
    });
    // From now on each is asked about as often as its breaker lets a probe through; asking all the time, which no adapter
    // does, would measure the one who asks.
    prober.finish();
    let prober =
        Prober::start(beside.app(), Duration::from_secs(PROBE_S) / u32::try_from(UNREACHABLE).unwrap());
    let (mut all_alone, mut all_beside) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        all_alone.extend(round_trips(&alone, round, PER_ROUND));
        all_beside.extend(round_trips(&beside, round, PER_ROUND));
    }
    let mut lines = vec![format!(
        "{} dead destinations, tried {} times meanwhile",
        UNREACHABLE + UNSERVED,
        prober.finish()
    )];
    all_alone.sort_unstable();
    all_beside.sort_unstable();
    for (name, p) in [("p50", 50), ("p99", 99)] {
        let at = |times: &[u128]| times[times.len() * p / 100] as f64 / 1000.0;
        let (alone, beside) = (at(&all_alone), at(&all_beside));
        lines
            .push(format!("{name}: alone {alone:.2} ms, beside {beside:.2} ms, ratio {:.2}", beside / alone));
    }
    lines
}

#[test]
#[ignore = "a measurement: cargo test --release -p gatepost-tests --test it -- --ignored --nocapture beside_a_thousand"]
fn the_healthy_ones_p99_alone_and_beside_a_thousand_dead() {
    beside(100).iter().for_each(|line| note(line));
}
