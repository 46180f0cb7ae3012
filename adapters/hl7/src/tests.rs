//! Both directions over real sockets, between a played gateway and a played partner.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use gatepost_adapter::testing::{Call, Gateway, leased_event};
use gatepost_adapter::{Crew, Failure, Placement, Session, digest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::channel::Channel;
use crate::mllp::{self, Item};
use crate::receive::Receiver;
use crate::send::Link;
use crate::settings::Settings;

const BODY_BYTES_MAX: usize = 1024 * 1024;
const PAUSE_MAX: Duration = Duration::from_secs(60);

fn adt(control_id: &str) -> Bytes {
    Bytes::from(format!(
        "MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01^ADT_A01|{control_id}|P|2.5\rPID|1||42^^^MR||D\u{fc}rer\r"
    ))
}

fn ack(code: &str, control_id: &str) -> Bytes {
    Bytes::from(format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK^A01^ACK|9|P|2.5\rMSA|{code}|{control_id}\r"))
}

fn framed(body: &Bytes) -> Vec<u8> {
    let mut frame = mllp::frame(body).unwrap();
    frame.copy_to_bytes(frame.remaining()).to_vec()
}

async fn body_of(channel: &mut Channel) -> Bytes {
    match channel.next().await.unwrap() {
        Some(Item::Frame(body)) => body,
        other => panic!("no message but {other:?}"),
    }
}

async fn write(channel: &mut Channel, body: &Bytes) {
    channel.write(mllp::frame(body).unwrap()).await.unwrap();
}

/// The peer has closed without another word.
async fn is_closed(channel: &mut Channel) -> bool {
    matches!(channel.next().await, Ok(None) | Err(_))
}

// === Sending ===

fn leased(number: u128, body: &[u8]) -> Value {
    let text = serde_json::to_value(gatepost_adapter::binary_reply("", body)).unwrap()["data_base64"].take();
    leased_event(number, Some("42"), "application/hl7-v2+er7", json!({ "data_base64": text }))
}

struct Partner {
    listener: TcpListener,
    gateway: Gateway,
    working: JoinHandle<Result<(), Failure>>,
}

impl Partner {
    async fn new(changes: Value) -> Self {
        Self::with_session(changes, json!({})).await
    }

    async fn with_session(changes: Value, session: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut settings = json!({ "connect": address, "connections": 1 });
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let settings: Arc<Settings> = Arc::new(serde_json::from_value(settings).unwrap());
        let (gateway, session) = Gateway::open(session).await;
        let working = tokio::spawn(async move {
            let crew = Crew { workers: settings.connections, placement: Placement::ByKey };
            session.work(crew, |_| Link::new(address.clone(), Arc::clone(&settings), session.confirm())).await
        });
        Self { listener, gateway, working }
    }

    async fn accept(&self) -> Channel {
        let (stream, _) = self.listener.accept().await.unwrap();
        Channel::new(stream, BODY_BYTES_MAX, PAUSE_MAX).unwrap()
    }

    /// The next result that the adapter reports.
    async fn settled(&mut self) -> Value {
        let call = self.gateway.next("/v1/settle").await;
        let result = call.body["results"][0].clone();
        call.settled("ok");
        result
    }
}

#[tokio::test]
async fn a_message_arrives_unchanged_and_its_acknowledgement_delivers_it() {
    let mut partner = Partner::new(json!({})).await;
    let body = Bytes::from_static(
        b"\xef\xbb\xbfMSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|M1|P|2.5\r\nPID|1||42||D\xfcrer\x1c\x00",
    );
    partner.gateway.lease(&[leased(1, &body)]).await;
    let mut channel = partner.accept().await;
    assert_eq!(body_of(&mut channel).await, body);
    let answer = ack("AA", "M1");
    write(&mut channel, &answer).await;
    let result = partner.settled().await;
    assert_eq!(result["outcome"], "delivered");
    assert_eq!(
        result["evidence"],
        json!({"level": "transport", "code": "AA", "control_id": "M1", "ack_sha256": digest(&answer), "ack_bytes": answer.len()})
    );
    assert_eq!(result["reply"]["datacontenttype"], "application/hl7-v2+er7");
    let encoded = serde_json::to_value(gatepost_adapter::binary_reply("", &answer)).unwrap();
    assert_eq!(result["reply"]["data_base64"], encoded["data_base64"]);
}

#[tokio::test]
async fn one_connection_carries_one_message_at_a_time_and_is_kept() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("M1")), leased(2, &adt("M2"))]).await;
    let mut channel = partner.accept().await;
    assert_eq!(body_of(&mut channel).await, adt("M1"));
    assert_eq!(channel.clear().unwrap(), 0, "a second message came before the first was acknowledged");
    write(&mut channel, &ack("CA", "M1")).await;
    assert_eq!(body_of(&mut channel).await, adt("M2"));
    write(&mut channel, &ack("AA", "M2")).await;
}

