//! What adapters may use up of the host: memory, processes, processors. On whichever kind of control groups this kernel has; what it
//! does not let a test see is said.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gatepost_tests::{Gateway, note, program, skipped, uid, until, until_within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::adapters::{LOOP_DEADLINE, accept};

/// Who runs a gateway that may make no groups.
const USER: u32 = 61_234;
const MEMORY_BYTES: u64 = 96 << 20;
const PROCESSES: u64 = 40;

/// The groups of an adapter's process, by what the kernel says of it; none where it has none of its own.
pub(crate) fn groups(gateway: &Gateway, adapter: &str) -> Vec<PathBuf> {
    // Between its start and then it joins them.
    let pid = until("it runs", || {
        let adapter = gateway.adapter(adapter);
        adapter["pid"].as_u64().filter(|_| adapter["state"] == "running")
    });
    let memberships = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = format!("/adapter-{adapter}.");
    let path = |line: &str| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let group = group.contains(&own).then(|| group.trim_start_matches('/'))?;
        let mounted = |at: &Path| at.join(group).is_dir().then(|| at.join(group));
        let at = Path::new("/sys/fs/cgroup");
        mounted(&at.join(controllers)).or_else(|| mounted(&at.join("unified"))).or_else(|| mounted(at))
    };
    memberships.lines().filter_map(path).collect()
}

/// What is in force of an adapter's limits, once it runs.
fn sandbox(gateway: &Gateway, adapter: &str) -> Value {
    until("its sandbox is told", || {
        let sandbox = gateway.adapter(adapter)["sandbox"].clone();
        sandbox.is_object().then_some(sandbox)
    })
}

pub(crate) fn has_limits(gateway: &Gateway, adapter: &str) -> bool {
    let sandbox = sandbox(gateway, adapter);
    let limited = sandbox["memory_bytes"].is_u64() && sandbox["processes"].is_u64();
    if limited {
        let newer = Path::new("/sys/fs/cgroup/cgroup.controllers");
        let listed = std::fs::read_to_string(newer).unwrap_or_default();
        if !listed.contains("memory") {
            skipped(
                "the newer kind of control groups (v2) has no memory, pids and cpu on this kernel: tried with the older one",
            );
        }
    } else {
        skipped(&format!("no control groups here: {}", sandbox["missing"]));
    }
    limited
}

#[test]
fn r5_a_memory_hog_and_a_fork_bomb_are_stopped_and_the_others_go_on() {
    let mut gateway = Gateway::builder()
        .app("shop", &["*"], &[])
        .echo("hog", &format!("allow = {{ memory = \"{}MiB\" }}", MEMORY_BYTES >> 20), "")
        .echo("bomb", &format!("allow = {{ processes = {PROCESSES} }}"), "")
        .echo("desk", "allow = { cpus = 1.5 }", "")
        .route_when("shop", "subject == \"hog\"", &["hog"])
        .route_when("shop", "subject == \"bomb\"", &["bomb"])
        .route_when("shop", "subject == \"desk\"", &["desk"])
        .start();
    if !has_limits(&gateway, "hog") || !has_limits(&gateway, "bomb") {
        return;
    }
    assert_eq!(sandbox(&gateway, "hog")["memory_bytes"], MEMORY_BYTES);
    assert_eq!(sandbox(&gateway, "bomb")["processes"], PROCESSES);
    assert_eq!(sandbox(&gateway, "desk")["cpu_percent"], 150);
    let send = |id: &str, to: &str, data: Value| {
        let event = json!({
            "specversion": "1.0", "id": id, "source": "/shop", "type": "orders.new", "subject": to, "data": data,
        });
        gateway.app().event(&event).expect(202)["messages"][0]["id"].as_str().unwrap().to_owned()
    };
    let eaten = send("1", "hog", json!({ "do": "hog" }));
    let bombed = send("2", "bomb", json!({ "do": "bomb" }));
    // Beside them, and again each time that the hog has come back.
    let mut delivered = 0;
    until_within(LOOP_DEADLINE, "the message that eats memory is dead", || {
        delivered += 1;
        let message = send(&format!("desk {delivered}"), "desk", json!({}));
        gateway.until_state(&message, "delivered");
        (gateway.delivery(&eaten)["state"] == "dead").then_some(())
    });
    assert_eq!(gateway.delivery(&eaten)["reason"], "poison");
    gateway.until_state(&bombed, "delivered");
    let started = gateway.effects("bomb").iter().find_map(|effect| effect["started"].as_u64());
    let started = started.expect("it noted how many it started");
    assert!((1..PROCESSES).contains(&started), "{started}");
    note(&format!("beside a hog and a bomb of {started} processes: {delivered} messages delivered"));
    assert!(gateway.runs());
    let (hog, desk) = (gateway.adapter("hog"), gateway.adapter("desk"));
    assert_eq!(desk["restarts"], 0, "{desk}");
    for told in [hog["last_error"].as_str().unwrap(), &gateway.log(), &gateway.cli_ok(&["status"])] {
        assert!(told.contains("killed for memory"), "{told}");
    }
    let of = |name: &str, event: &str| {
        let is_it = |entry: &&Value| entry["subject_of"] == name && entry["event"] == event;
        gateway.audit_log().iter().filter(is_it).map(|entry| entry["code"].clone()).collect::<Vec<_>>()
    };
    let ends = of("hog", "adapter_exited");
    assert!(ends.len() >= 3 && ends.iter().all(|end| end == "killed_for_memory"), "{ends:?}");
    let sandboxed = of("desk", "adapter_sandboxed");
    assert!(sandboxed[0].as_str().unwrap().ends_with("_mpc"), "{sandboxed:?}");
    let left: Vec<_> = ["hog", "bomb", "desk"].into_iter().flat_map(|name| groups(&gateway, name)).collect();
    assert!(left.len() >= 3 && left.iter().all(|group| group.exists()), "{left:?}");
    assert!(gateway.stop().success());
    assert!(!left.iter().any(|group| group.exists()), "{left:?}");
    gateway.audit_verifies();
}

