//! One partner's desk: who works for it, what waits in hand, and what has gone back to be woken.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use super::brake::{Admits, Brake, Sign};
use super::{PartnerSetup, PartnerState};
use crate::client::locked;
use crate::delivery::Delivery;
use crate::evidence::Outcome;
use crate::lease::Lease;

/// What has gone back comes by itself after so long, if nobody wakes it: a call may fail, and of very many not all are remembered.
const BACK_FOR: Duration = Duration::from_secs(60);
/// So much later for each other that is away already, so that a long backlog does not come all at once.
const BACK_SPREAD: Duration = Duration::from_millis(50);
const BACK_FOR_MAX: Duration = Duration::from_secs(30 * 60);
/// Deliveries of a partner that are remembered to be woken; further ones come by themselves.
const BACK_MAX: usize = 5000;
/// What was woken is here by then, or it was settled otherwise.
const WOKEN_GRACE: Duration = Duration::from_secs(2);

/// A delivery for a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) delivery: Delivery,
    pub(super) probe: bool,
}

/// A delivery that goes back, charged with nothing.
#[derive(Debug)]
pub(super) struct Back {
    pub(super) delivery: Delivery,
    pub(super) after: Duration,
    pub(super) reason: String,
}

/// What is to be done outside of the lock.
#[derive(Debug, Default)]
pub(super) struct Todo {
    /// New workers, by number, each with its first job.
    pub(super) hire: Vec<(usize, Job)>,
    pub(super) back: Vec<Back>,
    pub(super) wake: Vec<Lease>,
}

pub(super) struct Partner {
    pub(super) name: String,
    connections: usize,
    desk: Mutex<Desk>,
}

struct Desk {
    brake: Brake,
    /// In hand, and with no worker yet.
    waiting: VecDeque<Delivery>,
    /// Workers without work. The lowest number is next, so that of those that are not needed the connections close.
    free: BTreeMap<usize, oneshot::Sender<Job>>,
    hired: usize,
    working: usize,
    /// Gone back, oldest first as far as ids tell, which is to a millisecond.
    back: BTreeMap<Uuid, Lease>,
    woken: BTreeSet<Uuid>,
    woken_at: Instant,
    closed: bool,
}

impl Partner {
    pub(super) fn new(setup: PartnerSetup) -> Self {
        let desk = Desk {
            brake: Brake::new(),
            waiting: VecDeque::new(),
            free: BTreeMap::new(),
            hired: 0,
            working: 0,
            back: BTreeMap::new(),
            woken: BTreeSet::new(),
            woken_at: Instant::now(),
            closed: false,
        };
        Self { name: setup.name, connections: setup.connections.max(1), desk: Mutex::new(desk) }
    }

    /// Takes a delivery that has been leased, or sends it back. `has_room`: others would not miss the place that it takes while it
    /// waits.
    pub(super) fn place(&self, delivery: Delivery, has_room: bool) -> Todo {
        let mut desk = self.lock();
        let mut todo = Todo::default();
        let now = Instant::now();
        desk.back.remove(&delivery.id());
        desk.woken.remove(&delivery.id());
        if desk.closed {
            delivery.finish(Outcome::Release);
            return todo;
        }
        let admits = desk.brake.admits(now);
        let (workers, may_wait) = match admits {
            Admits::Nothing => {
                todo.back.push(desk.back_for_trouble(delivery, &self.name));
                return todo;
            }
            Admits::Probe => {
                desk.brake.begin_probe();
                desk.give(Job { delivery, probe: true }, &mut todo);
                return todo;
            }
            Admits::One => (1, 0),
            Admits::All => (self.connections, self.connections),
        };
        if desk.working < workers {
            desk.give(Job { delivery, probe: false }, &mut todo);
        } else if has_room || desk.waiting.len() < may_wait {
            desk.waiting.push_back(delivery);
        } else {
            let reason = format!("partner `{}` has as much as it takes at a time", self.name);
            todo.back.push(desk.back(delivery, reason));
        }
        todo
    }

    /// What an attempt has shown, and where its worker's next job comes: never, if nothing is there and nobody can send anything.
    pub(super) fn done(
        &self,
        worker: usize,
        sign: Sign,
        was_probe: bool,
        started: Instant,
    ) -> (oneshot::Receiver<Job>, Todo) {
        let mut desk = self.lock();
        let mut todo = Todo::default();
        let now = Instant::now();
        desk.working -= 1;
        let was_away = desk.is_away(now);
        if desk.brake.learn(sign, was_probe, started, now) {
            tracing::warn!(
                partner = self.name,
                error = desk.brake.why(),
                "the partner is away; its messages wait"
            );
        } else if was_away && !desk.is_away(now) {
            tracing::info!(partner = self.name, "the partner is back");
        }
        let (sender, job) = oneshot::channel();
        if !desk.closed {
            desk.free.insert(worker, sender);
        }
        self.hand_out(&mut desk, &mut todo, now);
        (job, todo)
    }

