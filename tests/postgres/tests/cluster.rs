//! Clusters do what tests will rely on: they keep what they acknowledged, and leave nothing behind.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use gatepost_postgres::{Cluster, fresh_database, shared, skipped};
use nix::unistd::Pid;

const WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
const DATABASE: &str = "postgres";
/// Makes [`holder`] hold a cluster until it is killed.
const HOLD: &str = "GATEPOST_POSTGRES_HOLD";

/// A cluster; `None`, and a skip, where there is no PostgreSQL.
#[track_caller]
fn unless_missing<T>(started: io::Result<T>) -> Option<T> {
    match started {
        Ok(cluster) => Some(cluster),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skipped(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn until(what: &str, mut probe: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT;
    while !probe() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(POLL);
    }
}

/// Where its socket is.
fn dir(cluster: &Cluster) -> PathBuf {
    cluster.query(DATABASE, "SHOW unix_socket_directories").unwrap().into()
}

/// Neither a process nor a file. Ended processes may wait for their parent still.
fn nothing_left(processes: &[Pid], dir: &Path) -> bool {
    let ended = |process: &Pid| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    };
    processes.iter().all(ended) && !dir.exists()
}

#[test]
fn a_cluster_syncs_what_it_commits_and_is_gone_when_dropped() {
    let Some(cluster) = unless_missing(Cluster::start(&[("work_mem", "7MB")])) else { return };
    let shows = |name: &str| cluster.query(DATABASE, &format!("SHOW {name}")).unwrap();
    for (name, value) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
        ("lc_collate", "C"),
        ("work_mem", "7MB"),
    ] {
        assert_eq!(shows(name), value, "{name}");
    }
    assert!(cluster.query(DATABASE, "SELECT nonsense").unwrap_err().to_string().contains("nonsense"));
    let (processes, dir) = (cluster.processes(), dir(&cluster));
    assert!(processes.len() > 4 && dir.exists(), "{processes:?}");
    drop(cluster);
    assert!(nothing_left(&processes, &dir));
}

#[test]
fn a_crash_keeps_what_was_committed_and_a_stop_too() {
    let Some(mut cluster) = unless_missing(Cluster::start(&[])) else { return };
    let url = cluster.url(DATABASE);
    cluster.query(DATABASE, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)").unwrap();
    let before = cluster.processes();
    cluster.kill().unwrap();
    assert!(cluster.query(DATABASE, "SELECT 1").is_err());
    cluster.start_again().unwrap();
    assert!(cluster.log().contains("automatic recovery in progress"));
    assert_eq!(cluster.query(DATABASE, "SELECT n FROM t").unwrap(), "1");
    assert!(before.iter().all(|process| !cluster.processes().contains(process)));
    cluster.query(DATABASE, "INSERT INTO t VALUES (2)").unwrap();
    cluster.stop_fast().unwrap();
    assert_eq!(cluster.processes(), []);
    cluster.start_again().unwrap();
    assert!(cluster.start_again().is_err());
    assert_eq!(cluster.query(DATABASE, "SELECT n FROM t ORDER BY n").unwrap(), "1\n2");
    assert_eq!(cluster.url(DATABASE), url);
}

#[test]
fn a_promoted_standby_has_what_its_primary_acknowledged() {
    let Some(mut primary) = unless_missing(Cluster::start(&[])) else { return };
    primary.query(DATABASE, "CREATE TABLE t (n int)").unwrap();
    let mut standby = primary.standby("second-one", &[("work_mem", "9MB")]).unwrap();
    primary.configure(&[("synchronous_standby_names", "\"second-one\"")]).unwrap();
    assert_eq!(standby.query(DATABASE, "SHOW work_mem").unwrap(), "9MB");
    primary.query(DATABASE, "INSERT INTO t VALUES (1)").unwrap();
    standby.pause().unwrap();
    let mut waiting = primary.psql(DATABASE).args(["--command", "INSERT INTO t VALUES (2)"]).spawn().unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    until("the commit waits for the standby", || primary.query(DATABASE, waits).unwrap() == "1");
    assert!(waiting.try_wait().unwrap().is_none());
    standby.resume().unwrap();
    assert!(waiting.wait().unwrap().success());
    primary.kill().unwrap();
    standby.promote().unwrap();
    standby.query(DATABASE, "INSERT INTO t VALUES (3)").unwrap();
    assert_eq!(standby.query(DATABASE, "SELECT n FROM t ORDER BY n").unwrap(), "1\n2\n3");
}

