//! Many silent connections, endless bodies and huge heads: others go on, and memory stays bounded.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gatepost_tests::{Gateway, until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::order_event;

const CONNECTIONS: usize = 10_000;
/// Files that this process needs besides.
const FILES_ASIDE: u64 = 200;
const RSS_KIB_MAX: u64 = 150 * 1024;
/// Longest time another client may have to wait for an answer. Generous: the machine is busy and the build is for debugging.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn silent_connections_endless_bodies_and_huge_heads_harm_nobody_else() {
    let gateway = Gateway::builder()
        .app("shop", &["*"], &["desk"])
        .inbox("desk", "")
        .route("shop", &["desk"])
        .listen("serves = \"apps\"\nunix = \"other.sock\"")
        .start();
    let silent = silent_connections(&gateway);
    gatepost_tests::note(&format!("{} silent connections", silent.len()));

    let endless: Vec<UnixStream> = (0..20).map(|_| endless_body(&gateway)).collect();
    let mut sent = 0;
    for _ in 0..20 {
        // A machine that stands still for a moment makes one of them wait; the silent ones would make all.
        until("others are answered in time", || {
            let started = std::time::Instant::now();
            assert_eq!(gateway.admin().get("/livez").status, 200);
            let other = gatepost_tests::http::Client::new(gateway.path("other.sock"));
            other.event(&order_event(&sent.to_string(), "k", &json!(sent))).expect(202);
            sent += 1;
            (started.elapsed() < PATIENCE).then_some(())
        });
    }
    let rss = gateway.rss_kib();
    assert!(rss < RSS_KIB_MAX, "the gateway has {rss} KiB");
    drop((silent, endless));
    until("those who come after are let in", || {
        let answer = gateway.app().send("GET", "/livez", &[], b"").ok()?;
        (answer.status == 200).then_some(())
    });
    huge_head(&gateway);
    assert!(gateway.rss_kib() < RSS_KIB_MAX);
    assert_eq!(gateway.list("/v1/messages", "messages").len(), sent, "what never ended was never there");
}

/// As many as this process may open; the gateway may turn most of them away.
fn silent_connections(gateway: &Gateway) -> Vec<UnixStream> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let room = usize::try_from(hard.saturating_sub(FILES_ASIDE)).unwrap_or(usize::MAX);
    (0..CONNECTIONS.min(room)).map_while(|_| UnixStream::connect(gateway.path("app.sock")).ok()).collect()
}