    /// A delivery that its attempt has shown cannot be sent now.
    pub(super) fn send_back(&self, delivery: Delivery, reason: &str) -> Back {
        self.lock().back(delivery, format!("partner `{}`: {reason}", self.name))
    }

    /// Gone back, and the gateway knows.
    pub(super) fn has_gone_back(&self, lease: Lease) -> Todo {
        let mut desk = self.lock();
        if desk.back.len() < BACK_MAX {
            desk.back.insert(lease.delivery, lease);
        }
        desk.take_woken(self.connections)
    }

    /// What time alone brings: a probe is due.
    pub(super) fn tick(&self) -> Todo {
        self.lock().take_woken(self.connections)
    }

    /// What somebody else has learnt of the partner.
    pub(super) fn learn(&self, sign: Sign) -> Todo {
        let mut desk = self.lock();
        let mut todo = Todo::default();
        let now = Instant::now();
        desk.brake.learn(sign, false, now, now);
        self.hand_out(&mut desk, &mut todo, now);
        todo
    }

    /// Begins nothing more; what waits goes back.
    pub(super) fn close(&self) {
        let mut desk = self.lock();
        desk.closed = true;
        desk.free.clear();
        for delivery in desk.waiting.drain(..) {
            delivery.finish(Outcome::Release);
        }
    }

    pub(super) fn state(&self) -> PartnerState {
        let desk = self.lock();
        let shown = desk.brake.shown(Instant::now());
        PartnerState {
            name: self.name.clone(),
            standing: shown.standing,
            since: shown.since,
            last_error: shown.last_error,
            next_try_in: shown.next_try_in,
            working: desk.working,
            waiting: desk.waiting.len(),
            back: desk.back.len(),
        }
    }

    /// Brings what waits in hand to where it belongs by now, and wakes what can be taken.
    fn hand_out(&self, desk: &mut Desk, todo: &mut Todo, now: Instant) {
        if desk.closed {
            return;
        }
        let workers = match desk.brake.admits(now) {
            Admits::Nothing | Admits::Probe => {
                while let Some(delivery) = desk.waiting.pop_front() {
                    let back = desk.back_for_trouble(delivery, &self.name);
                    todo.back.push(back);
                }
                0
            }
            Admits::One => 1,
            Admits::All => self.connections,
        };
        while desk.working < workers {
            let Some(delivery) = desk.waiting.pop_front() else { break };
            desk.give(Job { delivery, probe: false }, todo);
        }
        todo.wake.append(&mut desk.take_woken(self.connections).wake);
    }

    fn lock(&self) -> MutexGuard<'_, Desk> {
        locked(&self.desk)
    }
}

impl Desk {
    fn is_away(&self, now: Instant) -> bool {
        matches!(self.brake.admits(now), Admits::Nothing | Admits::Probe)
    }

    /// To a free worker, else to a new one: there are fewer at work than there may be.
    fn give(&mut self, mut job: Job, todo: &mut Todo) {
        self.working += 1;
        while let Some((_, worker)) = self.free.pop_first() {
            match worker.send(job) {
                Ok(()) => return,
                // It has ended.
                Err(back) => job = back,
            }
        }
        todo.hire.push((self.hired, job));
        self.hired += 1;
    }

    fn back_for_trouble(&self, delivery: Delivery, partner: &str) -> Back {
        self.back(delivery, format!("partner `{partner}` is away: {}", self.brake.why()))
    }

    fn back(&self, delivery: Delivery, reason: String) -> Back {
        let others = u32::try_from(self.back.len()).unwrap_or(u32::MAX);
        let after = BACK_FOR.saturating_add(BACK_SPREAD.saturating_mul(others)).min(BACK_FOR_MAX);
        Back { delivery, after, reason }
    }

    /// Of what has gone back, the oldest that could be taken now.
    fn take_woken(&mut self, connections: usize) -> Todo {
        let now = Instant::now();
        if self.closed || self.back.is_empty() {
            return Todo::default();
        }
        if now.duration_since(self.woken_at) > WOKEN_GRACE {
            self.woken.clear();
        }
        let in_hand = self.working + self.waiting.len();
        let room = match self.brake.admits(now) {
            Admits::Nothing => 0,
            // Those under way since before it went say nothing new.
            Admits::Probe => 1,
            Admits::One => 1_usize.saturating_sub(in_hand),
            // One for each connection, and the next.
            Admits::All => (connections * 2).saturating_sub(in_hand),
        };
        let mut todo = Todo::default();
        while self.woken.len() < room {
            let Some((id, lease)) = self.back.pop_first() else { break };
            self.woken.insert(id);
            self.woken_at = now;
            todo.wake.push(lease);
        }
        todo
    }
}
