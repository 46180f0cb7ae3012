//! Retention: payloads of settled messages are emptied when they are old enough, and idempotency keys when their window has
//! passed, in small steps between commits. What has not been settled is never touched.

use std::time::Duration;

use gatepost_audit::Event as LeafEvent;
use rusqlite::params;

use super::commit::{CommitError, begin, commit, roll_back};
use super::group::Outcome;
use super::turn::Turn;
use super::{Condition, Writer};
use crate::database::rows;
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
    pub(crate) fn purge_some(&mut self) {
        if self.condition != Condition::Working {
            return;
        }
        for step in [self.purge_payloads(), self.purge_keys()] {
            if let Err(error) = step {
                self.failed(&error);
            }
        }
    }

    fn purge_payloads(&mut self) -> Result<(), CommitError> {
        let retention = self.payload_retention;
        let mut progress = std::mem::take(&mut self.purge.payloads);
        let step = self.next_step(&mut progress, retention, i64::MAX);
        self.purge.payloads = progress;
        let Some((after, through)) = step? else { return Ok(()) };
        // One transaction with its leaf: killed half way, nothing has been purged.
        begin(&self.connection)?;
        let emptied = self.empty(after, through);
        roll_back(&self.connection)?;
        emptied
    }

    /// Empties the settled messages of a range, within the open transaction, and commits it if there were any.
    fn empty(&mut self, after: i64, through: i64) -> Result<(), CommitError> {
        let purged = self.execute(sql::PURGE_PAYLOADS, params![after, through])?;
        if purged == 0 {
            return Ok(());
        }
        self.execute(sql::PURGE_REPLIES, params![after, through])?;
        self.execute(sql::PURGE_DETAILS, params![after, through])?;
        let mut note = AuditNote::new(LeafEvent::PayloadPurged, self.gateway.clone());
        note.count = Some(purged as u64);
        let now = self.clock.now();
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.note(&note)?;
        commit(&self.connection, &turn)?;
        let outcome = Outcome::of(turn);
        self.install(Some(outcome), 0);
        Ok(())
    }

    fn purge_keys(&mut self) -> Result<(), CommitError> {
        let window = self.dedup_window;
        let mut progress = std::mem::take(&mut self.purge.keys);
        // Newer ones are not in the index yet.
        let keyed = self.memory.keys.keyed();
        let step = self.next_step(&mut progress, window, keyed);
        self.purge.keys = progress;
        let Some((after, through)) = step? else { return Ok(()) };
        self.execute(sql::PURGE_DEDUP, params![after, through])?;
        Ok(())
    }

    /// The next messages older than `age`, as a range that excludes its beginning.
    fn next_step(
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
        let range = params![progress.through, before, STEP_MESSAGES, newest];
        let found: Vec<i64> = rows(&self.connection, sql::PURGE_FIND, range, |mut cells| cells.take())?;
        let Some(&through) = found.last() else {
            progress.rest_until = Some(now + REST);
            return Ok(None);
        };
        let after = std::mem::replace(&mut progress.through, through);
        Ok(Some((after, through)))
    }
}
