//! Rules 4 and 5: a lane whose partner is away, where several of it are leased at a time.

use std::time::Duration;

use gatepost_core::{OnDoubt, Outcome, QueuePolicy};

use crate::check::{assert_log, assert_sound};
use crate::fixture::{AWAY, BEGIN, DELIVERED, Fixture, RETRY, SENT, doubting, item, texts};
use crate::window;

const ALL: [OnDoubt; 3] = [OnDoubt::Resend, OnDoubt::Hold, OnDoubt::Query];

/// Six in each lane, of which four may be leased.
async fn with(on_doubt: OnDoubt, lanes: &[&str]) -> (Fixture, u64) {
    window::with(QueuePolicy { window: 4, ..doubting(on_doubt) }, lanes).await
}

#[tokio::test]
async fn r13_5_what_is_leased_behind_one_whose_partner_is_away_goes_back_with_it_charged_with_nothing() {
    for on_doubt in ALL {
        let (fixture, session) = with(on_doubt, &["a", "b"]).await;
        let leased = fixture.lease("fix", session, 10).await;
        assert_eq!(texts(&leased), ["a1", "a2", "a3", "a4", "b1", "b2", "b3", "b4"]);
        fixture.taken("fix", session, &leased[0], AWAY).await;
        for behind in &leased[1..4] {
            assert_eq!(fixture.stale("fix", session, behind, BEGIN).await, "waiting", "{on_doubt}");
            let row = fixture.row(behind.delivery).await;
            assert_eq!((row.attempts, row.doubt, row.reason), (0, false, None), "{on_doubt}");
        }
        assert_eq!(fixture.taken("fix", session, &leased[4], BEGIN).await, "sending", "{on_doubt}");
        assert_eq!(fixture.stats("fix").await.waiting, 6 + 2, "{on_doubt}");
        assert!(fixture.lease("fix", session, 10).await.is_empty(), "its lane waits for it: {on_doubt}");
        let place = fixture.stop().await;
        assert_sound(&place, "behind one whose partner is away").await;
        assert_log(&place, "behind one whose partner is away").await;
    }
}

#[tokio::test]
async fn r13_5_what_has_been_begun_or_sent_behind_it_stays_so() {
    for on_doubt in ALL {
        let (fixture, session) = with(on_doubt, &["a"]).await;
        let leased = fixture.lease("fix", session, 10).await;
        for begun in &leased[1..3] {
            fixture.taken("fix", session, begun, BEGIN).await;
        }
        fixture.taken("fix", session, &leased[2], SENT).await;
        fixture.taken("fix", session, &leased[0], AWAY).await;
        let states = async |fixture: &Fixture| {
            let mut states = Vec::new();
            for leased in &leased {
                states.push(fixture.state(leased.delivery).await);
            }
            states
        };
        assert_eq!(states(&fixture).await, ["waiting", "sending", "sending", "waiting"], "{on_doubt}");
        fixture.taken("fix", session, &leased[1], DELIVERED).await;
        fixture.taken("fix", session, &leased[2], DELIVERED).await;
        let place = fixture.stop().await;
        assert_sound(&place, "begun behind one whose partner is away").await;
        assert_log(&place, "begun behind one whose partner is away").await;
    }
}

#[tokio::test]
async fn r13_5_what_is_said_of_it_in_the_same_settle_comes_too_late() {
    let (fixture, session) = with(OnDoubt::Resend, &["a"]).await;
    let leased = fixture.lease("fix", session, 10).await;
    let items = vec![
        item(&leased[1], BEGIN),
        item(&leased[0], AWAY),
        item(&leased[2], DELIVERED),
        item(&leased[3], AWAY),
    ];
    let answer = fixture.store.delivery_settle(fixture.settling("fix", session, items)).await.unwrap();
    let ok: Vec<bool> = answer.items.iter().map(|item| item.ok).collect();
    assert_eq!(ok, [true, true, false, false]);
    let states = [fixture.state(leased[1].delivery).await, fixture.state(leased[2].delivery).await];
    assert_eq!(states, ["sending", "waiting"]);
    // Only the one that went back by itself is woken.
    fixture.stale("fix", session, &leased[3], Outcome::Wake).await;
    assert_sound(&fixture.stop().await, "within a settle").await;
}

/// The first shows whether the partner is there, as the breaker's probe does: also after a restart.
#[tokio::test]
async fn r13_5_a_lane_whose_partner_was_away_is_tried_with_one_delivery() {
    for (on_doubt, said) in [(OnDoubt::Resend, SENT), (OnDoubt::Resend, BEGIN), (OnDoubt::Query, BEGIN)] {
        let (fixture, session) = with(on_doubt, &["a", "b"]).await;
        let leased = fixture.lease("fix", session, 4).await;
        fixture.taken("fix", session, &leased[0], AWAY).await;
        fixture.taken("fix", session, &leased[0], Outcome::Wake).await;
        let fixture = fixture.crash().await.open().await.unwrap();
        let session = fixture.session("fix").await;
        let again = fixture.lease("fix", session, 10).await;
        assert_eq!(texts(&again), ["b1", "b2", "b3", "b4", "a1"], "{on_doubt}");
        assert!(fixture.lease("fix", session, 10).await.is_empty(), "{on_doubt}");
        let extend = Outcome::Extend { lease: Duration::from_secs(60) };
        fixture.taken("fix", session, &again[4], extend).await;
        assert!(
            fixture.lease("fix", session, 10).await.is_empty(),
            "nothing has been said of it: {on_doubt}"
        );
        fixture.taken("fix", session, &again[4], said).await;
        assert_eq!(texts(&fixture.lease("fix", session, 10).await), ["a2", "a3", "a4"], "{on_doubt}");
        let place = fixture.stop().await;
        assert_sound(&place, "tried with one").await;
        assert_log(&place, "tried with one").await;
    }
}

#[tokio::test]
async fn r13_5_one_in_doubt_behind_it_stays_so() {
    let (fixture, session) = with(OnDoubt::Query, &["a"]).await;
    let leased = fixture.lease("fix", session, 3).await;
    fixture.taken("fix", session, &leased[1], BEGIN).await;
    fixture.taken("fix", session, &leased[1], Outcome::InDoubt).await;
    let doubtful = fixture.lease_in_time("fix", session, 1).await.remove(0);
    assert_eq!((texts(std::slice::from_ref(&doubtful)), doubtful.doubt), (vec!["a2".to_owned()], true));
    fixture.taken("fix", session, &leased[0], AWAY).await;
    let row = fixture.row(doubtful.delivery).await;
    assert_eq!((row.state, row.attempts, row.doubt), ("in_doubt", 1, true));
    assert_log(&fixture.stop().await, "in doubt behind it").await;
}

/// Whoever has lost the answer says it again, perhaps after it was woken.
#[tokio::test]
async fn r13_3_that_its_partner_is_away_is_repeated_until_the_next_lease() {
    let (fixture, session) = with(OnDoubt::Resend, &["a"]).await;
    let leased = fixture.lease_one("fix", session).await;
    for outcome in [AWAY, AWAY, Outcome::Wake, AWAY, Outcome::Wake] {
        assert_eq!(fixture.taken("fix", session, &leased, outcome).await, "waiting", "{outcome:?}");
    }
    fixture.stale("fix", session, &leased, RETRY).await;
    let again = fixture.lease_one("fix", session).await;
    assert_eq!(again.delivery, leased.delivery, "what was said again changes nothing");
    for outcome in [AWAY, Outcome::Wake] {
        fixture.stale("fix", session, &leased, outcome).await;
    }
    assert_log(&fixture.stop().await, "said again").await;
}
