//! What adapters ask their gateway for, beside their socket: files, and what the log says of refusals.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::sync::Mutex;

use super::*;

/// Asks for each line of `ask` as soon as there is such a file, and says what came back: the content, or why there is none.
const ASKS: &str = r#"
def ask(for_what):
    with socket.socket(socket.AF_UNIX) as desk:
        desk.connect(os.path.join(os.path.dirname(os.environ["GATEPOST_SOCKET"]), "egress"))
        desk.sendall(for_what.encode() + b"\n")
        answer, fds, _, _ = socket.recv_fds(desk, 64, 1)
    return open(fds[0]).read() if fds else answer.decode().strip()
open_session()
while True:
    try:
        os.rename(here + "/ask", here + "/asked")
    except FileNotFoundError:
        time.sleep(0.01)
        continue
    said = [ask(line) for line in open(here + "/asked").read().splitlines()]
    open(here + "/said.new", "w").write("\n".join(said))
    os.rename(here + "/said.new", here + "/said")
"#;

impl Rig {
    async fn ask(&self, lines: &str) -> String {
        std::fs::write(self.file("ask.new"), lines).unwrap();
        std::fs::rename(self.file("ask.new"), self.file("ask")).unwrap();
        let said = until("its answers", async || std::fs::read_to_string(self.file("said")).ok()).await;
        std::fs::remove_file(self.file("said")).unwrap();
        said
    }
}

fn adapter(name: &str, program: &str, allow: &str) -> String {
    format!("[adapters.{name}]\nrun = [\"{program}\"]\nconfirm = \"sent\"\n{allow}\n")
}

#[tokio::test]
async fn no_file_is_opened_that_another_adapter_may_have_put_there() {
    let rig = Rig::new(Deadlines::default()).await;
    let (certs, cert) = (rig.file("certs"), rig.file("certs/cert.pem"));
    std::fs::create_dir(&certs).unwrap();
    std::fs::write(rig.file("secret"), "what the gateway may read").unwrap();
    symlink(rig.file("secret"), &cert).unwrap();
    let lab = adapter("lab", &rig.script("lab", ASKS), &format!("allow.read = [{cert:?}]"));
    let other = adapter("other", &rig.script("other", WORKS), &format!("allow.write = [{certs:?}]"));
    rig.begin(&lab).await;
    let asked = cert.display().to_string();
    assert_eq!(rig.ask(&asked).await, "what the gateway may read", "an operator has put it there");
    rig.apply(&(lab.clone() + &other)).await;
    assert_eq!(rig.ask(&asked).await, "failed: not_opened");
    assert_eq!(rig.item("lab").unwrap().restarts, 0, "the process that runs is told so too");
    rig.stop().await;
}

/// The log, of the thread that has it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_tells_of_refused_files_and_of_refused_connections_once_a_minute_each() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    // All tasks run on this thread.
    let _told = tracing::subscriber::set_default(subscriber);
    let rig = Rig::new(Deadlines::default()).await;
    rig.begin(&adapter("lab", &rig.script("lab", ASKS), "")).await;
    let refused = rig.ask("/etc/one\n/etc/two\n127.0.0.1:1\n/etc/three\n127.0.0.1:2").await;
    assert_eq!(refused, ["refused: not_allowed"; 5].join("\n"));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let told: Vec<&str> = text.lines().filter(|line| line.contains("that it may not have")).collect();
    let [file, connection] = told[..] else { panic!("{text}") };
    assert!(file.contains("asked for a file") && file.contains("/etc/one"), "{file}");
    assert!(
        connection.contains("asked for a connection") && connection.contains("127.0.0.1:1"),
        "{connection}"
    );
    rig.stop().await;
}
