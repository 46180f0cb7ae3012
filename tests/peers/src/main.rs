//! `make bench-peers`: other durable queues and Gatepost at the same job, on the same disk, in the same run, one after the
//! other and all over again, so that what the machine does meanwhile hits all of them.
//!
//! The job: 1 KiB a message, durable before it is confirmed, durable before an acknowledgement counts. All servers stand
//! idle while one is measured. The generators are as cheap as can be: pipelined, on one thread.

mod drive;
mod gatepost;
mod nats;
mod peer;
mod postgres;
mod rabbitmq;
mod redis;
mod report;
mod server;

use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use gatepost::Store;
use peer::Peer;
use report::{EndToEnd, OnPostgres, Ours, Report, System};

const PAYLOAD_BYTES: usize = 1024;

#[derive(Debug, Parser)]
#[command(name = "gatepost-peers")]
/// Measure other durable queues and Gatepost at the same job
struct Line {
    /// The release build of gatepost
    #[arg(long, value_name = "FILE", default_value = "target/release/gatepost")]
    gatepost: PathBuf,
    /// NATS, 2.10 or newer
    #[arg(long, value_name = "FILE", default_value = "nats-server")]
    nats_server: PathBuf,
    /// Where the data of all of them goes: the disk that is measured [default: the directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Length of each phase, seconds
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds over all systems; medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Leave these out
    #[arg(long, value_name = "PEER", value_delimiter = ',', value_parser = ["redis", "nats", "rabbitmq", "postgresql"])]
    without: Vec<String>,
    /// Gatepost on PostgreSQL with so many nodes
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2,3", value_parser = clap::value_parser!(u32).range(1..=16))]
    nodes: Vec<u32>,
    /// Print JSON with every round
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match server::watch_signals().and_then(|()| run(&Line::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(line: &Line) -> io::Result<()> {
    let parent = line.dir.clone().unwrap_or_else(std::env::temp_dir);
    let directory = tempfile::Builder::new().prefix("peers-").tempdir_in(&parent)?;
    // PostgreSQL's server runs as somebody else and must get through.
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711))?;
    let mut report = Report {
        rounds: line.rounds,
        seconds: line.seconds,
        payload_bytes: PAYLOAD_BYTES,
        ..Report::default()
    };
    let mut peers = start(line, directory.path(), &mut report)?;
    let url_file = peers.iter().find_map(|peer| peer.url_file());
    let mut stores = vec![("Gatepost".to_owned(), Store::Sqlite)];
    for (&nodes, url_file) in line.nodes.iter().zip(std::iter::repeat(&url_file)) {
        let Some(url_file) = url_file else { break };
        let name = format!("Gatepost on PostgreSQL, {nodes} {}", if nodes == 1 { "node" } else { "nodes" });
        report.on_postgres.push(OnPostgres { nodes, figures: Ours::default() });
        stores.push((name, Store::Postgres { url_file, nodes }));
    }
    for round in 1..=line.rounds {
        for (index, (name, store)) in stores.iter().enumerate() {
            server::not_interrupted()?;
            say(&format!("round {round} of {}: {name}", line.rounds));
            let (bench, ours) = gatepost::measure(&line.gatepost, directory.path(), line.seconds, *store)?;
            (report.machine, report.debug_build) = (bench.machine, bench.debug_build);
            match index.checked_sub(1) {
                None => report.gatepost.add(&ours),
                Some(index) => report.on_postgres[index].figures.add(&ours),
            }
        }
        for (peer, system) in peers.iter_mut().zip(&mut report.peers) {
            server::not_interrupted()?;
            say(&format!("round {round} of {}: {}", line.rounds, peer.name()));
            let found = peer::measure(peer.as_mut(), Duration::from_secs(line.seconds));
            let found = found.map_err(|error| io::Error::other(format!("{}: {error}", peer.name())))?;
            system.serial_us_p50.add(found.serial_us_p50);
            system.publish_64_per_s.add(found.publish_64_per_s);
            system.publish_256_per_s.add(found.publish_256_per_s);
            for (index, (consumers, per_s)) in found.end_to_end_per_s.into_iter().enumerate() {
                if system.end_to_end.len() == index {
                    system.end_to_end.push(EndToEnd { consumers, per_s: Default::default() });
                }
                system.end_to_end[index].per_s.add(per_s);
            }
        }
    }
    drop(peers);
    report.compare();
    let text = if line.json {
        serde_json::to_string_pretty(&report).map_err(io::Error::other)?
    } else {
        report.text()
    };
    writeln!(io::stdout().lock(), "{text}")
}

/// Starts what there is; what cannot be started is said and left out.
fn start(line: &Line, dir: &Path, report: &mut Report) -> io::Result<Vec<Box<dyn Peer>>> {
    let payload = payload();
    type Start<'a> = Box<dyn Fn(&Path) -> io::Result<Box<dyn Peer>> + 'a>;
    let all: [(&str, Start<'_>); 4] = [
        ("redis", Box::new(|dir| Ok(Box::new(redis::Redis::start(dir, &payload)?)))),
        ("nats", Box::new(|dir| Ok(Box::new(nats::Nats::start(dir, &line.nats_server, &payload)?)))),
        ("rabbitmq", Box::new(|dir| Ok(Box::new(rabbitmq::RabbitMq::start(dir, &payload)?)))),
        ("postgresql", Box::new(|dir| Ok(Box::new(postgres::Postgres::start(dir, &payload)?)))),
    ];
    let mut peers = Vec::new();
    for (name, start) in all {
        if line.without.iter().any(|without| without == name) {
            continue;
        }
        server::not_interrupted()?;
        say(&format!("starting {name}"));
        let own = dir.join(name);
        std::fs::create_dir(&own)?;
        match start(&own) {
            Ok(peer) => {
                report.peers.push(System {
                    name: peer.name(),
                    version: peer.version(),
                    durability: peer.durability(),
                    ..System::default()
                });
                peers.push(peer);
            }
            Err(error) => {
                say(&format!("SKIPPED {name}: {error}"));
                report.skipped.push(format!("{name}: {error}"));
            }
        }
    }
    Ok(peers)
}

/// The same JSON as `gatepost bench` sends.
fn payload() -> String {
    const FRAME: &str = r#"{"text":""}"#;
    let text = "The quick brown fox. ".repeat(PAYLOAD_BYTES);
    format!(r#"{{"text":"{}"}}"#, &text[..PAYLOAD_BYTES - FRAME.len()])
}

/// Progress, which nobody need read.
fn say(what: &str) {
    let _ = writeln!(io::stderr().lock(), "{what}");
}
