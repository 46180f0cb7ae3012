//! What goes back behind a delivery that has: in its lane nothing may begin before it.

use std::collections::{BTreeSet, HashMap};

use gatepost_core::delivery::Event;
use gatepost_core::policy::RetryScope;
use gatepost_core::{DeliveryId, Outcome};

use super::Writer;
use super::turn::{Extra, Turn};
use crate::backend::{Backend, CommitError};
use crate::ops::StoreError;
use crate::row::Row;
use crate::seal::Index;

/// Lanes, each with its queue.
pub(crate) type Lanes = BTreeSet<(i64, Index)>;

/// The first of each lane that has gone back, by position.
#[derive(Default)]
pub(crate) struct Fronts {
    lanes: HashMap<(i64, Index), Front>,
}

#[derive(Clone, Copy)]
struct Front {
    /// Whyever it went back.
    pos: i64,
    /// The first whose lane's partner is away.
    away: Option<i64>,
}

impl Fronts {
    /// Takes note of one that has lost its lease.
    pub(crate) fn lost(row: &Row) -> Self {
        let mut fronts = Self::default();
        fronts.note(row, None);
        fronts
    }

    /// Takes note of one that went back with this outcome.
    pub(crate) fn add(&mut self, row: &Row, outcome: Outcome) {
        let is_away = matches!(outcome, Outcome::Retry { scope: RetryScope::Lane, .. });
        self.note(row, is_away.then_some(row.pos));
    }

    fn note(&mut self, row: &Row, away: Option<i64>) {
        for lane in row.lanes() {
            let front = self.lanes.entry((row.queue, lane)).or_insert(Front { pos: row.pos, away });
            front.pos = front.pos.min(row.pos);
            front.away = front.away.into_iter().chain(away).min();
        }
    }

    /// What happens to a delivery because of those that stand before it.
    pub(crate) fn recall(&self, row: &Row) -> Option<Event> {
        let fronts = || row.lanes().filter_map(|lane| self.lanes.get(&(row.queue, lane)));
        if fronts().any(|front| front.away.is_some_and(|pos| pos < row.pos)) {
            Some(Event::LaneAway)
        } else if fronts().any(|front| front.pos < row.pos) {
            Some(Event::Recall)
        } else {
            None
        }
    }
}

impl Turn<'_> {
    /// Takes in what is in flight in these lanes.
    pub(super) fn read_lanes(&mut self, lanes: &Lanes, in_flight: HashMap<DeliveryId, Row>) {
        self.lanes_read.clone_from(lanes);
        self.loaded.extend(in_flight);
    }

    /// Whether the turn has decided without knowing of lanes what it should have: these are added.
    pub(super) fn lacks_lanes(&mut self, lanes: &mut Lanes) -> bool {
        let lacks = !self.lanes_unread.is_empty();
        lanes.append(&mut self.lanes_unread);
        lacks
    }

    /// When a delivery of a lane goes back, later ones that are leased and have not begun go back too; where its lane's partner is away,
    /// all of which nothing has been reported. The window does not matter: it may have been wider when they were leased.
    ///
    /// Where others lease in the lane too, the turn must have read what. If it has not, it is not worth anything: see
    /// [`Writer::with_lanes`].
    pub(crate) fn recall_behind(&mut self, fronts: &Fronts) -> Result<(), StoreError> {
        if self.memory.is_shared {
            let unread = fronts.lanes.keys().filter(|lane| !self.lanes_read.contains(*lane));
            self.lanes_unread.extend(unread.copied());
        }
        let mut may_be_hot = false;
        for ((queue, _), front) in &fronts.lanes {
            let queue = self.queue(*queue)?;
            may_be_hot |= queue.counts.leased > 0 || front.away.is_some() && queue.in_flight() > 0;
        }
        let hot = self.memory.hot.keys().filter(|id| may_be_hot && !self.loaded.contains_key(*id));
        let in_hand = self.loaded.keys().chain(hot).filter_map(|id| self.row(id));
        let mut behind: Vec<(Row, Event)> = in_hand
            .filter(|row| row.delivery.state.in_flight())
            .filter_map(|row| Some((row.clone(), fronts.recall(row)?)))
            .collect();
        behind.sort_unstable_by_key(|(row, _)| row.pos);
        let gateway = self.gateway.clone();
        for (row, event) in behind {
            let (queue, id) = (row.queue, row.id);
            // What has begun stays so.
            if let Ok(change) = self.at_moment(queue, |moment| row.delivery.apply(event, moment))? {
                self.change(row, &change, &gateway, &Extra::default())?;
                self.probe_lost(queue, id)?;
            }
        }
        Ok(())
    }
}

impl<B: Backend> Writer<B> {
    /// Does something of which it shows only when it is decided in which lanes something goes back. `attempt` gives `None` where it has
    /// found some of which it did not know what is in flight, adds them to its lanes, and begins anew.
    pub(super) fn with_lanes<T>(
        &mut self,
        mut attempt: impl FnMut(&mut Self, &mut Lanes) -> Result<Option<T>, CommitError>,
    ) -> Result<T, CommitError> {
        let mut lanes = Lanes::new();
        loop {
            let attempted = attempt(self, &mut lanes);
            self.database.roll_back()?;
            if let Some(done) = attempted? {
                return Ok(done);
            }
        }
    }

    /// What is in flight in these lanes beside what memory holds. In a transaction, until whose end nobody leases there.
    pub(super) fn in_flight(&mut self, lanes: &Lanes) -> Result<HashMap<DeliveryId, Row>, CommitError> {
        if lanes.is_empty() {
            return Ok(HashMap::new());
        }
        let read = self.database.lanes_in_flight(&self.memory, lanes)?;
        Ok(self.memory.damage.sound(read)?.into_iter().map(|row| (row.id, row)).collect())
    }
}
