//! Several partners behind one queue, each with connections of its own.
//!
//! A delivery is handed to its partner as soon as it is leased. What a partner cannot take now, since it is away or has enough, goes
//! back charged with nothing (`retry` with scope `lane`) and is woken when the partner can take it. So a partner that is down, slow or
//! silent holds few leases, and nobody else's messages wait for it. One that is away gets one probe at a time, ever more seldom.
//!
//! Order is that of the gateway's lanes, of which one delivery is out at a time (`window = 1`).

mod brake;
mod partner;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::delivery::Delivery;
use crate::evidence::Outcome;
use crate::lease::Lease;
use crate::process::Failure;
use crate::session::Session;
use crate::settlement::Settlement;
use crate::work::{OTHERS_DEADLINE, Worker};
use brake::Sign;
use gatepost_api::settle::{SETTLE_RESULTS_MAX, Scope};
use partner::{Back, Job, Partner, Todo};

/// How exactly a probe's time is kept.
const TICK: Duration = Duration::from_millis(100);

/// One of the partners behind an adapter's queue.
#[derive(Debug, Clone)]
pub struct PartnerSetup {
    pub name: String,
    /// Deliveries for it at a time, each with a worker of its own.
    pub connections: usize,
}

/// How a partner stands, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartnerState {
    pub name: String,
    /// `new`: it has not answered since the adapter started. `up`; `away`.
    pub standing: &'static str,
    /// Since when it stands so.
    pub since: SystemTime,
    /// Of the last attempt that failed.
    pub last_error: Option<String>,
    /// Where it is away and no probe is under way.
    pub next_try_in: Option<Duration>,
    /// Deliveries that are being sent.
    pub working: usize,
    /// Deliveries in hand.
    pub waiting: usize,
    /// Deliveries that have gone back to wait for it.
    pub back: usize,
}

/// Whose a delivery is, and who works for whom.
pub trait Dispatch: Send + Sync + 'static {
    type Worker: Worker;

    /// The partner's place in the list; an outcome where it is nobody's.
    fn partner_of(&self, delivery: &Delivery) -> impl Future<Output = Result<usize, Outcome>> + Send;

    /// One more worker for a partner. An outcome of scope `destination` says that this partner is away.
    fn worker(&self, partner: usize) -> Self::Worker;
}

/// The partners of one adapter.
#[derive(Clone)]
pub struct Partners {
    all: Arc<[Partner]>,
    todo: mpsc::UnboundedSender<(usize, Todo)>,
}

/// The other end of [`Partners`]: what there is to do.
pub struct PartnersWork {
    partners: Partners,
    todo: mpsc::UnboundedReceiver<(usize, Todo)>,
}

impl Partners {
    pub fn new(setups: impl IntoIterator<Item = PartnerSetup>) -> (Self, PartnersWork) {
        // Unbounded in form only: what stands there is of deliveries in hand, which are bounded.
        let (sender, todo) = mpsc::unbounded_channel();
        let partners = Self { all: setups.into_iter().map(Partner::new).collect(), todo: sender };
        (partners.clone(), PartnersWork { partners, todo })
    }

    pub fn states(&self) -> Vec<PartnerState> {
        self.all.iter().map(Partner::state).collect()
    }

    /// An outcome that came of no attempt of a worker, as it is to be reported where there are several partners.
    pub fn take_up(&self, partner: usize, outcome: Outcome) -> Outcome {
        let Some(its) = self.all.get(partner) else { return outcome };
        let sign = sign_of(&outcome);
        let reported = match outcome {
            Outcome::Retry { scope: Scope::Destination, after, reason, reply } => {
                Outcome::Retry { scope: Scope::Lane, after, reason, reply }
            }
            other => other,
        };
        self.report(partner, its.learn(sign));
        reported
    }

    fn report(&self, partner: usize, todo: Todo) {
        if todo.hire.is_empty() && todo.back.is_empty() && todo.wake.is_empty() {
            return;
        }
        // The receiver only ends once everybody who could say something here has.
        let _ = self.todo.send((partner, todo));
    }
}

/// What everybody who works for partners shares.
struct Shared<D> {
    session: Session,
    partners: Partners,
    dispatch: D,
    /// Places for deliveries in hand, and how many there are in all.
    room: Arc<Semaphore>,
    room_in_all: usize,
}

impl<D: Dispatch> Shared<D> {
    /// Others would not miss a place.
    fn has_room(&self) -> bool {
        self.room.available_permits() > self.room_in_all / 4
    }

    async fn sort(&self, delivery: Delivery) {
        match self.dispatch.partner_of(&delivery).await {
            Ok(number) => match self.partners.all.get(number) {
                Some(partner) => self.partners.report(number, partner.place(delivery, self.has_room())),
                None => delivery.finish(Outcome::reject("the adapter has no such partner")),
            },
            Err(outcome) => delivery.finish(outcome),
        }
    }

