//! A gateway of one's own, for `demo` and `bench`: a temporary directory, and the real `gatepost serve` as a child process.
//!
//! The child is always ended and the directory always removed, unless it is to be kept; a child whose parent was killed
//! ends by itself.

use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use sha2::{Digest as _, Sha256};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::client::{Call, Client};
use super::failure::Failure;

/// How long a gateway may take until it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(20);
const READY_POLL: Duration = Duration::from_millis(10);
/// How long it may take to stop before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// A socket's path may have 107 bytes; the longest name in the directory has fewer than this.
const SOCKET_DIR_BYTES_MAX: usize = 70;
/// A directory that is still being written into is removed again and again for a second.
const REMOVAL_TRIES: u32 = 50;
const REMOVAL_PAUSE: Duration = Duration::from_millis(20);
/// Lines of its log that are shown when it fails.
const LOG_LINES_SHOWN: usize = 12;

/// A private directory (0700), removed with everything in it when dropped.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Directory {
    /// Below `parent`, else below the system's directory for temporary files.
    pub(super) fn create(parent: Option<&Path>, purpose: &str) -> Result<Self, Failure> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let parent = std::path::absolute(&parent).unwrap_or(parent);
        let parent =
            if parent.as_os_str().len() > SOCKET_DIR_BYTES_MAX { PathBuf::from("/tmp") } else { parent };
        let template = parent.join(format!("gatepost-{purpose}-XXXXXX"));
        let path = mkdtemp(&template).map_err(|error| Failure::Io {
            doing: format!("cannot create {}", template.display()),
            source: error.into(),
        })?;
        Ok(Self { path, keep: false })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.keep {
            // A process that was killed a moment ago may still make a file. What cannot be removed in the end stays in the
            // system's directory for temporary files, which is swept by others.
            for _ in 0..REMOVAL_TRIES {
                match std::fs::remove_dir_all(&self.path) {
                    Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => {
                        std::thread::sleep(REMOVAL_PAUSE);
                    }
                    _ => break,
                }
            }
        }
    }
}

/// The files of a scratch gateway. It can be started again and again over the same data.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) config: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) app_socket: PathBuf,
    pub(super) admin_socket: PathBuf,
    log: PathBuf,
    /// Its adapters may do without a sandbox.
    pub(super) insecure: bool,
}

impl Site {
    /// Writes a configuration for the current user: one app, one operator, and `rest`.
    pub(super) fn write(dir: &Path, name: &str, app: &App<'_>, rest: &str) -> Result<Self, Failure> {
        let site = Self {
            config: dir.join("gatepost.toml"),
            data_dir: dir.join("data"),
            app_socket: dir.join("app.sock"),
            admin_socket: dir.join("admin.sock"),
            log: dir.join("gateway.log"),
            insecure: false,
        };
        let user = current_user();
        let quoted = |path: &Path| quoted(&path.to_string_lossy());
        let text = format!(
            r#"[gateway]
name = "{name}"
data_dir = {data_dir}

[[listen]]
serves = "apps"
unix = {app_socket}
mode = "0600"

[[listen]]
serves = "operators"
unix = {admin_socket}
mode = "0600"

[apps.{app_name}]
user = {user}
send = ["{send}"]
inbox = {inbox}
{token}

[operators.you]
user = {user}
can = ["read", "operate", "read_payload", "audit"]

{rest}"#,
            data_dir = quoted(&site.data_dir),
            app_socket = quoted(&site.app_socket),
            admin_socket = quoted(&site.admin_socket),
            app_name = app.name,
            send = app.send,
            inbox = serde_json::Value::from(app.inbox),
            token = app.token.map(token_line).unwrap_or_default(),
        );
        std::fs::write(&site.config, text)
            .map_err(Failure::io(format!("cannot write {}", site.config.display())))?;
        Ok(site)
    }

    pub(super) fn operator(&self) -> Client {
        Client::new(&self.admin_socket)
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

pub(super) struct App<'a> {
    pub(super) name: &'a str,
    /// The types it may send.
    pub(super) send: &'a str,
    /// The inboxes it may read.
    pub(super) inbox: &'a [&'a str],
    /// What tells it apart from others of the same user.
    pub(super) token: Option<&'a str>,
}

/// The key under which a token that the configuration brings stands there.
pub(super) fn token_line(token: &str) -> String {
    let digits = Sha256::digest(token.as_bytes())
        .iter()
        .fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    format!("token_sha256 = \"{digits}\"")
}

/// The current user as a TOML string: the name, or the number where it has none.
pub(super) fn current_user() -> String {
    let uid = nix::unistd::geteuid();
    let name =
        nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    quoted(&name)
}

/// `text` as a TOML string. JSON's escapes are among TOML's.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// How long a gateway lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// At the latest with this process.
    WithUs,
    /// When somebody stops it.
    Later,
}

/// A running `gatepost serve`.
#[derive(Debug)]
pub(super) struct Gateway {
    child: Child,
    site: Site,
    pub(super) pid: u32,
    /// From the start of the process until it was ready.
    pub(super) ready_after: Duration,
}

impl Gateway {
    pub(super) async fn start(site: &Site, ends: Ends) -> Result<Self, Failure> {
        Self::start_within(site, ends, READY_DEADLINE).await
    }

