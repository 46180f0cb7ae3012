//! Retention: settled messages are emptied when they are old enough of all that may be about somebody, and idempotency keys
//! go when their window has passed, in small steps between commits. What has not been settled is never touched.

use std::time::Duration;

use super::group::Outcome;
use super::turn::Turn;
use super::{Condition, Writer};
use crate::backend::{Attributes, Backend, CommitError};
use crate::ops::AuditNote;
use crate::prepared::remains_of;
use crate::seal::{Owner, Place};
use gatepost_audit::Event as LeafEvent;
use gatepost_core::Timestamp;

/// Messages looked at in one step.
const STEP_MESSAGES: u32 = 500;
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
    rest_until: Option<Timestamp>,
    round_ends: Option<Timestamp>,
}

impl<B: Backend> Writer<B> {
    pub(crate) fn purge_some(&mut self) {
        for step in [Self::purge_payloads, Self::purge_keys] {
            if self.condition != Condition::Working {
                return;
            }
            if let Err(error) = step(self) {
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
        self.database.begin(&[])?;
        let emptied = self.empty(after, through);
        self.database.roll_back()?;
        emptied
    }

    /// Empties the settled messages of a range, within the open transaction, and commits it if there were any.
    fn empty(&mut self, after: i64, through: i64) -> Result<(), CommitError> {
        let read = self.database.purge_read(after, through)?;
        let settled: Vec<(i64, Vec<u8>)> =
            read.iter().map(|message| (message.seq, self.sealed_remains(message))).collect();
        if settled.is_empty() {
            return Ok(());
        }
        self.database.purge(&settled, after, through)?;
        let mut note = AuditNote::new(LeafEvent::PayloadPurged, self.gateway.clone());
        note.count = Some(settled.len() as u64);
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.note(&note)?;
        self.database.commit(&turn)?;
        let outcome = Outcome::of(turn);
        self.install(Some(outcome), 0);
        Ok(())
    }

    /// What stays of a message's attributes.
    fn sealed_remains(&self, of: &Attributes) -> Vec<u8> {
        let place = Place { table: "message", column: "attributes", row: of.seq };
        let owner = Owner::Attributes { message: &of.message };
        match self.vault.open(&of.sealed, owner, place) {
            Ok(attributes) => self.vault.seal(&remains_of(attributes), owner),
            // What is damaged must go in time too; it does not become valid by that.
            Err(_) => Vec::new(),
        }
    }

    fn purge_keys(&mut self) -> Result<(), CommitError> {
        let window = self.dedup_window;
        let mut progress = std::mem::take(&mut self.purge.keys);
        // Newer ones are not in the index yet.
        let keyed = self.memory.keys.keyed();
        let step = self.next_step(&mut progress, window, keyed);
        self.purge.keys = progress;
        let Some((after, through)) = step? else { return Ok(()) };
        self.database.purge_keys(after, through)
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
        let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let before = Timestamp::from_micros(now.as_micros().saturating_sub(age));
        let found = self.database.purge_find(progress.through, before, STEP_MESSAGES, newest)?;
        let Some(&through) = found.last() else {
            progress.rest_until = Some(now + REST);
            return Ok(None);
        };
        let after = std::mem::replace(&mut progress.through, through);
        Ok(Some((after, through)))
    }
}
