//! Workers, each of which takes one delivery at a time.
//!
//! Each worker does one delivery at a time. Deliveries with an ordering key always go to the worker that the key maps to,
//! so a partner sees one lane on one connection; others go to whoever is free. A stuck worker keeps its own deliveries
//! waiting and nobody else's.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::delivery::Delivery;
use crate::desk::{Desk, Placement, prolong};
use crate::evidence::Outcome;
use crate::lease::Leases;
use crate::lifetime::Stop;
use crate::process::Failure;
use crate::session::Session;

/// Deliveries held for each worker, the one it works on included. Enough that a worker never waits for a lease call.
const IN_HAND_PER_WORKER: usize = 32;
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
    /// gateway knows every outcome.
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
    tokio::select! {
        () = desk.keep_leasing() => {}
        () = stop.requested() => {}
        _ = tasks.join_next() => return Err(Failure::WorkerPanicked),
    }
    let Desk { own, shared, room, .. } = desk;
    // The workers end once their queues are closed and empty.
    drop((own, shared));
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|_| Failure::WorkerPanicked)?;
    }
    // All room is free again when every outcome has been answered. The semaphore is never closed.
    let _ = room.acquire_many(u32::try_from(in_hand_max).unwrap_or(u32::MAX)).await;
    Ok(())
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
