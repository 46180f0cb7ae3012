//! kill -9 of the gateway or an adapter, again and again, under load.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gatepost_tests::http::Client;
use gatepost_tests::{Gateway, until_within};
use serde_json::{Value, json};

use crate::order_event;

const ROUNDS: u64 = 200;
/// One round in so many ends an adapter in place of the gateway.
const ADAPTER_EVERY: u64 = 3;
/// One round in so many the whole log is verified; each start verifies what grew.
const VERIFY_EVERY: u64 = 20;
/// Rounds end early when this is used up, which is printed.
const BUDGET: Duration = Duration::from_secs(110);
const DRAINED: Duration = Duration::from_secs(90);
const LANES: u64 = 20;

/// Sends one message after the other until told to stop; keeps the ids of those that were answered.
struct Sender {
    stop: Arc<AtomicBool>,
    accepted: Arc<Mutex<Vec<String>>>,
    thread: JoinHandle<()>,
}

impl Sender {
    fn start(app: Client) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let thread = {
            let (stop, accepted) = (Arc::clone(&stop), Arc::clone(&accepted));
            thread::spawn(move || {
                for n in 0_u64.. {
                    let event = order_event(&n.to_string(), &format!("k{}", n % LANES), &json!({ "n": n }));
                    // The same again until it is answered, as every sender has to.
                    let answer = loop {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        match app.try_event(&event) {
                            Ok(answer) if answer.status == 202 => break answer.json(),
                            Ok(answer) => assert!(answer.status >= 500, "{}", answer.text()),
                            Err(_) => thread::yield_now(),
                        }
                    };
                    let id = answer["messages"][0]["id"].as_str().unwrap().to_owned();
                    accepted.lock().unwrap().push(id);
                }
            })
        };
        Self { stop, accepted, thread }
    }

    fn accepted(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        Arc::into_inner(self.accepted).unwrap().into_inner().unwrap()
    }
}

#[test]
fn two_hundred_kills_lose_nothing_and_double_only_what_had_begun() {
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &[])
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
        .route("shop", &["resend", "hold"])
        .start();
    let sender = Sender::start(gateway.app());
    let started = Instant::now();
    let mut rounds = 0;
    while rounds < ROUNDS && started.elapsed() < BUDGET {
        let before = sender.accepted();
        gatepost_tests::until("a few messages came in", || (sender.accepted() > before + 2).then_some(()));
        if rounds % ADAPTER_EVERY == 0 {
            gateway.kill_adapter(if rounds % 2 == 0 { "resend" } else { "hold" });
        } else {
            gateway.kill();
            gateway.restart();
        }
        if rounds % VERIFY_EVERY == 0 {
            gateway.audit_verifies();
        }
        rounds += 1;
    }
    gatepost_tests::note(&format!(
        "{rounds} of {ROUNDS} rounds of kills in {:.1} s",
        started.elapsed().as_secs_f32()
    ));
    assert!(rounds >= ROUNDS / 2, "this machine is too slow for this test");
    let accepted = sender.finish();
    // Whoever looks at it would do the same: after so many deaths the pauses between restarts are long.
    for adapter in ["resend", "hold"] {
        gateway.admin().post(&format!("/v1/adapters/{adapter}/restart"), &json!({}));
    }
    drain(&gateway);
    check(&gateway, &accepted);
}

/// Deliveries held in doubt block their lanes until a person decides; here the person looks at what the partner has.
fn drain(gateway: &Gateway) {
    until_within(DRAINED, "everything is settled", || {
        for held in gateway.list("/v1/deliveries?state=in_doubt&destination=hold", "deliveries") {
            let id = held["id"].as_str().unwrap();
            let took = gateway.effects("hold").iter().any(|effect| effect["delivery"] == id);
            let decision =
                json!({ "as": if took { "delivered" } else { "retry" }, "reason": "looked at the partner" });
            gateway.admin().post(&format!("/v1/deliveries/{id}/resolve"), &decision);
        }
        (gateway.unsettled("resend") + gateway.unsettled("hold") == 0).then_some(())
    });
}

fn check(gateway: &Gateway, accepted: &[String]) {
    gateway.audit_verifies();
    let mut state: HashMap<(String, String), String> = HashMap::new();
    for message in gateway.list("/v1/messages", "messages") {
        for delivery in message["deliveries"].as_array().unwrap() {
            let key = (delivery["message"].as_str().unwrap().to_owned(), text(&delivery["destination"]));
            assert!(state.insert(key, text(&delivery["state"])).is_none(), "a delivery is there twice");
        }
    }
    for id in accepted {
        for destination in ["resend", "hold"] {
            let state = state.get(&(id.clone(), destination.to_owned())).map(String::as_str);
            // Three deaths of the adapter with the same delivery alone in its hands make it poison, rightly.
            assert!(matches!(state, Some("delivered" | "dead")), "{id} to {destination}: {state:?}");
        }
    }
    let mut begun: HashMap<String, usize> = HashMap::new();
    let log = gateway.audit_log();
    for leaf in &log {
        if leaf["event"] == "attempt" {
            *begun.entry(text(&leaf["delivery"])).or_default() += 1;
        }
    }
    for adapter in ["resend", "hold"] {
        let mut effects: HashMap<String, usize> = HashMap::new();
        for effect in gateway.effects(adapter) {
            *effects.entry(text(&effect["delivery"])).or_default() += 1;
        }
        for (delivery, times) in &effects {
            let begun = begun.get(delivery).copied().unwrap_or(0);
            assert!(*times <= begun, "{delivery} reached the partner {times} times with {begun} attempts");
            let story: Vec<&Value> =
                log.iter().filter(|leaf| leaf["delivery"] == delivery.as_str()).collect();
            assert!(
                adapter == "resend" || *times == 1,
                "`hold` was sent again without anybody's word: {story:#?}"
            );
        }
        let delivered = state.iter().filter(|((_, to), state)| to == adapter && *state == "delivered");
        assert!(
            effects.len() >= delivered.count(),
            "something is called delivered that never reached the partner"
        );
    }
    let unique: HashSet<&String> = accepted.iter().collect();
    assert_eq!(unique.len(), accepted.len(), "two messages have one id");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
