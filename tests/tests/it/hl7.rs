//! HL7 through the whole gateway: acknowledgements that come late, elsewhere or not at all, queries, and partners that others wrote.

use std::io::{BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use gatepost_tests::{Dice, Gateway, Port, program, python, settle_item, skipped, source, until};
use serde_json::{Value, json};

use crate::order_event;

const START: u8 = 0x0b;
const END: &[u8] = b"\x1c\r";
/// What takes longer than this hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection, spoken by hand.
pub(crate) struct Wire(BufReader<TcpStream>);

impl Wire {
    fn accept(listener: &TcpListener) -> Self {
        Self::new(listener.accept().unwrap().0)
    }

    pub(crate) fn connect(port: &Port) -> Self {
        Self::new(until("the adapter listens", || TcpStream::connect(port.address()).ok()))
    }

    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// The next frame's body; `None` when the other side has closed.
    pub(crate) fn read(&mut self) -> Option<String> {
        let mut frame = Vec::new();
        self.0.read_until(END[0], &mut frame).unwrap();
        if frame.is_empty() {
            return None;
        }
        let mut cr = [0];
        self.0.read_exact(&mut cr).unwrap();
        let body = frame.strip_prefix(&[START]).unwrap().strip_suffix(&END[..1]).unwrap();
        Some(String::from_utf8(body.to_vec()).unwrap())
    }

    /// Whether the other side has the connection still; an error is what a closed one gives.
    pub(crate) fn write(&mut self, body: &str) -> std::io::Result<()> {
        self.0.get_mut().write_all(&[&[START], body.as_bytes(), END].concat())
    }
}

pub(crate) fn ack(code: &str, control_id: &str) -> String {
    format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK|A{control_id}{code}|P|2.5\rMSA|{code}|{control_id}\r")
}

fn event(control_id: &str, key: &str, modes: &str) -> Value {
    let text = format!("MSH|^~\\&|EHR|C|LAB|H|2026||ORM^O01|{control_id}|P|2.5{modes}\rPID|1||{key}\r");
    let mut event = order_event(control_id, key, &json!(text));
    event["type"] = "org.hl7.v2.ORM_O01".into();
    event["datacontenttype"] = "text/plain".into();
    event
}

fn send(gateway: &Gateway, event: &Value) -> String {
    let accepted = gateway.app().event(event).expect(202);
    accepted["messages"][0]["id"].as_str().unwrap().to_owned()
}

/// A partner answers message 1 only after the adapter has given up on it, while message 2 is on its way.
#[test]
fn a_late_acknowledgement_settles_not_the_message_that_is_in_flight_when_it_comes() {
    // Longer than the partner is held up before it answers message 2.
    const ACK_TIMEOUT_MS: u64 = 12_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"key\"\non_doubt = \"hold\"",
            &format!(
                "connect = \"{}\"\nconnections = 1\nack_timeout_ms = {ACK_TIMEOUT_MS}",
                listener.local_addr().unwrap()
            ),
        )
        .route("ehr", &["lab"])
        .start();
    let first = send(&gateway, &event("M1", "one", ""));
    let mut early = Wire::accept(&listener);
    assert!(early.read().unwrap().contains("|M1|"));
    let second = send(&gateway, &event("M2", "two", ""));
    // The adapter gives up on message 1, and closes before it sends anything else.
    assert_eq!(early.read(), None);
    let mut late = Wire::accept(&listener);
    assert!(late.read().unwrap().contains("|M2|"));
    gateway.until_state(&first, "in_doubt");
    // The late answer, where the partner had the message, and where it has a connection now.
    let _ = early.write(&ack("AA", "M1"));
    late.write(&ack("AA", "M1")).unwrap();
    // If it settled message 2, that would be delivered before the partner's own word on it.
    late.write(&ack("AR", "M2")).unwrap();
    let dead = gateway.until_state(&second, "dead");
    assert!(dead["history"].to_string().contains("AR"), "{dead}");
    assert_eq!(gateway.delivery(&first)["state"], "in_doubt");
    gateway.audit_verifies();
}

