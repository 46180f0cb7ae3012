//! Supervision with real processes, real sockets and a real store. The adapters are small scripts.

mod asking;
mod manifest;
mod poison;
mod process;
mod reload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use gatepost_core::principal::ActorKind;
use gatepost_store::{Options, StoreTask};
use tempfile::TempDir;
use tokio::time::timeout;

use super::actor::Deadlines;
use super::manifest::Manifest;
use super::reload::{ConfigStatus, ReloadError};
use super::sandbox::{Outcome, Owner, Report};
use super::*;
use crate::config::{self, PeerFacts};
use crate::http::{self, AppState};
use crate::listen::{Counters, Limits, PeerGate, Refusal, RefusalSink, Server};

/// Longer than any test should take; what takes longer hangs.
const HANG: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// For tests that wait until these have passed.
const SHORT: Deadlines = Deadlines { drain: Duration::from_millis(300), steady: Duration::from_millis(200) };

/// What every Python adapter begins with.
const PRELUDE: &str = r#"#!/usr/bin/env python3
import http.client, json, os, signal, socket, sys, time
class Gateway(http.client.HTTPConnection):
    def __init__(self):
        super().__init__("gateway")
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(os.environ["GATEPOST_SOCKET"])
    def call(self, path, body={}):
        self.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        if answer.status != 200:
            sys.exit(f"{path}: {answer.status}")
        return json.loads(text)
here = os.path.dirname(os.path.abspath(__file__))
gateway = Gateway()
def open_session():
    return gateway.call("/v1/session", {"version": "1.2.3"})["epoch"]
"#;

/// The body of an adapter that opens its session and waits for its end.
const WORKS: &str = "open_session()\nsignal.pause()\n";

struct Nobody;

impl PeerGate for Nobody {
    fn may_match(&self, _: config::Serves, _: &PeerFacts) -> bool {
        false
    }
}

impl RefusalSink for Nobody {
    fn refused(&self, _: &Refusal) {}
}

struct Rig {
    supervisor: Supervisor,
    store: Store,
    task: StoreTask,
    directory: TempDir,
    config: Arc<ArcSwap<Config>>,
    stop: watch::Sender<bool>,
}

impl Rig {
    async fn new(deadlines: Deadlines) -> Self {
        Self::through(shell_exec(), deadlines).await
    }

    async fn through(adapter_exec: Launcher, deadlines: Deadlines) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, task) = gatepost_store::open(Options {
            data_dir: directory.path().join("data"),
            origin: "test".into(),
            dedup_window: DAY,
            payload_retention: DAY,
            database: gatepost_store::Database::Sqlite,
            encryption: gatepost_store::Encryption::On,
            seal_keys: Default::default(),
            keys_in_memory: gatepost_store::KEYS_IN_MEMORY,
            adopt: None,
        })
        .await
        .unwrap();
        let means = Means { store: store.clone(), launcher: adapter_exec, gateway: gateway() };
        let supervisor = Supervisor::with_deadlines(means, deadlines);
        let empty =
            Config::parse(&config_text(directory.path(), ""), &directory.path().join("gatepost.toml"));
        let config = Arc::new(ArcSwap::from_pointee(empty.unwrap()));
        Self { supervisor, store, task, directory, config, stop: watch::Sender::new(false) }
    }

    /// A Python adapter in the rig's directory.
    fn script(&self, name: &str, body: &str) -> String {
        script(self.directory.path(), name, &format!("{PRELUDE}{body}"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, adapters: &str) -> Config {
        let file = self.file("gatepost.toml");
        Config::parse(&config_text(self.directory.path(), adapters), &file).unwrap()
    }

    async fn begin(&self, adapters: &str) {
        let config = self.put_in_force(adapters).await;
        self.supervisor.begin(self.sockets(), &config).await;
    }

    async fn apply(&self, adapters: &str) {
        let config = self.put_in_force(adapters).await;
        self.supervisor.apply(&config);
    }

    async fn put_in_force(&self, adapters: &str) -> Arc<Config> {
        let config = Arc::new(self.config(adapters));
        self.store.queues_configure(queue_setups(&config)).await.unwrap();
        self.config.store(Arc::clone(&config));
        config
    }

    fn sockets(&self) -> Sockets {
        let (nobody, counters) = (Arc::new(Nobody), Arc::new(Counters::default()));
        let (config, adapters) = (Arc::clone(&self.config), Arc::new(self.supervisor.clone()));
        let state =
            AppState::new(self.store.clone(), config, adapters, Arc::clone(&counters), self.stop.subscribe());
        let server = Server::new(http::router(state), nobody.clone(), nobody, Limits::default(), counters);
        Sockets { directory: self.file("run"), reachable: self.file("others"), server, spawner: None }
    }

    fn item(&self, name: &str) -> Option<AdapterItem> {
        self.supervisor.list().into_iter().find(|item| item.name == name)
    }

    async fn until_state(&self, name: &str, state: &str) -> AdapterItem {
        until(&format!("{name} is {state}"), async || self.item(name).filter(|item| item.state == state))
            .await
    }

    async fn tripped(&self, name: &str) -> Option<&'static str> {
        let row = self.store.read().queue(name).await.unwrap().unwrap();
        row.stats.tripped.map(|reason| reason.as_str())
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        timeout(HANG, self.supervisor.stop()).await.expect("the supervisor did not stop");
        self.task.stop().await;
    }
}

fn gateway() -> Actor {
    Actor::new(ActorKind::Gateway, "test")
}

/// A listener that nothing binds, and `adapters`.
fn config_text(directory: &Path, adapters: &str) -> String {
    let directory = directory.display();
    format!(
        "[gateway]\nname = \"test\"\ndata_dir = \"{directory}/data\"\n\
         [[listen]]\nserves = \"adapters\"\nunix = \"{directory}/adapters.sock\"\n{adapters}"
    )
}

fn script(directory: &Path, name: &str, text: &str) -> String {
    use std::os::unix::fs::PermissionsExt as _;
    let file = directory.join(name);
    // Another test's child may hold a file open that is being written, and such a file cannot be executed: so it is written elsewhere.
    let written = std::process::Command::new("/bin/sh")
        .args(["-c", "printf %s \"$2\" >\"$1\"", "sh"])
        .arg(&file)
        .arg(text)
        .status()
        .unwrap();
    assert!(written.success());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file.display().to_string()
}

/// Stands in for `gatepost adapter-exec` without limiting anything and without printing; the real one is tested in `exec`.
fn shell_exec() -> Launcher {
    let report = Report {
        level: config::Level::Off,
        uid: 0,
        owner: Owner::Shared,
        landlock: 0,
        seccomp: false,
        limits: Default::default(),
        missing: Vec::new(),
        unmet: Vec::new(),
        killed_before: 0,
    };
    // Before the words that are skipped.
    let report = Outcome::Reached(report).line();
    let skip = "report=$1; while [ \"$1\" != -- ]; do [ \"$1\" = --gated ] && gated=1; shift; done; shift; \
                [ -z \"$gated\" ] || read -r gate; printf %s \"$report\"; \
                if [ -n \"$gated\" ]; then exec \"$@\" </dev/null; else exec \"$@\"; fi";
    Launcher::through(["/bin/sh", "-c", skip, "sh", &report].map(Into::into).into()).unwrap()
}

async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let search = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANG, search).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}
