//! `gatepost init DIR`: a working, commented configuration for the current user, with everything beneath one directory; and
//! `gatepost check`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::fault::Faults;
use super::{Config, LoadError};

const FILE_NAME: &str = "gatepost.toml";
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    #[error("{}: exists already and is not overwritten: remove it, or choose another directory", .0.display())]
    Exists(PathBuf),
    #[error("{}: cannot be written ({error}): check the directory's permissions and free space", .file.display())]
    Unwritable { file: PathBuf, error: io::Error },
    /// The template does not fit this directory: its path is too long for a socket.
    #[error("a configuration here would not be valid, choose another directory:\n{0}")]
    Unfit(#[from] Faults),
}

/// Writes `dir/gatepost.toml` (0600) for the current user and gives its path. Keys are made by the first `serve`.
pub(crate) fn init(dir: &Path) -> Result<PathBuf, InitError> {
    let file = dir.join(FILE_NAME);
    let text = init_template(&current_user());
    Config::parse(&text, &file)?;
    let unwritable = |error| InitError::Unwritable { file: file.clone(), error };
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(dir).map_err(unwritable)?;
    match write_new(dir, &file, &text) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(InitError::Exists(file)),
        written => written.map_err(unwritable)?,
    }
    Ok(file)
}

/// Writes a file that is whole or not there, whenever the machine stops, and replaces none.
fn write_new(dir: &Path, file: &Path, text: &str) -> io::Result<()> {
    let temporary = file.with_extension("toml.new");
    let mut opened =
        OpenOptions::new().write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
    opened.write_all(text.as_bytes())?;
    opened.sync_all()?;
    // Unlike a rename, a link does not take the place of what is there.
    let linked = fs::hard_link(&temporary, file);
    fs::remove_file(&temporary)?;
    linked?;
    // The directory may be as new as the file, and those above it too.
    for above in fs::canonicalize(dir)?.ancestors() {
        match File::open(above).and_then(|dir| dir.sync_all()) {
            // What this user may not read it has not made either.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            synced => synced?,
        }
    }
    Ok(())
}

/// Checks the file that `serve` would take. The text says what it holds; the error lists every fault.
pub(crate) fn check(path: Option<&Path>) -> Result<String, LoadError> {
    let config = Config::load(path)?;
    let counted =
        |count: usize, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    Ok(format!(
        "{}: valid: {}, {}, {}, {}, {}",
        config.file.display(),
        counted(config.listens.len(), "listener", "listeners"),
        counted(config.apps.len(), "app", "apps"),
        counted(config.operators.len(), "operator", "operators"),
        counted(config.adapters.len(), "adapter", "adapters"),
        counted(config.inboxes.len(), "inbox", "inboxes"),
    ))
}

/// The current user's name, or its number where it has none.
fn current_user() -> String {
    let uid = Uid::effective();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// The text of a configuration in which `user` is an app and an operator. Its paths begin at the file's directory.
pub(crate) fn init_template(user: &str) -> String {
    TEMPLATE.replace("USER", &format!("{user:?}"))
}

const TEMPLATE: &str = include_str!("init.toml");
