//! The disk's space: whether there is enough for what is large, and whether a disk that was full can be used again.
//!
//! What counts is not only what the file system has. Pages of the database that nothing stands in any more take what is written next,
//! and the WAL's space is there again once the WAL begins anew.

use std::path::Path;

use super::commit::at_commit;
use super::connection::{self, CheckpointMode, Checkpointed};
use super::{Backfill, Sqlite};
use crate::backend::CommitError;
use crate::data_dir::RESERVE_BYTES;

/// The disk is taken for usable again when this much is free, what is to become the reserve included.
const FREE_BYTES_TO_RESUME: u64 = 2 * RESERVE_BYTES;
/// So much of that, beside the reserve, the file system itself must have: the WAL and the audit log's files cannot use the database's
/// free pages.
const FILE_BYTES_TO_RESUME: u64 = RESERVE_BYTES / 4;
/// What a large operation leaves to all others.
const BESIDE_LARGE_BYTES: u64 = RESERVE_BYTES;
/// Heads of pages and rows take at most this part of a payload beyond its bytes.
const OVERHEAD_PART: u64 = 32;

impl Sqlite {
    /// Whether so many bytes can be added without taking from others what they need to go on.
    pub(super) fn has_bytes_beside(&self, bytes: u64) -> Result<bool, CommitError> {
        let needed = bytes.saturating_add(bytes / OVERHEAD_PART);
        let free = free_bytes(self.data_dir.root()).saturating_sub(BESIDE_LARGE_BYTES);
        Ok(free >= needed || free.saturating_add(connection::free_page_bytes(&self.connection)?) >= needed)
    }

    /// Whether a disk that was full can be used again, its reserve set aside.
    pub(super) fn is_usable_again(&mut self) -> Result<bool, CommitError> {
        let root = self.data_dir.root().to_path_buf();
        if free_bytes(&root) < FREE_BYTES_TO_RESUME {
            // The database may have grown at the reserve's cost by what stands in the WAL too.
            self.give_the_wal_back()?;
        }
        let free = free_bytes(&root);
        let with_pages = free.saturating_add(connection::free_page_bytes(&self.connection)?);
        if free < RESERVE_BYTES + FILE_BYTES_TO_RESUME || with_pages < FREE_BYTES_TO_RESUME {
            return Ok(false);
        }
        if let Err(error) = self.data_dir.keep_reserve() {
            tracing::warn!(%error, "the reserve cannot be set aside yet");
            return Ok(false);
        }
        tracing::info!(free_bytes = free, with_free_pages = with_pages, "the disk has space again");
        Ok(true)
    }

    /// Brings all of the WAL into the database, if there is room and nobody reads from it, so that it begins anew; whether it does.
    pub(super) fn use_the_wal_anew(&mut self) -> Result<bool, CommitError> {
        if let Some(done) = self.backfill.as_mut().and_then(Backfill::finish) {
            match self.backfilled(done) {
                Err(CommitError::Full) => return Ok(false),
                done => done?,
            }
        }
        match at_commit(|| self.checkpoint()) {
            Err(CommitError::Full) => Ok(false),
            done => done.map(|()| self.wal == Checkpointed::Whole),
        }
    }

    /// As [`Sqlite::use_the_wal_anew`]; then its space is the file system's again, unless somebody reads just now.
    fn give_the_wal_back(&mut self) -> Result<(), CommitError> {
        if self.use_the_wal_anew()? && self.wal_bytes() > 0 {
            let given = connection::checkpoint_at_once(&self.connection, CheckpointMode::Truncate);
            given.or_else(|error| self.checkpoint_failed(error.into()))?;
        }
        Ok(())
    }

    /// Whether the disk has no room for a WAL of the length that it may have: then it begins anew as soon as it is in the database.
    pub(super) fn wal_is_to_stay_short(&self) -> bool {
        let grows_by = connection::WAL_BYTES_LONG.saturating_sub(self.wal_bytes());
        free_bytes(self.data_dir.root()) < grows_by + BESIDE_LARGE_BYTES
    }

    pub(super) fn wal_bytes(&self) -> u64 {
        self.data_dir.wal().metadata().map_or(0, |metadata| metadata.len())
    }
}

/// Free bytes of the file system that holds `path`, for those without privileges; 0 when it cannot be asked.
fn free_bytes(path: &Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |stat| stat.blocks_available() * stat.fragment_size())
}