#[tokio::test]
async fn a_refusal_is_dealt_with_as_the_table_says() {
    let mut partner = Partner::new(json!({"on_ack": {"AE": "retry_destination"}})).await;
    let mut channel = None;
    for (code, outcome, scope) in [
        ("AE", "retry", json!("destination")),
        ("AR", "reject", Value::Null),
        ("CE", "retry", json!("message")),
    ] {
        partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
        if channel.is_none() {
            channel = Some(partner.accept().await);
        }
        let channel = channel.as_mut().unwrap();
        body_of(channel).await;
        write(channel, &ack(code, "M1")).await;
        let result = partner.settled().await;
        assert_eq!((&result["outcome"], &result["scope"]), (&json!(outcome), &scope), "{code}");
        assert_eq!(result["reason"], format!("the partner answered {code}"));
    }
}

#[tokio::test]
async fn an_answer_to_another_message_settles_nothing() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    for stray in [ack("AA", "M0"), ack("AR", "M10"), Bytes::from_static(b"\x06"), adt("M1")] {
        write(&mut channel, &stray).await;
    }
    write(&mut channel, &ack("AE", "M1")).await;
    assert_eq!(partner.settled().await["evidence"]["code"], "AE");
}

#[tokio::test]
async fn after_a_timeout_the_connection_is_closed_and_a_late_answer_hits_nothing() {
    let mut partner = Partner::new(json!({"ack_timeout_ms": 200})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut first = partner.accept().await;
    body_of(&mut first).await;
    let result = partner.settled().await;
    assert_eq!(result["outcome"], "in_doubt");
    assert!(is_closed(&mut first).await);
    partner.gateway.lease(&[leased(2, &adt("M2"))]).await;
    let mut second = partner.accept().await;
    assert_eq!(body_of(&mut second).await, adt("M2"));
    // Some partners send the late answer wherever they can.
    write(&mut second, &ack("AA", "M1")).await;
    write(&mut second, &ack("AR", "M2")).await;
    let result = partner.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t2"), &json!("reject")));
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_leaves_doubt() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    drop(channel);
    assert_eq!(partner.settled().await["outcome"], "in_doubt");
}

#[tokio::test]
async fn a_broken_off_answer_leaves_doubt() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let (mut stream, _) = partner.listener.accept().await.unwrap();
    let mut byte = [0];
    while byte != *b"\x1c" {
        stream.read_exact(&mut byte).await.unwrap();
    }
    let answer = framed(&ack("AA", "M1"));
    stream.write_all(&answer[..answer.len() - 1]).await.unwrap();
    drop(stream);
    assert_eq!(partner.settled().await["outcome"], "in_doubt");
}

#[tokio::test]
async fn a_connection_that_the_partner_closes_after_each_message_is_replaced() {
    let mut partner = Partner::new(json!({})).await;
    for number in 1..=3 {
        let id = format!("M{number}");
        partner.gateway.lease(&[leased(number, &adt(&id))]).await;
        let mut channel = partner.accept().await;
        assert_eq!(body_of(&mut channel).await, adt(&id));
        write(&mut channel, &ack("AA", &id)).await;
        drop(channel);
        assert_eq!(partner.settled().await["outcome"], "delivered");
    }
}

