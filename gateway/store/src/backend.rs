//! What the writer asks of a database. It decides in memory and knows no statement; a backend knows statements and decides
//! nothing.
//!
//! All of it runs on the writer's thread, one call after the other. Rows that a backend finds damaged it gives back as what they
//! are; the writer passes them over and says so.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use gatepost_core::{DeliveryId, MessageId, Timestamp};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::keyring::WrappedTree;
use crate::ops::StoreError;
use crate::recent::RecentMessage;
use crate::row::Row;
use crate::seal::{Index, Vault};
use crate::writer::{Holds, Lanes, Memory, Piece, Queue, Turn};

/// Rows as they were read: a damaged one is an error of its own.
pub(crate) type Read<T> = Vec<Result<T, StoreError>>;

pub(crate) trait Backend: Send + 'static {
    // === a transaction ===

    /// Begins a transaction that nothing else can get in the way of.
    fn begin(&mut self, holds: &Holds) -> Result<(), CommitError>;
    /// As [`Backend::begin`], for a turn that may be decided beside what others write, as long as its commit makes sure that all stands
    /// as it was read.
    fn begin_turn(&mut self, holds: &Holds, adds: Adds) -> Result<(), CommitError> {
        let _ = adds;
        self.begin(holds)
    }
    /// Ends a transaction without a trace, if one is open.
    fn roll_back(&mut self) -> Result<(), CommitError>;
    /// Gives the next turn the numbers that its messages, deliveries and leaves begin with, after everything was read that it is
    /// decided on; and its time, where the gateway's own clock is not what everybody goes by.
    fn number(&mut self, memory: &mut Memory) -> Result<Option<Timestamp>, CommitError>;
    /// Whether leaves have their place in the tree with their commit; else somebody else gives it to them later.
    fn places_leaves(&self) -> bool;
    /// Brings memory in line with what others have written; a queue's policy stays.
    fn catch_up(&mut self, memory: &mut Memory, vault: &Vault) -> Result<(), CommitError>;
    /// Commits what a turn has decided, in the open transaction if there is one, or leaves the database as it was before that. By how
    /// much the numbers of what was added are larger than the turn has them.
    fn commit(&mut self, turn: &Turn<'_>) -> Result<i64, CommitError>;
    /// As [`Backend::commit`], and need not wait for the end of it: so the next turn can be decided meanwhile, as if this one had come
    /// about. One at a time is under way: before another is written or sent, this one has come about, or that is refused as
    /// [`CommitError::Stale`].
    fn send(&mut self, turn: &Turn<'_>) -> Result<Sent, CommitError> {
        self.commit(turn).map(Sent::Committed)
    }
    /// What has become of the turn that was sent last, once that is known. To be asked before anybody is told of it.
    fn ended(&mut self) -> Result<(), CommitError> {
        Ok(())
    }
    /// Waits for the end of the turn that is under way, and no longer than for `other`. `None`: there is none, or it has ended.
    fn wait_or<T>(&mut self, other: impl Future<Output = T>) -> Option<T> {
        drop(other);
        None
    }
    /// Brings on what is under way, in the midst of something else that takes long.
    fn push(&mut self) {}
    /// Writes a queue as the configuration has it, in the open transaction.
    fn queue_put(&mut self, queue: &Queue, put: Put) -> Result<(), CommitError>;

    // === payloads in pieces ===

    /// Whether pieces are written beside the turns; else they ride along with them.
    fn writes_beside(&self) -> bool {
        false
    }
    /// Has pieces written beside the turns, once the ones before have been and [`Backend::pieces_ended`] has said so.
    fn pieces_start(&mut self, pieces: &[Piece<'_>]) {
        let _ = pieces;
    }
    /// What has become of the pieces that were to be written beside the turns, once that is known, and once.
    fn pieces_ended(&mut self) -> Option<Result<(), CommitError>> {
        None
    }
    /// Rung when [`Backend::pieces_ended`] has something to say.
    fn pieces_bell(&self) -> Arc<Notify> {
        Arc::default()
    }
    /// These messages have been accepted, in commits that have come about, with their pieces.
    fn pieces_claimed(&mut self, claimed: &HashSet<MessageId>) {
        let _ = claimed;
    }
    /// A step of removing the pieces of a message that was not accepted, in a transaction of its own; whether there may be more.
    fn pieces_drop(&mut self, message: &MessageId) -> Result<More, CommitError>;

    // === reads ===

    fn deliveries(&mut self, ids: &[DeliveryId]) -> Result<Read<Row>, CommitError>;
    /// Deliveries by their positions, in that order; one that is not there is a damaged one.
    fn deliveries_at(&mut self, positions: &[i64]) -> Result<Read<Row>, CommitError>;
    /// Position and time of at most so many deliveries that may be leased, longest due first.
    fn ready(&mut self, ready: Ready, now: Timestamp, most: u32) -> Result<Vec<(i64, i64)>, CommitError>;
    /// When the next one will be due.
    fn ready_next(&mut self, queue: i64, now: Timestamp) -> Result<Option<i64>, CommitError>;
    /// The first deliveries that stand in a lane, in order.
    fn lane(&mut self, queue: i64, lane: &Index, most: u32) -> Result<Read<Row>, CommitError>;
    /// What is leased of a queue, where others lease besides.
    fn leased_of(&mut self, queue: i64) -> Result<Read<Row>, CommitError> {
        let _ = queue;
        Ok(Vec::new())
    }
    /// What is in flight in these lanes, where others lease besides. None of them does so there until the end of the transaction, which
    /// this opens if there is none.
    fn lanes_in_flight(&mut self, memory: &Memory, lanes: &Lanes) -> Result<Read<Row>, CommitError> {
        let _ = (memory, lanes);
        Ok(Vec::new())
    }
    /// Sees to it that nothing goes back in these lanes until the end of the transaction, which this opens if there is none. Without
    /// those in which something does just now.
    fn lanes_to_lease(&mut self, queue: i64, lanes: Vec<Index>) -> Result<Vec<Index>, CommitError> {
        let _ = queue;
        Ok(lanes)
    }
    /// Whether a delivery of a lane, up to a position, must stay where it is: it is leased or in doubt, or stands not behind `after`, so
    /// that it has stayed before.
    fn lane_stuck(&mut self, queue: i64, lane: &Index, after: i64, through: i64)
    -> Result<bool, CommitError>;
    fn past_expiry(&mut self, now: Timestamp, most: u32) -> Result<Read<Row>, CommitError>;
    /// What waits or is dead in a queue behind a position, in accept order.
    fn to_move(&mut self, queue: i64, after: i64, most: u32) -> Result<ToMove, CommitError>;
    /// What is known of keys that messages used; of a key that nobody used, nothing. `None`: it was not looked for.
    fn keys_used(
        &mut self,
        memory: &Memory,
        keys: &[Index],
        need: Need,
    ) -> Result<Option<Vec<KeyUse>>, CommitError>;
    fn attributes(&mut self, seq: i64) -> Result<Option<Attributes>, CommitError>;
    /// Messages as they were stored, of those that are small, sound and not purged.
    fn messages_small(
        &mut self,
        seqs: &[i64],
        found: &mut dyn FnMut(MessageId, RecentMessage) -> More,
    ) -> Result<(), StoreError>;
    /// Keys and values of an adapter's state.
    fn adapter_state(&mut self, adapter: &str, vault: &Vault) -> Result<Vec<(String, Vec<u8>)>, CommitError>;

    // === retention ===

    /// A step of taking the content of settled messages that are older than `age`, and what came of their deliveries; from how many
    /// it has been taken. If there were any, the transaction is open still, to be committed with what the log says of it.
    fn purge_content(&mut self, now: Timestamp, age: Duration, vault: &Vault) -> Result<u64, CommitError>;
    /// A step of dropping the idempotency keys of messages that are older than `age`. Those behind `keyed` are not in the index yet.
    fn purge_keys(&mut self, now: Timestamp, age: Duration, keyed: i64) -> Result<(), CommitError>;

    // === data keys ===

    /// Writes trees of data keys, durably, in a transaction of their own. Those that are there already stay.
    fn keyring_add(&mut self, trees: &[WrappedTree]) -> Result<(), CommitError>;

    /// Writes trees anew that are there already, in the open transaction.
    fn keyring_put(&mut self, trees: &[WrappedTree]) -> Result<(), CommitError>;
    /// Takes in these trees as others have cut them, who do not cut them further until the end of the open transaction.
    fn keyring_hold(&mut self, trees: &BTreeSet<u64>) -> Result<(), CommitError> {
        let _ = trees;
        Ok(())
    }
    /// As [`Backend::keyring_hold`], all trees, those included that others have made.
    fn keyring_follow(&mut self) -> Result<(), CommitError> {
        Ok(())
    }
    /// The oldest version of the seal key that anything is wrapped with.
    fn keyring_oldest(&mut self) -> Result<Option<u32>, CommitError>;
    /// Whether others use this database now.
    fn has_others(&mut self) -> Result<bool, CommitError>;

    // === erasing ===

    /// What comes next behind a position of what is to be erased, with everything that is sealed of it. In the open transaction.
    fn to_erase(&mut self, what: &EraseFind, after: i64, most: u32) -> Result<ToErase, CommitError>;
    /// Takes the content of messages, and what they are found and recognised by. In the open transaction.
    fn erase(&mut self, messages: &[Erasing]) -> Result<(), CommitError>;

    // === beside the operations ===

    /// Leaves below this index stand in durable files.
    fn leaves_filed(&mut self, below: u64) -> Result<(), CommitError>;
    /// Whether a turn has left something of this gateway's own for the next [`Backend::tend`] to make ready: it must not wait.
    fn has_left_notes(&self) -> bool;
    /// Whether the next [`Backend::tend`] looks at who consumes what; else it is told nothing of that.
    fn asks_who_consumes(&self) -> bool;
    /// What is to be done now and then, between commits. `consumed` are the queues that somebody here reads from.
    fn tend(&mut self, memory: &mut Memory, vault: &Vault, consumed: &[i64]) -> Result<Tended, CommitError>;
    /// Looks at what others have written for this gateway to lease; the queues that have something.
    fn look(&mut self, memory: &Memory, consumed: &[i64]) -> Result<Vec<i64>, CommitError>;
    /// Takes an adapter's role if it is this gateway's or nobody's; whether it has it.
    fn claim(&mut self, adapter: &str) -> Result<bool, CommitError>;
    /// Gives an adapter's role up, if this gateway has it.
    fn give_up(&mut self, adapter: &str) -> Result<(), CommitError>;
    /// Until when this gateway may write if it renews its right no more; `None` where nobody can take it away.
    fn right_until(&self) -> Option<Instant>;
    /// Somebody asks for deliveries of a queue.
    fn consume(&mut self, memory: &Memory, queue: i64) -> Result<(), CommitError>;
    /// Takes over what others have done to the queues.
    fn follow(&mut self, memory: &mut Memory) -> Result<(), CommitError> {
        let _ = memory;
        Ok(())
    }
    /// Bytes of a log that waits to be brought into the database.
    fn log_bytes(&self) -> u64;
    /// Whether there is space for so many bytes more, and as much as others need to go on.
    fn has_room(&mut self, bytes: u64) -> Result<bool, CommitError> {
        let _ = bytes;
        Ok(true)
    }
    /// There is no space for a commit: whether there may be some now that can be had without giving anything up.
    fn make_room(&mut self) -> Result<bool, CommitError> {
        Ok(false)
    }
    /// There is no space: gives up what was set aside for that.
    fn release_reserve(&mut self);
    /// Whether there is space again, something set aside included.
    fn has_space(&mut self) -> Result<bool, CommitError>;
    /// Connects anew after a failure, if the database is sound, and reads what memory holds.
    /// A start counts as another one when it comes back after others have taken its place.
    fn reopen(&mut self, vault: &Vault, keys_in_memory: usize) -> Result<Memory, String>;
    /// Which start this is now; part of every lease token.
    fn instance_epoch(&self, opened: u32) -> u32;
    /// Gives up everything so that closing it does not do what only a new start can do well.
    fn abandon(&mut self);
}

/// What has shown itself between commits.
#[derive(Debug, Default)]
pub(crate) struct Tended {
    /// Queues that may have something to lease.
    pub(crate) changed: Vec<i64>,
    /// Leases of a gateway that is gone are this one's now.
    pub(crate) took_leases: bool,
    /// What others have done shows in the queues' rows.
    pub(crate) queues_changed: bool,
}

/// What has become of a turn that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// By how much the numbers of what was added are larger than the turn has them.
    Committed(i64),
    /// It is under way, with the numbers that it has.
    UnderWay,
}

