//! Where readers read: one method for each question, the same for each database.
//!
//! **Architecture invariant:** what is behind a source is the only part of the readers' side that knows a database. It turns rows
//! into records and says which rows are corrupt; it opens no seal.

use std::path::Path;

use gatepost_audit::{TILE_WIDTH, entries_path, tile_path};
use gatepost_core::principal::Actor;
use gatepost_core::{DeliveryId, LeaseToken, MessageId, Timestamp};
use sqlx::{PgPool, SqlitePool};

use super::postgres::PgSource;
use super::record::{
    DeliveryLeaves, DeliveryRecord, DetailRecord, Listed, MessageHead, MessageRecord, NodeRecord, Payload,
    ReplyRecord,
};
use super::sqlite::SqliteSource;
use crate::keyring::WrappedTree;
use crate::leaves::Placed;
use crate::ops::{MessageFilter, StoreError};
use crate::seal::Index;

#[derive(Clone)]
pub(crate) enum Source {
    Sqlite(SqliteSource),
    Postgres(PgSource),
}

/// Whether leaves must be what was written. The verifier looks at them as they are, since it can say more of what is wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    Sums,
    Nothing,
}

/// Which messages a list shows, as far as their own rows can tell.
pub(crate) struct MessageSearch<'a> {
    pub(crate) subject: Option<Index>,
    pub(crate) key: Option<Index>,
    pub(crate) filter: &'a MessageFilter,
}

/// Which deliveries a list shows.
pub(crate) struct DeliverySearch<'a> {
    /// The number that stands for it, as in [`crate::row::state_code`].
    pub(crate) state: Option<i64>,
    pub(crate) held: bool,
    pub(crate) destination: Option<&'a str>,
}

/// Asks the database that it is.
macro_rules! ask {
    ($source:ident . $question:ident ( $($argument:expr),* )) => {
        match $source {
            Self::Sqlite(source) => source.$question($($argument),*).await,
            Self::Postgres(source) => source.$question($($argument),*).await,
        }
    };
}

impl Source {
    pub(crate) fn sqlite(pool: SqlitePool) -> Self {
        Self::Sqlite(SqliteSource::new(pool))
    }

    pub(crate) fn postgres(pool: PgPool) -> Self {
        Self::Postgres(PgSource::new(pool))
    }

    // === data keys ===

    pub(crate) async fn keyring_tree(&self, tree: u64) -> Result<Option<WrappedTree>, StoreError> {
        ask!(self.keyring_tree(tree))
    }

    // === messages ===

    /// A message without its payload.
    pub(crate) async fn message_by_id(&self, id: MessageId) -> Result<Option<MessageRecord>, StoreError> {
        ask!(self.message_by_id(id))
    }

    /// A message's number, sound or not.
    pub(crate) async fn message_seq(&self, id: MessageId) -> Result<Option<i64>, StoreError> {
        ask!(self.message_seq(id))
    }

    /// `None` if there is no such message; never [`Payload::Unread`].
    pub(crate) async fn message_payload(&self, seq: i64) -> Result<Option<Payload>, StoreError> {
        ask!(self.message_payload(seq))
    }

    /// Those of these messages that exist, with payloads of at most `inline` bytes.
    pub(crate) async fn messages_by_seq(
        &self,
        seqs: &[i64],
        inline: u64,
    ) -> Result<Vec<Listed<MessageRecord>>, StoreError> {
        ask!(self.messages_by_seq(seqs, inline))
    }

    /// The newest `limit` messages before a number that an index finds, newest first; `None` for one that does not fit the rest of
    /// the search.
    pub(crate) async fn message_page(
        &self,
        search: &MessageSearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<Option<MessageHead>>>, StoreError> {
        ask!(self.message_page(search, before, limit))
    }

    /// Names of the queues in which a delivery of the message is leased now.
    pub(crate) async fn message_leases(&self, id: MessageId) -> Result<Vec<String>, StoreError> {
        ask!(self.message_leases(id))
    }

    /// The first message that the adapter has sent with this correlation, with its payload.
    pub(crate) async fn message_by_correlation(
        &self,
        correlation: Index,
        adapter: &str,
    ) -> Result<Option<MessageRecord>, StoreError> {
        ask!(self.message_by_correlation(correlation, adapter))
    }

    // === deliveries ===

    pub(crate) async fn delivery_by_id(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        ask!(self.delivery_by_id(id))
    }

    /// In accept order.
    pub(crate) async fn deliveries_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        ask!(self.deliveries_of_message(seq))
    }

    /// At most `limit` before a position, newest first.
    pub(crate) async fn delivery_page(
        &self,
        search: &DeliverySearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        ask!(self.delivery_page(search, before, limit))
    }

