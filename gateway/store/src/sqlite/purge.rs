//! Retention in one file: all messages are walked in accept order, a few in a step.

use std::time::Duration;

use gatepost_core::Timestamp;
use rusqlite::params;

use super::Sqlite;
use super::connection::rows;
use crate::backend::{Attributes, Backend as _, CommitError};
use crate::ops::StoreError;
use crate::prepared::remains_of;
use crate::seal::{Owner, Place, Vault};
use crate::sql;
use crate::writer::Holds;

/// Messages looked at in one step.
const STEP_MESSAGES: u32 = 500;
/// Pause between two looks once everything old has been done.
const REST: Duration = Duration::from_secs(60);
/// After this long unsettled messages that were passed over are looked at again.
const ROUND: Duration = Duration::from_secs(3600);

/// How far the two sweeps have come.
#[derive(Default)]
pub(super) struct Purge {
    content: Progress,
    keys: Progress,
}

#[derive(Default)]
struct Progress {
    /// Messages up to this one have been looked at in this round.
    through: i64,
    rest_until: Option<Timestamp>,
    round_ends: Option<Timestamp>,
}

impl Sqlite {
    pub(super) fn content_step(
        &mut self,
        now: Timestamp,
        age: Duration,
        vault: &Vault,
    ) -> Result<u64, CommitError> {
        let mut progress = std::mem::take(&mut self.purge.content);
        let step = self.next_step(&mut progress, now, age, i64::MAX);
        self.purge.content = progress;
        let Some((after, through)) = step? else { return Ok(0) };
        self.begin(&Holds::default())?;
        let settled: Vec<(i64, Vec<u8>)> = self
            .purge_read(after, through)?
            .iter()
            .map(|message| Ok((message.seq, sealed_remains(message, vault)?)))
            .collect::<Result<_, StoreError>>()?;
        for (seq, attributes) in &settled {
            self.execute(sql::PURGE_PIECES, [seq])?;
            self.execute(sql::PURGE_MESSAGE, params![seq, attributes])?;
        }
        if !settled.is_empty() {
            self.execute(sql::PURGE_REPLIES, [after, through])?;
            self.execute(sql::PURGE_DETAILS, [after, through])?;
        }
        Ok(settled.len() as u64)
    }

    pub(super) fn keys_step(&mut self, now: Timestamp, age: Duration, keyed: i64) -> Result<(), CommitError> {
        let mut progress = std::mem::take(&mut self.purge.keys);
        let step = self.next_step(&mut progress, now, age, keyed);
        self.purge.keys = progress;
        let Some((after, through)) = step? else { return Ok(()) };
        self.execute(sql::PURGE_DEDUP, [after, through]).map(drop)
    }

    /// The next messages older than `age`, none behind `newest`, as a range that excludes its beginning.
    fn next_step(
        &self,
        progress: &mut Progress,
        now: Timestamp,
        age: Duration,
        newest: i64,
    ) -> Result<Option<(i64, i64)>, CommitError> {
        if progress.rest_until.is_some_and(|until| until > now) {
            return Ok(None);
        }
        if progress.round_ends.is_none_or(|end| end <= now) {
            progress.through = 0;
            progress.round_ends = Some(now + ROUND);
        }
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let before = now.as_micros().saturating_sub(age);
        let range = params![progress.through, before, STEP_MESSAGES, newest];
        let found: Vec<i64> = rows(&self.connection, sql::PURGE_FIND, range, |mut cells| cells.take())?;
        let Some(&through) = found.last() else {
            progress.rest_until = Some(now + REST);
            return Ok(None);
        };
        let after = std::mem::replace(&mut progress.through, through);
        Ok(Some((after, through)))
    }

    /// Settled messages of a range that have content still.
    fn purge_read(&self, after: i64, through: i64) -> Result<Vec<Attributes>, CommitError> {
        rows(&self.connection, sql::PURGE_READ, [after, through], |mut cells| {
            Ok(Attributes { seq: cells.take()?, message: cells.take()?, sealed: cells.take()? })
        })
    }
}

/// What stays of a message's attributes.
fn sealed_remains(of: &Attributes, vault: &Vault) -> Result<Vec<u8>, StoreError> {
    let place = Place { table: "message", column: "attributes", row: of.seq };
    let owner = Owner::Attributes { message: &of.message };
    match vault.open(&of.sealed, owner, place) {
        Ok(attributes) => Ok(vault.seal(&remains_of(&attributes), owner)?),
        // What is damaged must go in time too; it does not become valid by that.
        Err(_) => Ok(Vec::new()),
    }
}