/// The partner accepts at once (CA), and its application answers much later, over a connection of its own, to an adapter that
/// has died in between.
#[test]
fn an_application_acknowledgement_delivers_over_another_connection_and_after_a_crash() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port::reserve();
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"key\"\nconfirm = \"business\"",
            &format!("connect = \"{}\"\nlisten = \"127.0.0.1:{port}\"", listener.local_addr().unwrap()),
        )
        .route("ehr", &["lab"])
        .start();
    let accepted = send(&gateway, &event("M1", "one", "|||AL|AL"));
    let mut wire = Wire::accept(&listener);
    assert!(wire.read().unwrap().contains("|M1|"));
    wire.write(&ack("CA", "M1")).unwrap();
    until("it is sent", || {
        gateway.delivery(&accepted)["history"].to_string().contains("\"sent\"").then_some(())
    });
    let before = gateway.adapter("lab")["pid"].clone();
    assert!(gateway.kill_adapter("lab"));
    until("the adapter is back", || {
        let pid = gateway.adapter("lab")["pid"].clone();
        (pid.is_number() && pid != before).then_some(())
    });
    let mut other = Wire::connect(&port);
    other.write(&ack("AA", "M1")).unwrap();
    let delivered = gateway.until_state(&accepted, "delivered");
    assert!(delivered["history"].to_string().contains("business"), "{delivered}");
    gateway.audit_verifies();
}

/// A partner's query goes to an application, and its reply back on the same connection.
#[test]
fn a_query_gets_the_applications_reply() {
    let port = Port::reserve();
    let gateway = Gateway::builder()
        .app("ehr", &[], &["queries"])
        .inbox("queries", "")
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\nsend = [\"org.hl7.v2.*\"]",
            &format!("listen = \"127.0.0.1:{port}\"\nreply_from_app = [\"QBP\"]"),
        )
        .route("lab", &["queries"])
        .start();
    let mut wire = Wire::connect(&port);
    wire.write("MSH|^~\\&|PDQ|C|EHR|H|2026||QBP^Q22|Q1|P|2.5\rQPD|Q22|tag\rRCP|I\r").unwrap();
    let leased = until("the query is there", || gateway.lease("queries", 1).into_iter().next());
    assert_eq!(leased["event"]["type"], "org.hl7.v2.QBP_Q22");
    let reply = "MSH|^~\\&|EHR|H|PDQ|C|2026||RSP^K22|R1|P|2.5\rMSA|AA|Q1\rQAK|tag|NF\rQPD|Q22|tag\r";
    let mut item = settle_item(&leased, "delivered");
    item["reply"] = json!({"datacontenttype": "text/plain", "data": reply});
    gateway.app().post("/v1/settle", &json!({ "results": [item] })).expect(200);
    assert_eq!(wire.read().unwrap(), reply);
    // Its no is an answer too.
    wire.write("MSH|^~\\&|PDQ|C|EHR|H|2026||QBP^Q22|Q2|P|2.5\rQPD|Q22|tag\rRCP|I\r").unwrap();
    let leased = until("the query is there", || gateway.lease("queries", 1).into_iter().next());
    let mut item = settle_item(&leased, "reject");
    let refusal = ack("AR", "Q2");
    item["reply"] = json!({"datacontenttype": "text/plain", "data": refusal});
    gateway.app().post("/v1/settle", &json!({ "results": [item] })).expect(200);
    assert_eq!(wire.read().unwrap(), refusal);
}

/// A gateway whose application sends to whoever listens here.
fn sends_to(listener: &TcpListener) -> Gateway {
    let connect = format!("connect = \"{}\"", listener.local_addr().unwrap());
    Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter("lab", "run = \"gatepost-hl7\"", &connect)
        .route("ehr", &["lab"])
        .start()
}

