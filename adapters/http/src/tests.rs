//! Deliveries over real sockets, between a played gateway and a played endpoint.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use gatepost_adapter::testing::{Authority, Connection, Gateway, Partner, leased_event};
use gatepost_adapter::{Crew, Failure, Placement};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_rustls::rustls;

use crate::content::Content;
use crate::endpoint::Endpoint;
use crate::send::Sender;
use crate::settings::Settings;

struct Call {
    path: String,
    headers: HeaderMap,
    body: Bytes,
    answer: oneshot::Sender<Response<Full<Bytes>>>,
}

impl Call {
    fn answer(self, status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        self.answer.send(response.body(Full::new(body.into())).unwrap()).unwrap();
    }
}

struct Played {
    gateway: Gateway,
    at: String,
    calls: mpsc::UnboundedReceiver<Call>,
    _working: JoinHandle<Result<(), Failure>>,
}

impl Played {
    async fn new(settings: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().to_string();
        let (sender, calls) = mpsc::unbounded_channel();
        tokio::spawn(listen(listener, sender));
        let (gateway, working) = adapter(&format!("http://{at}/hook?token=s3cret"), settings).await;
        Self { gateway, at, calls, _working: working }
    }

    async fn lease(&mut self, number: u128) {
        self.gateway
            .lease(&[leased_event(number, None, "application/json", json!({"data": {"n": number}}))])
            .await;
    }

    async fn call(&mut self) -> Call {
        self.calls.recv().await.unwrap()
    }

    async fn settled(&mut self) -> Value {
        settled(&mut self.gateway).await
    }
}

async fn settled(gateway: &mut Gateway) -> Value {
    let call = gateway.next("/v1/settle").await;
    let result = call.body["results"][0].clone();
    call.settled("ok");
    result
}

async fn adapter(url: &str, changes: Value) -> (Gateway, JoinHandle<Result<(), Failure>>) {
    let mut settings = json!({ "url": url });
    settings.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    let settings: Settings = serde_json::from_value(settings).unwrap();
    let endpoint = Arc::new(Endpoint::new(settings).unwrap());
    let (gateway, session) = Gateway::open(json!({})).await;
    let crew = Crew { workers: 4, placement: Placement::Anywhere };
    let working =
        tokio::spawn(async move { session.work(crew, |_| Sender::new(Arc::clone(&endpoint))).await });
    (gateway, working)
}

