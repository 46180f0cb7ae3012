//! What an adapter's program says of itself before it is started in earnest: `--manifest`, `--access` and `--check`. Its answers are a
//! stranger's: bounded in time and size, and read strictly.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use gatepost_core::policy::{Level, OnDoubt, Order};
use nix::unistd::geteuid;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::exec::EXIT_CANNOT_EXECUTE;
use super::launch::{Launch, Launcher, Purpose, Question as Asked};
use super::output::printable;
use super::program::{Command, SearchPath};
use super::sandbox::{Outcome, Policy, Unreachable};
use crate::config::{
    ALLOWED_MAX, Access, Adapter, AdapterProcess, Config, Fault, HOSTS_MAX, RunAs, reaches, suggestion,
};

/// The version of the conversation between gateway and adapter.
const PROTOCOL: u32 = 1;
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Faults of one adapter's settings that are shown.
const FAULTS_MAX: usize = 50;
const FAULT_BYTES_MAX: usize = 500;
/// Programs asked at a time.
const ASKED_AT_A_TIME: usize = 4;
/// `--check` found faults.
const EXIT_FAULTS: i32 = 2;

/// What a program can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) version: Option<String>,
    /// The levels of evidence that its protocol can give.
    pub(crate) levels: Vec<Level>,
    /// Can ask the partner what became of a delivery in doubt.
    pub(crate) query: bool,
    /// Can take several deliveries of one lane at a time, in order.
    pub(crate) ordered_pipeline: bool,
    pub(crate) settings_schema: Option<serde_json::Value>,
    /// Can say what its settings imply.
    access: bool,
    /// What it says that its settings imply.
    pub(crate) implied: Access,
}

/// What is wrong with one adapter's configuration: the key below `adapters.NAME`, and what to do.
#[derive(Debug, PartialEq, Eq)]
struct Misfit {
    key: String,
    text: String,
}

impl Misfit {
    fn new(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self { key: key.into(), text: text.into() }
    }

    fn of_program(text: impl Into<String>) -> Self {
        Self::new("run", text)
    }
}

/// serde's words for a key that there is not, as adapters in Rust print them, in the words of the configuration's own faults.
fn worded(text: &str) -> Cow<'_, str> {
    let unknown = text.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected "));
    match unknown {
        Some((name, known)) => {
            let known = known.split('`').skip(1).step_by(2);
            format!("unknown key: {}", suggestion(name, known)).into()
        }
        None => text.into(),
    }
}

/// Asks every supervised adapter's program whether it can do what the configuration wants. Gives the manifests by adapter,
/// or every fault.
pub(crate) async fn validate_adapters(
    config: &Config,
    launcher: &Launcher,
) -> Result<BTreeMap<String, Manifest>, Vec<Fault>> {
    let search = Arc::new(SearchPath::of_this_process());
    let questions: Vec<_> = config
        .adapters
        .values()
        .map(|adapter| {
            let question = Question {
                adapter: Arc::clone(adapter),
                launcher: launcher.clone(),
                search: Arc::clone(&search),
                data_dir: config.gateway.data_dir.clone(),
                gateway: config.gateway.user,
                config: config.digest.clone(),
            };
            async move { (question.adapter.name.clone(), question.ask().await) }
        })
        .collect();
    let answers: Vec<_> = futures_util::stream::iter(questions).buffered(ASKED_AT_A_TIME).collect().await;
    let mut manifests = BTreeMap::new();
    let mut faults = Vec::new();
    for (name, answer) in answers {
        match answer {
            Ok(Some(manifest)) => drop(manifests.insert(name, manifest)),
            Ok(None) => {}
            Err(misfits) => faults.extend(
                misfits
                    .into_iter()
                    .map(|Misfit { key, text }| config.adapter_fault(format!("adapters.{name}.{key}"), text)),
            ),
        }
    }
    faults.sort_by_key(|fault| (fault.line, fault.column));
    if faults.is_empty() { Ok(manifests) } else { Err(faults) }
}

pub(super) struct Question {
    pub(super) adapter: Arc<Adapter>,
    pub(super) launcher: Launcher,
    pub(super) search: Arc<SearchPath>,
    pub(super) data_dir: PathBuf,
    /// Whose processes are those of adapters that have no user of their own.
    pub(super) gateway: Option<RunAs>,
    /// The digest of the configuration.
    pub(super) config: String,
}

