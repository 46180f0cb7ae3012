//! `gatepost adapter-exec --parent PID [--gated] [--policy JSON] NAME -- PROGRAM ARGS…`: what a child process does to itself before it
//! becomes the adapter. It runs in the child, so that no code has to run between fork and exec; the pid stays the same. Its first
//! line on standard output says what the sandbox has become; the program's output follows. Without a policy, which is for the demo's
//! partner and not for adapters, it only ties itself to its parent, and says nothing.
//!
//! With `--gated` it waits for a byte on standard input before it goes on: the gateway must know the pid that may connect
//! before anything in the child can.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode, Stdio};

use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::sandbox::{Outcome, Policy, Unreachable, confine};

/// Most files and connections that an adapter may have open.
const OPEN_FILES_MAX: u64 = 8192;
/// Too small for any core file. With 0 the kernel would still hand one to a program that collects them.
pub(super) const CORE_BYTES_MAX: u64 = 1;
/// The status of a child that could not become the adapter, as shells use it.
pub(super) const EXIT_CANNOT_EXECUTE: u8 = 126;

#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("this command is not for people: gatepost starts its adapters through it")]
    Usage,
    #[error("the gateway is gone")]
    ParentGone,
    #[error("cannot limit the process: {0}")]
    Limit(#[from] nix::Error),
    #[error("{0}")]
    Sandbox(Box<Unreachable>),
    #[error("cannot tell the gateway: {0}")]
    Report(#[source] io::Error),
    #[error("cannot execute {program}: {source}")]
    Exec { program: String, source: io::Error },
}

/// What stands on the command line.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    parent: Pid,
    gated: bool,
    policy: Option<Policy>,
    program: OsString,
    args: Vec<OsString>,
}

/// Limits this process and becomes the adapter's program. `args` are those after `adapter-exec`. Comes back only if it could
/// not, with the status to exit with.
pub(crate) fn adapter_exec(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Err(error) = become_adapter(args);
    // Without standard error nobody can be told.
    let _ = writeln!(io::stderr(), "{error}");
    ExitCode::from(EXIT_CANNOT_EXECUTE)
}

fn become_adapter(args: impl IntoIterator<Item = OsString>) -> Result<Infallible, ExecError> {
    let Request { parent, gated, policy, program, args } = Request::parse(args).ok_or(ExecError::Usage)?;
    // An adapter whose gateway is gone must not go on sending: another gateway may have its deliveries by then.
    set_pdeathsig(Signal::SIGKILL)?;
    // The gateway may have died before the line above.
    if getppid() != parent {
        return Err(ExecError::ParentGone);
    }
    // Also keeps the parent-death signal, which a set-user-id program would lose.
    set_no_new_privs()?;
    // A core file would hold payload and secrets.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE)?;
    let core_bytes = hard.min(CORE_BYTES_MAX);
    setrlimit(Resource::RLIMIT_CORE, core_bytes, core_bytes)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let open_files = hard.min(OPEN_FILES_MAX);
    setrlimit(Resource::RLIMIT_NOFILE, open_files, open_files)?;
    let mut command = Command::new(&program);
    if gated {
        io::stdin().read_exact(&mut [0]).map_err(|_| ExecError::ParentGone)?;
        command.stdin(Stdio::null());
    }
    command.args(args);
    if let Some(policy) = policy {
        sandbox(&policy, parent)?;
    }
    let source = command.exec();
    Err(ExecError::Exec { program: program.to_string_lossy().into_owned(), source })
}

/// Takes from this process what `policy` says, and tells the gateway.
fn sandbox(policy: &Policy, parent: Pid) -> Result<(), ExecError> {
    let confined = confine(policy);
    // The parent-death signal is set anew in there, so this is asked anew.
    if getppid() != parent {
        return Err(ExecError::ParentGone);
    }
    let outcome = match &confined {
        Ok(report) => Outcome::Reached(report.clone()),
        Err(unreachable) => Outcome::Unreachable(unreachable.clone()),
    };
    let mut stdout = io::stdout();
    stdout.write_all(outcome.line().as_bytes()).and_then(|()| stdout.flush()).map_err(ExecError::Report)?;
    confined.map(drop).map_err(|unreachable| ExecError::Sandbox(Box::new(unreachable)))
}

