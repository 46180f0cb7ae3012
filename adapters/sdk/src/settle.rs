//! Reporting outcomes: everything that becomes ready while one call is on its way goes into the next one.
//!
//! A call whose answer was lost is repeated with the same tokens, which the gateway answers as the first time. Nothing
//! reported is ever dropped while the gateway can be reached; what it calls stale is logged, since another attempt has
//! taken over.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use gatepost_api::settle::{
    Outcome as WireOutcome, SETTLE_RESULTS_MAX, SettleItem, SettleRequest, SettleResponse, SettleStatus,
    SettledItem,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::{Call, CallError, Client, Purpose};

use crate::evidence::{item, millis};
use crate::lease::{Held, LeaseLost};
use crate::lifetime::{Ending, Lifetime};
use crate::patience::{Chain, persist};

pub(crate) const SETTLE_DEADLINE: Duration = Duration::from_secs(30);
/// A call is closed once it holds this much of replies and evidence.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Where results are handed in.
pub(crate) struct Settler {
    reports: mpsc::UnboundedSender<Report>,
}

struct Report {
    item: SettleItem,
    held: Arc<Held>,
    /// Who waits for the answer, if anybody does.
    answer: Option<oneshot::Sender<Result<(), LeaseLost>>>,
}

impl Settler {
    /// Starts the task that reports. It ends when the settler is dropped.
    pub(crate) fn start(client: Arc<Client>, lifetime: Lifetime, epoch: u64) -> Self {
        // Unbounded in form only: each delivery in hand has one report and one prolonging at most, and those are bounded.
        let (reports, queue) = mpsc::unbounded_channel();
        tokio::spawn(Reporter { client, lifetime, epoch, queue }.run());
        Self { reports }
    }

    /// Hands a result in without waiting.
    pub(crate) fn tell(&self, item: SettleItem, held: Arc<Held>) {
        self.hand_in(Report { item, held, answer: None });
    }

    /// Hands a result in and waits until it is durable.
    pub(crate) async fn ask(&self, item: SettleItem, held: Arc<Held>) -> Result<(), LeaseLost> {
        let (answer, answered) = oneshot::channel();
        self.hand_in(Report { item, held, answer: Some(answer) });
        answered.await.unwrap_or(Err(LeaseLost))
    }

    /// Asks for more time, unless that has been asked already and not been answered yet.
    pub(crate) fn prolong(&self, held: Arc<Held>) {
        if !held.begin_prolonging() {
            return;
        }
        let mut extend = item(held.id, &held.token, WireOutcome::Extend);
        extend.after_ms = Some(millis(held.length));
        self.tell(extend, held);
    }

    fn hand_in(&self, report: Report) {
        // The reporter only ends with the process; an unreported lease then ends by itself.
        let _ = self.reports.send(report);
    }
}

struct Reporter {
    client: Arc<Client>,
    lifetime: Lifetime,
    epoch: u64,
    queue: mpsc::UnboundedReceiver<Report>,
}

impl Reporter {
    async fn run(mut self) {
        while let Some(first) = self.queue.recv().await {
            let batch = self.fill(first);
            if !batch.is_empty() {
                self.report(batch).await;
            }
        }
    }

    /// The first report and whatever else is ready, within the bounds.
    fn fill(&mut self, first: Report) -> Vec<Report> {
        let mut bytes = weight(&first.item);
        let mut batch = vec![first];
        while batch.len() < SETTLE_RESULTS_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(report) = self.queue.try_recv() else { break };
            bytes += weight(&report.item);
            batch.push(report);
        }
        without_twins(batch)
    }

    /// Reports a batch; where the gateway refuses the call as a whole, one by one, so that one faulty result does not
    /// take the others with it.
    async fn report(&self, batch: Vec<Report>) {
        let (items, followers): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|report| (report.item, (report.held, report.answer))).unzip();
        let request = self.request(items);
        match self.call(&request).await {
            Ok(response) => {
                for ((sent, settled), (held, answer)) in
                    request.results.iter().zip(response.results).zip(followers)
                {
                    resolve(sent, Ok(&settled), &held, answer);
                }
            }
            Err(error) if error.superseded() => {
                // Nothing of these may be sent any more, and whoever waits for an answer must not wait for ever.
                for (sent, (held, answer)) in request.results.iter().zip(followers) {
                    conclude(sent.outcome, Err(LeaseLost), &held, answer);
                }
                self.lifetime.end(Ending::Superseded);
            }
            Err(error) if request.results.len() == 1 => {
                for (sent, (held, answer)) in request.results.iter().zip(followers) {
                    resolve(sent, Err(&error), &held, answer);
                }
            }
            Err(_) => {
                for (item, (held, answer)) in request.results.into_iter().zip(followers) {
                    Box::pin(self.report(vec![Report { item, held, answer }])).await;
                }
            }
        }
    }

    fn request(&self, results: Vec<SettleItem>) -> SettleRequest {
        SettleRequest {
            results,
            emit: Vec::new(),
            state: BTreeMap::new(),
            atomic: None,
            epoch: Some(self.epoch),
        }
    }

    async fn call(&self, request: &SettleRequest) -> Result<SettleResponse, CallError> {
        let call = Call::post_json(Purpose::Report, "/v1/settle", request, SETTLE_DEADLINE)?;
        let response: SettleResponse = persist(&self.client, &call).await?;
        gatepost_faults::point("sdk.after_settle");
        if in_step(&request.results, &response.results) {
            Ok(response)
        } else {
            Err(CallError::Garbled { status: 200 })
        }
    }
}

