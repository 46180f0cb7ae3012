//! The audit log's part of a backup: the files that hold entries of the snapshot's tree, and what lies beside them.
//!
//! Files of a larger tree are left out: the restored log goes on in another way, and they would contradict it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gatepost_audit::{TILE_WIDTH, entries_path, tile_path};

use super::files::Contents;
use super::{BackupError, Taken, at};
use crate::data_dir::DataDir;

/// Longest that a file of a tile may come after those below it: a gateway at work writes them one batch after the other.
const FILING_WAIT: Duration = Duration::from_secs(10);
const FILING_INTERVAL: Duration = Duration::from_millis(50);
/// Beside the tiles: read first, or made anew with each checkpoint.
const NOT_COPIED: [&str; 3] = ["tile", "checkpoint", "checkpoint.prev"];

pub(super) fn take(data: &DataDir, taken: &Taken, contents: &mut Contents<'_>) -> Result<(), BackupError> {
    take_tiles(data, taken, contents)?;
    take_beside(&data.audit(), "audit", contents)
}

fn take_tiles(data: &DataDir, taken: &Taken, contents: &mut Contents<'_>) -> Result<(), BackupError> {
    let width = u64::from(TILE_WIDTH);
    let mut copy = |path: &str| contents.copy(&data.audit().join(path), &format!("audit/{path}"));
    let mut count = 0;
    // Those behind the first that is not there yet are left out, although they may come meanwhile: without a gap.
    while count < taken.entries / width {
        let (tile, bundle) = (tile_path(0, count, None), entries_path(count, None));
        if let Some(missing) = [&tile, &bundle].into_iter().find(|path| !data.audit().join(path).exists()) {
            if count < taken.filed / width {
                return Err(BackupError::LogFileMissing(format!("audit/{missing}")));
            }
            break;
        }
        copy(&tile)?;
        copy(&bundle)?;
        count += 1;
    }
    for level in 1.. {
        count /= width;
        if count == 0 {
            return Ok(());
        }
        for index in 0..count {
            let path = tile_path(level, index, None);
            wait_for(&data.audit().join(&path), &path)?;
            copy(&path)?;
        }
    }
    Ok(())
}

fn wait_for(file: &Path, name: &str) -> Result<(), BackupError> {
    let begun = Instant::now();
    while !file.exists() {
        if begun.elapsed() > FILING_WAIT {
            return Err(BackupError::LogFileMissing(format!("audit/{name}")));
        }
        std::thread::sleep(FILING_INTERVAL);
    }
    Ok(())
}

/// The public key, the reasons of operators, logs that have ended.
fn take_beside(dir: &Path, name: &str, contents: &mut Contents<'_>) -> Result<(), BackupError> {
    let mut entries = fs::read_dir(dir)
        .and_then(|entries| {
            entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<PathBuf>>>()
        })
        .map_err(at(dir))?;
    entries.sort();
    for path in entries {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Temporary files come and go.
        let is_passing = file.starts_with('.') || file.ends_with(".tmp");
        if is_passing || name == "audit" && NOT_COPIED.contains(&file.as_str()) {
            continue;
        }
        let name = format!("{name}/{file}");
        if path.is_dir() {
            take_beside(&path, &name, contents)?;
        } else {
            contents.copy(&path, &name)?;
        }
    }
    Ok(())
}
