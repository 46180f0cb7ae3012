//! QuickFIX C++, driven through `fix_partner.py`.

use std::cell::Cell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use gatepost_tests::{Port, python, source, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Of PyPI; it has TLS and needs no compiler.
pub(crate) const PACKAGE: &str = "quickfix-tls==1.16.0.1rc1";

/// A process with QuickFIX in it, killed when dropped. What it has printed is kept over its lives.
pub(crate) struct Partner {
    role: &'static str,
    port: Port,
    directory: PathBuf,
    more: Vec<String>,
    environment: Vec<(&'static str, String)>,
    process: Option<Process>,
    lines: Arc<Mutex<Vec<String>>>,
    /// How often it has been asked to say something.
    asked: Cell<u64>,
}

struct Process {
    child: Child,
    input: ChildStdin,
    /// Puts into `lines` what it prints, to its end.
    reader: JoinHandle<()>,
}

impl Partner {
    /// `None` where the package cannot be had.
    pub(crate) fn new(role: &'static str, port: &Port, directory: &Path, more: &[&str]) -> Option<Self> {
        python(&[PACKAGE])?;
        std::fs::create_dir_all(directory).unwrap();
        Some(Self {
            role,
            port: port.clone(),
            directory: directory.to_owned(),
            more: more.iter().map(|word| (*word).to_owned()).collect(),
            environment: Vec::new(),
            process: None,
            lines: Arc::default(),
            asked: Cell::new(0),
        })
    }

    /// Other sessions than the one, as `fix_partner.py` wants them.
    pub(crate) fn sessions(mut self, sessions: &[String]) -> Self {
        self.environment.push(("FIX_SESSIONS", sessions.join(" ")));
        self
    }

    pub(crate) fn start(&mut self) {
        let from = self.lines().len();
        let mut command = python(&[PACKAGE]).unwrap();
        command.arg(source("fix_partner.py")).arg(self.role).arg(self.port.to_string()).arg(&self.directory);
        command.args(&self.more).envs(self.environment.iter().map(|(name, value)| (*name, value)));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let lines = Arc::clone(&self.lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        self.process = Some(Process { child, input, reader });
        until("QuickFIX is ready", || self.lines()[from..].iter().any(|line| line == "ready").then_some(()));
    }

    pub(crate) fn kill(&mut self) {
        if let Some(Process { mut child, reader, .. }) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
            let _ = reader.join();
        }
    }

    /// It loses all that it knew, and begins at 1.
    pub(crate) fn forget(&mut self) {
        self.kill();
        for file in std::fs::read_dir(&self.directory).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        self.start();
    }

    /// SIGSTOP, SIGCONT …
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.as_ref().expect("the partner runs").child.id();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
    }

    pub(crate) fn tell(&self, line: &str) {
        let mut input = &self.process.as_ref().expect("the partner runs").input;
        writeln!(input, "{line}").unwrap();
    }

    /// What it has said as far as it has been read; the rest comes.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// All that it has said, also what stood between it and its reader.
    pub(crate) fn said(&self) -> Vec<String> {
        if self.process.is_some() {
            let number = self.asked.get() + 1;
            self.asked.set(number);
            self.tell(&format!("say {number}"));
            let said = format!("said {number}");
            until("QuickFIX has said all", || self.lines().contains(&said).then_some(()));
        }
        self.lines()
    }

    /// The application messages that it took, in order.
    pub(crate) fn took(&self) -> Vec<Taken> {
        self.said().iter().filter_map(|line| Taken::of(line)).collect()
    }

    /// Has it send reports E`first` to E`last`, and waits until it has stored them.
    pub(crate) fn send_reports(&self, first: u32, last: u32) {
        self.tell(&format!("send {first} {last}"));
        let sent = format!("sent {last}");
        until("QuickFIX has sent its reports", || self.lines().contains(&sent).then_some(()));
    }

    pub(crate) fn logons(&self) -> usize {
        self.lines().iter().filter(|line| *line == "logon").count()
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A message as QuickFIX shows it, `|` for SOH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken(pub(crate) String);

impl Taken {
    /// Of an application message, as the partner's line says it.
    pub(crate) fn of(line: &str) -> Option<Self> {
        line.strip_prefix("app ").map(|text| Self(text.to_owned()))
    }

    /// Without what must differ when a message is sent again: length, sum, PossDupFlag and times.
    pub(crate) fn content(&self) -> Vec<&str> {
        let differs =
            |field: &&str| ["9=", "10=", "43=", "52=", "122="].iter().any(|tag| field.starts_with(tag));
        self.0.split('|').filter(|field| !differs(field)).collect()
    }

    pub(crate) fn field(&self, tag: u32) -> Option<&str> {
        let begin = format!("{tag}=");
        self.0.split('|').find_map(|field| field.strip_prefix(begin.as_str()))
    }

    pub(crate) fn seq(&self) -> u64 {
        self.field(34).unwrap().parse().unwrap()
    }

    pub(crate) fn order(&self) -> &str {
        self.field(11).unwrap_or_default()
    }

    pub(crate) fn is_flagged(&self) -> bool {
        self.field(43) == Some("Y") || self.field(97) == Some("Y")
    }
}
