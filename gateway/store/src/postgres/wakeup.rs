//! Telling other nodes that there may be something to lease: one coalesced NOTIFY of each node, outside its commits.
//!
//! Only a hint. A node that misses one looks by itself a quarter of a second later.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::PgListener;
use tokio::sync::{Notify, mpsc, watch};

use super::sql;
use crate::writer::Chore;

/// The channel that all nodes listen to; a database has its own.
const CHANNEL: &str = "gatepost";
/// Between two of a node's words: NOTIFY takes a lock that all committing sessions of the server share.
const INTERVAL: Duration = Duration::from_millis(20);
/// Before a lost connection is made anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Queues of which other nodes own what was written.
#[derive(Default)]
pub(crate) struct Bell {
    queues: Mutex<BTreeSet<i32>>,
    rung: Notify,
}

impl Bell {
    pub(super) fn ring(&self, queues: impl IntoIterator<Item = i32>) {
        let mut waiting = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(queues);
        if !waiting.is_empty() {
            self.rung.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<i32> {
        std::mem::take(&mut *self.queues.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What it works with.
pub(crate) struct Wakeups {
    pub(crate) pool: PgPool,
    /// The node that this is now.
    pub(crate) epoch: Arc<AtomicI32>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) chores: mpsc::Sender<Chore>,
}

impl Wakeups {
    /// Speaks and listens until it is told to stop.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        tokio::select! {
            () = self.speak() => {}
            () = self.listen() => {}
            _ = stop.changed() => {}
        }
    }

    async fn speak(&self) {
        loop {
            self.bell.rung.notified().await;
            let queues: Vec<String> = self.bell.take().iter().map(ToString::to_string).collect();
            let word = format!("{}:{}", self.epoch.load(Ordering::Relaxed), queues.join(","));
            let said = sqlx::query(sql::WAKE).bind(CHANNEL).bind(word).execute(&self.pool).await;
            if let Err(error) = said {
                tracing::debug!(%error, "the other nodes are not told; they look by themselves");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn listen(&self) {
        loop {
            if let Err(error) = self.hear().await {
                tracing::debug!(%error, "other nodes are not heard; this one looks by itself");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn hear(&self) -> Result<(), sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.listen(CHANNEL).await?;
        loop {
            let word = listener.recv().await?;
            let Some((from, queues)) = word.payload().split_once(':') else { continue };
            if from.parse() == Ok(self.epoch.load(Ordering::Relaxed)) {
                continue;
            }
            let queues = queues.split(',').filter_map(|queue| queue.parse().ok()).collect();
            // A writer that is busy looks soon enough.
            drop(self.chores.try_send(Chore::Woken { queues }));
        }
    }
}