/// What a program answered with one of the two options.
#[derive(Debug)]
struct Answer {
    status: ExitStatus,
    stdout: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("did not end within {} s", ANSWER_DEADLINE.as_secs())]
    TooSlow,
    #[error("printed more than {} KiB", ANSWER_BYTES_MAX / 1024)]
    TooLong,
    #[error("cannot be started: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Sandbox(Box<Unreachable>),
}

impl AskError {
    fn misfit(self, asked: Asked) -> Misfit {
        match self {
            Self::Sandbox(unreachable) => Misfit::new("sandbox", unreachable.to_string()),
            Self::TooSlow | Self::TooLong | Self::Io(_) => {
                Misfit::of_program(format!("the program, asked with {}, {self}", asked.option()))
            }
        }
    }
}

impl Question {
    /// `None` for an adapter that somebody else starts.
    async fn ask(&self) -> Result<Option<Manifest>, Vec<Misfit>> {
        let AdapterProcess::Supervised(run) = &self.adapter.process else { return Ok(None) };
        let command =
            self.search.resolve(run).map_err(|fault| vec![Misfit::of_program(fault.to_string())])?;
        let manifest = self.manifest(&command).await.map_err(|fault| vec![fault])?;
        let has_manifest = manifest.is_some();
        let mut can = manifest.unwrap_or_else(Manifest::silent);
        let mut misfits = can.misfits(&self.adapter);
        if can.access {
            match self.access(&command).await {
                Ok(implied) => {
                    misfits.extend(implied.misfit(&self.adapter));
                    can.implied = implied.access;
                }
                Err(misfit) => misfits.push(misfit),
            }
        }
        misfits.extend(self.check(&command, has_manifest, &can).await);
        if misfits.is_empty() { Ok(Some(can)) } else { Err(misfits) }
    }

    /// `None` if the program has none.
    async fn manifest(&self, command: &Command) -> Result<Option<Manifest>, Misfit> {
        match self.run(command, Asked::Manifest, &[], &Access::default()).await {
            Ok(answer) if answer.status.success() => {
                Manifest::read(&answer.stdout).map_err(Misfit::of_program)
            }
            Ok(answer) if answer.status.code() == Some(EXIT_CANNOT_EXECUTE.into()) => {
                Err(Misfit::of_program(format!("{} cannot be executed", command.file.display())))
            }
            Ok(_) => Ok(None),
            // It took no notice of the option and went to work.
            Err(AskError::TooSlow) => Ok(None),
            Err(error) => Err(error.misfit(Asked::Manifest)),
        }
    }

    /// What the settings imply; nothing for settings that are wrong, as --check will say.
    async fn access(&self, command: &Command) -> Result<Implied, Misfit> {
        let settings = serde_json::to_vec(&self.adapter.settings).unwrap_or_default();
        let answer = match self.run(command, Asked::Access, &settings, &Access::default()).await {
            Ok(answer) if answer.status.success() => answer.stdout,
            Ok(answer) if answer.status.code() == Some(EXIT_FAULTS) => return Ok(Implied::default()),
            Ok(answer) => {
                return Err(Misfit::of_program(format!("the program's --access failed ({})", answer.status)));
            }
            Err(error) => return Err(error.misfit(Asked::Access)),
        };
        let implied = read_access(&answer).ok_or_else(|| {
            Misfit::of_program(format!(
                "the program's --access cannot be understood, or names more than {HOSTS_MAX} hosts or {ALLOWED_MAX} files"
            ))
        })?;
        let paths = implied.access.read.iter().chain(&implied.access.write);
        match paths.into_iter().find(|path| reaches(path, &self.data_dir)) {
            None => Ok(implied),
            Some(path) => {
                let path = printable(path.as_os_str().as_encoded_bytes());
                let text = format!(
                    "they imply access to {path}, which holds or lies in the gateway's data_dir: choose another place"
                );
                Err(Misfit::new("settings", text))
            }
        }
    }

    async fn check(&self, command: &Command, has_manifest: bool, manifest: &Manifest) -> Vec<Misfit> {
        let settings = match serde_json::to_vec(&self.adapter.settings) {
            Ok(settings) => settings,
            Err(error) => return vec![Misfit::new("settings", format!("they are not JSON: {error}"))],
        };
        match self.run(command, Asked::Check, &settings, &manifest.implied).await {
            Ok(answer) if answer.status.success() => Vec::new(),
            Ok(answer) if answer.status.code() == Some(EXIT_FAULTS) => {
                let faults = self.faults_in(&answer.stdout, manifest);
                // Argument parsers end with the same status when they do not know an option, and print to standard error.
                if faults.is_empty() && has_manifest {
                    vec![Misfit::new("settings", "the program refuses them without saying why")]
                } else {
                    faults
                }
            }
            Ok(answer) if has_manifest => {
                vec![Misfit::of_program(format!("the program's --check failed ({})", answer.status))]
            }
            Err(error) if has_manifest => vec![error.misfit(Asked::Check)],
            Ok(_) | Err(_) => Vec::new(),
        }
    }

