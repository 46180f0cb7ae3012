//! The sandbox of adapters: a program that tries to get out, in a real gateway, at each level; and what people see of it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use gatepost_tests::{Builder, Gateway, compiled, note, program, skipped, uid, until};

use crate::order_event;

/// A user that nobody is.
const STRANGER: u32 = 61_234;
/// What the probe tries at least.
const TRIES_MIN: usize = 170;
/// What gets through without a sandbox, for root; the probe would otherwise only seem to try.
const THROUGH_WITHOUT_MIN: usize = 60;
/// What the probe tries that only `strict` promises.
const STRICT_ONLY: &str = "strict:";
/// What gets through where the adapter connects by itself.
const HOSTS: &str = "hosts:";
/// The probe does not say that it asks the gateway for connections.
const BY_THE_GATEWAY: &str = "allow.direct = false";
/// What an adapter needs.
const WORK: &str = "work:";

struct Escape {
    gateway: Builder,
    /// Ports where somebody listens: one that it may connect to, and one that it may not.
    listeners: [TcpListener; 2],
    _abstract: UnixListener,
}

/// What the probe reports of each try.
type Verdicts = BTreeMap<String, String>;

impl Escape {
    /// `None` where it cannot be compiled.
    fn new(lines: &str) -> Option<Self> {
        let Some(probe) = compiled("escape") else {
            skipped("there is no C compiler");
            return None;
        };
        let builder = Gateway::builder();
        let dir = builder.dir();
        let owner = lines.contains("run_as").then_some(STRANGER);
        // Who is another user passes through, as with any directory of programs.
        let set_mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(dir, 0o755);
        std::fs::copy(probe, dir.join("escape")).unwrap();
        for name in ["results", "outside"] {
            std::fs::create_dir(dir.join(name)).unwrap();
            // So that only the sandbox can be what denies.
            set_mode(&dir.join(name), 0o777);
            chown(dir.join(name), owner, owner).unwrap();
        }
        for name in ["file", "doomed", "moved"] {
            let file = dir.join("outside").join(name);
            std::fs::write(&file, "outside").unwrap();
            set_mode(&file, 0o666);
            chown(file, owner, owner).unwrap();
        }
        std::fs::copy("/usr/bin/true", dir.join("outside/program")).unwrap();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [own, other] = [0, 1].map(|n: usize| listeners[n].local_addr().unwrap().port());
        let name = format!("gatepost-escape-{own}");
        let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let text = |name: &str| dir.join(name).display().to_string();
        let run = format!("{:?}", [text("escape"), text(""), own.to_string(), other.to_string()]);
        std::fs::write(dir.join("results/lure"), "harmless").unwrap();
        let allow = format!(
            "allow.connect = [\"127.0.0.1:{own}\"]\nallow.read = [{:?}]\nallow.write = [{:?}]",
            text("results/lure"),
            text("results")
        );
        let adapter = format!("run = {run}\nconfirm = \"sent\"\n{lines}\n{allow}");
        let gateway = builder.adapter("probe", &adapter, "").echo("other", "", "");
        Some(Self { gateway, listeners, _abstract })
    }

    fn verdicts(dir: &Path) -> Verdicts {
        let report = until("the probe has tried all", || {
            let report = std::fs::read_to_string(dir.join("results/report")).ok()?;
            report.ends_with("end\n").then_some(report)
        });
        let line = |line: &str| {
            let (name, verdict) = line.split_once(' ')?;
            Some((name.to_owned(), verdict.to_owned()))
        };
        report.lines().filter_map(line).collect()
    }

