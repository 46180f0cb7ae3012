//! Real sockets, a trivial application behind them.

mod limits;
mod pressure;
mod processes;
mod tls;
mod unix;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    routing::{get, post},
};
use http::StatusCode;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::UnixStream,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::config::{self, PeerFacts, UnixListen, Wanted};

/// Nothing here takes this long unless it hangs.
const HANG: Duration = Duration::from_secs(40);

/// Knows peers by uid or URI.
#[derive(Default)]
struct Gate {
    uids: Vec<u32>,
    uris: Vec<String>,
    /// And, if given, by the program only.
    exe: Option<PathBuf>,
    /// Most connections of everybody together.
    connections: Option<usize>,
}

impl Gate {
    fn of_this_user() -> Self {
        Self { uids: vec![nix::unistd::geteuid().as_raw()], ..Self::default() }
    }
}

impl PeerGate for Gate {
    fn may_match(&self, _: config::Serves, facts: &PeerFacts) -> bool {
        facts.uid.is_some_and(|uid| self.uids.contains(&uid)) && (self.exe.is_none() || facts.exe == self.exe)
            || facts.spiffe.as_ref().is_some_and(|uri| self.uris.contains(uri))
    }

    fn connections(&self, _: &Serves, _: &PeerFacts) -> Option<(String, usize)> {
        Some(("everybody".to_owned(), self.connections?))
    }

    fn wanted(&self, _: config::Serves) -> Wanted {
        Wanted { exe: self.exe.is_some(), cgroup: false }
    }
}

#[derive(Default)]
struct Recorded(Mutex<Vec<Refusal>>);

impl RefusalSink for Recorded {
    fn refused(&self, refusal: &Refusal) {
        self.0.lock().unwrap().push(refusal.clone());
    }
}

/// A running server.
struct Rig {
    server: Arc<Server>,
    counters: Arc<Counters>,
    refusals: Arc<Recorded>,
    /// Tells that `/hold` was entered; lets it go.
    held: Arc<Notify>,
    release: Arc<Notify>,
    stop: watch::Sender<bool>,
    serving: Vec<JoinHandle<()>>,
    directory: TempDir,
}

impl Rig {
    fn new(gate: Gate, limits: Limits) -> Self {
        let (held, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (counters, refusals) = (Arc::new(Counters::default()), Arc::new(Recorded::default()));
        let app = application(held.clone(), release.clone());
        let server = Server::new(app, Arc::new(gate), refusals.clone(), limits, counters.clone());
        let (stop, _) = watch::channel(false);
        let directory = tempfile::tempdir().unwrap();
        Self { server, counters, refusals, held, release, stop, serving: Vec::new(), directory }
    }

    fn serve(&mut self, listener: Listener) {
        self.serving.push(tokio::spawn(self.server.clone().serve(listener, self.stop.subscribe())));
    }

    /// Serves a Unix socket in the rig's directory.
    async fn serve_unix(&mut self, name: &str, serves: config::Serves) -> PathBuf {
        let path = self.directory.path().join(name);
        self.serve(Listener::bind(&listen_unix(&path, 0o660, serves)).await.unwrap());
        path
    }

    async fn stop(&mut self) {
        self.stop.send_replace(true);
        for serving in self.serving.drain(..) {
            timeout(HANG, serving).await.expect("the server did not stop").unwrap();
        }
    }

    fn refusals(&self) -> Vec<Refusal> {
        self.refusals.0.lock().unwrap().clone()
    }

    fn refusal_codes(&self) -> Vec<RefusalCode> {
        self.refusals().iter().map(|refusal| refusal.code).collect()
    }
}

fn listen_unix(path: &Path, mode: u32, serves: config::Serves) -> config::Listen {
    let at = UnixListen { path: path.to_owned(), mode, group: None };
    config::Listen { serves, at: config::ListenAt::Unix(at) }
}

fn application(held: Arc<Notify>, release: Arc<Notify>) -> Router {
    let hold = move || async move {
        held.notify_one();
        release.notified().await;
        "held to the end"
    };
    Router::new()
        .route("/who", get(who))
        .route("/hold", get(hold))
        .route("/panic", get(panics))
        .route("/big", get(|| async { vec![b'x'; 64 * 1024 * 1024] }))
        .route("/size", post(size))
}

async fn who(Extension(peer): Extension<Peer>) -> String {
    let serves = match &peer.serves {
        Serves::OneAdapter(name) => name.to_string(),
        other => other.as_str().to_owned(),
    };
    format!("{serves} {:?} {:?} {:?} {:?}", peer.facts.uid, peer.facts.groups, peer.facts.spiffe, peer.pid)
}

async fn panics() -> StatusCode {
    panic!("on purpose")
}

async fn size(body: Body) -> (StatusCode, String) {
    match axum::body::to_bytes(body, usize::MAX).await {
        Ok(bytes) => (StatusCode::OK, bytes.len().to_string()),
        Err(error) => {
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            while let Some(found) = cause {
                if let Some(BodyError::Stalled) = found.downcast_ref() {
                    return (StatusCode::REQUEST_TIMEOUT, "stalled".to_owned());
                }
                cause = found.source();
            }
            (StatusCode::BAD_REQUEST, error.to_string())
        }
    }
}

/// One answer, as far as tests look at it.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

fn parse(answer: &[u8]) -> Answer {
    let text = std::str::from_utf8(answer).expect("not text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("not an answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("no status");
    Answer { status, body: body.to_owned() }
}

/// Everything until the other end closes; a reset counts as closing.
async fn read_to_close<S: AsyncRead + Unpin>(stream: &mut S) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = timeout(HANG, stream.read_to_end(&mut answer)).await.expect("the connection was not closed");
    if let Err(error) = read {
        use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
        assert!(matches!(error.kind(), ConnectionReset | UnexpectedEof), "{error}");
    }
    answer
}

/// Sends `GET path` and reads until the other end closes.
async fn get_and_close<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, path: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    // A refused connection may be closed already; its answer is there all the same.
    let _ = stream.write_all(request.as_bytes()).await;
    let _ = stream.flush().await;
    parse(&read_to_close(stream).await)
}

async fn get_unix(socket: &Path, path: &str) -> Answer {
    get_and_close(&mut UnixStream::connect(socket).await.unwrap(), path).await
}

/// Waits for what another task brings about.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(HANG, poll).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

/// Whether this process can run a program as another user, and `curl` is there to be that program. Says so when it cannot.
fn can_be_another_user() -> bool {
    let able = nix::unistd::geteuid().is_root() && have("setpriv") && have("curl");
    if !able {
        skipped("needs root, setpriv and curl");
    }
    able
}

/// Says that a test could not test here what it is for: to everybody, and in the file that `scripts/test` prints and counts.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: {why}\n");
    // Not by `eprintln!`, which a passing test's capture would swallow.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(file) = std::env::var_os("GATEPOST_SKIPS") {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(file)
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }
}

fn have(program: &str) -> bool {
    std::process::Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// `curl` as another user, with one supplementary group.
async fn curl_as(uid: u32, group: u32, socket: &Path, path: &str) -> Answer {
    let output = tokio::process::Command::new("setpriv")
        .args(["--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--groups", &group.to_string()])
        .args(["curl", "--silent", "--include", "--max-time", "60", "--unix-socket"])
        .arg(socket)
        .arg(format!("http://x{path}"))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    parse(&output.stdout)
}
