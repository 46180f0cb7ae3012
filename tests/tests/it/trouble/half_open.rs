//! Connections whose other end has vanished without a word, as when a machine loses its power or a cable its plug: a partner in
//! a network namespace of its own, whose only link is cut.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gatepost_tests::lab::{self, Answer, Effect, History, Order, Partner as Seen, Submission};
use gatepost_tests::{Gateway, Port, WAIT, settle_item, skipped, source, until, until_within};
use serde_json::{Value, json};

use super::hand_in;

/// A namespace joined to the machine by one cable; gone when dropped.
struct Away {
    name: String,
    /// The machine's address on the cable, and the one over there.
    here: String,
    there: String,
}

impl Away {
    /// `None` where namespaces cannot be made. `number` keeps tests that run at the same time apart.
    fn new(number: u8) -> Option<Self> {
        let process = std::process::id();
        let name = format!("gp{process}x{number}");
        // Three of the 65536 little networks that nobody else uses at the same time.
        let (high, low) = (process / 16 % 256, process % 16 * 16 + u32::from(number) * 4);
        let (here, there) = (format!("10.77.{high}.{}", low + 1), format!("10.77.{high}.{}", low + 2));
        let away = Self { name, here, there };
        let (ns, near, far) = (&away.name, format!("{}a", away.name), format!("{}b", away.name));
        ip(&["netns", "add", ns])?;
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far])?;
        ip(&["link", "set", &far, "netns", ns])?;
        ip(&["addr", "add", &format!("{}/30", away.here), "dev", &near])?;
        ip(&["link", "set", &near, "up"])?;
        ip(&["-n", ns, "addr", "add", &format!("{}/30", away.there), "dev", &far])?;
        ip(&["-n", ns, "link", "set", &far, "up"])?;
        Some(away)
    }

    /// Cuts the cable: neither side hears of it.
    fn vanish(&self) {
        self.link("down");
    }

    fn come_back(&self) {
        self.link("up");
    }

    fn link(&self, state: &str) {
        ip(&["-n", &self.name, "link", "set", &format!("{}b", self.name), state]).expect("a link can be set");
    }

    fn partner(&self, mode: &str, address: &str, port: u16, more: &[&str]) -> Script {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "python3"]).arg(source("vanishing.py"));
        Script::start(command.args([mode, address, &port.to_string()]).args(more))
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let _ = ip(&["netns", "del", &self.name]);
        let _ = ip(&["link", "del", &format!("{}a", self.name)]);
    }
}

fn ip(arguments: &[&str]) -> Option<()> {
    let output = Command::new("ip").args(arguments).output().ok()?;
    output.status.success().then_some(())
}

/// What it has printed so far is what it took.
struct Script {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("python3 can be started");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (output, said) = (BufReader::new(child.stdout.take().unwrap()), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                said.lock().unwrap().push(line);
            }
        });
        let script = Self { child, lines };
        until("the script is ready", || script.lines.lock().unwrap().first().map(drop));
        script
    }

    fn took(&self) -> Vec<String> {
        self.lines.lock().unwrap()[1..].to_vec()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const NO_NAMESPACES: &str = "needs the right to make network namespaces";

#[test]
fn a_partner_that_vanishes_leaves_one_in_doubt_charges_nobody_else_and_gets_all_when_it_is_back() {
    let Some(away) = Away::new(0) else { return skipped(NO_NAMESPACES) };
    // Over there nobody else listens.
    let (hl7_port, http_port) = (2575, 8080);
    let (hl7, http) =
        (away.partner("mllp", &away.there, hl7_port, &[]), away.partner("http", &away.there, http_port, &[]));
    let retry = "order = \"key\"\nretry = { initial = \"200ms\", max = \"500ms\", attempts = 100 }";
    let gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .adapter(
            "lab",
            &format!("run = \"gatepost-hl7\"\n{retry}"),
            &format!(
                "connect = \"{}:{hl7_port}\"\nconnections = 1\nconnect_timeout_ms = 500\nack_timeout_ms = 500",
                away.there
            ),
        )
        .adapter(
            "hook",
            &format!("run = \"gatepost-http\"\n{retry}"),
            &format!(
                "url = \"http://{}:{http_port}/\"\nallow_plaintext = true\nconnect_timeout_ms = 500\ntimeout_ms = 500",
                away.there
            ),
        )
        .echo("well", "order = \"key\"", "")
        .route_when("shop", "type == \"hl7\"", &["lab"])
        .route_when("shop", "type == \"http\"", &["hook"])
        .route_when("shop", "type == \"orders.new\"", &["well"])
        .start();
    let mut history = History::default();
    let mut send = |kind: &'static str, n: usize| {
        let (mark, to) = (format!("{kind}{n}"), if kind == "hl7" { "lab" } else { "hook" });
        let data = match kind {
            "hl7" => json!(format!("MSH|^~\\&|A||B||2026||ADT^A01|{mark}|P|2.5\rPID|1||7\r")),
            _ => json!({ "mark": mark }),
        };
        let mut event = crate::order_event(&mark, "lane", &data);
        event["type"] = kind.into();
        if kind == "hl7" {
            event["datacontenttype"] = "text/plain".into();
        }
        let answer = gateway.app().event(&event).expect(202);
        history.submissions.push(Submission::one(
            kind,
            &mark,
            Some("lane"),
            &[to],
            Answer::accepted(&answer),
        ));
    };
    // The connections are made and kept.
    for kind in ["hl7", "http"] {
        (0..3).for_each(|n| send(kind, n));
    }
    for queue in ["lab", "hook"] {
        gateway.until_settled(queue);
    }
    away.vanish();
    for kind in ["hl7", "http"] {
        (3..6).for_each(|n| send(kind, n));
    }
    for queue in ["lab", "hook"] {
        until(&format!("`{queue}` is known to be out of reach"), || {
            gateway.queue(queue)["tripped"].as_str().map(drop)
        });
    }
    for n in 0..20 {
        let well =
            hand_in(&gateway.app(), "well", &format!("w{n}"), &format!("k{}", n % 3), &json!({}), &["well"]);
        history.submissions.push(well);
    }
    gateway.until_settled("well");
    for queue in ["lab", "hook"] {
        let waiting = gateway.list(&format!("/v1/deliveries?destination={queue}"), "deliveries");
        let behind = waiting.iter().filter(|one| one["attempts"] == 0 && one["state"] == "waiting").count();
        assert_eq!(behind, 2, "one met the silence, those behind it paid nothing: {waiting:#?}");
    }
    away.come_back();
    for queue in ["lab", "hook"] {
        until_within(2 * WAIT, "all is settled", || (gateway.unsettled(queue) == 0).then_some(()));
        for one in gateway.list(&format!("/v1/deliveries?destination={queue}"), "deliveries") {
            assert_eq!(one["state"], "delivered", "{one}");
        }
    }
    // What a script has said may still be on its way.
    for (kind, script) in [("hl7", &hl7), ("http", &http)] {
        until("all that was taken is told", || {
            let took = script.took();
            (0..6).all(|n| took.iter().any(|line| line.contains(&format!("{kind}{n}")))).then_some(())
        });
    }
    let mark = |mark: Option<String>| Effect { mark, ..Effect::default() };
    let took = hl7.took().into_iter().map(|id| mark(Some(id))).collect();
    history.partners.insert("lab".into(), Seen::new(Order::Key, took));
    let body = |body: String| {
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        mark(body["mark"].as_str().map(str::to_owned))
    };
    history
        .partners
        .insert("hook".into(), Seen::new(Order::Key, http.took().into_iter().map(body).collect()));
    history.echo(&gateway, "well", Order::Key);
    history.close(&gateway);
    lab::check(&history).expect_clean();
}

