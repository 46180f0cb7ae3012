//! Senders and readers who keep books, for the judge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use gatepost_tests::http::Client;
use gatepost_tests::lab::{Answer, Effect, LateSettle, Submission, Submitted};
use gatepost_tests::{Port, settle_item};
use serde_json::{Value, json};

use super::hl7;

const LANES_PER_SENDER: usize = 5;
/// One call in so many is a batch.
const BATCH_EVERY: usize = 4;
const BATCH_EVENTS: usize = 3;
/// One call in so many has an event so large that it is written in pieces.
const LARGE_EVERY: usize = 5;
const LARGE_BYTES: usize = 300_000;
/// One event in so many makes the adapter emit a reply.
const EMIT_EVERY: usize = 3;
/// One event in so many is a merge: it stands in a second lane too.
const MERGE_EVERY: usize = 4;
/// A reader leaves one in so many of its leases lying until they have run out.
const LEFT_LYING: usize = 12;
/// After a call that had no answer; without it the senders would take the processor from the gateway that starts.
const PAUSE: Duration = Duration::from_millis(20);

/// How far the senders may go, and how far they are.
#[derive(Default)]
struct Progress {
    answered: usize,
    allowed: usize,
    over: bool,
}

#[derive(Clone, Default)]
struct Reins(Arc<(Mutex<Progress>, Condvar)>);

impl Reins {
    /// Waits for leave to go on; `false` at the end.
    fn may_go_on(&self) -> bool {
        let (progress, changed) = &*self.0;
        let waits = |now: &mut Progress| !now.over && now.answered >= now.allowed;
        !changed.wait_while(progress.lock().unwrap(), waits).unwrap().over
    }

    fn answered(&self) {
        let (progress, changed) = &*self.0;
        progress.lock().unwrap().answered += 1;
        changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.0.0.lock().unwrap().over
    }
}

/// Who hands something in, one call after the other; each is repeated until it is answered, as every sender has to.
pub(super) struct Senders {
    reins: Reins,
    threads: Vec<JoinHandle<Vec<Submission>>>,
}

impl Senders {
    /// `apps` of them send orders, one sends HL7 as an app, and one is a partner who sends HL7 to this port.
    pub(super) fn start(app: &Client, apps: usize, hl7: &Port) -> Self {
        let reins = Reins::default();
        let mut threads = Vec::new();
        for number in 0..apps {
            let (app, reins) = (app.clone(), reins.clone());
            threads.push(thread::spawn(move || orders(number, &app, &reins)));
        }
        let (app, reports) = (app.clone(), reins.clone());
        threads.push(thread::spawn(move || reports_out(&app, &reports)));
        let (hl7, partner) = (hl7.clone(), reins.clone());
        threads.push(thread::spawn(move || reports_in(hl7, &partner)));
        Self { reins, threads }
    }

    /// Lets them make so many more calls, and waits for so many answers.
    pub(super) fn more(&self, allowed: usize, awaited: usize) {
        let (progress, changed) = &*self.reins.0;
        let mut now = progress.lock().unwrap();
        let goal = now.answered + awaited;
        now.allowed = now.answered + allowed;
        changed.notify_all();
        let waits = |now: &mut Progress| now.answered < goal;
        let (now, _) = changed.wait_timeout_while(now, super::PATIENCE, waits).unwrap();
        assert!(now.answered >= goal, "the senders make no progress");
    }

