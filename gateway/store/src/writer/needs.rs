//! What a turn has to hold or to know from its beginning where others write to the same database. Much of it shows only when the turn is
//! decided; then it is dropped, and decided anew.

use std::collections::{BTreeSet, HashMap};

use gatepost_core::DeliveryId;

use super::Writer;
use super::turn::Turn;
use crate::backend::{Backend, CommitError, Need};
use crate::row::Row;
use crate::seal::Index;

/// Lanes, each with its queue.
pub(crate) type Lanes = BTreeSet<(i64, Index)>;

/// Which rows of queues stay as they are until the end of a transaction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds {
    /// Sessions, each after its queue, that have to be their adapters' newest. Others may work in them at the same time.
    pub(crate) sessions: Vec<(i64, u64)>,
    /// Queues that nobody else changes, and in whose sessions nobody else works.
    pub(crate) queues: BTreeSet<i64>,
}

impl Holds {
    pub(crate) fn count(&self) -> usize {
        self.sessions.len() + self.queues.len()
    }
}

/// The suspects in flight, at whichever node, of queues that are held and give out one alone.
pub(super) type Suspects = HashMap<i64, Vec<Row>>;

/// What has shown so far.
pub(super) struct Needs {
    /// Whether the keys of new messages are looked for, and what memory knows of leases is read.
    pub(super) sure: Need,
    /// In which something goes back: what is in flight there.
    pub(super) lanes: Lanes,
    /// Whose rows change, or which give out what goes alone.
    pub(super) queues: BTreeSet<i64>,
}

impl<B: Backend> Writer<B> {
    /// Does what `attempt` does, which gives `None` where it lacked something, adds that to the needs, and begins anew.
    pub(super) fn with_needs<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self, &mut Needs) -> Result<Option<T>, CommitError>,
    ) -> Result<T, CommitError> {
        let mut needs = Needs { sure: Need::AtCommit, lanes: Lanes::new(), queues: BTreeSet::new() };
        loop {
            let attempted = attempt(self, &mut needs);
            self.database.roll_back()?;
            if let Some(done) = attempted? {
                return Ok(done);
            }
        }
    }

    /// Begins a transaction if the needs ask for one.
    pub(super) fn begin_if_needed(&mut self, needs: &Needs) -> Result<(), CommitError> {
        if needs.lanes.is_empty() && needs.queues.is_empty() {
            return Ok(());
        }
        self.database.begin(&Holds { sessions: Vec::new(), queues: needs.queues.clone() })?;
        self.follow_held(&needs.queues)
    }

    /// Brings memory in line with queues that are held from now on.
    pub(super) fn follow_held(&mut self, queues: &BTreeSet<i64>) -> Result<(), CommitError> {
        if queues.is_empty() { Ok(()) } else { self.database.follow(&mut self.memory) }
    }

    /// What is in flight in these lanes. In a transaction, until whose end nobody leases there.
    pub(super) fn in_flight(&mut self, lanes: &Lanes) -> Result<HashMap<DeliveryId, Row>, CommitError> {
        if lanes.is_empty() {
            return Ok(HashMap::new());
        }
        let read = self.database.lanes_in_flight(&self.memory, lanes)?;
        Ok(self.memory.damage.sound(read)?.into_iter().map(|row| (row.id, row)).collect())
    }

    /// Takes over what other nodes have leased of a queue that is held.
    pub(super) fn adopt(&mut self, queue: i64) -> Result<(), CommitError> {
        if !self.memory.is_shared {
            return Ok(());
        }
        self.database.follow(&mut self.memory)?;
        let leased = self.leased_of(queue)?;
        self.memory.hot.retain(|_, row| row.queue != queue);
        for row in leased {
            self.memory.install(row);
        }
        Ok(())
    }

    /// What is in flight alone of queues that are held.
    pub(super) fn alone(&mut self, held: &BTreeSet<i64>) -> Result<Suspects, CommitError> {
        let now = self.now();
        let mut suspects = Suspects::with_capacity(held.len());
        for queue in held {
            let Some(of) = self.memory.queues.get(queue).filter(|of| of.gives_one_alone(now)) else {
                continue;
            };
            let in_flight = if of.in_flight() == 0 { Vec::new() } else { self.leased_of(*queue)? };
            let is_suspect = |row: &Row| row.delivery.suspect && row.delivery.state.in_flight();
            suspects.insert(*queue, in_flight.into_iter().filter(is_suspect).collect());
        }
        Ok(suspects)
    }

    /// What is leased of a queue that is held, whichever node has. If one is the breaker's probe, memory knows then.
    fn leased_of(&mut self, queue: i64) -> Result<Vec<Row>, CommitError> {
        // It has to be looked for among what is leased of all queues; and what is counted has been read since this one is held.
        let counts = self.memory.queues.get(&queue).map(|of| of.counts).unwrap_or_default();
        if counts.leased + counts.sending == 0 {
            return Ok(Vec::new());
        }
        let read = self.database.leased_of(queue)?;
        let leased = self.memory.damage.sound(read)?;
        if let Some(of) = self.memory.queues.get_mut(&queue)
            && let Some(probe) = leased.iter().find(|row| of.may_be_probe(row))
            && let Some(trip) = &mut of.control.trip
        {
            trip.probe = Some(probe.id);
        }
        Ok(leased)
    }
}

impl Turn<'_> {
    /// Whether the turn has been decided without what it needed: that is added.
    pub(super) fn lacks(&mut self, needs: &mut Needs, held: &BTreeSet<i64>) -> bool {
        if !self.memory.is_shared {
            return false;
        }
        let changed: Vec<i64> = self.queues_changed().filter(|queue| !held.contains(queue)).collect();
        let lacks = !(self.lanes_unread.is_empty() && changed.is_empty());
        needs.lanes.append(&mut self.lanes_unread);
        needs.queues.extend(changed);
        lacks
    }

    /// Queues whose rows the turn changes.
    pub(crate) fn queues_changed(&self) -> impl Iterator<Item = i64> {
        let is_other = |id: &i64| {
            let (Some(before), Some(now)) = (self.memory.queues.get(id), self.queues.get(id)) else {
                return false;
            };
            before.has_changed(now)
        };
        self.queues.keys().copied().filter(move |id| is_other(id))
    }
}
