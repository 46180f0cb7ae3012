//! A delivery whose message is damaged ends when it is leased, and what was leased behind it with it.

use gatepost_core::{OnDead, OnDoubt, QueuePolicy};
use sqlx::Connection as _;

use crate::check::{assert_sound, connect};
use crate::fixture::{BEGIN, Fixture, doubting, inbox, texts};

#[tokio::test]
async fn a_damaged_message_that_holds_its_lane_takes_back_what_is_leased_behind_it() {
    let policy = QueuePolicy { window: 4, on_dead: OnDead::HoldLane, ..doubting(OnDoubt::Hold) };
    let fixture = Fixture::new(vec![inbox("in", policy)]).await;
    let damaged = fixture.send("damaged", Some("a"), "in").await;
    for id in ["second", "third"] {
        fixture.send(id, Some("a"), "in").await;
    }
    let place = fixture.stop().await;
    let mut connection = connect(&place).await;
    let harm = "UPDATE message SET data = zeroblob(length(data)) WHERE seq = (SELECT min(seq) FROM message)";
    assert_eq!(sqlx::query(harm).execute(&mut connection).await.unwrap().rows_affected(), 1);
    connection.close().await.unwrap();
    let fixture = place.open().await.unwrap();
    let behind = fixture.lease("in", 0, 4).await;
    assert_eq!(texts(&behind), ["second", "third"]);
    assert_eq!(fixture.state(damaged).await, "dead");
    for leased in &behind {
        assert_eq!(fixture.stale("in", 0, leased, BEGIN).await, "waiting");
    }
    assert!(fixture.lease("in", 0, 4).await.is_empty(), "the lane is held");
    assert_sound(&fixture.stop().await, "a damaged head").await;
}