    /// Runs it at a level and judges.
    fn is_denied(lines: &str, strict: bool) {
        let Some(escape) = Self::new(lines) else { return };
        let mut gateway = escape.gateway.start();
        let verdicts = Self::verdicts(&gateway.path(""));
        let sandbox = until("its sandbox is told", || {
            let sandbox = gateway.adapter("probe")["sandbox"].clone();
            sandbox.is_object().then_some(sandbox)
        });
        assert!(verdicts.len() >= TRIES_MIN, "{} tries", verdicts.len());
        let direct = lines.contains("allow.direct = true");
        let mut through = Vec::new();
        let mut untestable = Vec::new();
        let mut denied = 0;
        for (name, verdict) in &verdicts {
            let (is_work, is_strict) = (name.starts_with(WORK), name.starts_with(STRICT_ONLY));
            match verdict.split(' ').next() {
                Some("allowed")
                    if is_work || (is_strict && !strict) || (direct && name.starts_with(HOSTS)) => {}
                Some("denied") if !is_work => denied += 1,
                Some("untestable") if !is_work => untestable.push(name.as_str()),
                _ => through.push(format!("{name}: {verdict}")),
            }
        }
        assert!(through.is_empty(), "{lines}: {through:#?}, of {sandbox}");
        assert!(!direct || verdicts["hosts:read-hosts"].starts_with("allowed"), "it cannot look hosts up");
        note(&format!(
            "escape probe, {}: {denied} denied, {} not testable here",
            lines.replace('\n', ", "),
            untestable.len()
        ));
        if !untestable.is_empty() {
            skipped(&format!("not testable here: {}", untestable.join(", ")));
        }
        drop(escape.listeners);
        let status = gateway.cli_ok(&["status"]);
        let level = sandbox["level"].as_str().unwrap();
        assert!(status.contains(&format!("{level}, landlock 6")) || sandbox["landlock_abi"] != 6, "{status}");
        let told = |entry: &Value| {
            entry["event"] == "adapter_sandboxed"
                && entry["subject_of"] == "probe"
                && entry["code"].as_str().is_some_and(|code| code.starts_with(level))
        };
        until("its sandbox is an entry of the audit log", || {
            gateway.audit_log().iter().any(told).then_some(())
        });
        assert!(gateway.stop().success());
        gateway.audit_verifies();
    }
}

fn is_root() -> bool {
    if uid() != 0 {
        skipped("only root can give adapters users of their own");
    }
    uid() == 0
}

#[test]
fn r5_nothing_gets_out_at_the_standard_level() {
    Escape::is_denied(&format!("sandbox = \"standard\"\n{BY_THE_GATEWAY}"), false);
}

#[test]
fn r5_only_other_hosts_are_reached_by_who_connects_by_itself() {
    Escape::is_denied("sandbox = \"standard\"\nallow.direct = true", false);
}

#[test]
fn r5_nothing_gets_out_at_the_minimal_level() {
    Escape::is_denied(&format!("sandbox = \"minimal\"\n{BY_THE_GATEWAY}"), false);
}

#[test]
fn r5_nothing_gets_out_at_the_standard_level_with_a_user_of_its_own() {
    if is_root() {
        Escape::is_denied(
            &format!("sandbox = \"standard\"\nrun_as = \"{STRANGER}\"\n{BY_THE_GATEWAY}"),
            false,
        );
    }
}

#[test]
fn r5_nothing_gets_out_at_the_strict_level() {
    if uid() == 0 {
        Escape::is_denied(&format!("sandbox = \"strict\"\nrun_as = \"{STRANGER}\""), true);
    } else {
        Escape::is_denied("sandbox = \"strict\"", true);
    }
}

#[test]
fn r5_the_probe_gets_out_where_there_is_no_sandbox() {
    let Some(escape) = Escape::new("sandbox = \"off\"") else { return };
    let config = escape.gateway.write();
    let serve = |more: &[&str]| {
        let mut command = Command::new(program("gatepost"));
        command.args(["serve", "--config"]).arg(&config).args(more).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let refused = serve(&[]).output().unwrap();
    let refused = (refused.status.success(), String::from_utf8_lossy(&refused.stderr).into_owned());
    assert!(
        !refused.0 && refused.1.contains("adapters.probe.sandbox") && refused.1.contains("A15"),
        "{refused:?}"
    );
    let log = std::fs::File::create(escape.gateway.dir().join("log")).unwrap();
    let mut gateway = serve(&["--insecure-dev"]).stderr(log).spawn().unwrap();
    let verdicts = Escape::verdicts(escape.gateway.dir());
    kill(Pid::from_raw(gateway.id().cast_signed()), Signal::SIGTERM).unwrap();
    gateway.wait().unwrap();
    let through = verdicts.values().filter(|verdict| verdict.starts_with("allowed")).count();
    note(&format!("escape probe without a sandbox: {through} of {} get through", verdicts.len()));
    if uid() == 0 {
        assert!(through >= THROUGH_WITHOUT_MIN, "{through}: {verdicts:#?}");
    }
}

#[test]
fn r5_a_level_that_cannot_be_reached_starts_nothing() {
    if !is_root() {
        return;
    }
    // Root's process, where another's is required.
    let Some(escape) = Escape::new("sandbox = \"strict\"") else { return };
    let config = escape.gateway.write();
    for command in ["check", "serve"] {
        let output =
            Command::new(program("gatepost")).arg("--config").arg(&config).arg(command).output().unwrap();
        let fault = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{command}");
        for part in ["adapters.probe.sandbox: ", "a user of its own is missing", "add run_as"] {
            assert!(fault.contains(part), "{command}: {fault}");
        }
    }
    assert!(!escape.gateway.dir().join("results/report").exists(), "the program was started");
}

/// A webhook's endpoint that takes everything.
fn endpoint() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let (mut seen, mut more) = (Vec::new(), [0; 4096]);
                while let Ok(got @ 1..) = stream.read(&mut more) {
                    seen.extend_from_slice(&more[..got]);
                    // Its small body comes with its head.
                    if seen.windows(4).any(|window| window == b"\r\n\r\n") {
                        seen.clear();
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                    }
                }
            });
        }
    });
    port
}

