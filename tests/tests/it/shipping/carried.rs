//! The list of crates that cargo-auditable writes into each program: scanners read it where the program is, without its sources.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use gatepost_tests::source;

use super::{copy, output, run, there_is};

fn tools_are_there() -> bool {
    ["cargo-auditable", "python3", "strip"].into_iter().all(there_is)
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(source(".."));
    command
}

/// Builds a program with its list, beside the ones that other tests drive.
fn built(package: &str, program: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source("../target"), PathBuf::from);
    let target = target.join("auditable");
    let mut build = cargo();
    build.args([
        "auditable",
        "build",
        "--locked",
        "--quiet",
        "-p",
        package,
        "--bin",
        program,
        "--target-dir",
    ]);
    run(build.arg(&target));
    target.join("debug").join(program)
}

/// `name version` of each crate, by the program itself.
fn carried(program: &Path) -> Option<BTreeSet<String>> {
    let output = output(Command::new(source("../scripts/crates-in")).arg(program));
    let list = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| list.lines().map(str::to_owned).collect())
}

/// The same by Cargo's account.
fn linked(package: &str) -> BTreeSet<String> {
    let tree =
        ["tree", "--locked", "--offline", "-e", "normal,no-proc-macro", "--prefix", "none", "-f", "{p}"];
    // Without what Cargo says besides, as where another holds the lock of its packages.
    let output = output(cargo().args(tree).args(["-p", package]));
    assert!(output.status.success(), "{output:?}");
    let listed = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some(format!("{} {}", words.next()?, words.next()?.trim_start_matches('v')))
    };
    listed.lines().filter_map(line).collect()
}

fn carries_its_list(package: &str, program: &str) {
    let program = built(package, program);
    let carried_by = |program: &Path| carried(program).expect("it carries a list");
    let list = carried_by(&program);
    // It errs on the side of too many: it knows the crates of all features that are wanted somewhere, and what macros are made of.
    let linked = linked(package);
    assert!(linked.len() > 10, "{linked:?}");
    let missing: Vec<_> = linked.difference(&list).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let lock = std::fs::read_to_string(source("../Cargo.lock")).unwrap();
    for of_list in &list {
        let (name, version) = of_list.split_once(' ').unwrap();
        assert!(
            lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")),
            "{of_list} is not in Cargo.lock"
        );
        assert!(!["insta", "proptest", "gatepost-tests"].contains(&name), "{name} is not shipped");
    }
    // As it is packaged.
    let dir = tempfile::tempdir().unwrap();
    let stripped = dir.path().join("stripped");
    copy(&program, &stripped);
    run(Command::new("strip")
        .args(["--strip-unneeded", "--remove-section=.comment", "--remove-section=.note"])
        .arg(&stripped));
    assert_eq!(carried_by(&stripped), list, "the package keeps it");
}

#[test]
fn a_program_carries_the_list_of_its_crates() {
    if !tools_are_there() {
        return;
    }
    assert_eq!(carried(Path::new("/bin/true")), None, "one without a list would be seen");
    carries_its_list("gatepost-audit", "gatepost-verify");
}

#[test]
#[ignore = "builds the gateway anew: scripts/test-long"]
fn the_gateway_carries_the_list_of_its_crates() {
    if tools_are_there() {
        carries_its_list("gatepost", "gatepost");
    }
}
