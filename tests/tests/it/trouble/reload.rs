//! Configurations that change all the time, under load, some of them wrong; destinations that go, come back, and are called
//! something else. The backlog outlives all of it.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use gatepost_tests::lab::{Answer, Order, Submission, Verdict};
use gatepost_tests::{Builder, Dice, Gateway, note, program, until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Traffic, hand_in, judged, message_of, story};
use crate::order_event;

const QUICK: &str = "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }";
const RELOADS: usize = 120;
const RELOADS_PER_RESTART: usize = 40;

/// Renamed into place: a reload that is on its way must not read half a file.
fn configure(gateway: &Gateway, text: &str) {
    let fresh = gateway.path("fresh.toml");
    std::fs::write(&fresh, text).unwrap();
    std::fs::rename(fresh, gateway.config()).unwrap();
}

fn cut(text: &str, from: &str, to: &str) -> String {
    let start = text.find(from).unwrap_or_else(|| panic!("no {from} in {text}"));
    let end = text[start + 1..].find(to).map_or(text.len(), |end| start + 1 + end);
    format!("{}{}", &text[..start], &text[end..])
}

fn two_labs() -> Builder {
    Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("steady", QUICK, "fail_percent = 5\nseed = 11")
        .echo("coming-and-going", QUICK, "fail_percent = 5\nseed = 13")
        .table("# routes", "")
        .route("shop", &["steady"])
        .route("shop", &["coming-and-going"])
}

/// Configurations, and whether each is one.
fn variants(text: &str) -> Vec<(String, bool)> {
    let going = "[[routes]]\nfrom = \"shop\"\nto = [\"coming-and-going\"]\n";
    let without_route = text.replace(going, "");
    assert_ne!(without_route, text);
    let without_adapter = cut(&without_route, "[adapters.coming-and-going]", "# routes");
    vec![
        (text.to_owned(), true),
        (without_route, true),
        (without_adapter.clone(), true),
        (text.replace("fail_percent = 5", "fail_percent = 4"), true),
        (text.replace(QUICK, &QUICK.replace("\"key\"", "\"key\"\nwindow = 1\nmax_in_flight = 3")), true),
        // The adapter is gone, and a route still leads there.
        (format!("{without_adapter}{going}"), false),
        (text.replace("on_doubt", "on_dubt") + "\n[adapters.steady", false),
        (String::new(), false),
    ]
}

/// So many reloads, some of them wrong, with restarts in between; with the number of restarts.
pub(crate) fn storm(reloads: usize, seed: u64) -> (Verdict, u64) {
    let mut gateway = two_labs().start();
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let variants = variants(&text);
    let mut dice = Dice::new(seed);
    let traffic = Traffic::start(&gateway.app(), 2, &[]);
    let (mut asked, mut refused, mut restarts) = (0, 0, 0);
    for round in 1..=reloads {
        let (text, good) = &variants[dice.below(variants.len())];
        configure(&gateway, text);
        if round % 4 == 0 {
            let output = gateway.cli(&["reload"]);
            assert_eq!(output.status.success(), *good, "{}", String::from_utf8_lossy(&output.stderr));
            asked += 1;
            refused += usize::from(!good);
        } else {
            gateway.signal(Signal::SIGHUP);
        }
        if round % RELOADS_PER_RESTART == 0 {
            configure(&gateway, &variants[dice.below(5)].0);
            gateway.kill();
            gateway.restart();
            restarts += 1;
        }
        if round % 8 == 0 {
            traffic.go_on(2);
        }
    }
    configure(&gateway, &text);
    gateway.cli_ok(&["reload"]);
    traffic.go_on(10);
    let submissions = traffic.finish();
    for queue in ["steady", "coming-and-going"] {
        gateway.until_settled(queue);
    }
    note(&format!(
        "{reloads} reloads ({asked} by command, {refused} of these refused), {restarts} restarts, {} messages",
        submissions.len()
    ));
    let partners = [("steady", Order::Key), ("coming-and-going", Order::Key)];
    (judged(&gateway, submissions, &partners), restarts)
}

#[test]
fn a_storm_of_reloads_right_and_wrong_and_restarts_under_load_loses_nothing() {
    let seed = Dice::fresh_seed();
    note(&format!("seed {seed}"));
    storm(RELOADS, seed).0.expect_clean();
}

/// One destination that can be taken out of the configuration.
fn one_lab() -> Builder {
    Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("steady", QUICK, "")
        .echo("lab-old", &format!("{QUICK}\non_doubt = \"hold\""), "batch = 4")
        .table("# routes", "")
        .route_when("shop", "type == \"orders.new\"", &["lab-old"])
        .route_when("shop", "type == \"steady\"", &["steady"])
}

fn without_lab(text: &str) -> String {
    cut(&cut(text, "[adapters.lab-old]", "# routes"), "[[routes]]", "[[routes]]")
}

