//! The spawner: `gatepost spawner --parent PID --user UID --config FILE [--insecure-dev]`, with the gateway at the other end of its
//! standard input. It is root, with the few capabilities that changing users takes, and does on request what only root can: an
//! adapter's sockets, an adapter's process, that process's end, and once the end of what an earlier gateway has left in control groups.
//!
//! **Invariant:** what is started, with which arguments, as whom and with which rights, comes from a configuration that only root can
//! have written, never from a request; and nothing is started as root or as the gateway's user.

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{geteuid, getppid};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::CapabilitySet;
use tokio::signal::unix::{SignalKind, signal};

use super::INSECURE_DEV;
use super::trust::root_file;
use super::wire::{AdapterName, Answer, Ask, ConfigDigest, Link, Reply, Request, Task, Watch, send};
use crate::config::{Access, Adapter, AdapterProcess, Config, Run, RunAs, Safety};
use crate::listen::HandedOver;
use crate::supervise::exec::CORE_BYTES_MAX;
use crate::supervise::launch::{Launch, Launcher, Purpose, Question as Asked};
use crate::supervise::manifest::Question;
use crate::supervise::process::{Process, Streams};
use crate::supervise::program::SearchPath;
use crate::supervise::sandbox::{Control, Policy, privileges};
use crate::supervise::socket::reachable;

/// To become an adapter's user, to bound what it can have, to end it, to give it its socket, and to find what it may reach.
const CAPABILITIES: CapabilitySet = CapabilitySet::SETUID
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_READ_SEARCH);
/// Requests under way; further ones wait.
const PENDING_MAX: usize = 256;
/// Programs that are asked at a time, of all adapters.
const QUESTIONS_MAX: usize = 16;

type Given = (Answer, Vec<OwnedFd>);

/// What stands on the command line, which is the gateway's while it was root.
#[derive(Debug, PartialEq, Eq)]
struct Settings {
    parent: i32,
    /// The gateway's user.
    user: u32,
    config: PathBuf,
    safety: Safety,
}

struct Spawner {
    user: u32,
    /// The configuration's own name, to which nobody but root can give another file.
    file: PathBuf,
    safety: Safety,
    launcher: Launcher,
    search: Arc<SearchPath>,
    configs: RefCell<Configs>,
    sockets: RefCell<BTreeMap<AdapterName, (RunAs, HandedOver)>>,
    processes: RefCell<BTreeMap<u64, Started>>,
    numbered: Cell<u64>,
    /// What an adapter's settings imply, by the configuration's digest and the adapter's name.
    implied: RefCell<BTreeMap<(String, AdapterName), Access>>,
    /// What control groups are known by, since the gateway is alone on its data directory.
    mark: RefCell<Option<String>>,
}

/// The one that adapters work by, and the one that the gateway may be about to put in force.
struct Configs {
    in_force: Arc<Config>,
    candidate: Option<Arc<Config>>,
}

struct Started {
    adapter: AdapterName,
    task: Task,
    /// `None` while it is being ended.
    process: Option<Process>,
}

/// Does what the gateway asks until it is gone. `args` are those after `spawner`.
pub(crate) fn spawner(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Some(settings) = Settings::parse(args) else {
        // Without standard error nobody can be told.
        let _ = io::Write::write_all(
            &mut io::stderr(),
            b"this command is not for people: a gateway that root has started starts it\n",
        );
        return ExitCode::from(2);
    };
    let Err(why) = run(&settings).map_err(|error| error.to_string());
    if why.is_empty() {
        return ExitCode::SUCCESS;
    }
    // To the gateway, which waits for the first answer; later it is gone.
    let refusal = serde_json::to_vec(&Reply::refusal(0, why)).unwrap_or_default();
    let _ = send(io::stdin().as_fd(), &refusal, &[]);
    ExitCode::FAILURE
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// The gateway is gone, and that is as it should be.
    #[error("")]
    Gone,
    #[error("the spawner must be started by a gateway that runs as root")]
    NotRoot,
    #[error("the spawner cannot limit itself: {0}")]
    Limit(io::Error),
    #[error("{0}")]
    Config(String),
    #[error("the spawner: {0}")]
    Io(#[from] io::Error),
    #[error("the gateway asks for what no gateway asks for")]
    Nonsense,
}

fn run(settings: &Settings) -> Result<Infallible, Ended> {
    if !geteuid().is_root() {
        return Err(Ended::NotRoot);
    }
    // First of all: it closes whatever is open.
    confine().map_err(Ended::Limit)?;
    let parent = Pid::from_raw(settings.parent).ok_or(Ended::Gone)?;
    let parent = pidfd_open(parent, PidfdFlags::empty()).map_err(|_| Ended::Gone)?;
    // What has that number now is the parent, or else there is none.
    if getppid().as_raw() != settings.parent {
        return Err(Ended::Gone);
    }
    let spawner = Spawner::new(settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The gateway says when to end, also to whoever signals all processes of a service at once.
        let _ignored = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let link = Link::new(io::stdin().as_fd().try_clone_to_owned()?)?;
        // Its death shows by the end of its socket, too; but a copy of that could be somewhere.
        let parent = Watch::new(parent)?;
        link.send(&Reply { id: 0, answer: Answer::Ready }, &[]).await?;
        let why = tokio::select! {
            why = spawner.attend(&link) => why,
            () = parent.ended() => Ended::Gone,
        };
        spawner.end();
        Err(why)
    })
}

