//! The recorded disk itself, before anything is believed that is found with it: small programs whose every write is known.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use gatepost_tests::disk::{Disk, Forgotten, Loss};
use gatepost_tests::{Dice, Gateway, skipped};
use serde_json::json;
use tempfile::TempDir;

use crate::order_event;

/// What a small program sees of it: `f(name)` opens for writing, `sync(name)` syncs a file or directory.
const PRELUDE: &str = r#"
import errno, os
os.umask(0o022)
def f(name, flags=os.O_RDWR | os.O_CREAT): return os.open(name, flags, 0o600)
def sync(name):
    fd = os.open(name, os.O_RDONLY); os.fsync(fd); os.close(fd)
def write(name, data, at=0):
    fd = f(name); os.pwrite(fd, data, at); os.close(fd)
def fails(code, do):
    try: do()
    except OSError as error: assert error.errno == code, error
    else: raise SystemExit("it did not fail")
"#;

struct Stage {
    dir: TempDir,
    root: PathBuf,
    disk: Disk,
}

impl Stage {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        fs::create_dir(&root).unwrap();
        let Some(disk) = Disk::new(&root) else {
            skipped("needs a C compiler");
            return None;
        };
        Some(Self { dir, root, disk })
    }

    /// Runs a program over the disk; `false` if it was killed. What it says stands in `said`.
    fn run(&self, script: &str) -> bool {
        let mut python = Command::new("python3");
        python.args(["-c", &format!("{PRELUDE}{script}")]).current_dir(&self.root);
        let output = python.envs(self.disk.environment()).output().expect("python3 can be started");
        fs::write(self.dir.path().join("said"), &output.stderr).unwrap();
        assert!(
            matches!(output.status.code(), Some(0) | None),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.status.success()
    }

    fn after_all_is_lost(&mut self) -> Forgotten {
        self.disk.crash(Loss::All, &mut Dice::new(1))
    }

    fn file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.root.join(name)).ok()
    }
}

#[test]
fn what_was_not_synced_is_forgotten() {
    let Some(mut stage) = Stage::new() else { return };
    assert!(stage.run(
        r#"
for name in ["kept", "shrunk", "renamed", "gone", "appended"]: write(name, b"one"); sync(name)
sync(".")
write("kept", b"two")
os.truncate("shrunk", 1)
os.rename("renamed", "other")
os.unlink("gone")
fd = f("appended", os.O_WRONLY | os.O_APPEND); os.write(fd, b"two"); os.writev(fd, [b"thr", b"ee"])
write("new", b"one"); sync("new")
os.mkdir("dir"); write("dir/file", b"one"); sync("dir/file"); sync("dir")
"#
    ));
    assert_eq!(stage.disk.differences(), Vec::<String>::new());
    assert_eq!(stage.file("appended").as_deref(), Some("onetwothree"));
    let forgotten = stage.after_all_is_lost();
    for name in ["kept", "shrunk", "renamed", "gone", "appended"] {
        assert_eq!(stage.file(name).as_deref(), Some("one"), "{name}");
    }
    for name in ["other", "new", "dir"] {
        assert!(!stage.root.join(name).exists(), "{name}");
    }
    assert_eq!(forgotten, Forgotten { writes: 4, names: 4 });
    assert!(stage.run(""), "nothing has happened since");
    assert_eq!(stage.disk.records(), []);
}

