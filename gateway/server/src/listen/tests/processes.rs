//! Which program is behind a connection: only the one that made it, whatever becomes of its number.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use tokio::net::UnixListener;

use super::*;
use crate::config::Serves::Apps;
use crate::listen::credentials::Credentials;

const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";
/// Processes of each kind in a batch: fewer than connections wait to be accepted.
const BATCH: usize = 50;
const ACCEPTS_SHORT: usize = 3_000;
const ACCEPTS_LONG: usize = 100_000;

/// A copy of a program that sleeps, under a path of its own.
fn sleeper(directory: &Path) -> PathBuf {
    let own = fs::canonicalize(directory).unwrap().join("rightful");
    fs::copy(fs::canonicalize("/bin/sleep").unwrap(), &own).unwrap();
    own
}

struct Storm {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Storm {
    fn start(socket: &Path, rightful: &Path) -> Self {
        let mut process = Command::new("python3")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/src/listen/tests/storm.py"))
            .args([socket, rightful])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, orders, answers: BufReader::new(answers) }
    }

    /// Blocks, and with it the server: it accepts nothing until this has returned.
    fn order(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        self.answer()
    }

    fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        assert!(!answer.is_empty(), "the storm has broken off");
        answer
    }
}

/// On one thread on purpose: while a batch is made, the server stands still, so that those who connected are gone, and their numbers
/// others', when it looks at them.
async fn storm(accepts: usize) {
    if !nix::unistd::geteuid().is_root() || !Path::new(LAST_PID).exists() || !have("python3") {
        return skipped("needs root, python3 and a kernel that lets a number be given again");
    }
    let directory = tempfile::tempdir().unwrap();
    let rightful = sleeper(directory.path());
    let gate = Gate { exe: Some(rightful.clone()), ..Gate::of_this_user() };
    let limits = Limits { connections_per_peer: 4 * BATCH, ..Limits::default() };
    let mut rig = Rig::new(gate, limits);
    let socket = rig.serve_unix("app.sock", Apps).await;
    // The listener is there, but its loop runs only when this test waits.
    let mut storm = Storm::start(&socket, &rightful);
    let (mut wrongful, mut reused, mut served) = (0, 0, 0);
    while 2 * wrongful < accepts {
        let ready = storm.order(&format!("batch {BATCH}"));
        let numbers: Vec<usize> = ready.split(' ').skip(1).map(|n| n.trim().parse().unwrap()).collect();
        reused += numbers[1];
        let sum = u64::try_from(2 * (wrongful + BATCH)).unwrap();
        until("all were accepted", || rig.counters.accepted() == sum).await;
        writeln!(storm.orders, "read").unwrap();
        let answered = tokio::task::spawn_blocking(move || {
            let answer = storm.answer();
            (storm, answer)
        });
        let answer;
        (storm, answer) = answered.await.unwrap();
        let [bad, good]: [std::collections::HashMap<String, usize>; 2] =
            serde_json::from_str(&answer).unwrap();
        assert_eq!(
            bad.get("401"),
            Some(&BATCH),
            "one that had ended was taken for its number's next: {answer}"
        );
        assert_eq!(good.get("200"), Some(&BATCH), "a rightful one was not let in: {answer}");
        wrongful += BATCH;
        served += BATCH;
    }
    let gone = rig.refusal_codes().iter().filter(|code| **code == RefusalCode::PeerGone).count();
    let line = format!(
        "{} accepts: {wrongful} of processes that had ended, {reused} of whose numbers were a rightful one's by then: {gone} refused \
         as gone; {served} of {served} rightful ones let in\n",
        2 * wrongful
    );
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    assert!(reused > wrongful / 2, "too few numbers were given again to show anything: {reused}");
    assert_eq!(gone, wrongful);
    drop(storm.orders);
    assert!(storm.process.wait().unwrap().success());
    rig.stop().await;
}

#[tokio::test]
async fn a_number_that_is_given_again_is_not_an_identity() {
    storm(ACCEPTS_SHORT).await;
}

#[tokio::test]
#[ignore = "takes minutes; `make test-long` runs it"]
async fn long_a_number_that_is_given_again_is_not_an_identity() {
    storm(ACCEPTS_LONG).await;
}

