//! The log as it is published while the store runs: checkpoints, tiles, entries and receipts.

use gatepost_audit::{
    Checkpoint, Leaf, Proof, Tail, leaf_hash, parse_bundle, range_root, tiles::parse_tile, verify_dir,
};
use gatepost_core::{DeliveryId, Outcome};
use gatepost_store::{AuditNote, Receipt};

use crate::check::{entries, vkey};
use crate::fixture::{DELIVERED, Fixture, RETRY, item, message, operator, queue, quick};

/// Enough messages for two full bundles, some of them delivered.
pub(crate) async fn grown() -> (Fixture, Vec<DeliveryId>) {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let batch = (0..400).map(|n| message(&n.to_string(), None, "x", &["lab"])).collect();
    let accepted = fixture.accept(batch).await.unwrap();
    let leased = fixture.lease("lab", session, 150).await;
    let items = leased.iter().map(|leased| item(leased, DELIVERED)).collect();
    fixture.store.delivery_settle(fixture.settling("lab", session, items)).await.unwrap();
    (fixture, accepted.into_iter().map(|accepted| accepted.deliveries[0].id).collect())
}

#[tokio::test]
async fn r13_7_a_checkpoint_follows_by_itself_and_its_tiles_lead_to_its_root() {
    let (fixture, _) = grown().await;
    fixture.until_signed().await;
    let reader = fixture.store.read();
    let signed = Checkpoint::open(&reader.checkpoint(), &[vkey(fixture.place.path())]).unwrap();
    assert_eq!((signed.origin.as_str(), signed.size), ("test-gateway", fixture.leaves().await));
    let mut hashes = Vec::new();
    for index in 0..signed.size.div_ceil(256) {
        let width = u8::try_from((signed.size - index * 256).min(256) % 256).unwrap();
        let width = (width > 0).then_some(width);
        let bundle = reader.entries(index, width).await.unwrap().unwrap();
        let tile = parse_tile(&reader.tile(0, index, width).await.unwrap().unwrap()).unwrap();
        let leaves: Vec<_> = parse_bundle(&bundle).unwrap().into_iter().map(leaf_hash).collect();
        assert_eq!(leaves, tile, "bundle {index}");
        hashes.extend(leaves);
    }
    assert_eq!(range_root(&hashes), signed.root);
    assert_eq!(reader.entries(signed.size / 256 + 1, None).await.unwrap(), None);
    assert_eq!(reader.tile(0, signed.size / 256, None).await.unwrap(), None, "not full yet");
    assert_eq!(reader.tile(5, 0, None).await.unwrap(), None);
}

#[tokio::test]
async fn every_leaf_of_every_delivery_has_a_receipt_that_verifies() {
    let (fixture, deliveries) = grown().await;
    fixture.until_signed().await;
    let key = vkey(fixture.place.path());
    for delivery in deliveries.iter().step_by(7) {
        let Receipt::Proofs(proofs) = fixture.store.read().receipt(*delivery).await.unwrap() else {
            panic!("{delivery} has no receipt")
        };
        let events = fixture.events(*delivery).await;
        assert_eq!(proofs.len(), events.len());
        for (text, event) in proofs.iter().zip(events) {
            let proof = Proof::parse(text.as_bytes()).unwrap();
            let entry = fixture.store.read().entry(proof.index).await.unwrap();
            proof.verify_entry(std::slice::from_ref(&key), &entry).unwrap();
            let leaf = Leaf::parse(&entry).unwrap();
            assert_eq!(leaf.event.as_str(), event);
            let named = leaf.delivery.iter().chain(leaf.deliveries.iter().map(|named| &named.id));
            assert!(named.into_iter().any(|id| id == delivery.as_bytes()));
        }
    }
    let nobody = DeliveryId::from_bytes([1; 16]);
    assert_eq!(fixture.store.read().receipt(nobody).await.unwrap(), Receipt::Unknown);
}