#[test]
fn a_name_is_durable_when_its_directory_is_synced() {
    let Some(mut stage) = Stage::new() else { return };
    assert!(stage.run(r#"write("new", b"one"); sync("new")"#));
    stage.after_all_is_lost();
    assert_eq!(stage.file("new"), None, "created, its directory not synced");

    assert!(stage.run(r#"write("new", b"one"); sync("."); sync("new")"#));
    stage.after_all_is_lost();
    assert_eq!(stage.file("new").as_deref(), Some("one"));

    assert!(stage.run(r#"write("tmp", b"two"); sync("tmp"); os.rename("tmp", "new")"#));
    stage.after_all_is_lost();
    assert_eq!((stage.file("new").as_deref(), stage.file("tmp")), (Some("one"), None));

    assert!(stage.run(r#"write("tmp", b"two"); sync("tmp"); os.rename("tmp", "new"); sync(".")"#));
    stage.after_all_is_lost();
    assert_eq!((stage.file("new").as_deref(), stage.file("tmp")), (Some("two"), None));

    assert!(
        stage.run(r#"os.rename("new", "old"); os.link("old", "new"); os.unlink("old"); write("new", b"3")"#)
    );
    stage.after_all_is_lost();
    assert_eq!((stage.file("new").as_deref(), stage.file("old")), (Some("two"), None));

    assert!(stage.run(
        r#"
import ctypes
os.mkdir("dir"); write("dir/file", b"one")
fd = os.open(".", os.O_RDONLY); assert ctypes.CDLL(None).syncfs(fd) == 0
write("dir/file", b"two")
"#
    ));
    stage.after_all_is_lost();
    assert_eq!(stage.file("dir/file").as_deref(), Some("one"), "syncfs syncs everything");
}

#[test]
fn writes_survive_in_any_order_and_torn_where_sectors_end() {
    let Some(mut stage) = Stage::new() else { return };
    let mut dice = Dice::new(7);
    // Which versions of its four sectors a crash leaves of many equal files.
    let mut seen = |loss| -> HashSet<String> {
        assert!(stage.run(
            r#"
for n in range(40): write(f"file{n}", b"." * 2048); sync(f"file{n}")
sync(".")
for n in range(40): write(f"file{n}", b"a" * 1024, 0); write(f"file{n}", b"b" * 1024, 1024)
"#
        ));
        stage.disk.crash(loss, &mut dice);
        let versions = |n: usize| {
            let file = stage.file(&format!("file{n}")).unwrap();
            let sectors = file.as_bytes().chunks(512);
            let version = |sector: &[u8]| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "torn within a sector: {file}");
                char::from(sector[0])
            };
            sectors.map(version).collect()
        };
        (0..40).map(versions).collect()
    };
    let whole: HashSet<String> = ["....", "aa..", "..bb", "aabb"].map(str::to_owned).into();
    assert_eq!(seen(Loss::Some), whole);
    assert!(!seen(Loss::Torn).is_subset(&whole));
}

#[test]
fn a_failed_sync_takes_with_it_what_it_should_have_kept() {
    let Some(mut stage) = Stage::new() else { return };
    stage.disk.fail_syncs("*/file", 1);
    assert!(stage.run(
        r#"
write("file", b"one"); fails(errno.EIO, lambda: sync("file"))
sync("file"); sync(".")
assert open("file").read() == "one", "until the crash everything looks well"
write("file", b"two", 8); sync("file")
"#
    ));
    stage.after_all_is_lost();
    assert_eq!(stage.file("file").as_deref(), Some("\0\0\0\0\0\0\0\0two"));
    assert_eq!(stage.disk.failures_left(), 0);

    stage.disk.fail_syncs("*/dir", 1);
    assert!(stage.run(
        r#"
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("dir"); write("dir/below", b"one"); write("beside", b"one")
fd = os.open("dir", os.O_RDONLY)
assert libc.syncfs(fd) == -1 and ctypes.get_errno() == errno.EIO
assert libc.syncfs(fd) == 0
"#
    ));
    stage.after_all_is_lost();
    assert_eq!(stage.file("dir/below").as_deref(), Some(""));
    assert_eq!(stage.file("beside").as_deref(), Some("one"));
}

#[test]
fn a_full_disk_and_failing_writes_are_told_to_the_program() {
    let Some(mut stage) = Stage::new() else { return };
    stage.disk.free_bytes(10);
    stage.disk.fail_writes("*/bad", 1);
    assert!(stage.run(
        r#"
fd = f("file")
assert os.write(fd, b"12345678") == 8
assert os.statvfs(".").f_bavail == 0
assert os.write(fd, b"12345678") == 2, "what fits is written"
fails(errno.ENOSPC, lambda: os.write(fd, b"1"))
assert os.pwrite(fd, b"other", 0) == 5, "what is there can be changed"
os.ftruncate(fd, 6)
assert os.pwrite(fd, b"12345678", 6) == 4
write("small", b""); os.unlink("file")
write("small", b"1234567890")
bad = f("bad"); fails(errno.EIO, lambda: os.write(bad, b"1")); fails(errno.ENOSPC, lambda: os.write(bad, b"1"))
os.truncate("small", 2); os.write(bad, b"1")
"#
    ));
    assert_eq!(stage.disk.differences(), Vec::<String>::new());
    stage.disk.unlimited();
    assert!(stage.run(r#"write("file", b"1" * 1000)"#));
    stage.after_all_is_lost();
    assert_eq!(stage.file("file"), None);
}

#[test]
fn a_program_is_killed_at_every_step_that_is_named() {
    let script = r#"write("file", b"one"); sync("file"); sync("."); write("file", b"two"); sync("file")"#;
    // Killed when it is created, written, synced, its name synced, written again, synced again; and not at all.
    let after = [None, None, None, Some("one"), Some("one"), Some("two"), Some("two")];
    for (step, content) in (1..).zip(after) {
        let Some(mut stage) = Stage::new() else { return };
        stage.disk.kill_at(step);
        assert_eq!(stage.run(script), step == 7, "step {step}");
        stage.after_all_is_lost();
        assert_eq!(stage.file("file").as_deref(), content, "step {step}");
    }
}

#[test]
fn what_the_record_cannot_express_ends_the_program() {
    let Some(stage) = Stage::new() else { return };
    for script in [
        r#"os.symlink("a", "b")"#,
        r#"os.write(f("file", os.O_WRONLY | os.O_CREAT | os.O_DSYNC), b"1")"#,
        r#"import mmap; write("file", b"1"); mmap.mmap(f("file"), 1)"#,
    ] {
        assert!(!stage.run(script), "{script}");
        let said = fs::read_to_string(stage.dir.path().join("said")).unwrap();
        assert!(said.contains("cannot express"), "{said}");
    }
}

/// Nothing that a gateway does to its data goes past the record: replayed, it gives the very files that are there.
#[test]
fn the_record_of_a_gateway_is_complete() {
    let builder =
        Gateway::builder().app("shop", &["*"], &["desk"]).inbox("desk", "").route("shop", &["desk"]);
    let Some(disk) = Disk::new(&builder.dir().join("data")) else { return skipped("needs a C compiler") };
    let mut gateway = builder.environment(disk.environment()).start();
    // More than a tile, so that tiles become files; more than a page.
    for n in 0..300 {
        gateway.app().event(&order_event(&n.to_string(), "k", &json!("x".repeat(n * 20)))).expect(202);
    }
    gatepost_tests::until("a tile is filed", || gateway.path("data/audit/tile/0/000").exists().then_some(()));
    gateway.kill();
    assert_eq!(disk.differences(), Vec::<String>::new());
    gateway.restart();
    assert!(gateway.stop().success());
    assert_eq!(disk.differences(), Vec::<String>::new());
    assert!(disk.records().len() > 600);
}