    async fn serve(&self, number: usize, worker_number: usize, mut job: Job) {
        let Some(partner) = self.partners.all.get(number) else { return };
        let mut worker = self.dispatch.worker(number);
        loop {
            let Job { delivery, probe } = job;
            let started = Instant::now();
            let outcome = if self.session.stop().is_requested() {
                Outcome::Release
            } else if delivery.held().is_valid() {
                worker.deliver(&delivery).await
            } else {
                Outcome::LeaseLost
            };
            gatepost_faults::point("sdk.after_answer");
            let (mut next, mut todo) = partner.done(worker_number, sign_of(&outcome), probe, started);
            match outcome {
                Outcome::Retry { scope: Scope::Destination | Scope::Lane, reason, .. } => {
                    todo.back.push(partner.send_back(delivery, &reason));
                }
                Outcome::Settled { away: Some(_) } => {
                    self.partners.report(number, partner.has_gone_back(delivery.lease()));
                    delivery.finish(outcome);
                }
                other => delivery.finish(other),
            }
            self.partners.report(number, todo);
            let idle = async {
                worker.idle().await;
                std::future::pending().await
            };
            job = tokio::select! {
                biased;
                next = &mut next => match next {
                    Ok(job) => job,
                    Err(_) => return,
                },
                () = idle => return,
            };
        }
    }

    async fn go_back(&self, number: usize, Back { delivery, after, reason }: Back) {
        let lease = delivery.lease();
        if delivery.retry_lane(after, reason).await.is_ok()
            && let Some(partner) = self.partners.all.get(number)
        {
            self.partners.report(number, partner.has_gone_back(lease));
        }
    }

    async fn wake(&self, leases: Vec<Lease>) {
        for some in leases.chunks(SETTLE_RESULTS_MAX) {
            let mut settlement = Settlement::default();
            some.iter().for_each(|lease| settlement.wake(lease));
            if let Err(error) = self.session.settle(settlement).await {
                tracing::warn!(%error, "cannot wake what waits for a partner; it comes by itself, later");
            }
        }
    }
}

/// What an outcome says of the partner.
fn sign_of(outcome: &Outcome) -> Sign {
    match outcome {
        Outcome::Retry { scope: Scope::Destination | Scope::Lane, after, reason, .. } => {
            Sign::Trouble { reason: reason.clone(), after: *after }
        }
        Outcome::Settled { away: Some(reason) } => Sign::Trouble { reason: reason.clone(), after: None },
        Outcome::InDoubt { reason } => Sign::Silence { reason: reason.clone() },
        // Where there is evidence the partner has given it.
        Outcome::Reject { evidence: None, .. } | Outcome::Release | Outcome::LeaseLost => Sign::None,
        Outcome::Delivered { .. }
        | Outcome::Sent { .. }
        | Outcome::Settled { away: None }
        | Outcome::Retry { scope: Scope::Message, .. }
        | Outcome::Reject { evidence: Some(_), .. } => Sign::Answered,
    }
}

impl Session {
    /// As [`Session::work`], for several partners behind the queue: works until the adapter is asked to stop, then finishes what has begun, gives
    /// the rest back, and returns once the gateway knows every outcome. The same when a worker panics.
    pub async fn work_for<D: Dispatch>(&self, work: PartnersWork, dispatch: D) -> Result<(), Failure> {
        let PartnersWork { partners, mut todo } = work;
        let room_in_all = self.max_in_flight() as usize;
        let mut pipeline = self.pipeline(room_in_all);
        let room = Arc::clone(pipeline.room());
        let shared = Arc::new(Shared { session: self.clone(), partners, dispatch, room, room_in_all });
        let mut tasks = JoinSet::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut panicked = false;
        while !panicked {
            tokio::select! {
                delivery = pipeline.next() => match delivery {
                    Some(delivery) => {
                        let shared = Arc::clone(&shared);
                        tasks.spawn(async move { shared.sort(delivery).await });
                    }
                    None => break,
                },
                Some((number, todo)) = todo.recv() => start(&shared, &mut tasks, number, todo),
                Some(ended) = tasks.join_next() => panicked = ended.is_err(),
                _ = ticks.tick() => {
                    for (number, partner) in shared.partners.all.iter().enumerate() {
                        start(&shared, &mut tasks, number, partner.tick());
                    }
                }
            }
        }
        if panicked {
            // As in `work`: what the others have under way is no part of it.
            self.lifetime().drain();
        }
        shared.partners.all.iter().for_each(Partner::close);
        let patience = if panicked { OTHERS_DEADLINE } else { Duration::MAX };
        let ended = timeout(patience, async {
            loop {
                while let Ok((number, todo)) = todo.try_recv() {
                    start(&shared, &mut tasks, number, todo);
                }
                match tasks.join_next().await {
                    Some(ended) => panicked |= ended.is_err(),
                    None => break,
                }
            }
            pipeline.finish().await;
        });
        let in_time = ended.await.is_ok();
        if panicked || !in_time { Err(Failure::WorkerPanicked) } else { Ok(()) }
    }
}

fn start<D: Dispatch>(shared: &Arc<Shared<D>>, tasks: &mut JoinSet<()>, number: usize, todo: Todo) {
    for (worker, job) in todo.hire {
        let shared = Arc::clone(shared);
        tasks.spawn(async move { shared.serve(number, worker, job).await });
    }
    for back in todo.back {
        let shared = Arc::clone(shared);
        tasks.spawn(async move { shared.go_back(number, back).await });
    }
    if !todo.wake.is_empty() {
        let shared = Arc::clone(shared);
        tasks.spawn(async move { shared.wake(todo.wake).await });
    }
}
