//! Do the audit log and the database say the same? Both ways: what the log recorded last of each delivery is its row, each row has
//! its entries, each message its entry, each queue's counts its rows.
//!
//! The rows are read in one snapshot, so a gateway at work changes nothing under the reader; the log is then read up to the size
//! that it had in the snapshot. What the core decides and the writer writes is not used here, since it is what is doubted.

mod postgres;
mod sqlite;

use std::collections::{BTreeMap, HashMap};

use gatepost_audit::{Event, Leaf};
use gatepost_core::{DeliveryId, MessageId};

use crate::archive::{Archive, ArchiveError, Place};
use crate::leaves::Run;
use crate::ops::StoreError;

/// Disagreements that are told; all are counted.
pub const TOLD_MAX: usize = 20;

/// What was compared, and what does not agree.
#[derive(Debug, Default)]
pub struct Reconciliation {
    pub entries: u64,
    pub messages: u64,
    pub deliveries: u64,
    /// Deliveries by their state.
    pub by_state: BTreeMap<&'static str, u64>,
    pub disagreements: u64,
    /// The first of them, at most [`TOLD_MAX`].
    pub first: Vec<Disagreement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    pub kind: DisagreementKind,
    /// What it is about: an id, an entry, a queue.
    pub subject: String,
    pub detail: String,
}

/// The kinds of disagreement, as programs tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisagreementKind {
    /// The log accepted a message that has no row.
    MessageMissing,
    /// A message's row that the log never accepted.
    MessageUnrecorded,
    /// The log knows a delivery that has no row.
    DeliveryMissing,
    /// A delivery's row that the log does not know.
    DeliveryUnrecorded,
    /// It belongs to another message or another queue than the log says.
    Belonging,
    State,
    Attempts,
    /// The row does not list the entries that the log has about it.
    Entries,
    /// A queue's counts are not those of its rows.
    Counts,
    /// An entry cannot be read.
    Unreadable,
}

impl DisagreementKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MessageMissing => "message_missing",
            Self::MessageUnrecorded => "message_unrecorded",
            Self::DeliveryMissing => "delivery_missing",
            Self::DeliveryUnrecorded => "delivery_unrecorded",
            Self::Belonging => "belonging",
            Self::State => "state",
            Self::Attempts => "attempts",
            Self::Entries => "entries",
            Self::Counts => "counts",
            Self::Unreadable => "unreadable",
        }
    }
}

impl Reconciliation {
    fn find(&mut self, kind: DisagreementKind, subject: impl ToString, detail: impl Into<String>) {
        self.disagreements += 1;
        if self.first.len() < TOLD_MAX {
            let detail = detail.into();
            self.first.push(Disagreement { kind, subject: subject.to_string(), detail });
        }
    }
}

impl Archive {
    /// Compares the log with the database as both are now.
    pub async fn reconcile(
        &self,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Reconciliation, ArchiveError> {
        let mut rows = match self.database().clone() {
            Place::Sqlite(path) => {
                let read = tokio::task::spawn_blocking(move || sqlite::read(&path)).await;
                let read = read.map_err(|error| StoreError::Database(error.to_string()))?;
                read.map_err(|error| StoreError::Database(error.to_string()))?
            }
            Place::Postgres(pool) => postgres::read(&pool).await?,
        };
        let size = rows.leaf_count;
        let mut found = Reconciliation { entries: size, ..Reconciliation::default() };
        let mut next = 0;
        while next < size {
            let entries = self.entries(next, size).await?;
            if entries.is_empty() {
                return Err(ArchiveError::Missing(next));
            }
            for entry in entries {
                let number = rows.number_of(next);
                rows.take_entry(number, &entry, &mut found);
                next += 1;
            }
            progress(next, size);
        }
        for run in std::mem::take(&mut rows.unplaced) {
            let leaves = run.leaves().map_err(|error| StoreError::Audit(error.to_string()))?;
            for (number, entry) in leaves {
                found.entries += 1;
                rows.take_entry(number, entry, &mut found);
            }
        }
        rows.finish(&mut found);
        Ok(found)
    }
}

/// The rows of one snapshot, and what the log has said of them so far.
struct Rows {
    /// Entries that have their place in the tree.
    leaf_count: u64,
    /// Where the leaves stand in the tree whose numbers are not their indices: index and number of a run's first.
    places: Vec<(u64, u64)>,
    /// Runs that have no place yet, in the order of their numbers.
    unplaced: Vec<Run>,
    queues: HashMap<i64, Queue>,
    by_name: HashMap<String, i64>,
    messages: HashMap<[u8; 16], Message>,
    deliveries: HashMap<[u8; 16], Delivery>,
}

struct Queue {
    name: String,
    /// As the row has them, in the order of [`COUNTS`].
    kept: [i64; COUNTS.len()],
    counted: [i64; COUNTS.len()],
}

const COUNTS: [&str; 10] =
    ["waiting", "leased", "sending", "sent", "in_doubt", "held", "dead", "suspects", "held_lanes", "bytes"];

struct Message {
    seq: i64,
    recorded: bool,
}

struct Delivery {
    message: i64,
    queue: i64,
    state: &'static str,
    attempts: u32,
    series: u32,
    /// Numbers of its entries, eight bytes each; those already met are cut off.
    entries: Vec<u8>,
    recorded: Option<Recorded>,
}

/// What the log said of it last.
#[derive(Default)]
struct Recorded {
    state: &'static str,
    attempts: u32,
    series: u32,
    /// Where it goes; it may have been moved since it was accepted.
    queue: Option<i64>,
    /// The first entry that the row does not list.
    unlisted: Option<u64>,
}

impl Rows {
    fn count(&mut self, queue: i64, columns: &DeliveryColumns) {
        if let Some(queue) = self.queues.get_mut(&queue) {
            queue.count(columns);
        }
        if let Some(sender) = columns.sender.and_then(|sender| self.queues.get_mut(&sender)) {
            sender.count_sent(columns);
        }
    }

