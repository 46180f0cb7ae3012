//! Answers to messages that are `sent`: settled as they come, and forgotten where none comes in time.

use std::sync::Weak;
use std::time::Duration;

use gatepost_adapter::{Session, Settlement};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::{Awaited, Judge, Late};

const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Keys of state that one settlement deletes; well within the gateway's limit.
const KEYS_AT_A_TIME: usize = 500;

/// The task that settles late answers; ends once everybody who reads what partners send has ended.
pub(crate) struct LateDesk {
    pub(super) awaited: Weak<Awaited>,
    pub(super) session: Session,
    pub(super) late: mpsc::UnboundedReceiver<Late>,
    pub(super) judge: Box<Judge>,
}

impl LateDesk {
    pub(crate) async fn run(mut self) {
        let mut sweep = interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                late = self.late.recv() => match late {
                    Some(late) => self.settle(late).await,
                    None => return,
                },
                _ = sweep.tick() => {
                    let Some(awaited) = self.awaited.upgrade() else { continue };
                    let over = awaited.take_over(OffsetDateTime::now_utc());
                    drop(awaited);
                    self.forget(&over).await;
                }
            }
        }
    }

    async fn settle(&self, Late { lease, key, partner, answer, _settling }: Late) {
        let mut settlement = Settlement::default();
        settlement.late(&lease, (self.judge)(partner.as_deref(), &answer));
        settlement.state.delete(key.clone());
        match self.session.settle(settlement).await {
            Ok(_) => {
                tracing::info!(delivery = %lease.delivery, code = answer.code.as_str(), "its application acknowledgement has come");
            }
            Err(error) => {
                tracing::warn!(delivery = %lease.delivery, %error, "its application acknowledgement comes too late");
                self.forget(&[key]).await;
            }
        }
    }

    async fn forget(&self, keys: &[String]) {
        for some in keys.chunks(KEYS_AT_A_TIME) {
            let mut settlement = Settlement::default();
            some.iter().for_each(|key| settlement.state.delete(key.as_str()));
            if let Err(error) = self.session.settle(settlement).await {
                // The next session drops them by their deadlines.
                tracing::warn!(%error, keys = some.len(), "cannot forget messages that are not waited for any more");
            }
        }
    }
}
