//! Says what a gateway looks like, as its configuration file would.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::gateway::Gateway;

/// A gateway to be. App and operator are the user who runs the tests.
#[derive(Debug)]
pub struct Builder {
    dir: TempDir,
    gateway: String,
    listens: String,
    rest: String,
    faults: Option<String>,
    environment: Vec<(&'static str, OsString)>,
    postgres: Option<String>,
    /// Whatever other tests' gateways are on.
    is_sqlite: bool,
    namespace: Option<String>,
}

impl Default for Builder {
    fn default() -> Self {
        Self::at(
            tempfile::Builder::new().prefix("gp-").tempdir().expect("there is a place for temporary files"),
        )
    }
}

impl Builder {
    /// A gateway whose files are in `dir`.
    pub fn at(dir: TempDir) -> Self {
        let (gateway, listens, rest) = (String::new(), String::new(), String::new());
        Self {
            dir,
            gateway,
            listens,
            rest,
            faults: None,
            environment: Vec::new(),
            postgres: None,
            is_sqlite: false,
            namespace: None,
        }
    }

    /// Its directory, for files that the configuration names.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// More for the gateway's environment.
    #[must_use]
    pub fn environment(mut self, more: Vec<(&'static str, OsString)>) -> Self {
        self.environment.extend(more);
        self
    }

    /// Its messages are in the PostgreSQL database with this address.
    #[must_use]
    pub fn postgres(mut self, url: &str) -> Self {
        self.postgres = Some(url.to_owned());
        self
    }

    /// Its messages are in a file, also where those of other tests' gateways are in PostgreSQL.
    #[must_use]
    pub fn sqlite(mut self) -> Self {
        self.is_sqlite = true;
        self
    }

    /// It runs in this network namespace.
    #[must_use]
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespace = Some(name.to_owned());
        self
    }

    /// A line of `[gateway]`.
    #[must_use]
    pub fn gateway(mut self, line: &str) -> Self {
        let _ = writeln!(self.gateway, "{line}");
        self
    }

    /// One more listener, by its lines.
    #[must_use]
    pub fn listen(mut self, lines: &str) -> Self {
        let _ = writeln!(self.listens, "[[listen]]\n{lines}\n");
        self
    }

    /// An app that this user is: the types it may send and the inboxes it may read.
    #[must_use]
    pub fn app(self, name: &str, send: &[&str], inboxes: &[&str]) -> Self {
        let lines = format!("user = \"{}\"\nsend = {}\ninbox = {}", uid(), list(send), list(inboxes));
        self.table(&format!("[apps.{name}]"), &lines)
    }

    #[must_use]
    pub fn inbox(self, name: &str, lines: &str) -> Self {
        self.table(&format!("[inboxes.{name}]"), lines)
    }

    /// An adapter and its settings.
    #[must_use]
    pub fn adapter(self, name: &str, lines: &str, settings: &str) -> Self {
        self.table(&format!("[adapters.{name}]"), lines)
            .table(&format!("[adapters.{name}.settings]"), settings)
    }

    /// An adapter that is `gatepost-echo`, which notes its effects in the file that [`Gateway::effects`] reads.
    #[must_use]
    pub fn echo(self, name: &str, lines: &str, settings: &str) -> Self {
        let file = |kind: &str| {
            let file = self.dir.path().join(format!("{name}.{kind}"));
            // Its sandbox lets it write to files that are there.
            std::fs::File::options().create(true).append(true).open(&file).expect("files can be made");
            file.display().to_string()
        };
        let settings = format!(
            "effects = {:?}\ntokens = {:?}\ncounts = {:?}\n{settings}",
            file("effects"),
            file("tokens"),
            file("counts"),
        );
        self.adapter(name, &format!("run = \"gatepost-echo\"\n{lines}"), &settings)
    }

    #[must_use]
    pub fn route(self, from: &str, to: &[&str]) -> Self {
        self.table("[[routes]]", &format!("from = {from:?}\nto = {}", list(to)))
    }

    #[must_use]
    pub fn route_when(self, from: &str, when: &str, to: &[&str]) -> Self {
        self.table("[[routes]]", &format!("from = {from:?}\nwhen = '{when}'\nto = {}", list(to)))
    }

    /// Any table.
    #[must_use]
    pub fn table(mut self, header: &str, lines: &str) -> Self {
        let _ = writeln!(self.rest, "{header}\n{lines}\n");
        self
    }

    /// A gateway with the points of `gatepost-faults`, and what happens at them; `once=` is added, so that each point happens once
    /// in all lives of the gateway and its adapters. [`Gateway::fired`] says which have.
    #[must_use]
    pub fn faults(mut self, faults: &str) -> Self {
        self.faults = Some(faults.to_owned());
        self
    }

    /// What the configuration says of the store: nothing for SQLite; for PostgreSQL a file with the address of a database that
    /// is this gateway's own.
    fn store(&self) -> String {
        if self.is_sqlite || (!on_postgres() && self.postgres.is_none()) {
            return String::new();
        }
        let file = self.dir.path().join("postgres-url");
        if !file.exists() {
            let fresh = || gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
            let url = self.postgres.clone().unwrap_or_else(fresh);
            gatepost_postgres::write_address(&file, &url).expect("the address can be written");
        }
        format!("[store]\npostgres = {{ url_file = {:?} }}", file.display().to_string())
    }

    /// Writes the configuration and nothing more.
    pub fn write(&self) -> PathBuf {
        let dir = self.dir.path().display();
        let text = format!(
            r#"[gateway]
name = "test-1"
data_dir = "{dir}/data"
{gateway}
{store}

[[listen]]
serves = "apps"
unix = "{dir}/app.sock"

[[listen]]
serves = "operators"
unix = "{dir}/admin.sock"

{listens}
[operators.ops]
user = "{uid}"
can = ["read", "operate", "read_payload", "audit"]

{rest}"#,
            gateway = self.gateway,
            store = self.store(),
            listens = self.listens,
            uid = uid(),
            rest = self.rest,
        );
        let file = self.dir.path().join("gatepost.toml");
        std::fs::write(&file, text).expect("the configuration can be written");
        file
    }

    /// Starts it and waits until it is ready.
    pub fn start(self) -> Gateway {
        let mut gateway = self.prepare();
        gateway.restart();
        gateway
    }

    /// Writes its configuration and does not start it.
    pub fn prepare(self) -> Gateway {
        let config = self.write();
        Gateway::new(self.dir, config, self.faults, self.environment, self.namespace)
    }
}

/// Whether the tests' gateways keep their messages in PostgreSQL: `GATEPOST_TEST_STORE=postgres`.
pub fn on_postgres() -> bool {
    match std::env::var("GATEPOST_TEST_STORE").as_deref() {
        Ok("postgres") => true,
        Ok("sqlite") | Err(_) => false,
        Ok(other) => panic!("GATEPOST_TEST_STORE is {other}: it is sqlite or postgres"),
    }
}

/// The user who runs the tests.
pub fn uid() -> u32 {
    std::fs::metadata("/proc/self").expect("/proc is mounted").uid()
}

fn list(items: &[&str]) -> String {
    format!("{items:?}")
}
