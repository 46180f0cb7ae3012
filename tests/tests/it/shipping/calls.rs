//! Whether the gateway and its adapters can do their work within the system calls that the units allow. systemd itself is not needed
//! for that: strace says what they call.

use std::collections::BTreeSet;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Command, Stdio};

use gatepost_tests::{Gateway, program, source, uid, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{copy, run, there_is};

/// The calls of a set such as `@system-service`, or the one call that it is.
fn expand(set: &str) -> BTreeSet<String> {
    if !set.starts_with('@') {
        return BTreeSet::from([set.to_owned()]);
    }
    let said = run(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", set]));
    let lines = said.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.flat_map(expand).collect()
}

/// What a unit's `SystemCallFilter=` lines leave.
fn allowed(unit: &str) -> BTreeSet<String> {
    let mut allowed = BTreeSet::new();
    for filter in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (sets, takes_away) = match filter.strip_prefix('~') {
            Some(sets) => (sets, true),
            None => (filter, false),
        };
        let calls: BTreeSet<String> = sets.split_whitespace().flat_map(expand).collect();
        if takes_away {
            allowed.retain(|call| !calls.contains(call));
        } else {
            allowed.extend(calls);
        }
    }
    allowed
}

/// The names of the calls in strace's notes, and those lines that map memory both writable and executable.
fn called(trace: &Path) -> (BTreeSet<String>, Vec<String>) {
    let text = String::from_utf8_lossy(&std::fs::read(trace).unwrap()).into_owned();
    let mut names = BTreeSet::new();
    let mut executable = Vec::new();
    for line in text.lines() {
        let Some((name, _)) = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('('))
        else {
            continue;
        };
        if name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_') {
            names.insert(name.to_owned());
            let is_mapping = matches!(name, "mmap" | "mprotect" | "pkey_mprotect");
            if is_mapping && line.contains("PROT_WRITE") && line.contains("PROT_EXEC") {
                executable.push(line.to_owned());
            }
        }
    }
    (names, executable)
}

/// Where root runs the tests: a user who is nobody else, and owns the gateway's directory. Root's gateway makes other calls.
const USER: u32 = 61_234;

fn as_nobody(gateway: &Gateway) -> Command {
    // The programs may lie where only root gets.
    for name in ["gatepost", "gatepost-hl7"] {
        copy(&program(name), &gateway.path(name));
    }
    if uid() != 0 {
        return Command::new("env");
    }
    chown(gateway.path(""), Some(USER), Some(USER)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()]);
    command
}

#[test]
fn the_gateway_works_within_the_system_calls_that_its_unit_allows() {
    if !["strace", "systemd-analyze"].into_iter().all(there_is) {
        return;
    }
    let gateway = Gateway::builder()
        .app("shop", &["orders.*"], &["back"])
        .inbox("back", "")
        .adapter("lab", "run = \"gatepost-hl7\"", "connect = \"127.0.0.1:1\"")
        .route("shop", &["back", "lab"])
        .prepare();
    let trace = gateway.path("trace");
    let mut command = as_nobody(&gateway);
    command.args(["strace", "-f", "-o"]).arg(&trace);
    command.arg(gateway.path("gatepost")).arg("-c").arg(gateway.config()).arg("serve");
    let mut traced =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the traced gateway is ready", || gateway.cli(&["status"]).status.success().then_some(()));
    std::fs::write(gateway.path("message"), "hello").unwrap();
    gateway.cli_ok(&["send", "--type", "orders.new", &gateway.path("message").display().to_string()]);
    gateway.cli_ok(&["receive", "back"]);
    gateway.cli_ok(&["backup", &gateway.path("backup").display().to_string()]);
    // strace passes no signal on to what it traces; the gateway says its number.
    let status: serde_json::Value = serde_json::from_str(&gateway.cli_ok(&["--json", "reload"])).unwrap();
    let pid = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(traced.wait().unwrap().success());

    let (called, executable) = called(&trace);
    assert!(called.contains("fdatasync") && called.contains("execve"), "{called:?}");
    assert_eq!(executable, Vec::<String>::new(), "MemoryDenyWriteExecute= forbids it");
    for unit in ["gatepost.service", "gatepost-adapter@.service"] {
        let text = std::fs::read_to_string(source("../deploy/systemd").join(unit)).unwrap();
        let forbidden: Vec<String> = called.difference(&allowed(&text)).cloned().collect();
        assert_eq!(forbidden, Vec::<String>::new(), "{unit} forbids what the gateway does");
    }
}