    pub(super) fn finish(self) -> Vec<Submission> {
        let (progress, changed) = &*self.reins.0;
        progress.lock().unwrap().over = true;
        changed.notify_all();
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

/// Sends until there is an answer; `None` if the end comes before it.
fn until_answered(reins: &Reins, mut call: impl FnMut() -> Option<Answer>) -> Answer {
    loop {
        if let Some(answer) = call() {
            reins.answered();
            return answer;
        }
        if reins.is_over() {
            return Answer::Unknown;
        }
        thread::sleep(PAUSE);
    }
}

fn post(app: &Client, media_type: &str, body: &Value) -> Option<Answer> {
    let header = format!("content-type: {media_type}");
    let answer = app.send("POST", "/v1/messages", &[&header], body.to_string().as_bytes()).ok()?;
    match answer.status {
        202 => Some(Answer::accepted(&answer.json())),
        500.. => None,
        _ => panic!("{}", answer.text()),
    }
}

fn orders(sender: usize, app: &Client, reins: &Reins) -> Vec<Submission> {
    const TO: [&str; 3] = ["resend", "hold", "desk"];
    let mut book = Vec::new();
    let mut calls = 0;
    while reins.may_go_on() {
        calls += 1;
        let count = if calls % BATCH_EVERY == 0 { BATCH_EVENTS } else { 1 };
        let (mut submitted, mut events) = (Vec::new(), Vec::new());
        for at in 0..count {
            let n = calls + at;
            let mark = format!("order-{sender}-{calls}-{at}");
            // Some lanes are everybody's.
            let lane =
                if n % 3 == 0 { "shared".to_owned() } else { format!("k{sender}-{}", n % LANES_PER_SENDER) };
            // With the next lane of its own, or with everybody's.
            let beside = match n % (2 * MERGE_EVERY) {
                1 => Some(format!("k{sender}-{}", (n + 1) % LANES_PER_SENDER)),
                5 => Some("shared".to_owned()),
                _ => None,
            };
            let what = if n % EMIT_EVERY == 0 { "emit" } else { "" };
            let large = at == 0 && calls % LARGE_EVERY == 0;
            let fill = "x".repeat(if large { LARGE_BYTES } else { 0 });
            let data = json!({ "mark": mark, "do": what, "fill": fill });
            let mut event = crate::order_event(&mark, &lane, &data);
            if let Some(beside) = &beside {
                event["barrierkey"] = json!(beside);
            }
            events.push(event);
            submitted.push(Submitted::new(&mark, Some(&lane), &TO).beside(beside.as_deref()));
        }
        let answer = until_answered(reins, || match events.as_slice() {
            [event] => post(app, "application/cloudevents+json", event),
            _ => post(app, "application/cloudevents-batch+json", &Value::from(events.clone())),
        });
        book.push(Submission { sender: format!("orders-{sender}"), events: submitted, answer });
    }
    book
}

fn reports_out(app: &Client, reins: &Reins) -> Vec<Submission> {
    let mut book = Vec::new();
    for n in 0.. {
        if !reins.may_go_on() {
            break;
        }
        let (mark, lane) = (format!("OUT{n}"), format!("p{}", n % LANES_PER_SENDER));
        let mut event = crate::order_event(&mark, &lane, &json!(hl7::message(&mark, &lane)));
        event["type"] = "org.hl7.v2.ORU_R01".into();
        event["datacontenttype"] = "text/plain".into();
        let beside = (n % MERGE_EVERY == 3).then(|| format!("p{}", (n + 2) % LANES_PER_SENDER));
        if let Some(beside) = &beside {
            event["barrierkey"] = json!(beside);
        }
        let answer = until_answered(reins, || post(app, "application/cloudevents+json", &event));
        let events = vec![Submitted::new(&mark, Some(&lane), &["hl7"]).beside(beside.as_deref())];
        book.push(Submission { sender: "reports".into(), events, answer });
    }
    book
}

fn reports_in(port: Port, reins: &Reins) -> Vec<Submission> {
    let mut book = Vec::new();
    let mut line = hl7::Line::new(port);
    for n in 0.. {
        if !reins.may_go_on() {
            break;
        }
        let (mark, lane) = (format!("IN{n}"), format!("q{}", n % LANES_PER_SENDER));
        let answer = until_answered(reins, || {
            line.send(&hl7::message(&mark, &lane), &mark).then(|| Answer::Accepted(Vec::new()))
        });
        book.push(Submission::one("partner", &mark, Some(&lane), &["desk"], answer));
    }
    book
}

/// An app that reads an inbox. Whatever it has settled, and whatever it left lying until somebody else could have it, it
/// settles once more with the token whose time is over; such a settle says `reject`, which it never says otherwise.
pub(super) struct Reader {
    stop: Arc<AtomicBool>,
    hurry: Arc<AtomicBool>,
    thread: JoinHandle<Read>,
}

#[derive(Default)]
pub(super) struct Read {
    pub(super) effects: Vec<Effect>,
    pub(super) late: Vec<LateSettle>,
}

impl Reader {
    pub(super) fn start(app: Client, inbox: &'static str) -> Self {
        let (stop, hurry) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stopped, hurried) = (Arc::clone(&stop), Arc::clone(&hurry));
        let thread = thread::spawn(move || Self::read(&app, inbox, &stopped, &hurried));
        Self { stop, hurry, thread }
    }

    /// From now on it leaves nothing lying: a lane waits for each of these until its lease has run out.
    pub(super) fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    fn read(app: &Client, inbox: &str, stopped: &AtomicBool, hurried: &AtomicBool) -> Read {
        let mut left_lying: std::collections::HashMap<String, Value> = std::collections::HashMap::new();
        let (mut seen, mut read) = (0_usize, Read::default());
        let path = format!("/v1/queues/{inbox}/lease");
        while !stopped.load(Ordering::Relaxed) {
            let request = json!({ "max": 8, "lease_ms": 500, "wait_ms": 300 });
            let answer = match app.try_post(&path, &request) {
                Ok(answer) if answer.status == 200 => answer.json(),
                _ => {
                    thread::sleep(PAUSE);
                    continue;
                }
            };
            for leased in answer["deliveries"].as_array().into_iter().flatten() {
                seen += 1;
                let id = text(&leased["id"]);
                if let Some(old) = left_lying.remove(&id) {
                    read.settle_late(app, &old);
                } else if seen.is_multiple_of(LEFT_LYING) && !hurried.load(Ordering::Relaxed) {
                    left_lying.insert(id, leased.clone());
                    continue;
                }
                read.effects.push(Effect {
                    delivery: Some(id),
                    message: Some(text(&leased["event"]["gatepostid"])),
                    mark: mark(&leased["event"]),
                });
                // `stale` if it ran out while the gateway was away; somebody else has it then.
                settle(app, leased, "delivered", stopped);
                read.settle_late(app, leased);
            }
        }
        read
    }

    pub(super) fn finish(self) -> Read {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

impl Read {
    fn settle_late(&mut self, app: &Client, leased: &Value) {
        let status = settle(app, leased, "reject", &AtomicBool::new(false));
        self.late.push(LateSettle { delivery: text(&leased["id"]), status });
    }
}

/// Repeated until it is answered.
fn settle(app: &Client, leased: &Value, outcome: &str, stopped: &AtomicBool) -> String {
    loop {
        match app.try_post("/v1/settle", &json!({ "results": [settle_item(leased, outcome)] })) {
            Ok(answer) if answer.status == 200 => return text(&answer.json()["results"][0]["status"]),
            Ok(answer) => assert!(answer.status >= 500, "{}", answer.text()),
            Err(_) if stopped.load(Ordering::Relaxed) => return "unanswered".to_owned(),
            Err(_) => {}
        }
        thread::sleep(PAUSE);
    }
}

/// In an order and a reply it is a member, in an HL7 message its control id.
fn mark(event: &Value) -> Option<String> {
    let hl7 = event["data_base64"].as_str().and_then(|data| BASE64_STANDARD.decode(data).ok());
    match hl7 {
        Some(message) => hl7::control_id(&message),
        None => event["data"]["mark"].as_str().map(str::to_owned),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
