//! What `/metrics` shows: counters of requests, kept here, and gauges of the store, read when asked. Labels are closed sets or
//! names from the configuration; never an id, never anything that a request says.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use gatepost_api::lists::AdapterItem;
use gatepost_api::problem::Code;
use gatepost_store::{Health, QueueRow};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::listen::{Counters, RefusalCode};

pub(crate) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the histogram of answer times, seconds.
const ANSWER_SECONDS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    queue: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DepthLabels {
    queue: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SenderLabels {
    sender: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AdapterLabels {
    adapter: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AdapterStateLabels {
    adapter: String,
    state: String,
}

type Seconds = Gauge<f64, AtomicU64>;

/// Counters of the API itself.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    refused: Family<CodeLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let requests = Family::default();
        let seconds = Family::new_with_constructor(answer_histogram as fn() -> Histogram);
        let refused = Family::default();
        let mut registry = Registry::default();
        registry.register("gatepost_http_requests", "Requests answered", requests.clone());
        registry.register(
            "gatepost_http_request_seconds",
            "Time to answer, long polls included",
            seconds.clone(),
        );
        registry.register("gatepost_refused", "Requests refused, by problem code", refused.clone());
        Self { registry, requests, seconds, refused }
    }
}

fn answer_histogram() -> Histogram {
    Histogram::new(ANSWER_SECONDS)
}

impl Metrics {
    pub(crate) fn answered(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let labels =
            RequestLabels { method: method_name(method), route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        self.seconds.get_or_create(&RouteLabels { route: labels.route }).observe(took.as_secs_f64());
    }

    pub(crate) fn refused(&self, code: Code) {
        self.refused.get_or_create(&CodeLabels { code: code.as_str() }).inc();
    }

    /// The whole page.
    pub(crate) fn page(&self, view: &View<'_>) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode_registry(&mut page, &self.registry)?;
        text::encode_registry(&mut page, &view.registry())?;
        text::encode_eof(&mut page)?;
        Ok(page)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

/// Methods that nobody has heard of share one label, or a peer could make as many labels as it likes.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// The rest of the gateway at one moment.
pub(crate) struct View<'a> {
    pub(crate) queues: &'a [QueueRow],
    pub(crate) health: &'a Health,
    pub(crate) adapters: &'a [AdapterItem],
    pub(crate) listeners: &'a Counters,
}

impl View<'_> {
    fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        self.queues(&mut registry);
        self.senders(&mut registry);
        self.store(&mut registry);
        self.adapters(&mut registry);
        self.listeners(&mut registry);
        registry
    }

    fn queues(&self, registry: &mut Registry) {
        let depth = Family::<DepthLabels, Gauge>::default();
        let ready = Family::<QueueLabels, Seconds>::default();
        let oldest = Family::<QueueLabels, Seconds>::default();
        let lanes = Family::<QueueLabels, Gauge>::default();
        let braked = Family::<DepthLabels, Gauge>::default();
        for row in self.queues {
            let (name, stats) = (&row.name, &row.stats);
            for (state, count) in [
                ("waiting", stats.waiting),
                ("leased", stats.leased),
                ("sending", stats.sending),
                ("in_doubt", stats.in_doubt),
                ("held", stats.held),
                ("dead", stats.dead),
            ] {
                depth.get_or_create(&DepthLabels { queue: name.clone(), state }).set(signed(count));
            }
            for (state, on) in [("paused", stats.paused), ("tripped", stats.tripped.is_some())] {
                braked.get_or_create(&DepthLabels { queue: name.clone(), state }).set(i64::from(on));
            }
            let labels = QueueLabels { queue: name.clone() };
            ready.get_or_create(&labels).set(stats.oldest_ready.unwrap_or_default().as_secs_f64());
            oldest.get_or_create(&labels).set(stats.oldest.unwrap_or_default().as_secs_f64());
            lanes.get_or_create(&labels).set(signed(stats.held_lanes));
        }
        registry.register(
            "gatepost_queue_deliveries",
            "Deliveries by state; held ones are also in doubt",
            depth,
        );
        registry.register(
            "gatepost_queue_braked",
            "Whether the queue is paused or its breaker is open",
            braked,
        );
        registry.register(
            "gatepost_queue_oldest_ready_seconds",
            "Longest time a delivery has been due",
            ready,
        );
        registry.register("gatepost_queue_oldest_seconds", "Age of the oldest unsettled delivery", oldest);
        registry.register("gatepost_queue_held_lanes", "Lanes that a held or dead delivery blocks", lanes);
    }

    /// Of all that configurations have named, and nobody else.
    fn senders(&self, registry: &mut Registry) {
        let deliveries = Family::<SenderLabels, Gauge>::default();
        let bytes = Family::<SenderLabels, Gauge>::default();
        for row in self.health.senders() {
            let labels = SenderLabels { sender: row.sender };
            deliveries.get_or_create(&labels).set(signed(row.deliveries));
            bytes.get_or_create(&labels).set(signed(row.bytes));
        }
        registry.register(
            "gatepost_sender_backlog_deliveries",
            "Deliveries that the sender has handed in and that are not settled",
            deliveries,
        );
        registry.register("gatepost_sender_backlog_bytes", "Their payloads", bytes);
    }

    fn store(&self, registry: &mut Registry) {
        let health = self.health;
        for (name, help, value) in [
            ("gatepost_accepted_deliveries", "Deliveries accepted", health.accepted()),
            ("gatepost_settled_deliveries", "Deliveries settled for good", health.settled()),
            ("gatepost_commits", "Commits of the store", health.commits()),
            (
                "gatepost_commit_ops",
                "Operations in those commits; by commits it is the batch size",
                health.ops(),
            ),
        ] {
            registry.register(name, help, counter(value));
        }
        let seconds = Counter::<f64, AtomicU64>::default();
        seconds.inc_by(Duration::from_micros(health.commit_micros()).as_secs_f64());
        registry.register("gatepost_commit_seconds", "Time spent in commits", seconds);
        for (name, help, value) in [
            ("gatepost_wal_bytes", "Size of the write-ahead log", health.wal_bytes()),
            ("gatepost_audit_leaves", "Entries of the audit log", health.audit_size()),
            (
                "gatepost_audit_checkpoint_leaves",
                "Entries under the last checkpoint",
                health.checkpoint_size(),
            ),
            (
                "gatepost_damaged_rows",
                "Rows of the database found damaged since start",
                health.damaged().len() as u64,
            ),
            (
                "gatepost_store_accepting",
                "1 while the store takes writes",
                u64::from(health.accepting().is_ok()),
            ),
        ] {
            registry.register(name, help, gauge(value));
        }
        if let Some(held) = health.oldest_snapshot() {
            let oldest = Seconds::default();
            oldest.set(held.as_secs_f64());
            registry.register(
                "gatepost_postgres_oldest_snapshot_seconds",
                "How long the oldest session, slot or prepared transaction has kept PostgreSQL from removing dead rows",
                oldest,
            );
        }
    }

    fn adapters(&self, registry: &mut Registry) {
        let restarts = Family::<AdapterLabels, Counter>::default();
        let state = Family::<AdapterStateLabels, Gauge>::default();
        for adapter in self.adapters {
            let labels = AdapterLabels { adapter: adapter.name.clone() };
            restarts.get_or_create(&labels).inc_by(adapter.restarts);
            let labels = AdapterStateLabels { adapter: labels.adapter, state: adapter.state.clone() };
            state.get_or_create(&labels).set(1);
        }
        registry.register("gatepost_adapter_restarts", "Restarts of the adapter's process", restarts);
        registry.register("gatepost_adapter_state", "1 for the state the adapter is in", state);
    }

    fn listeners(&self, registry: &mut Registry) {
        let counters = self.listeners;
        let refused = Family::<CodeLabels, Counter>::default();
        for code in RefusalCode::ALL {
            refused.get_or_create(&CodeLabels { code: code.as_str() }).inc_by(counters.refused(*code));
        }
        registry.register("gatepost_connections_refused", "Connections turned away", refused);
        for (name, help, value) in [
            ("gatepost_connections_accepted", "Connections taken from the kernel", counters.accepted()),
            (
                "gatepost_connections_cut",
                "Connections cut because their peer was too slow",
                counters.cut_slow(),
            ),
            ("gatepost_accept_errors", "Failures to take a connection", counters.accept_errors()),
            ("gatepost_panics", "Panics caught in handlers and connections", counters.panics()),
        ] {
            registry.register(name, help, counter(value));
        }
        registry.register("gatepost_connections_open", "Connections open now", gauge(counters.open()));
    }
}

fn counter(value: u64) -> Counter {
    let counter = Counter::default();
    counter.inc_by(value);
    counter
}

fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(signed(value));
    gauge
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
