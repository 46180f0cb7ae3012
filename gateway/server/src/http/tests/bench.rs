//! One API with its store, and requests to it from peers of every kind.

use std::path::Path;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use gatepost_api::lists::AdapterItem;
use gatepost_store::{Store, StoreTask};
use http_body_util::BodyExt as _;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::config::{Config, PeerFacts};
use crate::http::{AdapterControl, AppState, RestartError, router};
use crate::listen::{ConnectionId, Counters, Peer, Serves};
use crate::supervise::queue_setups;

/// Two apps, an adapter that is run elsewhere, two operators.
const CONFIG: &str = r#"
[gateway]
name = "test"
data_dir = "data"
max_message = "2MiB"

[[listen]]
serves = "apps"
unix = "app.sock"
[[listen]]
serves = "adapters"
unix = "adapter.sock"
[[listen]]
serves = "operators"
unix = "admin.sock"

[apps.ehr]
user = "1001"
send = ["t.*", "failing"]
inbox = ["results"]
[apps.other]
user = "1002"
send = ["t.*"]
[apps.issued]
user = "1004"
token = true
send = ["t.*"]
[apps.greedy]
user = "1005"
send = ["t.*"]
limits = { rate = "1/m", burst = 10, bytes_in_flight = "256KiB", requests = 4 }
[apps.one]
user = "1003"
token_sha256 = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
[apps.two]
user = "1003"
token_sha256 = "fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9"

[adapters.lab]
user = "2001"
send = ["ack.*"]
[adapters.lab.settings]
connect = "lab:2575"
[adapters.careful]
user = "2002"
on_doubt = "hold"
confirm = "business"

[operators.ops]
user = "3001"
can = ["read", "operate", "read_payload", "audit"]
[operators.looker]
user = "3002"
can = ["read"]

[inboxes.results]

[[routes]]
from = "ehr"
when = 'type.startsWith("t.lab")'
to = ["lab"]
[[routes]]
from = "greedy"
to = ["lab"]
[[routes]]
from = "ehr"
when = 'type == "t.careful"'
to = ["careful"]
[[routes]]
from = "ehr"
when = 'type == "failing" && int(subject) > 3'
to = ["lab"]
[[routes]]
from = "lab"
when = 'type == "ack.ok"'
to = ["results"]
"#;

/// Adapters as the supervisor would show them.
#[derive(Default)]
pub(super) struct Adapters {
    pub(super) restarted: Mutex<Vec<String>>,
    pub(super) tripped: Mutex<bool>,
}

impl AdapterControl for Adapters {
    fn list(&self) -> Vec<AdapterItem> {
        let state = if *self.tripped.lock().unwrap() { "tripped" } else { "running" };
        let item = |name: &str| AdapterItem {
            name: name.into(),
            state: state.into(),
            pid: Some(7),
            version: None,
            restarts: 2,
            session_epoch: None,
            last_error: None,
            sandbox: None,
            started_at: None,
        };
        vec![item("lab"), AdapterItem { state: "external".into(), ..item("careful") }]
    }

    fn restart(&self, name: &str) -> Result<(), RestartError> {
        self.restarted.lock().unwrap().push(name.into());
        Ok(())
    }

    fn session_opened(&self, _name: &str, _epoch: u64, _version: Option<&str>) {}
}

pub(super) struct Bench {
    pub(super) state: AppState,
    pub(super) adapters: Arc<Adapters>,
    pub(super) stop: watch::Sender<bool>,
    router: Router,
    task: StoreTask,
    dir: TempDir,
}

/// An answer, read whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The problem's code; panics if it is none or badly shaped.
    pub(super) fn code(&self) -> String {
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert_eq!(problem["request_id"], self.headers["x-request-id"].to_str().unwrap());
        problem["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(super) fn ok(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert!(self.headers.contains_key("x-request-id"));
        self
    }
}

/// One request being put together.
pub(super) struct Call<'a> {
    bench: &'a Bench,
    request: axum::http::request::Builder,
    body: Body,
}

