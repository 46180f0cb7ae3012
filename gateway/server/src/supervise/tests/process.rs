//! Processes: started, watched, restarted, drained, ended.

use std::os::unix::fs::PermissionsExt as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::super::exec::tests::as_adapter_exec;
use super::*;

fn adapter(name: &str, program: &str) -> String {
    format!("[adapters.{name}]\nrun = [\"{program}\", \"an argument\"]\nconfirm = \"sent\"\n")
}

/// The interpreter itself, which may stand behind a script, and where its library is.
fn python() -> (String, String) {
    let say = "import sys; print(sys.executable, sys.base_prefix, sep='\\n')";
    let output = std::process::Command::new("python3").args(["-c", say]).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let (executable, library) = output.trim().split_once('\n').unwrap();
    (std::fs::canonicalize(executable).unwrap().display().to_string(), library.to_owned())
}

fn alive(pid: u32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), None).is_ok()
}

fn read_pid(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn r13_10_an_adapter_runs_with_its_socket_and_little_else() {
    let rig = Rig::through(Launcher::through(as_adapter_exec()).unwrap(), Deadlines::default()).await;
    let worker = rig.script("worker", WORKS);
    let (python, library) = python();
    // As the kernel keeps them, before any interpreter adds its own.
    std::fs::create_dir(rig.file("facts")).unwrap();
    let look = "#!/bin/sh\ncd \"${0%/*}/facts\"\ntr '\\0' '\\n' </proc/$$/environ >env\nreadlink /proc/$$/fd/0 >stdin\n\
                cut -d' ' -f5 /proc/$$/stat >group\nprintf '%s|' \"$@\" >args\nexec \"$2\" \"$3\"\n";
    let program = script(rig.directory.path(), "look", look);
    let facts = rig.file("facts").display().to_string();
    let lines = format!(
        "[adapters.lab]\nrun = [\"{program}\", \"an argument\", \"{python}\", \"{worker}\"]\nconfirm = \"sent\"\n\
         allow = {{ read = [\"{library}\"], write = [\"{facts}\"] }}\n"
    );
    rig.begin(&lines).await;
    let item = rig.until_state("lab", "running").await;
    let sandbox = item.sandbox.unwrap();
    assert!(sandbox.level == "standard" && sandbox.seccomp && !sandbox.own_uid, "{sandbox:?}");
    assert_eq!(
        (item.version.as_deref(), item.session_epoch.is_some(), item.restarts),
        (Some("1.2.3"), true, 0)
    );
    assert!(item.started_at.is_some() && item.last_error.is_none());
    let fact = |name| std::fs::read_to_string(rig.file("facts").join(name)).unwrap();
    let env = fact("env");
    let socket = format!("GATEPOST_SOCKET={}", rig.file("run/lab/gateway.sock").display());
    assert!(env.lines().any(|line| line == socket), "{env}");
    let allowed = ["GATEPOST_SOCKET", "LANG", "PATH", "TZ"];
    assert!(
        env.lines().all(|line| line.split_once('=').is_some_and(|(name, _)| allowed.contains(&name))),
        "{env}"
    );
    assert_eq!(fact("args"), format!("an argument|{python}|{worker}|"));
    assert_eq!(fact("stdin"), "/dev/null\n");
    assert_eq!(fact("group").trim(), item.pid.unwrap().to_string());
    let mode = std::fs::metadata(rig.file("run/lab")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let pid = item.pid.unwrap();
    rig.supervisor.stop().await;
    assert!(!alive(pid));
    assert!(!rig.file("run/lab/gateway.sock").exists());
    rig.stop().await;
}

#[tokio::test]
async fn r13_10_another_process_is_not_let_in_by_the_adapters_socket() {
    let rig = Rig::new(Deadlines::default()).await;
    rig.begin(&adapter("lab", &rig.script("lab", WORKS))).await;
    let epoch = rig.until_state("lab", "running").await.session_epoch;
    let mut stranger = UnixStream::connect(rig.file("run/lab/gateway.sock")).await.unwrap();
    // It may be refused before it has written anything.
    let _ = stranger.write_all(b"POST /v1/session HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
    let mut answer = String::new();
    stranger.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(rig.item("lab").unwrap().session_epoch, epoch, "it opened no session");
    rig.stop().await;
}

/// Asks for a connection, says what comes back, and sends something where it got one.
const ASKS: &str = r#"

def connect(to):
    with socket.socket(socket.AF_UNIX) as desk:
        desk.connect(os.path.join(os.path.dirname(os.environ["GATEPOST_SOCKET"]), "egress"))
        desk.sendall(to.encode() + b"\n")
        answer, fds, _, _ = socket.recv_fds(desk, 64, 1)
    return socket.socket(fileno=fds[0]) if fds else answer.decode().strip()
port, other = open(here + "/ports").read().split()
said = []
for to in ["127.0.0.1:" + port, "127.0.0.1:" + other, "127.0.0.2:" + port, "nonsense"]:
    got = connect(to)
    if isinstance(got, socket.socket):
        got.sendall(b"hello")
        got = "connected"
    said.append(got)
open(here + "/said.new", "w").write("\n".join(said))
os.rename(here + "/said.new", here + "/said")
open_session()
signal.pause()
"#;

#[tokio::test]
async fn an_adapter_is_connected_to_what_it_may_reach_and_to_nothing_else() {
    let rig = Rig::new(Deadlines::default()).await;
    let [partner, other] = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let [own, another] = [&partner, &other].map(|listener| listener.local_addr().unwrap().port());
    std::fs::write(rig.file("ports"), format!("{own} {another}")).unwrap();
    let program = rig.script("lab", ASKS);
    let allow = |port| format!("{}allow.connect = [\"127.0.0.1:{port}\"]\n", adapter("lab", &program));
    rig.begin(&allow(own)).await;
    let said = async || until("its answers", async || std::fs::read_to_string(rig.file("said")).ok()).await;
    let refused = "refused: not_allowed";
    assert_eq!(said().await, format!("connected\n{refused}\n{refused}\nrefused: malformed"));
    let mut hello = [0; 5];
    std::io::Read::read_exact(&mut partner.accept().unwrap().0, &mut hello).unwrap();
    assert_eq!(&hello, b"hello");

    // Another process of the same user.
    let mut stranger = UnixStream::connect(rig.file("run/lab/egress")).await.unwrap();
    let _ = stranger.write_all(format!("127.0.0.1:{own}\n").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer).await;
    assert!(answer.is_empty(), "{answer:?}");

    // Another configuration is another process, and what that may reach.
    std::fs::remove_file(rig.file("said")).unwrap();
    rig.apply(&allow(another)).await;
    assert_eq!(said().await, format!("{refused}\nconnected\n{refused}\nrefused: malformed"));
    rig.supervisor.stop().await;
    assert!(!rig.file("run/lab/egress").exists());
    rig.stop().await;
}

#[tokio::test]
async fn a_crash_loop_trips_the_destination_says_why_and_ends_by_itself() {
    let rig = Rig::new(SHORT).await;
    let body = "\
if not os.path.exists(here + '/mended'):
    sys.exit('it is \\x1b[31mbroken')
open_session()
signal.pause()
";
    rig.begin(&adapter("lab", &rig.script("lab", body))).await;
    let item = rig.until_state("lab", "tripped").await;
    assert_eq!(item.last_error.as_deref(), Some("exit status: 1: it is \\u{1b}[31mbroken"));
    until("the trip", async || rig.tripped("lab").await.filter(|&reason| reason == "crash_loop")).await;
    std::fs::write(rig.file("mended"), "").unwrap();
    let item = rig.until_state("lab", "running").await;
    assert!(item.restarts >= 5, "{item:?}");
    until("it is tripped no more", async || rig.tripped("lab").await.is_none().then_some(())).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_or_refuses_its_settings_trips_as_refused() {
    let rig = Rig::new(SHORT).await;
    let vanishing = rig.script("vanishing", WORKS);
    let refusing = rig.script("refusing", "print('settings: no such thing', file=sys.stderr); sys.exit(2)");
    let config =
        rig.put_in_force(&(adapter("vanishing", &vanishing) + &adapter("refusing", &refusing))).await;
    std::fs::remove_file(&vanishing).unwrap();
    rig.supervisor.begin(rig.sockets(), &config).await;
    let vanished = rig.until_state("vanishing", "tripped").await;
    assert!(vanished.last_error.unwrap().contains("is not an executable file"));
    let refused = rig.until_state("refusing", "tripped").await;
    assert_eq!(refused.last_error.as_deref(), Some("exit status: 2: settings: no such thing"));
    for name in ["vanishing", "refusing"] {
        until("the trip", async || rig.tripped(name).await.filter(|&reason| reason == "adapter_refused"))
            .await;
    }
    rig.stop().await;
}

#[tokio::test]
async fn an_adapter_that_does_not_stop_is_killed_with_what_it_started() {
    // Time enough to be asked.
    let rig = Rig::new(Deadlines { drain: Duration::from_secs(11), ..SHORT }).await;
    let body = "\
signal.signal(signal.SIGTERM, lambda *_: open(here + '/asked', 'w'))
child = os.fork()
if child == 0:
    while True: time.sleep(60)
open(here + '/child', 'w').write(str(child))
open_session()
while True: time.sleep(60)
";
    rig.begin(&adapter("lab", &rig.script("lab", body))).await;
    let pid = rig.until_state("lab", "running").await.pid.unwrap();
    let child = read_pid(&rig.file("child")).unwrap();
    assert!(alive(pid) && alive(child));
    timeout(HANG, rig.supervisor.stop()).await.unwrap();
    assert!(rig.file("asked").exists(), "it was asked first");
    assert!(!alive(pid));
    // The orphan is reaped by whoever adopts it, so a zombie of it may still be seen for a moment.
    until("the child's end", async || {
        let status = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        (status.is_empty() || status.contains(") Z ")).then_some(())
    })
    .await;
    rig.stop().await;
}

#[tokio::test]
async fn an_adapter_that_drains_is_given_the_time_and_served_meanwhile() {
    let rig = Rig::new(Deadlines::default()).await;
    let body = "\
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
open_session()
signal.sigwait({signal.SIGTERM})
open_session()
open(here + '/drained', 'w')
";
    rig.begin(&adapter("lab", &rig.script("lab", body))).await;
    rig.until_state("lab", "running").await;
    timeout(HANG, rig.supervisor.stop()).await.unwrap();
    assert!(rig.file("drained").exists());
    rig.stop().await;
}

#[tokio::test]
async fn a_reload_restarts_only_what_changed() {
    let rig = Rig::new(Deadlines::default()).await;
    let program = rig.script("adapter", WORKS);
    let (one, two) = (adapter("one", &program), adapter("two", &program));
    rig.begin(&(one.clone() + &two)).await;
    let pid_one = rig.until_state("one", "running").await.pid;
    let pid_two = rig.until_state("two", "running").await.pid;

    let changed = format!("{two}[adapters.two.settings]\nport = 7\n");
    rig.apply(&(one.clone() + &changed)).await;
    let new_two = until("two is new", async || {
        rig.item("two").filter(|item| item.state == "running" && item.pid != pid_two).map(|item| item.pid)
    })
    .await;
    assert_eq!(rig.item("one").unwrap().pid, pid_one);

    // What only the gateway looks at restarts nothing.
    let order = changed.replace("confirm", "order = \"key\"\nconfirm");
    rig.apply(&(one.clone() + &order)).await;
    rig.apply(&order).await;
    assert!(rig.item("one").is_none());
    until("one's end", async || (!alive(pid_one.unwrap())).then_some(())).await;
    rig.apply(&(one + &order)).await;
    let back = rig.until_state("one", "running").await;
    assert_ne!(back.pid, pid_one);
    assert_eq!(rig.item("two").unwrap().pid, new_two);
    rig.stop().await;
}

#[tokio::test]
async fn an_adapter_that_is_taken_out_and_put_back_at_once_has_one_process_at_a_time() {
    let rig = Rig::new(Deadlines::default()).await;
    let body = "\
os.mkdir(here + '/alone')
def end(*_):
    os.rmdir(here + '/alone')
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
open_session()
while True: signal.pause()
";
    let lab = adapter("lab", &rig.script("lab", body));
    rig.begin(&lab).await;
    let pid = rig.until_state("lab", "running").await.pid;
    rig.apply("").await;
    rig.apply(&lab).await;
    let item = rig.until_state("lab", "running").await;
    assert_ne!(item.pid, pid);
    assert_eq!(item.last_error, None, "the second would have failed beside the first");
    rig.stop().await;
}

#[tokio::test]
async fn an_operator_restarts_what_the_gateway_runs_and_nothing_else() {
    let rig = Rig::new(Deadlines::default()).await;
    let external = "[adapters.far]\nuser = \"root\"\n";
    rig.begin(&(adapter("lab", &rig.script("lab", WORKS)) + external)).await;
    let before = rig.until_state("lab", "running").await;
    rig.supervisor.restart("lab").unwrap();
    let after = until("a new process", async || {
        rig.item("lab").filter(|item| item.state == "running" && item.pid != before.pid)
    })
    .await;
    assert_eq!(after.restarts, 1);
    assert_eq!(after.last_error, None, "a stop is no failure");
    assert_eq!(rig.supervisor.restart("far"), Err(RestartError::External));
    assert_eq!(rig.supervisor.restart("nobody"), Err(RestartError::NotFound));
    assert_eq!(rig.item("far").unwrap().state, "external");
    rig.supervisor.session_opened("far", 9, None);
    assert_eq!(rig.item("far").unwrap().session_epoch, Some(9));
    rig.stop().await;
}

#[tokio::test]
async fn a_flood_of_output_blocks_nobody() {
    let rig = Rig::new(Deadlines::default()).await;
    let body = "\
for stream in (sys.stdout, sys.stderr):
    stream.write('x' * 10_000_000 + '\\n')
    stream.write('line\\n' * 200_000)
    stream.flush()
open_session()
sys.exit('the last word')
";
    rig.begin(&adapter("lab", &rig.script("lab", body))).await;
    let error = until("its end", async || rig.item("lab")?.last_error).await;
    assert_eq!(error, "exit status: 1: the last word");
    rig.stop().await;
}
