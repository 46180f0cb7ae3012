//! Workers, each of which takes one delivery at a time.
//!
//! Each worker does one delivery at a time. Deliveries with an ordering key always go to the worker that the key maps to,
//! so a partner sees one lane on one connection; others go to whoever is free. A stuck worker keeps its own deliveries
//! waiting and nobody else's.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::delivery::Delivery;
use crate::desk::{Desk, Placement, prolong};
use crate::evidence::Outcome;
use crate::lease::Leases;
use crate::lifetime::Stop;
use crate::process::Failure;
use crate::session::Session;

/// Deliveries held for each worker, the one it works on included. Enough that a worker never waits for a lease call.
const IN_HAND_PER_WORKER: usize = 32;
/// How long the others may take to finish what they have under way after one has panicked.
pub(crate) const OTHERS_DEADLINE: Duration = Duration::from_secs(8);

/// Who does the work.
#[derive(Debug, Clone, Copy)]
pub struct Crew {
    pub workers: usize,
    pub placement: Placement,
}

/// One sender of deliveries, with what it needs to send: a connection, a client.
pub trait Worker: Send + 'static {
    /// Makes one attempt and says what came of it. Calls [`Delivery::begin`] immediately before bytes leave.
    fn deliver(&mut self, delivery: &Delivery) -> impl Future<Output = Outcome> + Send;

    /// What it does while there is nothing to deliver, such as listening to what the partner sends unasked. Dropped wherever
    /// it waits when there is; the worker goes on without it when it comes back.
    fn idle(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

impl Session {
    /// Works until the adapter is asked to stop, then finishes what has begun, gives the rest back, and returns once the
    /// gateway knows every outcome. The same when a worker panics, whose delivery stays leased for the gateway to see what the process
    /// died of.
    pub async fn work<W: Worker>(
        &self,
        crew: Crew,
        mut worker: impl FnMut(usize) -> W,
    ) -> Result<(), Failure> {
        let workers = crew.workers.max(1);
        let in_hand_max = (workers * IN_HAND_PER_WORKER).min(self.max_in_flight() as usize).max(1);
        let leases = Arc::new(Leases::default());
        let room = Arc::new(Semaphore::new(in_hand_max));
        let mut tasks = JoinSet::new();
        let (shared, shared_queue) = mpsc::channel(in_hand_max);
        let shared_queue = Arc::new(Mutex::new(shared_queue));
        let mut own = Vec::with_capacity(workers);
        for number in 0..workers {
            // A single worker may have everything; of several none may crowd the others out.
            let (sender, queue) =
                mpsc::channel(if workers == 1 { in_hand_max } else { in_hand_max.div_ceil(2) });
            own.push(sender);
            let queues = Queues { own: queue, shared: Arc::clone(&shared_queue) };
            tasks.spawn(serve(worker(number), queues, self.stop()));
        }
        drop(shared_queue);
        let desk = Desk { session: self.clone(), placement: crew.placement, own, shared, leases, room };
        let prolonging = tokio::spawn(prolong(self.clone(), Arc::clone(&desk.leases)));
        let worked = attend(desk, tasks, in_hand_max).await;
        prolonging.abort();
        worked
    }
}

async fn attend(desk: Desk, mut tasks: JoinSet<()>, in_hand_max: usize) -> Result<(), Failure> {
    let stop = desk.session.stop();
    let mut panicked = tokio::select! {
        () = desk.keep_leasing() => false,
        () = stop.requested() => false,
        _ = tasks.join_next() => true,
    };
    if panicked {
        // What the others have under way is no part of it: unless they report it, it would be sent twice.
        desk.session.lifetime().drain();
    }
    let Desk { own, shared, room, .. } = desk;
    // The workers end once their queues are closed and empty.
    drop((own, shared));
    let patience = if panicked { OTHERS_DEADLINE } else { Duration::MAX };
    let ended = timeout(patience, async {
        while let Some(ended) = tasks.join_next().await {
            panicked |= ended.is_err();
        }
        // All room is free again when every outcome has been answered. The semaphore is never closed.
        let _ = room.acquire_many(u32::try_from(in_hand_max).unwrap_or(u32::MAX)).await;
    });
    let in_time = ended.await.is_ok();
    if panicked || !in_time { Err(Failure::WorkerPanicked) } else { Ok(()) }
}

struct Queues {
    own: mpsc::Receiver<Delivery>,
    shared: Arc<Mutex<mpsc::Receiver<Delivery>>>,
}

impl Queues {
    /// The next delivery of either queue; `None` once both are closed and empty.
    async fn next(&mut self) -> Option<Delivery> {
        let shared = async { self.shared.lock().await.recv().await };
        tokio::select! {
            Some(delivery) = self.own.recv() => Some(delivery),
            Some(delivery) = shared => Some(delivery),
            else => None,
        }
    }
}

async fn next<W: Worker>(worker: &mut W, queues: &mut Queues) -> Option<Delivery> {
    tokio::select! {
        biased;
        delivery = queues.next() => return delivery,
        () = worker.idle() => {}
    }
    queues.next().await
}

async fn serve<W: Worker>(mut worker: W, mut queues: Queues, stop: Stop) {
    while let Some(delivery) = next(&mut worker, &mut queues).await {
        if stop.is_requested() {
            delivery.finish(Outcome::Release);
        } else if delivery.held().is_valid() {
            let outcome = worker.deliver(&delivery).await;
            gatepost_faults::point("sdk.after_answer");
            delivery.finish(outcome);
        } else {
            delivery.finish(Outcome::LeaseLost);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use tokio::sync::Notify;

    use super::*;
    use crate::evidence::Evidence;
    use crate::testing::{Gateway, leased};
    use gatepost_api::settle::Level;

    /// Panics at the first delivery, once another has got the second, and delivers that when it is told to.
    struct Fragile {
        begun: Arc<Notify>,
        answered: Arc<Notify>,
    }

    impl Worker for Fragile {
        async fn deliver(&mut self, delivery: &Delivery) -> Outcome {
            delivery.begin().await.unwrap();
            if delivery.id().as_u128() == 1 {
                self.begun.notified().await;
                panic!("a fault of the adapter");
            }
            self.begun.notify_one();
            self.answered.notified().await;
            Outcome::Delivered { evidence: Evidence::new(Level::Transport), reply: None }
        }
    }

    #[tokio::test]
    async fn a_worker_that_panics_costs_the_others_nothing() {
        let (mut gateway, session) = Gateway::open(json!({})).await;
        let (begun, answered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let fragile = {
            let answered = Arc::clone(&answered);
            move |_| Fragile { begun: Arc::clone(&begun), answered: Arc::clone(&answered) }
        };
        let stop = session.stop();
        let working = tokio::spawn(async move {
            session.work(Crew { workers: 2, placement: Placement::Anywhere }, fragile).await
        });
        gateway.lease(&[leased(1, None), leased(2, None)]).await;
        stop.requested().await;
        answered.notify_one();
        let call = gateway.next("/v1/settle").await;
        assert_eq!(call.outcomes(), [("t2", "delivered")], "and nothing of the one that it panicked over");
        assert!(!working.is_finished());
        call.settled("ok");
        assert!(matches!(working.await.unwrap(), Err(Failure::WorkerPanicked)));
    }
}
