//! Gatepost itself, by its own `bench`: the whole way, over HTTP, with audit log and a separate adapter process. On SQLite, and
//! on the same PostgreSQL server as the plain queue there.

use std::io;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::server::Server;

const PHASES: &str = "accept_serial,accept,accept_batch,e2e,e2e_batch,strict";

#[derive(Debug, Deserialize)]
pub(crate) struct Bench {
    pub(crate) machine: Value,
    pub(crate) debug_build: bool,
    fdatasync_us_p50: Figure,
    phases: Vec<Phase>,
}

#[derive(Debug, Deserialize)]
struct Phase {
    name: String,
    per_s: Figure,
    p50_us: Figure,
}

#[derive(Debug, Deserialize)]
struct Figure {
    median: f64,
}

/// Where its messages are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Store<'a> {
    Sqlite,
    Postgres {
        /// Holds the server's address.
        url_file: &'a Path,
        nodes: u32,
    },
}

/// What one round found.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) fdatasync_us_p50: f64,
    pub(crate) serial_us_p50: f64,
    pub(crate) singles_64_per_s: f64,
    pub(crate) batches_per_s: f64,
    pub(crate) end_to_end_singles_per_s: f64,
    pub(crate) end_to_end_batches_per_s: f64,
    pub(crate) strict_us_p50: f64,
}

pub(crate) fn measure(
    program: &Path,
    dir: &Path,
    seconds: u64,
    store: Store<'_>,
) -> io::Result<(Bench, Figures)> {
    let seconds = seconds.to_string();
    let mut command = Command::new(program);
    command
        .args(["--json", "bench", "--runs", "1", "--seconds", &seconds, "--only", PHASES, "--dir"])
        .arg(dir);
    if let Store::Postgres { url_file, nodes } = store {
        command.arg("--postgres").arg(url_file).args(["--nodes", &nodes.to_string()]);
    }
    let text = Server::output(&mut command)?;
    let bench: Bench = serde_json::from_str(&text).map_err(io::Error::other)?;
    let phase = |name: &str| {
        let found = bench.phases.iter().find(|phase| phase.name == name);
        found.ok_or_else(|| io::Error::other(format!("`gatepost bench` did not measure {name}")))
    };
    let figures = Figures {
        fdatasync_us_p50: bench.fdatasync_us_p50.median,
        serial_us_p50: phase("accept_serial")?.p50_us.median,
        singles_64_per_s: phase("accept")?.per_s.median,
        batches_per_s: phase("accept_batch")?.per_s.median,
        end_to_end_singles_per_s: phase("e2e")?.per_s.median,
        end_to_end_batches_per_s: phase("e2e_batch")?.per_s.median,
        strict_us_p50: phase("strict")?.p50_us.median,
    };
    Ok((bench, figures))
}