    /// For a store that is larger than most.
    pub(super) async fn start_within(site: &Site, ends: Ends, deadline: Duration) -> Result<Self, Failure> {
        let program = this_program()?;
        let doing = || format!("cannot write {}", site.log.display());
        let log = File::options().create(true).append(true).open(&site.log).map_err(Failure::io(doing()))?;
        let log_too = log.try_clone().map_err(Failure::io(doing()))?;
        let started = Instant::now();
        let mut command = Command::new(&program);
        command.arg("serve").arg("--config").arg(&site.config);
        if site.insecure {
            command.arg("--insecure-dev");
        }
        if ends == Ends::WithUs {
            command.arg("--with-parent").arg(std::process::id().to_string());
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            // Ctrl-C is for us alone; we then stop the gateway in good order.
            .process_group(0)
            .kill_on_drop(ends == Ends::WithUs)
            .spawn()
            .map_err(Failure::io(format!("cannot start {}", program.display())))?;
        let pid = child.id().unwrap_or_default();
        let mut gateway = Self { child, site: site.clone(), pid, ready_after: Duration::ZERO };
        match timeout(deadline, gateway.until_ready()).await {
            Ok(ready) => ready?,
            Err(_) => return Err(gateway.failed("was not ready in time")),
        }
        gateway.ready_after = started.elapsed();
        Ok(gateway)
    }

    async fn until_ready(&mut self) -> Result<(), Failure> {
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(&format!("ended early ({status})")));
            }
            // Nobody listens yet, or it says itself that it is not ready: both are no more than reasons to ask again.
            if let Ok(answer) = self.site.operator().exchange(Call::get("/readyz")).await
                && answer.status == StatusCode::OK
            {
                return Ok(());
            }
            sleep(READY_POLL).await;
        }
    }

    fn failed(&self, how: &str) -> Failure {
        Failure::Unsuccessful {
            what: format!("`gatepost serve` {how}; its log ends with:\n{}", self.site.log_tail()),
            hint: Some("see `gatepost doctor`".to_owned()),
        }
    }

    /// SIGKILL: it gets no chance to tidy up.
    pub(super) async fn kill(mut self) -> Result<ExitStatus, Failure> {
        self.child.start_kill().map_err(Failure::io("cannot kill the gateway"))?;
        let status = self.child.wait().await.map_err(Failure::io("cannot wait for the gateway"))?;
        if status.signal() == Some(Signal::SIGKILL as i32) {
            return Ok(status);
        }
        Err(self.failed(&format!("ended by itself ({status})")))
    }

    /// SIGTERM, and SIGKILL when that takes too long.
    pub(super) async fn stop(mut self) -> Result<(), Failure> {
        self.signal(Signal::SIGTERM);
        match timeout(STOP_DEADLINE, self.child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(self.failed(&format!("ended badly ({status})"))),
            Ok(Err(source)) => Err(Failure::Io { doing: "cannot wait for the gateway".to_owned(), source }),
            Err(_) => {
                let _ = self.child.start_kill();
                let _ = self.child.wait().await;
                Err(self.failed("did not stop in time"))
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid) {
            // The child is not reaped yet, so the pid is still its own.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// One figure of /proc/PID/status, KiB.
    pub(super) fn memory_kib(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().trim_end_matches("kB").trim().parse().ok()
    }
}

/// This executable, also when its file has been replaced since.
pub(super) fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(Failure::io("cannot find this program's own file"))
}

/// A program that is installed beside this one, else in PATH.
pub(super) fn program_beside(name: &str) -> Result<PathBuf, Failure> {
    let this = this_program()?;
    let beside = this.parent().map(|dir| dir.join(name));
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(std::env::split_paths(&in_path).map(|dir| dir.join(name)))
        .find(|file| file.is_file())
        .ok_or_else(|| Failure::Unsuccessful {
            what: format!("`{name}` is neither beside {} nor in PATH", this.display()),
            hint: Some("build everything with `cargo build --workspace`, or install the package".to_owned()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_private_and_goes_with_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;
        let parent = tempfile::tempdir().unwrap();
        let directory = Directory::create(Some(parent.path()), "test").unwrap();
        let path = directory.path().to_path_buf();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(path.join("x"), "x").unwrap();
        drop(directory);
        assert!(!path.exists());
        let mut kept = Directory::create(Some(parent.path()), "test").unwrap();
        kept.keep();
        let path = kept.path().to_path_buf();
        drop(kept);
        assert!(path.exists());
    }

    #[test]
    fn the_configuration_is_toml_for_the_current_user() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::write(
            dir.path(),
            "demo",
            &App { name: "ehr", send: "org.*", inbox: &[], token: None },
            "[inboxes.sink]\n",
        )
        .unwrap();
        let document: toml::Table = std::fs::read_to_string(&site.config).unwrap().parse().unwrap();
        assert_eq!(document["apps"]["ehr"]["send"][0].as_str(), Some("org.*"));
        assert_eq!(document["listen"][1]["serves"].as_str(), Some("operators"));
        assert!(document["inboxes"]["sink"].is_table());
    }
}
