//! The cluster: started, killed, paused, copied to a standby, and gone when it is dropped.

use std::fs::File;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::place::Place;
use crate::processes;
use crate::programs::{Programs, run, unprivileged};
use crate::settings::Settings;
use crate::template;
use crate::wait::until;

/// The superuser, and the only role.
pub(crate) const USER: &str = "gatepost";
/// What is there in every cluster.
const FIRST_DATABASE: &str = "postgres";
const LOADED: &str = "SELECT pg_conf_load_time()";
/// For what takes a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOG_LINES_SHOWN: usize = 12;
/// Who can reach the socket or the address is a test.
const LOCAL: &str = "local all all trust\nlocal replication all trust\n";
const REMOTE: &str = "host all all samenet trust\nhost replication all samenet trust\n";
/// What stands in a URL as it is.
const PLAIN: AsciiSet = NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_');

/// A cluster in a directory of its own. Dropped, it is gone.
#[derive(Debug)]
pub struct Cluster {
    programs: Programs,
    settings: Settings,
    server: Option<Child>,
    /// Last, since it cleans up after the server.
    place: Place,
}

impl Cluster {
    /// A new, empty cluster, with these settings over the defaults.
    pub fn start(settings: &[(&str, &str)]) -> io::Result<Self> {
        let (programs, place) = Self::filled()?;
        let mut own = Settings::default();
        own.change(settings);
        Self::launch(programs, own, place)
    }

    fn filled() -> io::Result<(Programs, Place)> {
        let programs = Programs::newest()?;
        let place = Place::new()?;
        template::fill(&place, &programs)?;
        Ok((programs, place))
    }

    /// As [`start`](Self::start), and it listens on a free port of this address of the machine's too.
    pub fn listen_on(address: IpAddr, settings: &[(&str, &str)]) -> io::Result<Self> {
        // Free a moment ago: who is faster makes the start fail, which a test shows.
        let port = TcpListener::bind((address, 0))?.local_addr()?.port().to_string();
        let address = address.to_string();
        Self::start(&[&[("listen_addresses", address.as_str()), ("port", port.as_str())], settings].concat())
    }

    /// As [`listen_on`](Self::listen_on), and it shows this certificate, PEM, to those who ask for TLS.
    pub fn listen_with_tls(address: IpAddr, certificate: &str, key: &str) -> io::Result<Self> {
        let (programs, place) = Self::filled()?;
        place.write("server.crt", certificate)?;
        place.write_secret("server.key", key)?;
        let port = TcpListener::bind((address, 0))?.local_addr()?.port().to_string();
        let address = address.to_string();
        let mut own = Settings::default();
        own.change(&[("listen_addresses", &address), ("port", &port), ("ssl", "on")]);
        Self::launch(programs, own, place)
    }

    /// A copy of this running cluster that follows it through its socket. `synchronous_standby_names` of this one can name it.
    /// It has this one's settings, with these over them, but no standby and no address of its own.
    pub fn standby(&self, name: &str, settings: &[(&str, &str)]) -> io::Result<Self> {
        let place = Place::new()?;
        let mut copy = unprivileged(&self.programs.file("pg_basebackup"));
        copy.args(["--checkpoint", "fast", "--no-sync", "--no-manifest", "--write-recovery-conf"]);
        copy.arg("--pgdata").arg(place.data()).arg("--dbname").arg(self.url(FIRST_DATABASE));
        copy.current_dir(place.dir());
        run(&mut copy)?;
        let mut own = self.settings.clone();
        own.change(&[("listen_addresses", ""), ("synchronous_standby_names", "")]);
        // Its receiver calls itself by the cluster's name.
        own.change(&[("cluster_name", name)]);
        own.change(settings);
        Self::launch(self.programs.clone(), own, place)
    }

    fn launch(programs: Programs, settings: Settings, place: Place) -> io::Result<Self> {
        let hba = if settings.value("listen_addresses").is_empty() { "" } else { REMOTE };
        place.write("pg_hba.conf", &format!("{LOCAL}{hba}"))?;
        let mut cluster = Self { programs, settings, server: None, place };
        cluster.start_again()?;
        Ok(cluster)
    }

    /// A URL by which libpq and sqlx reach this database through the socket.
    pub fn url(&self, database: &str) -> String {
        let (database, dir) = (encoded(database), encoded(&self.place.dir().to_string_lossy()));
        format!("postgres:///{database}?host={dir}&port={}&user={USER}", self.settings.value("port"))
    }

    /// The directory of its socket.
    pub fn socket(&self) -> &Path {
        self.place.dir()
    }

    /// The same over TCP; `None` if it does not listen there.
    pub fn tcp_url(&self, database: &str) -> Option<String> {
        let (address, port) = (self.settings.value("listen_addresses"), self.settings.value("port"));
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("postgres://{USER}@{host}:{port}/{}", encoded(database));
        (!address.is_empty()).then_some(url)
    }