    /// The number under which rows know an entry.
    fn number_of(&self, index: u64) -> u64 {
        let run = self.places.partition_point(|(first, _)| *first <= index).checked_sub(1);
        run.map_or(index, |run| {
            let (first, number) = self.places[run];
            number + (index - first)
        })
    }

    fn take_entry(&mut self, number: u64, entry: &[u8], found: &mut Reconciliation) {
        match Leaf::parse(entry) {
            Ok(leaf) => self.take(number, &leaf, found),
            Err(error) => {
                let subject = format_args!("entry {number}");
                found.find(DisagreementKind::Unreadable, subject, error.to_string());
            }
        }
    }

    /// Takes an entry of the log.
    fn take(&mut self, index: u64, leaf: &Leaf<'_>, found: &mut Reconciliation) {
        if matches!(leaf.event, Event::Accepted | Event::Emitted) {
            return self.take_accepted(index, leaf, found);
        }
        let Some(id) = leaf.delivery else { return };
        let Some(delivery) = self.deliveries.get_mut(&id) else {
            // Told when it was accepted.
            return;
        };
        delivery.list(index);
        let Some(recorded) = &mut delivery.recorded else { return };
        if leaf.event == Event::Attempt {
            recorded.state = "sending";
        }
        if let Some(state) = leaf.state {
            recorded.state = state.as_str();
        }
        recorded.attempts = leaf.attempts.unwrap_or(recorded.attempts);
        recorded.series = leaf.series.unwrap_or(0);
        if let Some(destination) = &leaf.destination {
            recorded.queue = self.by_name.get(destination.as_ref()).copied();
        }
    }

    fn take_accepted(&mut self, index: u64, leaf: &Leaf<'_>, found: &mut Reconciliation) {
        let id = leaf.message.unwrap_or_default();
        let message = self.messages.get_mut(&id);
        if message.is_none() {
            let detail = format!("entry {index} accepted it, and it has no row");
            found.find(DisagreementKind::MessageMissing, MessageId::from_bytes(id), detail);
        }
        let seq = message.map(|message| {
            message.recorded = true;
            message.seq
        });
        for recorded in &leaf.deliveries {
            let subject = DeliveryId::from_bytes(recorded.id);
            let Some(delivery) = self.deliveries.get_mut(&recorded.id) else {
                let detail = format!("entry {index} names it, to {}, and it has no row", recorded.to);
                found.find(DisagreementKind::DeliveryMissing, subject, detail);
                continue;
            };
            let queue = self.by_name.get(recorded.to.as_ref()).copied();
            delivery.recorded = Some(Recorded { state: "waiting", queue, ..Recorded::default() });
            delivery.list(index);
            if let Some(seq) = seq.filter(|seq| *seq != delivery.message) {
                let detail =
                    format!("entry {index} says message {seq}, the row message {}", delivery.message);
                found.find(DisagreementKind::Belonging, subject, detail);
            }
        }
    }

