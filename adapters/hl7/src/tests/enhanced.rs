//! Enhanced mode and application acknowledgements: the whole adapter, both directions at once.

use bytes::Bytes;
use gatepost_adapter::testing::Gateway;
use gatepost_adapter::{Adapter as _, Failure};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{ack, body_of, channel, connect_from, free_address, is_closed, kept, leased, order, write};
use crate::adapter::Hl7;
use crate::awaited::AWAITED_MAX;
use crate::channel::Channel;
use crate::mllp::COMMITTED;

/// Long enough for what must not happen to happen.
pub(super) const PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

pub(super) struct Whole {
    partner: TcpListener,
    listen: String,
    pub(super) gateway: Gateway,
    pub(super) running: JoinHandle<Result<(), Failure>>,
}

impl Whole {
    pub(super) async fn start(changes: Value, session: Value) -> Self {
        let partner = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (listen, connect) = (free_address().await, partner.local_addr().unwrap().to_string());
        let mut settings = json!({"connect": connect, "connections": 1, "listen": listen});
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let (gateway, session) = Gateway::open(session).await;
        let running = tokio::spawn(Hl7::run(serde_json::from_value(settings).unwrap(), session));
        Self { partner, listen, gateway, running }
    }

    pub(super) async fn business() -> Self {
        Self::start(json!({"application_ack_timeout_ms": 60_000}), json!({"confirm": "business"})).await
    }

    pub(super) async fn accept(&self) -> Channel {
        channel(self.partner.accept().await.unwrap().0)
    }

    pub(super) async fn connect(&self) -> Channel {
        self.connect_from("127.0.0.1").await
    }

    pub(super) async fn connect_from(&self, address: &str) -> Channel {
        connect_from(address, &self.listen).await
    }

    /// Message 1 is `sent`; gives the connection that it went over, and the key under which it is kept.
    pub(super) async fn sent_one(&mut self, control_id: &str) -> (Channel, String) {
        self.gateway.lease(&[leased(1, &order(control_id))]).await;
        let mut partner = self.accept().await;
        body_of(&mut partner).await;
        write(&mut partner, &ack("CA", control_id)).await;
        let (key, _) = sent(self.settled().await);
        (partner, key)
    }

    /// The next settlement: its one result, if any, and its state.
    pub(super) async fn settled(&mut self) -> (Value, Value) {
        let call = self.gateway.next("/v1/settle").await;
        let told = (call.body["results"][0].clone(), call.body["state"].clone());
        call.settled("ok");
        told
    }
}

/// What a `sent` settlement is to say; gives the key under which the lease is kept, and what is kept there.
pub(super) fn sent((result, state): (Value, Value)) -> (String, Value) {
    assert_eq!((&result["outcome"], &result["after_ms"]), (&json!("sent"), &json!(60_000)));
    assert_eq!(
        (&result["evidence"]["level"], &result["evidence"]["code"]),
        (&json!("transport"), &json!("CA"))
    );
    let state = state.as_object().unwrap();
    assert_eq!(state.len(), 1);
    let (key, value) = state.iter().next().unwrap();
    (key.clone(), value.clone())
}

pub(super) fn delivered((result, state): (Value, Value), token: &str, key: &str) {
    assert_eq!((&result["token"], &result["outcome"]), (&json!(token), &json!("delivered")));
    assert_eq!(
        (&result["evidence"]["level"], &result["evidence"]["code"]),
        (&json!("business"), &json!("AA"))
    );
    assert_eq!(state, json!({ key: null }), "what was kept goes with it");
}