/// Root, but not for much.
fn confine() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    std::env::set_current_dir("/")?;
    privileges::close_descriptors()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    let core_bytes = hard.min(CORE_BYTES_MAX);
    setrlimit(Resource::RLIMIT_CORE, core_bytes, core_bytes)?;
    set_no_new_privs()?;
    privileges::bound(CAPABILITIES)?;
    privileges::keep(CAPABILITIES)?;
    set_dumpable(false)?;
    Ok(())
}

/// The configuration, by the name that only root can give to a file.
fn read(file: &Path, user: u32, safety: Safety) -> Result<(PathBuf, Config), String> {
    let file = root_file(file).map_err(|error| error.to_string())?;
    let config = Config::load_as(Some(&file), safety).map_err(|error| error.to_string())?;
    if config.gateway.user.is_none_or(|named| named.uid != user) {
        return Err("the configuration names another user of the gateway by now: start it again".to_owned());
    }
    Ok((file, config))
}

impl Spawner {
    /// Nothing is started yet.
    fn new(settings: &Settings) -> Result<Self, Ended> {
        let Settings { user, safety, .. } = *settings;
        let (file, config) = read(&settings.config, user, safety).map_err(Ended::Config)?;
        Ok(Self {
            user,
            file,
            safety,
            launcher: Launcher::start()?,
            search: Arc::new(SearchPath::of_this_process()),
            configs: RefCell::new(Configs { in_force: Arc::new(config), candidate: None }),
            sockets: RefCell::default(),
            processes: RefCell::default(),
            numbered: Cell::default(),
            implied: RefCell::default(),
            mark: RefCell::default(),
        })
    }

    async fn attend(&self, link: &Link) -> Ended {
        let mut pending = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some((id, given)) = pending.next(), if !pending.is_empty() => {
                    let given: Result<Given, String> = given;
                    let sent = match given {
                        Ok((answer, beside)) => link.send(&Reply { id, answer }, &beside).await,
                        Err(why) => link.send(&Reply::refusal(id, why), &[]).await,
                    };
                    if sent.is_err() {
                        return Ended::Gone;
                    }
                }
                got = link.request(), if pending.len() < PENDING_MAX => match got {
                    Ok(Some(bytes)) => match Request::read(&bytes) {
                        Some(Request { id, ask }) => pending.push(async move { (id, self.answer(ask).await) }),
                        // It has been taken over. Its adapters shall not work for whoever did it.
                        None => return Ended::Nonsense,
                    },
                    Ok(None) => return Ended::Gone,
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ended::Nonsense,
                    Err(_) => return Ended::Gone,
                },
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Result<Given, String> {
        match ask {
            Ask::Listen { adapter, config } => self.listen(adapter, &config).await,
            Ask::Unlisten { adapter } => {
                if let Some((_, socket)) = self.sockets.borrow_mut().remove(&adapter) {
                    socket.remove();
                }
                Ok((Answer::Done, Vec::new()))
            }
            Ask::Start { adapter, config, task } => self.start(adapter, &config, task).await,
            Ask::Sweep => self.sweep().await,
            Ask::Terminate { process } => self.with(process, Process::terminate),
            Ask::Kill { process } => self.with(process, Process::kill),
            Ask::Reap { process } => self.reap(process).await,
        }
    }

    /// The configuration with this digest: one that is known, or what the file holds by now.
    fn config(&self, digest: &ConfigDigest) -> Result<Arc<Config>, String> {
        let mut configs = self.configs.borrow_mut();
        let known = std::iter::once(&configs.in_force).chain(&configs.candidate);
        if let Some(config) = known.into_iter().find(|config| config.digest == digest.as_str()) {
            return Ok(Arc::clone(config));
        }
        let (_, config) = read(&self.file, self.user, self.safety)?;
        if config.digest != digest.as_str() {
            return Err("the configuration has changed since the gateway read it: reload".to_owned());
        }
        let config = Arc::new(config);
        configs.candidate = Some(Arc::clone(&config));
        let stays = |digest: &str| digest == configs.in_force.digest || digest == config.digest;
        self.implied.borrow_mut().retain(|(digest, _), _| stays(digest));
        Ok(config)
    }

    /// Adapters work by this one: what the gateway has put in force stays when the next candidate is bad.
    fn put_in_force(&self, config: &Arc<Config>) {
        let mut configs = self.configs.borrow_mut();
        if configs.in_force.digest != config.digest {
            let before = std::mem::replace(&mut configs.in_force, Arc::clone(config));
            configs.candidate = Some(before);
        }
    }

    /// An adapter that is another user's and started by the gateway.
    fn adapter<'c>(
        &self,
        config: &'c Config,
        name: &AdapterName,
    ) -> Result<(&'c Arc<Adapter>, &'c Run, RunAs), String> {
        let adapter = config.adapters.get(name.as_str());
        let adapter = adapter.ok_or("there is no such adapter in the configuration")?;
        let AdapterProcess::Supervised(run) = &adapter.process else {
            return Err("the configuration has no program for this adapter".to_owned());
        };
        match adapter.sandbox.run_as {
            Some(RunAs { uid, gid }) if uid == 0 || gid == 0 || uid == self.user => {
                Err("nothing is started as root or as the gateway's user".to_owned())
            }
            Some(run_as) => Ok((adapter, run, run_as)),
            None => Err("the configuration gives this adapter no user of its own".to_owned()),
        }
    }