/// Whoever handed an order in, and waits, is told what the partner refused it with; whoever asks later too, until it is sent again.
#[test]
fn whoever_sent_an_order_sees_what_the_partner_refused_it_with() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = sends_to(&listener);
    let refusal = |code: &str| {
        let msa = format!("MSA|{code}|M1\rERR||PID^1^3|204^Unknown key identifier^HL70357|E\r");
        format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK^O01^ACK|A1|P|2.5\r{msa}")
    };
    let answering = std::thread::spawn(move || {
        let mut wire = Wire::accept(&listener);
        assert!(wire.read().unwrap().contains("|M1|"));
        wire.write(&refusal("AE")).unwrap();
        wire
    });
    let headers = ["content-type: application/cloudevents+json", "prefer: wait=60"];
    let order = event("M1", "one", "").to_string();
    let answered = gateway.app().send("POST", "/v1/messages", &headers, order.as_bytes()).unwrap();
    let mut wire = answering.join().unwrap();
    let message = answered.expect(200)["messages"][0].clone();
    let told = |delivery: &Value| {
        let text = BASE64.decode(delivery["reply"]["data_base64"].as_str()?).unwrap();
        Some((delivery["state"].as_str()?.to_owned(), String::from_utf8(text).unwrap()))
    };
    assert_eq!(told(&message["deliveries"][0]), Some(("dead".to_owned(), refusal("AE"))));
    let id = message["id"].as_str().unwrap();
    let shown = gateway.cli_ok(&["show", "--reply", id]);
    assert_eq!(shown.trim_end_matches('\n'), refusal("AE"));
    let seen = || gateway.app().get(&format!("/v1/messages/{id}")).expect(200)["deliveries"][0].clone();
    assert_eq!(told(&seen()), Some(("dead".to_owned(), refusal("AE"))));
    // A person has it sent again: that answer is none to what is on its way now.
    let delivery = message["deliveries"][0]["id"].as_str().unwrap();
    gateway
        .admin()
        .post(&format!("/v1/deliveries/{delivery}/replay"), &json!({ "reason": "again" }))
        .expect(200);
    assert!(wire.read().unwrap().contains("|M1|"));
    assert_eq!(told(&seen()), None);
    wire.write(&ack("AA", "M1")).unwrap();
    gateway.until_state(id, "delivered");
    assert_eq!(told(&seen()), Some(("delivered".to_owned(), ack("AA", "M1"))));
    gateway.audit_verifies();
}

/// Where a refusal brings the message again, the last one is the reply.
#[test]
fn whoever_sent_an_order_sees_what_its_last_attempt_was_refused_with() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = format!("connect = \"{}\"\non_ack = {{ AE = \"retry\" }}", listener.local_addr().unwrap());
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\nretry = { initial = \"50ms\", max = \"1s\", attempts = 2 }",
            &settings,
        )
        .route("ehr", &["lab"])
        .start();
    let refusal = |attempt: usize| {
        format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK^O01^ACK|A{attempt}|P|2.5\rMSA|AE|M1\rERR||PID^1^3|207\r")
    };
    let answering = std::thread::spawn(move || {
        let mut wire = Wire::accept(&listener);
        for attempt in 1..=2 {
            assert!(wire.read().unwrap().contains("|M1|"));
            wire.write(&refusal(attempt)).unwrap();
        }
        wire
    });
    let headers = ["content-type: application/cloudevents+json", "prefer: wait=20"];
    let order = event("M1", "one", "").to_string();
    let answered = gateway.app().send("POST", "/v1/messages", &headers, order.as_bytes()).unwrap();
    let _wire = answering.join().unwrap();
    let delivery = answered.expect(200)["messages"][0]["deliveries"][0].clone();
    assert_eq!(delivery["state"], "dead", "{delivery}");
    assert_eq!(delivery["reply"]["data_base64"], BASE64.encode(refusal(2)), "{delivery}");
    gateway.audit_verifies();
}

/// What the partner answers to a query goes back to whoever waits for it, however long it is.
#[test]
fn whoever_sent_a_query_gets_an_answer_of_many_megabytes() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = sends_to(&listener);
    let answering = std::thread::spawn(move || {
        let mut wire = Wire::accept(&listener);
        assert!(wire.read().unwrap().contains("|Q1|"));
        let rows = "PID|1||4711^^^LAB^MR||DOE^JANE\r".repeat(160_000);
        let answer = format!("MSH|^~\\&|LAB|H|EHR|C|2026||RSP^K22|R1|P|2.5\rMSA|AA|Q1\r{rows}");
        wire.write(&answer).unwrap();
        (answer, wire)
    });
    let headers = ["content-type: application/cloudevents+json", "prefer: wait=60"];
    let query = event("Q1", "one", "").to_string();
    let answered = gateway.app().send("POST", "/v1/messages", &headers, query.as_bytes()).unwrap();
    let (sent, _wire) = answering.join().unwrap();
    let delivery = answered.expect(200)["messages"][0]["deliveries"][0].clone();
    assert_eq!(delivery["reply"]["datacontenttype"], "application/hl7-v2+er7");
    assert!(delivery["reply"]["data_base64"] == BASE64.encode(sent), "it is the whole answer");
}