#[tokio::test]
async fn r13_14_a_receipt_that_no_checkpoint_covers_is_pending() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    fixture.until_signed().await;
    let delivery = fixture.send("1", None, "lab").await;
    // Whether the checkpoint has come already or not: never a proof of fewer leaves than there are.
    match fixture.store.read().receipt(delivery).await.unwrap() {
        Receipt::Pending => {}
        Receipt::Proofs(proofs) => assert_eq!(proofs.len(), 1),
        Receipt::Unknown => panic!("the delivery is known"),
    }
    fixture.until_signed().await;
    assert!(matches!(fixture.store.read().receipt(delivery).await.unwrap(), Receipt::Proofs(_)));
}

#[tokio::test]
async fn the_log_verifies_while_it_grows() {
    let (fixture, _) = grown().await;
    fixture.until_signed().await;
    let session = fixture.session("lab").await;
    for leased in fixture.lease("lab", session, 5).await {
        fixture.taken("lab", session, &leased, RETRY).await;
    }
    let size = fixture.leaves().await;
    let mut all = Vec::new();
    for index in 0..size {
        all.push(fixture.store.read().entry(index).await.unwrap());
    }
    let mut options = gatepost_audit::Options::new(vkey(fixture.place.path()));
    options.tail = Some(Box::new(move |start| {
        Ok(Tail { start, leaves: all[usize::try_from(start).unwrap()..].to_vec() })
    }));
    let report = verify_dir(&fixture.place.path().join("audit"), options, &mut |_, _| {}).unwrap();
    assert_eq!(report.size + report.unsigned, size);
}

#[tokio::test]
async fn who_did_it_stands_in_each_leaf() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let delivery = fixture.send("1", None, "lab").await;
    let leased = fixture.lease_one("lab", session).await;
    fixture.taken("lab", session, &leased, Outcome::Reject).await;
    fixture.operate(delivery, gatepost_store::Verb::Discard).await.unwrap();
    let message = fixture.row(delivery).await.message;
    let history = fixture.store.read().message_detail(message).await.unwrap().unwrap().history;
    let steps: Vec<(&str, &str, Option<&str>)> =
        history.iter().map(|step| (step.event.as_str(), step.by.as_str(), step.reason.as_deref())).collect();
    assert_eq!(
        steps,
        [
            ("accepted", "app:ehr", None),
            ("attempt", "adapter:lab", None),
            ("dead", "adapter:lab", None),
            ("discarded", "operator:ops", Some("because")),
        ]
    );
    assert_eq!(history[2].code.as_deref(), Some("rejected"));
}

#[tokio::test]
async fn operator_and_security_events_are_leaves() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let pause = gatepost_store::Pause::Pause;
    fixture.store.queue_pause(&operator(), "lab".into(), pause).await.unwrap();
    let mut note = AuditNote::new(gatepost_audit::Event::Refused, crate::fixture::app());
    note.code = Some("type_not_allowed".into());
    note.count = Some(12);
    fixture.store.audit_note(vec![note]).await.unwrap();
    let place = fixture.stop().await;
    let all = entries(&place).await;
    let leaves: Vec<Leaf<'_>> = all.iter().map(|entry| Leaf::parse(entry).unwrap()).collect();
    let found = |event| leaves.iter().find(|leaf| leaf.event == event).unwrap();
    let paused = found(gatepost_audit::Event::QueuePaused);
    assert_eq!((paused.by.name.as_ref(), paused.subject_of.as_deref()), ("ops", Some("lab")));
    assert_eq!(found(gatepost_audit::Event::Refused).count, Some(12));
    assert_eq!(leaves[0].event, gatepost_audit::Event::LogOpened);
}

#[tokio::test]
async fn what_identifies_a_person_stands_in_no_leaf() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let mut canary = message("canary-id", Some("canary-key"), "canary-data", &["lab"]);
    canary.subject = Some("canary-subject".into());
    canary.correlation_id = Some("canary-correlation".into());
    fixture.accept(vec![canary]).await.unwrap();
    for entry in entries(&fixture.stop().await).await {
        assert!(!String::from_utf8(entry).unwrap().contains("canary"));
    }
}
