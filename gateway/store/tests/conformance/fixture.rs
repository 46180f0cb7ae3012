//! A store in a temporary directory, and short ways to ask it for things. Everything that is particular to one backend's
//! opening, stopping and killing is here.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::policy::BacklogLimit;
use gatepost_core::principal::{
    Actor, ActorKind, OperatorPermit, OperatorRight, OperatorRights, TypePatterns,
};
use gatepost_core::{
    DeliveryId, LeaseToken, Level, OnDoubt, Order, Outcome, QueuePolicy, Resolution, RetryPolicy, RetryScope,
};
use gatepost_store::{
    Accept, AcceptError, Accepted, Adopt, Database, DeliveryRow, Emit, Encryption, LeaseAnswer, LeaseError,
    LeaseRequest, Leased, OpenError, OperateError, Options, QueueKind, QueueSetup, QueueStats, Sessions,
    Settle, SettleAnswer, SettleError, SettleItem, Store, StoreTask, Verb,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longest that anything which time alone brings about may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long there is for what a test must have done before time is over: who is held up for longer tries again with the next.
const SPANS: [Duration; 4] =
    [Duration::from_millis(700), Duration::from_secs(3), Duration::from_secs(12), Duration::from_secs(50)];

/// A data directory and what it is opened with; the store itself may be open or not.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) dir: Arc<TempDir>,
    pub(crate) database: Database,
    pub(crate) queues: Vec<QueueSetup>,
    pub(crate) dedup_window: Duration,
    pub(crate) payload_retention: Duration,
    pub(crate) encryption: Encryption,
    pub(crate) adopt: bool,
}

/// An open store. Its tasks run in a runtime of their own, so that they can be killed.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) place: Place,
    task: Option<StoreTask>,
    runtime: Option<Runtime>,
}

impl Place {
    pub(crate) fn new(queues: Vec<QueueSetup>) -> Self {
        Self {
            dir: Arc::new(tempfile::tempdir().unwrap()),
            database: crate::database(),
            queues,
            dedup_window: Duration::from_secs(8 * 86_400),
            payload_retention: Duration::from_secs(30 * 86_400),
            encryption: Encryption::On,
            adopt: false,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            data_dir: self.path().to_path_buf(),
            database: self.database.clone(),
            origin: "test-gateway".into(),
            dedup_window: self.dedup_window,
            payload_retention: self.payload_retention,
            // So that keys are moved into their index all the time.
            encryption: self.encryption,
            seal_keys: Default::default(),
            keys_in_memory: 2,
            adopt: self.adopt.then(|| Adopt { operator: "ops".into(), reason: "sha256:00".into() }),
        }
    }

    pub(crate) async fn open(&self) -> Result<Fixture, OpenError> {
        let fixture = self.open_unconfigured().await?;
        fixture.store.queues_configure(with_senders(&self.queues)).await.unwrap();
        Ok(fixture)
    }