    /// What the log said last must be the row, and nothing may be left over.
    fn finish(self, found: &mut Reconciliation) {
        found.messages = self.messages.len() as u64;
        found.deliveries = self.deliveries.len() as u64;
        let mut unrecorded: Vec<_> =
            self.messages.iter().filter(|(_, message)| !message.recorded).map(|(id, _)| *id).collect();
        unrecorded.sort_unstable();
        for id in unrecorded {
            let detail = "its row has no entry that accepted it";
            found.find(DisagreementKind::MessageUnrecorded, MessageId::from_bytes(id), detail);
        }
        let mut deliveries: Vec<_> = self.deliveries.into_iter().collect();
        deliveries.sort_unstable_by_key(|(id, _)| *id);
        for (id, delivery) in deliveries {
            *found.by_state.entry(delivery.state).or_default() += 1;
            delivery.compare(DeliveryId::from_bytes(id), found);
        }
        let mut queues: Vec<_> = self.queues.into_values().collect();
        queues.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        for queue in queues {
            for ((name, kept), counted) in COUNTS.iter().zip(queue.kept).zip(queue.counted) {
                if kept != counted {
                    let detail = format!("{name} is {kept}, its deliveries make {counted}");
                    found.find(DisagreementKind::Counts, &queue.name, detail);
                }
            }
        }
    }
}

/// A delivery's row as far as counts and the log know it.
struct DeliveryColumns {
    state: i64,
    in_lane: bool,
    blocks: bool,
    late: bool,
    suspect: bool,
    /// The row that counts what its sender has handed in.
    sender: Option<i64>,
    due: Option<i64>,
    /// Of its message, bytes; `None` if that is gone.
    size: Option<i64>,
}

impl Queue {
    fn new(name: String, kept: [i64; COUNTS.len()]) -> Self {
        Self { name, kept, counted: [0; COUNTS.len()] }
    }

    /// Counts one delivery's row.
    fn count(&mut self, row: &DeliveryColumns) {
        let state = row.state;
        let open = (0..=3).contains(&state);
        let held = state == 3 && row.due.is_none();
        let holds_lane = row.in_lane && (held || state == 5 && row.blocks);
        let is = [
            state == 0,
            state == 1,
            state == 2,
            state == 2 && row.late,
            state == 3,
            held,
            state == 5,
            open && row.suspect,
            holds_lane,
        ];
        for (count, is) in self.counted.iter_mut().zip(is) {
            *count += i64::from(is);
        }
        self.counted[COUNTS.len() - 1] += if open { row.size.unwrap_or(0) } else { 0 };
    }

    /// Counts one delivery's row to its sender: what has not ended, whatever its state.
    fn count_sent(&mut self, row: &DeliveryColumns) {
        if (0..=3).contains(&row.state) {
            self.counted[0] += 1;
            self.counted[COUNTS.len() - 1] += row.size.unwrap_or(0);
        }
    }
}

impl Delivery {
    /// Takes note that the log has an entry about it.
    fn list(&mut self, index: u64) {
        if self.entries.get(..8) == Some(&index.to_be_bytes()[..]) {
            self.entries.drain(..8);
        } else if let Some(recorded) = &mut self.recorded {
            recorded.unlisted.get_or_insert(index);
        }
    }

    fn compare(self, id: DeliveryId, found: &mut Reconciliation) {
        let Some(recorded) = &self.recorded else {
            return found.find(DisagreementKind::DeliveryUnrecorded, id, "no entry accepted it");
        };
        // A lease that has not begun is no entry: the delivery may have gone on from where the log left it.
        let leased = self.state == "leased" && matches!(recorded.state, "waiting" | "in_doubt");
        if recorded.state != self.state && !leased {
            let detail = format!("the log left it {}, the row says {}", recorded.state, self.state);
            found.find(DisagreementKind::State, id, detail);
        }
        if recorded.queue != Some(self.queue) {
            let detail =
                format!("the log left it to queue {:?}, the row says {}", recorded.queue, self.queue);
            found.find(DisagreementKind::Belonging, id, detail);
        }
        if (recorded.attempts, recorded.series) != (self.attempts, self.series) {
            let detail = format!(
                "the log counts {} attempts in series {}, the row {} in {}",
                recorded.attempts, recorded.series, self.attempts, self.series
            );
            found.find(DisagreementKind::Attempts, id, detail);
        }
        let surplus = self.entries.len() / 8;
        if let Some(index) = recorded.unlisted {
            found.find(DisagreementKind::Entries, id, format!("its row does not list entry {index}"));
        } else if !self.entries.is_empty() {
            found.find(
                DisagreementKind::Entries,
                id,
                format!("its row lists {surplus} entries that are not about it"),
            );
        }
    }
}
