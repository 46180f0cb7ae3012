//! The configuration: `gatepost.toml`, parsed once into types that need no further validation. All faults of a file are
//! reported together, each with line, column, key path and what to do.
//!
//! * [`Config::load`] finds and reads the file; [`Config::parse`] reads a text; both give everything below or an error that
//!   prints every fault. [`schema`] and [`init`] serve the commands of the same names.
//! * [`Config`]: `gateway` ([`Gateway`]: limits and the data directory), `store`, `listens` ([`Listen`]), `apps`, `operators`,
//!   `adapters` (by name, in `Arc`s), `inboxes`, `routes` (compiled), `digest` (of the file, for the audit leaf).
//! * Who a peer is: [`Config::recognises`] before a byte is read, [`Config::match_principal`] with the request's bearer token.
//!   Both take [`PeerFacts`] (what the kernel or the certificate says) and give a [`Principal`], from which rights are asked:
//!   [`Principal::send_permit`], [`Principal::queue_permit`], [`Principal::operator_permit`].
//! * Queues: [`Config::queue`] and [`Config::queues`] give the [`QueuePolicy`] of every adapter, every inbox and [`UNROUTED`].
//! * [`Rule`] lists what is refused or warned of, [`Owners`] judges files and directories.
//! * A reload loads anew, asks [`Config::needs_restart`] of what runs, and swaps.
//! * An [`Adapter`]'s [`AdapterProcess`] says whether the gateway starts it ([`Run`]) or it comes by itself ([`Selector`]).
//!
//! **Architecture invariant:** nothing here opens a socket, starts a task or changes a file, except [`init`]. Secrets never
//! stand in the file: it names files that hold them, and tokens by their SHA-256.

mod accounts;
mod fault;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod gateway;
mod identity;
mod init;
mod keys;
mod limits;
mod listens;
mod load;
mod names;
mod owners;
mod path;
mod places;
mod principals;
mod queues;
mod resources;
mod routes;
mod rules;
mod sandbox;
mod schema;
mod section;
mod settings;
mod shape;
mod spiffe;
mod store;
mod units;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gatepost_core::QueuePolicy;
use gatepost_core::principal::{OperatorRights, TypePatterns};
use gatepost_core::routing::Routes;

pub(crate) use fault::{Fault, suggestion};
pub(crate) use gateway::DATA_DIR;
pub(crate) use identity::{IssuedTokens, MatchError, PeerFacts, Principal, Selector, Wanted};
pub(crate) use init::{check, init};
pub(crate) use limits::{PrincipalLimits, Rate};
pub(crate) use load::LoadError;
pub(crate) use owners::{Owners, is_credential};
pub(crate) use principals::DELETED;
pub(crate) use resources::Resources;
#[cfg(test)]
pub(crate) use resources::{Cpus, Limit};
pub(crate) use rules::{Facts, Rule, Verdict};
pub(crate) use sandbox::{
    ALLOWED_MAX, Access, Connect, HOSTS_MAX, Host, Level, RunAs, Safety, Sandbox, reaches,
};
pub(crate) use schema::schema;
pub(crate) use spiffe::spiffe_fault;
pub(crate) use store::{CREDENTIALS, credentials};
pub(crate) use units::{SIZE_BYTES_MAX, duration};

/// The built-in queue that holds emitted messages which no route takes or their adapter may not send. It is always there.
pub(crate) const UNROUTED: &str = "unrouted";

/// A valid configuration.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file it came from, as it was found.
    pub(crate) file: PathBuf,
    /// SHA-256 of the file, hex.
    pub(crate) digest: String,
    pub(crate) gateway: Gateway,
    pub(crate) store: Store,
    pub(crate) encryption: gatepost_store::Encryption,
    pub(crate) seal_keys: gatepost_store::SealKeysFrom,
    pub(crate) listens: Vec<Listen>,
    pub(crate) apps: BTreeMap<String, Arc<App>>,
    pub(crate) operators: BTreeMap<String, Arc<Operator>>,
    pub(crate) adapters: BTreeMap<String, Arc<Adapter>>,
    pub(crate) inboxes: BTreeMap<String, Inbox>,
    pub(crate) routes: Routes,
    /// What it is warned of.
    pub(crate) warnings: Vec<Fault>,
    /// As it was read; a reload reads it alike.
    pub(crate) safety: Safety,
    places: places::Places,
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gateway {
    /// Origin of the audit log; the host's name unless given.
    pub(crate) name: String,
    /// Name of this node among several; the host's name unless given.
    pub(crate) node: String,
    /// Whom it becomes if root starts it.
    pub(crate) user: Option<RunAs>,
    pub(crate) data_dir: PathBuf,
    /// Largest payload of one message, bytes.
    pub(crate) max_message: u64,
    /// How long an idempotency key is remembered; never shorter than any destination's `give_up_after`.
    pub(crate) dedup_window: Duration,
    /// Age at which settled messages are purged.
    pub(crate) retention: Duration,
    /// Most connections open at a time on one listener; the gateway's total is a multiple of it.
    pub(crate) max_connections: u32,
}

