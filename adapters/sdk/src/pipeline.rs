//! Deliveries in the order of their leases, for an adapter that has several of a lane on their way at a time.
//!
//! The gateway leases up to `window` consecutive deliveries of a lane, to one session (`ordered_pipeline` in the manifest says that the
//! adapter keeps their order). The adapter takes them from here, begins and settles them itself, in batches and together with its state.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::delivery::Delivery;
use crate::desk::{Desk, Placement, prolong};
use crate::lease::Leases;
use crate::lifetime::Stop;
use crate::session::Session;

/// Deliveries, oldest lease first. It also prolongs those that are in hand, so it has to be kept until they are settled.
#[derive(Debug)]
pub struct Pipeline {
    deliveries: mpsc::Receiver<Delivery>,
    room: Arc<Semaphore>,
    in_hand_max: u32,
    stop: Stop,
    /// Both end when this is dropped.
    leasing: JoinSet<()>,
    prolonging: JoinSet<()>,
}

impl Session {
    /// Starts leasing; to be called once in a session, which has either this or [`Session::work`]. At most `in_hand_max` deliveries are out at
    /// a time, from their lease until they are settled or dropped, and no more than the destination's `max_in_flight`. What the adapter keeps
    /// for a partner that is away takes a place: with room for `window` deliveries of each lane no lane holds up another.
    pub fn pipeline(&self, in_hand_max: usize) -> Pipeline {
        let in_hand_max = in_hand_max.min(self.max_in_flight() as usize).max(1);
        let room = Arc::new(Semaphore::new(in_hand_max));
        let (shared, deliveries) = mpsc::channel(in_hand_max);
        let leases = Arc::new(Leases::default());
        let desk = Desk {
            session: self.clone(),
            placement: Placement::Anywhere,
            own: Vec::new(),
            shared,
            leases: Arc::clone(&leases),
            room: Arc::clone(&room),
        };
        let stop = self.stop();
        let (mut leasing, mut prolonging) = (JoinSet::new(), JoinSet::new());
        leasing.spawn(async move {
            tokio::select! {
                () = desk.keep_leasing() => {}
                () = stop.requested() => {}
            }
        });
        prolonging.spawn(prolong(self.clone(), leases));
        let in_hand_max = u32::try_from(in_hand_max).unwrap_or(u32::MAX);
        Pipeline { deliveries, room, in_hand_max, stop: self.stop(), leasing, prolonging }
    }
}

