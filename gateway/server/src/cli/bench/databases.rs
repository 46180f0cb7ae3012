//! The databases on a PostgreSQL server that measured gateways keep their messages in: one for each run, and none is left.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use gatepost_store::{OpenError, ScratchDatabase};

use super::super::failure::Failure;

pub(super) struct Databases {
    /// Of the server; may hold a password.
    url: Option<String>,
    open: Vec<ScratchDatabase>,
}

impl Databases {
    /// `url_file` holds the server's address; without it everything is in SQLite.
    pub(super) fn new(url_file: Option<&Path>) -> Result<Self, Failure> {
        let url = url_file
            .map(|file| {
                std::fs::read_to_string(file)
                    .map(|text| text.trim().to_owned())
                    .map_err(Failure::io(format!("cannot read {}", file.display())))
            })
            .transpose()?;
        Ok(Self { url, open: Vec::new() })
    }

    /// Makes the next one; the file in `dir` that holds its address.
    pub(super) async fn create(&mut self, dir: &Path) -> Result<Option<PathBuf>, Failure> {
        let Some(url) = &self.url else { return Ok(None) };
        let database = ScratchDatabase::create(url, "bench").await.map_err(|error| failed("made", &error))?;
        let file = dir.join("postgres-url");
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
        let written = written.and_then(|mut opened| opened.write_all(database.url().as_bytes()));
        self.open.push(database);
        written.map_err(Failure::io(format!("cannot write {}", file.display())))?;
        Ok(Some(file))
    }

    /// Drops those that there are.
    pub(super) async fn remove(&mut self) -> Result<(), Failure> {
        for database in self.open.drain(..) {
            database.remove().await.map_err(|error| failed("dropped again", &error))?;
        }
        Ok(())
    }
}

fn failed(what: &str, error: &OpenError) -> Failure {
    Failure::unsuccessful(format!("no database can be {what} on the server: {error}"))
}
