//! Trying again, ever more slowly: calls to the gateway until it answers, and connections to partners.

use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use tokio::time::sleep;

use crate::client::{Call, CallError, Client};
use crate::lifetime::Stop;

const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Repeats a call until the gateway answers it with a final word. It does not give up by itself: when the gateway stays
/// away, the process ends.
pub(crate) async fn persist<T: serde::de::DeserializeOwned>(
    client: &Client,
    call: &Call,
) -> Result<T, CallError> {
    let mut pause = Pause::default();
    loop {
        match client.call(call).await {
            Err(error) if error.retryable() => pause.after(&error).await,
            answer => return answer,
        }
    }
}

/// Longer and longer pauses between repetitions of a call to the gateway.
#[derive(Debug)]
pub(crate) struct Pause {
    next: Duration,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: PAUSE_FIRST }
    }
}

impl Pause {
    pub(crate) async fn after(&mut self, error: &CallError) {
        let wished = match error {
            CallError::Refused(refusal) => refusal.retry_after,
            _ => None,
        };
        // Said once per outage, not once per try.
        if self.next == PAUSE_FIRST {
            tracing::warn!(error = %Chain(error), "a call to the gateway failed; repeating it");
        }
        sleep(wished.unwrap_or(self.next).min(PAUSE_MAX)).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }
}

/// Pauses between tries to reach a partner: each twice as long as the one before, and somewhat shorter or longer by chance, so that many who
/// lost it at the same moment do not come back at the same moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first.min(max) }
    }

    /// It was reached: the next pause is the first again.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.max);
    }

    /// How long to wait before the next try: three to five quarters of what doubling says.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.max);
        // The keys of a hasher are random.
        let chance = RandomState::new().build_hasher().finish() % 1000;
        pause / 4 * 3 + pause / 2000 * u32::try_from(chance).unwrap_or(0)
    }

    /// Waits before the next try; `false` if the adapter was asked to stop meanwhile.
    pub async fn wait(&mut self, stop: &Stop) -> bool {
        tokio::select! {
            () = stop.requested() => false,
            () = sleep(self.pause()) => true,
        }
    }
}

/// An error with all its causes on one line.
pub(crate) struct Chain<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifetime::Lifetime;

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_their_limit_and_end_with_a_stop() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(500));
        for expected in [100, 200, 400, 500, 500] {
            let pause = backoff.pause().as_millis();
            assert!((expected * 3 / 4..=expected * 5 / 4).contains(&pause), "{pause} for {expected}");
        }
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(125));
        let spread: std::collections::HashSet<_> =
            (0..50).map(|_| Backoff::new(Duration::from_secs(9), Duration::MAX).pause()).collect();
        assert!(spread.len() > 10, "all come back at the same moment");
        let lifetime = Lifetime::new();
        assert!(backoff.wait(&lifetime.stop()).await);
        lifetime.drain();
        assert!(!Backoff::new(Duration::from_secs(3600), Duration::MAX).wait(&lifetime.stop()).await);
    }
}