    /// A program's lines, `KEY: TEXT` where KEY is one of its settings.
    fn faults_in(&self, stdout: &[u8], manifest: &Manifest) -> Vec<Misfit> {
        let lines =
            stdout.split(|&byte| byte == b'\n').map(|line| line.trim_ascii()).filter(|line| !line.is_empty());
        let misfit = |line: &[u8]| {
            let line = String::from_utf8_lossy(line);
            let shown = |text: &str| printable(&text.as_bytes()[..text.len().min(FAULT_BYTES_MAX)]);
            match line.split_once(": ") {
                Some(("settings", text)) => Misfit::new("settings", shown(&worded(text))),
                Some((key, text)) if self.is_setting(key, manifest) => {
                    Misfit::new(format!("settings.{}", shown(key)), shown(&worded(text)))
                }
                _ => Misfit::new("settings", shown(&line)),
            }
        };
        lines.take(FAULTS_MAX).map(misfit).collect()
    }

    /// Whether a path's first part is a setting, given or known.
    fn is_setting(&self, path: &str, manifest: &Manifest) -> bool {
        let name = path.split(['.', '[']).next().unwrap_or(path);
        let schema = manifest.settings_schema.as_ref();
        let known = schema.and_then(|schema| schema.get("properties")?.get(name));
        self.adapter.settings.contains_key(name) || known.is_some()
    }

    pub(super) fn policy(&self, implied: &Access, command: &Command) -> Policy {
        let mut sandbox = self.adapter.sandbox.clone();
        if geteuid().is_root() {
            // Whoever checks a configuration need not be who runs it.
            sandbox.run_as = sandbox.run_as.or(self.gateway);
        } else if !self.launcher.changes_users() {
            sandbox.run_as = None;
        }
        Policy::new(&sandbox, implied, command).for_a_question()
    }

    /// What the settings imply, as far as the program can say it.
    pub(super) async fn implied(&self, command: &Command) -> Result<Access, String> {
        let said = match self.manifest(command).await {
            Ok(Some(manifest)) if manifest.access => self.access(command).await.map(|implied| implied.access),
            Ok(_) => Ok(Access::default()),
            Err(misfit) => Err(misfit),
        };
        said.map_err(|misfit| misfit.text)
    }

    /// The program may read what `implied` says, and has no network.
    async fn run(
        &self,
        command: &Command,
        asked: Asked,
        input: &[u8],
        implied: &Access,
    ) -> Result<Answer, AskError> {
        let name = &self.adapter.name;
        let policy = &self.policy(implied, command);
        let purpose = Purpose::Question(asked);
        let launch = Launch { name, config: &self.config, command, purpose, policy };
        let mut process = self.launcher.launch(launch).await?;
        match process.sandbox().await? {
            Some(Outcome::Unreachable(why)) => return Err(AskError::Sandbox(Box::new(why))),
            Some(Outcome::Reached(_)) | None => {}
        }
        let stdin = process.streams.stdin.take();
        let stdout = process.streams.stdout.take();
        let talk = async {
            let (stdout, ()) = tokio::try_join!(read_answer(stdout), write_input(stdin, input))?;
            process.ended().await;
            Ok::<_, AskError>(stdout)
        };
        // Whatever went wrong, dropping the process kills it.
        let stdout = timeout(ANSWER_DEADLINE, talk).await.map_err(|_| AskError::TooSlow)??;
        Ok(Answer { status: process.reap().await?, stdout })
    }
}

async fn read_answer(stdout: Option<OwnedFd>) -> Result<Vec<u8>, AskError> {
    let mut answer = Vec::new();
    if let Some(stdout) = stdout {
        let limit = ANSWER_BYTES_MAX as u64 + 1;
        pipe::Receiver::from_owned_fd(stdout)?.take(limit).read_to_end(&mut answer).await?;
    }
    if answer.len() > ANSWER_BYTES_MAX { Err(AskError::TooLong) } else { Ok(answer) }
}

