//! Requests that no gateway makes, and a configuration that changes.

use super::*;
use crate::listen::tests::skipped;

const ADAPTERS: &str = r#"
[adapters.theirs]
run = "/bin/true"
run_as = "61241"
[adapters.ours]
run = "/bin/true"
[adapters.external]
user = "61242"
"#;

/// With the configuration as a gateway of user 61240 has it.
fn spawner(directory: &Path) -> Spawner {
    write(directory, "");
    let file = directory.join("gatepost.toml");
    Spawner::new(&Settings { parent: 0, user: 61_240, config: file, safety: Safety::Required }).unwrap()
}

fn write(directory: &Path, more: &str) {
    let text = format!(
        "[gateway]\nuser = \"61240\"\ndata_dir = \"{0}/data\"\n[[listen]]\nserves = \"adapters\"\n\
             unix = \"{0}/sockets/adapters.sock\"\n{ADAPTERS}{more}",
        directory.display()
    );
    std::fs::write(directory.join("gatepost.toml"), text).unwrap();
}

fn digest(spawner: &Spawner) -> String {
    spawner.configs.borrow().in_force.digest.clone()
}

/// Why it is refused; it must be.
async fn refused(spawner: &Spawner, ask: Ask) -> String {
    match spawner.answer(ask).await {
        Ok((answer, _)) => panic!("{answer:?}"),
        Err(why) => why,
    }
}

fn start(adapter: &str, digest: &str, task: Task) -> Ask {
    let (adapter, config) = (adapter.to_owned().try_into().unwrap(), digest.to_owned().try_into().unwrap());
    Ask::Start { adapter, config, task }
}

fn is_root() -> bool {
    if !geteuid().is_root() {
        skipped("only root reads root's configuration as its own");
    }
    geteuid().is_root()
}

#[tokio::test]
async fn r5_what_the_configuration_does_not_say_is_not_done() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spawner = spawner(directory.path());
    let now = digest(&spawner);
    for (adapter, why) in
        [("nobody", "no such adapter"), ("ours", "no user of its own"), ("external", "no program")]
    {
        let asked = refused(&spawner, start(adapter, &now, Task::Manifest)).await;
        assert!(asked.contains(why), "{adapter}: {asked}");
        let (name, config) = (adapter.to_owned().try_into().unwrap(), now.clone().try_into().unwrap());
        let asked = refused(&spawner, Ask::Listen { adapter: name, config }).await;
        assert!(asked.contains(why), "{adapter}: {asked}");
    }
    assert!(refused(&spawner, start("theirs", &now, Task::Work)).await.contains("no socket yet"));
    let other = "0".repeat(64);
    assert!(refused(&spawner, start("theirs", &other, Task::Manifest)).await.contains("has changed"));
    // A process that it has not started, be there one of that number or not.
    for process in [0, 1, u64::from(std::process::id()), u64::MAX] {
        for ask in [Ask::Terminate { process }, Ask::Kill { process }, Ask::Reap { process }] {
            assert_eq!(refused(&spawner, ask).await, NO_SUCH_PROCESS);
        }
    }
    assert!(spawner.processes.borrow().is_empty() && spawner.sockets.borrow().is_empty());
}

#[tokio::test]
async fn r5_a_changed_configuration_is_read_anew_and_only_as_root_wrote_it() {
    use std::os::unix::fs::chown;
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spawner = spawner(directory.path());
    let was = digest(&spawner);
    let added = "[adapters.more]\nrun = \"/bin/true\"\nrun_as = \"61243\"\n";
    write(directory.path(), added);
    let file = directory.path().join("gatepost.toml");
    let will = Config::load(Some(&file)).unwrap().digest;
    chown(&file, Some(61_240), None).unwrap();
    let why = refused(&spawner, start("more", &will, Task::Work)).await;
    assert!(why.contains("does not belong to root"), "{why}");
    chown(&file, Some(0), None).unwrap();
    // Known from here on, and not in force before something works by it.
    assert!(refused(&spawner, start("more", &will, Task::Work)).await.contains("no socket yet"));
    assert_eq!(digest(&spawner), was);
    std::fs::write(&file, "nonsense").unwrap();
    assert!(refused(&spawner, start("theirs", &was, Task::Work)).await.contains("no socket yet"));
    assert!(refused(&spawner, start("more", &was, Task::Work)).await.contains("no such adapter"));
    assert!(refused(&spawner, start("theirs", &"0".repeat(64), Task::Work)).await.contains("not TOML"));
    // Another user of the gateway's is another gateway's file.
    write(directory.path(), "");
    let text = std::fs::read_to_string(&file).unwrap().replace("61240", "61250");
    std::fs::write(&file, text).unwrap();
    let other = refused(&spawner, start("theirs", &"1".repeat(64), Task::Work)).await;
    assert!(other.contains("names another user"), "{other}");
}

#[tokio::test]
async fn r5_whoever_speaks_nonsense_is_not_listened_to_any_more() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let spawner = spawner(directory.path());
    for bytes in [&b"{}"[..], b"\0", &[b' '; 4096], br#"{"id":1,"ask":{"exec":{"program":"/bin/sh"}}}"#] {
        let (gateway, end) = Link::pair().unwrap();
        send(gateway.as_fd(), bytes, &[]).unwrap();
        let ended = spawner.attend(&Link::new(end).unwrap()).await;
        assert!(matches!(ended, Ended::Nonsense), "{ended:?}");
    }
    let (gateway, end) = Link::pair().unwrap();
    drop(gateway);
    assert!(matches!(spawner.attend(&Link::new(end).unwrap()).await, Ended::Gone));
}