/// A batch goes in whole, and its messages to where each belongs.
#[test]
fn a_batch_is_taken_in_as_its_messages() {
    let port = Port::reserve();
    let gateway = Gateway::builder()
        .app("ehr", &[], &["admissions"])
        .inbox("admissions", "order = \"key\"")
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\nsend = [\"org.hl7.v2.*\"]",
            &format!("listen = \"127.0.0.1:{port}\""),
        )
        .route("lab", &["admissions"])
        .start();
    let message = |id: &str, key: &str| format!("MSH|^~\\&|A|B|C|D|||ADT^A08|{id}|P|2.5\rPID|1||{key}\r");
    let batch = |count: usize| {
        format!("BHS|^~\\&|A|B|C|D|||||B1\r{}{}BTS|{count}\r", message("M1", "one"), message("M2", "two"))
    };
    let mut wire = Wire::connect(&port);
    wire.write(&batch(3)).unwrap();
    for id in ["M1", "M2"] {
        assert!(wire.read().unwrap().contains(&format!("MSA|AR|{id}|BTS-1")));
    }
    assert_eq!(gateway.unsettled("admissions"), 0);
    // Twice: the second time it is the same.
    for _ in 0..2 {
        wire.write(&batch(2)).unwrap();
        for id in ["M1", "M2"] {
            assert!(wire.read().unwrap().contains(&format!("MSA|AA|{id}\r")));
        }
    }
    let leased = gateway.lease("admissions", 10);
    let told: Vec<_> =
        leased.iter().map(|one| (&one["event"]["subject"], &one["event"]["hl7batch"])).collect();
    assert_eq!(told, [(&json!("M1"), &json!("B1")), (&json!("M2"), &json!("B1"))]);
}

/// A program that printed its port, and then a line for each message; ended when dropped.
struct Program {
    child: Child,
    port: u16,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let port = first.rsplit(':').next().unwrap().parse().unwrap();
        Self { child, port, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `hl7apy` closes the connection behind each answer.
#[test]
fn hl7_goes_out_to_a_server_that_closes_after_each_message() {
    const MESSAGES: usize = 30;
    let Some(mut python) = python(&["hl7apy"]) else { return skipped("needs the hl7apy package of PyPI") };
    let mut partner = Program::start(python.arg(source("hl7_partner.py")).arg("closing-server"));
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &[])
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\norder = \"strict\"",
            &format!("connect = \"127.0.0.1:{}\"", partner.port),
        )
        .route("ehr", &["lab"])
        .start();
    for n in 0..MESSAGES {
        send(&gateway, &event(&format!("OUT{n}"), "7", ""));
    }
    gateway.until_settled("lab");
    let took: Vec<String> = (0..MESSAGES).map(|_| partner.line()).collect();
    let in_order: Vec<String> = (0..MESSAGES).map(|n| format!("OUT{n}")).collect();
    assert_eq!(took, in_order, "in order, each once");
    gateway.audit_verifies();
}

