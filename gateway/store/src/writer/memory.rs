//! What the writer keeps in memory: the queues with their counts, and every delivery that is leased now. All of it can be
//! rebuilt from the database, and is at each start and after each failure; it changes only when a commit has succeeded,
//! or is on its way, and is read anew if that fails.

use std::collections::{HashMap, HashSet, VecDeque};

use gatepost_core::delivery::Proof;
use gatepost_core::principal::Actor;
use gatepost_core::queue::{QueueControl, Trip};
use gatepost_core::{DeliveryId, LeaseToken, MessageId, QueuePolicy, State, Timestamp};

use super::damage::Damage;
use super::keys::Keys;
use crate::ops::{QueueKind, QueueSetup, SenderRow, Sessions};
use crate::row::Row;
use crate::seal::Index;

/// Rows kept from their accept to their first lease.
const FRESH_ROWS_MAX: usize = 16_384;
/// Seconds over which rates are taken.
const RATE_SECONDS: i64 = 60;

pub(crate) struct Memory {
    pub(crate) queues: HashMap<i64, Queue>,
    pub(crate) by_name: HashMap<String, i64>,
    /// Leased and sending deliveries; the whole of them, as they are, unless `is_shared`.
    pub(crate) hot: HashMap<DeliveryId, Row>,
    /// Others lease and settle besides, in the same database.
    pub(crate) is_shared: bool,
    /// Deliveries leased under a `request_id`.
    pub(crate) batches: HashMap<Index, Vec<(DeliveryId, LeaseToken)>>,
    pub(crate) rates: HashMap<i64, Rates>,
    pub(crate) keys: Keys,
    pub(crate) leaf_count: u64,
    /// Bytes with which a run of leaves is large enough for a row.
    pub(crate) run_bytes: usize,
    /// Deliveries accepted lately that nothing has happened to since, so that their first lease need not read them.
    pub(crate) fresh: Fresh,
    pub(crate) next_seq: i64,
    pub(crate) next_pos: i64,
    pub(crate) damage: Damage,
    /// Messages that were not accepted and of which pieces are still there.
    pub(crate) unclaimed: VecDeque<MessageId>,
}

#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) id: i64,
    pub(crate) setup: QueueSetup,
    pub(crate) control: QueueControl,
    /// Epoch of the adapter's newest session; where each node has its own, of this node's.
    pub(crate) session: u64,
    /// The largest there ever was, on any node.
    pub(crate) newest_session: u64,
    pub(crate) counts: Counts,
}

impl Queue {
    /// Takes over from what was `known` what only this node knows.
    pub(crate) fn keep_own(&mut self, known: &Self) {
        self.setup.policy = known.setup.policy;
        self.setup.sessions = known.setup.sessions;
        self.setup.kind = known.setup.kind;
        if known.setup.sessions == Sessions::OfNode {
            self.session = known.session;
        }
        // Where the probe's outcome is counted there is none any more, wherever it was settled.
        if let (Some(trip), Some(before)) = (&mut self.control.trip, known.control.trip)
            && (Trip { probe: before.probe, ..*trip }) == before
        {
            trip.probe = before.probe;
        }
    }

    /// Whether its row has become another one.
    pub(crate) fn has_changed(&self, now: &Self) -> bool {
        self.control != now.control || self.session != now.session
    }

    /// Whether what is given out next may have to be the only one.
    pub(crate) fn gives_one_alone(&self, now: Timestamp) -> bool {
        let may_probe = self.control.trip.is_some_and(|trip| trip.probe.is_none() && trip.probe_due <= now);
        self.control.paused_since.is_none() && (self.counts.suspects > 0 || may_probe)
    }

    /// Whether a delivery in flight is the breaker's probe, as another node may have leased it: since one was due.
    pub(crate) fn may_be_probe(&self, row: &Row) -> bool {
        let since = |trip: &Trip| trip.probe.is_none() && row.changed_at >= trip.probe_due;
        row.delivery.state.in_flight() && self.control.trip.as_ref().is_some_and(since)
    }

    /// Ends the session there is; the next one's epoch.
    pub(crate) fn next_session(&mut self) -> u64 {
        self.newest_session += 1;
        self.session = self.newest_session;
        self.session
    }

    /// Whether its sessions follow one another: what one of them has `sent`, the next goes on behind. Where each node has one, the
    /// one that sent may be alive on another node.
    pub(crate) fn succeeds_itself(&self) -> bool {
        self.setup.sessions == Sessions::One
    }

