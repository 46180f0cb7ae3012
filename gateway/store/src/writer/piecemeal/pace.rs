//! How many pieces are written, and when. Pure; time is a parameter.

use std::time::{Duration, Instant};

/// Pieces in one commit while nobody else asks for anything.
pub(super) const STEP_PIECES: usize = 8;
/// For how long others are expected to come again.
const OTHERS_STAY: Duration = Duration::from_millis(100);
/// How long a piece waits for a commit of theirs, times what the last commit took.
const PATIENCE: u32 = 4;
/// How long nothing is written beside the turns of others after what took so long itself, times that.
const REST: u32 = 1;

/// Whose commit it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::writer) enum Whose {
    Others,
    Pieces,
}

/// How many pieces are written, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    others: Option<Instant>,
    /// The end of the newest commit, and what it took.
    newest: Option<(Instant, Duration)>,
    /// … and of the newest with pieces alone.
    pieces: Option<(Instant, Duration)>,
}

impl Pace {
    pub(super) fn committed(&mut self, whose: Whose, now: Instant, took: Duration) {
        self.newest = Some((now, took));
        match whose {
            Whose::Others => self.others = Some(now),
            Whose::Pieces => self.pieces = self.newest,
        }
    }

    fn others_are_near(&self, now: Instant) -> bool {
        self.others.is_some_and(|others| now.saturating_duration_since(others) < OTHERS_STAY)
    }

    pub(super) fn due(&self, now: Instant) -> Instant {
        match self.newest {
            Some((newest, took)) if self.others_are_near(now) => newest + PATIENCE * took,
            Some(_) | None => now,
        }
    }

    /// As [`Pace::due`], where pieces are written beside the turns and not with them: others have disk and processors for as long.
    pub(super) fn due_beside(&self, now: Instant) -> Instant {
        match self.pieces {
            Some((ended, took)) if self.others_are_near(now) => ended + REST * took,
            Some(_) | None => now,
        }
    }

    pub(super) fn pieces(&self, now: Instant) -> usize {
        if self.others_are_near(now) { 1 } else { STEP_PIECES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_wait_for_others_that_come_often_and_are_larger_while_nobody_does() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!((pace.due(start), pace.pieces(start)), (start, STEP_PIECES));
        let took = Duration::from_millis(2);
        pace.committed(Whose::Others, start, took);
        assert_eq!((pace.due(start), pace.pieces(start)), (start + PATIENCE * took, 1));
        let (later, took) = (start + Duration::from_millis(20), Duration::from_millis(3));
        pace.committed(Whose::Pieces, later, took);
        assert_eq!((pace.due(later), pace.pieces(later)), (later + PATIENCE * took, 1));
        let gone = start + OTHERS_STAY;
        assert_eq!((pace.due(gone), pace.pieces(gone)), (gone, STEP_PIECES));
    }
}
