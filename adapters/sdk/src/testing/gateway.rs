//! A gateway that a test plays call by call, over a real socket.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gatepost_api::{Code, Problem};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::client::Client;
use crate::egress::SOCKET_NAME;
use crate::lifetime::{Ending, Lifetime};
use crate::session::Session;

/// One call of the adapter, waiting for its answer.
pub struct Call {
    pub path: String,
    pub headers: HeaderMap,
    pub body: Value,
    /// The body as it came.
    pub data: Bytes,
    answer: oneshot::Sender<Option<(StatusCode, Bytes)>>,
}

impl Call {
    pub fn answer(self, status: u16, body: &Value) {
        let body = serde_json::to_vec(body).unwrap();
        self.answer_bytes(status, body);
    }

    pub fn answer_bytes(self, status: u16, body: Vec<u8>) {
        let _ = self.answer.send(Some((StatusCode::from_u16(status).unwrap(), body.into())));
    }

    fn problem(self, code: Code) {
        let problem = Problem::new(code, "played", "r1");
        self.answer(code.status(), &serde_json::to_value(problem).unwrap());
    }

    /// Answers with the problem of this code.
    pub fn answer_problem(self, code: &str) {
        let known = Code::ALL.iter().find(|known| known.as_str() == code);
        self.problem(*known.unwrap());
    }

    /// Closes the connection in place of an answer.
    pub fn hang_up(self) {
        let _ = self.answer.send(None);
    }

    /// Answers a settle with the same status for each result.
    pub fn settled(self, status: &str) {
        let results: Vec<Value> = self.body["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| json!({"delivery": item["delivery"], "status": status, "state": "delivered"}))
            .collect();
        self.answer(200, &json!({ "results": results, "emitted": [] }));
    }

    /// Refuses an atomic settle: `status` and `state` of each result.
    pub fn refused(self, results: &[(&str, &str)]) {
        let items = self.body["results"].as_array().unwrap();
        let results = items.iter().zip(results).map(
            |(item, (status, state))| json!({"delivery": item["delivery"], "status": status, "state": state}),
        );
        let mut problem = serde_json::to_value(Problem::new(Code::SettleRefused, "played", "r1")).unwrap();
        problem["results"] = results.collect();
        self.answer(Code::SettleRefused.status(), &problem);
    }

    pub fn outcomes(&self) -> Vec<(&str, &str)> {
        let results = self.body["results"].as_array().unwrap();
        results
            .iter()
            .map(|item| (item["token"].as_str().unwrap(), item["outcome"].as_str().unwrap()))
            .collect()
    }
}

/// Longer than anything should take; what takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

const TEST_VERSION: &str = "9.9";

/// The gateway's side of one session.
pub struct Gateway {
    socket: PathBuf,
    listening: AbortHandle,
    sender: mpsc::UnboundedSender<Call>,
    connections: Connections,
    _dir: tempfile::TempDir,
    calls: mpsc::UnboundedReceiver<Call>,
    unread: VecDeque<Call>,
    lifetime: Lifetime,
}

impl Gateway {
    /// A gateway that listens and has no session yet.
    pub fn bind() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("gateway.sock");
        let (sender, calls) = mpsc::unbounded_channel();
        let listener = UnixListener::bind(&socket).unwrap();
        let connections = Connections::default();
        let listening = tokio::spawn(listen(listener, sender.clone(), connections.clone())).abort_handle();
        let (unread, lifetime) = (VecDeque::new(), Lifetime::new());
        Self { socket, calls, unread, lifetime, listening, sender, connections, _dir: dir }
    }

    /// A gateway with one open session. `changes` overwrites members of the session's answer.
    pub async fn open(changes: Value) -> (Self, Session) {
        let mut gateway = Self::bind();
        let client = Arc::new(Client::new(gateway.socket.clone()));
        let opening = tokio::spawn(Session::open(client, gateway.lifetime.clone(), TEST_VERSION));
        let version = gateway.open_session(changes).await;
        assert_eq!(version, TEST_VERSION);
        let (session, settings) = opening.await.unwrap().unwrap();
        assert_eq!(settings.get(), "{}");
        (gateway, session)
    }

