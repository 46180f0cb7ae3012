//! A gateway that root starts and that does not stay root: who its processes are, what belongs to whom, and what becomes of all of them
//! when one is gone.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::{Gid, Pid, User};
use serde_json::{Value, json};

use gatepost_tests::{Gateway, program, skipped, uid, until};

use crate::limits::{groups, has_limits};
use crate::order_event;

/// The gateway's user and the adapter's; nobody is either.
const USER: u32 = 61_240;
const ADAPTER: u32 = 61_241;

fn is_root() -> bool {
    if uid() != 0 {
        skipped("only root can start a gateway that becomes another user");
    }
    uid() == 0
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A gateway of [`USER`]'s with an adapter of [`ADAPTER`]'s and one of its own, not started. Its configuration is root's, and its
/// sockets are in a directory that is not there yet.
fn gateway() -> Gateway {
    let builder = Gateway::builder();
    let dir = builder.dir().to_owned();
    set_mode(&dir, 0o755);
    let echo = dir.join("gatepost-echo");
    fs::copy(program("gatepost-echo"), &echo).unwrap();
    let lines = |more: &str| format!("run = {echo:?}\n{more}");
    let settings = |name: &str, owner: u32| {
        let file = |kind: &str| {
            let file = dir.join(format!("{name}.{kind}"));
            fs::write(&file, "").unwrap();
            chown(&file, Some(owner), Some(owner)).unwrap();
            format!("{kind} = {:?}\n", file.display().to_string())
        };
        ["effects", "tokens", "counts"].map(file).concat()
    };
    let gateway = builder
        .gateway(&format!("user = \"{USER}\""))
        .app("shop", &["*"], &[])
        .adapter("theirs", &lines(&format!("run_as = \"{ADAPTER}\"")), &settings("theirs", ADAPTER))
        .adapter("ours", &lines(""), &settings("ours", USER))
        .route("shop", &["theirs", "ours"])
        .prepare();
    move_sockets(&gateway);
    gateway
}

/// To a directory that the gateway can have for itself.
fn move_sockets(gateway: &Gateway) {
    let dir = gateway.dir();
    let mut moved = fs::read_to_string(gateway.config()).unwrap();
    for socket in ["app.sock", "admin.sock"] {
        let (here, there) = (dir.join(socket), dir.join("sockets").join(socket));
        moved = moved.replace(&here.display().to_string(), &there.display().to_string());
        symlink(there, here).unwrap();
    }
    fs::write(gateway.config(), moved).unwrap();
}

fn field(pid: u32, thread: &str, name: &str) -> String {
    of_status(&fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default(), name)
}

fn of_status(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn threads(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// What the kernel says of a process's threads that are there: some end when they have had nothing to do for a while.
fn statuses(pid: u32) -> Vec<String> {
    let status = |thread: String| fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok();
    let found: Vec<String> = threads(pid).into_iter().filter_map(status).collect();
    assert!(!found.is_empty(), "{pid} is gone");
    found
}

/// Every thread is `user` in each way, and can do nothing that root can.
fn assert_is(pid: u32, user: u32) {
    for status in statuses(pid) {
        let ids = format!("{user} {user} {user} {user}");
        assert_eq!(of_status(&status, "Uid"), ids, "real, effective, saved, file system");
        assert_eq!(of_status(&status, "Gid"), ids);
        assert_eq!(of_status(&status, "Groups"), user.to_string());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&of_status(&status, set), 16), Ok(0), "{set}");
        }
        assert_eq!(of_status(&status, "NoNewPrivs"), "1");
    }
}

/// The spawner, which is a child of the gateway.
fn spawner(gateway: &Gateway) -> u32 {
    let words = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_spawner = |pid: &u32| words(*pid).split(|&byte| byte == 0).nth(1) == Some(b"spawner".as_slice());
    let found: Vec<u32> = children(gateway.pid()).into_iter().filter(is_spawner).collect();
    assert_eq!(found.len(), 1, "one process stays root");
    found[0]
}

fn children(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|&pid| field(pid, &pid.to_string(), "PPid") == parent.to_string()).collect()
}

fn is_gone(pid: u32) -> bool {
    matches!(field(pid, &pid.to_string(), "State").chars().next(), None | Some('Z'))
}

fn pid_of(gateway: &Gateway, adapter: &str) -> u32 {
    until("the adapter runs", || {
        let adapter = gateway.adapter(adapter);
        let pid = adapter["pid"].as_u64().filter(|_| adapter["state"] == "running")?;
        u32::try_from(pid).ok()
    })
}

