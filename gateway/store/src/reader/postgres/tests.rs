mod plans;
mod server;

use std::sync::Arc;

use gatepost_audit::{ActorKind, By, Event as LeafEvent, Leaf, encode_bundle};
use gatepost_core::{DeliveryId, MessageId, Timestamp};
use sqlx::PgPool;

use super::*;
use crate::clock::{self, Clock};
use crate::ops::{DeliveryFilter, MessageFilter};
use crate::reader::{Data, Reader, Receipt, Source};
use crate::seal::{Domain, Owner, SALT_BYTES, Salt, Vault};
use server::Server;

const SALT: [u8; SALT_BYTES] = [0; SALT_BYTES];

fn vault() -> Vault {
    Vault::new(&[1; 32])
}

fn message_id(seq: i64) -> MessageId {
    MessageId::from_bytes((seq as u128).to_be_bytes())
}

fn delivery_id(pos: i64) -> DeliveryId {
    DeliveryId::from_bytes((pos as u128).to_be_bytes())
}

fn reader(pool: &PgPool, dir: &tempfile::TempDir) -> Reader {
    let clock = Clock::start(clock::Source::Machine, Timestamp::default());
    let source = Source::postgres(pool.clone());
    Reader::new(source, vault(), dir.path().to_path_buf(), Arc::default(), Arc::default(), clock)
}

/// A message with its payload, and where its deliveries begin.
struct Message {
    seq: i64,
    day: i32,
    first_pos: i64,
    deliveries: i32,
    sender: (&'static str, &'static str),
    subject: Option<&'static str>,
    correlation: Option<MessageId>,
}

impl Message {
    const fn new(seq: i64, day: i32) -> Self {
        let sender = ("app", "ehr");
        Self { seq, day, first_pos: seq * 10, deliveries: 1, sender, subject: None, correlation: None }
    }

    async fn add(&self, pool: &PgPool) {
        let (vault, id) = (vault(), message_id(self.seq));
        let attributes = Owner::Attributes { message: id.as_bytes() };
        let index = |domain, text: String| vault.index(domain, &[text.as_bytes()]).to_vec();
        sqlx::query(
            "INSERT INTO message (seq, id, day, accepted_at, sender_kind, sender, kind, form, size, dedup, fingerprint, subject, \
             correlation, first_pos, deliveries, remains) VALUES ($1, $2, $3, $1, $4, $5, 'kind', 1, 2, '', '', $6, $7, $8, $9, $10)",
        )
        .bind(self.seq)
        .bind(id.as_bytes().as_slice())
        .bind(self.day)
        .bind(self.sender.0)
        .bind(self.sender.1)
        .bind(self.subject.map(|subject| index(Domain::Subject, subject.to_owned())))
        .bind(self.correlation.map(|of| index(Domain::Correlation, of.to_string())))
        .bind(self.first_pos)
        .bind(self.deliveries)
        .bind(vault.seal(b"{\"of\":\"remains\"}", attributes).unwrap())
        .execute(pool)
        .await
        .unwrap();
        let salt = Salt::from_stored(SALT);
        let data = Owner::Data { message: id.as_bytes(), salt: &salt };
        sqlx::query("INSERT INTO payload (day, seq, attributes, salt, data) VALUES ($1, $2, $3, $4, $5)")
            .bind(self.day)
            .bind(self.seq)
            .bind(vault.seal(b"{\"of\":\"payload\"}", attributes).unwrap())
            .bind(SALT.as_slice())
            .bind(vault.seal(b"{}", data).unwrap())
            .execute(pool)
            .await
            .unwrap();
    }
}

/// A delivery with what its state needs, in queue 1.
async fn add_delivery(pool: &PgPool, pos: i64, message: i64, state: i16, due: Option<i64>, leaves: &[u64]) {
    let leaves: Vec<u8> = leaves.iter().flat_map(|number| number.to_be_bytes()).collect();
    sqlx::query(
        "INSERT INTO delivery (pos, id, message, queue, state, blocks, due, token, until, late, attempts, series, crashes, doubt, \
         suspect, replayed, reason, born, idle_at_birth, changed_at, leaves) VALUES ($1, $2, $3, 1, $4, true, $5, \
         CASE WHEN $4 IN (1, 2) THEN '\\x01'::bytea END, CASE WHEN $4 IN (1, 2) THEN 9 END, false, 1, 0, 0, false, false, false, \
         CASE WHEN $4 = 5 THEN 'rejected' END, $1, 0, $1, $6)",
    )
    .bind(pos)
    .bind(delivery_id(pos).as_bytes().as_slice())
    .bind(message)
    .bind(state)
    .bind(due)
    .bind(leaves)
    .execute(pool)
    .await
    .unwrap();
}

