//! More connections than the gateway bears.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::config::Serves::{Apps, Operators};
use crate::spaced::Spacing;

const FLOOD: usize = 2_000;
const KNOCKS: usize = 400;

#[tokio::test]
async fn two_thousand_silent_connections_of_one_user_shut_nobody_else_out() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16_384), hard).unwrap();
    let us = nix::unistd::geteuid().as_raw();
    // Longer than it takes to make all of them, and to look.
    let limits = Limits { head: HANG / 2, ..Limits::default() };
    let mut rig = Rig::new(Gate { uids: vec![us, 65_001], ..Gate::default() }, limits.clone());
    fs::set_permissions(rig.directory.path(), Permissions::from_mode(0o755)).unwrap();
    let apps = rig.directory.path().join("app.sock");
    rig.serve(Listener::bind(&listen_unix(&apps, 0o666, Apps)).await.unwrap());
    let operators = rig.serve_unix("admin.sock", Operators).await;

    let mut flood = Vec::with_capacity(FLOOD);
    for _ in 0..FLOOD {
        flood.push(UnixStream::connect(&apps).await.unwrap());
    }
    // While they hang, another socket serves the same user, and the same socket serves another user.
    assert_eq!(get_unix(&operators, "/who").await.status, 200);
    if can_be_another_user() {
        assert_eq!(curl_as(65_001, 65_001, &apps, "/who").await.status, 200);
    }
    let refused = || rig.counters.refused(RefusalCode::PeerLimit);
    until("all but few were refused", || refused() >= (FLOOD - limits.connections_per_peer) as u64).await;
    assert!(
        rig.refusals().iter().all(|refusal| refusal.facts.as_ref().and_then(|facts| facts.uid) == Some(us))
    );

    // The silent ones lose their places by themselves.
    until("the cut of the silent ones", || rig.counters.open() == 0).await;
    assert_eq!(get_unix(&apps, "/who").await.status, 200);
    drop(flood);
    rig.stop().await;
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_and_closed() {
    let mut rig = Rig::new(Gate::of_this_user(), Limits { connections_per_peer: 1, ..Limits::default() });
    let path = rig.serve_unix("app.sock", Apps).await;
    let first = UnixStream::connect(&path).await.unwrap();
    let mut second = UnixStream::connect(&path).await.unwrap();
    assert_eq!(parse(&read_to_close(&mut second).await).status, 429);
    drop(first);
    until("the place", || rig.counters.open() == 0).await;
    assert_eq!(get_unix(&path, "/who").await.status, 200);
    rig.stop().await;
}

