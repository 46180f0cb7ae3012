//! Configurations that change all the time, under load, some of them wrong; destinations that go and come back. The backlog
//! outlives all of it.

use gatepost_tests::lab::{Order, Verdict};
use gatepost_tests::{Builder, Dice, Gateway, note};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Traffic, hand_in, judged, message_of};
use crate::order_event;

pub(super) const QUICK: &str =
    "order = \"key\"\nretry = { initial = \"50ms\", max = \"200ms\", attempts = 1000 }";
const RELOADS: usize = 120;
const RELOADS_PER_RESTART: usize = 40;

/// Renamed into place: a reload that is on its way must not read half a file.
pub(super) fn configure(gateway: &Gateway, text: &str) {
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
pub(super) fn one_lab() -> Builder {
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
