//! Sending: what the partner sees, and what the gateway is told.

use std::sync::Arc;

use bytes::Bytes;
use gatepost_adapter::testing::Gateway;
use gatepost_adapter::tls::Connector;
use gatepost_adapter::{Crew, Failure, Placement, digest};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ack, adt, awaited, body_of, channel, framed, is_closed, leased, write};
use crate::channel::Channel;
use crate::send::Link;
use crate::settings::Settings;

pub(super) struct Partner {
    listener: TcpListener,
    pub(super) gateway: Gateway,
    working: JoinHandle<Result<(), Failure>>,
}

impl Partner {
    pub(super) async fn new(changes: Value) -> Self {
        Self::with_session(changes, json!({})).await
    }

    async fn with_session(changes: Value, session: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut settings = json!({ "connect": address, "connections": 1 });
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let settings: Arc<Settings> = Arc::new(serde_json::from_value(settings).unwrap());
        let connector = Arc::new(Connector::new(&address, settings.tls.as_ref()).unwrap());
        let (gateway, session) = Gateway::open(session).await;
        let working = tokio::spawn(async move {
            let crew = Crew { workers: settings.connections(), placement: Placement::ByKey };
            let (awaited, late) = awaited(&settings, &session);
            let work = async {
                let link = |_| {
                    Link::new(
                        Arc::clone(&connector),
                        Arc::clone(&settings),
                        Arc::clone(&awaited),
                        session.confirm(),
                        None,
                    )
                };
                let worked = session.work(crew, link).await;
                drop(awaited);
                worked
            };
            tokio::join!(work, late.run()).0
        });
        Self { listener, gateway, working }
    }

    pub(super) async fn accept(&self) -> Channel {
        let (stream, _) = self.listener.accept().await.unwrap();
        channel(stream)
    }

    /// The next result that the adapter reports.
    pub(super) async fn settled(&mut self) -> Value {
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
async fn an_answer_of_many_megabytes_is_the_reply() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("Q1"))]).await;
    let mut channel = partner.accept().await;
    body_of(&mut channel).await;
    let mut answer = ack("AA", "Q1").to_vec();
    answer.resize(6 * 1024 * 1024, b'x');
    write(&mut channel, &answer.clone().into()).await;
    let result = partner.settled().await;
    assert_eq!(
        (&result["outcome"], &result["evidence"]["ack_bytes"]),
        (&json!("delivered"), &json!(answer.len()))
    );
    let encoded = serde_json::to_value(gatepost_adapter::binary_reply("", &answer)).unwrap();
    assert!(result["reply"]["data_base64"] == encoded["data_base64"], "whoever asks gets it");
}

#[tokio::test]
async fn one_connection_carries_one_message_at_a_time_and_is_kept() {
    let mut partner = Partner::new(json!({})).await;
    partner.gateway.lease(&[leased(1, &adt("M1")), leased(2, &adt("M2"))]).await;
    let mut channel = partner.accept().await;
    assert_eq!(body_of(&mut channel).await, adt("M1"));
    assert_eq!(channel.next_now().unwrap(), None, "a second message came before the first was acknowledged");
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
        // The reply, should this be its last attempt; a destination's trouble charges none.
        assert_eq!(result["reply"].is_null(), scope == "destination", "{code}: {result}");
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
    let mut partner = Partner::new(json!({"ack_timeout_ms": 2000})).await;
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

#[tokio::test]
async fn a_write_that_fails_leaves_doubt() {
    let mut partner = Partner::new(json!({})).await;
    let mut body = adt("M1").to_vec();
    body.resize(12 * 1024 * 1024, b'x');
    partner.gateway.lease(&[leased(1, &body)]).await;
    let (mut stream, _) = partner.listener.accept().await.unwrap();
    // Enough to know that it has begun; the rest fills the system's buffers, so that the write cannot have ended.
    let mut begun = [0; 64];
    stream.read_exact(&mut begun).await.unwrap();
    drop(stream);
    let result = partner.settled().await;
    assert_eq!(result["outcome"], "in_doubt");
    assert_eq!(result["reason"], "no acknowledgement: the connection failed");
}

#[tokio::test]
async fn answers_of_every_strange_kind_settle_what_they_name_and_nothing_else() {
    let mut partner = Partner::new(json!({})).await;
    let mut channel = None;
    // A doubled answer, one before its time, other delimiters and line ends, a code too much, one byte at a time.
    for (number, answers) in [
        (1, vec![framed(&ack("AA", "M1")), framed(&ack("AA", "M1"))]),
        (2, vec![framed(&ack("AR", "M1")), framed(&ack("AA", "M3")), framed(&ack("AA", "M2"))]),
        (3, vec![framed(&Bytes::from_static(b"MSH:;~\\&:::::::ACK:9:P:2.5\nMSA:AA:M3\n"))]),
        (4, vec![framed(&ack("XX", "M4")), framed(&ack("CA", "M4"))]),
        (5, framed(&ack("AA", "M5")).into_iter().map(|byte| vec![byte]).collect()),
    ] {
        let id = format!("M{number}");
        partner.gateway.lease(&[leased(number, &adt(&id))]).await;
        if channel.is_none() {
            channel = Some(partner.accept().await);
        }
        let channel: &mut Channel = channel.as_mut().unwrap();
        assert_eq!(body_of(channel).await, adt(&id), "the connection is kept");
        for piece in answers {
            channel.write(&piece[..]).await.unwrap();
        }
        let result = partner.settled().await;
        assert_eq!(
            (&result["token"], &result["outcome"]),
            (&json!(format!("t{number}")), &json!("delivered"))
        );
        assert_eq!(result["evidence"]["control_id"], id);
    }
}

#[tokio::test]
async fn what_is_sent_again_is_the_same_bytes() {
    let mut partner = Partner::new(json!({"ack_timeout_ms": 100})).await;
    let body =
        Bytes::from_static(b"\xef\xbb\xbfMSH|^~\\&|A|B|C|D|2026||ADT^A01|M1|P|2.5\r\nPID|1||\xfc\x00\r\n\n");
    for _ in 0..3 {
        partner.gateway.lease(&[leased(1, &body)]).await;
        let mut channel = partner.accept().await;
        assert_eq!(body_of(&mut channel).await, body);
        assert_eq!(partner.settled().await["outcome"], "in_doubt");
    }
}
