//! Receiving: what the gateway is handed, and what the partner is answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gatepost_adapter::testing::{Call, Gateway};
use gatepost_adapter::{Session, digest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{ack, adt, awaited, body_of, channel, framed, is_closed, write};
use crate::channel::Channel;
use crate::mllp;
use crate::receive::Receiver;
use crate::settings::Settings;

pub(super) struct Intake {
    pub(super) address: std::net::SocketAddr,
    pub(super) gateway: Gateway,
    serving: JoinHandle<()>,
}

impl Intake {
    pub(super) async fn new(changes: Value) -> Self {
        let mut settings = json!({ "listen": "127.0.0.1:1" });
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let settings: Settings = serde_json::from_value(settings).unwrap();
        let (gateway, session): (Gateway, Session) = Gateway::open(json!({})).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Arc::new(settings);
        let (awaited, late) = awaited(&settings, &session);
        let serving = tokio::spawn(async move {
            let receiver = Receiver::new(settings, session, awaited).unwrap();
            tokio::join!(receiver.serve_listener(listener), late.run());
        });
        Self { address, gateway, serving }
    }

    pub(super) async fn connect(&self) -> Channel {
        let stream = TcpStream::connect(self.address).await.unwrap();
        channel(stream)
    }

    pub(super) async fn accepted(&mut self) {
        let call = self.gateway.next("/v1/messages").await;
        accept(call);
    }
}

pub(super) fn accept(call: Call) {
    let id = "00000000-0000-0000-0000-000000000001";
    call.answer(
        202,
        &json!({"messages": [{"id": id, "duplicate": false, "deliveries": []}], "durability": "fsync"}),
    );
}

pub(super) fn msa(acknowledgement: &Bytes) -> &str {
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
    assert_eq!(partner.next_now().unwrap(), None, "acknowledged before the gateway had answered");
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
async fn a_session_that_is_over_refuses_no_message_for_good() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    intake.gateway.next("/v1/messages").await.answer_problem("superseded");
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AE|M1"));
    intake.gateway.superseded().await;
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
    let mut intake = Intake::new(json!({})).await;
    let mut stranger = intake.connect().await;
    write(&mut stranger, &Bytes::from_static(b"hello")).await;
    assert!(msa(&body_of(&mut stranger).await).starts_with("MSA|AR||"));
    assert!(is_closed(&mut stranger).await);
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01||P|2.5\r")).await;
    assert!(msa(&body_of(&mut partner).await).starts_with("MSA|AR||MSH-10"));
    // The first call that the gateway sees is of the message after them.
    write(&mut partner, &adt("M1")).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(call.body["subject"], "M1");
}

#[tokio::test]
async fn who_speaks_no_hl7_may_get_no_answer_at_all() {
    let intake = Intake::new(json!({"on_unreadable": "silence"})).await;
    let mut stranger = intake.connect().await;
    write(&mut stranger, &Bytes::from_static(b"hello")).await;
    assert!(is_closed(&mut stranger).await);
}

#[tokio::test]
async fn a_message_above_the_limit_is_refused_by_its_id_and_the_connection_closed() {
    for (modes, refusal) in
        [("", Some("MSA|AR|BIG|message too large")), ("|||AL|NE", Some("MSA|CR|BIG|message too large"))]
            .into_iter()
            .chain([("|||NE|NE", None)])
    {
        let mut intake = Intake::new(json!({"max_frame_bytes": 200})).await;
        let mut partner = intake.connect().await;
        // More than fits into the system's buffers, so that the answer must wait for the end or be lost in a reset.
        let mut large = format!("MSH|^~\\&|A|B|C|D|||ADT^A01|BIG|P|2.5{modes}\rOBX|1|ED|").into_bytes();
        large.resize(8 * 1024 * 1024, b'x');
        write(&mut partner, &large.into()).await;
        // Senders that do not wait are answered too.
        let mut next = adt("M0").to_vec();
        next.resize(1024 * 1024, b'x');
        write(&mut partner, &next.into()).await;
        if let Some(refusal) = refusal {
            assert_eq!(msa(&body_of(&mut partner).await), refusal);
        }
        // Not reset, which on some systems takes the answer away.
        assert!(matches!(partner.next().await, Ok(None)));
        let mut partner = intake.connect().await;
        write(&mut partner, &adt("M1")).await;
        assert_eq!(intake.gateway.next("/v1/messages").await.body["subject"], "M1");
    }
}

#[tokio::test]
async fn an_end_without_cr_is_taken_where_it_is_allowed() {
    let mut intake = Intake::new(json!({"lenient_end_ms": 50})).await;
    let mut stream = TcpStream::connect(intake.address).await.unwrap();
    let frame = framed(&adt("M1"));
    stream.write_all(&frame[..frame.len() - 1]).await.unwrap();
    // Silence ends it.
    intake.accepted().await;
    let mut partner = channel(stream);
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
    // So does the connection's end.
    let mut stream = TcpStream::connect(intake.address).await.unwrap();
    stream.write_all(&frame[..frame.len() - 1]).await.unwrap();
    stream.shutdown().await.unwrap();
    intake.accepted().await;
    let mut partner = channel(stream);
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
}

#[tokio::test]
async fn silence_between_messages_ends_a_connection_only_where_that_is_set() {
    let mut intake = Intake::new(json!({"idle_connection_timeout_ms": 1000})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &adt("M1")).await;
    intake.accepted().await;
    body_of(&mut partner).await;
    assert!(is_closed(&mut partner).await);

    let mut intake = Intake::new(json!({"idle_frame_timeout_ms": 50})).await;
    let mut partner = intake.connect().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    write(&mut partner, &adt("M1")).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
}

#[tokio::test]
async fn bytes_between_messages_and_broken_off_messages_cost_only_themselves() {
    let mut intake = Intake::new(json!({})).await;
    let mut stream = TcpStream::connect(intake.address).await.unwrap();
    let whole = framed(&adt("M1"));
    let stream_bytes =
        [b"junk\r\n", &whole[..30], &b"\x0b"[..], &whole[..], b"\x1c\r\x0b\x1c\r", &framed(&adt("M2"))]
            .concat();
    stream.write_all(&stream_bytes).await.unwrap();
    let mut partner = channel(stream);
    for id in ["M1", "M2"] {
        let call = intake.gateway.next("/v1/messages").await;
        assert_eq!(call.body["subject"], id);
        accept(call);
        assert_eq!(msa(&body_of(&mut partner).await), format!("MSA|AA|{id}"));
    }
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

    let mut intake = Intake::new(json!({"max_connections_per_source": 1})).await;
    let mut first = intake.connect().await;
    write(&mut first, &adt("M1")).await;
    intake.accepted().await;
    body_of(&mut first).await;
    assert!(is_closed(&mut intake.connect().await).await);
    // The place is free again once the first has gone.
    drop(first);
    loop {
        let mut next = intake.connect().await;
        if next.write(mllp::frame(&adt("M2")).unwrap()).await.is_ok() {
            tokio::select! {
                call = intake.gateway.next("/v1/messages") => {
                    assert_eq!(call.body["subject"], "M2");
                    break;
                }
                true = is_closed(&mut next) => {}
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_names_the_error() {
    let mut intake = Intake::new(json!({"on_reused_id": "refuse"})).await;
    let mut partner = intake.connect().await;
    for (problem, error) in [
        ("type_not_allowed", "200"),
        ("no_route", "200"),
        ("idempotency_mismatch", "205"),
        ("queue_full", "207"),
    ] {
        write(&mut partner, &adt("M1")).await;
        intake.gateway.next("/v1/messages").await.answer_problem(problem);
        let answer = body_of(&mut partner).await;
        assert_eq!(crate::header::Message::parse(&answer).unwrap().error_code(), Some(error), "{problem}");
    }
    write(&mut partner, &Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5||||||UNICODE UTF-16\r"))
        .await;
    let answer = body_of(&mut partner).await;
    assert!(std::str::from_utf8(&answer).unwrap().contains("\rERR||MSH^1^18|103^"), "{answer:?}");
}

#[tokio::test]
async fn who_wants_no_acknowledgement_gets_none_and_is_stored() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    write(&mut partner, &Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5|||NE|NE\r")).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert_eq!(call.body["subject"], "M1");
    accept(call);
    write(&mut partner, &adt("M2")).await;
    intake.accepted().await;
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M2");
}

#[tokio::test]
async fn a_large_message_is_handed_in_as_it_came() {
    let mut intake = Intake::new(json!({})).await;
    let mut partner = intake.connect().await;
    let mut large = adt("M1").to_vec();
    large.resize(2 * 1024 * 1024, 0xfc);
    let large = Bytes::from(large);
    write(&mut partner, &large).await;
    let call = intake.gateway.next("/v1/messages").await;
    assert!(call.data == large, "the body is the message");
    assert_eq!(call.headers["ce-type"], "org.hl7.v2.ADT_A01");
    assert_eq!(call.headers["ce-partitionkey"], "42");
    assert_eq!(call.headers["content-type"], "application/hl7-v2+er7");
    assert_eq!(call.headers["idempotency-key"], format!("M1:{}", digest(&large)));
    accept(call);
    assert_eq!(msa(&body_of(&mut partner).await), "MSA|AA|M1");
}