    async fn listen(&self, name: AdapterName, digest: &ConfigDigest) -> Result<Given, String> {
        let config = self.config(digest)?;
        let (_, _, run_as) = self.adapter(&config, &name)?;
        if let Some((_, before)) = self.sockets.borrow_mut().remove(&name) {
            before.remove();
        }
        let directory = reachable(&config.gateway.data_dir);
        let bound = HandedOver::bind(&directory, name.as_str(), run_as).await;
        let (socket, listeners) = bound.map_err(|error| crate::supervise::chain(&error))?;
        self.put_in_force(&config);
        let path = socket.path().to_owned();
        self.sockets.borrow_mut().insert(name, (run_as, socket));
        Ok((Answer::Listening { path }, listeners.into()))
    }

    async fn start(&self, name: AdapterName, digest: &ConfigDigest, task: Task) -> Result<Given, String> {
        let config = self.config(digest)?;
        let (adapter, run, run_as) = self.adapter(&config, &name)?;
        let command = self.search.resolve(run).map_err(|error| error.to_string())?;
        let question = Question {
            adapter: Arc::clone(adapter),
            launcher: self.launcher.clone(),
            search: Arc::clone(&self.search),
            data_dir: config.gateway.data_dir.clone(),
            gateway: config.gateway.user,
            config: config.digest.clone(),
        };
        let implied = match task {
            Task::Work | Task::Check => self.implied(&config.digest, &name, &question, &command).await?,
            Task::Manifest | Task::Access => Access::default(),
        };
        let socket = self.sockets.borrow().get(&name).map(|(of, socket)| (*of, socket.path().to_owned()));
        let purpose = match task {
            Task::Work => match &socket {
                Some((of, socket)) if *of == run_as => Purpose::Work { socket },
                _ => return Err("the adapter has no socket yet".to_owned()),
            },
            Task::Manifest => Purpose::Question(Asked::Manifest),
            Task::Access => Purpose::Question(Asked::Access),
            Task::Check => Purpose::Question(Asked::Check),
        };
        let policy = match task {
            Task::Work => {
                let mut policy = Policy::new(&adapter.sandbox, &implied, &command);
                let mark = self.mark.borrow();
                let control = |mark: &String| Control::new(name.as_str(), mark, adapter.sandbox.resources);
                policy.control = mark.as_ref().and_then(control);
                policy
            }
            Task::Manifest | Task::Access | Task::Check => question.policy(&implied, &command),
        };
        let number = self.reserve(&name, task)?;
        let launch = Launch {
            name: name.as_str(),
            config: &config.digest,
            command: &command,
            purpose,
            policy: &policy,
        };
        let given = match self.launcher.launch(launch).await {
            Ok(process) => self.hand_over(number, process),
            Err(error) => Err(error),
        };
        if task == Task::Work && given.is_ok() {
            self.put_in_force(&config);
        }
        given.map_err(|error| {
            self.processes.borrow_mut().remove(&number);
            error.to_string()
        })
    }