fn deliver(gateway: &Gateway, id: &str) {
    let accepted = gateway.app().event(&order_event(id, "k", &json!({ "n": 1 }))).expect(202);
    let message = accepted["messages"][0]["id"].as_str().unwrap().to_owned();
    until("both adapters have delivered", || {
        let path = format!("/v1/messages/{message}");
        let answer = gateway.admin().get(&path).expect(200);
        let deliveries = answer["deliveries"].as_array()?;
        let delivered = |delivery: &Value| delivery["state"] == "delivered";
        (deliveries.len() == 2 && deliveries.iter().all(delivered)).then_some(())
    });
}

fn mode_and_owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid())
}

/// Whether root without the rights to look into other processes is shown what `pid` has in memory; `None` where that cannot be found out.
fn is_open(pid: u32) -> Option<bool> {
    let without = || {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_ptrace,-perfmon,-sys_admin"]);
        command
    };
    let look = |pid: u32| {
        let looked = without().arg("cat").arg(format!("/proc/{pid}/environ")).output();
        looked.is_ok_and(|output| output.status.success())
    };
    // One that may do no more than who looks, and hides nothing.
    let mut plain = without().args(["sleep", "60"]).spawn().ok()?;
    until("it sleeps", || (field(plain.id(), &plain.id().to_string(), "Name") == "sleep").then_some(()));
    let shows = look(plain.id());
    plain.kill().unwrap();
    plain.wait().unwrap();
    shows.then(|| look(pid))
}

/// An account of this host that is in more than its own group, and its groups.
fn account_in_groups() -> Option<(User, BTreeSet<u32>)> {
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    let memberships: Vec<(&str, u32)> = text
        .lines()
        .filter_map(|line| {
            let parts: Vec<&str> = line.split(':').collect();
            let [_, _, gid, members] = parts[..] else { return None };
            let gid = gid.parse::<u32>().ok()?;
            Some(members.split(',').filter(|name| !name.is_empty()).map(move |name| (name, gid)))
        })
        .flatten()
        .collect();
    memberships.iter().find_map(|(name, _)| {
        let user = User::from_name(name).ok()??;
        let own = user.gid.as_raw();
        let mut groups: BTreeSet<u32> =
            memberships.iter().filter(|(of, _)| of == name).map(|(_, gid)| *gid).collect();
        groups.insert(own);
        (groups.len() > 1 && !groups.contains(&0) && !user.uid.is_root()).then_some((user, groups))
    })
}

/// The directory of `theirs`' socket, found by whom it belongs to.
fn their_directory(gateway: &Gateway) -> Option<PathBuf> {
    let pid = pid_of(gateway, "theirs");
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let socket = variables.find_map(|it| it.strip_prefix("GATEPOST_SOCKET=").map(PathBuf::from))?;
    Some(socket.parent()?.to_owned())
}

