//! Unix sockets: the file, and who is at the other end.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    process::Stdio,
};

use tokio::net::UnixListener;

use super::*;
use crate::config::Serves::{Apps, Operators};
use crate::listen::credentials::Credentials;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

async fn bind_error(path: &Path) -> UnixBindError {
    match Listener::bind(&listen_unix(path, 0o600, Apps)).await {
        Err(ListenError::Unix(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_socket_has_its_mode_and_group_and_its_directory_too() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run/gatepost/app.sock");
    let group = nix::unistd::getegid().as_raw();
    let at = UnixListen { path: path.clone(), mode: 0o660, group: Some(group) };
    let listen = config::Listen { serves: Apps, at: config::ListenAt::Unix(at) };

    let listener = Listener::bind(&listen).await.unwrap();
    assert_eq!(listener.path(), Some(path.as_path()));
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!((mode(&path), found.gid()), (0o660, group));
    let directory = path.parent().unwrap();
    assert_eq!((mode(directory), fs::metadata(directory).unwrap().gid()), (0o750, group));
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "the temporary name is gone");

    drop(listener);
    assert!(!path.exists(), "the socket is removed");
}

#[tokio::test]
async fn a_directory_that_others_may_write_to_is_refused() {
    let root = tempfile::tempdir().unwrap();
    for (case, expected) in [(0o770, false), (0o707, false), (0o777, false), (0o1777, true), (0o755, true)] {
        let directory = root.path().join(format!("{case:o}"));
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, case);
        let bound = Listener::bind(&listen_unix(&directory.join("s"), 0o600, Apps)).await;
        assert_eq!(bound.is_ok(), expected, "{case:o}: {bound:?}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), usize::from(expected), "{case:o}");
    }

    let open = root.path().join("777/private/s");
    fs::create_dir(open.parent().unwrap()).unwrap();
    assert!(
        matches!(bind_error(&open).await, UnixBindError::UnsafeDirectory { .. }),
        "its parent can be replaced"
    );
}

#[tokio::test]
async fn a_directory_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        return skipped("needs root");
    }
    let root = tempfile::tempdir().unwrap();
    chown(root.path(), Some(65_001), None).unwrap();
    assert!(matches!(bind_error(&root.path().join("s")).await, UnixBindError::UnsafeDirectory { .. }));
}

#[tokio::test]
async fn only_a_dead_socket_of_ours_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s");

    let live = Listener::bind(&listen_unix(&path, 0o600, Apps)).await.unwrap();
    assert!(matches!(bind_error(&path).await, UnixBindError::InUse { .. }));
    drop(live);

    // Rust does not remove the file of a plain listener: that is a gateway killed before it could.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Listener::bind(&listen_unix(&path, 0o600, Apps)).await.unwrap());

    fs::write(&path, "precious").unwrap();
    assert!(matches!(bind_error(&path).await, UnixBindError::Foreign { .. }));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    fs::remove_file(&path).unwrap();

    symlink(root.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(bind_error(&path).await, UnixBindError::Foreign { .. }));
    assert!(!root.path().join("elsewhere").exists(), "a link is not followed");
    fs::remove_file(&path).unwrap();

    if nix::unistd::geteuid().is_root() {
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        chown(&path, Some(65_001), None).unwrap();
        assert!(matches!(bind_error(&path).await, UnixBindError::Foreign { .. }));
    }
    assert!(fs::read_dir(root.path()).unwrap().count() <= 1, "nothing temporary is left behind");
}

#[tokio::test]
async fn another_file_under_the_sockets_name_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s");
    let listener = Listener::bind(&listen_unix(&path, 0o600, Apps)).await.unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "somebody else's").unwrap();
    drop(listener);
    assert_eq!(fs::read_to_string(&path).unwrap(), "somebody else's");
}

#[tokio::test]
async fn abstract_relative_and_long_names_are_refused() {
    for path in ["@gatepost", "\0gatepost", "run/app.sock", "/", "/tmp/.."] {
        assert!(matches!(bind_error(Path::new(path)).await, UnixBindError::NotAbsolute { .. }), "{path:?}");
    }
    let long = PathBuf::from(format!("/{}", "x".repeat(107)));
    assert!(matches!(bind_error(&long).await, UnixBindError::TooLong { excess: 1, .. }));
    // The name fits, but not the longer one under which the socket is prepared.
    let tight = PathBuf::from(format!("/{}/s", "x".repeat(104)));
    assert!(matches!(bind_error(&tight).await, UnixBindError::TooLong { excess: 11, .. }));
}

