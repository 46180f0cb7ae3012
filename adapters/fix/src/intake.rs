//! Deliveries on their way to their sessions: which one, and whether the content is a message for it.

use std::collections::HashMap;
use std::sync::Arc;

use gatepost_adapter::{DataError, Delivery, Failure, Outcome, Session, Settlement};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::content;
use crate::engine::{Config, Outgoing};
use crate::settings::Plan;

/// Deliveries in hand for all sessions together, if the destination allows so many.
pub(crate) const IN_HAND_MAX: usize = 4096;
/// The attribute that names the session.
const SESSION: &str = "fixsession";

/// Longest content, bytes: with its header it must fit into one value of the adapter's state.
const KEPT_BYTES_MAX: usize = 1024 * 1024 - 4096;

/// A delivery that has been read and is a message for its session.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) delivery: Delivery,
    pub(crate) outgoing: Outgoing,
}

impl Order {
    pub(crate) fn id(&self) -> Uuid {
        self.delivery.id()
    }
}

/// Hands out deliveries until the adapter is asked to stop. Those of one session stay in their order.
pub(crate) struct Intake {
    gateway: Session,
    desks: HashMap<String, Desk>,
}

struct Desk {
    config: Arc<Config>,
    message_bytes_max: usize,
    orders: mpsc::Sender<Order>,
}

impl Intake {
    pub(crate) fn new(gateway: Session) -> Self {
        Self { gateway, desks: HashMap::new() }
    }

    /// Where the deliveries of a session go.
    pub(crate) fn register(&mut self, plan: &Plan, orders: mpsc::Sender<Order>) {
        let config = Arc::clone(&plan.config);
        let desk = Desk { config, message_bytes_max: plan.message_bytes_max, orders };
        self.desks.insert(plan.config.name.clone(), desk);
    }

    /// Leases nothing before a session has logged on: it would only go back.
    pub(crate) async fn run(self, mut is_up: watch::Receiver<bool>) -> Result<(), Failure> {
        let stop = self.gateway.stop();
        tokio::select! {
            up = is_up.wait_for(|up| *up) => if up.is_err() { return Ok(()) },
            () = stop.requested() => return Ok(()),
        }
        let mut pipeline = self.gateway.pipeline(IN_HAND_MAX);
        while let Some(delivery) = pipeline.next().await {
            match self.read(&delivery).await {
                Ok((desk, outgoing)) => {
                    // A session that has ended has ended the adapter.
                    let _ = desk.orders.send(Order { delivery, outgoing }).await;
                }
                Err(outcome) => self.settle(delivery, outcome).await?,
            }
        }
        drop(self.desks);
        pipeline.finish().await;
        Ok(())
    }

    async fn settle(&self, delivery: Delivery, outcome: Outcome) -> Result<(), Failure> {
        let mut settlement = Settlement::default();
        settlement.outcome(&delivery, outcome);
        let settled = self.gateway.settle(settlement).await;
        settled.map(drop).map_err(|error| Failure::new("the gateway does not take an outcome", error))
    }

    async fn read(&self, delivery: &Delivery) -> Result<(&Desk, Outgoing), Outcome> {
        let desk = self.desk(delivery)?;
        let data =
            delivery.data(desk.message_bytes_max.min(KEPT_BYTES_MAX)).await.map_err(|error| match error {
                DataError::Call(call) if call.retryable() => Outcome::Release,
                error => Outcome::reject(error.to_string()),
            })?;
        let event = delivery.event();
        let form = desk.config.form();
        let content = content::Outgoing::read(event.datacontenttype.as_deref(), &data, &form)
            .map_err(|error| Outcome::reject(error.to_string()))?;
        let message = event.text_extension("gatepostid").unwrap_or_default();
        let expires = event.text_extension("expirytime").and_then(|text| unix_ms(&text));
        let in_doubt = delivery.in_doubt();
        Ok((desk, Outgoing { lease: delivery.lease(), message, content, expires, in_doubt }))
    }

    fn desk(&self, delivery: &Delivery) -> Result<&Desk, Outcome> {
        match delivery.event().text_extension(SESSION) {
            Some(name) => self.desks.get(&name).ok_or_else(|| {
                Outcome::reject(format!("the attribute `{SESSION}` names no session of this adapter"))
            }),
            None => {
                let mut all = self.desks.values();
                let (only, more) = (all.next(), all.next());
                only.filter(|_| more.is_none()).ok_or_else(|| {
                    Outcome::reject(format!(
                        "the adapter has several sessions; the attribute `{SESSION}` must name one"
                    ))
                })
            }
        }
    }
}

/// Milliseconds since 1970. The gateway has checked the text; one that cannot be read here expires never.
fn unix_ms(text: &str) -> Option<i64> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()
}
