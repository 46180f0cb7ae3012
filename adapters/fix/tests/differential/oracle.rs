//! A Python process that answers questions line by line.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `oracle.py` with what it needs, which stands below the target directory.
pub(crate) struct Oracle {
    command: Command,
}

impl Oracle {
    /// `None`, and said so, where Python or a package cannot be had.
    pub(crate) fn start(packages: &[&str], arguments: &[&str]) -> Option<Self> {
        let Some(site) = installed(packages) else {
            skipped(&format!("needs python3 with pip and PyPI's {}", packages.join(", ")));
            return None;
        };
        let mut command = Command::new("python3");
        command
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/oracle.py"))
            .args(arguments)
            .env("PYTHONPATH", site)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Some(Self { command })
    }

    /// All answers to these questions, in their order.
    pub(crate) fn answers(&mut self, questions: impl Iterator<Item = String>) -> Vec<String> {
        let mut child = self.command.spawn().expect("Python can be started");
        let mut input = child.stdin.take().expect("it is piped");
        let questions: String = questions.map(|question| question + "\n").collect();
        let asking = std::thread::spawn(move || input.write_all(questions.as_bytes()));
        let output = child.wait_with_output().expect("Python comes to an end");
        assert!(output.status.success(), "Python: {}", output.status);
        asking.join().expect("nothing panics there").expect("Python reads all questions");
        String::from_utf8(output.stdout).expect("answers are text").lines().map(str::to_owned).collect()
    }
}

/// Where the packages are, each by itself so that versions never mix.
fn installed(packages: &[&str]) -> Option<std::ffi::OsString> {
    let all: Option<Vec<PathBuf>> = packages.iter().map(|package| installed_one(package)).collect();
    std::env::join_paths(all?).ok()
}

fn installed_one(package: &str) -> Option<PathBuf> {
    let directory = std::env::current_exe().ok()?.ancestors().nth(3)?.join("python-packages").join(package);
    std::fs::create_dir_all(&directory).ok()?;
    // Tests run at the same time.
    let lock = File::create(directory.with_extension("lock")).ok()?;
    lock.lock().ok()?;
    let mark = directory.join("installed");
    if !mark.exists() {
        let installed = Command::new("python3")
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target"])
            .arg(&directory)
            .arg(package)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !installed.is_ok_and(|status| status.success()) {
            return None;
        }
        File::create(mark).ok()?;
    }
    Some(directory)
}

/// Says that a test could not test what it is for: past the capture of a passing test's output, and in the file that
/// `scripts/test` names in `GATEPOST_SKIPS`, prints and counts.
fn skipped(why: &str) {
    let line = format!("SKIPPED {}: {why}\n", std::thread::current().name().unwrap_or("a test"));
    // Without a standard error there is nobody to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(file) = std::env::var_os("GATEPOST_SKIPS") {
        let mut skips =
            File::options().create(true).append(true).open(file).expect("the file of skips is writable");
        skips.write_all(line.as_bytes()).expect("the file of skips is writable");
    }
}
