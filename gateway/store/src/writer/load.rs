//! Bringing memory in line with the database: after a failure, and when the configuration changes.

use std::collections::HashMap;

use gatepost_core::delivery::Event;

use super::candidates::WINDOW_MAX;
use super::group::STALE_ATTEMPTS_MAX;
use super::memory::Queue;
use super::needs::Holds;
use super::outcome::Outcome;
use super::turn::Turn;
use super::{Condition, Writer, unavailable};
use crate::backend::{Backend, CommitError, Put};
use crate::ops::{QueueKind, QueueSetup, Session, Sessions, StoreError, UNROUTED};

impl<B: Backend> Writer<B> {
    /// Puts the configuration's queues in force, all of them or none. A queue that has left it keeps its deliveries and serves
    /// nobody.
    pub(crate) fn configure(&mut self, mut setups: Vec<QueueSetup>) -> Result<(), StoreError> {
        if let Some(error) = unavailable(&self.condition) {
            return Err(error);
        }
        setups.push(QueueSetup {
            name: UNROUTED.to_owned(),
            kind: QueueKind::Builtin,
            sessions: Default::default(),
            policy: Default::default(),
        });
        // At start nobody knows.
        let windows = self.windows(self.own_leases_ended);
        let mut configured = self.try_configure(&setups, &windows);
        if configured == Err(CommitError::Full) {
            self.failed(&CommitError::Full);
            // The reserve is free now.
            configured = self.try_configure(&setups, &windows);
        }
        for _ in 0..STALE_ATTEMPTS_MAX {
            let Err(CommitError::Stale(_)) = &configured else { break };
            self.catch_up()?;
            configured = self.try_configure(&setups, &windows);
        }
        if let Err(error) = configured {
            self.failed(&error);
            return Err(error.into());
        }
        self.publish_queues();
        for setup in &setups {
            self.hints.queue_changed(&setup.name);
        }
        Ok(())
    }

    /// Brings memory in line with what others have written.
    pub(super) fn catch_up(&mut self) -> Result<(), CommitError> {
        self.database.catch_up(&mut self.memory, &self.vault)?;
        self.publish_queues();
        Ok(())
    }

    /// One transaction. Memory has the new queues while it is decided, and the old ones again if it fails.
    fn try_configure(
        &mut self,
        setups: &[QueueSetup],
        windows: &HashMap<i64, u32>,
    ) -> Result<(), CommitError> {
        let before = (self.memory.queues.clone(), self.memory.by_name.clone(), self.own_leases_ended);
        self.database.begin(&Holds::default())?;
        let configured = self.configure_open(setups, windows);
        if configured.is_err() {
            (self.memory.queues, self.memory.by_name, self.own_leases_ended) = before;
        }
        self.database.roll_back()?;
        configured
    }

    fn configure_open(
        &mut self,
        setups: &[QueueSetup],
        windows: &HashMap<i64, u32>,
    ) -> Result<(), CommitError> {
        let to_end = self.leases_to_end();
        for setup in setups {
            self.put_queue(setup.clone())?;
        }
        // A sender who has left stays one: nobody can send as it, and what it has handed in is counted on.
        let left = |queue: &&Queue| {
            queue.setup.kind != QueueKind::Sender && setups.iter().all(|setup| setup.name != queue.setup.name)
        };
        let removed: Vec<QueueSetup> =
            self.memory.queues.values().filter(left).map(|queue| queue.setup.clone()).collect();
        for setup in removed {
            self.put_queue(QueueSetup { kind: QueueKind::Removed, ..setup })?;
        }
        self.end_leases(&to_end, windows)
    }

    fn put_queue(&mut self, setup: QueueSetup) -> Result<(), CommitError> {
        match self.memory.by_name.get(&setup.name).copied() {
            Some(id) => {
                let Some(queue) = self.memory.queues.get(&id) else { return Ok(()) };
                let queue = Queue { setup, ..queue.clone() };
                self.database.queue_put(&queue, Put::Change)?;
                self.memory.queues.insert(id, queue);
            }
            None => {
                let id = self.memory.queues.keys().max().copied().unwrap_or(0) + 1;
                let queue = Queue::new(id, setup);
                self.database.queue_put(&queue, Put::Add)?;
                self.memory.by_name.insert(queue.setup.name.clone(), id);
                self.memory.queues.insert(id, queue);
            }
        }
        Ok(())
    }

