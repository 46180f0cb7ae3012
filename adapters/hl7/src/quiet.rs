//! Log lines that a partner can cause as often as it likes.

use std::time::Duration;

use tokio::time::Instant;

/// At most one line of a kind in this time.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// One kind of event: the first is told, then those of a minute together.
#[derive(Default)]
pub(crate) struct Quiet {
    untold: u64,
    told_at: Option<Instant>,
}

impl Quiet {
    /// How many there have been since the last line, where a line is due.
    pub(crate) fn count(&mut self, now: Instant) -> Option<u64> {
        self.untold = self.untold.saturating_add(1);
        if self.told_at.is_some_and(|told_at| now.duration_since(told_at) < TELL_EVERY) {
            return None;
        }
        self.told_at = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_then_those_of_a_minute_together() {
        let (mut quiet, start) = (Quiet::default(), Instant::now());
        assert_eq!(quiet.count(start), Some(1));
        assert!((0..1000).all(|_| quiet.count(start).is_none()));
        let later = start + TELL_EVERY;
        assert_eq!((quiet.count(later), quiet.count(later)), (Some(1001), None));
    }
}