async fn listen(listener: TcpListener, calls: mpsc::UnboundedSender<Call>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let calls = calls.clone();
        let service = service_fn(move |request| relay(request, calls.clone()));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn relay(
    request: Request<Incoming>,
    calls: mpsc::UnboundedSender<Call>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let (answer, answered) = oneshot::channel();
    let _ = calls.send(Call { path: head.uri.to_string(), headers: head.headers, body, answer });
    answered.await.map_err(|_| std::io::Error::other("hung up"))
}

#[tokio::test]
async fn a_delivery_is_a_signed_webhook_and_its_answer_the_reply() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let mut played =
        Played::new(json!({"secret_files": [secret], "headers": {"X-Tenant": "7", "User-Agent": "patient"}}))
            .await;
    let event = leased_event(1, Some("k"), "application/json; charset=utf-8", json!({"data": {"a": 1}}));
    played.gateway.lease(&[event]).await;
    let call = played.call().await;
    assert_eq!(call.path, "/hook?token=s3cret");
    assert_eq!(call.body, r#"{"a":1}"#);
    let header = |name: &str| call.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "application/json; charset=utf-8");
    assert_eq!((header("ce-type"), header("ce-partitionkey")), ("t".to_owned(), "k".to_owned()));
    assert_eq!(header("x-tenant"), "7");
    assert_eq!(header("host"), played.at);
    // What is usual, unless the settings say otherwise.
    assert_eq!((header("accept"), header("user-agent")), ("*/*".to_owned(), "patient".to_owned()));
    for unusual in ["accept-encoding", "referer", "te", "transfer-encoding"] {
        assert!(!call.headers.contains_key(unusual), "{unusual}");
    }
    assert_eq!(header("webhook-id"), "00000000-0000-0000-0000-000000000001");
    let secret = crate::signature::Secret::from_file(&secret).unwrap();
    let timestamp = header("webhook-timestamp").parse().unwrap();
    let signed = crate::signature::signatures(&[secret], &header("webhook-id"), timestamp, &call.body);
    assert_eq!(signed, Some(header("webhook-signature")));
    call.answer(201, &[("content-type", "application/json")], r#"{"ok" : true}"#);
    let result = played.settled().await;
    assert_eq!(result["outcome"], "delivered");
    assert_eq!(result["evidence"]["level"], "transport");
    assert_eq!(
        (&result["evidence"]["status"], &result["evidence"]["body_cut"]),
        (&json!(201), &json!(false))
    );
    assert_eq!(result["reply"], json!({"datacontenttype": "application/json", "data": {"ok": true}}));
}

#[tokio::test]
async fn statuses_become_outcomes() {
    let mut played = Played::new(json!({})).await;
    let table = [
        (204, "delivered", Value::Null),
        (302, "retry", json!("message")),
        (410, "reject", Value::Null),
        (422, "reject", Value::Null),
        (429, "retry", json!("destination")),
        (500, "retry", json!("message")),
    ];
    for (status, outcome, scope) in table {
        played.lease(1).await;
        // Following the redirect would call the endpoint a second time, and the next round would see that call.
        let headers = [("retry-after", "7"), ("location", "/elsewhere")];
        let call = played.call().await;
        assert_eq!(call.path, "/hook?token=s3cret", "after {status}");
        call.answer(status, &headers, "");
        let result = played.settled().await;
        assert_eq!((&result["outcome"], &result["scope"]), (&json!(outcome), &scope), "{status}");
        let after = if outcome == "retry" { json!(7000) } else { Value::Null };
        assert_eq!(result["after_ms"], after, "{status}");
    }
}

#[tokio::test]
async fn a_long_answer_is_cut_and_a_refusal_keeps_its_words() {
    let mut played = Played::new(json!({})).await;
    played.lease(1).await;
    let long = format!("\"{}\"", "x".repeat(30_000));
    played.call().await.answer(400, &[("content-type", "application/json")], long);
    let result = played.settled().await;
    assert_eq!(result["outcome"], "reject");
    assert_eq!(
        (&result["evidence"]["body_bytes"], &result["evidence"]["body_cut"]),
        (&json!(20_000), &json!(true))
    );
    assert!(result["reply"]["data"].is_null(), "half a JSON value passed as JSON");
    assert_eq!(result["reply"]["data_base64"].as_str().unwrap().len(), 20_000usize.div_ceil(3) * 4);
}

#[tokio::test]
async fn no_answer_after_sending_is_doubt() {
    let mut played = Played::new(json!({"timeout_ms": 200, "connect_timeout_ms": 100})).await;
    played.lease(1).await;
    let call = played.call().await;
    let result = played.settled().await;
    assert_eq!(result["outcome"], "in_doubt");
    drop(call);
    played.lease(2).await;
    // Hung up in place of an answer.
    drop(played.call().await);
    let result = played.settled().await;
    assert_eq!(result["outcome"], "in_doubt");
    assert!(!result.to_string().contains("s3cret"), "the URL's token stands in the reason");
}

/// Once it is connected, the patience for a connection is of no account; with a payload and without.
#[tokio::test]
async fn the_answer_is_awaited_no_longer_than_its_own_patience() {
    let mut played = Played::new(json!({"timeout_ms": 200, "connect_timeout_ms": 600_000})).await;
    for (number, payload) in [json!({"data": {"n": 1}}), json!({})].into_iter().enumerate() {
        played.gateway.lease(&[leased_event(number as u128, None, "application/json", payload)]).await;
        let call = played.call().await;
        assert!(call.headers.contains_key("content-length"), "{:?}", call.headers);
        let settled = tokio::time::timeout(Duration::from_secs(60), played.settled()).await;
        let result = settled.expect("it does not wait for what a connection may take");
        assert_eq!(
            (&result["outcome"], &result["reason"]),
            (&json!("in_doubt"), &json!("no answer within 200 ms"))
        );
    }
}

/// A request whose body comes with its length.
fn requests(buffer: &mut BytesMut) -> Option<Bytes> {
    let head = buffer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&buffer[..head]).unwrap().to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let end = head + length.parse::<usize>().unwrap();
    (buffer.len() >= end).then(|| buffer.split_to(end).freeze())
}

