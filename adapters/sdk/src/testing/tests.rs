//! The kit itself: what it plays arrives so, and what does not come is told.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

const SHORT: Duration = Duration::from_millis(100);

/// What a step says that fails.
async fn failure(step: impl Future<Output = ()> + Send + 'static) -> String {
    let failed = tokio::spawn(AssertUnwindSafe(step).0).await.unwrap_err().into_panic();
    *failed.downcast::<String>().unwrap()
}

/// Both ends of a connection, of which the first is played.
async fn pair() -> (Connection, TcpStream) {
    let partner = Partner::listen().await.patient(SHORT);
    let adapter = TcpStream::connect(partner.address()).await.unwrap();
    (partner.accept().await, adapter)
}

#[tokio::test]
async fn what_is_expected_is_taken_however_it_is_cut() {
    let (mut partner, mut adapter) = pair().await;
    let (_, ()) = tokio::join!(
        async {
            for piece in ["he", "ll", "o one\ntw", "o\nrest"] {
                adapter.write_all(piece.as_bytes()).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            adapter.shutdown().await.unwrap();
        },
        async {
            partner.expect("hello ").await;
            assert_eq!((&*partner.frame().await, &*partner.frame().await), (&b"one"[..], &b"two"[..]));
            assert_eq!(partner.rest().await, "rest");
        }
    );
    partner.closed().await;
    partner.send_in_pieces("pieces", 1).await;
    partner.half_close().await;
    let mut heard = String::new();
    adapter.read_to_string(&mut heard).await.unwrap();
    assert_eq!(heard, "pieces");
}

#[tokio::test]
async fn a_step_that_fails_says_what_was_expected_what_came_and_what_was_before() {
    let (mut partner, mut adapter) = pair().await;
    adapter.write_all(b"login\nBYE").await.unwrap();
    let told = failure(async move {
        partner.send("hello\n").await;
        partner.frame().await;
        partner.expect("BUY 1").await;
    })
    .await;
    let expected = "expected 5 bytes \"BUY 1\"; it differs at byte 1\nnot taken yet: 3 bytes \"BYE\"\n   \
        1. said 6 bytes \"hello\\n\"\n   2. took a frame 5 bytes \"login\"";
    assert_eq!(told, expected);
    for (sent, closes, expected) in [
        (
            &b"BU"[..],
            false,
            "expected 3 bytes \"BUY\"; no more came within 100 ms\nnot taken yet: 2 bytes \"BU\"",
        ),
        (b"", true, "expected 3 bytes \"BUY\"; the other side has closed\nnot taken yet: 0 bytes \"\""),
    ] {
        let (mut partner, mut adapter) = pair().await;
        adapter.write_all(sent).await.unwrap();
        if closes {
            adapter.shutdown().await.unwrap();
        }
        assert_eq!(failure(async move { partner.expect("BUY").await }).await, expected);
    }
    let (mut partner, mut adapter) = pair().await;
    adapter.write_all(b"half").await.unwrap();
    let told = failure(async move { drop(partner.frame().await) }).await;
    assert!(told.starts_with("expected a frame; no more came within 100 ms"), "{told}");
    let (mut partner, _adapter) = pair().await;
    assert!(failure(async move { partner.closed().await }).await.contains("still open after 100 ms"));
    let (mut partner, mut adapter) = pair().await;
    partner.nothing_for(Duration::from_millis(10)).await;
    adapter.write_all(b"!").await.unwrap();
    assert!(failure(async move { partner.nothing_for(SHORT).await }).await.starts_with("expected nothing"));
    let partner = Partner::listen().await.patient(SHORT);
    let told = failure(async move { drop(partner.accept().await) }).await;
    assert_eq!(told, "expected a connection, and nobody connects within 100 ms");
    let partner = Partner::listen().await;
    let _adapter = TcpStream::connect(partner.address()).await.unwrap();
    assert!(failure(async move { partner.nobody_for(SHORT).await }).await.starts_with("expected nobody"));
}

#[tokio::test]
async fn the_ways_to_end_are_told_apart() {
    let ended = async |end: fn(Connection)| {
        let (partner, mut adapter) = pair().await;
        end(partner);
        adapter.read(&mut [0; 1]).await.map_err(|error| error.kind())
    };
    assert_eq!(ended(Connection::hang_up).await, Ok(0));
    assert_eq!(ended(Connection::reset).await, Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn a_partner_that_does_not_read_is_noticed_soon() {
    let partner = Partner::listen().await.narrow(4096);
    let adapter = TcpStream::connect(partner.address()).await.unwrap();
    let mut connection = partner.accept().await;
    let mut wrote = 0;
    while tokio::time::timeout(SHORT, adapter.writable()).await.is_ok() {
        wrote += adapter.try_write(&[b'x'; 64 * 1024]).unwrap_or(0);
        assert!(wrote < 64 * 1024 * 1024, "it takes all");
    }
    drop(adapter);
    assert_eq!(connection.rest().await.len(), wrote);
}

#[tokio::test]
async fn a_script_is_played_on_each_connection_and_its_failure_is_the_tests() {
    let partner = Partner::listen().await.patient(SHORT);
    let playing = partner.play(|mut connection| async move {
        connection.expect("ping").await;
        connection.send("pong").await;
    });
    for _ in 0..2 {
        let mut adapter = Connection::open(playing.address(), lines).await;
        adapter.send("ping").await;
        adapter.expect("pong").await;
        adapter.closed().await;
    }
    let mut adapter = Connection::open(playing.address(), lines).await;
    adapter.send("what").await;
    adapter.closed().await;
    let told = failure(playing.finish()).await;
    assert!(told.starts_with("expected 4 bytes \"ping\"; it differs at byte 0"), "{told}");
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn tls_is_refused_broken_and_done_with_another_certificate() {
    use crate::tls::{ConnectTls, Connector};

    let (authority, other) = (Authority::new("Authority"), Authority::new("Other"));
    let mut partner = Partner::listen().await;
    let settings = serde_json::json!({"ca_files": [authority.ca_file()], "server_name": "lab.example"});
    let settings: ConnectTls = serde_json::from_value(settings).unwrap();
    let connector = Connector::new(&partner.address(), Some(&settings)).unwrap();
    let connect = async || {
        let connected = connector.connect(Duration::from_secs(20)).await;
        connected.map_err(|error| error.to_string())
    };
    let (ended, ()) = tokio::join!(connect(), partner.refuse_tls());
    assert!(ended.unwrap_err().contains("no way to speak TLS in common"));
    let (ended, _) = tokio::join!(connect(), async {
        let mut plain = partner.accept_plain().await;
        plain.send("220 hello\r\n").await;
        plain.half_close().await;
        plain.rest().await
    });
    assert!(ended.unwrap_err().ends_with("it does not speak TLS"));
    partner.present(&other.certify("lab", &["lab.example"]));
    let (ended, told) = tokio::join!(connect(), partner.handshake_fails());
    assert!(ended.unwrap_err().ends_with("its certificate is from an authority that is not trusted here"));
    assert_eq!(told, "it does not trust the authority of our certificate");
    partner.present(&authority.certify("lab", &["lab.example"]));
    let (connected, mut partner) = tokio::join!(connect(), partner.accept());
    let mut adapter = connected.unwrap();
    adapter.write_all(b"hello\n").await.unwrap();
    assert_eq!(partner.frame().await, "hello");
    partner.close().await;
    assert_eq!(adapter.read(&mut [0; 1]).await.unwrap(), 0);
}