async fn run_sql(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

async fn add_queues(pool: &PgPool) {
    run_sql(
        pool,
        "INSERT INTO queue (id, name, kind, version, trip_failures, idle_before, session) \
         VALUES (1, 'lab', 'adapter', 1, 0, 0, 0), (2, 'other', 'adapter', 1, 0, 0, 0)",
    )
    .await;
}

fn leaf(event: LeafEvent) -> Vec<u8> {
    Leaf::new(5, By::new(ActorKind::App, "ehr"), event).encode().unwrap()
}

/// A run of these leaves, in the tree from `place` on, if it has one.
async fn add_run(pool: &PgPool, day: i32, number: i64, place: Option<i64>, leaves: &[Vec<u8>]) {
    let bytes = encode_bundle(leaves.iter().map(Vec::as_slice)).unwrap();
    let count = i32::try_from(leaves.len()).unwrap();
    let add = "INSERT INTO leaf (day, number, bytes) VALUES ($1, $2, $3)";
    sqlx::query(add).bind(day).bind(number).bind(bytes).execute(pool).await.unwrap();
    let query = match place {
        Some(first) => {
            let add = "INSERT INTO leaf_place (number, day, count, first) VALUES ($1, $2, $3, $4)";
            sqlx::query(add).bind(number).bind(day).bind(count).bind(first)
        }
        None => {
            let add = "INSERT INTO leaf_new (number, day, count) VALUES ($1, $2, $3)";
            sqlx::query(add).bind(number).bind(day).bind(count)
        }
    };
    query.execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_message_has_its_content_until_that_is_gone_and_then_what_remains() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let (pool, reader) = (&server.pool, reader(&server.pool, &dir));
    for (seq, day) in [(1, 0), (2, 3)] {
        Message::new(seq, day).add(pool).await;
    }
    let message = reader.message(message_id(1), Data::Include).await.unwrap().unwrap();
    assert_eq!(message.data.as_deref(), Some(b"{}".as_slice()));
    assert_eq!(&message.attributes[..], b"{\"of\":\"payload\"}");
    assert!(!message.purged);
    let message = reader.message(message_id(1), Data::Omit).await.unwrap().unwrap();
    assert!(!message.purged && message.data.is_none());
    run_sql(pool, "DROP TABLE payload_0").await;
    for data in [Data::Include, Data::Omit] {
        let message = reader.message(message_id(1), data).await.unwrap().unwrap();
        assert!(message.purged && message.data.is_none());
        assert_eq!(&message.attributes[..], b"{\"of\":\"remains\"}");
    }
    assert!(reader.message(message_id(9), Data::Include).await.unwrap().is_none());
    let messages = reader.messages_by_seq(&[2, 1, 9]).await.unwrap();
    assert_eq!(messages.len(), 2);
    assert!(messages[&1].as_ref().unwrap().purged);
    assert_eq!(messages[&2].as_ref().unwrap().data.as_deref(), Some(b"{}".as_slice()));
}

#[tokio::test]
async fn a_payload_above_the_limit_is_there_and_unread() {
    let server = Server::start().await;
    Message::new(1, 0).add(&server.pool).await;
    let source = Source::postgres(server.pool.clone());
    let payload = async |inline| {
        let listed = source.messages_by_seq(&[1], inline).await.unwrap().remove(0);
        listed.row.unwrap().payload
    };
    assert!(matches!(payload(2).await, Payload::Read { salt, .. } if *salt.stored() == SALT));
    assert!(matches!(payload(1).await, Payload::Unread));
    let by_id = source.message_by_id(message_id(1)).await.unwrap().unwrap();
    assert!(matches!(by_id.payload, Payload::Unread));
    assert!(matches!(source.message_payload(1).await.unwrap(), Some(Payload::Read { .. })));
    assert!(source.message_payload(2).await.unwrap().is_none());
}

#[tokio::test]
async fn lists_of_messages_follow_their_filter_and_go_on_from_their_cursor() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let (pool, reader) = (&server.pool, reader(&server.pool, &dir));
    add_queues(pool).await;
    for seq in 1..=6 {
        let subject = (seq % 2 == 0).then_some("ann");
        let sender = ("app", if seq > 3 { "ehr" } else { "lis" });
        Message { subject, sender, ..Message::new(seq, 1) }.add(pool).await;
        add_delivery(pool, seq * 10, seq, 4, None, &[]).await;
    }
    let list = async |filter: MessageFilter, cursor: Option<&str>| {
        let page = reader.message_list(&filter, cursor, 2).await.unwrap();
        let ids: Vec<MessageId> = page.items.iter().map(|item| item.id).collect();
        assert!(page.items.iter().all(|item| item.deliveries.len() == 1));
        (ids, page.next)
    };
    let (ids, next) = list(MessageFilter::default(), None).await;
    assert_eq!(ids, [message_id(6), message_id(5)]);
    assert_eq!(list(MessageFilter::default(), next.as_deref()).await.0, [message_id(4), message_id(3)]);
    let ann = MessageFilter { subject: Some("ann".to_owned()), ..MessageFilter::default() };
    let (ids, next) = list(ann.clone(), None).await;
    assert_eq!(ids, [message_id(6), message_id(4)]);
    assert_eq!(list(ann.clone(), next.as_deref()).await, (vec![message_id(2)], None));
    let lis = MessageFilter { app: Some("lis".to_owned()), ..ann.clone() };
    assert_eq!(list(lis, None).await.0, [message_id(2)]);
    let at = |micros| Some(Timestamp::from_micros(micros));
    let between = MessageFilter { since: at(2), until: at(3), ..MessageFilter::default() };
    assert_eq!(list(between, None).await.0, [message_id(2)]);
    let keyed = MessageFilter { key: Some("none".to_owned()), ..MessageFilter::default() };
    assert_eq!(list(keyed, None).await, (vec![], None));
    let both = MessageFilter { key: Some("none".to_owned()), ..ann };
    assert_eq!(list(both, None).await, (vec![], None));
}