#[tokio::test]
async fn an_unreachable_partner_is_no_fault_of_the_message() {
    let Partner { listener, mut gateway, working: _working } = Partner::new(json!({})).await;
    drop(listener);
    gateway.lease(&[leased(1, &adt("M1"))]).await;
    let call = gateway.next("/v1/settle").await;
    let result = &call.body["results"][0];
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
}

#[tokio::test]
async fn what_is_no_hl7_is_refused_without_a_connection() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, b"{}"), leased(2, b"MSH|^~\\&|||||||ADT^A01|1|P|2.5\r\x0b")]).await;
    let mut outcomes = Vec::new();
    while outcomes.len() < 2 {
        let call = partner.gateway.next("/v1/settle").await;
        outcomes.extend(call.outcomes().iter().map(|(_, outcome)| outcome.to_string()));
        call.settled("ok");
    }
    assert_eq!(outcomes, ["reject", "reject"]);
}

#[tokio::test]
async fn a_message_that_wants_no_answer_is_delivered_when_it_is_written() {
    let mut partner = Partner::with_session(json!({}), json!({"confirm": "sent"})).await;
    let answer = ack("AA", "THEIRS");
    partner.gateway.lease(&[leased(1, &answer), leased(2, &adt("M2"))]).await;
    let mut channel = partner.accept().await;
    assert_eq!(body_of(&mut channel).await, answer);
    let result = partner.settled().await;
    assert_eq!((&result["outcome"], &result["evidence"]), (&json!("delivered"), &json!({"level": "sent"})));
    assert_eq!(body_of(&mut channel).await, adt("M2"));
    write(&mut channel, &ack("AA", "M2")).await;
    assert_eq!(partner.settled().await["evidence"]["level"], "transport");
}

#[tokio::test]
async fn draining_waits_for_the_answer_that_is_due() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("M1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    partner.gateway.drain();
    write(&mut channel, &ack("AA", "M1")).await;
    assert_eq!(partner.settled().await["outcome"], "delivered");
    partner.working.await.unwrap().unwrap();
    assert!(is_closed(&mut channel).await);
}

// === Receiving ===

struct Intake {
    address: std::net::SocketAddr,
    gateway: Gateway,
    serving: JoinHandle<()>,
}

impl Intake {
    async fn new(changes: Value) -> Self {
        let mut settings = json!({ "listen": "127.0.0.1:1" });
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let settings: Settings = serde_json::from_value(settings).unwrap();
        let (gateway, session): (Gateway, Session) = Gateway::open(json!({})).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(Receiver::new(Arc::new(settings), session).serve_listener(listener));
        Self { address, gateway, serving }
    }

    async fn connect(&self) -> Channel {
        let stream = TcpStream::connect(self.address).await.unwrap();
        Channel::new(stream, BODY_BYTES_MAX, PAUSE_MAX).unwrap()
    }

    async fn accepted(&mut self) {
        let call = self.gateway.next("/v1/messages").await;
        accept(call);
    }
}

fn accept(call: Call) {
    let id = "00000000-0000-0000-0000-000000000001";
    call.answer(
        202,
        &json!({"messages": [{"id": id, "duplicate": false, "deliveries": []}], "durability": "fsync"}),
    );
}

fn msa(acknowledgement: &Bytes) -> &str {
    let text = std::str::from_utf8(acknowledgement).unwrap();
    text.split('\r').find(|segment| segment.starts_with("MSA")).unwrap()
}

#[tokio::test]
async fn the_acknowledgement_comes_after_the_commit_and_not_before() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    let body = adt("M1");
    write(&mut partner, &body).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(call.body["type"], "org.hl7.v2.ADT_A01");
    assert_eq!(call.body["source"], "/adapters/lab");
    assert_eq!(call.body["subject"], "M1");
    assert_eq!(call.body["partitionkey"], "42");
    assert_eq!(call.body["datacontenttype"], "application/hl7-v2+er7");
    let encoded = serde_json::to_value(gatepost_adapter::binary_reply("", &body)).unwrap();
    assert_eq!(call.body["data_base64"], encoded["data_base64"]);
    assert_eq!(call.headers["idempotency-key"], format!("M1:{}", digest(&body)));
    assert_eq!(partner.clear().unwrap(), 0, "acknowledged before the gateway had answered");
    accept(call);
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
}

