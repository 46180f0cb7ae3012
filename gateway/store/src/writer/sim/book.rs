//! What the audit log alone says of every delivery: each leaf must follow from those before it, and the rows must be what
//! the leaves say.

use std::collections::HashMap;

use gatepost_audit::{Event, Hash, Leaf, State as LeafState, TileEdge, leaf_hash};
use gatepost_core::State;

use super::laws::{Broken, Snap, law};
use crate::row::Row;

#[derive(Default)]
pub(super) struct Book {
    told: HashMap<[u8; 16], Told>,
    /// The tree over all leaves.
    pub(super) edge: TileEdge,
    /// Every leaf, as it was when it was first seen.
    pub(super) leaves: Vec<Vec<u8>>,
    /// Roots of the trees that were signed, by size.
    pub(super) signed: Vec<(u64, Hash)>,
    at: i64,
    /// Attempts that began in the leaves read last, and when.
    begun: Vec<([u8; 16], i64)>,
}

#[derive(Clone, Debug)]
struct Told {
    destination: String,
    state: LeafState,
    attempts: u32,
    series: u32,
    doubt: bool,
    leaves: Vec<u8>,
}

impl Book {
    /// Takes up the leaves that came since; each must be possible after those before it.
    pub(super) fn read(&mut self, new: Vec<(u64, Vec<u8>)>) -> Result<(), Broken> {
        self.begun.clear();
        for (index, bytes) in new {
            law("the log has no gap", index == self.leaves.len() as u64, || format!("leaf {index}"))?;
            let leaf = Leaf::parse(&bytes).map_err(|error| Broken::new("a leaf is one", error))?;
            law("time does not go back", leaf.at >= self.at, || format!("leaf {index}: {leaf:?}"))?;
            self.at = leaf.at;
            self.follow(index, &leaf).map_err(|why| {
                Broken::new("each leaf follows from those before it", format!("{why}: leaf {index} {leaf:?}"))
            })?;
            self.edge.push(leaf_hash(&bytes), &mut Vec::new());
            self.leaves.push(bytes);
        }
        Ok(())
    }

    fn follow(&mut self, index: u64, leaf: &Leaf<'_>) -> Result<(), String> {
        if matches!(leaf.event, Event::Accepted | Event::Emitted) {
            for delivery in &leaf.deliveries {
                let told = Told {
                    destination: delivery.to.to_string(),
                    state: LeafState::Waiting,
                    attempts: 0,
                    series: 0,
                    doubt: false,
                    leaves: index.to_be_bytes().to_vec(),
                };
                if self.told.insert(delivery.id, told).is_some() {
                    return Err("accepted twice".to_owned());
                }
            }
            return Ok(());
        }
        let Some(id) = leaf.delivery else { return Ok(()) };
        let told = self.told.get_mut(&id).ok_or("of an unknown delivery")?;
        told.leaves.extend_from_slice(&index.to_be_bytes());
        let at = if leaf.event == Event::Moved { &leaf.subject_of } else { &leaf.destination };
        if at.as_deref() != Some(told.destination.as_str()) {
            return Err(format!("of another destination than {}", told.destination));
        }
        if leaf.event == Event::Attempt {
            self.begun.push((id, leaf.at));
        }
        told.destination = leaf.destination.as_deref().unwrap_or_default().to_owned();
        told.advance(leaf).map_err(|why| format!("{why} after {told:?}"))
    }

    /// The rows are what the leaves say they are.
    pub(super) fn agrees(&self, snap: &Snap) -> Result<(), Broken> {
        law("the leaves are as many as the store says", snap.leaf_count == self.leaves.len() as u64, || {
            format!("{} and {}", snap.leaf_count, self.leaves.len())
        })?;
        law("a delivery for each that was told of", snap.rows.len() == self.told.len(), || {
            format!("{} rows, {} told", snap.rows.len(), self.told.len())
        })?;
        for row in snap.rows.values() {
            let late = row.delivery.expires_at.is_some_and(|expiry| {
                self.begun.iter().any(|(id, at)| id == row.id.as_bytes() && *at >= expiry.as_micros())
            });
            law("nothing begins past its expiry", !late, || format!("{row:?}"))?;
            let told = self.told.get(row.id.as_bytes());
            law("a row is what its leaves say", told.is_some_and(|told| told.is(row)), || {
                format!("{row:?} is told as {told:?}")
            })?;
        }
        Ok(())
    }
}