impl Pipeline {
    /// The next delivery; `None` once the adapter is asked to stop. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Delivery> {
        loop {
            let delivery = tokio::select! {
                biased;
                () = self.stop.requested() => None,
                delivery = self.deliveries.recv() => delivery,
            }?;
            if !delivery.is_lost() {
                return Some(delivery);
            }
        }
    }

    /// A place for each delivery in hand.
    pub(crate) fn room(&self) -> &Arc<Semaphore> {
        &self.room
    }

    /// The next delivery if it is here already: for what goes out with one that has been waited for.
    pub fn ready(&mut self) -> Option<Delivery> {
        while !self.stop.is_requested() {
            let delivery = self.deliveries.try_recv().ok()?;
            if !delivery.is_lost() {
                return Some(delivery);
            }
        }
        None
    }

    /// Gives back what was not taken, and returns once every delivery that was has been settled or dropped, and the gateway has answered
    /// to that.
    pub async fn finish(mut self) {
        self.leasing.shutdown().await;
        while let Ok(delivery) = self.deliveries.try_recv() {
            drop(delivery);
        }
        // The semaphore is never closed.
        let _ = self.room.acquire_many(self.in_hand_max).await;
        self.prolonging.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::evidence::{Evidence, Outcome};
    use crate::settlement::Settlement;
    use crate::testing::{Gateway, leased};
    use gatepost_api::settle::Level;

    fn delivered() -> Outcome {
        Outcome::Delivered { evidence: Evidence::new(Level::Transport), reply: None }
    }

    async fn numbers(pipeline: &mut Pipeline, count: usize) -> (Vec<u128>, Vec<Delivery>) {
        let mut taken = Vec::new();
        for _ in 0..count {
            taken.push(pipeline.next().await.unwrap());
        }
        (taken.iter().map(|delivery| delivery.id().as_u128()).collect(), taken)
    }

    /// Settles a delivery and lets go of it.
    fn settle(session: &Session, delivery: Delivery) -> tokio::task::JoinHandle<()> {
        let session = session.clone();
        tokio::spawn(async move {
            let mut settlement = Settlement::default();
            settlement.outcome(&delivery, delivered());
            session.settle(settlement).await.unwrap();
        })
    }

    #[tokio::test]
    async fn deliveries_come_in_the_order_of_their_leases_and_no_more_than_there_is_room_for() {
        let (mut gateway, session) = Gateway::open(json!({"window": 3, "max_in_flight": 4})).await;
        let mut pipeline = session.pipeline(100);
        let asked = gateway.lease(&[leased(2, Some("a")), leased(1, Some("b")), leased(3, Some("a"))]).await;
        assert_eq!(asked["max"], 4, "no more than `max_in_flight`");
        let asked = gateway.lease(&[leased(4, Some("a"))]).await;
        assert_eq!(asked["max"], 1);
        let (order, mut taken) = numbers(&mut pipeline, 4).await;
        assert_eq!(order, [2, 1, 3, 4]);
        let settling = settle(&session, taken.remove(0));
        let second = settle(&session, taken.remove(0));
        gateway.next("/v1/settle").await.settled("ok");
        gateway.next("/v1/settle").await.settled("ok");
        settling.await.unwrap();
        second.await.unwrap();
        // The first call since: what is in hand takes room until it is settled.
        let asked = gateway.lease(&[leased(5, Some("a"))]).await["max"].clone();
        assert!(asked == 1 || asked == 2, "{asked}");
        assert_eq!(pipeline.next().await.unwrap().id().as_u128(), 5);
    }

    #[tokio::test]
    async fn what_is_here_already_is_taken_without_waiting() {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let mut pipeline = session.pipeline(8);
        assert!(pipeline.ready().is_none());
        gateway.lease(&[leased(1, None), leased(2, None)]).await;
        let first = pipeline.next().await.unwrap();
        let second = pipeline.ready().unwrap();
        assert_eq!((first.id().as_u128(), second.id().as_u128()), (1, 2));
        assert!(pipeline.ready().is_none());
    }

    #[tokio::test]
    async fn what_is_let_go_untried_goes_back() {
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
        let mut pipeline = session.pipeline(8);
        gateway.lease(&[leased(1, None)]).await;
        drop(pipeline.next().await.unwrap());
        let settle = gateway.next("/v1/settle").await;
        assert_eq!(settle.outcomes(), [("t1", "release")]);
    }

    #[tokio::test]
    async fn at_a_stop_what_has_begun_is_waited_for_and_the_rest_goes_back() {
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
        let mut pipeline = session.pipeline(8);
        gateway.lease(&[leased(1, None), leased(2, None), leased(3, None)]).await;
        let begun = pipeline.next().await.unwrap();
        let untried = pipeline.next().await.unwrap();
        let mut settlement = Settlement::default();
        settlement.begin(&begun);
        let (begun_now, ()) = tokio::join!(session.settle(settlement), async {
            gateway.next("/v1/settle").await.settled("ok");
        });
        begun_now.unwrap();
        gateway.drain();
        assert!(pipeline.next().await.is_none());
        assert!(pipeline.ready().is_none());
        drop(untried);
        let finishing = tokio::spawn(pipeline.finish());
        let mut back = Vec::new();
        while back.len() < 2 {
            let settle = gateway.next("/v1/settle").await;
            back.extend(settle.outcomes().iter().map(|(token, outcome)| format!("{token} {outcome}")));
            settle.settled("ok");
        }
        back.sort();
        assert_eq!(back, ["t2 release", "t3 release"]);
        let settling = settle(&session, begun);
        let last = gateway.next("/v1/settle").await;
        assert_eq!(last.outcomes(), [("t1", "delivered")]);
        tokio::task::yield_now().await;
        assert!(!finishing.is_finished(), "returned before the gateway had answered");
        last.settled("ok");
        settling.await.unwrap();
        finishing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_hand_is_prolonged_and_what_was_lost_while_it_waited_is_not_given_out() {
        let (mut gateway, session) = Gateway::open(json!({"on_doubt": "hold"})).await;
        let mut pipeline = session.pipeline(8);
        gateway.lease(&[leased(1, None), leased(2, None)]).await;
        let first = pipeline.next().await.unwrap();
        let extend = gateway.next("/v1/settle").await;
        let mut extended = extend.outcomes();
        extended.sort_unstable();
        assert_eq!(extended, [("t1", "extend"), ("t2", "extend")]);
        extend.settled("stale");
        while !first.is_lost() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        gateway.lease(&[leased(3, None)]).await;
        assert_eq!(pipeline.next().await.unwrap().id().as_u128(), 3);
    }

    #[tokio::test]
    async fn a_superseded_session_gives_nothing_out() {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let mut pipeline = session.pipeline(8);
        gateway.next("/lease").await.answer_problem("superseded");
        gateway.superseded().await;
        assert!(pipeline.next().await.is_none());
        pipeline.finish().await;
    }
}
