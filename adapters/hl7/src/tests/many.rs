//! Several partners: whose a message is, whose an answer is, and what each of them is told apart by.

use bytes::Bytes;
use gatepost_adapter::testing::{Call, Gateway};
use gatepost_adapter::{Adapter as _, Failure};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{HANG, ack, body_of, channel, connect_from, free_address, is_closed, kept, leased, order, write};
use crate::adapter::Hl7;
use crate::awaited::AWAITED_MAX;
use crate::channel::Channel;
use crate::mllp::COMMITTED;

fn leased_for(number: u128, partner: &str, body: &Bytes) -> Value {
    let mut leased = leased(number, body);
    leased["event"]["partitionkey"] = partner.into();
    leased["event"]["hl7partner"] = partner.into();
    leased
}

/// Partners `north`, which connects to us from 127.0.0.2, and `south`, which does from 127.0.0.3.
struct Region {
    north: TcpListener,
    south: TcpListener,
    listen: String,
    gateway: Gateway,
    _running: JoinHandle<Result<(), Failure>>,
}

impl Region {
    async fn start(changes: Value, of_south: Value) -> Self {
        Self::resume(changes, of_south, json!({})).await
    }

    /// With what an earlier session has left in adapter state.
    async fn resume(changes: Value, of_south: Value, state: Value) -> Self {
        let north = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let south = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = free_address().await;
        let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
        let mut second = json!({"name": "south", "connect": address(&south), "from": ["127.0.0.3"]});
        second.as_object_mut().unwrap().extend(of_south.as_object().unwrap().clone());
        let mut settings = json!({"listen": listen, "application_ack_timeout_ms": 60_000, "partners": [
            {"name": "north", "connect": address(&north), "from": ["127.0.0.2"]}, second
        ]});
        settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let (gateway, session) = Gateway::open(json!({"confirm": "business", "state": state})).await;
        let settings = serde_json::from_value(settings).unwrap();
        assert_eq!(Hl7::check(&settings), []);
        let running = tokio::spawn(Hl7::run(settings, session));
        Self { north, south, listen, gateway, _running: running }
    }

    async fn connect_from(&self, address: &str) -> Channel {
        connect_from(address, &self.listen).await
    }

    /// A message with this id is `sent` to both: number 1 to `north`, 2 to `south`.
    async fn sent_to_both(&mut self, control_id: &str) -> (Channel, Channel) {
        let body = order(control_id);
        self.gateway.lease(&[leased_for(1, "north", &body)]).await;
        let mut north = channel(self.north.accept().await.unwrap().0);
        body_of(&mut north).await;
        write(&mut north, &ack("CA", control_id)).await;
        assert_eq!(self.settled().await["outcome"], "sent");
        self.gateway.lease(&[leased_for(2, "south", &body)]).await;
        let mut south = channel(self.south.accept().await.unwrap().0);
        body_of(&mut south).await;
        write(&mut south, &ack("CA", control_id)).await;
        assert_eq!(self.settled().await["outcome"], "sent");
        (north, south)
    }

    async fn next(&mut self, path: &str) -> Call {
        timeout(HANG, self.gateway.next(path)).await.expect("the gateway hears nothing")
    }

    /// The next result.
    async fn settled(&mut self) -> Value {
        let call = self.next("/v1/settle").await;
        let result = call.body["results"][0].clone();
        call.settled("ok");
        result
    }
}

#[tokio::test]
async fn an_answer_counts_for_the_message_of_its_partner_whoever_else_got_the_same_id() {
    let mut region = Region::start(json!({}), json!({})).await;
    let (_north, mut south) = region.sent_to_both("M1").await;
    write(&mut south, &ack("AA", "M1")).await;
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t2"), &json!("delivered")));
    // A neighbour whom nobody knows; then the partner itself, over a connection of its own.
    let mut neighbour = region.connect_from("127.0.0.9").await;
    write(&mut neighbour, &ack("AR", "M1")).await;
    let call = region.next("/v1/messages").await;
    assert_eq!(call.body["hl7partner"], Value::Null);
    call.answer_problem("no_route");
    let mut other = region.connect_from("127.0.0.3").await;
    write(&mut other, &ack("AR", "M1")).await;
    let call = region.next("/v1/messages").await;
    assert_eq!(call.body["hl7partner"], "south", "it has answered already");
    call.answer_problem("no_route");
    let mut own = region.connect_from("127.0.0.2").await;
    write(&mut own, &ack("AA", "M1")).await;
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("delivered")));
}

#[tokio::test]
async fn a_partner_that_owes_as_many_answers_as_it_may_waits_and_nobody_else_does() {
    // As many as each of two may owe, from an earlier session.
    let state: serde_json::Map<_, _> =
        (0..AWAITED_MAX / 2).map(|number| kept(number, Some("north"), 4_000_000_000)).collect();
    let mut region = Region::resume(json!({}), json!({}), state.into()).await;
    region.gateway.lease(&[leased_for(1, "north", &order("M1")), leased_for(2, "south", &order("M2"))]).await;
    let mut south = channel(region.south.accept().await.unwrap().0);
    body_of(&mut south).await;
    write(&mut south, &ack("AA", "M2")).await;
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t2"), &json!("delivered")));
    // Charged with nothing: nothing of it has left.
    let result = region.settled().await;
    assert_eq!(
        (&result["token"], &result["outcome"], &result["scope"]),
        (&json!("t1"), &json!("retry"), &json!("lane"))
    );
    let reason = result["reason"].as_str().unwrap();
    assert!(reason.starts_with("partner `north`: it owes 2048 acknowledgements"), "{reason}");
    // One answer, and what waits goes at once.
    let mut answering = region.connect_from("127.0.0.2").await;
    write(&mut answering, &ack("AA", "OLD7")).await;
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("old"), &json!("delivered")));
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("wake")));
    region.gateway.lease(&[leased_for(1, "north", &order("M1"))]).await;
    let mut north = channel(region.north.accept().await.unwrap().0);
    assert_eq!(body_of(&mut north).await, order("M1"));
}

