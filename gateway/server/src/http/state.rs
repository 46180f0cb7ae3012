//! What all requests share, and what the composition root must bring to the API.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwap;
use gatepost_api::lists::AdapterItem;
use gatepost_core::principal::Actor;
use gatepost_store::Store;
use tokio::sync::watch;

use super::allowance::Allowances;
use super::calls::Calls;
use super::consumers::Consumers;
use super::holdback::holdback;
use super::metrics::Metrics;
use super::places::{BodyMemory, OpenRequests};
use super::request_ids::RequestIds;
use super::tasks::Tasks;
use super::trail::AuditTrail;
use crate::config::Config;
use crate::listen;
use crate::spaced::Spaced;
use crate::supervise::RunningAs;
use crate::tokens::Tokens;

/// The supervisor, as operators see and use it. Neither call waits for a process.
pub(crate) trait AdapterControl: Send + Sync + 'static {
    /// Every adapter of the configuration, by name. One that is run elsewhere is `external`; whether it is there is not known
    /// here.
    fn list(&self) -> Vec<AdapterItem>;

    /// Has the adapter's process stopped and started anew.
    fn restart(&self, name: &str) -> Result<(), RestartError>;

    /// An adapter has opened its session.
    fn session_opened(&self, name: &str, epoch: u64, version: Option<&str>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RestartError {
    #[error("there is no such adapter")]
    NotFound,
    /// The gateway does not run it.
    #[error("the adapter is run elsewhere")]
    External,
}

/// One for all listeners, cloned for every request.
#[derive(Clone)]
pub(crate) struct AppState(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) store: Store,
    /// Swapped as a whole; each request takes one snapshot and keeps it.
    pub(crate) config: Arc<ArcSwap<Config>>,
    pub(crate) adapters: Arc<dyn AdapterControl>,
    pub(crate) listeners: Arc<listen::Counters>,
    /// Becomes true when the gateway stops: long polls end then.
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) tasks: Tasks,
    pub(crate) trail: AuditTrail,
    pub(crate) metrics: Metrics,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) open: OpenRequests,
    pub(crate) allowances: Allowances,
    /// When each principal is told that it is refused.
    pub(crate) holdback: Spaced<Actor>,
    pub(crate) request_ids: RequestIds,
    pub(crate) body_memory: BodyMemory,
    /// Apart from that of requests, so that slow readers do not keep anybody from sending.
    pub(crate) answer_memory: BodyMemory,
    pub(crate) consumers: Arc<Consumers>,
    pub(crate) calls: Calls,
    /// The user of this process, for people.
    pub(crate) runs_as: String,
}

impl Deref for AppState {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl AppState {
    /// `tasks` and `trail` are the composition root's: it awaits them when it stops.
    pub(crate) fn new(
        store: Store,
        config: Arc<ArcSwap<Config>>,
        adapters: Arc<dyn AdapterControl>,
        listeners: Arc<listen::Counters>,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let tasks = Tasks::default();
        let tokens = Arc::new(Tokens::open(&config.load().gateway.data_dir));
        Self(Arc::new(Shared {
            trail: AuditTrail::new(store.clone(), tasks.clone()),
            store,
            config,
            adapters,
            listeners,
            stop,
            tasks,
            metrics: Metrics::default(),
            tokens,
            open: OpenRequests::default(),
            allowances: Allowances::default(),
            holdback: holdback(),
            request_ids: RequestIds::new(),
            body_memory: BodyMemory::for_requests(),
            answer_memory: BodyMemory::for_answers(),
            consumers: Arc::default(),
            calls: Calls::default(),
            runs_as: RunningAs::now().to_string(),
        }))
    }

    /// Ends when the gateway is told to stop, or its composition root is gone.
    pub(crate) async fn stopped(&self) {
        let mut stop = self.stop.clone();
        // An error means that the sender is gone, which is a stop too.
        let _ = stop.wait_for(|stopped| *stopped).await;
    }

    /// Every adapter of the configuration, by name, and how it is.
    pub(crate) fn adapter_items(&self) -> Vec<AdapterItem> {
        self.adapters.list().into_iter().map(|adapter| self.consumers.observed(adapter)).collect()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *self.stop.borrow()
    }
}
