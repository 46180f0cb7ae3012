//! What a commit means when it is answered.

use std::sync::atomic::{AtomicBool, Ordering};

/// How durable an accepted message is when its answer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// It is on the database's stable storage.
    Fsync,
    /// It is on a synchronous standby's stable storage too. Whoever cancels the wait of a commit on the server makes that answer
    /// as if it were; nothing but a person does.
    Quorum,
}

impl Durability {
    /// The word in an answer.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fsync => "fsync",
            Self::Quorum => "quorum",
        }
    }
}

/// A durability that one sets and others read. It begins with the least.
#[derive(Default)]
pub(crate) struct DurabilityCell(AtomicBool);

impl DurabilityCell {
    pub(crate) fn read(&self) -> Durability {
        if self.0.load(Ordering::Relaxed) { Durability::Quorum } else { Durability::Fsync }
    }

    pub(crate) fn set(&self, durability: Durability) {
        self.0.store(durability == Durability::Quorum, Ordering::Relaxed);
    }
}
