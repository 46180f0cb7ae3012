//! Several nodes on one PostgreSQL, each with an address of its own, killed, stopped and cut off in turn.

mod failover;
mod net;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gatepost_postgres::Cluster;
use gatepost_tests::http::Client;
use gatepost_tests::lab::{Answer, Effect, History, Order, Partner, Submission, Submitted, Verdict, check};
use gatepost_tests::{Gateway, note, skipped, until_within};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use net::Net;

const NODES: usize = 3;
const LANES: usize = 500;
/// So many at least; they go on until the test has done all it does.
const PER_LANE: usize = 20;
const SENDERS: usize = 5;
/// Events of one request, each in a lane of its own.
const BATCH: usize = 20;
/// Between two requests of a sender, so that there are some for every fault.
const PACE: Duration = Duration::from_millis(250);
/// Longer than a node's right to write lasts.
const PAST_THE_LEASE: Duration = Duration::from_secs(7);
/// How long everything may take to be settled once the nodes are left alone.
const DRAINED: Duration = Duration::from_secs(180);

/// The nodes, and what they share.
struct Nodes {
    nodes: Vec<Gateway>,
    partner: PathBuf,
    /// What undoes faults later.
    mending: Vec<JoinHandle<()>>,
    _shared: tempfile::TempDir,
}

impl Nodes {
    /// Nodes on the database with this address, each in one of these network namespaces, or in the tests' own.
    fn start(url: &str, namespaces: &[Option<&str>]) -> Self {
        let shared = tempfile::tempdir().unwrap();
        let partner = shared.path().join("partner");
        // Its sandbox lets the adapter write to files that are there.
        std::fs::write(&partner, "").unwrap();
        let mut nodes: Vec<Gateway> = Vec::new();
        for (number, namespace) in namespaces.iter().enumerate() {
            let mut builder = Gateway::builder()
                .postgres(url)
                .gateway(&format!("node = \"node-{}\"", number + 1))
                .app("shop", &["*"], &[])
                .adapter(
                    "lab",
                    "run = \"gatepost-echo\"\norder = \"key\"\nretry = { initial = \"100ms\", max = \"1s\" }",
                    &format!("effects = {:?}", partner.display().to_string()),
                )
                .route("shop", &["lab"]);
            if let Some(namespace) = namespace {
                builder = builder.namespace(namespace);
            }
            let mut node = builder.prepare();
            if let Some(first) = nodes.first() {
                copy_keys(&first.path("data/keys"), &node.path("data/keys"));
            }
            node.restart();
            nodes.push(node);
        }
        Self { nodes, partner, mending: Vec::new(), _shared: shared }
    }

    /// Waits until everything is settled, and judges it all.
    fn judge(&self, submissions: Vec<Submission>) -> Verdict {
        until_within(DRAINED, "everything is settled", || {
            let mut counts = self.nodes.iter().map(|node| node.unsettled("lab"));
            counts.all(|left| left == 0).then_some(())
        });
        let mut history = History { submissions, ..History::default() };
        let effects = self.effects().iter().map(Effect::noted).collect();
        history.partners.insert("lab".to_owned(), Partner::new(Order::Key, effects));
        history.close(&self.nodes[0]);
        // Every node has the same log, and can prove it alone.
        self.nodes.iter().for_each(Gateway::audit_verifies);
        check(&history)
    }

    /// What the partner has got, oldest first; a line that its writer did not end is none.
    fn effects(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.partner).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The node that runs the adapter.
    fn runner(&self) -> usize {
        until_within(DRAINED, "some node runs the adapter", || {
            (0..self.nodes.len()).find(|node| {
                let answer = self.nodes[*node].admin().send("GET", "/v1/adapters", &[], b"");
                answer.is_ok_and(|answer| {
                    answer.status == 200 && answer.json()["adapters"][0]["state"] == "running"
                })
            })
        })
    }