    /// Who sent the message of a delivery.
    pub(crate) async fn delivery_sender(&self, id: DeliveryId) -> Result<Option<Actor>, StoreError> {
        ask!(self.delivery_sender(id))
    }

    pub(crate) async fn delivery_leaves(&self, id: DeliveryId) -> Result<Option<DeliveryLeaves>, StoreError> {
        ask!(self.delivery_leaves(id))
    }

    /// Of each delivery of the message, in accept order.
    pub(crate) async fn delivery_leaves_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<DeliveryLeaves>, StoreError> {
        ask!(self.delivery_leaves_of_message(seq))
    }

    pub(crate) async fn delivery_details(&self, pos: i64) -> Result<Vec<DetailRecord>, StoreError> {
        ask!(self.delivery_details(pos))
    }

    pub(crate) async fn delivery_reply(&self, pos: i64) -> Result<Option<ReplyRecord>, StoreError> {
        ask!(self.delivery_reply(pos))
    }

    // === queues ===

    pub(crate) async fn queue_id(&self, name: &str) -> Result<Option<i64>, StoreError> {
        ask!(self.queue_id(name))
    }

    /// When the first delivery of the queue may be leased, in the past or not.
    pub(crate) async fn queue_oldest_ready(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        ask!(self.queue_oldest_ready(queue))
    }

    /// Of those that may be leased next, but not yet: the ones that went back for their lanes' trouble, with the tokens that wake them. As
    /// their rows say it, sound or not; among a bounded number of them. Of a node, without those that others leased which are there.
    pub(crate) async fn queue_away(
        &self,
        queue: i64,
        of_node: Option<u32>,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<(DeliveryId, LeaseToken)>, StoreError> {
        ask!(self.queue_away(queue, of_node, now, limit))
    }

    /// When the series of its oldest unsettled delivery began, among a bounded number of them.
    pub(crate) async fn queue_oldest_born(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        ask!(self.queue_oldest_born(queue))
    }

    // === nodes ===

    /// Those that share the database, by name; none where it is one gateway's alone.
    pub(crate) async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(Vec::new()),
            Self::Postgres(source) => source.nodes().await,
        }
    }

    // === the audit log ===

    /// Size of the audit tree; `None` before the store's first start.
    pub(crate) async fn tree_size(&self) -> Result<Option<u64>, StoreError> {
        ask!(self.tree_size())
    }

    /// How many entries stand in files, at a tile's border, so that the database need not be asked for them.
    pub(crate) async fn filed(&self, audit: &Path, size: u64) -> Result<u64, StoreError> {
        match self {
            // With no rows left, everything has been filed.
            Self::Sqlite(source) => Ok(source.leaf_first().await?.unwrap_or(size)),
            // It keeps them for the other nodes, each of which has files of its own.
            Self::Postgres(_) => Ok(filed_in(audit, size)),
        }
    }

    /// The ids of a message's deliveries alone, for who has no health to tell of a damaged one.
    pub(crate) async fn delivery_ids_of_message(&self, id: MessageId) -> Result<Vec<DeliveryId>, StoreError> {
        ask!(self.delivery_ids_of_message(id))
    }

    /// Whether leaves get their places in the tree after their commit.
    pub(crate) fn places_later(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Which leaves stand at `from..to` of the tree, where they get their places after their commit, in order.
    pub(crate) async fn placed(&self, from: u64, to: u64) -> Result<Vec<Placed>, StoreError> {
        match self {
            Self::Sqlite(_) => Ok(Vec::new()),
            Self::Postgres(source) => source.placed(from, to).await,
        }
    }

    /// Leaves `from..to` of the tree that the database has, with their indices, in order.
    pub(crate) async fn leaves(
        &self,
        from: u64,
        to: u64,
        check: Check,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        ask!(self.leaves(from, to, check))
    }

    /// Where the leaves with these numbers stand in the tree, in the same order; `None` for one that has no place yet.
    pub(crate) async fn leaf_indices(&self, numbers: &[u64]) -> Result<Vec<Option<u64>>, StoreError> {
        ask!(self.leaf_indices(numbers))
    }

    /// A leaf by its number, whether it has a place in the tree or not.
    pub(crate) async fn leaf_by_number(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        ask!(self.leaf_by_number(number))
    }
}

/// Entries in full bundles that stand in a directory's files without a gap.
fn filed_in(audit: &Path, size: u64) -> u64 {
    let width = u64::from(TILE_WIDTH);
    let is_there = |bundle: u64| {
        audit.join(entries_path(bundle, None)).exists() && audit.join(tile_path(0, bundle, None)).exists()
    };
    let (mut there, mut missing) = (0, size / width + 1);
    while there + 1 < missing {
        let middle = there + (missing - there) / 2;
        if is_there(middle - 1) { there = middle } else { missing = middle }
    }
    there * width
}