/// Whether a queue's row is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    Add,
    Change,
}

/// What a turn has to do with new messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adds {
    Nothing,
    /// It adds them, in no lane of which several may be leased at once and none in two lanes, and does nothing else.
    Only,
    Too,
}

/// Whether it must be known what has used a key, and how deliveries stand that others may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Sure,
    /// A commit that depends on it may fail instead as [`CommitError::Stale`]; it is known from then on.
    AtCommit,
}

/// Which deliveries of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    Any { queue: i64 },
    Suspect { queue: i64 },
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum More {
    Yes,
    No,
}

/// A message's attributes.
pub(crate) struct Attributes {
    pub(crate) seq: i64,
    pub(crate) message: [u8; 16],
    pub(crate) sealed: Vec<u8>,
}

/// A part of a queue's deliveries.
pub(crate) struct ToMove {
    pub(crate) rows: Vec<Row>,
    /// The position up to which all of them were looked at.
    pub(crate) through: i64,
    /// Whether there may be more behind that.
    pub(crate) more: bool,
}

/// What is to be erased, as it is found.
pub(crate) enum EraseFind {
    Message(MessageId),
    /// All that this app has sent: no index finds it.
    App(String),
    Subject(Index),
}

impl EraseFind {
    /// How many messages to look at for at most so many.
    pub(crate) fn looked_through(&self, most: u32) -> u32 {
        match self {
            Self::Message(_) | Self::Subject(_) => most,
            Self::App(_) => most.saturating_mul(16),
        }
    }
}

