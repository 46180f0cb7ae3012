//! Retention: settled messages are emptied when they are old enough of all that may be about somebody, and idempotency keys
//! go when their window has passed, in small steps between commits. What has not been settled is never touched.

use super::outcome::Outcome;
use super::turn::Turn;
use super::{Condition, Writer};
use crate::backend::{Backend, CommitError};
use crate::ops::AuditNote;
use gatepost_audit::Event as LeafEvent;

impl<B: Backend> Writer<B> {
    pub(crate) fn purge_some(&mut self) {
        for step in [Self::purge_content, Self::purge_keys] {
            if self.condition != Condition::Working {
                return;
            }
            if let Err(error) = step(self) {
                self.failed(&error);
            }
        }
    }

    /// One transaction with its leaf: killed half way, nothing has been purged.
    fn purge_content(&mut self) -> Result<(), CommitError> {
        let purged = self.database.purge_content(self.clock.now(), self.payload_retention, &self.vault);
        let noted = match purged {
            Ok(0) => Ok(()),
            Ok(messages) => self.note_purged(messages),
            Err(error) => Err(error),
        };
        self.database.roll_back()?;
        noted
    }

    /// Commits the open transaction with the leaf of what has been purged in it.
    fn note_purged(&mut self, messages: u64) -> Result<(), CommitError> {
        let mut note = AuditNote::new(LeafEvent::PayloadPurged, self.gateway.clone());
        note.count = Some(messages);
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        turn.note(&note)?;
        let base = self.database.commit(&turn)?;
        let outcome = Outcome::of(turn, base);
        self.install(Some(outcome), 0);
        Ok(())
    }

    fn purge_keys(&mut self) -> Result<(), CommitError> {
        self.database.purge_keys(self.clock.now(), self.dedup_window, self.memory.keys.keyed())
    }
}