    /// Answers the call that opens a session; gives the version that the adapter says it has.
    pub async fn open_session(&mut self, changes: Value) -> String {
        let call = self.next("/v1/session").await;
        let version = call.body["version"].as_str().unwrap().to_owned();
        let mut answer = json!({"epoch": 7, "name": "lab", "settings": {}, "state": {}, "on_doubt": "resend",
            "confirm": "transport", "window": 1, "max_in_flight": 256});
        extend(&mut answer, changes);
        call.answer(200, &answer);
        version
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where it connects its adapter to partners, from now on.
    pub fn desk(&self) -> Desk {
        Desk(UnixListener::bind(self.socket.with_file_name(SOCKET_NAME)).unwrap())
    }

    /// Is gone, as after a crash: no new connection reaches it.
    pub fn vanish(&self) {
        self.listening.abort();
        std::fs::remove_file(&self.socket).unwrap();
    }

    /// Listens again after it had vanished.
    pub fn come_back(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let listening = listen(listener, self.sender.clone(), self.connections.clone());
        self.listening = tokio::spawn(listening).abort_handle();
    }

    /// The next call to a path that ends like this; others wait for their turn.
    pub async fn next(&mut self, path_end: &str) -> Call {
        if let Some(at) = self.unread.iter().position(|call| call.path.ends_with(path_end)) {
            return self.unread.remove(at).unwrap();
        }
        loop {
            let call = self.calls.recv().await.unwrap();
            if call.path.ends_with(path_end) {
                return call;
            }
            self.unread.push_back(call);
        }
    }

    /// Most connections that it has had at a time.
    pub fn connections_most(&self) -> usize {
        self.connections.0.most.load(Ordering::SeqCst)
    }

    /// Asks the adapter to stop.
    pub fn drain(&self) {
        self.lifetime.drain();
    }

    /// Comes back when the adapter's session has been superseded.
    pub async fn superseded(&self) {
        assert_eq!(self.lifetime.ended().await, Ending::Superseded);
    }

    /// Answers the open lease call.
    pub async fn lease(&mut self, deliveries: &[Value]) -> Value {
        let call = self.next("/v1/queues/lab/lease").await;
        let body = call.body.clone();
        call.answer(200, &json!({ "deliveries": deliveries }));
        body
    }
}

/// The gateway's way out, which a test plays answer by answer.
pub struct Desk(UnixListener);

/// One request for a connection, waiting for its answer.
pub struct Asked {
    /// `host:port`
    pub to: String,
    stream: UnixStream,
}

impl Desk {
    pub async fn asked(&self) -> Asked {
        let accepted = timeout(HANG, self.0.accept()).await.expect("the adapter asks for no connection");
        let mut stream = BufReader::new(accepted.unwrap().0);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        Asked { to: line.trim_end().to_owned(), stream: stream.into_inner() }
    }
}

impl Asked {
    /// Hands out a connection to `partner`, whatever was asked for.
    pub async fn connect(self, partner: SocketAddr) {
        let socket = std::net::TcpStream::connect(partner).unwrap();
        self.stream.writable().await.unwrap();
        let passed = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&passed)));
        sendmsg(&self.stream, &[IoSlice::new(b"ok\n")], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    /// Answers without a connection.
    pub async fn answer(mut self, line: &str) {
        self.stream.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

/// How many there are, and the most that there have been.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Counts>);

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    most: AtomicUsize,
}

/// One that is open, until it is dropped.
struct Open(Connections);

impl Connections {
    fn one_more(&self) -> Open {
        let open = self.0.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(open, Ordering::SeqCst);
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) async fn listen(
    listener: UnixListener,
    calls: mpsc::UnboundedSender<Call>,
    connections: Connections,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let open = connections.one_more();
        let calls = calls.clone();
        let service = service_fn(move |request| relay(request, calls.clone()));
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            let _open = open;
            let _ = connection.await;
        });
    }
}

async fn relay(
    request: Request<Incoming>,
    calls: mpsc::UnboundedSender<Call>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let data = body.clone();
    // What is not JSON is an event's data in binary mode.
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (answer, answered) = oneshot::channel();
    let _ = calls.send(Call { path: head.uri.path().to_owned(), headers: head.headers, body, data, answer });
    match answered.await {
        Ok(Some((status, body))) => Ok(Response::builder().status(status).body(Full::new(body)).unwrap()),
        _ => Err(std::io::Error::other("hung up")),
    }
}

/// A leased delivery of a small text.
pub fn leased(number: u128, key: Option<&str>) -> Value {
    leased_event(number, key, "text/plain", json!({ "data": format!("payload {number}") }))
}

/// A leased delivery of a payload, given as the member `data` or `data_base64`.
pub fn leased_event(number: u128, key: Option<&str>, datacontenttype: &str, payload: Value) -> Value {
    let mut event = json!({"specversion": "1.0", "id": "e", "source": "/s", "type": "t",
        "datacontenttype": datacontenttype});
    extend(&mut event, payload);
    if let Some(key) = key {
        event["partitionkey"] = key.into();
    }
    json!({"id": Uuid::from_u128(number), "token": format!("t{number}"), "attempt": 1, "in_doubt": false,
        "lease_ms": 30_000, "event": event})
}

fn extend(object: &mut Value, members: Value) {
    if let (Value::Object(object), Value::Object(members)) = (object, members) {
        object.extend(members);
    }
}