/// Of messages that were looked at, each with whether it is one of those: the first so many, up to where that is all, and whether there
/// may be more.
pub(crate) fn some_to_erase(
    what: &EraseFind,
    found: &[(i64, bool)],
    after: i64,
    most: u32,
) -> (Vec<i64>, i64, bool) {
    let mut seqs = Vec::new();
    let mut through = after;
    for (seq, is_one) in found {
        if *is_one && seqs.len() >= most as usize {
            return (seqs, through, true);
        }
        seqs.extend(is_one.then_some(*seq));
        through = *seq;
    }
    let more = !matches!(what, EraseFind::Message(_)) && found.len() >= what.looked_through(most) as usize;
    (seqs, through, more)
}

/// A part of what is to be erased.
pub(crate) struct ToErase {
    pub(crate) messages: Vec<Erasable>,
    /// The position up to which everything was looked at.
    pub(crate) through: i64,
    /// Whether there may be more behind that.
    pub(crate) more: bool,
}

pub(crate) struct Erasable {
    pub(crate) seq: i64,
    pub(crate) id: MessageId,
    /// None of its deliveries is under way.
    pub(crate) is_settled: bool,
    /// It has been erased already.
    pub(crate) is_erased: bool,
    /// Sealed.
    pub(crate) attributes: Vec<u8>,
    /// The other sealed values: payload, replies, evidence.
    pub(crate) sealed: Vec<Vec<u8>>,
}

