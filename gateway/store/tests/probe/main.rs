//! What a gateway finds out about the PostgreSQL server that it is given, on throw-away servers that are set up wrong.

mod holders;
mod quorum;
mod refused;
mod tls;

use std::time::{Duration, Instant};

use gatepost_core::QueuePolicy;
use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::principal::{Actor, ActorKind, TypePatterns};
use gatepost_postgres::Cluster;
use gatepost_store::{
    Accept, AcceptError, Database, Engines, OpenError, Options, QueueKind, QueueSetup, ServerLook, Store,
    StoreTask, server_look,
};
use tempfile::TempDir;

const DATABASE: &str = "gp";
/// Longest that anything which time alone brings about may take.
const PATIENCE: Duration = Duration::from_secs(60);

fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start(settings).expect("a PostgreSQL server for the tests");
    cluster.create_database(DATABASE).unwrap();
    cluster
}

async fn look(url: &str) -> ServerLook {
    server_look(url, Engines::Postgres).await.unwrap()
}

/// Opens a store in a directory of its own.
async fn open(dir: &TempDir, url: &str) -> Result<(Store, StoreTask), OpenError> {
    let options = Options {
        data_dir: dir.path().join("data"),
        database: Database::Postgres {
            url: url.to_owned(),
            node: "node-1".to_owned(),
            engines: Engines::Postgres,
        },
        origin: "test-gateway".into(),
        dedup_window: Duration::from_secs(8 * 86_400),
        payload_retention: Duration::from_secs(30 * 86_400),
        encryption: gatepost_store::Encryption::On,
        seal_keys: Default::default(),
        keys_in_memory: 2,
        adopt: None,
    };
    let (store, task) = gatepost_store::open(options).await?;
    let lab = QueueSetup {
        name: "lab".into(),
        kind: QueueKind::Adapter,
        sessions: Default::default(),
        policy: QueuePolicy::default(),
    };
    store.queues_configure(vec![lab]).await.unwrap();
    Ok((store, task))
}

async fn refusal(url: &str) -> String {
    match open(&tempfile::tempdir().unwrap(), url).await {
        Ok(_) => panic!("the store opened"),
        Err(error) => error.to_string(),
    }
}

async fn send(store: &Store, id: &str) -> Result<(), AcceptError> {
    let permit = TypePatterns::new(["*"]).permit(&Actor::new(ActorKind::App, "ehr"), "t").unwrap();
    let message = NewMessage {
        kind: "t".into(),
        source: "/test".into(),
        subject: None,
        partition_key: None,
        barrier_key: None,
        datacontenttype: Some("text/plain".into()),
        correlation_id: None,
        expires_at: None,
        attributes: format!(r#"{{"specversion":"1.0","id":"{id}","source":"/test","type":"t"}}"#)
            .into_bytes(),
        form: DataForm::Text,
        data: b"x".to_vec(),
        idempotency_key: id.into(),
        destinations: vec!["lab".into()],
    };
    store.message_accept(Accept { permit, session: None, messages: vec![message] }).await.map(drop)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
