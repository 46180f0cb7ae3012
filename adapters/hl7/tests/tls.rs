//! TLS both ways, with Python's `ssl` as the partner and with the tools.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use gatepost_adapter::testing::{Authority, Gateway, leased_event};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

/// Longer than anything should take.
const HANG: Duration = Duration::from_secs(30);
const ADT: &str = "MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01^ADT_A01|M1|P|2.5\rPID|1||42\r";

/// Certificates of one authority, each with its key beside it.
struct Certificates(Authority);

impl Certificates {
    fn new() -> Self {
        let authority = Authority::new("Test Authority");
        for name in ["lab.example", "ehr.example", "other.example"] {
            authority.certify(name, &[name]);
        }
        Self(authority)
    }

    fn ca(&self) -> PathBuf {
        self.0.ca_file()
    }

    fn cert(&self, name: &str) -> PathBuf {
        self.0.path(&format!("{name}.pem"))
    }

    fn key(&self, name: &str) -> PathBuf {
        self.0.path(&format!("{name}.key"))
    }

    fn python(&self, kind: &str, name: &str) -> Command {
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls_peer.py")).arg(kind);
        command.arg(self.ca()).arg(self.cert(name)).arg(self.key(name));
        command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost-hl7"));
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

async fn adapter(settings: Value) -> (Gateway, Child) {
    let mut gateway = Gateway::bind();
    let child = program().env("GATEPOST_SOCKET", gateway.socket()).stderr(Stdio::null()).spawn().unwrap();
    gateway.open_session(json!({ "settings": settings })).await;
    (gateway, child)
}

fn lines(child: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().unwrap()).lines()
}

async fn line(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    lines.next_line().await.unwrap().unwrap()
}

async fn settled(gateway: &mut Gateway, number: u128) -> Value {
    let payload = json!({ "data": ADT });
    gateway.lease(&[leased_event(number, None, "application/hl7-v2+er7", payload)]).await;
    let call = gateway.next("/v1/settle").await;
    let result = call.body["results"][0].clone();
    call.settled("ok");
    result
}

#[tokio::test]
async fn it_delivers_to_pythons_ssl_which_asks_for_its_certificate() {
    let certificates = Certificates::new();
    let mut partner = certificates.python("serve", "lab.example").spawn().unwrap();
    let mut said = lines(&mut partner);
    let connect = format!("127.0.0.1:{}", line(&mut said).await);
    let tls = json!({"ca_files": [certificates.ca()], "server_name": "lab.example"});

    // Without a certificate, and for another name: nothing can have left, so that it is the destination's trouble.
    let (mut gateway, _child) = adapter(json!({ "connect": connect, "tls": tls })).await;
    let result = settled(&mut gateway, 1).await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")), "{result}");
    let reason =
        "no TLS with the partner: it asks for our certificate, and there is none: set cert_file and key_file";
    assert_eq!(result["reason"], reason);
    assert_eq!(line(&mut said).await, "PEER_DID_NOT_RETURN_A_CERTIFICATE");
    let mut wrong = tls.clone();
    wrong["server_name"] = json!("other.example");
    let (mut gateway, _child) = adapter(json!({ "connect": connect, "tls": wrong })).await;
    let result = settled(&mut gateway, 2).await;
    assert_eq!((&result["outcome"], &result["scope"]), (&json!("retry"), &json!("destination")), "{result}");
    assert!(result["reason"].as_str().unwrap().contains("is not for other.example"), "{result}");
    line(&mut said).await;

    let mut own = tls;
    own["cert_file"] = json!(certificates.cert("ehr.example"));
    own["key_file"] = json!(certificates.key("ehr.example"));
    let (mut gateway, _child) = adapter(json!({ "connect": connect, "tls": own })).await;
    let result = settled(&mut gateway, 3).await;
    assert_eq!(result["outcome"], "delivered", "{result}");
    assert_eq!(line(&mut said).await, "ehr.example");
}

#[tokio::test]
async fn it_takes_from_pythons_ssl_and_only_from_whom_the_settings_name() {
    let certificates = Certificates::new();
    // Nobody else is given it, and the adapter may listen on it.
    let reserved = TcpSocket::new_v4().unwrap();
    reserved.set_reuseaddr(true).unwrap();
    reserved.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = reserved.local_addr().unwrap();
    let listen = address.to_string();
    let listen_tls = json!({
        "cert_file": certificates.cert("lab.example"), "key_file": certificates.key("lab.example"),
        "client_ca_files": [certificates.ca()], "allow_names": ["dns:ehr.example"],
    });
    let (mut gateway, _child) = adapter(json!({ "listen": listen, "listen_tls": listen_tls })).await;
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let send = |name: &str| {
        let mut command = certificates.python("send", name);
        command.arg(address.port().to_string()).arg("lab.example").stderr(Stdio::piped());
        command
    };
    let stranger = send("other.example").output().await.unwrap();
    assert!(!stranger.status.success(), "let in: {stranger:?}");
    let partner = send("ehr.example").spawn().unwrap();
    let call = timeout(HANG, gateway.next("/v1/messages")).await.expect("its message reaches the gateway");
    assert_eq!(call.body["subject"], "P1");
    call.answer(
        202,
        &json!({"messages": [{"id": uuid::Uuid::nil(), "duplicate": false, "deliveries": []}], "durability": "fsync"}),
    );
    let partner = partner.wait_with_output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&partner.stdout).trim(), "MSA|AA|P1", "{partner:?}");
}

#[tokio::test]
async fn the_tools_speak_it_too() {
    let certificates = Certificates::new();
    let file = certificates.0.path("adt.hl7");
    std::fs::write(&file, ADT).unwrap();
    let mut listen = program();
    listen.args(["listen", "--port", "0", "--tls-cert"]).arg(certificates.cert("lab.example"));
    listen
        .arg("--tls-key")
        .arg(certificates.key("lab.example"))
        .arg("--tls-client-ca")
        .arg(certificates.ca());
    let mut listening = listen.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let address = line(&mut lines(&mut listening)).await.strip_prefix("listening on ").unwrap().to_owned();
    let send = async |more: &[PathBuf]| -> Output {
        let mut send = program();
        send.args(["send", &address]).arg(&file).arg("--tls-ca").arg(certificates.ca());
        send.args(["--tls-name", "lab.example"]).args(more).output().await.unwrap()
    };
    let own = [
        "--tls-cert".into(),
        certificates.cert("ehr.example"),
        "--tls-key".into(),
        certificates.key("ehr.example"),
    ];
    let sent = send(&own).await;
    assert_eq!(String::from_utf8_lossy(&sent.stdout), "M1 AA\n", "{sent:?}");
    let refused = send(&[]).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("it asks for our certificate"), "{said}");
    let mut wrong = own;
    wrong[3] = certificates.key("other.example");
    let wrong = send(&wrong).await;
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("do not belong together"), "{wrong:?}");
}