async fn curl(program: &Path, socket: &Path) -> u16 {
    let output = tokio::process::Command::new(program)
        .args(["--silent", "--include", "--max-time", "60", "--unix-socket"])
        .arg(socket)
        .arg("http://x/who")
        .output()
        .await
        .unwrap();
    parse(&output.stdout).status
}

#[tokio::test]
async fn a_program_is_the_file_at_its_path_and_no_other() {
    if !have("curl") {
        return skipped("needs curl");
    }
    let directory = tempfile::tempdir().unwrap();
    let real = fs::canonicalize(directory.path()).unwrap();
    let (rightful, other) = (real.join("rightful"), real.join("other"));
    let source = String::from_utf8(Command::new("which").arg("curl").output().unwrap().stdout).unwrap();
    for copy in [&rightful, &other] {
        fs::copy(fs::canonicalize(source.trim()).unwrap(), copy).unwrap();
    }
    let mut rig = Rig::new(Gate { exe: Some(rightful.clone()), ..Gate::of_this_user() }, Limits::default());
    let socket = rig.serve_unix("app.sock", Apps).await;
    assert_eq!(curl(&rightful, &socket).await, 200);
    assert_eq!(curl(&other, &socket).await, 401);
    let link = real.join("link");
    std::os::unix::fs::symlink(&rightful, &link).unwrap();
    assert_eq!(curl(&link, &socket).await, 200, "what runs is what counts, not how it was called");

    if !nix::unistd::geteuid().is_root() || !have("unshare") {
        return skipped("that a program in a file system of its own is not let in: needs root and unshare");
    }
    // In its own file system the other program has the rightful path.
    let script = "mount --bind \"$1\" \"$0\" && exec \"$0\" --silent --include --max-time 60 --unix-socket \"$2\" http://x/who";
    let output = tokio::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .args([&rightful, &other, &socket])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(parse(&output.stdout).status, 401);
    rig.stop().await;
}

#[tokio::test]
async fn a_program_whose_file_is_gone_or_was_replaced_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let rightful = sleeper(directory.path());
    let exe = |pid: u32| crate::listen::credentials::executable(pid).unwrap();
    let mut child = Command::new(&rightful).arg("3600").spawn().unwrap();
    until("it runs", || exe(child.id()).as_ref() == Some(&rightful)).await;
    let new = rightful.with_extension("new");
    fs::copy(&rightful, &new).unwrap();
    fs::rename(&new, &rightful).unwrap();
    assert_eq!(exe(child.id()), None, "another file has its path now");
    fs::remove_file(&rightful).unwrap();
    fs::write(rightful.with_file_name("rightful (deleted)"), "x").unwrap();
    assert_eq!(exe(child.id()), None);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_process_is_in_the_group_that_the_kernel_says() {
    let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let unified = hierarchies.into_iter().find(|root| root.join("cgroup.procs").exists());
    let name = format!("gatepost-test-{}.service", std::process::id());
    let Some(group) = unified.map(|root| root.join(&name)).filter(|group| fs::create_dir(group).is_ok())
    else {
        return skipped("needs the right to make a control group");
    };
    if !have("python3") {
        fs::remove_dir(&group).unwrap();
        return skipped("needs python3");
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    // It moves itself, connects, and stays until it is told to go.
    let script = "import os, socket, sys\n\
                  open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n\
                  s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[2]); s.recv(1)";
    let mut child =
        tokio::process::Command::new("python3").args(["-c", script]).args([&group, &socket]).spawn().unwrap();
    let (stream, _) = timeout(HANG, listener.accept()).await.expect("it did not connect").unwrap();
    let facts =
        Credentials::of(&stream).unwrap().facts(&stream, Wanted { exe: false, cgroup: true }).unwrap();
    drop(stream);
    child.wait().await.unwrap();
    fs::remove_dir(&group).unwrap();
    let found = facts.cgroup.unwrap();
    assert!(found.starts_with('/') && found.ends_with(&format!("/{name}")), "{found}");
    assert_eq!(facts.exe, None);
}