    /// `gatepost status` on any node shows all of them, and who runs the adapter.
    fn assert_all_listed(&self) {
        let names: Vec<String> = (1..=self.nodes.len()).map(|number| format!("node-{number}")).collect();
        for (node, name) in self.nodes.iter().zip(&names) {
            until_within(DRAINED, "every node is listed, and no other", || {
                let status: Value = serde_json::from_slice(&node.cli(&["--json", "status"]).stdout).ok()?;
                let listed = status["nodes"].as_array()?;
                let is = |node: &Value, key: &str| node[key].as_bool().unwrap_or(false);
                let runs = |node: &Value| node["adapters"][0] == "lab";
                let all = listed
                    .iter()
                    .map(|node| node["name"].as_str())
                    .eq(names.iter().map(|name| Some(name.as_str())));
                let here = listed.iter().filter(|node| is(node, "here")).all(|here| here["name"] == *name);
                let runners: Vec<&Value> =
                    listed.iter().filter(|node| runs(node)).map(|node| &node["name"]).collect();
                // Who is held up may lose that to another meanwhile.
                let runner = format!("node-{}", self.runner() + 1);
                let sequencers = listed.iter().filter(|node| is(node, "sequencer")).count();
                (all && here && runners == [runner.as_str()] && sequencers == 1).then_some(())
            });
        }
    }

    /// How long the partner gets nothing after `fault`, which hits the node that delivers.
    fn gap(&mut self, fault: impl FnOnce(&mut Self, usize)) -> Duration {
        let runner = self.runner();
        let hit_at = Instant::now();
        fault(self, runner);
        // What its adapter had already goes on for a moment.
        let seen = self.effects().len();
        let delivers = || (self.effects().len() > seen + BATCH).then_some(());
        until_within(DRAINED, "another node delivers", delivers);
        let gap = hit_at.elapsed();
        // One fault at a time: two of three nodes are there for every message.
        self.mending.drain(..).for_each(|mending| mending.join().unwrap());
        self.nodes.iter_mut().filter(|node| node.is_stopped()).for_each(Gateway::restart);
        gap
    }
}

fn copy_keys(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for key in ["store.key", "audit.key", "seal-1.key"] {
        std::fs::copy(from.join(key), to.join(key)).unwrap();
    }
}

/// Senders, each with lanes of its own; what a node does not take for sure they hand in again, at the next one.
struct Senders {
    threads: Vec<JoinHandle<Vec<Submission>>>,
    accepted: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
}

impl Senders {
    fn start(nodes: &[Gateway]) -> Self {
        let clients: Vec<Client> = nodes.iter().map(Gateway::app).collect();
        let (accepted, enough) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let threads = (0..SENDERS).map(|sender| {
            let (clients, accepted, enough) = (clients.clone(), Arc::clone(&accepted), Arc::clone(&enough));
            std::thread::spawn(move || send_all(sender, &clients, &accepted, &enough))
        });
        Self { threads: threads.collect(), accepted, enough }
    }

    fn finish(self) -> Vec<Submission> {
        self.enough.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    }
}

