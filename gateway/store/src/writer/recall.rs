//! What goes back behind a delivery that has: in its lane nothing may begin before it.

use std::collections::HashMap;

use gatepost_core::delivery::Event;
use gatepost_core::policy::RetryScope;
use gatepost_core::{DeliveryId, Outcome};

use super::needs::Lanes;
use super::turn::{Extra, Turn};
use crate::ops::StoreError;
use crate::row::Row;
use crate::seal::Index;

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

    /// When a delivery of a lane goes back, later ones that are leased and have not begun go back too; where its lane's partner is away,
    /// all of which nothing has been reported. The window does not matter: it may have been wider when they were leased.
    ///
    /// Where others lease in the lane too, the turn must have read what. If it has not, it is not worth anything: see
    /// [`Turn::lacks`].
    pub(crate) fn recall_behind(&mut self, fronts: &Fronts) -> Result<(), StoreError> {
        let may_be_behind = if self.memory.is_shared {
            let unread = fronts.lanes.keys().filter(|lane| !self.lanes_read.contains(*lane));
            self.lanes_unread.extend(unread.copied());
            !fronts.lanes.is_empty() && self.lanes_unread.is_empty()
        } else {
            self.may_be_in_flight(fronts)?
        };
        if !may_be_behind {
            return Ok(());
        }
        let in_hand: &HashMap<DeliveryId, Row> =
            if self.memory.is_shared { &self.loaded } else { &self.memory.hot };
        let mut behind: Vec<(Row, Event)> = in_hand
            .keys()
            .filter_map(|id| self.row(id))
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

    /// Whether anything is in flight that may go back behind these.
    fn may_be_in_flight(&self, fronts: &Fronts) -> Result<bool, StoreError> {
        for ((queue, _), front) in &fronts.lanes {
            let queue = self.queue(*queue)?;
            if queue.counts.leased > 0 || front.away.is_some() && queue.in_flight() > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
