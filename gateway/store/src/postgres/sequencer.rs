//! Giving committed leaves their places in the tree: one node does it for all, and leaves no gap.
//!
//! A leaf is committed with what it describes, under a number. Numbers are drawn before a commit and become visible in any
//! order, so they cannot be places: a place is given to whatever is visible, once, in a transaction that holds the role. What
//! depends on a leaf is visible only after it and has the larger number, so it comes behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Row as _};
use tokio::sync::{Notify, watch};

use super::{ROLE_SEQUENCER, sql};
use crate::writer::Health;

/// Between two looks of the node that has the role, and after a commit of ours.
const INTERVAL: Duration = Duration::from_millis(50);
/// Between two looks of the others.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Runs of leaves placed in one transaction.
const RUNS_MAX: i64 = 4096;
/// Longest that a look may take before its connection is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it works with.
pub(crate) struct Sequencer {
    pub(crate) options: PgConnectOptions,
    /// The node that this is now.
    pub(crate) epoch: Arc<AtomicI32>,
    pub(crate) health: Arc<Health>,
    /// Rung by the writer after each commit that added leaves.
    pub(crate) added: Arc<Notify>,
    /// Rings the audit log when the tree has grown.
    pub(crate) grown: Arc<Notify>,
}

/// What a look has shown.
enum Look {
    /// Another has the role.
    Others,
    /// So many runs have got their places.
    Placed(i64),
}

impl Sequencer {
    /// Runs until it is told to stop; what this node has committed before has its place then, if the database can be reached.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connection = None;
        loop {
            let stopping = *stop.borrow() || stop.has_changed().is_err();
            let looked = match tokio::time::timeout(PATIENCE, self.look(&mut connection)).await {
                Ok(looked) => looked,
                Err(_) => Err(sqlx::Error::PoolTimedOut),
            };
            let wait = match looked {
                Ok(Look::Placed(RUNS_MAX)) => continue,
                Ok(Look::Placed(_)) => INTERVAL,
                Ok(Look::Others) => WATCH_INTERVAL,
                Err(error) => {
                    tracing::debug!(%error, "the audit log's order cannot be looked at");
                    connection = None;
                    Duration::from_secs(1)
                }
            };
            if stopping {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = stop.changed() => {}
            }
            if self.is_quiet() {
                // Others may have committed, so it is looked at again in any case.
                tokio::select! {
                    () = self.added.notified() => {}
                    () = tokio::time::sleep(WATCH_INTERVAL) => {}
                    _ = stop.changed() => {}
                }
            }
        }
    }

    /// Nothing has come lately that is not signed.
    fn is_quiet(&self) -> bool {
        self.health.checkpoint_size() == self.health.audit_size()
    }

    async fn look(&self, connection: &mut Option<PgConnection>) -> Result<Look, sqlx::Error> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(PgConnection::connect_with(&self.options).await?),
        };
        let look = self.place(open).await?;
        let size: i64 = sqlx::query(sql::TREE_SIZE).fetch_one(&mut *open).await?.try_get(0)?;
        let size = u64::try_from(size).unwrap_or(0);
        if size > self.health.audit_size() {
            self.health.set_audit_size(size);
            self.grown.notify_one();
        }
        Ok(look)
    }

    /// Places what is visible, if the role is this node's or nobody's.
    async fn place(&self, open: &mut PgConnection) -> Result<Look, sqlx::Error> {
        let epoch = self.epoch.load(Ordering::Relaxed);
        let mut transaction = open.begin().await?;
        let role = sqlx::query(sql::ROLE_LOOK).bind(ROLE_SEQUENCER).fetch_optional(&mut *transaction).await?;
        let Some(role) = role else {
            transaction.rollback().await?;
            return Ok(Look::Others);
        };
        let holder: Option<i32> = role.try_get(0)?;
        if holder != Some(epoch) {
            if holder.is_some() && role.try_get(1)? {
                transaction.rollback().await?;
                return Ok(Look::Others);
            }
            sqlx::query(sql::ROLE_TAKE).bind(ROLE_SEQUENCER).bind(epoch).execute(&mut *transaction).await?;
            tracing::info!("this node numbers the audit log from now on");
        }
        let placed = sqlx::query(sql::LEAVES_PLACE).bind(RUNS_MAX).fetch_one(&mut *transaction).await?;
        let placed: i64 = placed.try_get(0)?;
        transaction.commit().await?;
        Ok(Look::Placed(placed))
    }
}