/// Streams as senders write them, cut anywhere, into this decoder and into that of the Python package: both must see the
/// same bodies.
#[test]
fn the_decoder_sees_what_that_of_the_python_package_sees() {
    const STREAMS: usize = 40;
    let Some(mut python) = python(&["hl7"]) else { return skipped("needs the hl7 package of PyPI") };
    let mut theirs = Program::start(python.arg(source("hl7_partner.py")).arg("digests"));
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("ours.jsonl");
    let ours = Program::start(
        Command::new(program("gatepost-hl7")).args(["listen", "--port", "0", "--log"]).arg(&log),
    );
    let mut dice = Dice::new(0x000b_1c0d);
    let mut seen = 0;
    for stream in 0..STREAMS {
        let (bytes, bodies) = stream_of(&mut dice);
        let mut connections =
            [ours.port, theirs.port].map(|port| TcpStream::connect(("127.0.0.1", port)).unwrap());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at((1 + dice.below(40)).min(rest.len()));
            connections.iter_mut().for_each(|connection| connection.write_all(piece).unwrap());
            rest = after;
        }
        for connection in &mut connections {
            connection.shutdown(std::net::Shutdown::Write).unwrap();
            // Both close when they have read all of it.
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            let _ = connection.read_to_end(&mut Vec::new());
        }
        let theirs: Vec<String> = (0..bodies).map(|_| theirs.line()).collect();
        let written = std::fs::read_to_string(&log).unwrap();
        let ours: Vec<String> = written.lines().skip(seen).map(digest_of).collect();
        seen += ours.len();
        assert_eq!(ours, theirs, "stream {stream}");
    }
    assert!(seen > STREAMS, "{seen} bodies");
}

fn digest_of(line: &str) -> String {
    let line: Value = serde_json::from_str(line).unwrap();
    line["sha256"].as_str().unwrap().to_owned()
}

/// Some frames and their number. Between them nothing or line ends, in them everything but the marks.
fn stream_of(dice: &mut Dice) -> (Vec<u8>, usize) {
    let frames = 1 + dice.below(6);
    let mut stream = Vec::new();
    for _ in 0..frames {
        stream.push(START);
        stream.extend_from_slice(b"MSH|^~\\&|");
        for _ in 0..dice.below(200) {
            let byte = u8::try_from(dice.below(256)).unwrap();
            // FS is text when no CR follows, and a CR may follow anything but FS.
            let follows_end = stream.last() == Some(&END[0]);
            if byte != START && !(follows_end && byte == END[1]) {
                stream.push(byte);
            }
        }
        stream.extend_from_slice(END);
    }
    (stream, frames)
}

/// 50 MB of an observation, in and out: what the adapter's process takes for it stays below three times its size.
#[test]
fn an_observation_of_fifty_megabytes_passes_both_ways_in_bounded_memory() {
    const BYTES: usize = 50_000_000;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port::reserve();
    let gateway = Gateway::builder()
        .adapter(
            "in",
            "run = \"gatepost-hl7\"\nsend = [\"org.hl7.v2.*\"]",
            &format!("listen = \"127.0.0.1:{port}\"\nmax_frame_bytes = 60000000"),
        )
        .adapter(
            "out",
            "run = \"gatepost-hl7\"",
            &format!("connect = \"{}\"\nmax_frame_bytes = 60000000", listener.local_addr().unwrap()),
        )
        .route("in", &["out"])
        .start();
    let mut body = String::from("MSH|^~\\&|PACS|C|EHR|H|2026||ORU^R01|BIG|P|2.5\rOBX|1|ED|PDF||");
    body.extend(std::iter::repeat_n('Q', BYTES - body.len() - 1));
    body.push('\r');
    let mut wire = Wire::connect(&port);
    wire.write(&body).unwrap();
    let mut out = Wire::accept(&listener);
    assert!(wire.read().unwrap().contains("MSA|AA|BIG"));
    assert!(out.read().unwrap() == body, "not the bytes that were sent");
    out.write(&ack("AA", "BIG")).unwrap();
    gateway.until_settled("out");
    for name in ["in", "out"] {
        let pid = &gateway.adapter(name)["pid"];
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
        gatepost_tests::note(&format!("adapter {name}: {kib} KiB at most for {BYTES} bytes"));
        assert!(kib * 1024 <= 3 * BYTES, "{name} took {kib} KiB");
    }
}

