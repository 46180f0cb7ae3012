//! The judge is judged: hand-made histories, each with one defect, which must be found and counted in its own place.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

/// A small run in which everything goes well: two senders, a lane, a batch, a combined settle, a held doubt, a late settle.
fn good() -> History {
    let mut history = History {
        submissions: vec![
            Submission::one("a", "m1", Some("k"), &["lab", "desk"], accepted(&["m1"])),
            Submission::one("a", "m2", Some("k"), &["lab", "desk"], accepted(&["m2"])),
            Submission {
                sender: "b".into(),
                events: vec![Submitted::new("m3", None, &["lab"]), Submitted::new("m4", None, &["lab"])],
                answer: accepted(&["m3", "m4"]),
            },
            Submission::one("c", "m5", None, &["lab"], Answer::Refused),
            Submission::one("d", "m6", Some("k"), &["lab"], Answer::Unknown),
            Submission::one("p", "m7", None, &["desk"], accepted(&[])),
        ],
        log: vec![
            json!({ "event": "log_opened" }),
            accept("m1", &["lab", "desk"]),
            accept("m2", &["lab", "desk"]),
            accept("m3", &["lab"]),
            accept("m4", &["lab"]),
            accept("m7", &["desk"]),
            accept("e1", &["desk"]),
        ],
        held: ["m4-lab".to_owned()].into(),
        late: vec![LateSettle { delivery: "m1-lab".into(), status: "stale".into() }],
        combined: vec![Combined { adapter: "lab".into(), delivery: "m1-lab".into(), emitted: "e1".into() }],
        counts: [("lab".to_owned(), 1)].into(),
        health: vec![
            HealthSample { ready: true, stuck: Duration::from_secs(1) },
            HealthSample { ready: false, stuck: Duration::from_secs(600) },
        ],
        ..History::default()
    };
    for delivery in ["m1-lab", "m1-desk", "m2-lab", "m2-desk", "m3-lab", "m7-desk", "e1-desk"] {
        history.log.extend([attempt(delivery), settled(delivery, "delivered", "delivered")]);
    }
    history.log.extend([attempt("m4-lab"), settled("m4-lab", "in_doubt", "in_doubt")]);
    let lab = ["m1", "m2", "m3"].map(|message| effect("lab", message));
    let desk = ["m1", "m2", "m7", "e1"].map(|message| effect("desk", message));
    history.partners.insert("lab".into(), Partner::new(Order::Key, lab.into()));
    history.partners.insert("desk".into(), Partner::new(Order::Key, desk.into()));
    history
}

fn accepted(ids: &[&str]) -> Answer {
    Answer::Accepted(ids.iter().map(|id| (*id).to_owned()).collect())
}

fn accept(message: &str, to: &[&str]) -> Value {
    let deliveries: Vec<_> =
        to.iter().map(|to| json!({ "id": format!("{message}-{to}"), "to": to })).collect();
    json!({ "event": "accepted", "message": message, "deliveries": deliveries })
}

fn attempt(delivery: &str) -> Value {
    json!({ "event": "attempt", "delivery": delivery })
}

fn settled(delivery: &str, event: &str, state: &str) -> Value {
    json!({ "event": event, "delivery": delivery, "state": state })
}

fn effect(destination: &str, message: &str) -> Effect {
    Effect {
        delivery: Some(format!("{message}-{destination}")),
        message: Some(message.to_owned()),
        mark: Some(message.to_owned()),
    }
}

fn lab(history: &mut History) -> &mut Partner {
    history.partners.get_mut("lab").unwrap()
}

/// What is found after something has been done to the good run.
#[track_caller]
fn found(spoil: impl FnOnce(&mut History)) -> Vec<Kind> {
    let mut history = good();
    spoil(&mut history);
    check(&history).findings.into_iter().map(|finding| finding.kind).collect()
}

fn at(history: &History, event: &str, delivery: &str) -> usize {
    let is = |leaf: &Value| leaf["event"] == event && leaf["delivery"] == delivery;
    history.log.iter().position(is).unwrap()
}

#[test]
fn a_good_run_is_clean_and_counted() {
    let verdict = check(&good());
    verdict.expect_clean();
    assert_eq!((verdict.accepted, verdict.effects), (5, 7));
    assert_eq!(verdict.ended, [("delivered".to_owned(), 7), ("held".to_owned(), 1)].into());
}

