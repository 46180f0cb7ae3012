//! PostgreSQL as a queue, `synchronous_commit = on`: rows in a table, leased with FOR UPDATE SKIP LOCKED and deleted when
//! done. As far as its protocol takes for that.

use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use nix::unistd::{User, geteuid};

use crate::drive::{Connection, Input, PATIENCE, Publisher, Stream, buffer};
use crate::peer::{Consumer, LOOK, Peer, Publishing};
use crate::server::{Server, first_line, missing};

const PROGRAMS: &str = "/usr/lib/postgresql";
/// Who runs the server when we are root, which it refuses.
const UNPRIVILEGED: &str = "nobody";
/// Rows of one request with many in flight, each in one commit.
const BATCH: usize = 64;
/// Rows of one lease.
const LEASE: usize = 1000;
const BYTEA: i32 = 17;
const BYTEA_ARRAY: i32 = 1001;
const INT8: i32 = 20;
const INT8_ARRAY: i32 = 1016;

const INSERT_ONE: &str = "INSERT INTO q (payload) VALUES ($1)";
const INSERT_MANY: &str = "INSERT INTO q (payload) SELECT unnest($1)";
const LEASE_MANY: &str = "UPDATE q SET leased_until = now() + interval '30 s', attempt = attempt + 1 WHERE id IN \
    (SELECT id FROM q WHERE leased_until IS NULL ORDER BY id LIMIT 1000 FOR UPDATE SKIP LOCKED) RETURNING id, payload";
/// The lease is planned once, while the table is empty: without this it would read and sort all that waits, each time.
const PLAN: &str = "SET enable_seqscan = off; SET enable_sort = off; SET enable_hashjoin = off; \
    SET enable_mergejoin = off; SET enable_bitmapscan = off";
const DELETE_MANY: &str = "DELETE FROM q WHERE id = ANY($1)";
/// Room in the pages for the lease's new version of a row.
const TABLE: &str = "DROP TABLE IF EXISTS q; CREATE TABLE q (id bigserial PRIMARY KEY, payload bytea NOT NULL, \
    attempt int NOT NULL DEFAULT 0, leased_until timestamptz) WITH (fillfactor = 50); CHECKPOINT";
const CONFIG: &str = "listen_addresses = ''\nmax_connections = 100\nshared_buffers = '512MB'\nmax_wal_size = '8GB'\n\
    synchronous_commit = on\nfsync = on\nfull_page_writes = on\n";

pub(crate) struct Postgres {
    _server: Server,
    dir: PathBuf,
    version: String,
    payload: String,
}

impl Postgres {
    pub(crate) fn start(dir: &Path, payload: &str) -> io::Result<Self> {
        let programs = newest()?;
        let version = first_line(Command::new(programs.join("postgres")).arg("--version"))?;
        let data = dir.join("data");
        std::fs::create_dir(&data)?;
        std::fs::set_permissions(&data, PermissionsExt::from_mode(0o700))?;
        if geteuid().is_root() {
            let user =
                User::from_name(UNPRIVILEGED)?.ok_or_else(|| io::Error::other("there is no user nobody"))?;
            chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
            chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        let mut init = unprivileged(&programs.join("initdb"));
        let made = init
            .args(["-A", "trust", "-U", "bench", "-E", "UTF8", "--no-locale", "-D"])
            .arg(&data)
            .current_dir(dir)
            .output()?;
        if !made.status.success() {
            return Err(io::Error::other(format!("initdb: {}", String::from_utf8_lossy(&made.stderr))));
        }
        std::fs::write(data.join("postgresql.auto.conf"), CONFIG)?;
        let mut command = unprivileged(&programs.join("postgres"));
        command.arg("-D").arg(&data).arg("-k").arg(dir);
        let server = Server::start(&mut command, dir, || Session::open(dir).map(drop))?;
        let socket = dir.to_string_lossy().replace('/', "%2F");
        let url = dir.join("url");
        std::fs::write(&url, format!("postgres://bench@{socket}/postgres"))?;
        // Gatepost takes no address that others can read.
        std::fs::set_permissions(&url, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let version = version.split_whitespace().nth(2).unwrap_or("?").to_owned();
        Ok(Self { _server: server, dir: dir.to_path_buf(), version, payload: payload.to_owned() })
    }
}

/// The directory of the newest server's programs.
fn newest() -> io::Result<PathBuf> {
    let versions = std::fs::read_dir(PROGRAMS).map_err(missing("postgresql"))?.flatten();
    let version = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let programs = version.map(|version| Path::new(PROGRAMS).join(version.to_string()).join("bin"));
    let programs = programs.filter(|programs| programs.join("postgres").exists());
    programs.ok_or_else(|| missing("postgresql")(io::ErrorKind::NotFound.into()))
}

fn unprivileged(program: &Path) -> Command {
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", UNPRIVILEGED, "--regid", "nogroup", "--clear-groups", "--"]).arg(program);
    command
}

impl Peer for Postgres {
    fn name(&self) -> &'static str {
        "PostgreSQL SKIP LOCKED"
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn durability(&self) -> &'static str {
        "synchronous_commit on"
    }

    fn url_file(&self) -> Option<PathBuf> {
        Some(self.dir.join("url"))
    }

    fn consumers(&self) -> &'static [usize] {
        &[1, 4]
    }