#[test]
fn r5_only_the_spawner_stays_root_and_an_adapter_with_a_user_of_its_own_delivers() {
    if !is_root() {
        return;
    }
    let mut gateway = gateway();
    gateway.restart();
    deliver(&gateway, "1");
    let (own, theirs, ours) = (gateway.pid(), pid_of(&gateway, "theirs"), pid_of(&gateway, "ours"));
    assert_is(own, USER);
    assert_is(ours, USER);
    assert_is(theirs, ADAPTER);
    let root = spawner(&gateway);
    assert_eq!(children(root), [theirs], "it starts what is another user's, and nothing else");
    for status in statuses(root) {
        assert_eq!(of_status(&status, "Uid"), "0 0 0 0");
        assert_eq!(of_status(&status, "NoNewPrivs"), "1");
        let has = u64::from_str_radix(&of_status(&status, "CapEff"), 16).unwrap();
        assert!(has.count_ones() <= 6, "{has:x}");
        for set in ["CapPrm", "CapBnd"] {
            assert_eq!(u64::from_str_radix(&of_status(&status, set), 16), Ok(has), "{set}");
        }
    }
    // The kernel gives what it shows of a process's memory to root, unless the process may be looked into by its user.
    for secret in ["environ", "maps", "mem"] {
        let owner = fs::metadata(format!("/proc/{own}/{secret}")).unwrap().uid();
        assert_eq!(owner, 0, "{secret}");
    }
    match is_open(root) {
        Some(open) => assert!(!open, "what is root's and less than root looks into the spawner"),
        None => skipped("nobody here can look as root without the right to look into processes"),
    }
    // Nothing of the gateway's is open in it: its streams, its end of the socket, and what its runtime waits by.
    let open = fs::read_dir(format!("/proc/{root}/fd")).unwrap();
    for descriptor in open.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()) {
        let name = descriptor.display().to_string();
        assert!(!name.contains("data") && !name.ends_with(".sock"), "{name}");
    }
    let variables = fs::read(format!("/proc/{root}/environ")).unwrap();
    for variable in variables.split(|&byte| byte == 0).filter(|variable| !variable.is_empty()) {
        let name = String::from_utf8_lossy(variable);
        let name = name.split('=').next().unwrap();
        assert!(["PATH", "LANG", "TZ", "CREDENTIALS_DIRECTORY", "GATEPOST_FAULTS"].contains(&name), "{name}");
    }
    assert_eq!(mode_and_owner(&gateway.path("data")), (0o700, USER));
    assert_eq!(mode_and_owner(&gateway.path("data/keys")), (0o700, USER));
    for key in ["audit.key", "store.key", "seal-1.key"] {
        assert_eq!(mode_and_owner(&gateway.path("data/keys").join(key)), (0o600, USER), "{key}");
    }
    assert_eq!(mode_and_owner(&gateway.path("sockets")), (0o750, USER));
    for socket in ["sockets/app.sock", "sockets/admin.sock"] {
        assert_eq!(mode_and_owner(&gateway.path(socket)), (0o600, USER), "{socket}");
    }
    let directory = their_directory(&gateway).unwrap();
    assert_eq!(mode_and_owner(&directory), (0o700, ADAPTER));
    for socket in ["gateway.sock", "egress"] {
        assert_eq!(mode_and_owner(&directory.join(socket)), (0o600, ADAPTER), "{socket}");
    }
    let status = gateway.cli_ok(&["status"]);
    assert!(status.contains(&format!("runs as user {USER}")), "{status}");
    assert!(gateway.stop().success());
    until("nothing of it stays", || (is_gone(root) && is_gone(theirs) && !directory.exists()).then_some(()));
    gateway.audit_verifies();
}

#[test]
fn r5_what_the_spawner_started_is_killed_restarted_and_reloaded_as_any_adapter() {
    if !is_root() {
        return;
    }
    let mut gateway = gateway();
    gateway.restart();
    for n in ["1", "2"] {
        let before = pid_of(&gateway, "theirs");
        assert!(gateway.kill_adapter("theirs"));
        until("it runs again", || (pid_of(&gateway, "theirs") != before).then_some(()));
        deliver(&gateway, n);
        until("its process before is reaped", || {
            (!Path::new(&format!("/proc/{before}")).exists()).then_some(())
        });
    }
    // A bad file changes nothing: what runs is started again by the one before.
    let good = fs::read_to_string(gateway.config()).unwrap();
    fs::write(gateway.config(), format!("{good}\n[nonsense]\n")).unwrap();
    assert!(!gateway.cli(&["reload"]).status.success());
    let before = pid_of(&gateway, "theirs");
    assert!(gateway.kill_adapter("theirs"));
    until("it runs again", || (pid_of(&gateway, "theirs") != before).then_some(()));
    deliver(&gateway, "3");
    // Another user by a reload: another process, another socket.
    for file in ["effects", "tokens", "counts"] {
        chown(gateway.path(&format!("theirs.{file}")), Some(ADAPTER + 1), None).unwrap();
    }
    let changed = good.replace(&format!("run_as = \"{ADAPTER}\""), &format!("run_as = \"{}\"", ADAPTER + 1));
    fs::write(gateway.config(), changed).unwrap();
    gateway.cli_ok(&["reload"]);
    until("it runs as the other user", || {
        let adapter = gateway.adapter("theirs");
        (adapter["state"] == "running" && adapter["sandbox"]["uid"] == ADAPTER + 1).then_some(())
    });
    deliver(&gateway, "4");
    assert_is(pid_of(&gateway, "theirs"), ADAPTER + 1);
    assert!(gateway.stop().success());
}