#[test]
fn losses_are_found() {
    // Answered, and nowhere.
    let gone = |history: &mut History| {
        history.log.retain(|leaf| leaf["message"] != "m2");
        history.log.retain(|leaf| !leaf["delivery"].as_str().unwrap_or("").starts_with("m2"));
        for partner in history.partners.values_mut() {
            partner.effects.retain(|effect| effect.message.as_deref() != Some("m2"));
        }
    };
    assert_eq!(found(gone), [Kind::Lost]);
    // One of its destinations is missing.
    let half = |history: &mut History| {
        history.log[1]["deliveries"] = json!([{ "id": "m1-lab", "to": "lab" }]);
        history.log.retain(|leaf| leaf["delivery"] != "m1-desk");
        history.partners.get_mut("desk").unwrap().effects.remove(0);
    };
    assert_eq!(found(half), [Kind::Lost]);
    // It has not ended.
    let open = |history: &mut History| {
        let end = at(history, "delivered", "m3-lab");
        history.log.remove(end);
    };
    assert_eq!(found(open), [Kind::Lost]);
    // It is held, and listed nowhere.
    assert_eq!(found(|history| history.held.clear()), [Kind::Lost]);
    // It is called delivered, and the partner never saw it.
    assert_eq!(found(|history| drop(lab(history).effects.pop())), [Kind::Lost]);
    // Its sender was told so in a protocol that tells no ids.
    let untold = |history: &mut History| {
        history.log.retain(|leaf| leaf["message"] != "m7" && leaf["delivery"] != "m7-desk");
        history.partners.get_mut("desk").unwrap().effects.remove(2);
    };
    assert_eq!(found(untold), [Kind::Lost]);
}

#[test]
fn doubles_are_found_unless_the_log_explains_them() {
    // More often than it was begun.
    assert_eq!(found(|history| lab(history).effects.push(effect("lab", "m3"))), [Kind::Duplicated]);
    // Begun twice: explained, and counted.
    let mut history = good();
    lab(&mut history).effects.push(effect("lab", "m3"));
    history.log.push(attempt("m3-lab"));
    history.log.push(settled("m3-lab", "delivered", "delivered"));
    let verdict = check(&history);
    verdict.expect_clean();
    assert_eq!(verdict.doubled, [("begun again, same delivery id".to_owned(), 1)].into());
    // … but not where a person has to say so first.
    lab(&mut history).holds_doubt = true;
    assert_eq!(
        check(&history).findings.iter().map(|finding| finding.kind).collect::<Vec<_>>(),
        [Kind::Duplicated]
    );
    history.log.push(settled("m3-lab", "resolved", "waiting"));
    history.log.push(settled("m3-lab", "delivered", "delivered"));
    check(&history).expect_clean();
    // One event as two deliveries.
    let twin = |history: &mut History| {
        history.log.extend([
            accept("x", &["lab"]),
            attempt("x-lab"),
            settled("x-lab", "delivered", "delivered"),
        ]);
        lab(history).effects.push(Effect { mark: Some("m3".into()), ..effect("lab", "x") });
    };
    assert_eq!(found(twin), [Kind::Duplicated, Kind::Duplicated]);
    // Accepted twice, and nobody was told of the second. The first such is the one that its sender gave up.
    let unasked = |count: usize| {
        move |history: &mut History| {
            for n in 0..count {
                let (message, delivery) = (format!("x{n}"), format!("x{n}-other"));
                history.log.push(accept(&message, &["other"]));
                history.log.extend([attempt(&delivery), settled(&delivery, "delivered", "delivered")]);
            }
        }
    };
    assert_eq!(found(unasked(1)), []);
    assert_eq!(found(unasked(2)), [Kind::Duplicated]);
}

#[test]
fn disorder_is_found() {
    // At the partner.
    assert_eq!(found(|history| lab(history).effects.swap(0, 1)), [Kind::Reordered]);
    assert_eq!(found(|history| lab(history).effects.swap(1, 2)), [], "it has another lane");
    assert_eq!(
        found(|history| {
            lab(history).effects.swap(1, 2);
            lab(history).order = Order::Strict;
        }),
        [Kind::Reordered]
    );
    let unordered = |history: &mut History| {
        lab(history).effects.swap(0, 1);
        lab(history).order = Order::None;
    };
    assert_eq!(found(unordered), []);
    // In the log alone.
    let in_log = |history: &mut History| {
        let first = at(history, "delivered", "m1-lab");
        let late = history.log.remove(first);
        history.log.push(late);
    };
    assert_eq!(found(in_log), [Kind::Reordered]);
    // Replayed from the dead, it goes when it is due.
    let replayed = |history: &mut History| {
        lab(history).effects.swap(0, 1);
        let first = at(history, "delivered", "m1-lab");
        history.log.remove(first);
        history.log.extend([settled("m1-lab", "dead", "dead"), settled("m1-lab", "replayed", "waiting")]);
        history.log.extend([attempt("m1-lab"), settled("m1-lab", "delivered", "delivered")]);
    };
    assert_eq!(found(replayed), []);
    // A sender's own order, lanes or not.
    let sender = |history: &mut History| {
        history.log.swap(1, 2);
        history.submissions[0].events[0].lane = None;
        history.submissions[1].events[0].lane = None;
    };
    assert_eq!(found(sender), [Kind::Reordered]);
}

