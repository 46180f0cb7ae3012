//! What goes back behind a delivery that has: in its lane nothing may begin before it.

use std::collections::HashMap;

use gatepost_core::Outcome;
use gatepost_core::delivery::Event;
use gatepost_core::policy::RetryScope;

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
    /// When a delivery of a lane goes back, later ones that are leased and have not begun go back too; where its lane's partner is away,
    /// all of which nothing has been reported. The window does not matter: it may have been wider when they were leased.
    pub(crate) fn recall_behind(&mut self, fronts: &Fronts) -> Result<(), StoreError> {
        let mut may_be_behind = false;
        for ((queue, _), front) in &fronts.lanes {
            let queue = self.queue(*queue)?;
            may_be_behind |= queue.counts.leased > 0 || front.away.is_some() && queue.in_flight() > 0;
        }
        if !may_be_behind {
            return Ok(());
        }
        // Another node's leases are known as far as this turn has to do with them.
        let elsewhere = self.loaded.keys().filter(|id| !self.memory.hot.contains_key(*id));
        let in_hand = self.memory.hot.keys().chain(elsewhere).filter_map(|id| self.row(id));
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
