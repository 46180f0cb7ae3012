//! The real program's log: what a partner can bring about as often as it likes is told once, and then once a minute.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;

use bytes::{Bytes, BytesMut};
use gatepost_adapter::testing::{Connection, Gateway, Partner, leased_event};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};

const TIMES: usize = 200;

/// What stands in a frame, with its marks.
fn frames(buffer: &mut BytesMut) -> Option<Bytes> {
    let end = buffer.windows(2).position(|two| two == b"\x1c\r")? + 2;
    Some(buffer.split_to(end).freeze())
}

/// An address that nobody else is given, and on which the adapter may listen.
fn reserved() -> (SocketAddr, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    (socket.local_addr().unwrap(), socket)
}

async fn adapter(settings: Value) -> (Gateway, Child) {
    let mut gateway = Gateway::bind();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gatepost-hl7"));
    command.kill_on_drop(true).stdin(Stdio::null()).stderr(Stdio::piped());
    let child = command.env("GATEPOST_SOCKET", gateway.socket()).spawn().unwrap();
    gateway.open_session(json!({ "settings": settings })).await;
    (gateway, child)
}

/// All that it has logged, once it has stopped.
async fn log(mut child: Child) -> String {
    let pid = child.id().unwrap().to_string();
    assert!(Command::new("kill").arg(pid).status().await.unwrap().success());
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).await.unwrap();
    log
}

fn told(log: &str, what: &str) -> usize {
    log.lines().filter(|line| line.contains(what)).count()
}

#[tokio::test]
async fn what_a_sender_brings_about_over_and_over_is_told_once() {
    let (address, _reserved) = reserved();
    let address = address.to_string();
    let (mut gateway, child) = adapter(json!({ "listen": address })).await;
    let mut sender = Connection::open(&address, frames).await;
    for _ in 0..TIMES {
        // The next one breaks it off.
        sender.send("\x0bMSH|").await;
    }
    for number in 0..TIMES {
        for code in ["no_route", "queue_full"] {
            let id = format!("{code}{number}");
            sender.send(format!("\x0bMSH|^~\\&|A|B|C|D|2026||ADT^A01|{id}|P|2.5\r\x1c\r")).await;
            gateway.next("/v1/messages").await.answer_problem(code);
            assert!(String::from_utf8_lossy(&sender.frame().await).contains(&id));
        }
    }
    sender.close().await;
    let mut sender = Connection::open(&address, frames).await;
    for _ in 0..TIMES {
        sender.send("\x0bMSH|^~\\&|A|B|C|D|2026||ADT^A01||P|2.5\r\x1c\r").await;
    }
    sender.send("\x0bMSH|^~\\&|A|B|C|D|2026||ADT^A01|last|P|2.5\r\x1c\r").await;
    gateway.next("/v1/messages").await.answer_problem("no_route");
    while !String::from_utf8_lossy(&sender.frame().await).contains("last") {}
    sender.close().await;
    let log = log(child).await;
    assert_eq!(told(&log, "refusing a message"), 1, "without an id:\n{log}");
    for what in ["framing error", "the gateway refuses a message", "to send a message again"] {
        assert_eq!(told(&log, what), 1, "{what}:\n{log}");
    }
}

#[tokio::test]
async fn answers_that_nobody_waits_for_are_told_once() {
    let partner = Partner::listen().await.framed(frames);
    let (mut gateway, child) = adapter(json!({ "connect": partner.address() })).await;
    let message = json!({ "data": "MSH|^~\\&|A|B|C|D|2026||ADT^A01|M1|P|2.5\r" });
    gateway.lease(&[leased_event(1, None, "application/hl7-v2+er7", message)]).await;
    let mut connection = partner.accept().await;
    connection.frame().await;
    let ack = |id: &str| format!("\x0bMSH|^~\\&|C|D|A|B|2026||ACK|A{id}|P|2.5\rMSA|AA|{id}\r\x1c\r");
    for number in 0..TIMES {
        connection.send(ack(&format!("other{number}"))).await;
    }
    connection.send(ack("M1")).await;
    let settle = gateway.next("/v1/settle").await;
    assert_eq!(settle.outcomes(), [("t1", "delivered")]);
    settle.settled("ok");
    let log = log(child).await;
    assert_eq!(told(&log, "WARN"), 1, "{log}");
}
