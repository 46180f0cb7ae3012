//! The adapters against partners that others wrote.

use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use gatepost_tests::{Gateway, Port, python, skipped, source, until};
use serde_json::json;

use crate::order_event;

const MESSAGES: usize = 30;

/// A server that printed its port; ended when dropped.
struct Partner {
    child: Child,
    port: u16,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Partner {
    fn start(python: &mut Command, arguments: &[&str]) -> Self {
        let mut child =
            python.arg(source("partner.py")).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port = lines.next().unwrap().unwrap().parse().unwrap();
        Self { child, port, lines }
    }

    fn took(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn hl7_goes_out_to_and_comes_in_from_the_python_package() {
    let Some(mut partner) = python(&["hl7"]) else { return skipped("needs the hl7 package of PyPI") };
    let mut partner = Partner::start(&mut partner, &["hl7-server"]);
    let listen = Port::reserve();
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &["admissions"])
        .inbox("admissions", "order = \"key\"")
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"key\"\nsend = [\"org.hl7.v2.*\"]",
            &format!("connect = \"127.0.0.1:{}\"\nlisten = \"127.0.0.1:{listen}\"", partner.port),
        )
        .route("ehr", &["lab"])
        .route("lab", &["admissions"])
        .start();

    for n in 0..MESSAGES {
        let text =
            format!("MSH|^~\\&|EHR|C|LAB|H|2026||ORU^R01|OUT{n}|P|2.5\rPID|1||7^^^MR\rOBX|1|TX|x||{n}\r");
        let mut event = order_event(&n.to_string(), "7", &json!(text));
        event["type"] = "org.hl7.v2.ORU_R01".into();
        event["datacontenttype"] = "text/plain".into();
        gateway.app().event(&event).expect(202);
    }
    gateway.until_settled("lab");
    let took: Vec<String> = (0..MESSAGES).map(|_| partner.took()).collect();
    let in_order: Vec<String> = (0..MESSAGES).map(|n| format!("OUT{n}")).collect();
    assert_eq!(took, in_order, "one lane, in order, each once");

    until("the adapter listens", || std::net::TcpStream::connect(listen.address()).ok());
    let mut sender = python(&["hl7"]).unwrap();
    let count = MESSAGES.to_string();
    let output =
        sender.arg(source("partner.py")).args(["hl7-client", &listen.to_string(), &count]).output().unwrap();
    let answers = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (n, answer) in answers.lines().enumerate() {
        assert!(answer == format!("AA IN{n}") || answer == format!("CA IN{n}"), "{answer}");
    }
    assert_eq!(answers.lines().count(), MESSAGES);
    let leased = gateway.lease("admissions", 100);
    assert_eq!(leased.len(), 3, "the head of each patient's lane");
    assert!(leased.iter().all(|delivery| delivery["event"]["type"] == "org.hl7.v2.ADT_A01"));
    assert_eq!(gateway.unsettled("admissions"), MESSAGES as u64);
    gateway.audit_verifies();
}

#[test]
fn webhooks_verify_with_the_package_of_the_standard() {
    webhooks_verify(None);
}

/// Also TLS is somebody else's here: Python's, which is OpenSSL.
#[test]
fn webhooks_verify_with_the_package_of_the_standard_over_tls() {
    webhooks_verify(Some("localhost"));
}

/// By TLS under this name, if there is one.
fn webhooks_verify(name: Option<&str>) {
    let Some(mut endpoint) = python(&["standardwebhooks"]) else {
        return skipped("needs the standardwebhooks package of PyPI");
    };
    let builder = Gateway::builder();
    let file = |name: &str, text: &str| {
        let file = builder.dir().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let certificate = name.map(|name| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        [file("certificate", &made.cert.pem()), file("key", &made.signing_key.serialize_pem())]
    });
    let mut arguments = vec!["webhook-server", secret];
    arguments.extend(certificate.iter().flatten().map(String::as_str));
    let mut endpoint = Partner::start(&mut endpoint, &arguments);
    // In rotation the endpoint may know the old secret only.
    let files = [("new", "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="), ("old", secret)]
        .map(|(name, secret)| file(name, secret));
    let (scheme, host) = name.map_or(("http", "127.0.0.1"), |name| ("https", name));
    let authority =
        certificate.map(|[file, _]| format!("tls = {{ ca_files = [{file:?}] }}")).unwrap_or_default();
    let gateway = builder
        .app("shop", &["*"], &[])
        .adapter(
            "hook",
            "run = \"gatepost-http\"",
            &format!(
                "url = \"{scheme}://{host}:{}/hook\"\nsecret_files = {files:?}\n{authority}",
                endpoint.port
            ),
        )
        .route("shop", &["hook"])
        .start();
    for n in 0..MESSAGES {
        let accepted = gateway
            .app()
            .event(&order_event(&n.to_string(), "k", &json!({ "n": n, "ü": "\u{2028}" })))
            .expect(202);
        let message = accepted["messages"][0]["id"].as_str().unwrap();
        let delivery = gateway.until_state(message, "delivered");
        let line = endpoint.took();
        assert_eq!(line.split_once(' ').unwrap().1, "good");
        assert!(line.contains(delivery["id"].as_str().unwrap()), "the id is the delivery's: {line}");
    }
}
