//! A backlog that is moved to another destination, the gateway killed in the middle.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use gatepost_tests::lab::{Answer, Order, Submission, Verdict};
use gatepost_tests::{Dice, Gateway, note, program, until};
use serde_json::{Value, json};

use super::reload::{QUICK, configure, one_lab};
use super::{hand_in, judged, message_of, story};
use crate::order_event;

#[test]
fn the_backlog_of_a_renamed_adapter_is_moved_in_order_though_the_gateway_is_killed_in_the_middle() {
    const BACKLOG: usize = 1500;
    const LANES: usize = 5;
    let mut gateway = one_lab().start();
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let app = gateway.app();
    let lane = |n: usize| format!("k{}", n % LANES);
    let mut submissions = vec![
        hand_in(&app, "shop", "doubtful", "d", &json!({ "do": "in_doubt" }), &["lab-old"]),
        hand_in(&app, "shop", "behind", "d", &json!({}), &["lab-old"]),
    ];
    let doubtful = gateway.until_state(message_of(&submissions[0]), "in_doubt");
    gateway.admin().post("/v1/queues/lab-old/pause", &json!({})).expect(200);
    for first in (0..BACKLOG).step_by(500) {
        let marks: Vec<usize> = (first..first + 500).collect();
        let events: Vec<Value> = marks
            .iter()
            .map(|n| order_event(&format!("b{n}"), &lane(*n), &json!({ "mark": format!("b{n}") })))
            .collect();
        let answer = app.try_batch(&events).unwrap().expect(202);
        for (n, message) in marks.iter().zip(answer["messages"].as_array().unwrap()) {
            let answer = Answer::Accepted(vec![message["id"].as_str().unwrap().to_owned()]);
            submissions.push(Submission::one(
                "batch",
                &format!("b{n}"),
                Some(&lane(*n)),
                &["lab-old"],
                answer,
            ));
        }
    }
    // The adapter has another name from now on, and gets new messages in the same lanes.
    for kind in ["effects", "tokens", "counts"] {
        // Its sandbox lets it write to files that are there.
        std::fs::write(gateway.path(&format!("lab-new.{kind}")), "").unwrap();
    }
    configure(&gateway, &text.replace("lab-old", "lab-new"));
    gateway.cli_ok(&["reload"]);
    gateway.admin().post("/v1/queues/lab-new/pause", &json!({})).expect(200);
    for n in 0..20 {
        submissions.push(hand_in(&app, "shop", &format!("n{n}"), &lane(n), &json!({}), &["lab-new"]));
    }
    let mut moving = Command::new(program("gatepost"))
        .arg("--config")
        .arg(gateway.config())
        .args(["queue", "move", "lab-old", "--to", "lab-new", "--reason", "it is called so now"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("the move is on its way", || (gateway.unsettled("lab-new") > 20).then_some(()));
    gateway.kill();
    moving.wait().unwrap();
    gateway.restart();
    let (old, new) = (gateway.unsettled("lab-old"), gateway.unsettled("lab-new"));
    assert_eq!(old + new, (BACKLOG + 20 + 2) as u64, "everything is in one place or the other");
    note(&format!("killed when {} of {BACKLOG} were moved", new - 20));

    let again = ["--json", "queue", "move", "lab-old", "--to", "lab-new", "--reason", "it is called so now"];
    let moved: Value = serde_json::from_str(&gateway.cli_ok(&again)).unwrap();
    assert_eq!(moved["waiting"], BACKLOG as u64 - (new - 20));
    assert_eq!((&moved["left"]["held"], &moved["left"]["waiting"]), (&json!(1), &json!(1)), "{moved}");
    assert_eq!(moved["in_doubt"][0]["id"], doubtful["id"], "what was left behind is said");
    let path = format!("/v1/deliveries/{}/resolve", doubtful["id"].as_str().unwrap());
    gateway.admin().post(&path, &json!({ "as": "delivered", "reason": "asked" })).expect(200);
    let moved: Value = serde_json::from_str(&gateway.cli_ok(&again)).unwrap();
    assert_eq!((&moved["waiting"], &moved["left"]["waiting"]), (&json!(1), &json!(0)));
    assert_eq!(story(&gateway, &gateway.delivery(message_of(&submissions[1]))), ["moved"]);

    gateway.admin().post("/v1/queues/lab-new/resume", &json!({})).expect(200);
    gateway.until_settled("lab-new");
    let log = gateway.audit_log();
    let moved: BTreeSet<&str> = log
        .iter()
        .filter(|leaf| leaf["event"] == "moved")
        .map(|leaf| leaf["delivery"].as_str().unwrap())
        .collect();
    assert_eq!(moved.len(), BACKLOG + 1, "each was moved, and no other");
    judged(&gateway, submissions, &[("lab-old", Order::Key), ("lab-new", Order::Key)]).expect_clean();
}

/// A backlog that goes from one destination to another and back, the gateway killed in the middle of each move but the last; with
/// the number of kills.
pub(crate) fn to_and_fro(turns: usize, seed: u64) -> (Verdict, u64) {
    const BACKLOG: usize = 1000;
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("lab-a", QUICK, "")
        .echo("lab-b", QUICK, "")
        .route("shop", &["lab-a"])
        .start();
    let mut dice = Dice::new(seed);
    for name in ["lab-a", "lab-b"] {
        gateway.admin().post(&format!("/v1/queues/{name}/pause"), &json!({})).expect(200);
    }
    let events: Vec<Value> = (0..BACKLOG)
        .map(|n| order_event(&format!("t{n}"), &format!("k{}", n % 7), &json!({ "mark": format!("t{n}") })))
        .collect();
    let answer = gateway.app().try_batch(&events).unwrap().expect(202);
    let submissions = answer["messages"].as_array().unwrap().iter().enumerate().map(|(n, message)| {
        let answer = Answer::Accepted(vec![message["id"].as_str().unwrap().to_owned()]);
        Submission::one("batch", &format!("t{n}"), Some(&format!("k{}", n % 7)), &["lab-a"], answer)
    });
    let submissions: Vec<Submission> = submissions.collect();
    for turn in 0..turns {
        let (from, to) = if turn % 2 == 0 { ("lab-a", "lab-b") } else { ("lab-b", "lab-a") };
        let before = gateway.unsettled(to);
        let mut moving = Command::new(program("gatepost"))
            .arg("--config")
            .arg(gateway.config())
            .args(["queue", "move", from, "--to", to, "--reason", "to and fro"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let goal = before + dice.below(BACKLOG / 2) as u64;
        until("the move is on its way, or over", || {
            let over = moving.try_wait().unwrap().is_some();
            (over || gateway.unsettled(to) > goal).then_some(())
        });
        gateway.kill();
        moving.wait().unwrap();
        gateway.restart();
        assert_eq!(gateway.unsettled("lab-a") + gateway.unsettled("lab-b"), BACKLOG as u64, "seed {seed}");
    }
    gateway.cli_ok(&["queue", "move", "lab-a", "--to", "lab-b", "--reason", "at last"]);
    gateway.admin().post("/v1/queues/lab-b/resume", &json!({})).expect(200);
    gateway.until_settled("lab-b");
    (judged(&gateway, submissions, &[("lab-b", Order::Key)]), turns as u64)
}

#[test]
fn a_backlog_that_is_moved_to_and_fro_under_kills_arrives_once_and_in_order() {
    let seed = Dice::fresh_seed();
    note(&format!("seed {seed}"));
    to_and_fro(3, seed).0.expect_clean();
}