#[test]
fn r5_a_shipped_adapter_works_at_the_strict_level_without_being_told_what_it_needs() {
    let builder = Gateway::builder();
    let dir = builder.dir().to_owned();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (hook, secret) = (dir.join("gatepost-http"), dir.join("secret"));
    std::fs::copy(program("gatepost-http"), &hook).unwrap();
    std::fs::write(&secret, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    let mut lines = format!("run = {hook:?}\nsandbox = \"strict\"\n");
    if uid() == 0 {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o400)).unwrap();
        chown(&secret, Some(STRANGER), Some(STRANGER)).unwrap();
        lines.push_str(&format!("run_as = \"{STRANGER}\"\n"));
    }
    // A name, for which the gateway has to look.
    let settings = format!("url = \"http://localhost:{}/\"\nsecret_files = [{secret:?}]", endpoint());
    let mut gateway =
        builder.app("shop", &["*"], &[]).adapter("hook", &lines, &settings).route("shop", &["hook"]).start();
    let accepted = gateway.app().event(&order_event("1", "k", &json!({ "n": 1 }))).expect(202);
    gateway.until_state(accepted["messages"][0]["id"].as_str().unwrap(), "delivered");
    let sandbox = gateway.adapter("hook")["sandbox"].clone();
    assert!(!sandbox["missing"].to_string().contains("connects by itself"), "{sandbox}");
    assert_eq!((&sandbox["level"], &sandbox["own_uid"]), (&json!("strict"), &json!(uid() == 0)));
    // Also so that it takes the socket's directory away, which is not below its own.
    assert!(gateway.stop().success());
}

/// Says of the program that is its first argument that its settings imply nothing.
const SAYS_NOTHING: &str = r#"#!/bin/sh
program=$1
shift
if [ "$1" = --access ]; then
    echo '{"connect":[],"bind":[],"read":[],"write":[],"direct":false}'
else
    exec "$program" "$@"
fi
"#;

#[test]
fn r5_a_host_that_is_not_allowed_is_refused_told_and_reached_once_it_is_allowed() {
    let builder = Gateway::builder();
    let dir = builder.dir().to_owned();
    let (says_nothing, hook) = (dir.join("says-nothing"), program("gatepost-http"));
    std::fs::write(&says_nothing, SAYS_NOTHING).unwrap();
    std::fs::set_permissions(&says_nothing, std::fs::Permissions::from_mode(0o755)).unwrap();
    let port = endpoint();
    let [address, name] = ["127.0.0.1", "localhost"].map(|host| format!("{host}:{port}"));
    // The same endpoint, by another name than the program asks for.
    let lines = format!(
        "run = [{says_nothing:?}, {hook:?}]\nallow.connect = [{address:?}]\n\
         retry = {{ initial = \"50ms\", max = \"100ms\" }}"
    );
    let mut gateway = builder
        .app("shop", &["*"], &[])
        .adapter("hook", &lines, &format!("url = \"http://{name}/\""))
        .route("shop", &["hook"])
        .start();
    let accepted = gateway.app().event(&order_event("1", "k", &json!({ "n": 1 }))).expect(202);
    let message = accepted["messages"][0]["id"].as_str().unwrap();
    let told = "cannot connect: the configuration does not allow this adapter to connect there";
    until("the operator sees why", || gateway.cli_ok(&["show", message]).contains(told).then_some(()));
    until("the destination is held to be out of reach", || {
        gateway.queue("hook")["tripped"].as_str().map(drop)
    });
    let log = gateway.log();
    assert!(
        log.contains("an adapter asked for a connection that it may not have") && log.contains(&name),
        "{log}"
    );
    let refused = |entry: &Value| entry["code"] == "host_not_allowed" && entry.to_string().contains("hook");
    until("it is an entry of the audit log", || gateway.audit_log().iter().any(refused).then_some(()));
    // Between two probes.
    let delivery = until("it waits", || {
        let delivery = gateway.delivery(message);
        (delivery["state"] == "waiting").then_some(delivery)
    });
    assert_eq!(delivery["attempts"], 0, "{delivery}");

    let text = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), text.replace(&format!("[{address:?}]"), &format!("[{name:?}]")))
        .unwrap();
    gateway.cli_ok(&["reload"]);
    gateway.until_state(message, "delivered");
    assert!(gateway.stop().success());
    gateway.audit_verifies();
}

