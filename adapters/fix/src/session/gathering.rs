//! Commits of a session in their order, with a gateway that a test plays and a partner that says much at once.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use gatepost_adapter::Level;
use gatepost_adapter::testing::Gateway;
use gatepost_adapter::tls::Acceptor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::data_fields::DataFields;
use crate::settings::{Settings, plans};
use crate::value::write_timestamp;
use crate::version::BeginString;
use crate::wire::{Draft, parse};

/// More than one settlement holds, all of it in one read.
const REPORTS: u64 = 230;

fn message(msg_type: &str, seq: u64, fields: &[(u32, &str)]) -> bytes::Bytes {
    let stamp = write_timestamp(OffsetDateTime::now_utc(), BeginString::Fix44.time_precision());
    let draft = Draft::new(BeginString::Fix44, msg_type)
        .header_number(34, seq)
        .header(49, "SELL")
        .header(56, "BUY")
        .header(52, stamp);
    fields.iter().fold(draft, |draft, (tag, value)| draft.field(*tag, value)).encode().unwrap()
}

fn next_in(state: &Value) -> Option<u64> {
    let numbers = base64::engine::general_purpose::STANDARD.decode(state["n/main"].as_str()?).unwrap();
    serde_json::from_slice::<Value>(&numbers).unwrap()["next_in"].as_u64()
}

struct Played {
    gateway: Gateway,
    driver: tokio::task::JoinHandle<Result<(), Failure>>,
    partner: TcpStream,
    /// As long as they live nobody else has an end to wait for.
    _inputs: (mpsc::Sender<Order>, mpsc::Sender<Arrival>, mpsc::Sender<Asked>),
}

/// A session that its partner logs on to, with these bytes behind the Logon.
async fn logged_on_with(bytes: &[u8]) -> Played {
    let (gateway, session) = Gateway::open(json!({})).await;
    let settings: Settings =
        serde_json::from_value(json!({"sessions": [{"name": "main", "listen": "127.0.0.1:1",
        "begin_string": "FIX.4.4", "sender_comp_id": "BUY", "target_comp_id": "SELL", "heartbeat_s": 0}]}))
        .unwrap();
    let plan = plans(&settings, "lab", Level::Transport).unwrap().remove(0);
    let (orders, to_send) = mpsc::channel(1);
    let (arrivals, arriving) = mpsc::channel(1);
    let (ask, asked) = mpsc::channel(1);
    let (up, _is_up) = watch::channel(false);
    let inputs = Inputs { orders: to_send, arrivals: arriving, asked, up, away_max: 64, places: 4096 };
    let driver = tokio::spawn(Driver::new(session.clone(), plan, inputs).unwrap().run());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut partner = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let stream = Acceptor::new(None).unwrap().accept(stream, Duration::from_secs(5)).await.unwrap();
    let logon = message("A", 1, &[(98, "0"), (108, "0")]);
    let logon = parse(logon, &DataFields::default()).unwrap();
    partner.write_all(bytes).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    arrivals.send(Arrival { stream, logon, rest: Vec::new() }).await.ok().unwrap();
    Played { gateway, driver, partner, _inputs: (orders, arrivals, ask) }
}