#[tokio::test]
async fn an_accept_acknowledgement_is_sent_and_the_application_acknowledgement_delivers() {
    let mut whole = Whole::business().await;
    let (mut partner, key) = whole.sent_one("M1").await;
    // Much later, while nothing is in flight.
    write(&mut partner, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
}

#[tokio::test]
async fn it_delivers_while_the_next_message_is_in_flight_and_settles_that_one_not() {
    let mut whole = Whole::business().await;
    whole.gateway.lease(&[leased(1, &order("M1")), leased(2, &order("M2"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("CA", "M1")).await;
    let (key, _) = sent(whole.settled().await);
    assert_eq!(body_of(&mut partner).await, order("M2"));
    write(&mut partner, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
    write(&mut partner, &ack("AE", "M2")).await;
    let (result, _) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t2"), &json!("reject")));
}

#[tokio::test]
async fn it_may_come_over_a_connection_of_the_partners_and_is_not_acknowledged() {
    let mut whole = Whole::business().await;
    let (_partner, key) = whole.sent_one("M1").await;
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
    // It is answered with nothing: the first thing that comes back answers a message.
    write(&mut other, &order("THEIRS")).await;
    let call = whole.gateway.next("/v1/messages").await;
    assert_eq!(call.body["subject"], "THEIRS");
    call.answer_problem("queue_full");
    assert!(body_of(&mut other).await.windows(7).any(|part| part == b"MSA|CE|"));
}

#[tokio::test]
async fn the_only_acknowledgement_may_come_over_another_connection_too() {
    let mut whole = Whole::start(json!({}), json!({})).await;
    let message = Bytes::from_static(b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|M1|P|2.5\r");
    whole.gateway.lease(&[leased(1, &message)]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    let (result, _) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("delivered")));
}

#[tokio::test]
async fn an_answer_that_overtakes_the_accept_acknowledgement_is_not_lost() {
    let mut whole = Whole::business().await;
    whole.gateway.lease(&[leased(1, &order("M1"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("CA", "M1")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "sent")]);
    // It is here before the gateway has said that the delivery is `sent`.
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    assert!(timeout(PAUSE, other.next()).await.is_err());
    call.settled("ok");
    let (result, _) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("delivered")));
}

#[tokio::test]
async fn what_an_earlier_session_had_sent_is_still_waited_for() {
    let mut whole = Whole::business().await;
    whole.gateway.lease(&[leased(1, &order("M1"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("CA", "M1")).await;
    let (key, kept) = sent(whole.settled().await);
    whole.gateway.drain();
    whole.running.await.unwrap().unwrap();

    let session = json!({"confirm": "business", "state": { &key: kept }});
    let mut whole = Whole::start(json!({}), session).await;
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
}

#[tokio::test]
async fn an_answer_that_could_be_to_two_messages_settles_none() {
    let mut whole = Whole::business().await;
    // Some senders put the same id into everything.
    let same = order("CLIA");
    whole.gateway.lease(&[leased(1, &same), leased(2, &same)]).await;
    let mut partner = whole.accept().await;
    for _ in 0..2 {
        body_of(&mut partner).await;
        write(&mut partner, &ack("CA", "CLIA")).await;
        sent(whole.settled().await);
    }
    write(&mut partner, &ack("AA", "CLIA")).await;
    // The next thing settled is the next message.
    whole.gateway.lease(&[leased(3, &order("M3"))]).await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("AE", "M3")).await;
    assert_eq!(whole.settled().await.0["token"], "t3");
}

#[tokio::test]
async fn a_late_answer_that_the_gateway_does_not_take_any_more_is_forgotten() {
    let mut whole = Whole::business().await;
    let (mut partner, key) = whole.sent_one("M1").await;
    write(&mut partner, &ack("AR", "M1")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "reject")]);
    call.refused(&[("stale", "in_doubt")]);
    let (result, state) = whole.settled().await;
    assert_eq!((result, state), (Value::Null, json!({ key: null })));
}

#[tokio::test]
async fn in_doubt_it_is_not_waited_for_and_a_late_answer_settles_nothing() {
    let mut whole = Whole::start(json!({"ack_timeout_ms": 200}), json!({"confirm": "business"})).await;
    whole.gateway.lease(&[leased(1, &order("M1"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    assert_eq!(whole.settled().await.0["outcome"], "in_doubt");
    assert!(is_closed(&mut partner).await);
    // It goes where other messages go, as somebody's it is not.
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    assert_eq!(whole.gateway.next("/v1/messages").await.body["type"], "org.hl7.v2.ACK_A01");
}

/// Everything that may be waited for but `left`.
fn crowded(left: usize) -> Value {
    let state: serde_json::Map<_, _> =
        (0..AWAITED_MAX - left).map(|number| kept(number, None, 4_000_000_000)).collect();
    json!({"confirm": "business", "state": state})
}

#[tokio::test]
async fn while_too_many_answers_are_owed_they_are_still_read() {
    let mut whole = Whole::start(json!({"application_ack_timeout_ms": 60_000}), crowded(1)).await;
    whole.gateway.lease(&[leased(1, &order("M1")), leased(2, &order("M2"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("CA", "M1")).await;
    let (key, _) = sent(whole.settled().await);
    // The next one waits for a place, and this connection brings the answer that frees one.
    assert!(timeout(PAUSE, partner.next()).await.is_err());
    write(&mut partner, &ack("AA", "M1")).await;
    delivered(whole.settled().await, "t1", &key);
    assert_eq!(body_of(&mut partner).await, order("M2"));
}

#[tokio::test]
async fn who_waits_because_too_many_answers_are_owed_gives_its_message_back_at_a_stop() {
    let mut whole = Whole::start(json!({}), crowded(0)).await;
    whole.gateway.lease(&[leased(1, &order("M1"))]).await;
    assert!(timeout(PAUSE, whole.gateway.next("/v1/settle")).await.is_err());
    whole.gateway.drain();
    let (result, _) = whole.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("release")));
    whole.running.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answer_is_acknowledged_after_it_has_settled_and_not_before() {
    let settings = json!({"application_ack_timeout_ms": 60_000, "mllp_release": 2});
    let mut whole = Whole::start(settings, json!({"confirm": "business"})).await;
    whole.gateway.lease(&[leased(1, &order("M1"))]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    write(&mut partner, &ack("CA", "M1")).await;
    sent(whole.settled().await);
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "delivered")]);
    assert!(timeout(PAUSE, other.next()).await.is_err(), "before the gateway had it");
    call.settled("ok");
    assert_eq!(body_of(&mut other).await, COMMITTED);
}

#[tokio::test]
async fn the_only_answer_is_acknowledged_after_it_has_settled_too() {
    let mut whole = Whole::start(json!({"mllp_release": 2}), json!({})).await;
    let message = Bytes::from_static(b"MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01|M1|P|2.5\r");
    whole.gateway.lease(&[leased(1, &message)]).await;
    let mut partner = whole.accept().await;
    body_of(&mut partner).await;
    let mut other = whole.connect().await;
    write(&mut other, &ack("AA", "M1")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "delivered")]);
    assert!(timeout(PAUSE, other.next()).await.is_err(), "before the gateway had it");
    call.settled("ok");
    assert_eq!(body_of(&mut other).await, COMMITTED);
}

#[tokio::test]
async fn late_answers_over_our_own_connection_are_acknowledged_after_they_have_settled() {
    let settings = json!({"application_ack_timeout_ms": 60_000, "mllp_release": 2});
    let mut whole = Whole::start(settings, json!({"confirm": "business"})).await;
    let (mut partner, _) = whole.sent_one("M1").await;
    assert_eq!(body_of(&mut partner).await, COMMITTED);
    // Beside another message's that is in flight.
    whole.gateway.lease(&[leased(2, &order("M2"))]).await;
    assert_eq!(body_of(&mut partner).await, order("M2"));
    write(&mut partner, &ack("AA", "M1")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t1", "delivered")]);
    assert!(timeout(PAUSE, partner.next()).await.is_err(), "before the gateway had it");
    call.settled("ok");
    assert_eq!(body_of(&mut partner).await, COMMITTED);
    write(&mut partner, &ack("CA", "M2")).await;
    sent(whole.settled().await);
    assert_eq!(body_of(&mut partner).await, COMMITTED);
    // And while nothing is.
    write(&mut partner, &ack("AA", "M2")).await;
    let call = whole.gateway.next("/v1/settle").await;
    assert_eq!(call.outcomes(), [("t2", "delivered")]);
    assert!(timeout(PAUSE, partner.next()).await.is_err(), "before the gateway had it");
    call.settled("ok");
    assert_eq!(body_of(&mut partner).await, COMMITTED);
}