#[test]
fn a_paused_cluster_answers_later_and_is_killed_all_the_same() {
    let Some(mut cluster) = unless_missing(Cluster::start(&[])) else { return };
    cluster.pause().unwrap();
    let mut asking = cluster.psql(DATABASE);
    let asking = asking.args(["--command", "SELECT 1"]).stdout(Stdio::piped()).spawn().unwrap();
    cluster.resume().unwrap();
    assert_eq!(asking.wait_with_output().unwrap().stdout, b"1\n");
    let processes = cluster.processes();
    cluster.pause().unwrap();
    cluster.kill().unwrap();
    cluster.start_again().unwrap();
    let dir = dir(&cluster);
    cluster.pause().unwrap();
    drop(cluster);
    assert!(nothing_left(&processes, &dir));
}

#[test]
fn changed_settings_are_in_force_at_once_and_after_a_crash() {
    let Some(mut cluster) = unless_missing(Cluster::start(&[])) else { return };
    cluster.configure(&[("work_mem", "5MB")]).unwrap();
    assert_eq!(cluster.query(DATABASE, "SHOW work_mem").unwrap(), "5MB");
    cluster.kill().unwrap();
    cluster.configure(&[("max_connections", "50")]).unwrap();
    cluster.start_again().unwrap();
    assert_eq!(cluster.query(DATABASE, "SHOW work_mem; SHOW max_connections").unwrap(), "5MB\n50");
}

#[test]
fn it_listens_on_an_address_when_asked() {
    let Some(cluster) = unless_missing(Cluster::listen_on(IpAddr::V4(Ipv4Addr::LOCALHOST), &[])) else {
        return;
    };
    let url = cluster.tcp_url(DATABASE).unwrap();
    assert!(url.starts_with("postgres://gatepost@127.0.0.1:"), "{url}");
    let mut psql = cluster.psql(DATABASE);
    let said = psql.args(["--dbname", &url, "--command", "SELECT inet_server_addr()"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "127.0.0.1\n");
    assert_eq!(cluster.query(DATABASE, "SELECT inet_server_addr() IS NULL").unwrap(), "t");
}

#[test]
fn each_fresh_database_is_empty_and_another() {
    let Some(first) = unless_missing(fresh_database()) else { return };
    assert_ne!(first, fresh_database().unwrap());
    let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    let mut psql = shared().unwrap().psql(DATABASE);
    let said = psql.args(["--dbname", &first, "--command", tables]).output().unwrap();
    assert_eq!(said.stdout, b"0\n");
    let url = shared().unwrap().create_database("a \"b\"/c").unwrap();
    assert!(url.contains("/a%20%22b%22%2Fc?"), "{url}");
    assert_eq!(shared().unwrap().query("a \"b\"/c", "SELECT current_database()").unwrap(), "a \"b\"/c");
}

/// What the next test kills; on its own it does nothing.
#[test]
fn holder() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    // The thread that starts it ends: the cluster must not.
    std::thread::spawn(|| shared().map(drop)).join().unwrap().unwrap();
    let cluster = shared().unwrap();
    let standby = cluster.standby("held", &[]).unwrap();
    let lines = [cluster, &standby].map(|held| {
        let pids: Vec<String> = held.processes().iter().map(Pid::to_string).collect();
        format!("HELD {} {}\n", dir(held).display(), pids.join(" "))
    });
    // One that stands still ends too.
    standby.pause().unwrap();
    io::stdout().write_all(lines.concat().as_bytes()).unwrap();
    std::thread::sleep(10 * WAIT);
}

#[test]
fn a_killed_process_leaves_nothing_of_its_clusters() {
    if unless_missing(shared()).is_none() {
        return;
    }
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder", "--nocapture"])
        .env(HOLD, "yes")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines().map(Result::unwrap);
    let held: Vec<String> =
        lines.filter_map(|line| Some(line.split_once("HELD ")?.1.to_owned())).take(2).collect();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(held.len(), 2, "{held:?}");
    for line in held {
        let mut words = line.split(' ');
        let dir = Path::new(words.next().unwrap());
        let pids: Vec<Pid> = words.map(|pid| Pid::from_raw(pid.parse().unwrap())).collect();
        assert!(pids.len() > 3, "{line}");
        until("the killed process's clusters are gone", || nothing_left(&pids, dir));
    }
}
