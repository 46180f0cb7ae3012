//! The adapter as a process: command line, settings, signals, exit codes.
//!
//! Standard output belongs to `--manifest` and `--check`; everything else is said on standard error.

use std::fmt;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::client::{Call, Client, Purpose};
use crate::lifetime::{Ending, Lifetime};
use crate::patience::Chain;
use crate::session::Session;
use gatepost_api::settle::Level;

/// The version of the conversation between gateway and adapter.
const PROTOCOL: u32 = 1;
/// Where the gateway's socket stands; the only setting in the environment.
pub(crate) const SOCKET_VARIABLE: &str = "GATEPOST_SOCKET";
/// Settings are a page of text at most.
const SETTINGS_BYTES_MAX: u64 = 1024 * 1024;
/// An adapter whose gateway is gone for this long has nobody to work for.
const GONE_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long attempts may take to finish after the signal to stop. Shorter than the gateway's own patience, after which it
/// kills.
const DRAIN_DEADLINE: Duration = Duration::from_secs(8);

/// Stands in the place of a setting's name where a fault is of all of them.
const WHOLE: &str = "settings";

const EXIT_FAILED: u8 = 1;
const EXIT_SETTINGS: u8 = 2;
const EXIT_SUPERSEDED: u8 = 3;
const EXIT_GATEWAY_GONE: u8 = 4;

/// One partner protocol.
pub trait Adapter: 'static {
    /// Unknown keys must be refused (`#[serde(deny_unknown_fields)]`).
    type Settings: DeserializeOwned + JsonSchema + Send;

    const MANIFEST: Manifest;

    /// What is wrong with settings that could be read, all of it.
    fn check(settings: &Self::Settings) -> Vec<Fault>;

    /// What the settings imply that the process must reach: the gateway lets it reach nothing else. Nothing by default.
    fn access(settings: &Self::Settings) -> Access {
        let _ = settings;
        Access::default()
    }

    /// Works until the session asks to stop.
    fn run(settings: Self::Settings, session: Session) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// What the program can do, told to the gateway before it starts it.
#[derive(Debug, Clone, Copy)]
pub struct Manifest {
    pub version: &'static str,
    /// The levels of evidence that this protocol can give.
    pub levels: &'static [Level],
    /// Can ask the partner what became of a delivery in doubt.
    pub query: bool,
    /// Can take several deliveries of one lane at a time, in order: also over its connections, and over its processes for what it reports
    /// as `sent`.
    pub ordered_pipeline: bool,
}

/// What a process reaches besides its gateway, and what else its settings need of the gateway's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Access {
    /// Partners, each `host:port`.
    pub connect: Vec<String>,
    /// Where it listens, each `address:port`.
    pub bind: Vec<String>,
    /// Files and directories, by absolute paths.
    pub read: Vec<PathBuf>,
    /// The same, to be written too.
    pub write: Vec<PathBuf>,
    /// It connects by itself, so that only its ports can be enforced: not through [`connect`](crate::egress::connect).
    pub direct: bool,
    /// Its deliveries must be one lane: `order = "strict"`, which the gateway then asks for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict_order: bool,
}

#[derive(Serialize)]
struct ManifestDocument {
    protocol: u32,
    version: &'static str,
    levels: &'static [Level],
    query: bool,
    ordered_pipeline: bool,
    /// It understands `--access`.
    access: bool,
    settings_schema: schemars::Schema,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The setting's path, as `tables.table.key` and [`element`].
    pub key: String,
    pub message: String,
}

