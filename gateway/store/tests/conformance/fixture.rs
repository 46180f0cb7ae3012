//! A store in a temporary directory, and short ways to ask it for things.

use std::path::Path;
use std::time::Duration;

use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::principal::{
    Actor, ActorKind, OperatorPermit, OperatorRight, OperatorRights, TypePatterns,
};
use gatepost_core::{LeaseToken, Level, Outcome, QueuePolicy};
use gatepost_store::{
    Accept, AcceptError, Accepted, LeaseAnswer, LeaseRequest, Leased, Options, QueueKind, QueueSetup, Settle,
    SettleAnswer, SettleError, SettleItem, Store, StoreTask,
};
use tempfile::TempDir;

pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) task: StoreTask,
    pub(crate) dir: TempDir,
    queues: Vec<QueueSetup>,
}

pub(crate) fn queue(name: &str, policy: QueuePolicy) -> QueueSetup {
    QueueSetup { name: name.into(), kind: QueueKind::Adapter, policy }
}

pub(crate) fn options(dir: &Path) -> Options {
    Options {
        data_dir: dir.to_path_buf(),
        origin: "test-gateway".into(),
        dedup_window: Duration::from_secs(8 * 86_400),
        payload_retention: Duration::from_secs(30 * 86_400),
        adopt: None,
    }
}

impl Fixture {
    pub(crate) async fn new(queues: Vec<QueueSetup>) -> Self {
        Self::at(tempfile::tempdir().unwrap(), queues).await
    }

    async fn at(dir: TempDir, queues: Vec<QueueSetup>) -> Self {
        let (store, task) = gatepost_store::open(options(dir.path())).await.unwrap();
        store.queues_configure(queues.clone()).await.unwrap();
        Self { store, task, dir, queues }
    }

    /// Stops the store and opens it again.
    pub(crate) async fn restart(self) -> Self {
        let Self { store, task, dir, queues } = self;
        drop(store);
        task.stop().await;
        Self::at(dir, queues).await
    }

    pub(crate) async fn accept(&self, messages: Vec<NewMessage>) -> Result<Vec<Accepted>, AcceptError> {
        let permit = TypePatterns::new(["*"]).permit(&app(), "t").unwrap();
        self.store.message_accept(Accept { permit, session: None, messages }).await
    }

    pub(crate) async fn open_session(&self, adapter: &str) -> u64 {
        self.store.session_open(adapter.into(), None).await.unwrap().epoch
    }

    pub(crate) async fn lease(&self, queue: &str, session: u64, max: u32) -> Vec<Leased> {
        self.try_lease(queue, session, max).await.deliveries
    }

    pub(crate) async fn try_lease(&self, queue: &str, session: u64, max: u32) -> LeaseAnswer {
        let request = LeaseRequest {
            consumer: Actor::new(ActorKind::Adapter, queue),
            queue: queue.into(),
            max,
            max_bytes: u64::MAX,
            lease: Duration::from_secs(30),
            request_id: None,
            session: Some(session),
        };
        self.store.delivery_lease(request).await.unwrap()
    }

    pub(crate) async fn settle(
        &self,
        queue: &str,
        session: u64,
        leased: &Leased,
        outcome: Outcome,
    ) -> Result<SettleAnswer, SettleError> {
        self.settle_token(queue, session, leased, leased.token, outcome).await
    }

    pub(crate) async fn settle_token(
        &self,
        queue: &str,
        session: u64,
        leased: &Leased,
        token: LeaseToken,
        outcome: Outcome,
    ) -> Result<SettleAnswer, SettleError> {
        let item = SettleItem {
            delivery: leased.delivery,
            token: Some(token),
            outcome,
            reason: None,
            evidence: None,
            reply: None,
        };
        self.store.delivery_settle(settle(queue, session, vec![item])).await
    }
}

pub(crate) fn settle(queue: &str, session: u64, items: Vec<SettleItem>) -> Settle {
    Settle {
        consumer: Actor::new(ActorKind::Adapter, queue),
        queues: vec![queue.into()],
        session: Some(session),
        items,
        emit: Vec::new(),
        state: Vec::new(),
        atomic: false,
    }
}

pub(crate) fn app() -> Actor {
    Actor::new(ActorKind::App, "ehr")
}

pub(crate) fn operator() -> OperatorPermit {
    let operator = Actor::new(ActorKind::Operator, "ops");
    OperatorRights::new(vec![OperatorRight::Operate]).permit(&operator, OperatorRight::Operate).unwrap()
}

pub(crate) fn message(id: &str, key: Option<&str>, data: &str, destinations: &[&str]) -> NewMessage {
    NewMessage {
        kind: "t".into(),
        source: "/test".into(),
        subject: None,
        partition_key: key.map(Into::into),
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

pub(crate) const DELIVERED: Outcome = Outcome::Delivered { level: Level::Transport };
