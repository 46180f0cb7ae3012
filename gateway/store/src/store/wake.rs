//! Waking what waits for an adapter's partners (`retry` with scope `lane`) when its next session opens: how long that waits was said by
//! a process that would have woken it, and is there no more.

use gatepost_core::Outcome;
use gatepost_core::principal::{Actor, ActorKind};

use super::Store;
use crate::ops::{Session, Settle, SettleError, SettleItem};

/// Woken in one commit.
const WOKEN_AT_A_TIME: usize = 500;
/// Woken when a session opens; further ones come by themselves, in their time.
const WOKEN_MAX: usize = 5000;

impl Store {
    /// Each through its own token, as the session that was given it would: what has changed meanwhile stays as it is.
    pub(super) async fn wake_all(&self, adapter: &str, session: &Session) -> Result<(), SettleError> {
        let Some(queue) = self.reader.queue_number(adapter).await? else { return Ok(()) };
        for _ in 0..WOKEN_MAX / WOKEN_AT_A_TIME {
            let away = self.reader.queue_away(queue, session.sessions, WOKEN_AT_A_TIME).await?;
            if away.is_empty() {
                return Ok(());
            }
            let is_last = away.len() < WOKEN_AT_A_TIME;
            let wake = |(delivery, token)| SettleItem {
                delivery,
                token: Some(token),
                outcome: Outcome::Wake,
                reason: None,
                evidence: None,
                reply: None,
            };
            let settle = Settle {
                consumer: Actor::new(ActorKind::Adapter, adapter),
                queues: vec![adapter.to_owned()],
                session: Some(session.epoch),
                items: away.into_iter().map(wake).collect(),
                emit: Vec::new(),
                state: Vec::new(),
                atomic: false,
            };
            self.delivery_settle(settle).await?;
            if is_last {
                return Ok(());
            }
        }
        Ok(())
    }
}
