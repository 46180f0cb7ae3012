//! The systemd units: that systemd understands all of them, how exposed they are by its own measure, and that the gateway takes
//! what its socket units hand over.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gatepost_tests::{Gateway, program, source, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{copy, output, run, there_is};

/// systemd's measure of exposure, from 0 to 100, that no unit may be above.
const EXPOSURE_MAX: &str = "15";
const NAMES: [&str; 5] = [
    "gatepost.service",
    "gatepost-app.socket",
    "gatepost-operator.socket",
    "gatepost-adapter.socket",
    "gatepost-adapter@.service",
];

fn units() -> PathBuf {
    source("../deploy/systemd")
}

/// A root directory with the units, and with files in place of the programs that they start.
fn root() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in NAMES {
        copy(&units().join(name), &root.path().join("etc/systemd/system").join(name));
    }
    for file in ["usr/bin/gatepost", "etc/gatepost/adapters/lab"] {
        copy(Path::new("/bin/true"), &root.path().join(file));
    }
    // The targets that units are ordered by.
    for entry in std::fs::read_dir("/lib/systemd/system").unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "target") {
            copy(&entry.path(), &root.path().join("lib/systemd/system").join(entry.file_name()));
        }
    }
    root
}

#[test]
fn systemd_understands_every_unit() {
    if !there_is("systemd-analyze") {
        return;
    }
    let mut found: Vec<_> = std::fs::read_dir(units())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort_unstable();
    let mut names = NAMES;
    names.sort_unstable();
    assert_eq!(found, names, "a new unit is to be tested here");
    let root = root();
    let verify = |name: &str| {
        let instance = name.replace("@.", "@lab.");
        let mut command = Command::new("systemd-analyze");
        // It succeeds with keys that it does not know, too; what it says counts.
        run(command
            .args(["verify", "--man=no"])
            .arg(format!("--root={}", root.path().display()))
            .arg(instance))
    };
    for name in NAMES {
        assert_eq!(verify(name), "", "{name}");
    }
    let service = root.path().join("etc/systemd/system/gatepost.service");
    let text = std::fs::read_to_string(&service).unwrap();
    std::fs::write(&service, text.replace("ProtectHome=", "ProtectHomes=")).unwrap();
    assert!(verify("gatepost.service").contains("ProtectHomes"), "a mistake would be seen");
}

#[test]
fn the_units_exposure_is_low_by_systemds_own_measure() {
    if !there_is("systemd-analyze") {
        return;
    }
    let analyze = |file: &Path| {
        let mut command = Command::new("systemd-analyze");
        let threshold = format!("--threshold={EXPOSURE_MAX}");
        output(command.args(["security", "--no-pager", "--offline=true", &threshold]).arg(file))
    };
    for name in ["gatepost.service", "gatepost-adapter@.service"] {
        let analyzed = analyze(&units().join(name));
        assert!(analyzed.status.success(), "{name}: {}", String::from_utf8_lossy(&analyzed.stdout));
    }
    let bare = tempfile::tempdir().unwrap();
    let file = bare.path().join("bare.service");
    std::fs::write(&file, "[Service]\nExecStart=/bin/true\nUser=nobody\n").unwrap();
    assert!(!analyze(&file).status.success(), "an exposed one would be seen");
}

/// `systemd-socket-activate` does what a socket unit does: it listens, and hands its sockets to what it starts.
struct Activated(Child);

impl Activated {
    fn start(gateway: &Gateway, sockets: &[&str], notify: &Path) -> Self {
        let mut command = Command::new("systemd-socket-activate");
        for socket in sockets {
            command.arg("-l").arg(gateway.path(socket));
        }
        command.arg("-E").arg(format!("NOTIFY_SOCKET={}", notify.display()));
        command.arg(program("gatepost")).arg("-c").arg(gateway.config()).arg("serve");
        let log = std::fs::File::create(gateway.path("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self(child)
    }

    /// It has become the gateway.
    fn stop(&mut self) -> bool {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().success()
    }
}

impl Drop for Activated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn told(notify: &UnixDatagram) -> String {
    let mut bytes = [0; 128];
    let count = notify.recv(&mut bytes).expect("the gateway tells how it is");
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

#[test]
fn the_gateway_serves_on_the_sockets_that_it_is_handed_and_tells_when_it_is_ready() {
    if !there_is("systemd-socket-activate") {
        return;
    }
    let gateway = Gateway::builder().prepare();
    let notify_path = gateway.path("notify");
    let notify = UnixDatagram::bind(&notify_path).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut activated = Activated::start(&gateway, &["app.sock", "admin.sock"], &notify_path);
    until("systemd-socket-activate listens", || gateway.path("admin.sock").exists().then_some(()));
    // The first connection starts the gateway, and waits in its socket meanwhile.
    gateway.cli_ok(&["status"]);
    assert_eq!(told(&notify), "READY=1");
    assert!(activated.stop());
    assert_eq!(told(&notify), "STOPPING=1");
    for socket in ["app.sock", "admin.sock"] {
        assert!(gateway.path(socket).exists(), "{socket} is not the gateway's to remove");
    }
}

#[test]
fn a_socket_that_no_listener_names_is_refused() {
    if !there_is("systemd-socket-activate") {
        return;
    }
    let gateway = Gateway::builder().prepare();
    let notify = gateway.path("nobody");
    let mut activated = Activated::start(&gateway, &["stray.sock"], &notify);
    until("systemd-socket-activate listens", || gateway.path("stray.sock").exists().then_some(()));
    let _client = std::os::unix::net::UnixStream::connect(gateway.path("stray.sock")).unwrap();
    assert!(!activated.0.wait().unwrap().success());
    let log = std::fs::read_to_string(gateway.path("log")).unwrap();
    assert!(log.contains("stray.sock") && log.contains("no [[listen]] names it"), "{log}");
}
