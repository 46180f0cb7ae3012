//! What is copied, part by part and batch by batch.

use crate::leaves::Run;
use crate::row::Row;
use crate::seal::{Index, Salt};
use crate::writer::Queue;

/// Sealed bytes after which a batch is full; it holds at least one row.
pub(crate) const BATCH_BYTES: usize = 8 * 1024 * 1024;

/// What is copied on its own, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Queues,
    Messages,
    Deliveries,
    Details,
    Replies,
    States,
    Entries,
}

impl Part {
    pub(crate) const ALL: [Self; 7] = [
        Self::Queues,
        Self::Messages,
        Self::Deliveries,
        Self::Details,
        Self::Replies,
        Self::States,
        Self::Entries,
    ];

    /// As it stands in table `copy`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Queues => "queues",
            Self::Messages => "messages",
            Self::Deliveries => "deliveries",
            Self::Details => "details",
            Self::Replies => "replies",
            Self::States => "states",
            Self::Entries => "entries",
        }
    }
}

/// How far a copy has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Of this part everything up to a number, or so many: [`Batch::through`].
    Copying(Part, i64),
    Done,
}

impl Stage {
    pub(crate) const START: Self = Self::Copying(Part::ALL[0], 0);

    /// When all of a part is copied.
    pub(crate) fn after(part: Part) -> Self {
        let next = Part::ALL.iter().skip_while(|other| **other != part).nth(1);
        next.map_or(Self::Done, |next| Self::Copying(*next, 0))
    }

    /// The two columns of table `copy`.
    pub(crate) fn columns(self) -> (&'static str, i64) {
        match self {
            Self::Copying(part, through) => (part.as_str(), through),
            Self::Done => ("done", 0),
        }
    }

    pub(crate) fn of_columns(part: &str, through: i64) -> Option<Self> {
        if part == "done" {
            return Some(Self::Done);
        }
        let part = Part::ALL.into_iter().find(|known| known.as_str() == part)?;
        Some(Self::Copying(part, through))
    }
}

/// Rows of one part that go into one transaction.
pub(crate) struct Batch {
    pub(crate) rows: Rows,
    /// What is copied of the part with them: up to this number, or so many where there is no number.
    pub(crate) through: i64,
}

pub(crate) enum Rows {
    Queues(Vec<Queue>),
    Messages(Vec<Message>),
    Deliveries(Vec<Delivery>),
    Details(Vec<Detail>),
    Replies(Vec<Reply>),
    States(Vec<State>),
    Entries(Vec<Entries>),
}

impl Rows {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Queues(rows) => rows.is_empty(),
            Self::Messages(rows) => rows.is_empty(),
            Self::Deliveries(rows) => rows.is_empty(),
            Self::Details(rows) => rows.is_empty(),
            Self::Replies(rows) => rows.is_empty(),
            Self::States(rows) => rows.is_empty(),
            Self::Entries(rows) => rows.is_empty(),
        }
    }
}

pub(crate) struct Message {
    pub(crate) seq: i64,
    pub(crate) id: [u8; 16],
    pub(crate) accepted_at: i64,
    pub(crate) sender_kind: String,
    pub(crate) sender: String,
    pub(crate) kind: String,
    pub(crate) form: i64,
    pub(crate) size: i64,
    pub(crate) dedup: Index,
    pub(crate) fingerprint: Index,
    pub(crate) subject: Option<Index>,
    pub(crate) key: Option<Index>,
    pub(crate) correlation: Option<Index>,
    pub(crate) barrier: Option<Index>,
    /// Its idempotency key is its own still.
    pub(crate) holds_key: bool,
    /// The first of its deliveries, and how many positions they take.
    pub(crate) first_pos: i64,
    pub(crate) positions: i64,
    /// Sealed.
    pub(crate) remains: Vec<u8>,
    /// `None` once it is purged.
    pub(crate) content: Option<Content>,
}

pub(crate) struct Content {
    /// Sealed.
    pub(crate) attributes: Vec<u8>,
    pub(crate) salt: Salt,
    /// Sealed.
    pub(crate) data: Vec<u8>,
}

pub(crate) struct Delivery {
    pub(crate) row: Row,
    /// It may be leased as soon as it is due.
    pub(crate) is_ready: bool,
}

pub(crate) struct Detail {
    pub(crate) leaf: i64,
    pub(crate) delivery: i64,
    /// When its message was accepted.
    pub(crate) accepted_at: i64,
    /// Sealed.
    pub(crate) body: Vec<u8>,
}

pub(crate) struct Reply {
    pub(crate) delivery: i64,
    /// When its message was accepted.
    pub(crate) accepted_at: i64,
    /// Sealed.
    pub(crate) body: Vec<u8>,
}

pub(crate) struct State {
    pub(crate) adapter: String,
    pub(crate) key: String,
    /// Sealed.
    pub(crate) value: Vec<u8>,
}

/// Entries of one tile of the audit tree.
pub(crate) struct Entries {
    pub(crate) run: Run,
    pub(crate) count: i32,
    /// When the first of them was committed.
    pub(crate) at: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_is_found_again_and_the_last_part_leads_to_the_end() {
        let mut stage = Stage::START;
        for part in Part::ALL {
            assert_eq!(stage, Stage::Copying(part, 0));
            let (name, through) = Stage::Copying(part, 7).columns();
            assert_eq!(Stage::of_columns(name, through), Some(Stage::Copying(part, 7)));
            stage = Stage::after(part);
        }
        assert_eq!(stage, Stage::Done);
        let (name, through) = stage.columns();
        assert_eq!(Stage::of_columns(name, through), Some(Stage::Done));
        assert_eq!(Stage::of_columns("nothing", 0), None);
    }
}
