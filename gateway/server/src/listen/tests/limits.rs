//! Time and size: slow, silent and talkative peers; stopping.

use super::*;
use crate::config::Serves::Apps;

/// Short enough for a test, long enough for a busy machine to answer in between.
const SHORT: Duration = Duration::from_secs(1);

async fn rig(limits: Limits) -> (Rig, PathBuf) {
    let mut rig = Rig::new(Gate::of_this_user(), limits);
    let path = rig.serve_unix("app.sock", Apps).await;
    (rig, path)
}

#[tokio::test]
async fn a_head_of_a_mebibyte_or_of_too_many_fields_is_431() {
    let (mut rig, path) = rig(Limits::default()).await;
    let one_field = format!("GET /who HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(1024 * 1024));
    let many_fields = format!("GET /who HTTP/1.1\r\nhost: x\r\n{}\r\n", "x: y\r\n".repeat(100));
    let fits = format!("GET /who HTTP/1.1\r\nconnection: close\r\nx: {}\r\n\r\n", "y".repeat(60 * 1024));
    for (head, expected) in [(one_field, 431), (many_fields, 431), (fits, 200)] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(head.as_bytes()).await.expect("the rest of the head is taken and thrown away");
        stream.shutdown().await.unwrap();
        let answer = parse(&read_to_close(&mut stream).await);
        assert_eq!(answer.status, expected);
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_peer_that_sends_no_request_or_half_of_one_is_cut() {
    let (mut rig, path) = rig(Limits { head: SHORT, ..Limits::default() }).await;
    for sent in ["", "GET /who HTT", "GET /who HTTP/1.1\r\nhost: x\r\n"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        assert!(read_to_close(&mut stream).await.is_empty(), "{sent:?}");
    }
    assert_eq!(rig.counters.cut_slow(), 3);
    rig.stop().await;
}

#[tokio::test]
async fn a_drip_of_head_bytes_does_not_win_time() {
    let (mut rig, path) = rig(Limits { head: SHORT, ..Limits::default() }).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    let drip = async {
        while stream.write_all(b"\r\n").await.is_ok() {
            tokio::time::sleep(SHORT / 20).await
        }
    };
    timeout(HANG, drip).await.expect("the connection was not cut");
    until("the cut", || rig.counters.cut_slow() == 1).await;
    rig.stop().await;
}

#[tokio::test]
async fn between_requests_another_time_runs_than_within_them() {
    let limits = Limits { head: SHORT, idle: Duration::from_secs(3600), ..Limits::default() };
    let (mut rig, path) = rig(limits).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    exchange(&mut stream).await;
    // More than the time of a head passes before the second request: nothing to wait for, the passing is the point.
    tokio::time::sleep(SHORT * 2).await;
    exchange(&mut stream).await;
    stream.write_all(b"GET /who").await.unwrap();
    assert!(read_to_close(&mut stream).await.is_empty(), "a half head after the pause is cut");
    assert_eq!(rig.counters.cut_slow(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_cut() {
    let (mut rig, path) = rig(Limits { idle: SHORT, ..Limits::default() }).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    exchange(&mut stream).await;
    assert!(read_to_close(&mut stream).await.is_empty());
    rig.stop().await;
}

/// One request on a connection that stays open.
async fn exchange(stream: &mut UnixStream) {
    stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let bytes = timeout(HANG, stream.read(&mut answer)).await.unwrap().unwrap();
    assert_eq!(parse(&answer[..bytes]).status, 200);
}

#[tokio::test]
async fn a_body_that_stops_or_drips_is_cut_and_a_steady_one_is_not() {
    let (mut rig, path) = rig(Limits { body: SHORT, ..Limits::default() }).await;
    let head = "POST /size HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";

    let mut stops = UnixStream::connect(&path).await.unwrap();
    stops.write_all(format!("{head}3\r\nabc\r\n").as_bytes()).await.unwrap();
    assert_eq!(parse(&read_to_close(&mut stops).await).status, 408);

    let (mut answers, mut drips) = UnixStream::connect(&path).await.unwrap().into_split();
    drips.write_all(head.as_bytes()).await.unwrap();
    let dripping = tokio::spawn(async move {
        while drips.write_all(b"1\r\nx\r\n").await.is_ok() {
            tokio::time::sleep(SHORT / 20).await;
        }
    });
    assert_eq!(parse(&read_to_close(&mut answers).await).status, 408);
    dripping.abort();

    let mut steady = UnixStream::connect(&path).await.unwrap();
    steady.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..16 {
        let chunk = format!("{:x}\r\n{}\r\n", 2048, "x".repeat(2048));
        steady.write_all(chunk.as_bytes()).await.unwrap();
        // Together the pauses last longer than one may.
        tokio::time::sleep(SHORT / 8).await;
    }
    steady.write_all(b"0\r\n\r\n").await.unwrap();
    let answer = parse(&read_to_close(&mut steady).await);
    assert_eq!((answer.status, answer.body.as_str()), (200, "32768"));
    rig.stop().await;
}

#[tokio::test]
async fn a_peer_that_does_not_take_its_answer_is_cut() {
    let (mut rig, path) = rig(Limits { write: SHORT, ..Limits::default() }).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    until("the cut", || rig.counters.cut_slow() == 1).await;
    until("the close", || rig.counters.open() == 0).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_connection_goes_on() {
    let (mut rig, path) = rig(Limits::default()).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let bytes = timeout(HANG, stream.read(&mut answer)).await.unwrap().unwrap();
    let answer = parse(&answer[..bytes]);
    assert_eq!(answer.status, 500);
    assert!(
        answer.body.contains(r#""code":"internal""#) && !answer.body.contains("on purpose"),
        "{}",
        answer.body
    );
    assert_eq!(get_and_close(&mut stream, "/who").await.status, 200);
    assert_eq!(rig.counters.panics(), 1);
    rig.stop().await;
}

#[tokio::test]
async fn stopping_waits_for_the_request_in_flight_and_for_nothing_else() {
    let (mut rig, path) = rig(Limits { drain: HANG * 2, ..Limits::default() }).await;
    let mut idle = UnixStream::connect(&path).await.unwrap();
    exchange(&mut idle).await;
    let busy = tokio::spawn({
        let path = path.clone();
        async move { get_unix(&path, "/hold").await }
    });
    rig.held.notified().await;

    rig.stop.send_replace(true);
    assert!(read_to_close(&mut idle).await.is_empty(), "an idle connection is closed at once");
    until("the socket's removal", || !path.exists()).await;
    assert!(!rig.serving[0].is_finished() && !busy.is_finished());
    rig.release.notify_one();
    let answer = timeout(HANG, busy).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "held to the end"));
    rig.stop().await;
    assert_eq!(rig.counters.open(), 0);
}

#[tokio::test]
async fn stopping_cuts_what_does_not_end_in_time() {
    let (mut rig, path) = rig(Limits { drain: SHORT, ..Limits::default() }).await;
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /hold HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    rig.held.notified().await;
    rig.stop().await;
    assert!(read_to_close(&mut stream).await.is_empty());
    assert_eq!(rig.counters.open(), 0);
}
