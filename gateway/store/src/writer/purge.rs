//! Retention: payloads of settled messages are emptied when they are old enough, and idempotency keys when their window has
//! passed, in small steps between commits. What has not been settled is never touched.

use std::time::Duration;

use gatepost_audit::Event as LeafEvent;
use sqlx::Row as _;

use super::commit::{CommitError, classify};
use super::group::turn_parts;
use super::turn::Turn;
use super::{Condition, Writer};
use crate::ops::AuditNote;
use crate::sql;

/// Messages looked at in one step.
const STEP_MESSAGES: i64 = 500;
/// Pause between two looks once everything old has been done.
const REST: Duration = Duration::from_secs(60);
/// After this long unsettled messages that were passed over are looked at again.
const ROUND: Duration = Duration::from_secs(3600);

/// How far the two sweeps have come.
#[derive(Default)]
pub(crate) struct Purge {
    payloads: Progress,
    keys: Progress,
}

#[derive(Default)]
struct Progress {
    /// Messages up to this one have been looked at in this round.
    through: i64,
    rest_until: Option<gatepost_core::Timestamp>,
    round_ends: Option<gatepost_core::Timestamp>,
}

impl Writer {
    pub(crate) async fn purge_some(&mut self) {
        if self.condition != Condition::Working {
            return;
        }
        for step in [self.purge_payloads().await, self.purge_keys().await] {
            if let Err(error) = step {
                self.failed(&error);
            }
        }
    }

    async fn purge_payloads(&mut self) -> Result<(), CommitError> {
        let retention = self.payload_retention;
        let mut progress = std::mem::take(&mut self.purge.payloads);
        let step = self.next_step(&mut progress, retention, i64::MAX).await;
        self.purge.payloads = progress;
        let Some((after, through)) = step? else { return Ok(()) };
        // One transaction with its leaf: killed half way, nothing has been purged.
        self.execute(sql::BEGIN).await?;
        match self.empty(after, through).await {
            Ok(true) => Ok(()),
            Ok(false) => self.execute("ROLLBACK").await,
            Err(error) => {
                // A commit that failed has rolled back by itself; then there is nothing more to undo.
                drop(self.execute("ROLLBACK").await);
                Err(error)
            }
        }
    }

    async fn execute(&mut self, statement: &'static str) -> Result<(), CommitError> {
        sqlx::query(statement).execute(&mut self.connection).await.map(drop).map_err(|error| classify(&error))
    }

    /// Empties the settled messages of a range, within the open transaction, and commits it; `false` when there were none.
    async fn empty(&mut self, after: i64, through: i64) -> Result<bool, CommitError> {
        let mut purged = 0;
        for statement in [sql::PURGE_PAYLOADS, sql::PURGE_REPLIES, sql::PURGE_DETAILS] {
            let query = sqlx::query(statement).bind(after).bind(through);
            let done = query.execute(&mut self.connection).await.map_err(|error| classify(&error))?;
            if statement == sql::PURGE_PAYLOADS {
                purged = done.rows_affected();
            }
        }
        if purged == 0 {
            return Ok(false);
        }
        let mut note = AuditNote::new(LeafEvent::PayloadPurged, self.gateway.clone());
        note.count = Some(purged);
        let now = self.clock.now();
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.note(&note).map_err(|error| CommitError::Refused(error.to_string()))?;
        let Some((prepared, outcome)) = turn_parts(turn) else { return Ok(false) };
        let started = self.now();
        self.commit_open(prepared).await?;
        let took = self.now().since(started);
        self.install(outcome, 0, took);
        Ok(true)
    }

    async fn purge_keys(&mut self) -> Result<(), CommitError> {
        let window = self.dedup_window;
        let mut progress = std::mem::take(&mut self.purge.keys);
        // Newer ones are not in the index yet.
        let keyed = self.memory.keys.keyed();
        let step = self.next_step(&mut progress, window, keyed).await;
        self.purge.keys = progress;
        let Some((after, through)) = step? else { return Ok(()) };
        let query = sqlx::query(sql::PURGE_DEDUP).bind(after).bind(through);
        query.execute(&mut self.connection).await.map_err(|error| classify(&error))?;
        Ok(())
    }

    /// The next messages older than `age`, as a range that excludes its beginning.
    async fn next_step(
        &mut self,
        progress: &mut Progress,
        age: Duration,
        newest: i64,
    ) -> Result<Option<(i64, i64)>, CommitError> {
        let now = self.clock.now();
        if progress.rest_until.is_some_and(|until| until > now) {
            return Ok(None);
        }
        if progress.round_ends.is_none_or(|end| end <= now) {
            progress.through = 0;
            progress.round_ends = Some(now + ROUND);
        }
        let before = now.as_micros().saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX));
        let query =
            sqlx::query(sql::PURGE_FIND).bind(progress.through).bind(before).bind(STEP_MESSAGES).bind(newest);
        let rows = query.fetch_all(&mut self.connection).await.map_err(|error| classify(&error))?;
        let Some(last) = rows.last() else {
            progress.rest_until = Some(now + REST);
            return Ok(None);
        };
        let through = last.try_get::<i64, _>(0).map_err(|error| CommitError::Refused(error.to_string()))?;
        let after = std::mem::replace(&mut progress.through, through);
        Ok(Some((after, through)))
    }
}