    pub(crate) async fn open_unconfigured(&self) -> Result<Fixture, OpenError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let opened = runtime.spawn(gatepost_store::open(self.options())).await.unwrap();
        let (store, task) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        Ok(Fixture { store, place: self.clone(), task: Some(task), runtime: Some(runtime) })
    }

    /// The error of an open that must be refused.
    pub(crate) async fn refusal(&self) -> OpenError {
        match self.open().await {
            Ok(_) => panic!("the store opened"),
            Err(error) => error,
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Fixture {
    pub(crate) async fn new(queues: Vec<QueueSetup>) -> Self {
        Place::new(queues).open().await.unwrap()
    }

    /// Stops the store in good order.
    pub(crate) async fn stop(mut self) -> Place {
        if let Some(task) = self.task.take() {
            task.stop().await;
        }
        self.place.clone()
    }

    /// Kills the store where it stands, as a power cut would: its tasks never run again.
    pub(crate) async fn crash(mut self) -> Place {
        if let Some(runtime) = self.runtime.take() {
            tokio::task::spawn_blocking(move || runtime.shutdown_timeout(PATIENCE)).await.unwrap();
        }
        drop(self.task.take());
        self.place.clone()
    }

    pub(crate) async fn restart(self) -> Self {
        self.stop().await.open().await.unwrap()
    }

    pub(crate) async fn configure(&mut self, queues: Vec<QueueSetup>) {
        self.place.queues.clone_from(&queues);
        self.store.queues_configure(with_senders(&queues)).await.unwrap();
    }

    // === accept ===

    pub(crate) async fn accept(&self, messages: Vec<NewMessage>) -> Result<Vec<Accepted>, AcceptError> {
        self.accept_from(&app(), messages).await
    }

    pub(crate) async fn accept_from(
        &self,
        sender: &Actor,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Accepted>, AcceptError> {
        self.store.message_accept(accept_of(sender, messages)).await
    }

    /// Accepts one message for one destination.
    pub(crate) async fn send(&self, id: &str, key: Option<&str>, destination: &str) -> DeliveryId {
        let accepted = self.accept(vec![message(id, key, id, &[destination])]).await.unwrap();
        assert!(!accepted[0].duplicate, "{id}");
        accepted[0].deliveries[0].id
    }

    /// … and one that is ordered by two keys.
    pub(crate) async fn merge(&self, id: &str, keys: [&str; 2], destination: &str) -> DeliveryId {
        let accepted = self.accept(vec![merge(id, keys, &[destination])]).await.unwrap();
        accepted[0].deliveries[0].id
    }

    // === lease ===

    pub(crate) async fn session(&self, adapter: &str) -> u64 {
        self.store.session_open(adapter.into(), None).await.unwrap().epoch
    }

    pub(crate) fn request(&self, queue: &str, session: u64, max: u32) -> LeaseRequest {
        LeaseRequest {
            consumer: self.consumer(queue),
            queue: queue.into(),
            max,
            max_bytes: u64::MAX,
            lease: Duration::from_secs(30),
            request_id: None,
            session: (session > 0).then_some(session),
        }
    }

    pub(crate) async fn lease(&self, queue: &str, session: u64, max: u32) -> Vec<Leased> {
        self.try_lease(self.request(queue, session, max)).await.unwrap().deliveries
    }

    pub(crate) async fn lease_one(&self, queue: &str, session: u64) -> Leased {
        let mut leased = self.lease(queue, session, 1).await;
        assert_eq!(leased.len(), 1, "nothing to lease in {queue}");
        leased.remove(0)
    }

    /// Leases as soon as time lets something be leased.
    pub(crate) async fn lease_in_time(&self, queue: &str, session: u64, max: u32) -> Vec<Leased> {
        let started = Instant::now();
        loop {
            let leased = self.lease(queue, session, max).await;
            if !leased.is_empty() {
                return leased;
            }
            assert!(started.elapsed() < PATIENCE, "{queue} gave nothing for {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn try_lease(&self, request: LeaseRequest) -> Result<LeaseAnswer, LeaseError> {
        self.store.delivery_lease(request).await
    }

    fn consumer(&self, queue: &str) -> Actor {
        let setup = self.place.queues.iter().find(|setup| setup.name == queue);
        match setup.map(|setup| setup.kind) {
            Some(QueueKind::Inbox) => app(),
            _ => Actor::new(ActorKind::Adapter, queue),
        }
    }

    // === settle ===

    pub(crate) fn settling(&self, queue: &str, session: u64, items: Vec<SettleItem>) -> Settle {
        Settle {
            consumer: self.consumer(queue),
            queues: vec![queue.into()],
            session: (session > 0).then_some(session),
            items,
            emit: Vec::new(),
            state: Vec::new(),
            atomic: false,
        }
    }

    pub(crate) async fn settle(
        &self,
        queue: &str,
        session: u64,
        leased: &Leased,
        outcome: Outcome,
    ) -> Result<SettleAnswer, SettleError> {
        let settle = self.settling(queue, session, vec![item(leased, outcome)]);
        self.store.delivery_settle(settle).await
    }

    /// Settles what must be taken; the state it leads to.
    pub(crate) async fn taken(
        &self,
        queue: &str,
        session: u64,
        leased: &Leased,
        outcome: Outcome,
    ) -> &'static str {
        let answer = self.settle(queue, session, leased, outcome).await.unwrap();
        assert!(answer.items[0].ok, "{outcome:?} was not taken: {:?}", answer.items[0]);
        answer.items[0].state
    }

    /// Settles what must be stale; the state that stays.
    pub(crate) async fn stale(
        &self,
        queue: &str,
        session: u64,
        leased: &Leased,
        outcome: Outcome,
    ) -> &'static str {
        let answer = self.settle(queue, session, leased, outcome).await.unwrap();
        assert!(!answer.items[0].ok, "{outcome:?} was taken: {:?}", answer.items[0]);
        answer.items[0].state
    }

    // === operators ===

    pub(crate) async fn operate(
        &self,
        delivery: DeliveryId,
        verb: Verb,
    ) -> Result<DeliveryRow, OperateError> {
        self.store.delivery_operate(&operator(), delivery, verb, "because".into()).await
    }

    pub(crate) async fn resolve(&self, delivery: DeliveryId, resolution: Resolution) -> &'static str {
        self.operate(delivery, Verb::Resolve(resolution)).await.unwrap().state
    }

    // === reads ===

    pub(crate) async fn row(&self, delivery: DeliveryId) -> DeliveryRow {
        self.store.read().delivery(delivery).await.unwrap().unwrap()
    }

    pub(crate) async fn state(&self, delivery: DeliveryId) -> &'static str {
        self.row(delivery).await.state
    }

    pub(crate) async fn stats(&self, queue: &str) -> QueueStats {
        self.store.read().queue(queue).await.unwrap().unwrap().stats
    }

    /// Deliveries and bytes that a sender has handed in and that are not settled.
    pub(crate) fn backlog(&self, sender: &Actor) -> (u64, u64) {
        let senders = self.store.health().senders();
        let row = senders.into_iter().find(|row| row.sender == sender.to_string()).unwrap();
        (row.deliveries, row.bytes)
    }

    /// Events of a delivery's history, in order.
    pub(crate) async fn events(&self, delivery: DeliveryId) -> Vec<String> {
        let message = self.row(delivery).await.message;
        let detail = self.store.read().message_detail(message).await.unwrap().unwrap();
        detail.history.into_iter().filter(|step| step.delivery == delivery).map(|step| step.event).collect()
    }

    /// Leaves that have been committed.
    pub(crate) async fn leaves(&self) -> u64 {
        match &self.place.database {
            Database::Sqlite => self.store.health().audit_size(),
            Database::Postgres { .. } => crate::check::leaves(&self.place).await,
        }
    }

    /// Waits for what time brings about.
    pub(crate) async fn until_state(&self, delivery: DeliveryId, state: &str) {
        until(&format!("{delivery} is {state}"), async || self.state(delivery).await == state).await;
    }

    /// Waits until the newest checkpoint covers every leaf.
    pub(crate) async fn until_signed(&self) {
        let health = self.store.health();
        until("the checkpoint covers the log", async || health.checkpoint_size() == self.leaves().await)
            .await;
    }
}

/// Tries something that takes less than `span` where nothing holds it up; what it gives once it was done in time.
pub(crate) async fn in_time<T>(what: &str, attempt: impl AsyncFn(Duration) -> Option<T>) -> T {
    for span in SPANS {
        if let Some(done) = attempt(span).await {
            return done;
        }
    }
    panic!("not within {SPANS:?}: {what}");
}

/// Waits for a hint.
pub(crate) async fn hinted(told: impl Future<Output = ()>) {
    tokio::time::timeout(PATIENCE, told).await.expect("no hint came");
}

/// Waits for what time brings about.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !condition().await {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

// === queues ===

pub(crate) fn queue(name: &str, policy: QueuePolicy) -> QueueSetup {
    QueueSetup { name: name.into(), kind: QueueKind::Adapter, sessions: Sessions::One, policy }
}

/// Who hands in messages in these tests is counted, as a configuration has it.
fn with_senders(queues: &[QueueSetup]) -> Vec<QueueSetup> {
    let is_adapter =
        |queue: &&QueueSetup| matches!(queue.kind, QueueKind::Adapter | QueueKind::ExternalAdapter);
    let adapters = queues.iter().filter(is_adapter).map(|queue| Actor::new(ActorKind::Adapter, &queue.name));
    let mut all = queues.to_vec();
    for sender in adapters.chain([app()]) {
        if all.iter().all(|setup| setup.name != sender.to_string()) {
            all.push(QueueSetup::sender(&sender, None));
        }
    }
    all
}

/// A sender of which so many deliveries, and so many of their bytes, may be unsettled.
pub(crate) fn sender(sender: &Actor, messages: u64, bytes: u64) -> QueueSetup {
    QueueSetup::sender(sender, Some(BacklogLimit { messages, bytes }))
}

pub(crate) fn external(name: &str, policy: QueuePolicy) -> QueueSetup {
    QueueSetup { name: name.into(), kind: QueueKind::ExternalAdapter, sessions: Sessions::One, policy }
}

pub(crate) fn inbox(name: &str, policy: QueuePolicy) -> QueueSetup {
    let policy = QueuePolicy { confirm: None, ..policy };
    QueueSetup { name: name.into(), kind: QueueKind::Inbox, sessions: Sessions::One, policy }
}

/// Retries as fast as the floor allows, three times.
pub(crate) fn quick() -> QueuePolicy {
    let retry = RetryPolicy {
        initial: Duration::ZERO,
        max: Duration::ZERO,
        attempts: 3,
        give_up_after: Duration::from_secs(3600),
    };
    QueuePolicy { retry, ..QueuePolicy::default() }
}

pub(crate) fn keyed() -> QueuePolicy {
    QueuePolicy { order: Order::Key, ..quick() }
}

pub(crate) fn doubting(on_doubt: OnDoubt) -> QueuePolicy {
    QueuePolicy { on_doubt, ..keyed() }
}

// === people ===

pub(crate) fn app() -> Actor {
    Actor::new(ActorKind::App, "ehr")
}

pub(crate) fn operator() -> OperatorPermit {
    let operator = Actor::new(ActorKind::Operator, "ops");
    OperatorRights::new(vec![OperatorRight::Operate]).permit(&operator, OperatorRight::Operate).unwrap()
}

pub(crate) fn accept_of(sender: &Actor, messages: Vec<NewMessage>) -> Accept {
    let permit = TypePatterns::new(["*"]).permit(sender, "t").unwrap();
    Accept { permit, session: None, messages }
}

// === messages and outcomes ===

pub(crate) fn message(id: &str, key: Option<&str>, data: &str, destinations: &[&str]) -> NewMessage {
    NewMessage {
        kind: "t".into(),
        source: "/test".into(),
        subject: None,
        partition_key: key.map(Into::into),
        barrier_key: None,
        datacontenttype: Some("text/plain".into()),
        correlation_id: None,
        expires_at: None,
        attributes: format!(r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t"}}"#)
            .into_bytes(),
        form: DataForm::Text,
        data: data.as_bytes().to_vec(),
        idempotency_key: id.into(),
        destinations: destinations.iter().map(|&name| name.into()).collect(),
    }
}

/// A message that is ordered by two keys, as a merge of two patients is.
pub(crate) fn merge(id: &str, [key, other]: [&str; 2], destinations: &[&str]) -> NewMessage {
    let attributes = format!(
        r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t","partitionkey":"{key}","barrierkey":"{other}"}}"#
    );
    NewMessage {
        barrier_key: Some(other.into()),
        attributes: attributes.into_bytes(),
        ..message(id, Some(key), id, destinations)
    }
}

pub(crate) fn emit(id: &str, destinations: &[&str]) -> Emit {
    Emit { message: message(id, None, id, destinations), dead: None }
}

pub(crate) fn item(leased: &Leased, outcome: Outcome) -> SettleItem {
    item_of(leased.delivery, leased.token, outcome)
}

pub(crate) fn item_of(delivery: DeliveryId, token: LeaseToken, outcome: Outcome) -> SettleItem {
    SettleItem { delivery, token: Some(token), outcome, reason: None, evidence: None, reply: None }
}

/// The payload of a leased message; in these tests a text.
pub(crate) fn text(leased: &Leased) -> String {
    String::from_utf8(leased.message.data.as_deref().unwrap().to_vec()).unwrap()
}

pub(crate) fn texts(leased: &[Leased]) -> Vec<String> {
    leased.iter().map(text).collect()
}

pub(crate) const BEGIN: Outcome = Outcome::Begin;
pub(crate) const DELIVERED: Outcome = Outcome::Delivered { level: Level::Transport };
pub(crate) const RETRY: Outcome = Outcome::Retry { after: None, scope: RetryScope::Message };
/// Later than any test lasts.
pub(crate) const RETRY_LATER: Outcome =
    Outcome::Retry { after: Some(Duration::from_secs(3600)), scope: RetryScope::Message };
pub(crate) const TROUBLE: Outcome = Outcome::Retry { after: None, scope: RetryScope::Destination };
pub(crate) const AWAY: Outcome =
    Outcome::Retry { after: Some(Duration::from_secs(600)), scope: RetryScope::Lane };
pub(crate) const SENT: Outcome = Outcome::Sent { within: Duration::from_secs(3600) };
