//! Sessions whose partners cannot be reached, with a gateway that a test plays.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use gatepost_adapter::Level;
use gatepost_adapter::testing::{Call, Gateway, leased_event};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
    start_with(session, sessions, Level::Transport)
}

fn start_with(session: &Session, sessions: &[Value], confirm: Level) -> Desk {
    let settings: Settings = serde_json::from_value(json!({ "sessions": sessions })).unwrap();
    let mut intake = Intake::new(session.clone());
    let (up, is_up) = watch::channel(true);
    let mut desk = Desk { tasks: JoinSet::new(), arrivals: Vec::new(), _asking: Vec::new() };
    for plan in plans(&settings, "lab", confirm).unwrap() {
        let (orders, to_send) = mpsc::channel(16);
        intake.register(&plan, orders);
        let (arrivals, arriving) = mpsc::channel(1);
        let (ask, asked) = mpsc::channel(1);
        desk.arrivals.push(arrivals);
        desk._asking.push(ask);
        let places = places(session.max_in_flight() as usize, sessions.len());
        let inputs =
            Inputs { orders: to_send, arrivals: arriving, asked, up: up.clone(), away_max: 1024, places };
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

/// `keeps`: at the end of the connection the partner has only said that it sends nothing more, and reads what comes.
async fn begun_when_the_connection_ends(confirm: Level, keeps: bool) -> Vec<(Uuid, String)> {
    const COUNT: u128 = 500;
    let (mut gateway, session) = Gateway::open(json!({"window": 64, "max_in_flight": 1000})).await;
    let partner = json!({"name": "s0", "listen": "127.0.0.1:1", "begin_string": "FIX.4.4", "latency_max_s": 0,
        "sender_comp_id": "BUY", "target_comp_id": "SELL"});
    let desk = start_with(&session, &[partner], confirm);
    let mut partner = Some(log_on(&desk).await);
    gateway.next("/v1/settle").await.settled("ok");
    gateway.lease(&(0..COUNT).map(|number| order(0, number)).collect::<Vec<_>>()).await;
    let (mut begun, mut settled) = (0, Vec::new());
    let all_are_settled = async {
        while begun == 0 || settled.len() < begun {
            let call = gateway.next("/v1/settle").await;
            begun += call.outcomes().iter().filter(|(_, outcome)| *outcome == "begin").count();
            for result in call.body["results"].as_array().unwrap() {
                let outcome = result["outcome"].as_str().unwrap().to_owned();
                if !matches!(&*outcome, "begin" | "retry" | "extend") {
                    settled.push((serde_json::from_value(result["delivery"].clone()).unwrap(), outcome));
                }
            }
            // It ends before any of them can be written.
            match partner.as_mut().filter(|_| begun > 0) {
                Some(partner) if keeps => partner.shutdown().await.unwrap(),
                Some(_) => partner = None,
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            call.settled("ok");
        }
    };
    tokio::time::timeout(HANG, all_are_settled).await.expect("something stays in hand");
    settled
}

/// Nobody else says anything of them if the partner has got them and has no answer, or does not come back.
#[tokio::test]
async fn what_has_begun_when_the_connection_ends_has_its_time_for_proof_from_then_on() {
    for (confirm, keeps, expected) in [
        (Level::Sent, true, "delivered"),
        (Level::Transport, true, "sent"),
        (Level::Business, true, "sent"),
        (Level::Business, false, "sent"),
    ] {
        let settled = begun_when_the_connection_ends(confirm, keeps).await;
        let deliveries: BTreeSet<Uuid> = settled.iter().map(|(delivery, _)| *delivery).collect();
        assert!(settled.iter().all(|(_, outcome)| outcome == expected), "{confirm:?} {settled:?}");
        assert!(!deliveries.is_empty());
    }
}

/// A session whose `count` messages wait for business answers, as its process left it; its partner asks for them so many times at once, and
/// then whether it is still there. The gateway is told of each that it has been sent.
async fn sent_again(count: u64, requests: u64) {
    let base64 = |value: String| base64::engine::general_purpose::STANDARD.encode(value);
    let header = |msg_type, seq| {
        Draft::new(BeginString::Fix44, msg_type).header_number(34, seq).header(52, "20261130-09:00:00.000")
    };
    let numbers = json!({"epoch": 1, "next_out": count + 2, "next_in": 1, "confirmed": 0});
    let mut state = BTreeMap::from([("n/s0".to_owned(), base64(numbers.to_string()))]);
    for seq in 2..count + 2 {
        let order = header("D", seq).header(49, "BUY").header(56, "SELL").field(11, format!("O{seq}"));
        let order = String::from_utf8(order.encode().unwrap().to_vec()).unwrap();
        state.insert(format!("m/s0/1/{seq}"), base64(format!("\n{order}")));
        let lease = json!({"delivery": Uuid::from_u128(seq.into()), "token": format!("t{seq}")});
        let pending = json!({"lease": lease, "message": format!("m{seq}")});
        state.insert(format!("p/s0/1/{seq}"), base64(pending.to_string()));
    }
    let (mut gateway, session) = Gateway::open(json!({"window": 64, "state": state})).await;
    let settings = json!({"name": "s0", "listen": "127.0.0.1:1", "begin_string": "FIX.4.4", "latency_max_s": 0,
        "sender_comp_id": "BUY", "target_comp_id": "SELL"});
    let desk = start_with(&session, &[settings], Level::Business);
    let (mut reading, mut partner) = log_on(&desk).await.into_split();
    let said = |msg_type, seq| header(msg_type, seq).header(49, "SELL").header(56, "BUY");
    let mut all = Vec::new();
    for seq in 2..2 + requests {
        all.extend_from_slice(&said("2", seq).field(7, "1").field(16, "0").encode().unwrap());
    }
    all.extend_from_slice(&said("1", 2 + requests).field(112, "alive").encode().unwrap());
    partner.write_all(&all).await.unwrap();
    let mut answered = tokio::spawn(async move {
        let mut told = Vec::new();
        while memchr::memmem::find(&told, b"\x01112=alive\x01").is_none() {
            assert_ne!(reading.read_buf(&mut told).await.unwrap(), 0, "the session has ended");
        }
    });
    let mut sent = BTreeSet::new();
    let all_are_sent = async {
        let mut is_there = false;
        while sent.len() < count as usize || !is_there {
            let call = tokio::select! {
                call = gateway.next("/v1/settle") => call,
                answered = &mut answered, if !is_there => {
                    answered.unwrap();
                    is_there = true;
                    continue;
                }
            };
            for (token, outcome) in call.outcomes() {
                assert_eq!(outcome, "sent");
                sent.insert(token.to_owned());
            }
            call.settled("ok");
        }
    };
    tokio::time::timeout(HANG, all_are_sent).await.expect("not all is told");
}

/// The gateway takes a thousand results at once, and many more messages fit into one write.
#[tokio::test]
async fn thousands_of_small_messages_that_leave_again_are_told_little_by_little() {
    sent_again(3000, 1).await;
}

/// Nor does it take one delivery twice in one settlement.
#[tokio::test]
async fn a_partner_that_asks_twice_at_once_is_answered_and_ends_nothing() {
    sent_again(20, 2).await;
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

/// The first of ten sessions has a partner that reads and confirms nothing; `changes`: of its settings.
async fn beside_a_silent_partner(
    session: &Session,
    changes: Value,
) -> (Desk, tokio::net::tcp::OwnedWriteHalf) {
    let sessions: Vec<Value> = (0..10)
        .map(|number| {
            let mut settings = json!({"name": format!("s{number}"), "listen": "127.0.0.1:1",
                "begin_string": "FIX.4.4", "latency_max_s": 0, "sender_comp_id": "BUY",
                "target_comp_id": if number == 0 { "SELL".to_owned() } else { format!("SELL{number}") }});
            settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            settings
        })
        .collect();
    let desk = start(session, &sessions);
    let (mut reading, writing) = log_on(&desk).await.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
    (desk, writing)
}

/// Settles until so many have been sent or have gone back; gives those, and why each of these went.
async fn sent_or_back(gateway: &mut Gateway, count: usize) -> (BTreeSet<Uuid>, Vec<(Uuid, String)>) {
    let (mut sent, mut back) = (BTreeSet::new(), Vec::new());
    let all_are_told = async {
        while sent.len() + back.len() < count {
            let call = gateway.next("/v1/settle").await;
            for result in call.body["results"].as_array().unwrap() {
                let id: Uuid = serde_json::from_value(result["delivery"].clone()).unwrap();
                match result["outcome"].as_str().unwrap() {
                    "begin" => assert!(back.is_empty(), "{id} begins after others have gone back"),
                    "sent" => assert!(sent.insert(id)),
                    "retry" => {
                        assert_eq!(result["scope"], "lane", "{result}");
                        back.push((id, result["reason"].as_str().unwrap().to_owned()));
                    }
                    other => panic!("{other}"),
                }
            }
            call.settled("ok");
        }
    };
    tokio::time::timeout(HANG, all_are_told).await.expect("something stays in hand");
    (sent, back)
}

/// The partner confirms everything, and all that has gone back is woken, the oldest first.
async fn all_are_woken(
    gateway: &mut Gateway,
    partner: &mut tokio::net::tcp::OwnedWriteHalf,
    back: &[(Uuid, String)],
) {
    let confirms = Draft::new(BeginString::Fix44, "0")
        .header(49, "SELL")
        .header(56, "BUY")
        .header(34, "2")
        .header(52, "20261130-09:00:00.000")
        .header(369, "10000");
    partner.write_all(&confirms.encode().unwrap()).await.unwrap();
    let mut woken = Vec::new();
    let waking = async {
        while woken.len() < back.len() {
            let call = gateway.next("/v1/settle").await;
            for (token, outcome) in call.outcomes() {
                match outcome {
                    "wake" => woken.push(token[1..].parse::<u128>().unwrap()),
                    "delivered" => {}
                    other => panic!("{token} {other}"),
                }
            }
            call.settled("ok");
        }
    };
    tokio::time::timeout(HANG, waking).await.expect("not all are woken");
    let mut expected: Vec<u128> = back.iter().map(|(id, _)| id.as_u128()).collect();
    expected.sort_unstable();
    assert_eq!(woken, expected);
}

fn with(back: &[(Uuid, String)], text: &str) -> usize {
    back.iter().filter(|(_, reason)| reason.contains(text)).count()
}

/// It sends as much as may be unconfirmed; then the others have the places.
#[tokio::test]
async fn what_waits_for_a_partner_that_confirms_nothing_keeps_no_place_from_the_other_sessions() {
    const COUNT: usize = 700;
    let (mut gateway, session) = Gateway::open(json!({"window": 64, "max_in_flight": 800})).await;
    let (_desk, mut partner) = beside_a_silent_partner(&session, json!({"keep_messages": 256})).await;
    let orders: Vec<Value> = (0..COUNT as u128).map(|number| order(0, number)).collect();
    gateway.lease(&orders).await;
    let (sent, mut back) = sent_or_back(&mut gateway, COUNT).await;
    // A settlement's worth may begin beyond it.
    assert!((256..256 + 80).contains(&sent.len()), "{}", sent.len());
    // Its share of the places is 80.
    assert_eq!(with(&back, "than it may keep in hand"), back.len() - 80);
    assert_eq!(with(&back, "as much as its partner may leave unconfirmed"), 80);
    // The other sessions' deliveries come through, to wait for their own partners; and of this one's what comes goes back at once.
    gateway.lease(&[order(1, 1000), order(0, 900)]).await;
    let (_, more) = sent_or_back(&mut gateway, 2).await;
    assert_eq!(with(&more, "session `s1` is not logged on"), 1);
    assert_eq!(with(&more, "session `s0` has sent as much as its partner may leave unconfirmed"), 1);
    back.extend(more.into_iter().filter(|(_, reason)| reason.contains("`s0`")));
    all_are_woken(&mut gateway, &mut partner, &back).await;
}

/// The same of one that has no room for more in the adapter's state.
#[tokio::test]
async fn what_finds_no_room_keeps_no_place_from_the_other_sessions() {
    const COUNT: usize = 20;
    let (mut gateway, session) = Gateway::open(json!({"window": 64, "max_in_flight": 800})).await;
    let (_desk, mut partner) = beside_a_silent_partner(&session, json!({})).await;
    let large = (0..COUNT as u128).map(|number| {
        let mut order = order(0, number);
        order["event"]["data"]["58"] = "x".repeat(400 * 1024).into();
        order
    });
    gateway.lease(&large.collect::<Vec<_>>()).await;
    let (sent, back) = sent_or_back(&mut gateway, COUNT).await;
    // Of a share of 2 MiB.
    assert_eq!(sent.len(), 5);
    assert_eq!(
        with(&back, "keeps as much as it may, and its partner has confirmed too little of it"),
        COUNT - 5
    );
    all_are_woken(&mut gateway, &mut partner, &back).await;
}

#[test]
fn each_session_has_its_share_of_the_places() {
    for (all, sessions, expected) in [
        (4096, 1, 4096),
        (4096, 2, 2048),
        (4096, 1000, 64),
        (64, 1, 64),
        (64, 4, 16),
        (64, 100, 16),
        (1, 3, 1),
    ] {
        assert_eq!(places(all, sessions), expected, "{all} {sessions}");
    }
}