/// A run with one in lane `k`, one in lane `l`, a merge of both, and one more in each; in the order in which they go.
fn merged() -> History {
    let names = ["k1", "l1", "merge", "k2", "l2"];
    let mut history = History { log: vec![json!({ "event": "log_opened" })], ..History::default() };
    for name in names {
        let lane = if name.starts_with('l') { "l" } else { "k" };
        let barrier = (name == "merge").then_some("l");
        let events = vec![Submitted::new(name, Some(lane), &["lab"]).beside(barrier)];
        let (sender, answer) = (name.into(), accepted(&[name]));
        history.submissions.push(Submission { sender, events, answer });
        history.log.push(accept(name, &["lab"]));
    }
    // Those of one lane beside those of the other.
    let steps = [["k1", "l1"].as_slice(), &["merge"], &["k2", "l2"]];
    for step in steps {
        let ids = step.iter().map(|name| format!("{name}-lab"));
        history.log.extend(ids.clone().map(|id| attempt(&id)));
        history.log.extend(ids.map(|id| settled(&id, "delivered", "delivered")));
    }
    let effects = names.map(|name| effect("lab", name));
    history.partners.insert("lab".into(), Partner::new(Order::Key, effects.into()));
    history
}

#[test]
fn what_begins_beside_a_merge_is_found_in_either_of_its_lanes() {
    check(&merged()).expect_clean();
    let found = |spoil: &dyn Fn(&mut History)| {
        let mut history = merged();
        spoil(&mut history);
        let findings = check(&history).findings;
        assert!(findings.iter().all(|finding| finding.kind == Kind::Reordered), "{findings:?}");
        findings.len()
    };
    // At the partner.
    for (first, second, lanes) in [(0, 2, 1), (1, 2, 1), (2, 3, 1), (2, 4, 1), (0, 1, 0), (3, 4, 0)] {
        let swapped = found(&|history| lab(history).effects.swap(first, second));
        assert_eq!(swapped > 0, lanes > 0, "{first} and {second}");
    }
    // All arrive in order, but one had begun too early.
    let early = |name: &str, before: (&str, &str)| {
        found(&|history| {
            let begun = at(history, "attempt", &format!("{name}-lab"));
            let begun = history.log.remove(begun);
            let to = at(history, before.0, before.1);
            history.log.insert(to, begun);
        })
    };
    for end in ["k1-lab", "l1-lab"] {
        assert!(early("merge", ("delivered", end)) > 0, "before {end}");
    }
    for behind in ["k2", "l2"] {
        assert!(early(behind, ("delivered", "merge-lab")) > 0, "{behind}");
    }
    assert_eq!(early("k2", ("attempt", "l2-lab")), 0);
    // The merge is held, and what is behind it has gone.
    let open = |history: &mut History| {
        let end = at(history, "delivered", "merge-lab");
        history.log[end] = settled("merge-lab", "in_doubt", "in_doubt");
        history.held.insert("merge-lab".into());
    };
    assert_eq!(found(&open), 2, "in both lanes");
    // Where keys make no lanes.
    let unordered = |history: &mut History| {
        open(history);
        lab(history).order = Order::None;
    };
    assert_eq!(found(&unordered), 0);
}

#[test]
fn what_nobody_sent_or_was_refused_is_found() {
    assert_eq!(
        found(|history| lab(history).effects.push(Effect { mark: Some("?".into()), ..Effect::default() })),
        [Kind::Phantom]
    );
    let refused = |history: &mut History| {
        history.log.extend([
            accept("x", &["lab"]),
            attempt("x-lab"),
            settled("x-lab", "delivered", "delivered"),
        ]);
        lab(history).effects.push(Effect { mark: Some("m5".into()), ..effect("lab", "x") });
    };
    assert_eq!(found(refused), [Kind::Phantom]);
    let elsewhere = |history: &mut History| history.submissions[0].events[0].to = vec!["lab".into()];
    assert_eq!(found(elsewhere), [Kind::Phantom]);
}