    /// Makes an empty database and gives its URL.
    pub fn create_database(&self, name: &str) -> io::Result<String> {
        self.query(FIRST_DATABASE, &format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")))?;
        Ok(self.url(name))
    }

    /// What these statements print, by lines, with `|` between columns.
    pub fn query(&self, database: &str, statements: &str) -> io::Result<String> {
        run(self.psql(database).args(["--command", statements])).map(|said| said.trim_end().to_owned())
    }

    /// A `psql` that is connected to this database and prints bare values, for what outlives a [`query`](Self::query).
    pub fn psql(&self, database: &str) -> Command {
        let mut psql = Command::new(self.programs.file("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set", "ON_ERROR_STOP=1"]);
        psql.arg("--dbname").arg(self.url(database)).env("PGCONNECT_TIMEOUT", PATIENCE.as_secs().to_string());
        psql
    }

    /// Crashes it: all its processes end at once and clean up nothing.
    pub fn kill(&mut self) -> io::Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        if server.try_wait()?.is_some() {
            return Ok(());
        }
        let all = processes::stop(pid(&server))?;
        processes::send(&all, Signal::SIGKILL)?;
        server.wait()?;
        // One that has its memory still would keep the next start from beginning.
        until(PATIENCE, "the server's processes are gone", || {
            all.iter().all(|process| processes::gone(*process))
        })
    }

    /// Ends its sessions, and stops it cleanly; it waits for its standbys to have everything.
    pub fn stop_fast(&mut self) -> io::Result<()> {
        let Some(server) = &mut self.server else { return Ok(()) };
        if server.try_wait()?.is_none() {
            kill(pid(server), Signal::SIGINT)?;
        }
        until(PATIENCE, "the server has stopped", || !matches!(server.try_wait(), Ok(None)))?;
        let status = server.wait()?;
        self.server = None;
        if status.success() { Ok(()) } else { Err(self.failed(&format!("stopped with {status}"))) }
    }

    /// Starts it after [`kill`](Self::kill) or [`stop_fast`](Self::stop_fast), with its data, its socket and the settings that it
    /// has by now.
    pub fn start_again(&mut self) -> io::Result<()> {
        if self.runs()? {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the server runs already"));
        }
        self.write_settings()?;
        let log = File::options().create(true).append(true).open(self.place.log())?;
        let server = unprivileged(&self.programs.file("postgres"))
            .arg("-D")
            .arg(self.place.data())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Not the terminal's: an interrupt is for the tests, and what they started goes with them.
            .process_group(0)
            // From the beginning, since the keeper knows the server's processes by it.
            .current_dir(self.place.data())
            .spawn()?;
        self.server = Some(server);
        self.wait_until_ready()
    }

    /// Stops the time of all its processes: connections stay, and nothing answers.
    pub fn pause(&self) -> io::Result<()> {
        let Some(server) = &self.server else { return Err(io::ErrorKind::NotConnected.into()) };
        let all = processes::stop(pid(server))?;
        processes::send(&all, Signal::SIGSTOP)
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) -> io::Result<()> {
        processes::send(&self.processes(), Signal::SIGCONT)
    }

    /// Changes settings. New sessions of a running server have them when this returns, open ones before their next statement; what
    /// takes a restart waits for one.
    pub fn configure(&mut self, settings: &[(&str, &str)]) -> io::Result<()> {
        self.settings.change(settings);
        let Some(server) = &self.server else { return Ok(()) };
        let before = self.query(FIRST_DATABASE, LOADED)?;
        self.write_settings()?;
        kill(pid(server), Signal::SIGHUP)?;
        until(PATIENCE, "the settings are loaded", || {
            self.query(FIRST_DATABASE, LOADED).is_ok_and(|now| now != before)
        })?;
        // It is the checkpointer that tells sessions to wait for a standby. It reads its settings before each checkpoint, but may
        // have been past that before the first of these.
        for _ in 0..2 {
            self.query(FIRST_DATABASE, "CHECKPOINT")?;
        }
        Ok(())
    }

    /// Makes a standby a primary, which it is when this returns.
    pub fn promote(&mut self) -> io::Result<()> {
        let seconds = PATIENCE.as_secs();
        match self.query(FIRST_DATABASE, &format!("SELECT pg_promote(true, {seconds})"))?.as_str() {
            "t" => Ok(()),
            _ => Err(self.failed("was not promoted in time")),
        }
    }

    /// The processes that it has now, the first one first.
    pub fn processes(&self) -> Vec<Pid> {
        self.server.as_ref().map(|server| processes::family(pid(server))).unwrap_or_default()
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read(self.place.log())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    fn runs(&mut self) -> io::Result<bool> {
        Ok(match &mut self.server {
            Some(server) => server.try_wait()?.is_none(),
            None => false,
        })
    }

    fn write_settings(&self) -> io::Result<()> {
        let mut all = self.settings.clone();
        all.change(&[("unix_socket_directories", &self.place.dir().to_string_lossy())]);
        self.place.write("postgresql.conf", &all.text())
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let mut ended = false;
        let waited = until(PATIENCE, "the server accepts connections", || {
            ended = !self.runs().unwrap_or(false);
            ended || self.ready()
        });
        match waited {
            Ok(()) if !ended => Ok(()),
            Ok(()) => Err(self.failed("ended early")),
            Err(error) => Err(self.failed(&error.to_string())),
        }
    }

    /// What `pg_ctl` looks at: the server's first and eighth line about itself.
    fn ready(&self) -> bool {
        let Some(server) = &self.server else { return false };
        let text = std::fs::read_to_string(self.place.data().join("postmaster.pid")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        // Without its number these may be the lines of one that was killed.
        lines.first() == Some(&server.id().to_string().as_str()) && lines.get(7) == Some(&"ready")
    }

    fn failed(&self, how: &str) -> io::Error {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        io::Error::other(format!("PostgreSQL: {how}\n{tail}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The data go too, so nothing has to be stopped cleanly; what this cannot do, the keeper does.
        let _ = self.kill();
    }
}

/// A child that is not waited for yet, so the number is still its own.
fn pid(server: &Child) -> Pid {
    Pid::from_raw(server.id().cast_signed())
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, &PLAIN).to_string()
}