/// A request whose body is announced and goes on without an end.
fn endless_body(gateway: &Gateway) -> UnixStream {
    let mut stream = UnixStream::connect(gateway.path("other.sock")).unwrap();
    stream
        .write_all(b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/cloudevents+json\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    stream.write_all(b"10000\r\n").unwrap();
    stream.write_all(&[b' '; 0x1000]).unwrap();
    stream
}

fn huge_head(gateway: &Gateway) {
    let mut stream = UnixStream::connect(gateway.path("app.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-huge: ").unwrap();
    // The gateway may hang up before all of it is through.
    let _ = stream.write_all(&vec![b'a'; 1 << 20]);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[test]
fn a_body_over_the_limit_is_refused_while_it_streams() {
    let gateway = Gateway::builder()
        .gateway("max_message = \"1MiB\"")
        .app("shop", &["*"], &[])
        .inbox("desk", "")
        .route("shop", &["desk"])
        .start();
    let before = gateway.rss_kib();
    let large = vec![b'x'; 80 << 20];
    let headers =
        ["ce-specversion: 1.0", "ce-id: 1", "ce-source: /s", "ce-type: t", "content-type: text/plain"];
    let answer = gateway.app().send("POST", "/v1/messages", &headers, &large).unwrap();
    assert_eq!(answer.problem(413), "too_large");
    assert!(
        gateway.rss_kib() < before + 40 * 1024,
        "it was kept in memory: {before} to {} KiB",
        gateway.rss_kib()
    );
    assert_eq!(gateway.list("/v1/messages", "messages").len(), 0);
}

/// SHA-256 of `greedy` and of `good`, which are their tokens.
const GREEDY: &str = "370aed697dc503aecee7d8faad5de775f4f7019c86e672e8d93f3df590527058";
const GOOD: &str = "770e607624d689265ca6c44884d0807d9b054d23c473c106c72be9de08b7376c";
/// What the greedy one may hand in.
const BURST: usize = 20;

#[test]
fn a_greedy_app_gets_what_it_may_have_and_another_all_that_it_needs() {
    let limits =
        format!("limits = {{ rate = \"1/m\", burst = {BURST}, bytes_in_flight = \"256KiB\", requests = 6 }}");
    let app = |digest: &str, more: &str| {
        format!(
            "user = \"{}\"\ntoken_sha256 = \"{digest}\"\nsend = [\"orders.*\"]\n{more}",
            gatepost_tests::uid()
        )
    };
    let gateway = Gateway::builder()
        .table("[apps.greedy]", &app(GREEDY, &limits))
        .table("[apps.good]", &app(GOOD, ""))
        .inbox("desk", "")
        .route("greedy", &["desk"])
        .route("good", &["desk"])
        .start();
    let socket = gateway.path("app.sock");
    let hand_in = |token: &str, name: String| {
        let client = gatepost_tests::http::Client::new(&socket);
        let event = order_event(&name, "k", &json!(1)).to_string();
        let bearer = format!("Authorization: Bearer {token}");
        client
            .send(
                "POST",
                "/v1/messages",
                &["Content-Type: application/cloudevents+json", &bearer],
                event.as_bytes(),
            )
            .unwrap()
    };
    // Two bodies that drip, and one that is announced as more than may be on its way.
    let begin = |length: usize, part: usize| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let head = format!(
            "POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer greedy\r\n\
             content-type: application/cloudevents+json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b' '; part]).unwrap();
        stream
    };
    let drips = [begin(100_000, 10), begin(100_000, 10)];
    let mut huge = begin(300_000, 0);
    huge.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let answer = gatepost_tests::http::read_answer(&mut huge).unwrap();
    assert_eq!(answer.problem(429), "bytes_in_flight");
    assert!(answer.header("retry-after").is_some());

    let (greedy, good) = std::thread::scope(|scope| {
        let floods: Vec<_> = (0..8)
            .map(|thread| {
                let hand_in = &hand_in;
                scope.spawn(move || {
                    let answers = (0..100).map(|n| hand_in("greedy", format!("flood-{thread}-{n}")));
                    answers.filter(|answer| answer.status == 202).count()
                })
            })
            .collect();
        let good = (0..100).filter(|n| hand_in("good", format!("good-{n}")).status == 202).count();
        (floods.into_iter().map(|flood| flood.join().unwrap()).sum::<usize>(), good)
    });
    // The rate goes on meanwhile, but slowly.
    assert!((BURST..BURST + 3).contains(&greedy), "{greedy} of 800 were taken");
    assert_eq!(good, 100);
    let refused = |code: &str| gateway.metric(&format!("gatepost_refused_total{{code=\"{code}\"}}"));
    let codes = ["rate_limited", "too_many_requests", "bytes_in_flight"].map(refused);
    assert!(codes[0] + codes[1] >= 700.0 && codes[2] >= 1.0, "{codes:?}");
    let stored = |app: &str| gateway.list(&format!("/v1/messages?app={app}"), "messages").len();
    assert_eq!((stored("greedy"), stored("good")), (greedy, good), "what was refused is nowhere");
    drop(drips);
}

/// That it measures; what it measures is for people.
#[test]
fn a_measurement_beside_neighbours_says_how_everybody_fared() {
    let dir = tempfile::tempdir().unwrap();
    let kinds = "--neighbours=flood,slow_bodies,silent,garbage,full_queue";
    let output = std::process::Command::new(gatepost_tests::program("gatepost"))
        .args(["--json", "bench", kinds, "--quick", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let neighbours = report["neighbours"].as_array().unwrap();
    let names: Vec<_> = neighbours.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["nobody", "flood", "slow_bodies", "silent", "garbage", "full_queue"]);
    let median = |spread: &serde_json::Value| spread["median"].as_f64().unwrap();
    for one in neighbours {
        for place in ["alone", "elsewhere", "beside"] {
            assert!(median(&one["p99_us"][place]) >= median(&one["p50_us"][place]), "{one}");
            assert!(median(&one["p50_us"][place]) > 0.0, "{one}");
        }
    }
    assert_eq!(neighbours[0]["did"], serde_json::Value::Null);
    for (number, refused) in [(1, true), (2, true), (3, true), (4, false), (5, true)] {
        let did = &neighbours[number]["did"];
        assert!(median(&did["connections_per_s"]) > 0.0, "{did}");
        assert_eq!(median(&did["refused_per_s"]) > 0.0, refused, "{}: {did}", names[number]);
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left behind");
}