#[tokio::test]
async fn stuck_deliveries_are_listed_by_state_by_who_waits_for_a_person_and_by_destination() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let (pool, reader) = (&server.pool, reader(&server.pool, &dir));
    add_queues(pool).await;
    Message { first_pos: 1, deliveries: 5, ..Message::new(1, 0) }.add(pool).await;
    for (pos, state, due) in [(1, 0, Some(5)), (2, 3, Some(5)), (3, 3, None), (4, 5, None), (5, 4, None)] {
        add_delivery(pool, pos, 1, state, due, &[]).await;
    }
    run_sql(
        pool,
        "UPDATE delivery SET queue = 2 WHERE pos = 4; \
         INSERT INTO stuck (state, pos, queue, held) VALUES (3, 2, 1, false), (3, 3, 1, true), (5, 4, 2, false)",
    )
    .await;
    let list = async |state: Option<&str>, held, destination: Option<&str>| {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let filter = DeliveryFilter { state: owned(state), destination: owned(destination), held };
        let page = reader.delivery_list(&filter, None, 10).await.unwrap();
        page.items.into_iter().map(|item| (item.id, item.reason)).collect::<Vec<_>>()
    };
    let (doubtful, held) = ((delivery_id(2), None), (delivery_id(3), Some("held")));
    let (dead, done) = ((delivery_id(4), Some("rejected")), (delivery_id(5), None));
    let waiting = (delivery_id(1), None);
    assert_eq!(list(Some("in_doubt"), false, None).await, [held, doubtful]);
    assert_eq!(list(Some("in_doubt"), true, None).await, [held]);
    assert_eq!(list(None, true, None).await, [held]);
    assert_eq!(list(None, true, Some("lab")).await, [held]);
    assert_eq!(list(None, true, Some("other")).await, []);
    assert_eq!(list(Some("dead"), false, None).await, [dead]);
    assert_eq!(list(Some("dead"), false, Some("lab")).await, []);
    assert_eq!(list(Some("waiting"), false, Some("lab")).await, [waiting]);
    assert_eq!(list(None, false, None).await, [done, dead, held, doubtful, waiting]);
    assert_eq!(list(None, false, Some("other")).await, [dead]);
    let page = reader.delivery_list(&DeliveryFilter::default(), Some("3"), 1).await.unwrap();
    assert_eq!(page.items[0].id, delivery_id(2));
    assert_eq!(page.next.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_leaf_is_found_by_its_number_and_once_it_has_a_place_by_that() {
    let server = Server::start().await;
    let (pool, source) = (&server.pool, Source::postgres(server.pool.clone()));
    let leaves = |names: [&str; 3]| names.map(|name| name.as_bytes().to_vec());
    // A later number may get an earlier place.
    add_run(pool, 0, 200, Some(0), &leaves(["a", "b", "c"])).await;
    add_run(pool, 1, 100, Some(3), &leaves(["d", "e", "f"])).await;
    add_run(pool, 1, 103, Some(6), &leaves(["g", "h", "i"])).await;
    add_run(pool, 2, 300, None, &leaves(["x", "y", "z"])).await;
    let asked = [302, 200, 202, 203, 102, 103, 99, 106, 200];
    let places = [None, Some(0), Some(2), None, Some(5), Some(6), None, None, Some(0)];
    assert_eq!(source.leaf_indices(&asked).await.unwrap(), places);
    for (number, leaf) in
        [(302, Some("z")), (300, Some("x")), (303, None), (102, Some("f")), (103, Some("g")), (99, None)]
    {
        let found = source.leaf_by_number(number).await.unwrap();
        assert_eq!(found.as_deref(), leaf.map(str::as_bytes), "{number}");
    }
    let read = async |from, to| {
        let leaves = source.leaves(from, to, Check::Sums).await.unwrap();
        let text = |(index, leaf): (u64, Vec<u8>)| format!("{index}{}", String::from_utf8(leaf).unwrap());
        leaves.into_iter().map(text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(read(0, 9).await, "0a 1b 2c 3d 4e 5f 6g 7h 8i");
    assert_eq!(read(4, 7).await, "4e 5f 6g");
    assert_eq!(read(8, u64::MAX >> 1).await, "8i");
    assert_eq!(read(9, 20).await, "");
    run_sql(pool, "DELETE FROM leaf_place WHERE first < 3").await;
    assert_eq!(read(0, 5).await, "3d 4e");
    // Filed and dropped: whoever asks has a file.
    run_sql(pool, "DROP TABLE leaf_1").await;
    assert_eq!(read(0, 9).await, "");
    run_sql(pool, "DELETE FROM leaf_place").await;
}

#[tokio::test]
async fn a_run_with_more_or_fewer_leaves_than_were_counted_is_corrupt() {
    let server = Server::start().await;
    let source = Source::postgres(server.pool.clone());
    add_run(&server.pool, 0, 1, Some(0), &[b"a".to_vec(), b"b".to_vec()]).await;
    run_sql(&server.pool, "UPDATE leaf_place SET count = 3").await;
    let corrupt = source.leaves(0, 3, Check::Sums).await;
    assert!(matches!(corrupt, Err(StoreError::Corrupt { table: "leaf", column: "count", .. })));
}

#[tokio::test]
async fn a_history_shows_what_has_no_place_yet_and_a_receipt_waits_for_it() {
    let (server, dir) = (Server::start().await, tempfile::tempdir().unwrap());
    let (pool, reader) = (&server.pool, reader(&server.pool, &dir));
    add_queues(pool).await;
    Message { deliveries: 2, ..Message::new(1, 2) }.add(pool).await;
    add_delivery(pool, 10, 1, 5, None, &[100, 200]).await;
    add_delivery(pool, 11, 1, 1, None, &[101]).await;
    add_run(pool, 2, 100, Some(0), &[leaf(LeafEvent::Accepted), leaf(LeafEvent::Attempt)]).await;
    add_run(pool, 3, 200, None, &[leaf(LeafEvent::Dead)]).await;
    let detail = br#"{"reason":"because","evidence":null}"#;
    let detail = vault().seal(detail, Owner::Detail { leaf: 200, delivery: 10 }).unwrap();
    let reply = vault().seal(b"{}", Owner::Reply { delivery: 10 }).unwrap();
    sqlx::query("INSERT INTO detail (day, delivery, leaf, body) VALUES (2, 10, 200, $1)")
        .bind(detail)
        .execute(pool)
        .await
        .unwrap();
    sqlx::query("INSERT INTO reply (day, delivery, body) VALUES (2, 10, $1)")
        .bind(reply)
        .execute(pool)
        .await
        .unwrap();
    let lab = ("adapter", "lab");
    for seq in [3, 2] {
        Message { correlation: Some(message_id(1)), sender: lab, ..Message::new(seq, 3) }.add(pool).await;
    }
    run_sql(pool, "DELETE FROM payload WHERE seq = 3").await;
    let detail = reader.message_detail(message_id(1)).await.unwrap().unwrap();
    let steps: Vec<(DeliveryId, &str, Option<&str>)> = detail
        .history
        .iter()
        .map(|step| (step.delivery, step.event.as_str(), step.reason.as_deref()))
        .collect();
    let (first, second) = (delivery_id(10), delivery_id(11));
    assert_eq!(
        steps,
        [(first, "accepted", None), (first, "dead", Some("because")), (second, "attempt", None)]
    );
    let replies: Vec<Option<&str>> = detail.deliveries.iter().map(|(_, reply)| reply.as_deref()).collect();
    assert_eq!(replies, [Some("{}"), Some(r#"{"data":{}}"#)]);
    assert_eq!(reader.receipt(first).await.unwrap(), Receipt::Pending);
    assert_eq!(reader.receipt(delivery_id(9)).await.unwrap(), Receipt::Unknown);
    assert!(reader.message_leased_in(message_id(1), &["lab".to_owned()]).await.unwrap());
    assert!(!reader.message_leased_in(message_id(1), &["other".to_owned()]).await.unwrap());
    assert_eq!(reader.delivery_sender(first).await.unwrap().unwrap().name, "ehr");
    assert_eq!(reader.delivery_sender(delivery_id(9)).await.unwrap(), None);
    assert_eq!(reader.delivery(second).await.unwrap().unwrap().state, "leased");
    run_sql(pool, "UPDATE delivery SET message = 77 WHERE pos = 11").await;
    let orphan = reader.delivery_sender(second).await;
    assert!(matches!(orphan, Err(StoreError::Corrupt { table: "message", column: "seq", .. })));
}

#[tokio::test]
async fn ages_of_a_queue_count_what_is_ready_leased_or_in_doubt() {
    let server = Server::start().await;
    let (pool, source) = (&server.pool, Source::postgres(server.pool.clone()));
    add_queues(pool).await;
    let queue = source.queue_id("lab").await.unwrap().unwrap();
    assert_eq!(source.queue_id("none").await.unwrap(), None);
    let ages = async || {
        let ready = source.queue_oldest_ready(queue).await.unwrap();
        let born = source.queue_oldest_born(queue).await.unwrap();
        (ready.map(Timestamp::as_micros), born.map(Timestamp::as_micros))
    };
    assert_eq!(ages().await, (None, None));
    for (pos, state, due) in [(3, 0, Some(50)), (4, 0, Some(40)), (2, 1, None), (1, 3, None), (5, 4, None)] {
        add_delivery(pool, pos, 1, state, due, &[]).await;
    }
    run_sql(pool, "INSERT INTO ready (queue, bucket, due, pos, suspect) VALUES (1, 0, 50, 3, false), (1, 63, 40, 4, false), (2, 5, 1, 9, false)").await;
    assert_eq!(ages().await, (Some(40), Some(3)));
    run_sql(pool, "INSERT INTO lease_group (id, epoch, pos) VALUES (1, 1, '{5,7}'), (2, 1, '{2}')").await;
    assert_eq!(ages().await, (Some(40), Some(2)));
    run_sql(pool, "INSERT INTO stuck (state, pos, queue, held) VALUES (3, 1, 1, true)").await;
    assert_eq!(ages().await, (Some(40), Some(1)));
}

#[tokio::test]
async fn a_tree_has_its_size_once_the_store_has_begun() {
    let server = Server::start().await;
    let source = Source::postgres(server.pool.clone());
    assert_eq!(source.tree_size().await.unwrap(), None);
    run_sql(
        &server.pool,
        "INSERT INTO store (id, store_key, log_key, clock, sequenced) VALUES (1, '', '', 0, 7)",
    )
    .await;
    assert_eq!(source.tree_size().await.unwrap(), Some(7));
}
