//! A gateway on SQLite that has seen everything.

use std::time::Duration;

use gatepost_core::message::NewMessage;
use gatepost_core::{DeliveryId, MessageId, OnDead, OnDoubt, Outcome, QueuePolicy};
use gatepost_store::{Data, Emit, LeaseRequest, Leased, Pause, QueueSetup, SessionEnd, Verb};

use super::places;
use crate::fixture::{
    BEGIN, DELIVERED, Fixture, Place, RETRY_LATER, SENT, TROUBLE, doubting, emit, external, inbox, item,
    keyed, merge, message, operator, queue, quick, until,
};

/// Messages that [`filled`] leaves.
pub(super) const MESSAGES: i64 = 450;
/// Messages of one batch, so many that some entries of the log are in files.
const BULK: usize = 420;

pub(super) struct Filled {
    /// On SQLite, and after a start, so that nothing is left that a start would end.
    pub(super) fixture: Fixture,
    pub(super) to: Place,
    /// Of queue `fix`, the first two of lane `w`, by somebody whose leases outlive the gateway.
    pub(super) leased: Vec<Leased>,
    /// A delivery with evidence and a reply.
    pub(super) delivered: DeliveryId,
    /// The message with key `first`.
    pub(super) first: MessageId,
}

fn queues() -> Vec<QueueSetup> {
    vec![
        queue("lab", keyed()),
        queue("holds", QueuePolicy { on_dead: OnDead::HoldLane, ..keyed() }),
        queue("doubts", doubting(OnDoubt::Hold)),
        queue("asks", doubting(OnDoubt::Query)),
        queue("late", doubting(OnDoubt::Hold)),
        queue("down", keyed()),
        external("fix", QueuePolicy { window: 2, ..keyed() }),
        inbox("in", quick()),
        inbox("paused", keyed()),
    ]
}

pub(super) async fn filled() -> Filled {
    let (from, to) = places(queues());
    let first = purged(&from).await;
    let fixture = from.open().await.unwrap();
    let delivered = outcomes(&fixture).await;
    doubts(&fixture).await;
    stuck(&fixture).await;
    let leased = waiting(&fixture).await;
    bulk(&fixture).await;
    let fixture = fixture.restart().await;
    Filled { fixture, to, leased, delivered, first }
}

/// One whose content has gone.
async fn purged(from: &Place) -> MessageId {
    let fixture = from.open().await.unwrap();
    let delivery = fixture.send("first", None, "in").await;
    let leased = fixture.lease_one("in", 0).await;
    fixture.taken("in", 0, &leased, DELIVERED).await;
    let message = fixture.row(delivery).await.message;
    let forgetful = Place { payload_retention: Duration::ZERO, ..fixture.stop().await };
    let fixture = forgetful.open().await.unwrap();
    until("the payload is gone", async || {
        fixture.store.read().message(message, Data::Include).await.unwrap().unwrap().purged
    })
    .await;
    fixture.stop().await;
    message
}