    pub(crate) fn in_flight(&self) -> u32 {
        let counts = &self.counts;
        u32::try_from(counts.leased + counts.sending - counts.sent).unwrap_or(0)
    }

    /// Deliveries and bytes on their way; dead ones are not.
    pub(crate) fn backlog(&self) -> (u64, u64) {
        let counts = &self.counts;
        let deliveries = counts.waiting + counts.leased + counts.sending + counts.in_doubt;
        (u64::try_from(deliveries).unwrap_or(0), u64::try_from(counts.bytes).unwrap_or(0))
    }

    /// Whether leases of this queue end with the gateway.
    pub(crate) fn leases_end_with_gateway(&self) -> bool {
        match self.setup.kind {
            QueueKind::Adapter | QueueKind::Removed => true,
            QueueKind::ExternalAdapter | QueueKind::Inbox | QueueKind::Builtin | QueueKind::Sender => false,
        }
    }

    /// One that nothing has come to yet.
    pub(crate) fn new(id: i64, setup: QueueSetup) -> Self {
        Self {
            id,
            setup,
            control: QueueControl::default(),
            session: 0,
            newest_session: 0,
            counts: Counts::default(),
        }
    }

    /// Of a sender of which nothing is known but that it is one.
    pub(crate) fn of_unknown_sender(id: i64) -> Self {
        let setup = QueueSetup {
            name: String::new(),
            kind: QueueKind::Sender,
            sessions: Sessions::default(),
            policy: QueuePolicy::default(),
        };
        Self::new(id, setup)
    }

    /// What others see of a sender; `None` of a queue.
    pub(crate) fn sender_row(&self) -> Option<SenderRow> {
        let (deliveries, bytes) = self.backlog();
        let is_known = self.setup.kind == QueueKind::Sender && !self.setup.name.is_empty();
        is_known.then(|| SenderRow {
            sender: self.setup.name.clone(),
            deliveries,
            bytes,
            limit: self.setup.policy.max_backlog,
        })
    }
}

/// Deliveries of a queue by state. Of a sender all that have not ended are counted as waiting: most steps then change nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) waiting: i64,
    pub(crate) leased: i64,
    pub(crate) sending: i64,
    pub(crate) sent: i64,
    pub(crate) in_doubt: i64,
    pub(crate) held: i64,
    pub(crate) dead: i64,
    pub(crate) suspects: i64,
    pub(crate) held_lanes: i64,
    pub(crate) bytes: i64,
}

impl Counts {
    pub(crate) fn add(&mut self, row: &Row) {
        self.count(row, 1);
    }

    /// What has come to them since they were `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            waiting: self.waiting - before.waiting,
            leased: self.leased - before.leased,
            sending: self.sending - before.sending,
            sent: self.sent - before.sent,
            in_doubt: self.in_doubt - before.in_doubt,
            held: self.held - before.held,
            dead: self.dead - before.dead,
            suspects: self.suspects - before.suspects,
            held_lanes: self.held_lanes - before.held_lanes,
            bytes: self.bytes - before.bytes,
        }
    }

    pub(crate) fn remove(&mut self, row: &Row) {
        self.count(row, -1);
    }

    /// Counts what a change of a delivery, or its coming, does to the backlog of its sender.
    pub(crate) fn follow(&mut self, was: Option<&Row>, now: &Row) {
        let open = |row: &Row| i64::from(!row.delivery.state.is_terminal());
        let more = open(now) - was.map_or(0, open);
        self.waiting += more;
        self.bytes += more * i64::try_from(now.size).unwrap_or(0);
    }

    fn count(&mut self, row: &Row, one: i64) {
        match row.delivery.state {
            State::Waiting { .. } => self.waiting += one,
            State::Leased { .. } => self.leased += one,
            State::Sending { proof, .. } => {
                self.sending += one;
                if proof == Proof::Late {
                    self.sent += one;
                }
            }
            State::InDoubt { due } => {
                self.in_doubt += one;
                if due.is_none() {
                    self.held += one;
                    self.held_lanes += if row.lane.is_some() { one } else { 0 };
                }
            }
            State::Dead { holds_lane, .. } => {
                self.dead += one;
                self.held_lanes += if holds_lane && row.lane.is_some() { one } else { 0 };
            }
            State::Delivered | State::Expired | State::Discarded => {}
        }
        if !row.delivery.state.is_terminal() {
            self.bytes += one * i64::try_from(row.size).unwrap_or(0);
            self.suspects += if row.delivery.suspect { one } else { 0 };
        }
    }
}

