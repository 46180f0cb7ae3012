//! The real program under a played gateway, which connects it to where it says.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gatepost_adapter::testing::{Desk, Gateway, leased_event};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio_rustls::{TlsAcceptor, rustls};

/// Starts the adapter under a played gateway and gives it these settings.
async fn adapter(settings: Value) -> (Gateway, Desk, Child) {
    let mut gateway = Gateway::bind();
    let desk = gateway.desk();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost-http"));
    command.env("GATEPOST_SOCKET", gateway.socket()).stdin(Stdio::null()).stderr(Stdio::null());
    let child = command.kill_on_drop(true).spawn().unwrap();
    gateway.open_session(json!({ "settings": settings })).await;
    (gateway, desk, child)
}

async fn lease(gateway: &mut Gateway, number: u128) {
    gateway.lease(&[leased_event(number, None, "application/json", json!({"data": {"n": number}}))]).await;
}

async fn settled(gateway: &mut Gateway) -> Value {
    let call = gateway.next("/v1/settle").await;
    let result = call.body["results"][0].clone();
    call.settled("ok");
    result
}

/// Answers each request with the next of these statuses, in the end with 200, and with a redirect to another host.
#[derive(Clone, Default)]
struct Endpoint {
    statuses: Arc<[u16]>,
    answered: Arc<AtomicUsize>,
}

impl Endpoint {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let host = request.headers()["host"].clone();
        request.into_body().collect().await?;
        let status = self.statuses.get(self.answered.fetch_add(1, Ordering::Relaxed));
        let answer = Response::builder()
            .status(status.copied().unwrap_or(StatusCode::OK.as_u16()))
            .header("location", "http://elsewhere.example/")
            .body(Full::new(Bytes::copy_from_slice(host.as_bytes())));
        Ok(answer.unwrap())
    }

    async fn plain(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let endpoint = self.clone();
                let service = service_fn(move |request| endpoint.clone().answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        at
    }

    /// With a certificate for `name`, written to `ca`.
    async fn tls(self, name: &str, ca: &Path) -> SocketAddr {
        let certified = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        std::fs::write(ca, certified.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let endpoint = self.clone();
                let service = service_fn(move |request| endpoint.clone().answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        at
    }
}

#[tokio::test]
async fn it_asks_the_gateway_for_its_endpoint_keeps_the_connection_and_follows_nobody() {
    let at = Endpoint { statuses: [200, 302, 307].into(), ..Endpoint::default() }.plain().await;
    let url = "http://partner.example:8080/hook";
    let (mut gateway, desk, _child) = adapter(json!({"url": url, "allow_plaintext": true})).await;
    lease(&mut gateway, 1).await;
    let asked = desk.asked().await;
    assert_eq!(asked.to, "partner.example:8080");
    asked.connect(at).await;
    let result = settled(&mut gateway).await;
    assert_eq!(result["outcome"], "delivered", "{result}");
    // A second question would stay without an answer, and these without an outcome.
    for (number, outcome, reason) in [
        (2, "retry", json!("the endpoint answered 302")),
        (3, "retry", json!("the endpoint answered 307")),
        (4, "delivered", Value::Null),
    ] {
        lease(&mut gateway, number).await;
        let result = settled(&mut gateway).await;
        assert_eq!((&result["outcome"], &result["reason"]), (&json!(outcome), &reason), "{result}");
    }
}

fn is_out_of_reach(result: &Value, reason: &str) {
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")), "{result}");
    assert_eq!(result["reason"], reason);
}

#[tokio::test]
async fn without_a_connection_nothing_can_have_left() {
    let url = "https://partner.example/hook?token=s3cret";
    let (mut gateway, desk, _child) = adapter(json!({ "url": url })).await;
    for (number, answer, reason) in [
        (
            1,
            "refused: not_allowed",
            "cannot connect: the configuration does not allow this adapter to connect there",
        ),
        (2, "refused: too_many", "cannot connect: too many connections are being made"),
        (3, "failed: connection_refused", "cannot connect: connection refused"),
        (4, "failed: name_not_known", "cannot connect: the host's name is not known"),
        (5, "failed: timed_out", "cannot connect: timed out"),
        (6, "ok", "cannot connect: the gateway gave no answer"),
    ] {
        lease(&mut gateway, number).await;
        let asked = desk.asked().await;
        assert_eq!(asked.to, "partner.example:443");
        asked.answer(answer).await;
        is_out_of_reach(&settled(&mut gateway).await, reason);
    }
}

#[tokio::test]
async fn a_connection_is_awaited_no_longer_than_the_settings_say() {
    let settings = json!({"url": "https://partner.example/hook", "connect_timeout_ms": 200});
    let (mut gateway, desk, _child) = adapter(settings).await;
    lease(&mut gateway, 1).await;
    let _asked = desk.asked().await;
    is_out_of_reach(&settled(&mut gateway).await, "no connection within 200 ms");
    // Nor longer with TLS: here the one who takes the connection says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    lease(&mut gateway, 2).await;
    desk.asked().await.connect(silent.local_addr().unwrap()).await;
    is_out_of_reach(
        &settled(&mut gateway).await,
        "connected, but the TLS handshake was not over within 200 ms",
    );
}

/// The gateway can connect it to whatever it likes: what proves itself as somebody else gets nothing.
#[tokio::test]
async fn the_certificate_is_for_the_urls_name_and_not_for_whom_the_gateway_has_reached() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    for (name, delivered) in [("partner.example", true), ("localhost", false), ("127.0.0.1", false)] {
        let endpoint = Endpoint::default();
        let at = endpoint.clone().tls(name, &ca).await;
        let settings = json!({"url": "https://partner.example/hook", "tls": {"ca_files": [ca]}});
        let (mut gateway, desk, _child) = adapter(settings).await;
        lease(&mut gateway, 1).await;
        let asked = desk.asked().await;
        assert_eq!(asked.to, "partner.example:443");
        asked.connect(at).await;
        let result = settled(&mut gateway).await;
        if delivered {
            assert_eq!(result["outcome"], "delivered", "{result}");
        } else {
            assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")));
            let reason = result["reason"].as_str().unwrap();
            assert!(reason.contains("its certificate is not for partner.example but for"), "{reason}");
            assert_eq!(endpoint.answered.load(Ordering::Relaxed), 0);
        }
    }
}