    /// How wide the lanes of each queue may have been until now.
    fn windows(&self, known: bool) -> HashMap<i64, u32> {
        let width = |queue: &Queue| if known { queue.setup.policy.window } else { WINDOW_MAX };
        self.memory.queues.values().map(|queue| (queue.id, width(queue))).collect()
    }

    /// The queues whose leases do not outlive the gateway, by the configuration that the leases were given under; none but once.
    fn leases_to_end(&mut self) -> Vec<i64> {
        if std::mem::replace(&mut self.own_leases_ended, true) {
            return Vec::new();
        }
        let queues = self.memory.queues.values();
        let mut to_end: Vec<i64> =
            queues.filter(|queue| queue.leases_end_with_gateway()).map(|queue| queue.id).collect();
        to_end.sort_unstable();
        to_end
    }

    /// Ends leases that did not outlive the gateway; they cost nothing. Only once the queues have their policies: it is the policy
    /// that says whether what had begun is held for a person. Lanes whose window is another one now are brought in line. This
    /// commits what is open.
    fn end_leases(&mut self, queues: &[i64], windows: &HashMap<i64, u32>) -> Result<(), CommitError> {
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        // As wide as can be: nobody knows how wide.
        let is_other = |id: &i64, before: u32| {
            let now = self.memory.queues.get(id).map(|queue| queue.setup.policy.window);
            now.is_some_and(|now| now != before || before == WINDOW_MAX)
        };
        let others: HashMap<i64, u32> = windows
            .iter()
            .filter(|(id, before)| is_other(id, **before))
            .map(|(id, before)| (*id, *before))
            .collect();
        turn.width_before = others.values().copied().max().unwrap_or(1);
        let leased = self.memory.hot.values().filter(|row| others.contains_key(&row.queue));
        turn.lanes.extend(leased.flat_map(|row| row.lanes().map(|lane| (row.queue, lane))));
        for queue in queues {
            turn.end_leases(*queue, Event::SessionEnded)?;
        }
        let base = self.database.commit(&turn)?;
        let committed = Outcome::of(turn, base);
        self.install(Some(committed), 0);
        Ok(())
    }

    /// What an adapter's new session starts from.
    pub(crate) fn session(&mut self, adapter: &str, epoch: u64) -> Result<Session, StoreError> {
        let sessions = self.memory.queue(adapter).map_or(Sessions::default(), |queue| queue.setup.sessions);
        Ok(Session { epoch, state: self.database.adapter_state(adapter, &self.vault)?, sessions })
    }

    /// Opens the database anew after a failure and goes on if it is sound.
    pub(crate) fn reopen(&mut self) {
        match self.try_reopen() {
            Ok(()) => {
                tracing::info!("the database is sound again: the store goes on");
                self.condition = Condition::Working;
                self.health.set_obstacle(None);
                self.publish_queues();
                // A commit that was said to have failed may be on the disk all the same, with leaves that are to be signed.
                if self.database.places_leaves() {
                    self.health.set_audit_size(self.memory.leaf_count);
                }
                self.leaves_added.notify_one();
            }
            Err(text) => {
                // Looked at several times a second, and said again only when it is something else.
                if self.condition != Condition::Broken(text.clone()) {
                    tracing::error!(error = %text, "the database is still unusable; the store stays read-only");
                }
                self.health.set_obstacle(Some(format!("the database failed: {text}")));
                self.condition = Condition::Broken(text);
            }
        }
    }

    fn try_reopen(&mut self) -> Result<(), String> {
        let mut memory = self.database.reopen(&self.vault, self.keys_in_memory)?;
        self.instance_epoch = self.database.instance_epoch(self.instance_epoch);
        let in_force: HashMap<i64, QueueSetup> =
            self.memory.queues.values().map(|queue| (queue.id, queue.setup.clone())).collect();
        for queue in memory.queues.values_mut() {
            if let Some(setup) = in_force.get(&queue.id) {
                queue.setup = setup.clone();
            }
        }
        let before = std::mem::replace(&mut self.memory, memory);
        self.memory.damage.told_before(before.damage);
        if self.own_leases_ended {
            // A configuration whose commit was said to have failed may be in the tables all the same, and in their lanes; it is
            // not in force.
            let listed = in_force.into_values().filter(|setup| setup.kind != QueueKind::Removed);
            let listed: Vec<QueueSetup> = listed.collect();
            let windows = self.windows(false);
            self.try_configure(&listed, &windows).map_err(|error| StoreError::from(error).to_string())?;
        }
        Ok(())
    }
}
