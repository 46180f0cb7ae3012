//! Files that hold a database's address.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Writes `url` to a file that nobody else may read: a gateway takes no other.
pub fn write_address(file: &Path, url: &str) -> io::Result<()> {
    let mut opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    opened.write_all(url.as_bytes())
}
