//! Finding, reading and parsing the file.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use toml::de::DeTable;

use super::fault::{Faults, Report, Spot};
use super::files::{Base, Files};
use super::names::Names;
use super::places::Places;
use super::section::Section;
use super::{Config, Safety, gateway, listens, principals, queues, routes, sandbox, shape, store};

/// Where the file is sought when none is named, in this order.
pub(crate) const SEARCHED: [&str; 2] = ["gatepost.toml", "/etc/gatepost/gatepost.toml"];
/// Largest configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(
        "no configuration: neither ./{} nor {} exists; write one with `gatepost init DIR`, or name one with -c FILE",
        SEARCHED[0],
        SEARCHED[1]
    )]
    Missing,
    #[error("{}: cannot be read ({error}): check the path and its permissions", .file.display())]
    Unreadable { file: PathBuf, error: std::io::Error },
    #[error("{}: larger than {FILE_BYTES_MAX} bytes: a configuration is smaller than that", .file.display())]
    TooLarge { file: PathBuf },
    #[error(transparent)]
    Invalid(#[from] Faults),
}

impl Config {
    /// Reads the named file, or else the first that exists of [`SEARCHED`].
    pub(crate) fn load(path: Option<&Path>) -> Result<Self, LoadError> {
        Self::load_as(path, Safety::Required)
    }

    /// The same, where `safety` says whether adapters may do without a sandbox.
    pub(crate) fn load_as(path: Option<&Path>, safety: Safety) -> Result<Self, LoadError> {
        let file = match path {
            Some(path) => path.to_owned(),
            None => find(&SEARCHED.map(Path::new))?,
        };
        let unreadable = |error| LoadError::Unreadable { file: file.clone(), error };
        let mut bytes = Vec::new();
        let opened = std::fs::File::open(&file).map_err(unreadable)?;
        opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(LoadError::TooLarge { file });
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, error.utf8_error()))
        })?;
        Ok(Self::parse_as(&text, &file, safety)?)
    }

    /// Parses the text of `file`, whose directory is where relative paths begin.
    pub(crate) fn parse(text: &str, file: &Path) -> Result<Self, Faults> {
        Self::parse_as(text, file, Safety::Required)
    }

    pub(super) fn parse_as(text: &str, file: &Path, safety: Safety) -> Result<Self, Faults> {
        let mut report = Report::new(file, text);
        let directory = directory(file);
        let (document, errors) = DeTable::parse_recoverable(text);
        // What follows on the same line mostly comes of the first.
        let mut lines = BTreeSet::new();
        for error in &errors {
            let offset = error.span().map_or(0, |span| span.start);
            if !lines.insert(text.get(..offset).map_or(0, |before| before.matches('\n').count())) {
                continue;
            }
            // Only the message: the error's own display quotes the line.
            let why = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            report.add(&Spot { offset, key: String::new() }, format!("not TOML: {why}"));
        }
        let mut config = if errors.is_empty() {
            assemble(document.get_ref(), text, file, Base(&directory), safety, &mut report)
        } else {
            // What the parser could not read is missing from the document; asking what it means would only mislead.
            return Err(report.into_faults());
        };
        if !report.is_clean() {
            return Err(report.into_faults());
        }
        config.warnings = report.into_warnings();
        Ok(config)
    }
}

fn find(candidates: &[&Path]) -> Result<PathBuf, LoadError> {
    // One that exists but may not be read is named in the error, rather than passed over.
    let exists = |path: &&&Path| path.try_exists().unwrap_or(true);
    candidates.iter().find(exists).map(|path| path.to_path_buf()).ok_or(LoadError::Missing)
}

fn directory(file: &Path) -> PathBuf {
    let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    absolute.parent().unwrap_or(Path::new("/")).to_owned()
}

fn assemble(
    document: &DeTable<'_>,
    text: &str,
    file: &Path,
    base: Base<'_>,
    safety: Safety,
    report: &mut Report<'_>,
) -> Config {
    shape::check(document, report);
    let root = Section::root(document);
    let names = Names::read(&root, report);
    let gateway = gateway::read(&root, base, report);
    let mut files = Files::of_gateway(base, &gateway);
    let config = Config {
        file: file.to_owned(),
        digest: hex(&Sha256::digest(text.as_bytes())),
        store: store::read(&root, &mut files, report),
        listens: listens::read(&root, &mut files, report),
        gateway,
        encryption: store::encryption(&root),
        seal_keys: store::seal_keys(&root, base, report),
        apps: principals::apps(&root, &names, report),
        operators: principals::operators(&root, report),
        adapters: queues::adapters(&root, &files, report),
        inboxes: queues::inboxes(&root, report),
        routes: routes::read(&root, &names, report),
        warnings: Vec::new(),
        safety,
        places: Places::of_adapters(document, text),
    };
    gateway::check_dedup_window(&root, &config, report);
    store::warn_of_keys(&root, &config, report);
    sandbox::check(&root, &config, report);
    config
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Unwrap safety: writing to a String cannot fail, so its result says nothing.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_exists_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first.toml"), dir.path().join("second.toml"));
        assert!(matches!(find(&[&first, &second]), Err(LoadError::Missing)));
        std::fs::write(&second, "").unwrap();
        assert_eq!(find(&[&first, &second]).unwrap(), second);
        std::fs::write(&first, "").unwrap();
        assert_eq!(find(&[&first, &second]).unwrap(), first);
    }

    #[test]
    fn files_that_are_no_configuration_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gatepost.toml");
        let error = || Config::load(Some(&file)).unwrap_err();
        assert!(matches!(error(), LoadError::Unreadable { .. }));
        assert!(error().to_string().contains("gatepost.toml: cannot be read"));
        std::fs::write(&file, b"name = \"\xff\"").unwrap();
        assert!(error().to_string().contains("utf-8"));
        std::fs::write(&file, vec![b'#'; 1 + FILE_BYTES_MAX as usize]).unwrap();
        assert!(matches!(error(), LoadError::TooLarge { .. }));
    }
}
