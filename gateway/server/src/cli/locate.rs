//! Where the gateway is: the configuration file's path, and what operators need from it.
//!
//! Reads only the few keys that it needs, without judging the rest: whoever asks a running gateway for its state must not
//! be stopped by a certificate that only the gateway may read.

use std::path::{Path, PathBuf};

use gatepost_store::{Database, Engines, SealKeysFrom};

use super::failure::Failure;
use crate::config::{CREDENTIALS, DATA_DIR, credentials};

/// Where the configuration is sought when `-c` does not say.
const DEFAULTS: [&str; 2] = ["gatepost.toml", "/etc/gatepost/gatepost.toml"];

/// Whom a socket serves, as `serves` in `[[listen]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serves {
    Apps,
    Operators,
}

impl Serves {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apps => "apps",
            Self::Operators => "operators",
        }
    }
}

/// The file that `-c` names, else the first default that exists.
pub(crate) fn config_path(given: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = given {
        return Ok(path.to_path_buf());
    }
    DEFAULTS.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(|| Failure::Usage {
        what: format!("no configuration: neither ./{} nor {} exists", DEFAULTS[0], DEFAULTS[1]),
        hint: Some(
            "name it with -c FILE, name the socket with --socket PATH, or make one with `gatepost init DIR`",
        ),
    })
}

/// The Unix socket that serves `serves`: the given one, else the configuration's first.
pub(crate) fn socket(
    config: Option<&Path>,
    given: Option<&Path>,
    serves: Serves,
) -> Result<PathBuf, Failure> {
    if let Some(socket) = given {
        return Ok(socket.to_path_buf());
    }
    let path = config_path(config)?;
    let document = read(&path)?;
    let socket = sockets(&document, serves.as_str()).next();
    socket.map(|socket| beside(&path, socket)).ok_or_else(|| Failure::Usage {
        what: format!(
            "{} has no [[listen]] with serves = \"{}\" and `unix`",
            path.display(),
            serves.as_str()
        ),
        hint: Some("add one, or name the socket with --socket PATH"),
    })
}

/// The data directory of the configuration.
pub(crate) fn data_dir(config: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = config_path(config)?;
    let document = read(&path)?;
    let data_dir =
        document.get("gateway").and_then(|gateway| gateway.get("data_dir")).and_then(|dir| dir.as_str());
    Ok(beside(&path, data_dir.unwrap_or(DATA_DIR)))
}

/// Where the configuration's seal keys are; in the data directory if it says nothing that can be read.
pub(crate) fn seal_keys(config: Option<&Path>) -> SealKeysFrom {
    let named = || {
        let path = config_path(config).ok()?;
        let document = read(&path).ok()?;
        let keys = document.get("encryption")?.get("keys")?.as_str()?.to_owned();
        Some((path, keys))
    };
    match named() {
        None => SealKeysFrom::DataDir,
        Some((_, keys)) if keys == CREDENTIALS => SealKeysFrom::Credentials(credentials()),
        Some((path, keys)) => SealKeysFrom::Directory(beside(&path, &keys)),
    }
}

/// Where the configuration's messages are. An address that holds a password is read here.
pub(crate) fn database(config: Option<&Path>) -> Result<Database, Failure> {
    let path = config_path(config)?;
    let document = read(&path)?;
    let postgres = document.get("store").and_then(|store| store.get("postgres"));
    let Some(file) = postgres.and_then(|postgres| postgres.get("url_file")?.as_str()) else {
        return Ok(Database::Sqlite);
    };
    let file = beside(&path, file);
    let url = std::fs::read_to_string(&file).map_err(Failure::io(format!(
        "cannot read {}, which holds the database's address",
        file.display()
    )))?;
    let experimental = postgres.and_then(|postgres| postgres.get("experimental")?.as_bool());
    let engines = if experimental == Some(true) { Engines::Alike } else { Engines::Postgres };
    Ok(Database::Postgres { url: url.trim().to_owned(), node: String::new(), engines })
}

/// Relative paths in the configuration begin at its directory.
fn beside(config: &Path, path: &str) -> PathBuf {
    let absolute = std::path::absolute(config).unwrap_or_else(|_| config.to_path_buf());
    absolute.parent().unwrap_or(Path::new("/")).join(path)
}

fn read(path: &Path) -> Result<toml::Table, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| Failure::Usage {
        what: format!("cannot read {}: {error}", path.display()),
        hint: Some(match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "use the gateway's user; a command that only speaks with the gateway takes --socket PATH instead"
            }
            _ => "check the path that -c names; `gatepost init DIR` writes a new configuration",
        }),
    })?;
    text.parse().map_err(|error: toml::de::Error| Failure::Usage {
        what: format!("{} is not TOML: {}", path.display(), error.message()),
        hint: Some("see `gatepost check`"),
    })
}

fn sockets<'a>(document: &'a toml::Table, serves: &'a str) -> impl Iterator<Item = &'a str> {
    let listens = document.get("listen").and_then(|listen| listen.as_array()).map_or(&[][..], Vec::as_slice);
    listens
        .iter()
        .filter(move |listen| listen.get("serves").and_then(|value| value.as_str()) == Some(serves))
        .filter_map(|listen| listen.get("unix")?.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
        [gateway]
        name = "clinic-1"
        data_dir = "/var/lib/gatepost"
        nonsense = true
        [[listen]]
        serves = "apps"
        tcp = "0.0.0.0:7443"
        [[listen]]
        serves = "apps"
        unix = "/run/app.sock"
        [[listen]]
        serves = "operators"
        unix = "/run/admin.sock"
    "#;

    #[test]
    fn sockets_are_found_even_when_the_rest_is_faulty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gatepost.toml");
        std::fs::write(&path, CONFIG).unwrap();
        assert_eq!(socket(Some(&path), None, Serves::Apps).unwrap(), Path::new("/run/app.sock"));
        assert_eq!(socket(Some(&path), None, Serves::Operators).unwrap(), Path::new("/run/admin.sock"));
        assert_eq!(socket(Some(&path), Some(Path::new("/x")), Serves::Apps).unwrap(), Path::new("/x"));
        assert_eq!(data_dir(Some(&path)).unwrap(), Path::new("/var/lib/gatepost"));
    }

    #[test]
    fn relative_paths_begin_at_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gatepost.toml");
        std::fs::write(
            &path,
            "[gateway]\ndata_dir = \"data\"\n[[listen]]\nserves = \"apps\"\nunix = \"app.sock\"",
        )
        .unwrap();
        assert_eq!(socket(Some(&path), None, Serves::Apps).unwrap(), dir.path().join("app.sock"));
        assert_eq!(data_dir(Some(&path)).unwrap(), dir.path().join("data"));
    }

    #[test]
    fn the_same_files_are_sought_as_by_serve() {
        let text = crate::config::LoadError::Missing.to_string();
        for default in DEFAULTS {
            assert!(text.contains(default), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gatepost.toml");
        let failure = socket(Some(&path), None, Serves::Apps).unwrap_err();
        assert!(failure.to_string().contains("cannot read"), "{failure}");
        std::fs::write(&path, "[gateway]").unwrap();
        let failure = socket(Some(&path), None, Serves::Apps).unwrap_err();
        assert!(failure.to_string().contains("serves = \"apps\""), "{failure}");
        assert_eq!(failure.exit_code(), 2);
    }
}