/// Accepted and settled deliveries of the last minute, by second.
#[derive(Default)]
pub(crate) struct Rates {
    seconds: VecDeque<(i64, u64, u64)>,
}

impl Rates {
    pub(crate) fn add(&mut self, now: Timestamp, accepted: u64, settled: u64) {
        let second = now.as_micros() / 1_000_000;
        match self.seconds.back_mut() {
            Some(last) if last.0 == second => {
                last.1 += accepted;
                last.2 += settled;
            }
            Some(_) | None => self.seconds.push_back((second, accepted, settled)),
        }
        self.forget(second);
    }

    /// Accepted and settled per second.
    pub(crate) fn per_second(&mut self, now: Timestamp) -> (f64, f64) {
        self.forget(now.as_micros() / 1_000_000);
        let (accepted, settled) = self
            .seconds
            .iter()
            .fold((0, 0), |sum, (_, accepted, settled)| (sum.0 + accepted, sum.1 + settled));
        (accepted as f64 / RATE_SECONDS as f64, settled as f64 / RATE_SECONDS as f64)
    }

    fn forget(&mut self, second: i64) {
        while self.seconds.front().is_some_and(|oldest| oldest.0 <= second - RATE_SECONDS) {
            self.seconds.pop_front();
        }
    }
}

/// Rows as the database has them, by position. Only a shortcut: what is not here is read.
#[derive(Default)]
pub(crate) struct Fresh {
    rows: HashMap<i64, Row>,
    /// Oldest first; some may be gone already.
    order: VecDeque<i64>,
}

impl Fresh {
    pub(crate) fn get(&self, pos: i64) -> Option<&Row> {
        self.rows.get(&pos)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.values()
    }

    fn add(&mut self, row: Row) {
        self.order.push_back(row.pos);
        self.rows.insert(row.pos, row);
        while self.rows.len() > FRESH_ROWS_MAX || self.order.len() > 2 * FRESH_ROWS_MAX {
            let Some(oldest) = self.order.pop_front() else { return };
            self.rows.remove(&oldest);
        }
    }
}

impl Memory {
    /// Takes in the rows that a commit has added.
    pub(crate) fn added(&mut self, rows: Vec<Row>) {
        // One that came dead or was changed in the same turn is not worth a place.
        for row in rows.into_iter().filter(|row| matches!(row.delivery.state, State::Waiting { .. })) {
            self.fresh.add(row);
        }
    }

    pub(crate) fn queue(&self, name: &str) -> Option<&Queue> {
        self.named(name).filter(|queue| queue.setup.kind != QueueKind::Sender)
    }

    /// The row that counts what a sender has handed in.
    pub(crate) fn sender(&self, sender: &Actor) -> Option<&Queue> {
        self.named(&sender.to_string()).filter(|queue| queue.setup.kind == QueueKind::Sender)
    }

    fn named(&self, name: &str) -> Option<&Queue> {
        self.by_name.get(name).and_then(|id| self.queues.get(id))
    }

    /// Notes what a commit has done to a delivery.
    pub(crate) fn install(&mut self, row: Row) {
        self.fresh.rows.remove(&row.pos);
        match (row.delivery.lease(), row.batch) {
            (None, _) => drop(self.hot.remove(&row.id)),
            (Some(_), None) => drop(self.hot.insert(row.id, row)),
            (Some(lease), Some(batch)) => {
                let members = self.batches.entry(batch).or_default();
                if !members.contains(&(row.id, lease.token)) {
                    members.push((row.id, lease.token));
                }
                self.hot.insert(row.id, row);
            }
        }
    }

    /// Takes over what was read anew. Policies are the configuration's; rates, damage and pieces to be removed this gateway's own.
    pub(crate) fn catch_up(&mut self, read: Self) {
        let before = std::mem::replace(self, read);
        self.rates = before.rates;
        self.damage = before.damage;
        self.unclaimed = before.unclaimed;
        for queue in self.queues.values_mut() {
            if let Some(known) = before.queues.get(&queue.id) {
                queue.keep_own(known);
            }
        }
    }

    /// Forgets batches none of whose leases is alive.
    pub(crate) fn forget_batches(&mut self) {
        let alive: HashSet<(DeliveryId, LeaseToken)> = self
            .hot
            .values()
            .filter(|row| row.batch.is_some())
            .filter_map(|row| row.delivery.lease().map(|lease| (row.id, lease.token)))
            .collect();
        self.batches.retain(|_, members| members.iter().any(|member| alive.contains(member)));
    }
}