#[test]
fn partners_that_vanish_in_the_middle_of_a_message_give_their_places_back() {
    const PLACES: usize = 3;
    let Some(away) = Away::new(1) else { return skipped(NO_NAMESPACES) };
    let port = Port::reserve();
    let gateway = Gateway::builder()
        .app("ehr", &["*"], &["admissions"])
        .inbox("admissions", "order = \"key\"")
        .adapter(
            "lab",
            "run = \"gatepost-hl7\"\nsend = [\"org.hl7.v2.*\"]",
            &format!(
                "listen = \"0.0.0.0:{port}\"\nallow_from = [\"10.77.0.0/16\", \"127.0.0.1\"]\nmax_connections = {PLACES}\nidle_frame_timeout_ms = 1000"
            ),
        )
        .route("lab", &["admissions"])
        .start();
    // Whoever connected to see it would take a place, and give it back nobody knows when.
    until("the adapter listens", || port.is_served().then_some(()));
    let _half = until("all places are taken by those who will vanish", || {
        Some(away.partner("half", &away.here, port.number(), &[&PLACES.to_string()]))
    });
    away.vanish();
    let message = b"\x0bMSH|^~\\&|B||A||2026||ADT^A01|M1|P|2.5\rPID|1||7\r\x1c\r";
    let answer = until("another partner finds a place", || {
        let mut stream = std::net::TcpStream::connect(port.address()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(message).ok()?;
        let mut answer = [0; 512];
        let count = stream.read(&mut answer).ok().filter(|count| *count > 0)?;
        Some(String::from_utf8_lossy(&answer[..count]).into_owned())
    });
    assert!(answer.contains("MSA|AA|M1") || answer.contains("MSA|CA|M1"), "{answer}");
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 1, "half a message is none");
    gateway.audit_verifies();
}

/// On the gateway's own sockets nobody can be cut off; but an app can stop in the middle of a word, or never listen.
#[test]
fn apps_that_stop_in_the_middle_or_never_listen_hold_nothing_up() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "order = \"key\"\nretry = { initial = \"50ms\", max = \"100ms\" }")
        .route("shop", &["desk"])
        .start();
    let submitted = hand_in(&gateway.app(), "shop", "first", "k", &json!({}), &["desk"]);
    let open = || UnixStream::connect(gateway.path("app.sock")).unwrap();
    let half = "POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/cloudevents+json\r\ncontent-length: 500\r\n\r\n{\"specversion\":\"1.0\",";
    let mut silent: Vec<UnixStream> = (0..10).map(|_| open()).collect();
    for stream in &mut silent {
        stream.write_all(half.as_bytes()).unwrap();
    }
    // It leases, and never reads the answer.
    let mut deaf = open();
    let body = json!({ "max": 1, "lease_ms": 300 }).to_string();
    let request = format!(
        "POST /v1/queues/desk/lease HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    deaf.write_all(request.as_bytes()).unwrap();
    until("it has its lease, or had it", || {
        let delivery = gateway.delivery(super::message_of(&submitted));
        delivery["history"].to_string().contains("attempt").then_some(())
    });
    let second = hand_in(&gateway.app(), "shop", "second", "k", &json!({}), &["desk"]);
    for expected in ["first", "second"] {
        let leased = until("the lease of the deaf one is over", || gateway.lease("desk", 5).pop());
        assert_eq!(leased["event"]["id"], expected);
        let settled = json!({ "results": [settle_item(&leased, "delivered")] });
        assert_eq!(gateway.app().post("/v1/settle", &settled).expect(200)["results"][0]["status"], "ok");
    }
    assert_eq!(gateway.delivery(super::message_of(&second))["state"], "delivered");
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 2, "half a request is none");
    drop((silent, deaf));
    gateway.audit_verifies();
}