fn names(gateway: &Gateway, verb: &[&str], plural: &str) -> Vec<Value> {
    let listed: Value = serde_json::from_str(&gateway.cli_ok(&[&["--json"], verb].concat())).unwrap();
    listed[plural].as_array().unwrap().clone()
}

#[test]
fn a_destination_that_is_removed_keeps_its_backlog_in_sight_and_goes_on_when_it_is_back_with_another_order() {
    const WAITING: usize = 20;
    let mut gateway = one_lab().start();
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    gateway.admin().post("/v1/queues/lab-old/pause", &json!({})).expect(200);
    let send = |gateway: &Gateway, n: usize| {
        hand_in(&gateway.app(), "shop", &format!("r{n}"), &format!("k{}", n % 4), &json!({}), &["lab-old"])
    };
    let mut submissions: Vec<_> = (0..WAITING).map(|n| send(&gateway, n)).collect();
    configure(&gateway, &without_lab(&text));
    gateway.cli_ok(&["reload"]);
    for restart in [false, true] {
        if restart {
            gateway.kill();
            gateway.restart();
        }
        let queues = names(&gateway, &["queue", "ls"], "queues");
        let queue = queues.iter().find(|queue| queue["name"] == "lab-old").expect("it is listed");
        assert_eq!((&queue["kind"], &queue["depth"]["waiting"]), (&json!("removed"), &json!(WAITING)));
        let listed = names(&gateway, &["list", "--destination", "lab-old"], "messages");
        assert_eq!(listed.len(), WAITING);
        let deliveries = gateway.list("/v1/deliveries?destination=lab-old&state=waiting", "deliveries");
        assert_eq!(deliveries.len(), WAITING);
        let refused = gateway.app().event(&order_event("refused", "k", &json!({})));
        assert_eq!(refused.problem(422), "no_route", "nothing new goes there");
        assert_eq!(gateway.admin().get("/readyz").status, 200, "what nobody serves blocks nobody");
    }
    configure(
        &gateway,
        &text.replace(
            &format!("{QUICK}\non_doubt"),
            &format!("{}\non_doubt", QUICK.replace("\"key\"", "\"none\"")),
        ),
    );
    gateway.cli_ok(&["reload"]);
    assert_eq!(gateway.queue("lab-old")["kind"], "adapter");
    assert_eq!(gateway.unsettled("lab-old"), WAITING as u64, "an operator's pause is still an operator's");
    gateway.admin().post("/v1/queues/lab-old/resume", &json!({})).expect(200);
    gateway.until_settled("lab-old");
    // Their lanes were fixed when they were accepted.
    submissions.iter().for_each(|one| drop(gateway.until_state(message_of(one), "delivered")));
    let verdict = judged(&gateway, submissions.clone(), &[("lab-old", Order::Key)]);
    verdict.expect_clean();
    submissions.push(send(&gateway, WAITING));
    gateway.until_settled("lab-old");
    judged(&gateway, submissions, &[("lab-old", Order::None)]).expect_clean();
}

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
    until("all of it is delivered", || (gateway.unsettled("lab-new") == 0).then_some(()));
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

#[test]
fn a_configuration_that_points_elsewhere_touches_nothing_of_the_backlog() {
    let mut gateway = one_lab().start();
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    gateway.admin().post("/v1/queues/lab-old/pause", &json!({})).expect(200);
    let submissions: Vec<_> = (0..10)
        .map(|n| {
            hand_in(
                &gateway.app(),
                "shop",
                &format!("e{n}"),
                &format!("k{}", n % 3),
                &json!({}),
                &["lab-old"],
            )
        })
        .collect();
    let elsewhere = text.replace("/data\"", "/elsewhere\"");
    let renamed = text.replace("name = \"test-1\"", "name = \"test-2\"");
    for other in [&elsewhere, &renamed] {
        assert_ne!(other, &text);
        configure(&gateway, other);
        let said = gateway.cli(&["reload"]);
        assert!(!said.status.success());
        assert!(String::from_utf8_lossy(&said.stderr).contains("restart"), "{said:?}");
        assert_eq!(gateway.unsettled("lab-old"), 10);
    }
    // Started so, it is another gateway, with nothing of this one's …
    gateway.kill();
    configure(&gateway, &elsewhere);
    gateway.restart();
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 0);
    gateway.kill();
    // … and under another name it does not take this one's log for its own.
    configure(&gateway, &renamed);
    gateway.spawn();
    assert!(!gateway.becomes_ready(), "it started on the log of `test-1`");
    assert!(gateway.log().contains("belongs to the gateway `test-1`"), "it says whose it is");
    configure(&gateway, &text);
    gateway.restart();
    assert_eq!(gateway.unsettled("lab-old"), 10);
    gateway.admin().post("/v1/queues/lab-old/resume", &json!({})).expect(200);
    gateway.until_settled("lab-old");
    judged(&gateway, submissions, &[("lab-old", Order::Key)]).expect_clean();
}
