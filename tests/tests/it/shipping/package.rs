//! The Debian package: the same bytes each time, installed, upgraded, removed and purged in a throw-away root directory.

use std::collections::BTreeSet;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use gatepost_tests::{skipped, source, uid};

use super::{output, run, there_is};

const PROGRAMS: [&str; 5] = ["gatepost", "gatepost-verify", "gatepost-fix", "gatepost-hl7", "gatepost-http"];

/// The package with tiny files in place of the programs.
fn build(dir: &Path, out: &str) -> PathBuf {
    let programs = dir.join("programs");
    std::fs::create_dir_all(&programs).unwrap();
    for program in PROGRAMS {
        std::fs::write(programs.join(program), "#!/bin/sh\nexit 0\n").unwrap();
    }
    let mut command = Command::new(source("../scripts/deb"));
    let said = output(command.arg(programs).arg(dir.join(out)).env("SOURCE_DATE_EPOCH", "1700000000"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).unwrap().trim().into()
}

/// A later version of `package`, with a sample configuration that has changed.
fn later(dir: &Path, package: &Path) -> PathBuf {
    let (tree, later) = (dir.join("later"), dir.join("later.deb"));
    run(Command::new("dpkg-deb").arg("-R").arg(package).arg(&tree));
    let edit = |file: &str, from: &str, to: &str| {
        let text = std::fs::read_to_string(tree.join(file)).unwrap();
        assert!(text.contains(from), "{file}");
        std::fs::write(tree.join(file), text.replacen(from, to, 1)).unwrap();
    };
    edit("DEBIAN/control", "Version: ", "Version: 1:");
    edit("etc/gatepost/gatepost.toml", "[gateway]", "# Later.\n[gateway]");
    edit("usr/bin/gatepost", "exit 0", "exit 1");
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-b"]).arg(&tree).arg(&later));
    later
}

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().unwrap());
        for directory in
            ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log", "etc/systemd/system", "run", "var/lib"]
        {
            std::fs::create_dir_all(root.path(directory)).unwrap();
        }
        for file in ["var/lib/dpkg/status", "var/lib/dpkg/available"] {
            std::fs::write(root.path(file), "").unwrap();
        }
        root
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dpkg(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", self.0.path().display()));
        // The scripts run outside of the root directory, which has no shell, and are told where it is.
        command.args(["--force-script-chrootless", "--force-depends", "--force-confold"]);
        run(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// All that is there, but for dpkg's own notes and the users, who stay.
    fn files(&self) -> BTreeSet<String> {
        let (mut found, mut waiting) = (BTreeSet::new(), vec![self.0.path().to_owned()]);
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                let name = entry.path().strip_prefix(self.0.path()).unwrap().display().to_string();
                let is_own = [
                    "var/lib/dpkg",
                    "var/log",
                    "etc/passwd",
                    "etc/group",
                    "etc/shadow",
                    "etc/gshadow",
                    "etc/.pwd",
                ]
                .iter()
                .any(|own| name.starts_with(own));
                if !is_own {
                    if entry.file_type().unwrap().is_dir() {
                        waiting.push(entry.path());
                    }
                    found.insert(name);
                }
            }
        }
        found
    }
}

/// Whether packages can be built, and put into a root directory, here.
fn can_install() -> bool {
    if uid() != 0 {
        skipped("only root can install a package");
        return false;
    }
    ["dpkg", "dpkg-deb", "systemd-sysusers", "systemd-tmpfiles"].into_iter().all(there_is)
}

#[test]
fn the_package_is_built_to_the_same_bytes() {
    if !there_is("dpkg-deb") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (build(dir.path(), "one"), build(dir.path(), "other"));
    assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&other).unwrap());
    let listed = run(Command::new("dpkg-deb").arg("-c").arg(&one));
    for line in listed.lines() {
        assert!(line.contains(" root/root "), "{line}");
        let others_write = line.as_bytes()[5] == b'w' || line.as_bytes()[8] == b'w';
        let special = line[..10].contains(['s', 't']);
        assert!(!others_write && !special, "{line}");
    }
    let version = run(Command::new("dpkg-deb").arg("-f").arg(&one).arg("Version"));
    let changelog = std::fs::read_to_string(source("../deploy/debian/changelog")).unwrap();
    assert!(
        changelog.starts_with(&format!("gatepost ({})", version.trim())),
        "the changelog's first entry is {version}"
    );
}

