//! What may change about a server while a gateway runs: whether a standby confirms commits, and who holds back the removal of
//! dead rows. A task of its own looks, over a connection of its own, so that nobody waits for it.

mod holders;

use std::sync::Arc;
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::durability::Durability;
use crate::writer::Health;
use holders::Holders;

/// Between two looks at the standbys.
const DURABILITY_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks at who holds back the removal of dead rows.
const HOLDERS_INTERVAL: Duration = Duration::from_secs(30);
/// Longest that a look may take before its connection is given up.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Watch {
    pub(crate) options: PgConnectOptions,
    pub(crate) health: Arc<Health>,
}

impl Watch {
    /// Runs until it is told to stop.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut connection = None;
        let mut holders = Holders::default();
        let mut holders_due = Instant::now();
        while !*stop.borrow() && stop.has_changed().is_ok() {
            let look = self.look(&mut connection, &mut holders, &mut holders_due);
            let looked = tokio::time::timeout(PATIENCE, look).await;
            if !matches!(looked, Ok(Ok(()))) {
                // Nothing is known now, so nothing is claimed.
                self.health.set_durability(Durability::Fsync);
                connection = None;
            }
            tokio::select! {
                () = tokio::time::sleep(DURABILITY_INTERVAL) => {}
                _ = stop.changed() => {}
            }
        }
        if let Some(open) = connection {
            drop(PgConnection::close(open).await);
        }
    }

    async fn look(
        &self,
        connection: &mut Option<PgConnection>,
        holders: &mut Holders,
        holders_due: &mut Instant,
    ) -> Result<(), sqlx::Error> {
        let open = match connection {
            Some(open) => open,
            None => connection.insert(PgConnection::connect_with(&self.options).await?),
        };
        open.ping().await?;
        self.health.set_durability(super::durability(open).await);
        if Instant::now() >= *holders_due {
            *holders_due = Instant::now() + HOLDERS_INTERVAL;
            self.health.set_oldest_snapshot(holders.look(open).await?);
        }
        Ok(())
    }
}