    fn queue(&mut self) -> io::Result<()> {
        let mut session = Session::open(&self.dir)?;
        for statement in TABLE.split(';') {
            session.simple(statement)?;
        }
        Ok(())
    }

    /// One row a commit, each from a connection of its own; with the most in flight, batches over a few connections.
    fn publishers(&mut self, in_flight: u64) -> io::Result<Publishing> {
        let batched = in_flight > BATCH as u64;
        let rows = if batched { BATCH } else { 1 };
        let count = in_flight / rows as u64;
        let mut connections = Vec::new();
        for _ in 0..count {
            let mut session = Session::open(&self.dir)?;
            let (statement, kind) = if batched { (INSERT_MANY, BYTEA_ARRAY) } else { (INSERT_ONE, BYTEA) };
            session.prepare("i", statement, kind)?;
            let payload = self.payload.as_bytes();
            let value =
                if batched { array(BYTEA, std::iter::repeat_n(payload, BATCH)) } else { payload.to_vec() };
            let mut request = execute("i", Some(&value));
            request.extend(message(b'S', &[]));
            connections.push(Connection::new(session.stream, Committed { request, input: session.input })?);
        }
        Ok(Publishing { connections, window: 1, messages_per_request: rows as u64 })
    }

    fn consumer(&mut self, _: usize) -> io::Result<Consumer> {
        let mut session = Session::open(&self.dir)?;
        session.simple(PLAN)?;
        session.prepare("l", LEASE_MANY, 0)?;
        session.prepare("d", DELETE_MANY, INT8_ARRAY)?;
        Ok(Box::new(move |stop, acknowledged| {
            let mut ids: Vec<[u8; 8]> = Vec::with_capacity(LEASE);
            while !stop.load(Ordering::Relaxed) {
                let done = ids.len() as u64;
                let mut out = Vec::new();
                if done > 0 {
                    out.extend(execute("d", Some(&array(INT8, ids.iter().map(|id| &id[..])))));
                }
                // What is done and what comes next share a commit.
                out.extend(execute("l", None));
                out.extend(message(b'S', &[]));
                session.stream.write_all(&out)?;
                ids.clear();
                session.until_ready(&mut |row| {
                    if let Some(id) = row.get(6..14).and_then(|id| id.try_into().ok()) {
                        ids.push(id);
                    }
                })?;
                acknowledged.fetch_add(done, Ordering::Relaxed);
                if ids.is_empty() && done == 0 {
                    std::thread::sleep(LOOK / 100);
                }
            }
            Ok(())
        }))
    }
}

struct Session {
    stream: Stream,
    input: Input,
    buffer: Vec<u8>,
}

impl Session {
    fn open(dir: &Path) -> io::Result<Self> {
        let stream = Stream::Unix(UnixStream::connect(dir.join(".s.PGSQL.5432"))?);
        stream.wait_at_most(PATIENCE)?;
        let mut session = Self { stream, input: Input::default(), buffer: buffer() };
        let mut body = 196_608i32.to_be_bytes().to_vec();
        body.extend_from_slice(b"user\0bench\0database\0postgres\0\0");
        let mut start = (body.len() as i32 + 4).to_be_bytes().to_vec();
        start.extend(body);
        session.stream.write_all(&start)?;
        session.until_ready(&mut |_| {})?;
        Ok(session)
    }