#[test]
fn the_package_is_installed_upgraded_removed_and_purged_cleanly() {
    if !can_install() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let package = build(dir.path(), "out");
    let later = later(dir.path(), &package);
    let root = Root::new();
    let before = root.files();

    root.dpkg(&["--install", package.to_str().unwrap()]);
    let users = root.text("etc/passwd");
    let user: Vec<&str> =
        users.lines().find(|line| line.starts_with("gatepost:")).unwrap().split(':').collect();
    assert!(user[6].ends_with("nologin"), "{users}");
    for group in ["gatepost", "gatepost-apps", "gatepost-operators", "gatepost-adapters"] {
        assert!(root.text("etc/group").lines().any(|line| line.starts_with(&format!("{group}:"))), "{group}");
    }
    let data = std::fs::metadata(root.path("var/lib/gatepost")).unwrap();
    assert_eq!((data.uid().to_string().as_str(), data.mode() & 0o777), (user[2], 0o700));
    for (directory, mode) in
        [("etc/gatepost/credentials", 0o700), ("etc/gatepost/adapters", 0o755), ("run/gatepost", 0o755)]
    {
        let found = std::fs::metadata(root.path(directory)).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (0, mode), "{directory}");
    }
    assert!(
        std::fs::read_dir(root.path("etc/systemd/system")).unwrap().next().is_none(),
        "something is enabled"
    );
    assert_eq!(
        std::fs::metadata(root.path("usr/bin/gatepost")).unwrap().permissions().mode() & 0o7777,
        0o755
    );

    // What an administrator does, and what the gateway stores.
    let mine = format!("{}# Mine.\n", root.text("etc/gatepost/gatepost.toml"));
    std::fs::write(root.path("etc/gatepost/gatepost.toml"), &mine).unwrap();
    std::fs::write(root.path("var/lib/gatepost/gatepost.db"), "messages").unwrap();
    std::fs::create_dir(root.path("etc/systemd/system/multi-user.target.wants")).unwrap();
    let enabled = "etc/systemd/system/multi-user.target.wants/gatepost.service";
    symlink("/lib/systemd/system/gatepost.service", root.path(enabled)).unwrap();

    root.dpkg(&["--install", later.to_str().unwrap()]);
    assert!(root.text("usr/bin/gatepost").contains("exit 1"), "the new program is there");
    assert_eq!(root.text("etc/gatepost/gatepost.toml"), mine);
    assert_eq!(root.text("var/lib/gatepost/gatepost.db"), "messages");
    assert_eq!(root.text("etc/passwd"), users);

    root.dpkg(&["--remove", "gatepost"]);
    assert!(
        !root.path("usr/bin/gatepost").exists() && !root.path("lib/systemd/system/gatepost.service").exists()
    );
    assert_eq!(root.text("etc/gatepost/gatepost.toml"), mine);

    let said = root.dpkg(&["--purge", "gatepost"]);
    assert!(said.contains("var/lib/gatepost is not empty and stays"), "{said}");
    assert_eq!(root.text("var/lib/gatepost/gatepost.db"), "messages");
    std::fs::remove_dir_all(root.path("var/lib/gatepost")).unwrap();
    std::fs::remove_dir(root.path("etc/systemd/system/multi-user.target.wants")).expect("the link is gone");
    let left: Vec<String> = root.files().difference(&before).cloned().collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
#[ignore = "long: run by scripts/test-long"]
fn the_package_with_the_real_programs_has_no_errors_by_lintian() {
    if !["lintian", "strip", "readelf"].into_iter().all(there_is) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let programs = gatepost_tests::program("gatepost");
    let said = run(Command::new(source("../scripts/deb")).arg(programs.parent().unwrap()).arg(dir.path()));
    let package = said.lines().last().unwrap();
    let said = run(Command::new("lintian").args(["--allow-root", "--fail-on", "error"]).arg(package));
    gatepost_tests::note(&said);
    let depends = run(Command::new("dpkg-deb").arg("-f").arg(package).arg("Depends"));
    assert!(depends.starts_with("libc6 (>= 2."), "{depends}");
}
