//! A listener whose process has run out of file descriptors. A process of its own, since its limit is the process's.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gatepost_adapter::Network;
use gatepost_adapter::listener::{Door, bind, serve};
use gatepost_adapter::testing::Gateway;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use tokio::time::{sleep, timeout};

const DESCRIPTORS: u64 = 64;
/// What takes longer hangs.
const HANG: Duration = Duration::from_secs(30);
/// After a try to accept that has failed.
const PAUSE: Duration = Duration::from_millis(200);

/// What has been logged.
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

impl Log {
    fn lines(&self, text: &str) -> Vec<String> {
        let all = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(HANG, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn without_descriptors_it_tells_once_tries_in_peace_and_goes_on_when_there_are_some() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let (gateway, session) = Gateway::open(json!({})).await;
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // They are connected before anybody accepts them.
    let mut clients: Vec<TcpStream> = (0..6).map(|_| TcpStream::connect(address).unwrap()).collect();
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum }).unwrap();
    let mut hoard: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(hoard.len() > 10, "{}", hoard.len());
    hoard.truncate(hoard.len() - 2);

    let door =
        Door { allow_from: Network::loopback(), connections_max: 100, connections_per_source_max: 100 };
    let served = Arc::new(AtomicUsize::new(0));
    let (stop, count) = (session.stop(), Arc::clone(&served));
    let began = Instant::now();
    let serving = tokio::spawn(async move {
        serve(listener, &door, stop, move |mut stream, _| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
    });
    let served = move || served.load(Ordering::SeqCst);
    let failures = || log.lines("cannot accept connections");
    until("two are served, and then it fails", || served() == 2 && !failures().is_empty()).await;
    sleep(4 * PAUSE).await;
    assert_eq!((served(), failures().len()), (2, 1), "told once");
    assert!(failures()[0].contains("WARN"), "{:?}", failures());

    // One that ends makes room for others; here both of its ends.
    drop(clients.remove(0));
    until("others are served", || served() == 4).await;
    let over = log.lines("connections are accepted again");
    let tries: u128 = over[0].rsplit_once("tries=").unwrap().1.trim().parse().unwrap();
    // Each is followed by a pause, which may be longer and never shorter.
    assert!((2..=began.elapsed().as_millis() / PAUSE.as_millis() + 1).contains(&tries), "{over:?}");
    drop(hoard);
    until("all are served", || served() == 6).await;
    assert_eq!(
        (failures().len(), log.lines("connections are accepted again").len()),
        (1, 1),
        "not each time"
    );

    drop(clients);
    gateway.drain();
    timeout(HANG, serving).await.expect("it does not end").unwrap();
}