/// Whether the gateway answered what was said, item by item.
pub(crate) fn in_step(sent: &[SettleItem], settled: &[SettledItem]) -> bool {
    settled.len() == sent.len()
        && settled.iter().zip(sent).all(|(settled, sent)| settled.delivery == sent.delivery)
}

/// One delivery must not stand twice in a call. Only prolonging can meet something else of the same delivery, and gives
/// way: after an outcome it is pointless, and after a `begin` its turn comes again.
fn without_twins(batch: Vec<Report>) -> Vec<Report> {
    let is_extend = |report: &Report| report.item.outcome == WireOutcome::Extend;
    let others: HashSet<Uuid> =
        batch.iter().filter(|report| !is_extend(report)).map(|report| report.item.delivery).collect();
    let gives_way = |report: &Report| {
        is_extend(report) && (others.contains(&report.item.delivery) || report.held.is_reported())
    };
    let (dropped, kept): (Vec<_>, Vec<_>) = batch.into_iter().partition(gives_way);
    for report in dropped {
        report.held.end_prolonging();
    }
    kept
}

/// What the gateway said to one result.
fn resolve(
    sent: &SettleItem,
    settled: Result<&SettledItem, &CallError>,
    held: &Held,
    answer: Option<oneshot::Sender<Result<(), LeaseLost>>>,
) {
    let delivery = sent.delivery;
    let outcome = sent.outcome;
    let verdict = match settled {
        Ok(SettledItem { status: SettleStatus::Ok, .. }) => Ok(()),
        Ok(SettledItem { status: SettleStatus::Stale, state, .. })
            if outcome == WireOutcome::Begin && state == "expired" =>
        {
            tracing::info!(%delivery, "the delivery has expired before it was sent");
            Err(LeaseLost)
        }
        Ok(SettledItem { status: SettleStatus::Stale, state, .. }) => {
            tracing::warn!(%delivery, ?outcome, state, "the gateway has given this delivery to a newer attempt");
            Err(LeaseLost)
        }
        Err(error) => {
            tracing::error!(%delivery, ?outcome, error = %Chain(error), "the gateway does not take this result");
            Err(LeaseLost)
        }
    };
    conclude(outcome, verdict, held, answer);
}

fn conclude(
    outcome: WireOutcome,
    verdict: Result<(), LeaseLost>,
    held: &Held,
    answer: Option<oneshot::Sender<Result<(), LeaseLost>>>,
) {
    if outcome == WireOutcome::Extend {
        held.end_prolonging();
    }
    match (outcome, &verdict) {
        (WireOutcome::Extend, Ok(())) => held.prolonged(Instant::now()),
        (_, Err(LeaseLost)) => held.lose(),
        (_, Ok(())) => {}
    }
    if let Some(answer) = answer {
        // Whoever asked may have been stopped meanwhile.
        let _ = answer.send(verdict);
    }
}

fn weight(item: &SettleItem) -> usize {
    let reply = item.reply.as_ref().map_or(0, |reply| {
        reply.data.as_ref().map_or(0, |data| data.get().len())
            + reply.data_base64.as_ref().map_or(0, String::len)
    });
    let evidence = item.evidence.as_ref().map_or(0, |evidence| evidence.get().len());
    reply + evidence + item.reason.as_ref().map_or(0, String::len)
}