#[test]
fn r5_a_gateway_that_is_killed_takes_its_spawner_and_its_adapters_along() {
    if !is_root() {
        return;
    }
    let mut gateway = gateway();
    gateway.restart();
    for n in ["1", "2"] {
        deliver(&gateway, n);
        let left = [spawner(&gateway), pid_of(&gateway, "theirs"), pid_of(&gateway, "ours")];
        gateway.kill();
        until("all are gone", || left.iter().all(|&pid| is_gone(pid)).then_some(()));
        gateway.restart();
    }
    deliver(&gateway, "3");
    assert!(gateway.stop().success());
}

/// As when an adapter of the gateway's user, or whoever has taken the gateway over, keeps a copy of its end.
#[test]
fn r5_a_spawner_ends_with_its_gateway_although_somebody_holds_its_socket() {
    if !is_root() {
        return;
    }
    let gateway = gateway();
    let (ours, its) =
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
    let script = r#"exec 3<&0; "$0" spawner --parent $$ --user "$1" --config "$2" <&3 3<&- & wait"#;
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(program("gatepost")).arg(USER.to_string()).arg(gateway.config());
    let mut parent = command.stdin(Stdio::from(its)).spawn().unwrap();
    // It keeps what it was given until then.
    drop(command);
    let mut ours = UnixStream::from(ours);
    ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut said = [0; 4096];
    let length = ours.read(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]).into_owned();
    assert!(said.contains("ready"), "{said}");
    let root: Vec<u32> = children(parent.id());
    assert_eq!(root.len(), 1);
    parent.kill().unwrap();
    parent.wait().unwrap();
    until("the spawner is gone", || is_gone(root[0]).then_some(()));
}

#[test]
fn r5_a_gateway_whose_user_has_a_name_is_in_that_users_groups_and_in_no_other() {
    if !is_root() {
        return;
    }
    let Some((user, groups)) = account_in_groups() else {
        skipped("no account of this host is in more than its own group");
        return;
    };
    let builder = Gateway::builder();
    set_mode(builder.dir(), 0o755);
    let mut gateway = builder
        .gateway(&format!("user = \"{}\"", user.name))
        .app("shop", &["*"], &[])
        .inbox("in", "")
        .route("shop", &["in"])
        .prepare();
    move_sockets(&gateway);
    gateway.restart();
    let own = gateway.pid();
    for status in statuses(own) {
        let has = of_status(&status, "Groups");
        let has: BTreeSet<u32> = has.split(' ').map(|group| group.parse().unwrap()).collect();
        assert_eq!(has, groups, "{}", user.name);
        let gid = Gid::as_raw(user.gid);
        assert_eq!(of_status(&status, "Gid"), format!("{gid} {gid} {gid} {gid}"));
    }
    let status = gateway.cli_ok(&["status"]);
    assert!(status.contains(&format!("runs as {}", user.name)), "{status}");
    assert!(gateway.stop().success());
}

/// The groups of what root has started are root's, and so is their end.
#[test]
fn r5_what_the_spawner_starts_is_in_control_groups_which_end_with_it_or_at_the_next_start() {
    if !is_root() {
        return;
    }
    let mut gateway = gateway();
    gateway.restart();
    deliver(&gateway, "1");
    if !has_limits(&gateway, "theirs") {
        return;
    }
    let left = groups(&gateway, "theirs");
    assert!(!left.is_empty());
    let (root, theirs) = (spawner(&gateway), pid_of(&gateway, "theirs"));
    // Neither has time to end anything in good order.
    gateway.signal(Signal::SIGSTOP);
    let stands_still = |thread: &String| field(gateway.pid(), thread, "State").starts_with('T');
    until("it stands still", || threads(gateway.pid()).iter().all(stands_still).then_some(()));
    kill(Pid::from_raw(root.cast_signed()), Signal::SIGKILL).unwrap();
    gateway.kill();
    until("the adapter is gone", || is_gone(theirs).then_some(()));
    assert!(left.iter().all(|group| group.exists()), "{left:?}");
    // With the same name they would be taken over.
    let text = fs::read_to_string(gateway.config()).unwrap();
    let renamed = text.replace("[adapters.theirs", "[adapters.others").replace("\"theirs\"", "\"others\"");
    assert_ne!(renamed, text);
    fs::write(gateway.config(), renamed).unwrap();
    gateway.restart();
    assert!(!left.iter().any(|group| group.exists()), "{left:?}");
    assert!(has_limits(&gateway, "others"));
    let others = groups(&gateway, "others");
    assert!(!others.is_empty());
    assert!(gateway.stop().success());
    assert!(!others.iter().any(|group| group.exists()), "{others:?}");
}