/// An endpoint that is played byte by byte, and the adapter for it.
async fn byte_by_byte(settings: Value) -> (Partner, Gateway, JoinHandle<Result<(), Failure>>) {
    let endpoint = Partner::listen().await.framed(requests);
    let (gateway, working) = adapter(&format!("http://{}/", endpoint.address()), settings).await;
    (endpoint, gateway, working)
}

async fn lease(gateway: &mut Gateway, number: u128) {
    gateway.lease(&[leased_event(number, None, "application/json", json!({"data": 1}))]).await;
}

#[tokio::test]
async fn a_body_that_never_ends_does_not_take_the_status_back() {
    let (endpoint, mut gateway, _working) = byte_by_byte(json!({"timeout_ms": 2000})).await;
    lease(&mut gateway, 1).await;
    let mut connection = endpoint.accept().await;
    connection.send("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\nhalf").await;
    let result = settled(&mut gateway).await;
    assert_eq!(result["outcome"], "delivered");
    assert_eq!(result["evidence"]["body_cut"], true);
}

/// The second delivery does not go out by what is left of the first one's connection, nor is it in doubt for that.
#[tokio::test]
async fn a_kept_connection_that_the_endpoint_has_closed_is_no_attempt() {
    let (endpoint, mut gateway, _working) = byte_by_byte(json!({})).await;
    for number in 1..=3 {
        lease(&mut gateway, number).await;
        let mut connection = endpoint.accept().await;
        connection.frame().await;
        connection.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let result = settled(&mut gateway).await;
        assert_eq!(result["outcome"], "delivered", "{number}: {result}");
        connection.hang_up();
    }
}

/// That it has ended is seen before anything of the request is written, but not before the request was handed to it.
#[tokio::test]
async fn a_kept_connection_that_ends_just_then_is_no_attempt_either() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (wakes, woken) = std::os::unix::net::UnixStream::pair().unwrap();
    let (go, going) = std::sync::mpsc::channel();
    let (closed, was_closed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let accept = || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut seen, mut more) = (Vec::new(), [0; 1024]);
            while !seen.ends_with(b"{}") {
                let read = stream.read(&mut more).unwrap();
                seen.extend_from_slice(&more[..read]);
            }
            stream.write_all(ANSWER).unwrap();
            stream
        };
        let first = accept();
        going.recv().unwrap();
        (&wakes).write_all(b"!").unwrap();
        drop(first);
        closed.send(()).unwrap();
        accept();
    });
    let endpoint = Endpoint::new(serde_json::from_value(json!({ "url": url })).unwrap()).unwrap();
    let access = endpoint.access();
    let request = async || {
        let (content, _) = Content::new(Bytes::from_static(b"{}"));
        access.client.request(access.request(HeaderMap::new(), content)).await.unwrap().status()
    };
    assert_eq!(request().await, 200);
    // Nothing else runs on this thread until the connection has ended, and then this goes on first.
    woken.set_nonblocking(true).unwrap();
    let woken = tokio::net::UnixStream::from_std(woken).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.send(()).unwrap();
    was_closed.recv().unwrap();
    woken.readable().await.unwrap();
    assert_eq!(request().await, 200);
}

/// Who takes the connection and closes it at once may have read what was in it.
#[tokio::test]
async fn a_new_connection_that_ends_is_doubt_and_not_tried_again() {
    let (endpoint, mut gateway, _working) = byte_by_byte(json!({})).await;
    let ends = [Connection::hang_up, Connection::reset, Connection::hang_up];
    for (number, end) in (1..).zip(ends) {
        lease(&mut gateway, number).await;
        let mut connection = endpoint.accept().await;
        connection.frame().await;
        end(connection);
        let result = settled(&mut gateway).await;
        assert_eq!(result["outcome"], "in_doubt", "{number}: {result}");
    }
}

