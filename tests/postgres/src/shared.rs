//! One cluster for all tests of a process, each with a database of its own.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cluster::Cluster;

/// The process's cluster, started when it is first asked for. A failed start is remembered: it says the same to every test.
pub fn shared() -> io::Result<&'static Cluster> {
    static CLUSTER: OnceLock<Result<Cluster, (io::ErrorKind, String)>> = OnceLock::new();
    let start = || Cluster::start(&[]).map_err(|error| (error.kind(), error.to_string()));
    CLUSTER.get_or_init(start).as_ref().map_err(|(kind, why)| io::Error::new(*kind, why.as_str()))
}

/// The URL of a new, empty database in it.
pub fn fresh_database() -> io::Result<String> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    shared()?.create_database(&format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}