#[tokio::test]
async fn what_cannot_be_stored_now_is_asked_for_again_on_the_same_connection() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    intake.gateway.next("/v1/messages").await.answer_problem("queue_full");
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AE|M1"));
    write(&mut partner, &adt("M1")).await;
    intake.gateway.next("/v1/messages").await.answer_problem("storage_full");
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AE|M1"));
    write(&mut partner, &adt("M1")).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
}

#[tokio::test]
async fn what_will_never_be_stored_is_refused() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    intake.gateway.next("/v1/messages").await.answer_problem("no_route");
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AR|M1"));
}

#[tokio::test]
async fn a_gateway_that_does_not_answer_has_not_stored() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    // On the kept connection, and then on a fresh one.
    intake.gateway.next("/v1/messages").await.hang_up();
    intake.gateway.next("/v1/messages").await.hang_up();
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AE|M1"));
}

#[tokio::test]
async fn enhanced_mode_is_answered_in_its_own_codes() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    let body = Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5|||AL|NE\r");
    write(&mut partner, &body).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|CA|M1");
    write(&mut partner, &body).await;
    intake.gateway.next("/v1/messages").await.answer_problem("store_unavailable");
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|CE|M1"));
}

#[tokio::test]
async fn pipelined_messages_are_stored_and_answered_in_order() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    for number in 0..20 {
        write(&mut partner, &adt(&format!("M{number}"))).await;
    }
    for number in 0..20 {
        let call = intake.gateway.next("/v1/messages").await;
        assert_eq!(call.body["subject"], format!("M{number}"));
        accept(call);
        assert_eq!(msa(&body_of(&mut partner).await), format!("MSA|AA|M{number}"));
    }
}

#[tokio::test]
async fn an_acknowledgement_is_stored_and_not_answered() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &ack("AA", "X1")).await;
    write(&mut partner, &adt("M1")).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(call.body["type"], "org.hl7.v2.ACK_A01");
    accept(call);
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1", "the acknowledgement was answered");
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_never_reaches_the_gateway() {
    let mut intake = Intake::new(json!({"max_frame_bytes": 200})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(b"hello")).await;
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AR||"));
    write(&mut partner, &Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01||P|2.5\r")).await;
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AR||MSH-10"));
    let mut large = adt("BIG").to_vec();
    large.extend([b'x'; 500]);
    write(&mut partner, &large.into()).await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AR|BIG|message too large");
    // The first call that the gateway sees is of the message after them.
    write(&mut partner, &adt("M1")).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(call.body["subject"], "M1");
}

#[tokio::test]
async fn a_half_message_is_neither_stored_nor_answered() {
    let mut intake = Intake::new(json!({"idle_frame_timeout_ms": 50})).await;
    let mut stream = TcpStream::connect(intake.address).await.unwrap();
    let frame = framed(&adt("HALF"));
    stream.write_all(&frame[..frame.len() - 1]).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"");
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    assert_eq!(intake.gateway.next("/v1/messages").await.body["subject"], "M1");
}

#[tokio::test]
async fn stopping_answers_the_message_in_hand_and_then_closes() {
    let mut intake = Intake::new(json!({})).await;
    let mut busy = intake.connect().await;
    let mut idle = intake.connect().await;
    write(&mut busy, &adt("M1")).await;
    let call = intake.gateway.next("/v1/messages").await;
    write(&mut busy, &adt("M2")).await;
    intake.gateway.drain();
    assert!(is_closed(&mut idle).await);
    accept(call);
    assert_eq!(msa(&body_of(&mut busy).await), "MSA|AA|M1");
    assert!(is_closed(&mut busy).await);
    intake.serving.await.unwrap();
}

#[tokio::test]
async fn strangers_and_too_many_are_turned_away() {
    let intake = Intake::new(json!({"allow_from": ["10.9.8.7"]})).await;
    assert!(is_closed(&mut intake.connect().await).await);

    let mut intake = Intake::new(json!({"max_connections": 1})).await;
    let mut first = intake.connect().await;
    write(&mut first, &adt("M1")).await;
    intake.accepted().await;
    body_of(&mut first).await;
    assert!(is_closed(&mut intake.connect().await).await);
}