    /// Once: later there may be what is not left over.
    async fn sweep(&self) -> Result<Given, String> {
        let works = self.processes.borrow().values().any(|started| started.task == Task::Work);
        if self.mark.borrow().is_some() || works {
            return Err("adapters may be at work by now".to_owned());
        }
        let data_dir = self.configs.borrow().in_force.gateway.data_dir.clone();
        let mark = self.launcher.mark(&data_dir).await;
        *self.mark.borrow_mut() = mark;
        Ok((Answer::Done, Vec::new()))
    }

    /// A number for a process that is about to start. An adapter has one that works for it, whatever is asked.
    fn reserve(&self, adapter: &AdapterName, task: Task) -> Result<u64, String> {
        let mut processes = self.processes.borrow_mut();
        let works = |started: &Started| started.task == Task::Work;
        if task == Task::Work && processes.values().any(|it| works(it) && it.adapter == *adapter) {
            return Err("its process before has not ended yet".to_owned());
        }
        if task != Task::Work && processes.values().filter(|it| !works(it)).count() >= QUESTIONS_MAX {
            return Err("too many programs are being asked".to_owned());
        }
        let number = self.numbered.get() + 1;
        self.numbered.set(number);
        processes.insert(number, Started { adapter: adapter.clone(), task, process: None });
        Ok(number)
    }

    fn hand_over(&self, number: u64, mut process: Process) -> io::Result<Given> {
        let pid = process.pid();
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        // It has not been reaped, so that the number is its own.
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        let Streams { stdin, stdout, stderr } = std::mem::take(&mut process.streams);
        let beside = std::iter::once(pidfd).chain([stdin, stdout, stderr].into_iter().flatten()).collect();
        if let Some(started) = self.processes.borrow_mut().get_mut(&number) {
            started.process = Some(process);
        }
        Ok((Answer::Started { process: number, pid }, beside))
    }

    /// Asked of the program itself and once for each configuration: what the gateway says of it is not taken.
    async fn implied(
        &self,
        digest: &str,
        name: &AdapterName,
        question: &Question,
        command: &crate::supervise::program::Command,
    ) -> Result<Access, String> {
        let key = (digest.to_owned(), name.clone());
        if let Some(known) = self.implied.borrow().get(&key) {
            return Ok(known.clone());
        }
        let implied = question.implied(command).await?;
        self.implied.borrow_mut().insert(key, implied.clone());
        Ok(implied)
    }

    fn with(&self, number: u64, act: impl Fn(&Process)) -> Result<Given, String> {
        match self.processes.borrow().get(&number) {
            Some(started) => started.process.iter().for_each(act),
            None => return Err(NO_SUCH_PROCESS.to_owned()),
        }
        Ok((Answer::Done, Vec::new()))
    }

    async fn reap(&self, number: u64) -> Result<Given, String> {
        let process = self.processes.borrow_mut().get_mut(&number).and_then(|it| it.process.take());
        let mut process = process.ok_or(NO_SUCH_PROCESS)?;
        process.kill();
        process.ended().await;
        let status = process.reap().await;
        self.processes.borrow_mut().remove(&number);
        let status = status.map_err(|error| error.to_string())?.into_raw();
        Ok((Answer::Ended { status }, Vec::new()))
    }

    /// Kills what runs and takes the sockets away.
    fn end(&self) {
        let processes = std::mem::take(&mut *self.processes.borrow_mut());
        // All are told before the first is waited for.
        processes.values().filter_map(|started| started.process.as_ref()).for_each(Process::kill);
        drop(processes);
        std::mem::take(&mut *self.sockets.borrow_mut()).into_values().for_each(|(_, socket)| socket.remove());
    }
}

const NO_SUCH_PROCESS: &str = "there is no process of that number";

impl Settings {
    fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        args.next().filter(|flag| flag == "--parent")?;
        let parent = args.next()?.to_str()?.parse().ok()?;
        args.next().filter(|flag| flag == "--user")?;
        let user = args.next()?.to_str()?.parse().ok()?;
        args.next().filter(|flag| flag == "--config")?;
        let config = args.next()?.into();
        let safety = match args.next() {
            None => Safety::Required,
            Some(flag) if flag == INSECURE_DEV => Safety::InsecureDev,
            Some(_) => return None,
        };
        args.next().is_none().then_some(Self { parent, user, config, safety })
    }
}