/// `[store]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Store {
    /// SQLite in the data directory.
    #[default]
    Sqlite,
    /// Shared with other nodes.
    Postgres {
        /// The file that holds its address; absolute.
        url_file: PathBuf,
        engines: gatepost_store::Engines,
    },
}

/// Which kind of principal a socket serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Serves {
    Apps,
    Operators,
    /// External adapters; the sockets of supervised ones are made by the supervisor.
    Adapters,
}

/// `[[listen]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listen {
    pub(crate) serves: Serves,
    pub(crate) at: ListenAt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ListenAt {
    Unix(UnixListen),
    Tcp(TcpListen),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnixListen {
    /// Absolute; short enough for a socket address.
    pub(crate) path: PathBuf,
    /// Permission bits, never writable by everybody.
    pub(crate) mode: u32,
    /// The gid the socket shall belong to.
    pub(crate) group: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TcpListen {
    pub(crate) address: SocketAddr,
    pub(crate) tls: TlsFiles,
}

/// PEM files, absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: PathBuf,
    /// Revocation lists; with any, a certificate whose standing they do not tell is refused.
    pub(crate) crl: Vec<PathBuf>,
}

/// `[apps.NAME]`
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) name: String,
    pub(crate) selector: Selector,
    pub(crate) send: TypePatterns,
    /// The inboxes it may read from.
    pub(crate) inboxes: Vec<String>,
    pub(crate) limits: PrincipalLimits,
}

/// `[operators.NAME]`
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) name: String,
    pub(crate) selector: Selector,
    pub(crate) rights: OperatorRights,
}

/// `[adapters.NAME]`; its queue has the same name.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) name: String,
    pub(crate) process: AdapterProcess,
    /// What it may emit or take in from outside.
    pub(crate) send: TypePatterns,
    pub(crate) policy: QueuePolicy,
    pub(crate) limits: PrincipalLimits,
    pub(crate) nodes: Nodes,
    /// What is taken from the process that the gateway starts.
    pub(crate) sandbox: Sandbox,
    /// The adapter's own settings, unchecked here.
    pub(crate) settings: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AdapterProcess {
    /// The gateway starts it and knows it by its pid.
    Supervised(Run),
    /// Somebody else starts it; it connects to a listener that serves adapters.
    External(Selector),
}

/// The program of a supervised adapter. Never a shell line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) program: Program,
    pub(crate) args: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Sought beside `gatepost`, then in PATH.
    Name(String),
    /// An absolute path.
    File(PathBuf),
}

/// On how many nodes of several an adapter runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Nodes {
    #[default]
    One,
    /// Only for adapters without state of their own.
    Each,
}

/// `[inboxes.NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inbox {
    pub(crate) name: String,
    pub(crate) policy: QueuePolicy,
}

impl Config {
    /// Every queue with its policy.
    pub(crate) fn queues(&self) -> impl Iterator<Item = (&str, QueuePolicy)> {
        let adapters = self.adapters.values().map(|adapter| (adapter.name.as_str(), adapter.policy));
        let inboxes = self.inboxes.values().map(|inbox| (inbox.name.as_str(), inbox.policy));
        adapters.chain(inboxes).chain(std::iter::once((UNROUTED, unrouted_policy())))
    }

    /// A fault below `adapters` that the file's text alone does not show.
    pub(crate) fn adapter_fault(&self, key: String, text: String) -> Fault {
        let (line, column) = self.places.of(&key);
        Fault { file: self.file.clone(), line, column, key, text, rule: None }
    }

    /// The keys in which `new` differs and which are read only when the gateway starts: what a reload must refuse. This is the
    /// one list of them.
    pub(crate) fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let (was, will) = (&self.gateway, &new.gateway);
        let fixed = [
            ("gateway.name", was.name != will.name),
            ("gateway.node", was.node != will.node),
            ("gateway.user", was.user != will.user),
            ("gateway.data_dir", was.data_dir != will.data_dir),
            ("gateway.dedup_window", was.dedup_window != will.dedup_window),
            ("gateway.retention", was.retention != will.retention),
            ("gateway.max_connections", was.max_connections != will.max_connections),
            ("store", self.store != new.store),
            ("encryption", self.encryption != new.encryption || self.seal_keys != new.seal_keys),
            ("listen", self.listens != new.listens),
        ];
        fixed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
    }
}

fn unrouted_policy() -> QueuePolicy {
    QueuePolicy { confirm: None, ..QueuePolicy::default() }
}
