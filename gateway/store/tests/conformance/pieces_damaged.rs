//! A damaged or missing piece is a damaged payload: named, and kept from nobody's other messages.

use gatepost_core::MessageId;
use gatepost_store::salvage::{self, Fate, Repair};
use gatepost_store::{Data, StoreError};
use sqlx::Connection as _;

use crate::check::{assert_sound, connect};
use crate::fixture::{DELIVERED, Fixture, Place, queue, quick};
use crate::pieces::{large, text};

const MIB: usize = 1024 * 1024;

/// What is done to the second of three messages.
const HARMS: [&str; 4] = [
    "UPDATE piece SET bytes = zeroblob(length(bytes)) WHERE number = 3 AND message = ?1",
    "UPDATE piece SET sum = sum + 1, bytes = CAST(bytes || x'00' AS BLOB) WHERE number = 2 AND message = ?1",
    "DELETE FROM piece WHERE number = 1 AND message = ?1",
    "DELETE FROM piece WHERE message = ?1 AND number = (SELECT max(number) FROM piece WHERE message = ?1)",
];

async fn harmed(harm: &'static str) -> (Place, [MessageId; 3]) {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let mut ids = Vec::new();
    for id in ["first", "second", "third"] {
        // Small enough to come with its lease.
        ids.push(fixture.accept(vec![large(id, MIB / 2)]).await.unwrap()[0].id);
    }
    fixture.until_signed().await;
    let place = fixture.stop().await;
    let mut connection = connect(&place).await;
    let done = sqlx::query(harm).bind(ids[1].as_bytes().to_vec()).execute(&mut connection).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    connection.close().await.unwrap();
    (place, ids.try_into().unwrap())
}

#[tokio::test]
async fn a_damaged_piece_is_a_damaged_payload() {
    for harm in HARMS {
        let (place, ids) = harmed(harm).await;
        let fixture = place.open().await.unwrap();
        let read = fixture.store.read().message(ids[1], Data::Include).await;
        assert!(
            matches!(&read, Err(StoreError::Corrupt { table: "message", column: "data", .. })),
            "{harm}: {read:?}"
        );
        let session = fixture.session("lab").await;
        let leased = fixture.lease("lab", session, 10).await;
        let found: Vec<MessageId> = leased.iter().map(|leased| leased.message.id).collect();
        assert_eq!(found, [ids[0], ids[2]], "{harm}");
        for leased in &leased {
            fixture.taken("lab", session, leased, DELIVERED).await;
        }
        assert_eq!(fixture.stats("lab").await.dead, 1, "{harm}");
        assert_sound(&fixture.stop().await, harm).await;
    }
}

#[tokio::test]
async fn what_has_all_its_pieces_is_saved_and_what_has_not_is_listed() {
    for harm in HARMS {
        let (place, ids) = harmed(harm).await;
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("new");
        let repair = Repair {
            source: place.path(),
            seal_keys: Default::default(),
            target: &target,
            operator: "ops",
            origin: "test-gateway",
        };
        let salvaged = salvage::repair(&repair).unwrap();
        let of_second = |damage: &&salvage::Damage| damage.id.as_deref() == Some(&ids[1].to_string());
        let fates: Vec<Fate> = salvaged.damage.iter().filter(of_second).map(|damage| damage.fate).collect();
        assert_eq!(fates, [Fate::Dead], "{harm}: {:#?}", salvaged.damage);
        assert_eq!((salvaged.messages, salvaged.deliveries), (3, 3), "{harm}");
        let dir = tempfile::TempDir::new_in(dir.path()).unwrap();
        std::fs::remove_dir(dir.path()).unwrap();
        std::fs::rename(&target, dir.path()).unwrap();
        let new = Place { dir: std::sync::Arc::new(dir), ..place };
        let fixture = new.open().await.unwrap();
        for (id, name) in ids.into_iter().zip(["first", "second", "third"]) {
            let stored = fixture.store.read().message(id, Data::Include).await.unwrap().unwrap();
            let expected = (name != "second").then(|| text(name, MIB / 2));
            assert!(stored.data.as_deref() == expected.as_deref().map(str::as_bytes), "{harm}: {name}");
        }
        assert_eq!(fixture.stats("lab").await.dead, 1, "{harm}");
        let place = fixture.stop().await;
        let mut connection = connect(&place).await;
        let left: i64 = sqlx::query_scalar("SELECT count(DISTINCT message) FROM piece")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(left, 2, "{harm}: nothing is kept of what is not whole");
        connection.close().await.unwrap();
        assert_sound(&place, harm).await;
    }
}
