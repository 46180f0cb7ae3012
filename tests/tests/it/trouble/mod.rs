//! Trouble from outside: programs that stand still, clocks that jump, partners that misbehave or vanish, destinations that are
//! dead, configurations that change all the time. Every run ends before the judge.

mod clocks;
mod dead;
mod half_open;
mod moved;
mod partners;
mod reload;
mod stopped;
mod weather;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gatepost_tests::http::Client;
use gatepost_tests::lab::{self, Answer, History, Order, Report, Submission, Verdict};
use gatepost_tests::{Dice, Gateway, until};
use serde_json::{Value, json};

use crate::order_event;

/// Pause of a sender between two messages, so that a busy machine is not flooded.
const PACE: Duration = Duration::from_millis(10);
const LANES_PER_SENDER: usize = 5;

/// Senders at work: each hands in one event after the other, and repeats one until it is answered.
struct Traffic {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<Submission>>>,
}

impl Traffic {
    /// `to` is every destination that all routes lead to; empty where that changes.
    fn start(app: &Client, senders: usize, to: &'static [&'static str]) -> Self {
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..senders).map(|sender| {
            let (app, stop, accepted) = (app.clone(), Arc::clone(&stop), Arc::clone(&accepted));
            thread::spawn(move || {
                let mut submissions = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let n = submissions.len();
                    let (mark, lane) =
                        (format!("{sender}-{n}"), format!("{sender}-lane-{}", n % LANES_PER_SENDER));
                    submissions.push(hand_in(
                        &app,
                        &format!("sender-{sender}"),
                        &mark,
                        &lane,
                        &json!({}),
                        to,
                    ));
                    accepted.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PACE);
                }
                submissions
            })
        });
        Self { threads: threads.collect(), stop, accepted }
    }

    /// Waits until so many more have been accepted.
    fn go_on(&self, more: usize) {
        let goal = self.accepted.load(Ordering::Relaxed) + more;
        until("the senders make progress", || {
            assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a sender was refused");
            (self.accepted.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    fn finish(self) -> Vec<Submission> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().expect("a sender was refused")).collect()
    }
}

/// Hands one event in until it is accepted. Its payload is `data` and its mark.
fn hand_in(app: &Client, sender: &str, mark: &str, lane: &str, data: &Value, to: &[&str]) -> Submission {
    let mut data = data.clone();
    data["mark"] = mark.into();
    let event = order_event(mark, lane, &data);
    loop {
        match app.try_event(&event) {
            Ok(answer) if answer.status == 202 => {
                return Submission::one(sender, mark, Some(lane), to, Answer::accepted(&answer.json()));
            }
            Ok(answer) => assert!(answer.status >= 500, "{}", answer.text()),
            Err(_) => thread::yield_now(),
        }
    }
}

/// The first message of what was handed in.
fn message_of(submission: &Submission) -> &str {
    match &submission.answer {
        Answer::Accepted(ids) => &ids[0],
        other => panic!("it was not accepted: {other:?}"),
    }
}

/// What the judge says, where all partners are `gatepost-echo`.
fn judged(gateway: &Gateway, submissions: Vec<Submission>, partners: &[(&str, Order)]) -> Verdict {
    let mut history = History { submissions, ..History::default() };
    for (name, order) in partners {
        history.echo(gateway, name, *order);
    }
    history.close(gateway);
    lab::check(&history)
}

/// The steps of a delivery, as the log has them.
fn story(gateway: &Gateway, delivery: &Value) -> Vec<String> {
    let log = gateway.audit_log();
    let of_it = log.iter().filter(|leaf| leaf["delivery"] == delivery["id"]);
    of_it.map(|leaf| leaf["event"].as_str().unwrap().to_owned()).collect()
}

/// The long form: bad weather, storms of reloads and moves, in turns.
pub(crate) fn trouble(budget: Duration, report: &mut Report) {
    for turn in 0.. {
        if !report.has_time(budget) {
            break;
        }
        let seed = Dice::fresh_seed();
        let (what, done) = match turn % 3 {
            0 => ("weather", weather::weather(60, seed)),
            1 => ("reloads", Some(reload::storm(100, seed))),
            _ => ("moves to and fro", Some(moved::to_and_fro(5, seed))),
        };
        let Some((verdict, kills)) = done else {
            report.note(format!("{what} skipped: needs a C compiler"));
            continue;
        };
        if !verdict.is_clean() {
            report.fail(format!("{what}, seed {seed}"));
        }
        report.rounds += 1;
        report.kills += kills;
        report.judge(verdict);
    }
}
