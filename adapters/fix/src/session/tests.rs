//! Sessions whose partners cannot be reached, with a gateway that a test plays.

use std::collections::{BTreeMap, BTreeSet};

use gatepost_adapter::Level;
use gatepost_adapter::testing::{Call, Gateway, leased_event};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::data_fields::DataFields;
use crate::intake::Intake;
use crate::settings::{Settings, plans};
use crate::version::BeginString;
use crate::wire::{self, Draft};

const SESSIONS: u128 = 200;
const EACH: u128 = 3;
/// What takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

fn order(session: u128, number: u128) -> Value {
    let content = json!({"data": {"35": "D", "11": format!("O{number}"), "55": "X", "54": "1", "38": "100", "40": "1",
        "60": "20261130-09:00:00.000"}, "fixsession": format!("s{session}")});
    leased_event(session * EACH + number + 1, Some(&format!("s{session}")), "application/json", content)
}

/// Takes the first of each lane back, as the gateway does, and with it those behind it; how long each stays away.
fn take_back(call: Call) -> BTreeMap<Uuid, u64> {
    let mut after = BTreeMap::new();
    let mut answers = Vec::new();
    for result in call.body["results"].as_array().unwrap() {
        assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("lane")), "{result}");
        let id: Uuid = serde_json::from_value(result["delivery"].clone()).unwrap();
        let is_first = (id.as_u128() - 1).is_multiple_of(EACH);
        let status = if is_first { "ok" } else { "stale" };
        answers.push(json!({"delivery": id, "status": status, "state": "waiting"}));
        after.insert(id, result["after_ms"].as_u64().unwrap());
    }
    call.answer(200, &json!({ "results": answers, "emitted": [] }));
    after
}

/// Sessions at work, and what a test moves them with.
struct Desk {
    tasks: JoinSet<Result<(), Failure>>,
    arrivals: Vec<mpsc::Sender<Arrival>>,
    _asking: Vec<mpsc::Sender<Asked>>,
}

fn start(session: &Session, sessions: &[Value]) -> Desk {
    let settings: Settings = serde_json::from_value(json!({ "sessions": sessions })).unwrap();
    let mut intake = Intake::new(session.clone());
    let (up, is_up) = watch::channel(true);
    let mut desk = Desk { tasks: JoinSet::new(), arrivals: Vec::new(), _asking: Vec::new() };
    for plan in plans(&settings, "lab", Level::Transport).unwrap() {
        let (orders, to_send) = mpsc::channel(16);
        intake.register(&plan, orders);
        let (arrivals, arriving) = mpsc::channel(1);
        let (ask, asked) = mpsc::channel(1);
        desk.arrivals.push(arrivals);
        desk._asking.push(ask);
        let inputs = Inputs { orders: to_send, arrivals: arriving, asked, up: up.clone(), away_max: 64 };
        desk.tasks.spawn(Driver::new(session.clone(), plan, inputs).unwrap().run());
    }
    desk.tasks.spawn(intake.run(is_up));
    desk
}

/// Connects the first session's partner, which logs on.
async fn log_on(desk: &Desk) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (partner, accepted) = tokio::join!(connecting, listener.accept());
    let logon = Draft::new(BeginString::Fix44, "A")
        .header(49, "SELL")
        .header(56, "BUY")
        .header(34, "1")
        .header(52, "20261130-09:00:00.000")
        .field(98, "0")
        .field(108, "30");
    let logon = wire::parse(logon.encode().unwrap(), &DataFields::default()).unwrap();
    let arrival = Arrival { stream: Stream::plain(accepted.unwrap().0), logon, rest: Vec::new() };
    desk.arrivals[0].send(arrival).await.ok().unwrap();
    partner.unwrap()
}

