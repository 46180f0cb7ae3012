//! What comes over one connection, counted: told in the log when it ends, and of troubles the first and then once a minute.

use tokio::time::Instant;

use crate::quiet::Quiet;

/// What came over one connection, told when it ends.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) accepted: u64,
    pub(super) answers: u64,
    pub(super) postponed: u64,
    pub(super) refused: u64,
    pub(super) unreadable: u64,
    pub(super) oversize: u64,
    pub(super) abandoned: u64,
    pub(super) junk_bytes: u64,
    pub(super) quiet_frames: Quiet,
    pub(super) quiet_refusals: Quiet,
    pub(super) quiet_postponed: Quiet,
}

impl Tally {
    pub(super) fn tell_refusal(&mut self, why: &dyn std::fmt::Display) {
        if let Some(messages) = self.quiet_refusals.count(Instant::now()) {
            tracing::warn!(messages, %why, "refusing a message");
        }
    }
}

impl std::fmt::Debug for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tally")
            .field("accepted", &self.accepted)
            .field("answers", &self.answers)
            .field("postponed", &self.postponed)
            .field("refused", &self.refused)
            .field("unreadable", &self.unreadable)
            .field("oversize", &self.oversize)
            .field("abandoned", &self.abandoned)
            .field("junk_bytes", &self.junk_bytes)
            .finish_non_exhaustive()
    }
}