#[tokio::test]
async fn the_handler_sees_whom_the_kernel_saw() {
    let mut rig = Rig::new(Gate::of_this_user(), Limits::default());
    let path = rig.serve_unix("app.sock", Apps).await;
    let answer = get_unix(&path, "/who").await;
    assert_eq!(answer.status, 200);
    let (uid, pid) = (nix::unistd::geteuid().as_raw(), std::process::id());
    assert!(answer.body.starts_with(&format!("apps Some({uid}) ")), "{}", answer.body);
    assert!(answer.body.ends_with(&format!("Some({pid})")), "{}", answer.body);

    let admin = rig.serve_unix("admin.sock", Operators).await;
    assert!(get_unix(&admin, "/who").await.body.starts_with("operators "));
    rig.stop().await;
    assert_eq!((rig.counters.accepted(), rig.counters.open()), (2, 0));
    assert!(rig.refusals().is_empty());
    assert!(!path.exists() && !admin.exists(), "the sockets are removed");
}

#[tokio::test]
async fn r13_15_a_peer_that_nobody_knows_gets_a_fixed_401_before_it_has_sent_anything() {
    let other = nix::unistd::geteuid().as_raw() + 1;
    let mut rig = Rig::new(Gate { uids: vec![other], ..Gate::default() }, Limits::default());
    let path = rig.serve_unix("app.sock", Apps).await;

    let mut silent = UnixStream::connect(&path).await.unwrap();
    let answer = parse(&read_to_close(&mut silent).await);
    assert_eq!(answer.status, 401);
    assert!(answer.body.contains(r#""code":"unauthenticated""#), "{}", answer.body);
    assert_eq!(get_unix(&path, "/who").await.status, 401);
    // Not even a parser's complaint: the answer to nonsense is the same.
    let mut nonsense = UnixStream::connect(&path).await.unwrap();
    let _ = nonsense.write_all(&[0xff; 4096]).await;
    assert_eq!(parse(&read_to_close(&mut nonsense).await).status, 401);

    assert_eq!(rig.refusal_codes(), [RefusalCode::UnknownPeer; 3]);
    assert_eq!(rig.counters.refused(RefusalCode::UnknownPeer), 3);
    let refusal = &rig.refusals()[0];
    assert_eq!(refusal.facts.as_ref().and_then(|facts| facts.uid), Some(nix::unistd::geteuid().as_raw()));
    assert_eq!(refusal.serves, Serves::Apps);
    rig.stop().await;
}

#[tokio::test]
async fn another_user_is_that_user_with_its_groups() {
    if !can_be_another_user() {
        return;
    }
    let mut rig = Rig::new(Gate { uids: vec![65_001], ..Gate::default() }, Limits::default());
    set_mode(rig.directory.path(), 0o755);
    let path = rig.directory.path().join("app.sock");
    rig.serve(Listener::bind(&listen_unix(&path, 0o666, Apps)).await.unwrap());

    let answer = curl_as(65_001, 65_010, &path, "/who").await;
    assert!(answer.body.starts_with("apps Some(65001) [65010] None "), "{}", answer.body);
    assert_eq!(
        curl_as(65_002, 65_010, &path, "/who").await.status,
        401,
        "the groups are right, the user is not"
    );
    assert_eq!(curl_as(65_534, 65_010, &path, "/who").await.status, 401);
    assert_eq!(rig.refusal_codes(), [RefusalCode::UnknownPeer, RefusalCode::UnmappedUser]);
    rig.stop().await;
}

#[tokio::test]
async fn a_peer_that_ended_before_it_was_examined_is_nobody() {
    if !have("curl") {
        return skipped("needs curl");
    }
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = tokio::process::Command::new("curl")
        .args(["--silent", "--unix-socket"])
        .arg(&path)
        .arg("http://x/")
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let credentials = Credentials::of(&stream).unwrap();
    let facts = credentials.facts(&stream, Wanted::default()).expect("it lives");
    assert_eq!(facts.uid, Some(nix::unistd::geteuid().as_raw()));
    child.kill().await.unwrap();
    assert_eq!(credentials.facts(&stream, Wanted::default()).unwrap_err(), RefusalCode::PeerGone);
}

#[tokio::test]
async fn r13_10_an_adapters_socket_lets_in_its_process_only_and_only_while_it_runs() {
    let mut rig = Rig::new(Gate::default(), Limits::default());
    let (child, expected) = watch::channel(None);
    let directory = rig.directory.path().join("adapters");
    let listener = bind_adapter_sockets(&directory, "lab", None, expected).await.unwrap().gateway;
    let path = listener.path().unwrap().to_owned();
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
    rig.serve(listener);

    // Connected before the supervisor has said who its child is.
    let early = tokio::spawn({
        let path = path.clone();
        async move { get_unix(&path, "/who").await }
    });
    until("the early connection", || rig.counters.open() == 1).await;
    child.send_replace(Some(std::process::id()));
    let answer = early.await.unwrap();
    assert!(answer.body.starts_with("lab "), "{}", answer.body);

    let mut open = UnixStream::connect(&path).await.unwrap();
    open.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    rig.held.notified().await;
    child.send_replace(Some(1));
    assert!(read_to_close(&mut open).await.is_empty(), "cut when its process is no longer the child");

    assert_eq!(get_unix(&path, "/who").await.status, 401);
    child.send_replace(None);
    assert_eq!(get_unix(&path, "/who").await.status, 401, "no child runs");
    assert_eq!(rig.refusal_codes(), [RefusalCode::NotTheAdapter; 2]);
    rig.stop().await;
}

#[tokio::test]
async fn an_adapters_way_out_is_open_to_its_process_only_and_only_while_it_lives() {
    if !have("curl") {
        return skipped("needs curl");
    }
    let rig = Rig::new(Gate::default(), Limits::default());
    let (child, expected) = watch::channel(None);
    let directory = rig.directory.path().join("adapters");
    let egress = bind_adapter_sockets(&directory, "lab", None, expected).await.unwrap().egress;
    let mut process = tokio::process::Command::new("curl")
        .args(["--silent", "http://x/", "--unix-socket"])
        .arg(directory.join("lab/egress"))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let stream = egress.accept().await.unwrap();
    let is_let_in = |expected| {
        child.send_replace(expected);
        egress.is_from_the_adapter(&rig.server, &stream)
    };
    let own = process.id();
    assert_eq!(
        [own, None, Some(std::process::id()), Some(1), own].map(is_let_in),
        [true, false, false, false, true]
    );
    process.kill().await.unwrap();
    assert!(!is_let_in(own), "it is gone, and its number may be another's");
    let codes = [RefusalCode::NotTheAdapter, RefusalCode::NotTheAdapter, RefusalCode::NotTheAdapter];
    assert_eq!(rig.refusal_codes(), [&codes[..], &[RefusalCode::PeerGone]].concat());
}

#[tokio::test]
async fn an_adapters_directory_is_private() {
    let root = tempfile::tempdir().unwrap();
    let (_child, expected) = watch::channel(None);
    fs::create_dir(root.path().join("lab")).unwrap();
    set_mode(&root.path().join("lab"), 0o750);
    for name in ["lab", "..", "a/b", "/etc", ""] {
        let bound = bind_adapter_sockets(root.path(), name, None, expected.clone()).await;
        assert!(matches!(bound, Err(UnixBindError::UnsafeDirectory { .. })), "{name:?}: {bound:?}");
    }
}

/// A socket as systemd would have bound it.
fn bound_elsewhere(path: &Path, mode: u32) -> Passed {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    Passed::of(listener)
}

#[tokio::test]
async fn a_socket_that_is_passed_serves_and_stays_when_the_gateway_is_gone() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("app.sock");
    let mut passed = bound_elsewhere(&path, 0o600);
    let inode = fs::metadata(&path).unwrap().ino();
    let listener = Listener::open(&listen_unix(&path, 0o600, Apps), &mut passed).await.unwrap();
    passed.all_taken().unwrap();
    assert_eq!(listener.path(), Some(path.as_path()));
    drop(listener);
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "it belongs to whoever made it");
}

#[tokio::test]
async fn a_passed_socket_that_lets_in_more_than_the_configuration_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    for (mode, configured, why) in [
        (0o666, 0o600, "its mode is 0666"),
        (0o660, 0o600, "its mode is 0660"),
        (0o660, 0o660, "lets a group in"),
    ] {
        let path = scratch.path().join("app.sock");
        let mut passed = bound_elsewhere(&path, mode);
        let refused = Listener::open(&listen_unix(&path, configured, Apps), &mut passed).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains(why), "{mode:o}: {refused}");
        fs::remove_file(&path).unwrap();
    }
    let open = scratch.path().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let path = open.join("app.sock");
    let mut passed = bound_elsewhere(&path, 0o600);
    let refused = Listener::open(&listen_unix(&path, 0o600, Apps), &mut passed).await.unwrap_err();
    assert!(refused.to_string().contains("may write to it"), "{refused}");
}
