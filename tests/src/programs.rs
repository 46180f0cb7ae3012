//! Where the programs under test are, and what other programs tests need.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::fcntl::{Flock, FlockArg};

const PACKAGES: [&str; 7] = [
    "gatepost",
    "gatepost-audit",
    "gatepost-adapter",
    "gatepost-http",
    "gatepost-hl7",
    "gatepost-fix",
    "gatepost-tests",
];
/// What makes them faulty; `scripts/test` names the same.
const FAULTS: &str = "gatepost/faults,gatepost-http/faults,gatepost-hl7/faults,gatepost-fix/faults";
/// All programs, which stand beside each other also where they are faulty.
const PROGRAMS: [&str; 6] =
    ["gatepost", "gatepost-verify", "gatepost-http", "gatepost-hl7", "gatepost-fix", "gatepost-echo"];

/// The file of a program under test. `GATEPOST_BIN_DIR` says where they are; without it they are built first, so that nobody
/// tests yesterday's.
pub fn program(name: &str) -> PathBuf {
    // A failed build is remembered too: the compiler says the same to every test.
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file = DIRECTORY.get_or_init(directory).as_ref().expect("the programs build").join(name);
    assert!(file.is_file(), "there is no {}", file.display());
    file
}

/// The file of a program that has the points of `gatepost-faults`. They stand in `faults` beside the normal ones.
pub fn faulty(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let file =
        DIRECTORY.get_or_init(faulty_directory).as_ref().expect("the faulty programs build").join(name);
    assert!(file.is_file(), "there is no {}", file.display());
    file
}

fn directory() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("GATEPOST_BIN_DIR") {
        return Some(given.into());
    }
    let profile = profile();
    let _lock = lock(&profile);
    build(&profile, &[]).then_some(profile)
}

fn faulty_directory() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("GATEPOST_BIN_DIR") {
        return Some(Path::new(&given).join("faults"));
    }
    let profile = profile();
    let _lock = lock(&profile);
    let faults = profile.join("faults");
    let built = build(&profile, &["--features", FAULTS]) && copy(&profile, &faults).is_ok();
    // Afterwards the normal ones, so that it is them who stand where everybody looks.
    (build(&profile, &[]) && built).then_some(faults)
}

/// Renamed into place: another process may run the one before.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for program in PROGRAMS {
        let fresh = to.join(format!("{program}.new"));
        std::fs::copy(from.join(program), &fresh)?;
        std::fs::rename(fresh, to.join(program))?;
    }
    Ok(())
}

/// Where this test's own profile is built.
fn profile() -> PathBuf {
    let this = std::env::current_exe().expect("a process has a file");
    this.ancestors().nth(2).expect("target/PROFILE/deps/NAME").to_owned()
}

/// Several test processes may start at once: one builds, the others find everything built.
fn lock(profile: &Path) -> Flock<File> {
    let file = File::create(profile.join("gatepost-tests.lock")).expect("the target directory is writable");
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno).expect("files can be locked")
}

fn build(profile: &Path, more: &[&str]) -> bool {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(source("..")).args(["build", "--quiet", "--bins", "--examples"]).args(more);
    cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    if let Some(target) = profile.parent() {
        cargo.env("CARGO_TARGET_DIR", target);
    }
    if profile.file_name().is_some_and(|name| name == "release") {
        cargo.arg("--release");
    }
    cargo.status().expect("cargo can be started").success()
}

/// A file of this crate, by its path from here.
pub fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A Python with these packages of PyPI, installed below the target directory; `None` where that cannot be had.
pub fn python(packages: &[&str]) -> Option<Command> {
    let site = std::env::current_exe().ok()?.ancestors().nth(3)?.join("python");
    std::fs::create_dir_all(&site).ok()?;
    let lock = File::create(site.join("lock")).ok()?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).ok()?;
    for package in packages {
        let mark = site.join(format!("{package}.installed"));
        if mark.exists() {
            continue;
        }
        let installed = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"])
            .arg(&site)
            .arg(package)
            .stdout(Stdio::null())
            .status();
        if !installed.is_ok_and(|status| status.success()) {
            return None;
        }
        File::create(mark).ok()?;
    }
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", &site).env("PYTHONUNBUFFERED", "1");
    Some(python)
}

/// Python itself, which may stand behind a script of the same name, and the directory of its library.
pub fn interpreter() -> (PathBuf, PathBuf) {
    let say = "import sys; print(sys.executable, sys.base_prefix, sep='\\n')";
    let output = Command::new("python3").args(["-c", say]).output().expect("there is Python");
    let output = String::from_utf8(output.stdout).expect("paths are text");
    let (file, library) = output.trim().split_once('\n').expect("Python prints two lines");
    (std::fs::canonicalize(file).expect("Python is there"), library.into())
}

/// Says that a test could not test here what it is for, lest its passing be believed: past the capture of a passing test's
/// output, and in the file that `scripts/test` names in `GATEPOST_SKIPS`, prints and counts.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("SKIPPED {test}: {why}");
    note(&line);
    if let Some(file) = std::env::var_os("GATEPOST_SKIPS") {
        let mut skips =
            File::options().create(true).append(true).open(file).expect("the file of skips is writable");
        // One write, so that tests that run at the same time do not mix their lines.
        skips.write_all(format!("{line}\n").as_bytes()).expect("the file of skips is writable");
    }
}

/// A line that is shown although the test passes.
pub fn note(line: &str) {
    // Without a standard error there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A library of `shim/` to preload into programs, compiled once for its present text; `None` where there is no C compiler.
pub(crate) fn shim(name: &str) -> Option<PathBuf> {
    compile(name, &format!("{name}.so"), &["-shared", "-fPIC"])
}

/// A program of `shim/`, alike.
pub fn compiled(name: &str) -> Option<PathBuf> {
    compile(name, name, &[])
}

fn compile(name: &str, output: &str, kind: &[&str]) -> Option<PathBuf> {
    let text = source(&format!("shim/{name}.c"));
    let target = std::env::current_exe().ok()?.ancestors().nth(3)?.join("shim");
    std::fs::create_dir_all(&target).ok()?;
    let _lock = lock(&target);
    let (output, mark) = (target.join(output), target.join(format!("{name}.c")));
    let current = std::fs::read(&text).expect("the shim's text is there");
    if output.exists() && std::fs::read(&mark).is_ok_and(|compiled| compiled == current) {
        return Some(output);
    }
    let compiler = Command::new("cc")
        .args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"])
        .args(kind)
        .arg("-o")
        .args([&output, &text])
        .args(["-ldl", "-lpthread"])
        .output()
        .ok()?;
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    File::create(mark).and_then(|mut mark| mark.write_all(&current)).ok()?;
    Some(output)
}