#[test]
fn torn_batches_are_found() {
    // Answered, and half of it is missing.
    let torn = |history: &mut History| {
        history.log.retain(|leaf| leaf["message"] != "m3" && leaf["delivery"] != "m3-lab");
        lab(history).effects.retain(|effect| effect.message.as_deref() != Some("m3"));
    };
    assert_eq!(found(torn), [Kind::TornBatch]);
    // Its sender gave up, and half of it arrived.
    let unanswered = |history: &mut History| {
        history.submissions[2].answer = Answer::Unknown;
        let alone = history.log.remove(4);
        history.log.retain(|leaf| leaf["delivery"] != "m4-lab");
        assert_eq!(alone["message"], "m4");
    };
    assert_eq!(found(unanswered), [Kind::TornBatch]);
    // Its sender gave up, and it is there as a whole, or not at all.
    assert_eq!(found(|history| history.submissions[2].answer = Answer::Unknown), []);
    let absent = |history: &mut History| {
        history.submissions[2].answer = Answer::Unknown;
        let batch = ["m3", "m4"];
        history.log.retain(|leaf| {
            !batch.iter().any(|id| leaf["message"] == *id || leaf["delivery"] == format!("{id}-lab"))
        });
        lab(history).effects.pop();
    };
    assert_eq!(found(absent), []);
}

#[test]
fn torn_settles_are_found() {
    // Delivered, and what it emitted is not there.
    let no_emit = |history: &mut History| {
        history.log.retain(|leaf| leaf["message"] != "e1" && leaf["delivery"] != "e1-desk");
        history.partners.get_mut("desk").unwrap().effects.pop();
    };
    assert_eq!(found(no_emit), [Kind::TornSettle]);
    // … and the state does not count it.
    assert_eq!(found(|history| *history.counts.get_mut("lab").unwrap() = 0), [Kind::TornSettle]);
    // What it emitted is there, and it is not delivered.
    let no_outcome = |history: &mut History| {
        let end = at(history, "delivered", "m1-lab");
        history.log[end] = settled("m1-lab", "dead", "dead");
        history.counts.insert("lab".into(), 0);
    };
    assert_eq!(found(no_outcome), [Kind::TornSettle]);
}

#[test]
fn stale_settles_that_changed_something_are_found() {
    assert_eq!(found(|history| history.late[0].status = "ok".into()), [Kind::StaleSettle]);
    let rejected = |history: &mut History| {
        let end = at(history, "delivered", "m3-lab");
        history.log[end] =
            json!({ "event": "dead", "delivery": "m3-lab", "state": "dead", "code": "rejected" });
    };
    assert_eq!(found(rejected), [Kind::StaleSettle]);
    let rightly = |history: &mut History| {
        rejected(history);
        history.rejected.insert("m3-lab".into());
    };
    assert_eq!(found(rightly), []);
}

#[test]
fn a_log_that_is_incomplete_is_found() {
    assert_eq!(found(|history| history.log_faults.push("12: an entry was changed".into())), [Kind::Log]);
    // Arrived without an attempt: once for the arrival, once for the outcome.
    let unbegun = |history: &mut History| {
        let begun = at(history, "attempt", "m3-lab");
        history.log.remove(begun);
    };
    assert_eq!(found(unbegun), [Kind::Log, Kind::Log]);
    // Answered and arrived, and the log knows nothing.
    let unknown = |history: &mut History| {
        history.log.retain(|leaf| leaf["message"] != "m2");
        history.log.retain(|leaf| !leaf["delivery"].as_str().unwrap_or("").starts_with("m2"));
        history.partners.get_mut("desk").unwrap().effects.remove(1);
    };
    assert_eq!(found(unknown), [Kind::Log, Kind::Log]);
}

#[test]
fn false_health_is_found() {
    let stuck = HealthSample { ready: true, stuck: Duration::from_secs(600) };
    assert_eq!(found(|history| history.health.push(stuck)), [Kind::FalseHealth]);
}

#[test]
fn a_verdict_says_each_count_and_adds_up() {
    let mut history = good();
    lab(&mut history).effects.swap(0, 1);
    let (mut verdict, good) = (check(&history), check(&good()));
    assert!(verdict.to_string().contains("reordered = 1"), "{verdict}");
    assert_eq!(verdict.to_json()["counts"]["reordered"], 1);
    verdict.add(good);
    assert_eq!((verdict.accepted, verdict.count(Kind::Reordered)), (10, 1));
}