#[tokio::test]
async fn an_unreachable_endpoint_is_no_fault_of_the_message() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook?token=s3cret", listener.local_addr().unwrap());
    drop(listener);
    let (mut gateway, _working) = adapter(&url, json!({})).await;
    gateway.lease(&[leased_event(1, None, "application/json", json!({"data": 1}))]).await;
    let result = settled(&mut gateway).await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
    assert!(!result.to_string().contains("s3cret"), "the URL's token stands in the reason");
}

/// A TLS endpoint for `localhost`; gives its URL, its certificate in PEM, and the calls that reach it.
async fn tls_endpoint(
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> (String, String, mpsc::UnboundedReceiver<Call>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let mut config = rustls::ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    // It would rather speak HTTP/2, which this program does not.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let (sender, calls) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
            let sender = sender.clone();
            let service = service_fn(move |request| relay(request, sender.clone()));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (url, certified.cert.pem(), calls)
}

#[tokio::test]
async fn an_authority_from_the_settings_is_trusted() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (url, certificate, mut calls) = tls_endpoint(&[version]).await;
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, certificate).unwrap();
        let (mut gateway, _working) = adapter(&url, json!({"tls": {"ca_files": [ca]}})).await;
        gateway.lease(&[leased_event(1, None, "application/json", json!({"data": 1}))]).await;
        calls.recv().await.unwrap().answer(200, &[], "");
        assert_eq!(settled(&mut gateway).await["outcome"], "delivered", "{version:?}");
    }
}

#[tokio::test]
async fn an_endpoint_that_cannot_prove_itself_gets_nothing() {
    let (url, _, mut calls) = tls_endpoint(rustls::ALL_VERSIONS).await;
    let (mut gateway, _working) = adapter(&url, json!({})).await;
    gateway.lease(&[leased_event(1, None, "application/json", json!({"data": 1}))]).await;
    let result = settled(&mut gateway).await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
    assert!(calls.try_recv().is_err());
}

/// The first answers come from an endpoint that wants our certificate, and then the certificate is revoked.
#[tokio::test]
async fn it_shows_its_certificate_and_heeds_lists_of_revoked_ones() {
    let authority = Authority::new("Authority");
    let (server, own) =
        (authority.certify("server", &["127.0.0.1"]), authority.certify("own", &["ehr.example"]));
    let list = authority.revoke("list", &[]);
    let mut endpoint = Partner::listen().await.framed(requests);
    endpoint.present_and_demand(&server, &authority);
    let tls = json!({
        "ca_files": [authority.ca_file()], "crl_files": [list], "cert_file": own.cert_file, "key_file": own.key_file,
    });
    let url = format!("https://{}/", endpoint.address());
    let (mut gateway, _working) = adapter(&url, json!({ "tls": tls })).await;
    lease(&mut gateway, 1).await;
    let mut connection = endpoint.accept().await;
    connection.frame().await;
    connection.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(settled(&mut gateway).await["outcome"], "delivered");
    std::fs::rename(authority.revoke("new", &[&server]), &list).unwrap();
    lease(&mut gateway, 2).await;
    // Not even by the connection that was kept.
    endpoint.handshake_fails().await;
    let result = settled(&mut gateway).await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
    assert_eq!(result["reason"], "no TLS with the partner: its certificate has been revoked");
}

#[tokio::test]
async fn several_requests_are_under_way_at_a_time() {
    let mut played = Played::new(json!({})).await;
    let events: Vec<Value> =
        (1..=3).map(|number| leased_event(number, None, "application/json", json!({"data": 1}))).collect();
    played.gateway.lease(&events).await;
    let open = [played.call().await, played.call().await, played.call().await];
    for call in open {
        call.answer(200, &[], "");
    }
}
