//! A running gateway and its files.

use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::builder::Builder;
use crate::groups::remove_groups;
use crate::http::Client;
use crate::programs::{faulty, program};
use crate::wait::until;

/// Bytes of its log that a failed test shows.
const LOG_BYTES_SHOWN: usize = 6000;

/// Killed and removed when dropped; a failing test shows the end of its log.
#[derive(Debug)]
pub struct Gateway {
    dir: TempDir,
    config: PathBuf,
    child: Option<Child>,
    /// What happens at the points of a faulty one; `None` is a normal one.
    faults: Option<String>,
    /// What it has in its environment besides the tests' own.
    environment: Vec<(&'static str, OsString)>,
    /// The network namespace that it runs in, if not the tests' own.
    namespace: Option<String>,
}

impl Gateway {
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(
        dir: TempDir,
        config: PathBuf,
        faults: Option<String>,
        environment: Vec<(&'static str, OsString)>,
        namespace: Option<String>,
    ) -> Self {
        Self { dir, config, child: None, faults, environment, namespace }
    }

    /// Starts it, again or for the first time, and waits until it is ready.
    pub fn restart(&mut self) {
        self.spawn();
        self.until_ready();
    }

    /// What happens at its points from its next start on, instead of what [`Builder::faults`] said.
    pub fn set_faults(&mut self, faults: &str) {
        let _ = std::fs::remove_file(self.path("fired"));
        self.faults = Some(faults.to_owned());
    }

    /// The points at which something has happened.
    pub fn fired(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("fired")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Starts it and leaves it to itself.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = match &self.faults {
            Some(faults) => {
                let mut command = Command::new(faulty("gatepost"));
                let once = self.path("fired");
                command.env("GATEPOST_FAULTS", format!("{faults};once={}", once.display()));
                command
            }
            None => match &self.namespace {
                // It becomes what it starts: the pid is the gateway's.
                Some(namespace) => {
                    let mut command = Command::new("ip");
                    command.args(["netns", "exec", namespace]).arg(program("gatepost"));
                    command
                }
                None => Command::new(program("gatepost")),
            },
        };
        let log =
            File::options().create(true).append(true).open(self.log_file()).expect("a log can be written");
        let child = command
            .args(["serve", "--config"])
            .arg(&self.config)
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("gatepost can be started");
        self.child = Some(child);
    }

    /// Waits until it is ready; `false` if it ends before.
    pub fn becomes_ready(&mut self) -> bool {
        let ready = until("the gateway is ready or has ended", || {
            let child = self.child.as_mut().expect("it was started");
            if child.try_wait().expect("a child can be waited for").is_some() {
                return Some(false);
            }
            let answer = self.admin().send("GET", "/readyz", &[], b"").ok()?;
            (answer.status == 200).then_some(true)
        });
        if !ready {
            self.child = None;
        }
        ready
    }

    fn until_ready(&mut self) {
        until("the gateway is ready", || {
            let child = self.child.as_mut().expect("it was started");
            let ended = child.try_wait().expect("a child can be waited for");
            assert!(ended.is_none(), "the gateway ended early: {ended:?}");
            let answer = self.admin().send("GET", "/readyz", &[], b"").ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let Some(child) = &mut self.child else { return true };
        let ended = child.try_wait().expect("a child can be waited for").is_some();
        if ended {
            self.child = None;
        }
        ended
    }

    /// Whether it was never started, or killed, or its end was seen.
    pub fn is_stopped(&self) -> bool {
        self.child.is_none()
    }

    /// Whether its process is there.
    pub fn runs(&mut self) -> bool {
        let child = self.child.as_mut().expect("it was started");
        child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Waits for its own end.
    pub fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it was started");
        let status = until("the gateway ends", || child.try_wait().expect("a child can be waited for"));
        self.child = None;
        status
    }

    /// SIGKILL: it gets no chance to tidy up.
    pub fn kill(&mut self) {
        // One that has ended by itself is gone already.
        if let Some(mut child) = self.child.take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
        }
    }

    /// SIGTERM, and its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("a child can be signalled");
    }

    /// As [`Gateway::signal`], to one that may be gone.
    pub fn try_signal(&self, signal: Signal) {
        // Not reaped yet, its pid is nobody else's.
        let _ = kill(Pid::from_raw(self.pid().cast_signed()), signal);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn app(&self) -> Client {
        Client::new(self.path("app.sock"))
    }

    pub fn admin(&self) -> Client {
        Client::new(self.path("admin.sock"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    fn log_file(&self) -> PathBuf {
        self.path("gateway.log")
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    /// Runs `gatepost` with these arguments and this gateway's configuration.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let output =
            Command::new(program("gatepost")).arg("--config").arg(&self.config).args(arguments).output();
        output.expect("gatepost can be started")
    }

    /// What a command that must succeed prints.
    #[track_caller]
    pub fn cli_ok(&self, arguments: &[&str]) -> String {
        let output = self.cli(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "gatepost {arguments:?} failed ({}): {stderr}", output.status);
        String::from_utf8(output.stdout).expect("output is UTF-8")
    }

    #[track_caller]
    pub fn audit_verifies(&self) {
        self.cli_ok(&["audit", "verify"]);
    }

    /// All entries of the audit log.
    #[track_caller]
    pub fn audit_log(&self) -> Vec<Value> {
        self.until_numbered();
        let text = self.cli_ok(&["--json", "audit", "log", "--limit", "10000000"]);
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("entries are JSON"));
        lines.map(|mut line| line["entry"].take()).collect()
    }

    /// Several nodes share one log on PostgreSQL: there an entry gets its place a moment after its commit.
    fn until_numbered(&self) {
        let Ok(url) = std::fs::read_to_string(self.path("postgres-url")) else { return };
        until("every entry has its place in the log", || {
            let mut psql = Command::new("psql");
            psql.args(["-X", "-A", "-t", "-d", url.trim(), "-c", "SELECT count(*) FROM gatepost.leaf_new"]);
            let left = psql.output().expect("psql can be started");
            let said = String::from_utf8_lossy(&left.stderr);
            assert!(left.status.success(), "the database answers: {said}");
            (left.stdout.trim_ascii() == b"0").then_some(())
        });
    }

    /// What the partner behind `gatepost-echo` noted, oldest first.
    pub fn effects(&self, adapter: &str) -> Vec<Value> {
        match std::fs::read(self.path(&format!("{adapter}.effects"))) {
            Ok(noted) => whole_effects(&noted),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => panic!("the effects of {adapter} can be read: {error}"),
        }
    }

    /// A queue as operators see it.
    #[track_caller]
    pub fn queue(&self, name: &str) -> Value {
        self.admin().get(&format!("/v1/queues/{name}")).expect(200)
    }

    /// Deliveries of a queue that are not settled.
    #[track_caller]
    pub fn unsettled(&self, queue: &str) -> u64 {
        let depth = &self.queue(queue)["depth"];
        ["waiting", "leased", "sending", "in_doubt"]
            .iter()
            .map(|state| depth[*state].as_u64().unwrap_or(0))
            .sum()
    }

    /// However much it is, as long as it becomes less.
    #[track_caller]
    pub fn until_settled(&self, queue: &str) {
        self.until_left(queue, 0);
    }

    /// As [`Gateway::until_settled`], but for so many.
    #[track_caller]
    pub fn until_left(&self, queue: &str, rest: u64) {
        loop {
            let left = self.unsettled(queue);
            if left <= rest {
                return;
            }
            until(&format!("`{queue}` has less than {left} to settle"), || {
                (self.unsettled(queue) < left).then_some(())
            });
        }
    }

    /// The first delivery of a message.
    #[track_caller]
    pub fn delivery(&self, message: &str) -> Value {
        self.admin().get(&format!("/v1/messages/{message}")).expect(200)["deliveries"][0].clone()
    }

    /// Waits until the first delivery of a message has this state.
    #[track_caller]
    pub fn until_state(&self, message: &str, state: &str) -> Value {
        until(&format!("message {message} is {state}"), || {
            let delivery = self.delivery(message);
            (delivery["state"] == state).then_some(delivery)
        })
    }

    /// All pages of a list.
    #[track_caller]
    pub fn list(&self, path: &str, plural: &str) -> Vec<Value> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let joint = if path.contains('?') { '&' } else { '?' };
            let page = self.admin().get(&format!("{path}{joint}limit=1000{cursor}")).expect(200);
            all.extend(page[plural].as_array().expect("a list").iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }

    /// One number of `/metrics`, summed over all lines that begin so; 0 where there are none.
    pub fn metric(&self, prefix: &str) -> f64 {
        let page = self.admin().get("/metrics").text();
        let lines = page.lines().filter(|line| line.starts_with(prefix));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Resident memory of the process, KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub fn adapter(&self, name: &str) -> Value {
        let adapters = self.list("/v1/adapters", "adapters");
        adapters.into_iter().find(|adapter| adapter["name"] == name).expect("the adapter is known")
    }

    /// SIGKILL to an adapter's process, if it has one.
    pub fn kill_adapter(&self, name: &str) -> bool {
        let Some(pid) = self.adapter(name)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()) else {
            return false;
        };
        // It may have ended by itself in this moment.
        kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
    }

    /// Leases from a queue as one of its readers.
    #[track_caller]
    pub fn lease(&self, queue: &str, max: u32) -> Vec<Value> {
        let answer = self.app().post(&format!("/v1/queues/{queue}/lease"), &json!({ "max": max }));
        answer.expect(200)["deliveries"].as_array().expect("a list").clone()
    }
}

/// A settle's item for a leased delivery.
pub fn settle_item(leased: &Value, outcome: &str) -> Value {
    json!({ "delivery": leased["id"], "token": leased["token"], "outcome": outcome })
}

/// A process killed in the middle of noting an effect leaves half a line, and its successor ends that line: the partner has half of it,
/// which is nothing.
fn whole_effects(noted: &[u8]) -> Vec<Value> {
    noted
        .split(|byte| *byte == b'\n')
        .filter_map(|line| match serde_json::from_slice(line) {
            Ok(effect) => Some(effect),
            Err(error) if error.is_eof() => None,
            Err(error) => panic!("effects are JSON: {error}"),
        })
        .collect()
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        remove_groups(&self.path("data"));
        // Whoever looks for the cause of a rare failure needs the files.
        if std::thread::panicking() && std::env::var_os("GATEPOST_KEEP").is_some() {
            eprintln!("=== kept: {}", self.dir.path().display());
            self.dir.disable_cleanup(true);
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.char_indices().rev().nth(LOG_BYTES_SHOWN).map_or(0, |(at, _)| at);
            eprintln!("=== the end of {}\n{}===", self.log_file().display(), &log[start..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::whole_effects;

    #[test]
    fn an_effect_cut_off_anywhere_is_none_and_those_around_it_are_whole() {
        let effect = json!({ "id": "a", "count": 12, "done": true, "payload": "Dürer \u{1}" });
        let line = effect.to_string();
        for cut in 0..line.len() {
            let noted = [line.as_bytes(), b"\n", &line.as_bytes()[..cut], b"\n", line.as_bytes(), b"\n"];
            assert_eq!(whole_effects(&noted.concat()), [effect.clone(), effect.clone()], "cut at {cut}");
        }
    }
}