#[tokio::test]
async fn who_is_listed_may_answer_and_of_the_partners_each_its_own_messages() {
    let listed = json!({"answers_from": ["127.0.0.3", "127.0.0.9"]});
    let mut region = Region::start(listed, json!({})).await;
    let _lines = region.sent_to_both("M1").await;
    // Not listed, though it went there: its answer is a message.
    let mut north = region.connect_from("127.0.0.2").await;
    write(&mut north, &ack("AR", "M1")).await;
    region.next("/v1/messages").await.answer_problem("no_route");
    // Listed and a partner: its own.
    let mut south = region.connect_from("127.0.0.3").await;
    write(&mut south, &ack("AA", "M1")).await;
    assert_eq!(region.settled().await["token"], "t2");
    write(&mut south, &ack("AR", "M1")).await;
    region.next("/v1/messages").await.answer_problem("no_route");
    // Listed and none of them, as a hub that answers for all.
    let mut hub = region.connect_from("127.0.0.9").await;
    write(&mut hub, &ack("AA", "M1")).await;
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t1"), &json!("delivered")));
}

#[tokio::test]
async fn a_refusal_is_read_by_its_partners_table_and_is_never_the_whole_destinations_trouble() {
    let of_south = json!({"on_ack": {"AE": "retry_destination"}});
    let mut region = Region::start(json!({}), of_south).await;
    let (mut north, mut south) = region.sent_to_both("M1").await;
    write(&mut north, &ack("AE", "M1")).await;
    assert_eq!(region.settled().await["outcome"], "reject");
    write(&mut south, &ack("AE", "M1")).await;
    let result = region.settled().await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("lane")));
    // While it is being sent too.
    region.gateway.lease(&[leased_for(3, "south", &order("M3"))]).await;
    let result = region.settled().await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("lane")), "it is away");
    assert!(
        result["reason"].as_str().unwrap().starts_with("partner `south` is away: the partner answered AE")
    );
}

/// Where the partner is to be told that its answer has been taken, the worker settles it itself; that brakes the partner likewise.
#[tokio::test]
async fn a_partner_that_asks_for_a_pause_gets_it_with_commit_bytes_too() {
    let of_south = json!({"mllp_release": 2, "on_ack": {"AE": "retry_destination"}});
    let mut region = Region::start(json!({}), of_south).await;
    region.gateway.lease(&[leased_for(3, "south", &order("M3"))]).await;
    let mut south = channel(region.south.accept().await.unwrap().0);
    body_of(&mut south).await;
    write(&mut south, &Bytes::from_static(COMMITTED)).await;
    write(&mut south, &ack("AE", "M3")).await;
    let result = region.settled().await;
    let said = (&result["token"], &result["outcome"], &result["scope"]);
    assert_eq!(said, (&json!("t3"), &json!("retry"), &json!("lane")));
    assert_eq!(body_of(&mut south).await, COMMITTED, "its answer has been taken");
    region.gateway.lease(&[leased_for(4, "south", &order("M4"))]).await;
    let result = region.settled().await;
    let reason = result["reason"].as_str().unwrap();
    assert!(reason.starts_with("partner `south` is away: the partner answered AE"), "{result}");
    // Others go on meanwhile, and it gets one after the pause: the first that went back.
    region.gateway.lease(&[leased_for(5, "north", &order("M5"))]).await;
    let mut north = channel(region.north.accept().await.unwrap().0);
    body_of(&mut north).await;
    let result = region.settled().await;
    assert_eq!((&result["token"], &result["outcome"]), (&json!("t3"), &json!("wake")));
}

#[tokio::test]
async fn what_comes_from_a_partner_says_whose_it_is_and_is_read_as_that_one_writes() {
    let of_south = json!({"charset": "windows-1252"});
    let mut region = Region::start(json!({}), of_south).await;
    let body = Bytes::from_static(b"MSH|^~\\&|A|B|C|D|||ADT^A01|M1|P|2.5\rPID|1||\x80\r");
    for (address, partner, key) in [
        ("127.0.0.3", json!("south"), "\u{20ac}"),
        ("127.0.0.2", json!("north"), "\u{fffd}"),
        ("127.0.0.4", Value::Null, "\u{fffd}"),
    ] {
        let mut partner_side = region.connect_from(address).await;
        write(&mut partner_side, &body).await;
        let call = region.next("/v1/messages").await;
        assert_eq!(
            (&call.body["hl7partner"], &call.body["partitionkey"]),
            (&partner, &json!(key)),
            "{address}"
        );
        call.answer_problem("no_route");
    }
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed_and_the_next_message_makes_a_new_one() {
    let mut region = Region::start(json!({"idle_disconnect_ms": 1000}), json!({})).await;
    for number in [1, 2] {
        region.gateway.lease(&[leased_for(number, "north", &order("M1"))]).await;
        let mut north = channel(region.north.accept().await.unwrap().0);
        body_of(&mut north).await;
        write(&mut north, &ack("AA", "M1")).await;
        assert_eq!(region.settled().await["outcome"], "delivered");
        assert!(is_closed(&mut north).await);
    }
}
