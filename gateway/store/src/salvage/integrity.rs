//! What SQLite itself finds wrong with the database: indices, free pages, constraints.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::damage::{Damage, Fate};
use super::image::Image;
use super::page::Pages as _;
use super::{SalvageError, at};

/// SQLite's verdict on the database at `path`, of which `image` was taken.
pub(super) fn check(image: &Image, path: &Path) -> Result<Vec<Damage>, SalvageError> {
    let said = if image.is_ahead_of_its_file() {
        let copy = tempfile_of(image).map_err(at(path))?;
        check_integrity(&copy.0.clone(), Some(copy))
    } else {
        check_integrity(path, None)
    };
    let said = said.unwrap_or_else(|error| vec![error.to_string()]);
    let damage = |why| Damage {
        fate: Fate::Rebuilt,
        what: "database".to_owned(),
        place: "structure".to_owned(),
        id: None,
        why,
    };
    Ok(said.into_iter().map(damage).collect())
}

/// The database as it is with what the write-ahead log holds, in a file of its own that loses its name when it is dropped.
fn tempfile_of(image: &Image) -> io::Result<Temporary> {
    use std::io::Write as _;
    let name = format!("gatepost-inspect-{}-{:x}.db", std::process::id(), std::ptr::from_ref(image).addr());
    let temporary = Temporary(std::env::temp_dir().join(name));
    let mut options = File::options();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = io::BufWriter::new(options.write(true).create_new(true).open(&temporary.0)?);
    for number in 1..=image.count {
        let page = image.page(number)?;
        file.write_all(&page.unwrap_or_else(|| vec![0; image.page_bytes()]))?;
    }
    file.flush()?;
    Ok(temporary)
}

struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Faults that SQLite names. The file is taken for one that nobody writes, so that nothing is made beside it.
fn check_integrity(database: &Path, temporary: Option<Temporary>) -> rusqlite::Result<Vec<String>> {
    use rusqlite::{Connection, OpenFlags};
    let escaped: String =
        database.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    let opened = connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0));
    // It is open and needs its name no more: whatever happens now, no copy of the messages stays.
    drop(temporary);
    opened?;
    let mut statement = connection.prepare("PRAGMA integrity_check(20)")?;
    let said =
        statement.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let lines =
        said.iter().flat_map(|said| said.lines()).filter(|line| *line != "ok" && !line.starts_with("***"));
    Ok(lines.map(str::to_owned).collect())
}