/// A message that is erased.
pub(crate) struct Erasing {
    pub(crate) seq: i64,
    pub(crate) id: MessageId,
    /// Sealed: what stays of its attributes.
    pub(crate) remains: Vec<u8>,
}

/// The message that used an idempotency key last.
#[derive(Debug)]
pub(crate) struct KeyUse {
    pub(crate) key: Index,
    pub(crate) fingerprint: Index,
    pub(crate) message: MessageId,
    pub(crate) accepted_at: Timestamp,
    /// Its deliveries, each with its queue and the number of its state.
    pub(crate) deliveries: Vec<(DeliveryId, i64, i64)>,
}

/// Kinds of failure that the writer treats differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommitError {
    /// No space; nothing was written.
    Full,
    /// The database can no longer be trusted in this connection.
    Broken(String),
    /// This gateway's right to write is over; nothing was written. It comes back as another one.
    Fenced(String),
    /// Only a new start of the gateway can repair the database.
    Lost(String),
    /// Others have written meanwhile, and what was decided no longer fits; nothing was written.
    Stale(String),
    /// A statement refused: a fault of ours or a damaged row; nothing was written.
    Refused(String),
}

impl From<CommitError> for StoreError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full => Self::Full,
            CommitError::Broken(text) | CommitError::Fenced(text) | CommitError::Lost(text) => {
                Self::ReadOnly(text)
            }
            CommitError::Refused(text) | CommitError::Stale(text) => Self::Database(text),
        }
    }
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full => Self::Full,
            other => Self::Refused(other.to_string()),
        }
    }
}