impl Request {
    fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        args.next().filter(|flag| flag == "--parent")?;
        let parent = args.next()?.to_str()?.parse().ok()?;
        let mut word = args.next()?;
        let gated = word == "--gated";
        if gated {
            word = args.next()?;
        }
        let mut policy = None;
        if word == "--policy" {
            policy = Some(serde_json::from_str(args.next()?.to_str()?).ok()?);
            word = args.next()?;
        }
        // The name is there for whoever looks at the process list.
        Some(word).filter(|name| name != "--")?;
        args.next().filter(|dashes| dashes == "--")?;
        Some(Self {
            parent: Pid::from_raw(parent),
            gated,
            policy,
            program: args.next()?,
            args: args.collect(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::{Access, Sandbox};
    use std::io::{BufRead as _, BufReader};

    fn parse(line: &str) -> Option<Request> {
        let policy = off();
        let word = |word: &str| OsString::from(if word == "POLICY" { policy.as_str() } else { word });
        Request::parse(line.split_whitespace().map(word))
    }

    fn off() -> String {
        serde_json::to_string(&Policy::off()).unwrap()
    }

    #[test]
    fn the_command_line_is_read_strictly() {
        let request = parse("--parent 7 --policy POLICY lab -- /bin/x -- -c --parent").unwrap();
        assert_eq!(request.parent, Pid::from_raw(7));
        assert_eq!(request.program, "/bin/x");
        assert_eq!(request.args, ["--", "-c", "--parent"]);
        assert!(request.policy.is_some() && parse("--parent 7 lab -- /bin/x").unwrap().policy.is_none());
        assert!(!request.gated && parse("--parent 7 --gated --policy POLICY lab -- /bin/x").unwrap().gated);
        for wrong in [
            "",
            "--parent 7",
            "--parent x --policy POLICY lab -- /bin/x",
            "lab -- /bin/x",
            "--parent 7 --policy POLICY -- /bin/x y",
            "--parent 7 --policy POLICY lab --",
            "--parent 7 --policy {} lab -- /bin/x",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    /// Not a test: this test binary started again as `gatepost adapter-exec`, with its arguments after the first `--`.
    #[test]
    #[ignore = "the child's side of other tests"]
    fn in_the_child() {
        let Err(error) = become_adapter(std::env::args_os().skip_while(|arg| arg != "--").skip(1));
        panic!("{error}");
    }

    /// The command line that makes this test binary behave as `gatepost adapter-exec`.
    pub(in crate::supervise) fn as_adapter_exec() -> Vec<OsString> {
        let this = std::env::current_exe().unwrap().into_os_string();
        let args = ["--exact", "--ignored", "--nocapture", concat!(module_path!(), "::in_the_child"), "--"];
        // The harness names tests without the crate.
        let args = args.map(|arg| OsString::from(arg.trim_start_matches("gatepost::")));
        std::iter::once(this).chain(args).collect()
    }

    fn command(parent: u32, program: &str, args: &[&str]) -> Command {
        let mut words = as_adapter_exec().into_iter();
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(["--parent", &parent.to_string(), "--policy", &off(), "lab", "--", program])
            .args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[test]
    fn r13_10_the_child_limits_itself_and_keeps_its_pid() {
        let script = "grep -E '^(NoNewPrivs|Pid):' /proc/self/status; echo own $$; ulimit -c; ulimit -n";
        let child = command(std::process::id(), "/bin/sh", &["-c", script]).spawn().unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.contains(&format!("own {pid}").as_str()), "{text}");
        assert!(lines.contains(&"NoNewPrivs:\t1"), "{text}");
        let [.., core, files] = lines[..] else { panic!("{text}") };
        assert_eq!(core, "0");
        assert!(files.parse::<u64>().unwrap() <= OPEN_FILES_MAX, "{files}");
    }

    #[test]
    fn r5_a_sandboxed_child_has_nothing_of_its_gateways() {
        let shell = super::super::program::Command { file: "/bin/sh".into(), args: Vec::new() };
        let policy = Policy::new(&Sandbox::default(), &Access::default(), &shell);
        let script = "test -e /proc/self/fd/9 && echo open || echo closed; umask; pwd; ulimit -f";
        // What the gateway was itself started with is inherited by all that it starts.
        let output = Command::new("/bin/sh")
            .args(["-c", "umask 022; exec \"$@\" 9</etc/hostname", "sh"])
            .args(as_adapter_exec())
            .args(["--parent", &std::process::id().to_string(), "--policy"])
            .arg(serde_json::to_string(&policy).unwrap())
            .args(["lab", "--", "/bin/sh", "-c", script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let [.., report, descriptor, mask, directory, blocks] = lines[..] else { panic!("{text}") };
        assert!(matches!(Outcome::read(report.as_bytes()), Some(Outcome::Reached(_))), "{text}");
        assert_eq!([descriptor, mask, directory], ["closed", "0077", "/"]);
        assert!(blocks.parse::<u64>().is_ok(), "{text}");
    }

    #[test]
    fn r13_10_a_child_whose_gateway_is_not_its_parent_does_not_start() {
        let output = command(1, "/bin/echo", &["started"]).output().unwrap();
        assert!(!output.status.success());
        assert!(!String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "started"));
        assert!(String::from_utf8_lossy(&output.stderr).contains("the gateway is gone"));
    }

    #[test]
    fn a_gated_child_waits_for_the_gateway_and_then_has_no_input() {
        let mut words = as_adapter_exec();
        let parent = std::process::id().to_string();
        words.extend(
            ["--parent", &parent, "--gated", "--policy", &off(), "lab", "--", "/bin/sh"].map(OsString::from),
        );
        words.extend(["-c", "readlink /proc/self/fd/0"].map(OsString::from));
        let run = |gate: &[u8]| {
            let mut child = Command::new(&words[0])
                .args(&words[1..])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(gate).unwrap();
            String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
        };
        assert!(run(b"\n").lines().any(|line| line == "/dev/null"));
        assert!(!run(b"").contains("/dev/null"), "a gateway that is gone opens no gate");
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_named() {
        let output = command(std::process::id(), "/nowhere/adapter", &[]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot execute /nowhere/adapter"));
    }

    /// Not a test: a gateway that starts an adapter, says so and waits to be killed.
    #[test]
    #[ignore = "the gateway's side of the parent-death test"]
    fn a_gateway_that_will_be_killed() {
        let script = "echo ready $$; sleep 20 >/dev/null 2>&1; echo survived >&2";
        let mut adapter = command(std::process::id(), "/bin/sh", &["-c", script]);
        let mut adapter = adapter.stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(adapter.stdout.take().unwrap()).lines();
        let ready = lines.map(Result::unwrap).find(|line| line.starts_with("ready")).unwrap();
        eprintln!("{ready}");
        adapter.wait().unwrap();
    }

    #[test]
    fn r13_10_the_adapter_dies_with_the_gateway() {
        let name =
            concat!(module_path!(), "::a_gateway_that_will_be_killed").trim_start_matches("gatepost::");
        let mut gateway = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(gateway.stderr.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ready") {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the gateway ended too early");
        }
        let adapter: i32 = line.trim_start_matches("ready").trim().parse().unwrap();
        assert!(nix::sys::signal::kill(Pid::from_raw(adapter), None).is_ok());
        gateway.kill().unwrap();
        gateway.wait().unwrap();
        // The adapter shares this pipe: its end is the adapter's end.
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("survived"), "{rest}");
    }
}