async fn write_input(stdin: Option<OwnedFd>, input: &[u8]) -> Result<(), AskError> {
    if let Some(stdin) = stdin {
        // A program that does not read its input is none of our business.
        let _ = pipe::Sender::from_owned_fd(stdin)?.write_all(input).await;
    }
    Ok(())
}

/// What `--access` prints: the same lists as `allow`, each of which may be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct AccessDocument {
    connect: Vec<String>,
    bind: Vec<String>,
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    /// Left out by programs that do not know how to ask the gateway for a connection.
    direct: Option<bool>,
    /// Its settings make sense in one lane only.
    strict_order: bool,
}

/// What an adapter's settings imply for the rest of its configuration.
#[derive(Debug, Default)]
struct Implied {
    access: Access,
    strict_order: bool,
}

impl Implied {
    fn misfit(&self, adapter: &Adapter) -> Option<Misfit> {
        let order = adapter.policy.order;
        let text =
            || format!("\"{order}\", but its settings need \"strict\": its deliveries must be one lane");
        (self.strict_order && order != Order::Strict).then(|| Misfit::new("order", text()))
    }
}

fn read_access(text: &[u8]) -> Option<Implied> {
    let AccessDocument { connect, bind, read, write, direct, strict_order } =
        serde_json::from_slice(text).ok()?;
    let access = Access::of_lists(&connect, &bind, read, write, direct)?;
    Some(Implied { access, strict_order })
}

/// The manifest as programs print it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(rename = "protocol")]
    _protocol: u32,
    version: Option<String>,
    levels: Vec<String>,
    #[serde(default)]
    query: bool,
    #[serde(default)]
    ordered_pipeline: bool,
    #[serde(default)]
    access: bool,
    settings_schema: Option<serde_json::Value>,
}

impl Manifest {
    /// That of a program without one.
    fn silent() -> Self {
        Self {
            version: None,
            levels: vec![Level::Sent],
            query: false,
            ordered_pipeline: false,
            settings_schema: None,
            access: false,
            implied: Access::default(),
        }
    }

    /// `None` if it is not a JSON object, which means that the program does not know the option.
    pub(super) fn read(text: &[u8]) -> Result<Option<Self>, String> {
        let Ok(object) = serde_json::from_slice::<serde_json::Map<_, _>>(text) else { return Ok(None) };
        // First of all: a later protocol's manifest may have members that we do not know.
        let protocol = object.get("protocol").and_then(serde_json::Value::as_u64);
        if protocol != Some(PROTOCOL.into()) {
            let theirs = protocol.map_or("none".to_owned(), |protocol| protocol.to_string());
            return Err(format!(
                "the program speaks protocol {theirs} and this gateway {PROTOCOL}; install versions that fit"
            ));
        }
        let document: Document = serde_json::from_value(object.into()).map_err(|error| {
            // serde repeats names and values, which are the program's.
            let why = printable(error.to_string().as_bytes());
            format!("the program's --manifest cannot be understood: {why}")
        })?;
        let level = |name: &String| {
            Level::from_name(name).ok_or_else(|| {
                format!("the program's --manifest names the unknown level `{}`", printable(name.as_bytes()))
            })
        };
        let levels = document.levels.iter().map(level).collect::<Result<_, _>>()?;
        Ok(Some(Self {
            version: document.version.map(|version| printable(version.as_bytes())),
            levels,
            query: document.query,
            ordered_pipeline: document.ordered_pipeline,
            settings_schema: document.settings_schema,
            access: document.access,
            implied: Access::default(),
        }))
    }

    /// What the configuration asks of the adapter and the program cannot do.
    fn misfits(&self, adapter: &Adapter) -> Vec<Misfit> {
        let policy = &adapter.policy;
        let mut faults = Vec::new();
        if let Some(confirm) = policy.confirm
            && !self.levels.contains(&confirm)
        {
            let levels: Vec<_> = self.levels.iter().map(|level| format!("\"{level}\"")).collect();
            let text = format!(
                "\"{confirm}\", but its program cannot prove that; it can prove {}",
                if levels.is_empty() { "nothing".to_owned() } else { levels.join(", ") }
            );
            faults.push(Misfit::new("confirm", text));
        }
        if policy.on_doubt == OnDoubt::Query && !self.query {
            let text = "\"query\", but its program cannot ask its partner; use \"hold\" or \"resend\"";
            faults.push(Misfit::new("on_doubt", text));
        }
        if policy.window > 1 && !self.ordered_pipeline {
            let text = format!("{}, but its program takes one at a time; use 1", policy.window);
            faults.push(Misfit::new("window", text));
        }
        faults
    }
}