impl Fault {
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

/// The path of a list's element: `list[1]` is the first, since people count from 1.
pub fn element(list: impl fmt::Display, index: usize) -> String {
    format!("{list}[{}]", index + 1)
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// Why an adapter cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("a worker panicked")]
    WorkerPanicked,
    /// In the adapter's own words.
    #[error("{what}")]
    Adapter {
        what: String,
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl Failure {
    pub fn new(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Adapter { what: what.into(), source: Some(source.into()) }
    }
}

/// What every adapter understands on its command line. Without any of it, it works for the gateway whose socket the
/// environment variable GATEPOST_SOCKET names.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Print what this adapter can do, as JSON, and exit
    #[arg(long, conflicts_with_all = ["access", "check"])]
    manifest: bool,
    /// Read settings as JSON on standard input, print what they imply that this adapter must reach, as JSON, and exit; with 2
    /// if they cannot be read
    #[arg(long, conflicts_with = "check")]
    access: bool,
    /// Read settings as JSON on standard input, print their faults, exit with 0 if there are none and 2 if there are
    #[arg(long)]
    check: bool,
}

/// Runs the adapter as its command line says.
pub fn main<A: Adapter>(args: &Args) -> ExitCode {
    if args.manifest {
        return print_manifest::<A>();
    }
    if args.access {
        return print_access::<A>();
    }
    if args.check {
        return check::<A>();
    }
    log_to_stderr();
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE) else {
        tracing::error!("{SOCKET_VARIABLE} is not set: this program is started by gatepost, which sets it");
        return ExitCode::from(EXIT_FAILED);
    };
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work::<A>(socket.into())),
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn print_manifest<A: Adapter>() -> ExitCode {
    let Manifest { version, levels, query, ordered_pipeline } = A::MANIFEST;
    let settings_schema = schemars::schema_for!(A::Settings);
    let document = ManifestDocument {
        protocol: PROTOCOL,
        version,
        levels,
        query,
        ordered_pipeline,
        access: true,
        settings_schema,
    };
    let mut out = std::io::stdout().lock();
    let written = serde_json::to_writer_pretty(&mut out, &document).is_ok() && writeln!(out).is_ok();
    if written { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

/// Before anything that the settings name may be looked at: so they are read, and not checked.
fn print_access<A: Adapter>() -> ExitCode {
    let Some(settings) = settings_text().ok().and_then(|text| serde_json::from_str(&text).ok()) else {
        return ExitCode::from(EXIT_SETTINGS);
    };
    let mut out = std::io::stdout().lock();
    let written = serde_json::to_writer(&mut out, &A::access(&settings)).is_ok() && writeln!(out).is_ok();
    if written { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) }
}

fn settings_text() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(SETTINGS_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn check<A: Adapter>() -> ExitCode {
    let faults = match settings_text() {
        Ok(text) => read_settings::<A>(&text).err().unwrap_or_default(),
        Err(error) => vec![Fault::new(WHOLE, format!("cannot be read: {error}"))],
    };
    let mut out = std::io::stdout().lock();
    let written = faults.iter().try_for_each(|fault| writeln!(out, "{fault}"));
    if faults.is_empty() && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_SETTINGS) }
}

fn read_settings<A: Adapter>(text: &str) -> Result<A::Settings, Vec<Fault>> {
    let mut json = serde_json::Deserializer::from_str(text);
    let settings = serde_path_to_error::deserialize(&mut json).map_err(|error| vec![unreadable(&error)])?;
    json.end().map_err(|error| vec![Fault::new(WHOLE, error.to_string())])?;
    let faults = A::check(&settings);
    if faults.is_empty() { Ok(settings) } else { Err(faults) }
}

/// Names the setting. The position is left out: whoever wrote the settings wrote them as TOML.
fn unreadable(error: &serde_path_to_error::Error<serde_json::Error>) -> Fault {
    let message = error.inner().to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    let path = error.path().iter().fold(String::new(), |path, segment| match segment {
        Segment::Seq { index } => element(path, *index),
        Segment::Map { .. } | Segment::Enum { .. } | Segment::Unknown if path.is_empty() => {
            segment.to_string()
        }
        Segment::Map { .. } | Segment::Enum { .. } | Segment::Unknown => format!("{path}.{segment}"),
    });
    Fault::new(if path.is_empty() { WHOLE.to_owned() } else { path }, message)
}

fn log_to_stderr() {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // The gateway, or whoever else keeps the log, writes the time.
        .without_time()
        .with_max_level(tracing::Level::INFO)
        .finish();
    // Fails only if there is one already, and then that one is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

async fn work<A: Adapter>(socket: PathBuf) -> ExitCode {
    let client = Arc::new(Client::new(socket));
    let lifetime = Lifetime::new();
    let (mut terminate, mut interrupt) =
        match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
            (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot listen for signals");
                return ExitCode::from(EXIT_FAILED);
            }
        };
    tokio::select! {
        // In this order: an ending also stops the work, which must not pass for having been asked to stop.
        biased;
        ending = lifetime.ended() => end(ending),
        // It may have ended since the line above was looked at.
        code = serve::<A>(Arc::clone(&client), lifetime.clone()) => lifetime.ending().map_or(code, end),
        () = watch_gateway(&client) => end(Ending::GatewayGone),
        () = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            lifetime.drain();
            sleep(DRAIN_DEADLINE).await;
        } => {
            tracing::warn!(seconds = DRAIN_DEADLINE.as_secs(), "attempts did not finish in time; leaving them to the gateway");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

async fn serve<A: Adapter>(client: Arc<Client>, lifetime: Lifetime) -> ExitCode {
    let (session, settings) = match Session::open(client, lifetime, A::MANIFEST.version).await {
        Ok(opened) => opened,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "cannot start");
            return ExitCode::from(EXIT_FAILED);
        }
    };
    let settings = match read_settings::<A>(settings.get()) {
        Ok(settings) => settings,
        Err(faults) => {
            for fault in faults {
                tracing::error!(%fault, "the settings are wrong");
            }
            return ExitCode::from(EXIT_SETTINGS);
        }
    };
    tracing::info!(
        adapter = session.name(),
        epoch = session.epoch(),
        version = A::MANIFEST.version,
        "working"
    );
    match A::run(settings, session).await {
        Ok(()) => {
            tracing::info!("stopped");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            tracing::error!(error = %Chain(&failure), "cannot go on");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn end(ending: Ending) -> ExitCode {
    match ending {
        Ending::Superseded => {
            tracing::warn!("a newer session of this adapter is open; this one ends");
            ExitCode::from(EXIT_SUPERSEDED)
        }
        Ending::GatewayGone => {
            tracing::error!(seconds = GONE_AFTER.as_secs(), "the gateway's socket is gone");
            ExitCode::from(EXIT_GATEWAY_GONE)
        }
        Ending::Refused => ExitCode::from(EXIT_FAILED),
    }
}

/// Comes back when the gateway could not be reached for too long. An adapter that only takes in makes no calls of its
/// own while its partners are silent, so this looks by itself.
async fn watch_gateway(client: &Client) {
    let call = Call::get(Purpose::Poll, "/livez", LOOK_EVERY);
    loop {
        // Any answer will do, also none within the second: a slow gateway is not a gone one.
        let _ = timeout(LOOK_EVERY, client.exchange(&call)).await;
        if client.unreachable_for() >= GONE_AFTER {
            return;
        }
        sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sample;

    #[derive(serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        port: u16,
        #[serde(default)]
        peers: Vec<Peer>,
    }

    #[derive(serde::Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Peer {
        name: String,
    }

    impl Adapter for Sample {
        type Settings = Settings;
        const MANIFEST: Manifest =
            Manifest { version: "1", levels: &[Level::Sent], query: false, ordered_pipeline: false };

        fn check(settings: &Settings) -> Vec<Fault> {
            let port = (settings.port == 0).then(|| Fault::new("port", "must not be 0"));
            let nameless = settings.peers.iter().position(|peer| peer.name.is_empty());
            let name =
                nameless.map(|at| Fault::new(format!("{}.name", element("peers", at)), "must not be empty"));
            port.into_iter().chain(name).collect()
        }

        async fn run(_: Settings, _: Session) -> Result<(), Failure> {
            Ok(())
        }
    }

    #[test]
    fn settings_are_read_or_their_faults_told() {
        assert_eq!(read_settings::<Sample>(r#"{"port":1}"#).map(|settings| settings.port), Ok(1));
        let fault = |text: &str| read_settings::<Sample>(text).map(|_| ()).unwrap_err()[0].to_string();
        assert_eq!(fault(r#"{"port":0}"#), "port: must not be 0");
        assert_eq!(fault(r#"{"port":1,"prot":2}"#), "prot: unknown field `prot`, expected `port` or `peers`");
        assert_eq!(fault(r#"{"a":[],"port":1}"#), "a: unknown field `a`, expected `port` or `peers`");
        for text in ["{\"port\":\"7\"}", "{\n\"port\": \"7\"\n}"] {
            assert_eq!(fault(text), "port: invalid type: string \"7\", expected u16");
        }
        assert_eq!(fault("{}"), "settings: missing field `port`");
        let peers = |peer: &str| fault(&format!(r#"{{"port":1,"peers":[{{"name":"a"}},{peer}]}}"#));
        assert_eq!(peers(r#"{"name":7}"#), "peers[2].name: invalid type: integer `7`, expected a string");
        assert_eq!(peers(r#"{"nam":"b"}"#), "peers[2].nam: unknown field `nam`, expected `name`");
        assert_eq!(peers(r#"{"name":""}"#), "peers[2].name: must not be empty");
        assert_eq!(peers("{}"), "peers[2]: missing field `name`");
        assert!(fault(r#"{"port":1} x"#).starts_with("settings: trailing characters"));
        assert!(fault("").starts_with("settings: EOF"));
    }
}
