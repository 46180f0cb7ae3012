//! Repeating calls to the gateway until it answers, ever more slowly.

use std::fmt;
use std::time::Duration;

use tokio::time::sleep;

use crate::client::{Call, CallError, Client};

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