#[test]
fn r5_a_killed_gateways_groups_are_removed_by_its_next_start() {
    let mut gateway = crate::adapters::echo("allow = { processes = 40 }", "").start();
    if !has_limits(&gateway, "desk") {
        return;
    }
    let left = groups(&gateway, "desk");
    let pid = gateway.adapter("desk")["pid"].as_u64().unwrap();
    // What it has started does not die with the gateway.
    let bombed = accept(&gateway, "1", json!({ "do": "bomb" }));
    gateway.until_state(&bombed, "delivered");
    gateway.kill();
    until("the adapter is gone with its gateway", || {
        (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())
    });
    assert!(!left.is_empty() && left.iter().all(|group| group.exists()), "{left:?}");
    let members = || left.iter().map(|group| std::fs::read_to_string(group.join("cgroup.procs")).unwrap());
    assert!(members().any(|members| !members.is_empty()), "{left:?}");
    // With the same adapter they would be taken over.
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let renamed =
        text.replace("[adapters.desk", "[adapters.office").replace("to = [\"desk\"]", "to = [\"office\"]");
    assert_ne!(renamed, text);
    std::fs::write(gateway.config(), renamed).unwrap();
    gateway.restart();
    assert!(!left.iter().any(|group| group.exists()), "{left:?}");
    assert!(gateway.stop().success());
}

#[test]
fn r5_a_limit_that_is_asked_for_and_cannot_be_had_is_never_passed_over() {
    if uid() != 0 {
        return skipped("only root can start a gateway of a user who may make no control groups");
    }
    let limits = "allow = { memory = \"1GiB\", processes = 99 }";
    let gateway = Gateway::builder()
        .echo("usual", "", "")
        .echo("asked", limits, "")
        .echo("strict", &format!("sandbox = \"strict\"\n{limits}"), "")
        .prepare();
    for name in ["gatepost", "gatepost-echo"] {
        std::fs::copy(program(name), gateway.path(name)).unwrap();
    }
    let config = std::fs::read_to_string(gateway.config()).unwrap();
    let echo = format!("run = {:?}", gateway.path("gatepost-echo").display().to_string());
    std::fs::write(gateway.config(), config.replace("run = \"gatepost-echo\"", &echo)).unwrap();
    for entry in std::fs::read_dir(gateway.dir()).unwrap().flatten() {
        chown(entry.path(), Some(USER), Some(USER)).unwrap();
    }
    chown(gateway.dir(), Some(USER), Some(USER)).unwrap();
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()]);
    command.arg(gateway.path("gatepost")).arg("-c").arg(gateway.config()).arg("serve");
    let log = std::fs::File::create(gateway.path("log")).unwrap();
    let mut served = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    // It is not ready while an adapter fails.
    let adapter = |name: &str| {
        let answer = gateway.admin().send("GET", "/v1/adapters", &[], b"").ok()?;
        let list: Value = serde_json::from_slice(&answer.body).ok()?;
        list["adapters"].as_array()?.iter().find(|adapter| adapter["name"] == name).cloned()
    };
    let running = |name: &str| {
        until("it runs, and its sandbox is told", || {
            adapter(name).filter(|adapter| adapter["state"] == "running" && adapter["sandbox"].is_object())
        })
    };
    let refused = until("it is not started", || adapter("strict")?["last_error"].as_str().map(str::to_owned));
    assert!(refused.contains("the memory limit is missing"), "{refused}");
    assert!(refused.contains("Delegate=") && refused.contains("remove `memory` from `allow`"), "{refused}");
    let usual = running("usual");
    assert_eq!(usual["sandbox"]["memory_bytes"], Value::Null);
    assert!(usual["sandbox"]["missing"].to_string().contains("no memory limit of its own"), "{usual}");
    assert_eq!(usual["sandbox"]["unmet"], Value::Null, "nobody asked for it");
    let asked = running("asked");
    assert_eq!(asked["sandbox"]["unmet"].as_array().map(Vec::len), Some(2), "{asked}");
    let readiness = gateway.admin().send("GET", "/readyz", &[], b"").unwrap();
    for key in ["memory", "processes"] {
        let warning = format!("adapters.asked.allow.{key} is not in force");
        assert!(readiness.text().contains(&warning), "{}", readiness.text());
        until("the log says so", || {
            let log = std::fs::read_to_string(gateway.path("log")).unwrap();
            log.contains(&format!("allow.{key} is not in force")).then_some(())
        });
    }
    assert!(!readiness.text().contains("adapters.usual.allow"), "{}", readiness.text());
    kill(Pid::from_raw(served.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(served.wait().unwrap().success());
}
