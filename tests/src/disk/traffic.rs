//! Senders and a reader who go on whatever becomes of the gateway, and remember what it has answered them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::settle_item;
use crate::http::{Answer, Client};

const SENDERS: usize = 3;
const LANES_PER_SENDER: usize = 5;
/// One in so many requests is a batch.
const BATCHES: usize = 4;
const BATCH_EVENTS: usize = 5;
/// The reader takes the head of every lane, and settles them in so large parts that it keeps up with the senders: a delivery that is
/// left for a minute makes the gateway say, rightly, that it is not ready.
const LEASED_MAX: usize = SENDERS * LANES_PER_SENDER;
const SETTLED_MAX: usize = 12;
/// Pause before a request is repeated that had no answer, so that they do not keep the gateway from starting.
const PAUSE: Duration = Duration::from_millis(5);

/// What the gateway has answered, and so promised.
#[derive(Debug, Default)]
pub struct Promises {
    /// Message id → the event's id at its sender, in the order of the answers.
    pub accepted: Vec<(String, String)>,
    /// Deliveries of the inbox of which it said that they are settled.
    pub settled: Vec<String>,
    /// Refusals by status and code.
    pub refused: HashMap<(u16, String), usize>,
    /// What must not be.
    pub wrong: Vec<String>,
    /// The newest checkpoint that it showed.
    pub checkpoint: Option<String>,
    ids: HashMap<String, String>,
    settled_once: HashSet<String>,
}

#[derive(Debug)]
pub struct Traffic {
    promises: Arc<Mutex<Promises>>,
    course: Arc<Course>,
    threads: Vec<JoinHandle<()>>,
}

/// Whether it goes on.
#[derive(Debug, Default)]
struct Course {
    over: AtomicBool,
    paused: AtomicBool,
    /// Nothing new is sent.
    drains: AtomicBool,
}

impl Course {
    /// `false` when it is over.
    fn goes_on(&self) -> bool {
        while self.paused.load(Ordering::Relaxed) && !self.over.load(Ordering::Relaxed) {
            thread::sleep(PAUSE);
        }
        !self.over.load(Ordering::Relaxed)
    }
}

impl Traffic {
    /// `app` sends `orders.new` and reads the inbox `desk`; `auditor` may see the audit log. Payloads have about `bytes`.
    pub fn start(app: &Client, auditor: &Client, bytes: usize) -> Self {
        let promises = Arc::new(Mutex::new(Promises::default()));
        let course = Arc::new(Course::default());
        let mut threads = Vec::new();
        for sender in 0..SENDERS {
            let (app, promises, course) = (app.clone(), Arc::clone(&promises), Arc::clone(&course));
            threads.push(thread::spawn(move || send(sender, &app, bytes, &promises, &course)));
        }
        let (app, auditor) = (app.clone(), auditor.clone());
        let (kept, ending) = (Arc::clone(&promises), Arc::clone(&course));
        threads.push(thread::spawn(move || read(&app, &auditor, &kept, &ending)));
        Self { promises, course, threads }
    }

    pub fn promises(&self) -> MutexGuard<'_, Promises> {
        locked(&self.promises)
    }

    /// No further requests, until it goes on.
    pub fn pause(&self) {
        self.course.paused.store(true, Ordering::Relaxed);
    }

    pub fn go_on(&self) {
        self.course.paused.store(false, Ordering::Relaxed);
    }

    /// Nothing new is sent; what is there is read on.
    pub fn drain(&self) {
        self.course.drains.store(true, Ordering::Relaxed);
        self.go_on();
    }

    /// Ends it, with the gateway there or not.
    #[must_use]
    pub fn finish(mut self) -> Promises {
        self.end();
        std::mem::take(&mut locked(&self.promises))
    }

    fn end(&mut self) {
        self.course.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("senders and readers end well");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.course.over.store(true, Ordering::Relaxed);
    }
}

fn locked(promises: &Mutex<Promises>) -> MutexGuard<'_, Promises> {
    promises.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Repeats a request until it is answered well; `None` when it is over first.
fn insist(
    promises: &Mutex<Promises>,
    course: &Course,
    well: u16,
    mut request: impl FnMut() -> std::io::Result<Answer>,
) -> Option<Value> {
    while course.goes_on() {
        match request() {
            Ok(answer) if answer.status == well => return Some(answer.json()),
            Ok(answer) => {
                let code = answer.json()["code"].as_str().unwrap_or_default().to_owned();
                if answer.status < 500 {
                    locked(promises).wrong.push(answer.text());
                }
                *locked(promises).refused.entry((answer.status, code)).or_default() += 1;
            }
            Err(_) => {}
        }
        thread::sleep(PAUSE);
    }
    None
}

fn send(sender: usize, app: &Client, bytes: usize, promises: &Mutex<Promises>, course: &Course) {
    let mut next = 0..;
    let mut event = || {
        let n = next.next().expect("numbers do not end");
        json!({
            "specversion": "1.0", "id": format!("{sender}-{n}"), "source": "/shop", "type": "orders.new",
            "partitionkey": format!("k{sender}-{}", n % LANES_PER_SENDER), "data": format!("{n:0bytes$}"),
        })
    };
    for turn in 0.. {
        if course.drains.load(Ordering::Relaxed) {
            return;
        }
        let count = if turn % BATCHES == 0 { BATCH_EVENTS } else { 1 };
        let events: Vec<Value> = (0..count).map(|_| event()).collect();
        let request = || if count == 1 { app.try_event(&events[0]) } else { app.try_batch(&events) };
        let Some(answer) = insist(promises, course, 202, request) else { return };
        let messages = answer["messages"].as_array().expect("messages");
        let mut promises = locked(promises);
        if messages.len() != count {
            promises.wrong.push(format!("a batch of {count} was answered {answer}"));
        }
        for (event, message) in events.iter().zip(messages) {
            let (id, event) = (text(&message["id"]), text(&event["id"]));
            if let Some(twin) = promises.ids.insert(id.clone(), event.clone()) {
                promises.wrong.push(format!("{twin} and {event} are both {id}"));
            }
            promises.accepted.push((id, event));
        }
    }
}

fn read(app: &Client, auditor: &Client, promises: &Mutex<Promises>, course: &Course) {
    while course.goes_on() {
        let request = json!({ "max": LEASED_MAX, "lease_ms": 2000, "wait_ms": 100 });
        let lease = || app.try_post("/v1/queues/desk/lease", &request);
        let Some(answer) = insist(promises, course, 200, lease) else { return };
        let leased = answer["deliveries"].as_array().expect("deliveries");
        for id in leased.iter().map(|leased| text(&leased["id"])) {
            if locked(promises).settled_once.contains(&id) {
                locked(promises).wrong.push(format!("{id} was settled and is leased again"));
            }
        }
        for part in leased.chunks(SETTLED_MAX) {
            let results: Vec<Value> = part.iter().map(|leased| settle_item(leased, "delivered")).collect();
            let body = json!({ "results": results });
            let settle = || app.try_post("/v1/settle", &body);
            let Some(answer) = insist(promises, course, 200, settle) else { return };
            for (position, leased) in part.iter().enumerate() {
                // `stale` if it ran out while the gateway was away.
                if answer["results"][position]["status"] == "ok" {
                    let (id, mut promises) = (text(&leased["id"]), locked(promises));
                    promises.settled_once.insert(id.clone());
                    promises.settled.push(id);
                }
            }
        }
        if let Ok(answer) = auditor.send("GET", "/v1/audit/checkpoint", &[], b"")
            && answer.status == 200
        {
            locked(promises).checkpoint = Some(answer.text());
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