async fn outcomes(fixture: &Fixture) -> DeliveryId {
    let session = fixture.session("lab").await;
    // Something of somebody, which goes with the content.
    let attributes =
        br#"{"specversion":"1.0","id":"delivered","source":"/test","type":"t","subject":"canary"}"#.to_vec();
    let about = NewMessage { attributes, ..message("delivered", Some("k"), "delivered", &["lab"]) };
    let delivered = fixture.accept(vec![about]).await.unwrap()[0].deliveries[0].id;
    let leased = fixture.lease_one("lab", session).await;
    let mut done = item(&leased, DELIVERED);
    done.reply = Some(br#"{"data":"AA"}"#.to_vec());
    done.evidence = Some(br#"{"code":"AA"}"#.to_vec());
    let mut settle = fixture.settling("lab", session, vec![done]);
    settle.state = vec![("seq".into(), Some(b"7".to_vec())), ("sent".into(), Some(b"MSH".to_vec()))];
    settle.emit = vec![
        emit("e1", &["in"]),
        Emit { dead: Some(gatepost_core::delivery::Reason::NoRoute), ..emit("e2", &[]) },
    ];
    settle.atomic = true;
    fixture.store.delivery_settle(settle).await.unwrap();
    for (id, verb) in [("replayed", Some(Verb::Replay)), ("discarded", Some(Verb::Discard)), ("dead", None)] {
        let delivery = fixture.send(id, Some(id), "lab").await;
        let leased = fixture.lease_one("lab", session).await;
        let mut rejected = item(&leased, Outcome::Reject);
        rejected.reason = Some("unknown patient".into());
        fixture.store.delivery_settle(fixture.settling("lab", session, vec![rejected])).await.unwrap();
        if let Some(verb) = verb {
            fixture.operate(delivery, verb).await.unwrap();
        }
        if id == "replayed" {
            let leased = fixture.lease_one("lab", session).await;
            fixture.taken("lab", session, &leased, RETRY_LATER).await;
        }
    }
    // Of several destinations, with a lane of its own in each, and something to search by.
    let several = NewMessage {
        subject: Some("patient".into()),
        correlation_id: Some("c".into()),
        ..message("several", Some("k"), "several", &["lab", "late", "in"])
    };
    fixture.accept(vec![several]).await.unwrap();
    // Crashed with its lease: a suspect, of which one at a time is leased.
    fixture.lease("lab", session, 1).await;
    fixture.store.session_end("lab".into(), SessionEnd::Crashed).await.unwrap();
    delivered
}

async fn doubts(fixture: &Fixture) {
    for name in ["doubts", "asks", "late"] {
        let session = fixture.session(name).await;
        for n in 1..=3 {
            fixture.send(&format!("{name}{n}"), Some("d"), name).await;
        }
        let outcome = if name == "late" { SENT } else { Outcome::InDoubt };
        for leased in fixture.lease(name, session, 1).await {
            fixture.taken(name, session, &leased, BEGIN).await;
            fixture.taken(name, session, &leased, outcome).await;
        }
    }
}

/// A dead one that holds its lane, a destination that is down, and one that an operator has stopped.
async fn stuck(fixture: &Fixture) {
    let session = fixture.session("holds").await;
    for id in ["h1", "h2"] {
        fixture.send(id, Some("h"), "holds").await;
    }
    let leased = fixture.lease_one("holds", session).await;
    let mut refused = item(&leased, Outcome::Reject);
    refused.reply = Some(br#"{"data":"AE"}"#.to_vec());
    fixture.store.delivery_settle(fixture.settling("holds", session, vec![refused])).await.unwrap();
    fixture.accept(vec![merge("m1", ["h", "n"], &["holds"])]).await.unwrap();
    let session = fixture.session("down").await;
    for id in ["t1", "t2"] {
        fixture.send(id, Some(id), "down").await;
    }
    let leased = fixture.lease_one("down", session).await;
    fixture.taken("down", session, &leased, TROUBLE).await;
    for id in ["p1", "p2"] {
        fixture.send(id, Some("p"), "paused").await;
    }
    fixture.store.queue_pause(&operator(), "paused".into(), Pause::Pause).await.unwrap();
}

/// What expires, has expired, and waits behind two leased ones.
async fn waiting(fixture: &Fixture) -> Vec<Leased> {
    let now = fixture.store.read().now();
    for (id, after) in [("soon", Duration::from_millis(1)), ("tomorrow", Duration::from_secs(86_400))] {
        let expiring = NewMessage { expires_at: Some(now + after), ..message(id, Some(id), id, &["holds"]) };
        let accepted = fixture.accept(vec![expiring]).await.unwrap();
        if id == "soon" {
            fixture.until_state(accepted[0].deliveries[0].id, "expired").await;
        }
    }
    for id in ["w1", "w2", "w3", "w4"] {
        fixture.send(id, Some("w"), "fix").await;
    }
    let leased = lease(fixture, "fix", 10).await;
    assert_eq!(leased.len(), 2, "the window");
    leased
}

/// For longer than any test lasts.
async fn lease(fixture: &Fixture, queue: &str, max: u32) -> Vec<Leased> {
    let request = LeaseRequest { lease: Duration::from_secs(3600), ..fixture.request(queue, 0, max) };
    fixture.try_lease(request).await.unwrap().deliveries
}

async fn bulk(fixture: &Fixture) {
    let mut batch: Vec<_> = (0..BULK).map(|n| message(&n.to_string(), None, "x", &["in"])).collect();
    // One that stands in pieces.
    batch[BULK - 1].data = crate::pieces::text("large", 700_000).into_bytes();
    fixture.accept(batch).await.unwrap();
    let leased = lease(fixture, "in", 200).await;
    let items = leased.iter().take(150).map(|leased| item(leased, DELIVERED)).collect();
    fixture.store.delivery_settle(fixture.settling("in", 0, items)).await.unwrap();
}