#[test]
fn r5_the_shipped_adapters_say_what_their_settings_imply() {
    for (adapter, settings, implied) in [
        (
            "gatepost-hl7",
            json!({ "connect": "lab.example.org:2575", "listen": "127.0.0.1:2576" }),
            json!({ "connect": ["lab.example.org:2575"], "bind": ["127.0.0.1:2576"], "read": [], "write": [], "direct": false }),
        ),
        (
            "gatepost-http",
            // Files are not looked at before they may be read.
            json!({ "url": "https://x.example/", "secret_files": ["/none"], "tls": { "ca_files": ["/neither"] } }),
            json!({ "connect": ["x.example:443"], "bind": [], "read": ["/none", "/neither"], "write": [], "direct": false }),
        ),
    ] {
        let ask = |settings: &str| {
            let mut command = Command::new(program(adapter));
            let mut child =
                command.arg("--access").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(settings.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        let said = ask(&settings.to_string());
        assert_eq!(serde_json::from_slice::<Value>(&said.stdout).unwrap(), implied, "{adapter}");
        assert_eq!(ask("{\"nonsense\":1}").status.code(), Some(2), "{adapter}");
    }
}

#[test]
fn r5_an_adapter_that_gets_another_user_by_a_reload_gets_its_socket_too() {
    if !is_root() {
        return;
    }
    let builder = Gateway::builder();
    std::fs::set_permissions(builder.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let hook = builder.dir().join("gatepost-http");
    std::fs::copy(program("gatepost-http"), &hook).unwrap();
    let settings = format!("url = \"http://127.0.0.1:{}/\"", endpoint());
    let lines = format!("run = {hook:?}\nsandbox = \"standard\"");
    let mut gateway =
        builder.app("shop", &["*"], &[]).adapter("hook", &lines, &settings).route("shop", &["hook"]).start();
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    for (n, user) in ["", "61234", "61235", ""].into_iter().enumerate() {
        let run_as = if user.is_empty() { String::new() } else { format!("run_as = \"{user}\"") };
        let changed = text.replace("sandbox = \"standard\"", &format!("sandbox = \"standard\"\n{run_as}"));
        std::fs::write(gateway.config(), changed).unwrap();
        gateway.cli_ok(&["reload"]);
        let uid = user.parse().unwrap_or(0);
        until("it runs as that user", || {
            let adapter = gateway.adapter("hook");
            (adapter["state"] == "running" && adapter["sandbox"]["uid"] == uid).then_some(())
        });
        let accepted = gateway.app().event(&order_event(&n.to_string(), "k", &json!({}))).expect(202);
        gateway.until_state(accepted["messages"][0]["id"].as_str().unwrap(), "delivered");
    }
    assert!(gateway.stop().success());
}

#[test]
fn r5_a_gateway_that_is_not_roots_gives_nobody_another_user_and_says_so() {
    if uid() == 0 {
        return skipped("needs a user who is not root");
    }
    let lines = format!("run = \"gatepost-http\"\nrun_as = \"{STRANGER}\"");
    let mut gateway = Gateway::builder().adapter("hook", &lines, "url = \"http://127.0.0.1:1/\"").prepare();
    gateway.spawn();
    let error = until("it says why it does not start", || {
        let answer = gateway.admin().send("GET", "/v1/adapters", &[], b"").ok()?;
        answer.text().contains("run_as needs a gateway").then(|| answer.text().to_owned())
    });
    assert!(error.contains("started as root"), "{error}");
}