impl Call<'_> {
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Body>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn json(self, body: &Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    pub(super) async fn send(self) -> Answer {
        let request = self.request.body(self.body).unwrap();
        let response = TowerToHyperService::new(self.bench.router.clone()).call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status: head.status, headers: head.headers, text }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Who {
    Ehr,
    Other,
    Lab,
    Careful,
    Ops,
    Looker,
    /// A user on the apps' socket.
    User(u32),
    /// … and its group.
    InGroup(u32, u32),
}

impl Who {
    fn peer(self) -> Peer {
        let (serves, uid) = match self {
            Self::Ehr => (Serves::Apps, 1001),
            Self::Other => (Serves::Apps, 1002),
            Self::Lab => (Serves::Adapters, 2001),
            Self::Careful => (Serves::Adapters, 2002),
            Self::Ops => (Serves::Operators, 3001),
            Self::Looker => (Serves::Operators, 3002),
            Self::User(uid) | Self::InGroup(uid, _) => (Serves::Apps, uid),
        };
        let gid = if let Self::InGroup(_, gid) = self { Some(gid) } else { None };
        let facts = Arc::new(PeerFacts { uid: Some(uid), gid, ..PeerFacts::default() });
        Peer { serves, facts, connection: ConnectionId(1), pid: None }
    }
}

impl Bench {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = parse(CONFIG, dir.path());
        let (store, task) = open(&dir.path().join("data"), &config).await;
        let adapters = Arc::new(Adapters::default());
        let (stop, stopped) = watch::channel(false);
        let state = AppState::new(
            store,
            Arc::new(ArcSwap::from_pointee(config)),
            Arc::clone(&adapters) as Arc<dyn AdapterControl>,
            Arc::new(Counters::default()),
            stopped,
        );
        Self { router: router(state.clone()), state, adapters, stop, task, dir }
    }

    pub(super) fn data_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Puts another configuration into force, made from the usual one.
    pub(super) fn reconfigure(&self, change: impl Fn(&str) -> String) {
        let text = change(CONFIG);
        assert_ne!(text, CONFIG);
        self.state.config.store(Arc::new(parse(&text, self.dir.path())));
    }

    /// Stops the store cleanly, so that what it says at its end is heard.
    pub(super) async fn end(self) {
        self.state.tasks.drained().await;
        drop(self.router);
        drop(self.state);
        self.task.stop().await;
    }

    pub(super) fn call(&self, who: Who, method: Method, path: &str) -> Call<'_> {
        let request = Request::builder().method(method).uri(path).extension(who.peer());
        Call { bench: self, request, body: Body::empty() }
    }

    pub(super) fn get(&self, who: Who, path: &str) -> Call<'_> {
        self.call(who, Method::GET, path)
    }

    pub(super) fn post(&self, who: Who, path: &str) -> Call<'_> {
        self.call(who, Method::POST, path)
    }

    /// A request that the listener forgot to mark.
    pub(super) fn anonymous(&self, path: &str) -> Call<'_> {
        Call { bench: self, request: Request::builder().uri(path), body: Body::empty() }
    }

    pub(super) fn event(&self, who: Who, event: &Value) -> Call<'_> {
        self.post(who, "/v1/messages")
            .header("content-type", "application/cloudevents+json")
            .body(event.to_string())
    }

    /// Has the EHR send an event of this type; gives the message and its first delivery.
    pub(super) async fn sent(&self, id: &str, kind: &str) -> (String, String) {
        let answer = self.event(Who::Ehr, &event(id, kind)).send().await.ok(202).json();
        let message = &answer["messages"][0];
        (text(&message["id"]), text(&message["deliveries"][0]["id"]))
    }

    /// Opens an adapter's session.
    pub(super) async fn session(&self, who: Who) -> u64 {
        let answer = self.post(who, "/v1/session").json(&json!({"version": "1"})).send().await.ok(200);
        answer.json()["epoch"].as_u64().unwrap()
    }

    pub(super) async fn lease(&self, who: Who, queue: &str, request: Value) -> Value {
        let path = format!("/v1/queues/{queue}/lease");
        self.post(who, &path).json(&request).send().await.ok(200).json()["deliveries"].clone()
    }

    pub(super) async fn settle(&self, who: Who, request: Value) -> Answer {
        self.post(who, "/v1/settle").json(&request).send().await
    }

    /// The audit log's leaves of one kind, as JSON.
    pub(super) async fn leaves(&self, event: &str) -> Vec<Value> {
        self.state.tasks.drained().await;
        self.leaves_so_far(event).await
    }

    /// Likewise, while requests are open.
    pub(super) async fn leaves_so_far(&self, event: &str) -> Vec<Value> {
        let reader = self.state.store.read();
        let mut leaves = Vec::new();
        for index in 0..self.state.store.health().audit_size() {
            let leaf: Value = serde_json::from_slice(&reader.entry(index).await.unwrap()).unwrap();
            if leaf["event"] == event {
                leaves.push(leaf);
            }
        }
        leaves
    }
}

fn parse(text: &str, directory: &Path) -> Config {
    Config::parse(text, &directory.join("gatepost.toml"))
        .unwrap_or_else(|faults| panic!("{:?}", faults.iter().map(|fault| &fault.text).collect::<Vec<_>>()))
}

async fn open(data_dir: &Path, config: &Config) -> (Store, StoreTask) {
    let options = gatepost_store::Options {
        data_dir: data_dir.to_owned(),
        origin: "test".into(),
        dedup_window: config.gateway.dedup_window,
        payload_retention: config.gateway.retention,
        database: gatepost_store::Database::Sqlite,
        encryption: gatepost_store::Encryption::On,
        seal_keys: Default::default(),
        keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
        adopt: None,
    };
    let (store, task) = gatepost_store::open(options).await.unwrap();
    store.queues_configure(queue_setups(config)).await.unwrap();
    (store, task)
}

pub(super) fn event(id: &str, kind: &str) -> Value {
    json!({"specversion": "1.0", "id": id, "source": "/ehr", "type": kind, "data": {"n": 1}})
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string")).to_owned()
}

/// A value that must never turn up in an error, a log or a metric.
pub(super) const CANARY: &str = "canary-4711";