fn send_all(
    sender: usize,
    clients: &[Client],
    accepted: &AtomicUsize,
    enough: &AtomicBool,
) -> Vec<Submission> {
    let lanes: Vec<usize> = (0..LANES).filter(|lane| lane % SENDERS == sender).collect();
    let mut node = sender % clients.len();
    let mut submissions = Vec::new();
    let goes_on = |number: &usize| *number < PER_LANE || !enough.load(Ordering::Relaxed);
    for number in (0..).take_while(goes_on) {
        for lanes in lanes.chunks(BATCH) {
            let marks: Vec<(String, String)> =
                lanes.iter().map(|lane| (format!("{lane}:{number}"), lane.to_string())).collect();
            let events: Vec<Value> = marks.iter().map(|(mark, lane)| event(mark, lane)).collect();
            let answer = loop {
                match clients[node].try_batch(&events) {
                    Ok(answer) if answer.status == 202 => break Answer::accepted(&answer.json()),
                    // Refused for the moment, or nobody knows: with the same ids it is the same hand-in.
                    Ok(_) | Err(_) => {
                        node = (node + 1) % clients.len();
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            };
            accepted.fetch_add(marks.len(), Ordering::Relaxed);
            let events =
                marks.iter().map(|(mark, lane)| Submitted::new(mark, Some(lane), &["lab"])).collect();
            // To the judge each of them is a sender: it hands in one after the other.
            submissions.push(Submission { sender: format!("shop-{sender}"), events, answer });
            node = (node + 1) % clients.len();
            std::thread::sleep(PACE);
        }
    }
    submissions
}

fn handed_in(submissions: &[Submission]) -> u64 {
    submissions.iter().map(|submission| submission.events.len() as u64).sum()
}

fn event(mark: &str, lane: &str) -> Value {
    json!({
        "specversion": "1.0", "id": mark, "source": "/shop", "type": "orders.new", "partitionkey": lane,
        "datacontenttype": "application/json", "data": { "mark": mark },
    })
}

#[test]
fn three_nodes_lose_nothing_and_keep_every_lane_in_order_whatever_happens_to_them() {
    let net = match Net::new(NODES) {
        Ok(net) => net,
        Err(error) => return skipped(&format!("needs network namespaces: {error}")),
    };
    let files = tempfile::tempdir().unwrap();
    let (database, url) = remote_database(&net, &files.path().join("ca.pem"));
    let namespaces: Vec<Option<&str>> = net.namespaces().iter().map(|name| Some(name.as_str())).collect();
    let mut nodes = Nodes::start(&url, &namespaces);
    let senders = Senders::start(&nodes.nodes);
    let mut gaps: BTreeMap<&str, Duration> = BTreeMap::new();
    for (name, fault) in FAULTS {
        gaps.insert(name, nodes.gap(|nodes, runner| fault(nodes, &net, runner)));
    }
    nodes.assert_all_listed();
    let meanwhile = senders.accepted.load(Ordering::Relaxed);
    let submissions = senders.finish();
    let sent = handed_in(&submissions);
    let verdict = nodes.judge(submissions);
    note(&format!(
        "three nodes: {verdict}; accepted meanwhile: {meanwhile}; delivering again after {gaps:?}"
    ));
    assert!(verdict.is_clean(), "{verdict}");
    assert_eq!(verdict.accepted, sent);
    drop(database);
}

/// A database on another machine, as far as the nodes can tell: they go there only if it proves who it is.
fn remote_database(net: &Net, authority: &Path) -> (Cluster, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    std::fs::write(authority, params.self_signed(&key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![net.host().to_string()]).unwrap();
    // With its issuer's name it would count as its own issuer.
    params.distinguished_name.push(DnType::CommonName, "database");
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let cluster = Cluster::listen_with_tls(net.host(), &certificate, &key.serialize_pem())
        .expect("a PostgreSQL server for the tests");
    let url = cluster.tcp_url("postgres").expect("it listens on an address");
    (cluster, format!("{url}?sslmode=verify-full&sslrootcert={}", authority.display()))
}

type Fault = fn(&mut Nodes, &Net, usize);

/// What happens to the node that delivers. Afterwards it comes back.
const FAULTS: [(&str, Fault); 4] =
    [("killed", killed), ("stopped", stopped), ("cut off", cut_off), ("killed for good", killed_and_away)];

/// Whoever starts it again at once.
fn killed(nodes: &mut Nodes, _: &Net, node: usize) {
    nodes.nodes[node].kill();
    nodes.nodes[node].restart();
}

/// It wakes up after others have taken its place.
fn stopped(nodes: &mut Nodes, _: &Net, node: usize) {
    let pid = nix::unistd::Pid::from_raw(nodes.nodes[node].pid().cast_signed());
    nodes.nodes[node].signal(Signal::SIGSTOP);
    let woken = move || {
        std::thread::sleep(PAST_THE_LEASE);
        let _ = nix::sys::signal::kill(pid, Signal::SIGCONT);
    };
    nodes.mending.push(std::thread::spawn(woken));
}

/// No packet reaches the database or comes from it.
fn cut_off(nodes: &mut Nodes, net: &Net, node: usize) {
    net.cut(node);
    let mending = net.mend_later(node, PAST_THE_LEASE);
    nodes.mending.push(mending);
}

/// It comes back when the others have gone on.
fn killed_and_away(nodes: &mut Nodes, _: &Net, node: usize) {
    nodes.nodes[node].kill();
}
