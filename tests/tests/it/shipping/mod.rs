//! What is shipped besides the programs: units, the Debian package, the list of what the programs are made of.

mod bill;
mod calls;
mod carried;
mod package;
mod units;

use std::path::Path;
use std::process::{Command, Output};

use gatepost_tests::skipped;

/// Whether `program` is there; a test that needs it says that it was skipped.
fn there_is(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if !found {
        skipped(&format!("there is no {program}"));
    }
    found
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs it to its end and gives what it said; it must succeed.
fn run(command: &mut Command) -> String {
    let output = output(command);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
}