/// In a process of its own: the lack of descriptors would hit the other tests.
#[test]
fn a_lack_of_descriptors_is_survived() {
    let inner = "listen::tests::pressure::without_descriptors";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", inner, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

#[tokio::test]
#[ignore = "run by a_lack_of_descriptors_is_survived"]
async fn without_descriptors() {
    let mut rig = Rig::new(Gate::of_this_user(), Limits::default());
    let path = rig.serve_unix("app.sock", Apps).await;
    assert_eq!(get_unix(&path, "/who").await.status, 200);
    until("the close", || rig.counters.open() == 0).await;

    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
    let mut hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    hoard.pop();
    let mut waiting = UnixStream::connect(&path).await.unwrap();
    until("a failed accept", || rig.counters.accept_errors() > 1).await;
    // It pauses ever longer, and does not try over and over.
    tokio::time::sleep(A_WHILE).await;
    assert!(rig.counters.accept_errors() < 50, "{} in half a second", rig.counters.accept_errors());
    // Enough to accept, not enough to look: that is our trouble, not an unknown peer.
    hoard.pop();
    assert_eq!(get_and_close(&mut waiting, "/who").await.status, 429);
    assert_eq!(rig.refusal_codes(), [RefusalCode::Exhausted]);
    drop(hoard);
    assert_eq!(get_unix(&path, "/who").await.status, 200);
    rig.stop().await;
}

#[tokio::test]
async fn a_principals_own_connections_are_bounded_over_all_sockets_and_given_back() {
    let mut rig = Rig::new(Gate { connections: Some(3), ..Gate::of_this_user() }, Limits::default());
    let one = rig.serve_unix("one.sock", config::Serves::Apps).await;
    let other = rig.serve_unix("other.sock", config::Serves::Apps).await;
    let mut held = Vec::new();
    for socket in [&one, &one, &other] {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        held.push(stream);
    }
    for socket in [&one, &other] {
        let answer = get_unix(socket, "/who").await;
        assert_eq!(answer.status, 429);
        assert!(answer.body.contains("too_many_requests"), "{}", answer.body);
    }
    assert_eq!(rig.refusal_codes(), [RefusalCode::PrincipalLimit; 2]);
    held.pop();
    until("it is given back", || rig.counters.open() == 2).await;
    assert_eq!(get_unix(&one, "/who").await.status, 200);
    rig.stop().await;
}

/// The first at once, and all others hours later.
pub(super) const HOURS: Spacing =
    Spacing { interval: Duration::from_secs(3_600), prompt: 1, wait_max: Duration::from_secs(3_600) };
/// More than anything here takes that nothing holds up.
pub(super) const A_WHILE: Duration = Duration::from_millis(500);

#[tokio::test]
async fn who_is_turned_away_over_and_over_is_told_later_and_keeps_nobody_from_a_place() {
    let limits = Limits { connections_per_peer: 1, turned_away: HOURS, ..Limits::default() };
    let mut rig = Rig::new(Gate::of_this_user(), limits);
    let path = rig.serve_unix("app.sock", Apps).await;
    let first = UnixStream::connect(&path).await.unwrap();
    until("the place", || rig.counters.open() == 1).await;
    let mut at_once = UnixStream::connect(&path).await.unwrap();
    assert_eq!(parse(&read_to_close(&mut at_once).await).status, 429);
    let mut flood = Vec::with_capacity(KNOCKS);
    for _ in 0..KNOCKS {
        flood.push(UnixStream::connect(&path).await.unwrap());
    }
    // All are counted, and those that wait have no place.
    until("the refusals", || rig.counters.refused(RefusalCode::PeerLimit) == KNOCKS as u64 + 1).await;
    assert!(timeout(A_WHILE, flood[0].read(&mut [0; 1])).await.is_err(), "it is told later");
    let closed = flood.pop().as_mut().map(read_to_close).unwrap().await;
    assert_eq!(parse(&closed).status, 429, "only so many wait to be told");
    drop(first);
    until("the place is free", || rig.counters.open() == 0).await;
    assert_eq!(get_unix(&path, "/who").await.status, 200);
    rig.stop().await;
    for mut stream in flood {
        assert_eq!(parse(&read_to_close(&mut stream).await).status, 429, "told in the end, each of them");
    }
}

#[tokio::test]
async fn who_connects_over_and_over_is_listened_to_later() {
    let mut rig = Rig::new(Gate::of_this_user(), Limits { arrivals: HOURS, ..Limits::default() });
    let (path, other) = (rig.serve_unix("app.sock", Apps).await, rig.serve_unix("other.sock", Apps).await);
    assert_eq!(get_unix(&path, "/who").await.status, 200);
    let mut later = UnixStream::connect(&path).await.unwrap();
    later.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert!(timeout(A_WHILE, later.read(&mut [0; 1])).await.is_err(), "nothing of it is answered yet");
    until("only it is there, and has its place", || rig.counters.open() == 1).await;
    assert_eq!(get_unix(&other, "/who").await.status, 200, "another socket counts anew");
    rig.stop().await;
}

async fn what_follows(bytes: &[u8], within: Duration) -> Option<u16> {
    let mut rig = Rig::new(Gate::of_this_user(), Limits { in_vain: HOURS, ..Limits::default() });
    let path = rig.serve_unix("app.sock", Apps).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    read_to_close(&mut stream).await;
    until("its end", || rig.counters.open() == 0).await;
    // A wait would be for an hour.
    let answer = timeout(within, get_unix(&path, "/who")).await.ok().map(|answer| answer.status);
    rig.stop().await;
    answer
}

#[tokio::test]
async fn who_connects_in_vain_over_and_over_is_listened_to_later() {
    for in_vain in [b"".as_slice(), b"\x16\x03\x01", b"GET /who SMTP/9\r\n\r\n", b"GET /who HTTP/1.1\r\nho"] {
        assert_eq!(what_follows(in_vain, A_WHILE).await, None, "{}", in_vain.escape_ascii());
    }
    let answered = what_follows(b"GET /none HTTP/1.1\r\nhost: x\r\n\r\n", HANG).await;
    assert_eq!(answered, Some(200), "it was a request");
}

/// Apps of one user share much, but not that.
#[tokio::test]
async fn who_connects_in_vain_waits_and_another_process_of_its_user_does_not() {
    if !have("curl") {
        return skipped("needs curl");
    }
    let mut rig = Rig::new(Gate::of_this_user(), Limits { in_vain: HOURS, ..Limits::default() });
    let path = rig.serve_unix("app.sock", Apps).await;
    drop(UnixStream::connect(&path).await.unwrap());
    until("it was seen, and has ended", || rig.counters.accepted() == 1 && rig.counters.open() == 0).await;
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--include", "--max-time", "60", "--unix-socket"])
        .arg(&path)
        .arg("http://x/who")
        .output()
        .await
        .unwrap();
    assert_eq!(parse(&output.stdout).status, 200);
    assert!(timeout(A_WHILE, get_unix(&path, "/who")).await.is_err(), "its own next one waits");
    rig.stop().await;
}

#[tokio::test]
async fn a_stranger_who_connects_over_and_over_is_refused_later() {
    let mut rig = Rig::new(Gate::default(), Limits { arrivals: HOURS, ..Limits::default() });
    let path = rig.serve_unix("app.sock", Apps).await;
    assert_eq!(get_unix(&path, "/who").await.status, 401);
    let mut later = UnixStream::connect(&path).await.unwrap();
    assert!(timeout(A_WHILE, later.read(&mut [0; 1])).await.is_err(), "it is told later");
    rig.stop().await;
    assert_eq!(parse(&read_to_close(&mut later).await).status, 401, "told in the end");
}