    fn simple(&mut self, statement: &str) -> io::Result<()> {
        self.stream.write_all(&message(b'Q', &text(statement)))?;
        self.until_ready(&mut |_| {})
    }

    /// `kind` is the type of its one parameter; 0 of none.
    fn prepare(&mut self, name: &str, statement: &str, kind: i32) -> io::Result<()> {
        let mut body = text(name);
        body.extend(text(statement));
        body.extend(i16::from(kind != 0).to_be_bytes());
        if kind != 0 {
            body.extend(kind.to_be_bytes());
        }
        let mut out = message(b'P', &body);
        out.extend(message(b'S', &[]));
        self.stream.write_all(&out)?;
        self.until_ready(&mut |_| {})
    }

    /// Reads until the server waits for the next request, and shows each row.
    fn until_ready(&mut self, row: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        loop {
            while let Some((kind, body, length)) = next_message(self.input.rest()) {
                match kind {
                    b'E' => {
                        return Err(io::Error::other(format!(
                            "PostgreSQL: {}",
                            String::from_utf8_lossy(body)
                        )));
                    }
                    b'D' => row(body),
                    _ => {}
                }
                self.input.take(length);
                if kind == b'Z' {
                    return Ok(());
                }
            }
            if !self.input.read(&mut self.stream, &mut self.buffer)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }
}

struct Committed {
    request: Vec<u8>,
    input: Input,
}

impl Publisher for Committed {
    fn publish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn confirmed(&mut self, input: &[u8]) -> io::Result<u64> {
        self.input.add(input);
        let mut confirmed = 0;
        while let Some((kind, body, length)) = next_message(self.input.rest()) {
            if kind == b'E' {
                return Err(io::Error::other(format!("PostgreSQL: {}", String::from_utf8_lossy(body))));
            }
            confirmed += u64::from(kind == b'Z');
            self.input.take(length);
        }
        Ok(confirmed)
    }
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((body.len() as i32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Binds and executes a prepared statement; parameter and results are binary.
fn execute(name: &str, parameter: Option<&[u8]>) -> Vec<u8> {
    let mut bind = text("");
    bind.extend(text(name));
    bind.extend([0, 1, 0, 1]);
    bind.extend(i16::from(parameter.is_some()).to_be_bytes());
    if let Some(value) = parameter {
        bind.extend((value.len() as i32).to_be_bytes());
        bind.extend_from_slice(value);
    }
    bind.extend([0, 1, 0, 1]);
    let mut bytes = message(b'B', &bind);
    let mut run = text("");
    run.extend(0i32.to_be_bytes());
    bytes.extend(message(b'E', &run));
    bytes
}

/// An array of one dimension.
fn array<'a>(kind: i32, items: impl ExactSizeIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [1, 0, kind, items.len() as i32, 1] {
        bytes.extend(number.to_be_bytes());
    }
    for item in items {
        bytes.extend((item.len() as i32).to_be_bytes());
        bytes.extend_from_slice(item);
    }
    bytes
}

/// The next whole message: its kind, its body, its length.
fn next_message(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let size = u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize;
    Some((bytes[0], bytes.get(5..size + 1)?, size + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_understood_when_they_are_whole() {
        let whole = message(b'Z', b"I");
        for cut in 0..whole.len() {
            assert_eq!(next_message(&whole[..cut]), None, "{cut}");
        }
        assert_eq!(next_message(&whole), Some((b'Z', &b"I"[..], 6)));
        let mut publisher = Committed { request: Vec::new(), input: Input::default() };
        let answer = [message(b'2', b""), message(b'C', b"INSERT 0 1\0"), whole].concat();
        assert_eq!(publisher.confirmed(&answer[..9]).unwrap(), 0);
        assert_eq!(publisher.confirmed(&answer[9..]).unwrap(), 1);
        assert!(publisher.confirmed(&message(b'E', b"SERROR\0\0")).is_err());
    }

    #[test]
    fn arrays_say_their_kind_and_length() {
        let bytes = array(INT8, [&[0u8; 8][..], &[1u8; 8][..]].into_iter());
        assert_eq!(bytes.len(), 20 + 2 * 12);
        assert_eq!(bytes[12..16], 2i32.to_be_bytes());
    }
}
