//! A peer's server as a child process, ended with its guard.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::{self, unix::SignalKind};

const START_DEADLINE: Duration = Duration::from_secs(60);
const START_POLL: Duration = Duration::from_millis(50);
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const LOG_LINES_SHOWN: usize = 8;

/// Process groups that an interrupt must reach.
static GROUPS: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on an interrupt ends what was started here; whoever waits for it then fails, and everything is cleaned up.
pub(crate) fn watch_signals() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal::unix::signal(SignalKind::interrupt())?, signal::unix::signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                INTERRUPTED.store(true, Ordering::Relaxed);
                for group in groups().iter() {
                    end(*group, Signal::SIGTERM);
                }
            }
        });
    });
    Ok(())
}

fn groups() -> MutexGuard<'static, Vec<u32>> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(group: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(group) {
        // A child that is not reaped yet, so the group is still its own.
        let _ = kill(Pid::from_raw(-pid), signal);
    }
}

pub(crate) struct Server {
    child: Child,
}

impl Server {
    /// Starts it, with its output in `dir`, and waits until `ready` succeeds.
    pub(crate) fn start(
        command: &mut Command,
        dir: &Path,
        mut ready: impl FnMut() -> io::Result<()>,
    ) -> io::Result<Self> {
        let path = dir.join("server.log");
        let log = File::create(&path)?;
        // A group of its own: an interrupt is for us, and what it started goes with it.
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .current_dir(dir)
            .spawn()?;
        groups().push(child.id());
        let mut server = Self { child };
        let begun = Instant::now();
        loop {
            let failed = match server.child.try_wait()? {
                Some(status) => format!("ended early ({status})"),
                None => match ready() {
                    Ok(()) => return Ok(server),
                    Err(error) if begun.elapsed() > START_DEADLINE => {
                        format!("was not ready in time: {error}")
                    }
                    Err(_) => {
                        not_interrupted()?;
                        std::thread::sleep(START_POLL);
                        continue;
                    }
                },
            };
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
            return Err(io::Error::other(format!("the server {failed}\n{tail}")));
        }
    }

    /// Runs a program to its end and gives what it printed.
    pub(crate) fn output(command: &mut Command) -> io::Result<String> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn()?;
        let id = child.id();
        groups().push(id);
        let output = child.wait_with_output();
        groups().retain(|group| *group != id);
        let output = output?;
        if output.status.success() {
            return String::from_utf8(output.stdout).map_err(io::Error::other);
        }
        Err(io::Error::other(format!("{} {}", command.get_program().display(), output.status)))
    }
}

/// Fails once an interrupt has come.
pub(crate) fn not_interrupted() -> io::Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(io::Error::other("interrupted")) } else { Ok(()) }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = self.child.id();
        end(group, Signal::SIGTERM);
        let begun = Instant::now();
        while begun.elapsed() < STOP_DEADLINE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(START_POLL);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            end(group, Signal::SIGKILL);
            let _ = self.child.wait();
        }
        groups().retain(|other| *other != group);
    }
}

/// A port that nobody had a moment ago.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// What a program prints first.
pub(crate) fn first_line(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

/// For `map_err`: says which program is not there.
pub(crate) fn missing(program: &str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("{program} is not installed")),
        _ => error,
    }
}