impl Played {
    /// Ends it; what the partner was told.
    async fn finish(self) -> Vec<u8> {
        let Self { mut gateway, mut driver, mut partner, _inputs } = self;
        gateway.drain();
        partner.shutdown().await.unwrap();
        let ending = async {
            loop {
                tokio::select! {
                    done = &mut driver => break done.unwrap().unwrap(),
                    call = gateway.next("/v1/settle") => call.settled("ok"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), ending).await.unwrap();
        let mut told = Vec::new();
        partner.read_to_end(&mut told).await.unwrap();
        told
    }
}

/// The gateway does not take the first report, so the session answers it while others are still to be made durable. Whenever the
/// process dies, all that its numbers say has come must be there.
#[tokio::test]
async fn no_commit_says_numbers_of_what_is_not_durable_yet() {
    let mut all = Vec::new();
    for seq in 2..2 + REPORTS {
        all.extend_from_slice(&message("8", seq, &[(37, "o")]));
    }
    assert!(all.len() < 64 * 1024);
    let mut played = logged_on_with(&all).await;
    let (mut durable, mut refused, mut said) = (BTreeSet::new(), false, BTreeMap::new());
    while durable.len() < REPORTS as usize {
        let call = played.gateway.next("/v1/settle").await;
        let emits = call.body["emit"].as_array().cloned().unwrap_or_default();
        let seqs: Vec<u64> =
            emits.iter().map(|event| event["fixseqnum"].as_str().unwrap().parse().unwrap()).collect();
        if seqs.contains(&2) {
            refused = true;
            call.answer_problem("no_route");
            continue;
        }
        durable.extend(seqs);
        if let Some(next) = next_in(&call.body["state"]) {
            if refused {
                // It was dealt with in the commit that has no event any more.
                durable.insert(2);
            }
            let missing: Vec<u64> = (2..next).filter(|seq| !durable.contains(seq)).collect();
            assert_eq!(missing, [] as [u64; 0], "{next} is said to be next");
        }
        for (key, _) in call.body["state"].as_object().into_iter().flatten() {
            *said.entry(key.split('/').next().unwrap().to_owned()).or_insert(0) += 1;
        }
        call.settled("ok");
    }
    assert!(refused && said["m"] >= 1, "the reject is kept: {said:?}");
    played.finish().await;
}

/// What was held behind a gap has its turn all at once; the gateway does not take one of it, and takes the others.
#[tokio::test]
async fn one_held_message_that_is_not_taken_keeps_no_other_back() {
    let seqs: Vec<u64> = (3..=12).chain([2]).collect();
    let all: Vec<u8> = seqs.iter().flat_map(|seq| message("8", *seq, &[(37, "o")])).collect();
    let mut played = logged_on_with(&all).await;
    let (mut came, mut next) = (BTreeSet::new(), 0);
    while next < 13 {
        let call = played.gateway.next("/v1/settle").await;
        let emits = call.body["emit"].as_array().into_iter().flatten();
        let seqs: Vec<u64> =
            emits.map(|event| event["fixseqnum"].as_str().unwrap().parse().unwrap()).collect();
        if seqs.contains(&7) {
            call.answer_problem("no_route");
            continue;
        }
        came.extend(seqs);
        next = next_in(&call.body["state"]).unwrap_or(next);
        call.settled("ok");
    }
    assert_eq!(came, [2, 3, 4, 5, 6, 8, 9, 10, 11, 12].into());
    let told = String::from_utf8(played.finish().await).unwrap();
    assert_eq!(told.matches("\x0135=j\x01").count(), 1, "{told}");
    assert!(told.contains("\x0145=7\x01"), "{told}");
}

#[tokio::test]
async fn what_is_garbled_is_passed_over_and_takes_no_number() {
    let [second, third] = [2, 3].map(|seq| message("8", seq, &[(37, "o")]));
    let mut garbled = third.to_vec();
    let sum = garbled.len() - 3;
    garbled[sum] = if garbled[sum] == b'0' { b'1' } else { b'0' };
    let mut played = logged_on_with(&[&second[..], &garbled, &third].concat()).await;
    let mut came = Vec::new();
    while came.len() < 2 {
        let call = played.gateway.next("/v1/settle").await;
        let emits = call.body["emit"].as_array().into_iter().flatten();
        came.extend(emits.map(|event| event["fixseqnum"].as_str().unwrap().to_owned()));
        call.settled("ok");
    }
    assert_eq!(came, ["2", "3"]);
    let told = String::from_utf8(played.finish().await).unwrap();
    assert!(told.contains("\x0135=A\x01") && !told.contains("\x0135=2\x01"), "{told}");
}
