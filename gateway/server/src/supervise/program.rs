//! Which file a `run` names, and what of the gateway's environment reaches it.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::{Program, Run};

/// The only variables that a child of the gateway inherits.
pub(super) const INHERITED: [&str; 3] = ["PATH", "LANG", "TZ"];

/// A program that is there, and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) file: PathBuf,
    pub(crate) args: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotFound {
    #[error(
        "there is no program `{name}` beside gatepost{beside} or in PATH; install it or give its full path"
    )]
    Nowhere { name: String, beside: String },
    #[error("{0} is not an executable file; correct the path or its permissions")]
    NotExecutable(PathBuf),
}

/// Where bare names are sought.
#[derive(Clone, Debug)]
pub(crate) struct SearchPath {
    /// The directory of the gatepost executable, if it is known.
    beside: Option<PathBuf>,
    path: OsString,
}

impl SearchPath {
    /// The places as this process sees them.
    pub(crate) fn of_this_process() -> Self {
        let executable = std::env::current_exe().ok();
        Self {
            beside: executable.and_then(|file| file.parent().map(Path::to_owned)),
            path: std::env::var_os("PATH").unwrap_or_default(),
        }
    }

    pub(crate) fn resolve(&self, run: &Run) -> Result<Command, NotFound> {
        let file = match &run.program {
            Program::File(file) if is_executable(file) => file.clone(),
            Program::File(file) => return Err(NotFound::NotExecutable(file.clone())),
            Program::Name(name) => self.find(name).ok_or_else(|| self.nowhere(name))?,
        };
        Ok(Command { file, args: run.args.clone() })
    }

    /// Relative entries of PATH are passed over: what is started must not depend on where gatepost was started.
    fn find(&self, name: impl AsRef<OsStr>) -> Option<PathBuf> {
        let path = std::env::split_paths(&self.path).filter(|directory| directory.is_absolute());
        self.beside
            .iter()
            .cloned()
            .chain(path)
            .map(|directory| directory.join(name.as_ref()))
            .find(|file| is_executable(file))
    }

    fn nowhere(&self, name: &str) -> NotFound {
        let beside = self.beside.as_ref().map(|directory| format!(" ({})", directory.display()));
        NotFound::Nowhere { name: name.to_owned(), beside: beside.unwrap_or_default() }
    }
}

fn is_executable(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path, name: &str, mode: u32) -> PathBuf {
        let file = directory.join(name);
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn named(name: &str) -> Run {
        Run { program: Program::Name(name.into()), args: vec!["-v".into()] }
    }

    #[test]
    fn r13_10_a_bare_name_is_sought_beside_gatepost_then_in_path() {
        let (beside, path) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let search = SearchPath { beside: Some(beside.path().into()), path: path.path().into() };
        assert!(
            search.resolve(&named("a")).unwrap_err().to_string().contains("no program `a` beside gatepost")
        );
        let in_path = program(path.path(), "a", 0o755);
        assert_eq!(search.resolve(&named("a")).unwrap(), Command { file: in_path, args: vec!["-v".into()] });
        let plain = program(beside.path(), "a", 0o644);
        assert_ne!(search.resolve(&named("a")).unwrap().file, plain, "not executable");
        let executable = program(beside.path(), "a", 0o755);
        assert_eq!(search.resolve(&named("a")).unwrap().file, executable);
    }

    #[test]
    fn r13_10_a_relative_directory_in_path_is_passed_over() {
        let here = tempfile::tempdir_in(".").unwrap();
        program(here.path(), "a", 0o755);
        let relative = here.path().file_name().unwrap().to_owned();
        let search = SearchPath { beside: None, path: relative };
        assert!(matches!(search.resolve(&named("a")), Err(NotFound::Nowhere { .. })));
    }

    #[test]
    fn a_full_path_must_be_an_executable_file() {
        let directory = tempfile::tempdir().unwrap();
        let search = SearchPath { beside: None, path: OsString::new() };
        let at = |file: PathBuf| search.resolve(&Run { program: Program::File(file), args: Vec::new() });
        let good = program(directory.path(), "good", 0o755);
        assert_eq!(at(good.clone()).unwrap().file, good);
        let refused = at(directory.path().into());
        assert_eq!(refused, Err(NotFound::NotExecutable(directory.path().into())));
    }
}