/// The configurations of the documentation, as they stand there.
fn examples() -> Vec<String> {
    let page = std::fs::read_to_string(source("../docs/adapters/hl7.md")).unwrap();
    let blocks = page.split("```toml\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_examples_of_the_documentation_are_taken_by_the_programs() {
    let mut builder = Gateway::builder().app("ehr", &["org.hl7.v2.*"], &["queries"]).inbox("queries", "");
    let examples = examples();
    assert_eq!(examples.len(), 5);
    for example in &examples {
        builder = builder.table("", example);
    }
    let gateway = builder
        .route("ehr", &["lab", "ris", "region"])
        .route("lab", &["queries"])
        .route("ward", &["queries"])
        .prepare();
    let checked = gateway.cli(&["check"]);
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
}

/// That of an old system runs: its odd frames, and an application that answers it.
#[test]
fn the_example_of_the_old_system_works() {
    let port = Port::reserve();
    let ward = examples().into_iter().find(|example| example.contains("[adapters.ward]")).unwrap();
    let example = ward.replace("127.0.0.1:2578", &format!("127.0.0.1:{port}"));
    let gateway = Gateway::builder()
        .app("ehr", &[], &["queries"])
        .inbox("queries", "")
        .table("", &example)
        .route("ward", &["queries"])
        .start();
    let mut wire = Wire::connect(&port);
    let query = b"\x0bMSH|^~\\&|OLD|C|EHR|H|2026||QRY^A19|Q1|P|2.3\rQRD|x\rPID|1||\x80\r\x1c";
    wire.0.get_mut().write_all(query).unwrap();
    let leased = until("the query is there", || gateway.lease("queries", 1).into_iter().next());
    assert_eq!(leased["event"]["partitionkey"], "€");
    let reply = "MSH|^~\\&|EHR|H|OLD|C|2026||ADR^A19|R1|P|2.3\rMSA|AA|Q1\r";
    let mut item = settle_item(&leased, "delivered");
    item["reply"] = json!({"datacontenttype": "text/plain", "data": reply});
    gateway.app().post("/v1/settle", &json!({ "results": [item] })).expect(200);
    assert_eq!(wire.read().unwrap(), reply);
}

/// An operator sees the payload's fields by name, as the adapter's program tells them.
#[test]
fn show_tells_the_fields_of_a_message_by_name() {
    let gateway = Gateway::builder()
        .app("ehr", &["org.hl7.v2.*"], &["orders"])
        .inbox("orders", "")
        .route("ehr", &["orders"])
        .start();
    let id = send(&gateway, &event("M1", "one", ""));
    let shown = gateway.cli_ok(&["show", &id, "--data", "--fields"]);
    for line in [
        "MSH  Message header",
        "10  Control id                    M1",
        "PID  Patient",
        "3  Patient ids                   one",
    ] {
        assert!(shown.contains(line), "{shown}");
    }
    let mut other = order_event("other", "k", &json!({}));
    other["type"] = "org.hl7.v2.ORM_O01".into();
    let id = send(&gateway, &other);
    let refused = gateway.cli(&["show", &id, "--data", "--fields"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("MSH"), "it says why");
}

/// Hundreds of senders, each on its own connection, through one adapter process.
#[test]
fn three_hundred_partners_are_served_by_one_listener() {
    const PARTNERS: usize = 300;
    let port = Port::reserve();
    let gateway = Gateway::builder()
        .app("ehr", &[], &["admissions"])
        .inbox("admissions", "")
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\nsend = [\"org.hl7.v2.*\"]",
            &format!(
                "listen = \"127.0.0.1:{port}\"\nmax_connections = 300\nmax_connections_per_source = 300"
            ),
        )
        .route("lab", &["admissions"])
        .start();
    let mut wires: Vec<Wire> = (0..PARTNERS).map(|_| Wire::connect(&port)).collect();
    for (n, wire) in wires.iter_mut().enumerate() {
        wire.write(&format!("MSH|^~\\&|A{n}|B|C|D|||ADT^A01|M{n}|P|2.5\rPID|1||{n}\r")).unwrap();
    }
    for (n, wire) in wires.iter_mut().enumerate() {
        assert!(wire.read().unwrap().contains(&format!("MSA|AA|M{n}\r")));
    }
    // One more than there are places is turned away, and the others stay.
    assert!(Wire::connect(&port).read().is_none());
    wires[0].write("MSH|^~\\&|A0|B|C|D|||ADT^A01|LAST|P|2.5\r").unwrap();
    assert!(wires[0].read().unwrap().contains("MSA|AA|LAST\r"));
    assert_eq!(gateway.unsettled("admissions"), PARTNERS as u64 + 1);
}