#[test]
fn r5_a_gateway_whose_spawner_is_gone_stops_and_says_why() {
    if !is_root() {
        return;
    }
    let mut gateway = gateway();
    gateway.restart();
    deliver(&gateway, "1");
    let (root, theirs) = (spawner(&gateway), pid_of(&gateway, "theirs"));
    kill(Pid::from_raw(root.cast_signed()), Signal::SIGKILL).unwrap();
    assert!(!gateway.ended().success());
    until("its adapters end with it", || is_gone(theirs).then_some(()));
    assert!(gateway.log().contains("the spawner ended"), "{}", gateway.log());
    gateway.restart();
    deliver(&gateway, "2");
    assert!(gateway.stop().success());
}

/// A start that must fail, and what it says.
fn refused(gateway: &Gateway, user: Option<u32>) -> String {
    let mut command = Command::new(program("gatepost"));
    command.args(["serve", "--config"]).arg(gateway.config());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr).into_owned();
    assert!(!status.success(), "{stderr}");
    stderr
}

#[test]
fn r5_what_would_give_the_gateways_user_root_or_stop_it_half_way_is_refused_at_the_start() {
    if !is_root() {
        return;
    }
    let gateway = gateway();
    let config = gateway.config().to_owned();
    let says = |what: &str| {
        let said = refused(&gateway, None);
        assert!(said.contains(what), "{what}: {said}");
    };
    chown(&config, Some(USER), None).unwrap();
    says("the configuration does not belong to root");
    chown(&config, Some(0), Some(USER)).unwrap();
    set_mode(&config, 0o660);
    says("others than root can write the configuration");
    set_mode(&config, 0o600);
    says(&format!("user {USER} cannot read"));
    set_mode(&config, 0o640);
    chown(gateway.dir(), Some(USER), None).unwrap();
    says("this directory above the configuration does not belong to root");
    chown(gateway.dir(), Some(0), None).unwrap();
    // What an earlier start as root has left.
    fs::create_dir_all(gateway.path("data/keys")).unwrap();
    chown(gateway.path("data"), Some(USER), Some(USER)).unwrap();
    says(&format!("chown -R {USER} "));
    fs::remove_dir_all(gateway.path("data")).unwrap();
    fs::remove_dir_all(gateway.path("sockets")).unwrap();
    fs::create_dir(gateway.path("sockets")).unwrap();
    says("cannot make a socket in");
    // Whoever may read it.
    set_mode(&config, 0o644);
    assert!(refused(&gateway, Some(USER + 7)).contains("start it as root or as that user"));
}

#[test]
fn r5_what_root_does_to_the_data_of_such_a_gateway_stays_its_users() {
    if !is_root() {
        return;
    }
    let mut gateway = gateway();
    gateway.restart();
    deliver(&gateway, "1");
    assert!(gateway.stop().success());
    let backup = gateway.path("backup").display().to_string();
    gateway.cli_ok(&["backup", &backup]);
    gateway.cli_ok(&["audit", "verify"]);
    let _ = gateway.cli(&["doctor"]);
    assert_all_theirs(&gateway.path("data"));
    fs::rename(gateway.path("data"), gateway.path("before")).unwrap();
    gateway.cli_ok(&["restore", "--resume", &backup]);
    assert_all_theirs(&gateway.path("data"));
    gateway.restart();
    deliver(&gateway, "2");
    assert!(gateway.stop().success());
}

fn assert_all_theirs(directory: &Path) {
    assert_eq!(mode_and_owner(directory).1, USER, "{}", directory.display());
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            assert_all_theirs(&entry);
        } else {
            assert_eq!(mode_and_owner(&entry).1, USER, "{}", entry.display());
        }
    }
}

#[test]
fn r5_a_gateway_of_root_without_that_key_starts_as_before() {
    if !is_root() {
        return;
    }
    let mut gateway =
        Gateway::builder().app("shop", &["*"], &[]).inbox("in", "").route("shop", &["in"]).start();
    assert_eq!(field(gateway.pid(), &gateway.pid().to_string(), "Uid"), "0 0 0 0");
    assert_eq!(children(gateway.pid()), [0; 0], "there is nothing to be started");
    let status = gateway.cli_ok(&["status"]);
    assert!(status.contains("runs as root"), "{status}");
    assert!(gateway.stop().success());
}