impl Told {
    fn advance(&mut self, leaf: &Leaf<'_>) -> Result<(), String> {
        use LeafState::{Dead, Delivered, Discarded, Expired, InDoubt, Sending, Waiting};
        let (was, code) = (self.state, leaf.code.as_deref());
        let open = matches!(was, Waiting | Sending | InDoubt);
        let series = leaf.series.unwrap_or(0);
        let attempts = leaf.attempts.unwrap_or(self.attempts);
        let charged = attempts == self.attempts + 1;
        let counts = |legal: bool| legal && (attempts == self.attempts || charged);
        let same = attempts == self.attempts;
        let renewed = series == self.series + 1 && attempts == 0;
        let legal = match leaf.event {
            Event::Attempt => matches!(was, Waiting | InDoubt) && leaf.attempt == Some(self.attempts + 1),
            Event::Sent => was == Sending && leaf.state == Some(Sending) && same,
            Event::Delivered => was == Sending && leaf.state == Some(Delivered) && same,
            Event::Retry => {
                let whose = match code {
                    Some("reported") => charged,
                    Some("destination_trouble") => same,
                    _ => false,
                };
                open && leaf.state == Some(Waiting) && whose
            }
            Event::Released => matches!(was, Waiting | Sending) && leaf.state == Some(Waiting) && same,
            Event::InDoubt => {
                let whose = match code {
                    Some("proof_overdue") => was == Sending && charged,
                    // Of a begun one it costs an attempt, of another nothing; what was released in doubt costs nothing.
                    Some("lease_expired") => charged == (was == Sending) && counts(true),
                    Some("reported") => counts(true),
                    Some(
                        "session_ended"
                        | "adapter_lost"
                        | "recalled"
                        | "past_expiry"
                        | "policy_holds"
                        | "destination_trouble",
                    ) => same,
                    _ => false,
                };
                open && leaf.state == Some(InDoubt) && whose
            }
            Event::Dead => {
                let whose = match code {
                    Some("rejected" | "attempts_spent") => charged,
                    Some("gave_up") => counts(true),
                    Some("poison") => same,
                    Some("no_route") => same && was == Waiting,
                    _ => false,
                };
                open && leaf.state == Some(Dead) && whose
            }
            Event::Expired => open && leaf.state == Some(Expired) && counts(true),
            Event::Resolved => {
                was == InDoubt
                    && match leaf.state {
                        Some(Waiting) => renewed,
                        Some(Delivered | Dead) => same,
                        _ => false,
                    }
            }
            Event::Replayed => was == Dead && renewed && matches!(leaf.state, Some(Waiting | Expired)),
            Event::Moved => {
                let afresh = was == Waiting && leaf.state == Some(Waiting) && renewed;
                afresh || was == Dead && leaf.state == Some(Dead) && same && series == self.series
            }
            Event::Discarded => was == Dead && leaf.state == Some(Discarded),
            other => return Err(format!("{other} is not about deliveries")),
        };
        let kept =
            series == self.series || matches!(leaf.event, Event::Resolved | Event::Replayed | Event::Moved);
        if !legal || !kept {
            return Err("impossible".to_owned());
        }
        self.state = leaf.state.unwrap_or(Sending);
        self.attempts = attempts;
        self.series = series;
        self.doubt = leaf.doubt.unwrap_or(false);
        Ok(())
    }

    /// A lease that has not begun, and giving it back, are the two things that the log does not tell.
    fn is(&self, row: &Row) -> bool {
        let state = match (&row.delivery.state, self.state) {
            (State::Waiting { .. } | State::Leased { .. }, LeafState::Waiting)
            | (State::InDoubt { .. } | State::Leased { .. }, LeafState::InDoubt)
            | (State::Sending { .. }, LeafState::Sending)
            | (State::Delivered, LeafState::Delivered)
            | (State::Dead { .. }, LeafState::Dead)
            | (State::Expired, LeafState::Expired)
            | (State::Discarded, LeafState::Discarded) => true,
            (State::Waiting { .. }, _)
            | (State::Leased { .. }, _)
            | (State::Sending { .. }, _)
            | (State::InDoubt { .. }, _)
            | (State::Delivered, _)
            | (State::Dead { .. }, _)
            | (State::Expired, _)
            | (State::Discarded, _) => false,
        };
        let delivery = &row.delivery;
        state
            && delivery.attempts == self.attempts
            && delivery.series == self.series
            && delivery.doubt == self.doubt
            && row.leaves == self.leaves
    }
}