/// Each is said to be away once, and then there is silence.
#[tokio::test]
async fn hundreds_of_sessions_that_are_down_give_back_what_they_cannot_send_and_keep_nothing() {
    let (mut gateway, session) = Gateway::open(json!({"window": 64, "max_in_flight": 1000})).await;
    // No gateway makes connections here, so none comes about.
    let sessions: Vec<Value> = (0..SESSIONS)
        .map(|number| {
            json!({"name": format!("s{number}"), "connect": "127.0.0.1:1", "begin_string": "FIX.4.4",
                "sender_comp_id": "BUY", "target_comp_id": format!("SELL{number}")})
        })
        .collect();
    let mut desk = start(&session, &sessions);
    let all: Vec<Value> =
        (0..EACH).flat_map(|number| (0..SESSIONS).map(move |session| order(session, number))).collect();
    gateway.lease(&all).await;
    let mut said = BTreeSet::new();
    while said.len() < all.len() {
        for (id, after) in take_back(gateway.next("/v1/settle").await) {
            assert!(said.insert(id), "{id} is said to be away twice");
            assert!(after >= 1000, "{after}");
        }
    }
    // Nothing is in hand, and nothing more is said of any: the next that is settled is one that came since.
    let stranger = leased_event(9999, None, "text/plain", json!({"data": "x", "fixsession": "nobody"}));
    let every_place_is_free = async { while gateway.lease(&[]).await["max"] != 1000 {} };
    tokio::time::timeout(HANG, every_place_is_free).await.expect("something stays in hand");
    gateway.lease(&[stranger]).await;
    let call = gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t9999", "reject")]);
    call.settled("ok");
    gateway.drain();
    while let Some(ended) = desk.tasks.join_next().await {
        ended.unwrap().unwrap();
    }
}

/// Only what has gone back by itself is woken: the gateway knows what stands behind it.
#[tokio::test]
async fn what_has_gone_back_is_woken_when_the_session_has_logged_on() {
    let (mut gateway, session) = Gateway::open(json!({"window": 64})).await;
    let partner = json!({"name": "s0", "listen": "127.0.0.1:1", "begin_string": "FIX.4.4", "latency_max_s": 0,
        "sender_comp_id": "BUY", "target_comp_id": "SELL"});
    let desk = start(&session, &[partner]);
    gateway.lease(&[order(0, 0), order(0, 1)]).await;
    let mut said = 0;
    while said < 2 {
        said += take_back(gateway.next("/v1/settle").await).len();
    }
    let _partner = log_on(&desk).await;
    let woken = async {
        loop {
            let call = gateway.next("/v1/settle").await;
            let outcomes = call.outcomes();
            if !outcomes.is_empty() {
                assert_eq!(outcomes, [("t1", "wake")]);
                return call.settled("ok");
            }
            // Numbers.
            call.settled("ok");
        }
    };
    tokio::time::timeout(HANG, woken).await.expect("it is not woken");
}

/// What begins is written into the adapter's state all at once, and that is bounded.
#[tokio::test]
async fn large_messages_begin_few_at_a_time() {
    const LARGE: usize = 400 * 1024;
    const COUNT: usize = 8;
    let (mut gateway, session) = Gateway::open(json!({"window": 64})).await;
    let partner = json!({"name": "s0", "listen": "127.0.0.1:1", "begin_string": "FIX.4.4", "latency_max_s": 0,
        "sender_comp_id": "BUY", "target_comp_id": "SELL"});
    let desk = start(&session, &[partner]);
    let mut partner = log_on(&desk).await;
    tokio::spawn(async move { tokio::io::copy(&mut partner, &mut tokio::io::sink()).await });
    gateway.next("/v1/settle").await.settled("ok");
    let large = (0..COUNT as u128).map(|number| {
        let mut order = order(0, number);
        order["event"]["data"]["58"] = "x".repeat(LARGE).into();
        order
    });
    gateway.lease(&large.collect::<Vec<_>>()).await;
    let mut begun = 0;
    let all_begin = async {
        while begun < COUNT {
            let call = gateway.next("/v1/settle").await;
            // Meanwhile others come.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let begins = call.outcomes().iter().filter(|(_, outcome)| *outcome == "begin").count();
            let written = call.body["state"].as_object().into_iter().flatten();
            let bytes: usize =
                written.filter_map(|(_, value)| value.as_str()).map(|text| text.len() / 4 * 3).sum();
            assert!(bytes < 1024 * 1024 && begins <= 2, "{begins} begin, {bytes} bytes");
            begun += begins;
            call.settled("ok");
        }
    };
    tokio::time::timeout(HANG, all_begin).await.expect("not all begin");
}

#[test]
fn what_begins_together_is_bounded_by_number_and_by_size() {
    const MAX: usize = BEGINS_BYTES_MAX;
    for (sizes, expected) in [
        (vec![], 0),
        (vec![0; 300], 200),
        (vec![MAX / 4; 9], 4),
        (vec![MAX - 1, 1, 1], 2),
        (vec![MAX + 1, 1], 1),
        (vec![1, MAX, 1], 1),
    ] {
        assert_eq!(together(sizes.into_iter()), expected);
    }
}
