//! Both directions over real sockets, between a played gateway and a played partner.

mod answering;
mod batches;
mod by_application;
mod enhanced;
mod many;
mod over_tls;
mod receiving;
mod release_2;
mod sending;
mod sequence;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use gatepost_adapter::testing::leased_event;
use gatepost_adapter::tls::Stream;
use gatepost_adapter::{Session, binary_reply};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::answer::{self, Answer};
use crate::awaited::{Awaited, LateDesk};
use crate::channel::{Channel, Limits};
use crate::mllp::{self, Item};
use crate::settings::Settings;

const BODY_BYTES_MAX: usize = 1024 * 1024;
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longer than anything should take; what takes longer hangs.
const HANG: Duration = Duration::from_secs(20);

fn adt(control_id: &str) -> Bytes {
    Bytes::from(format!(
        "MSH|^~\\&|EHR|C|LAB|H|2026||ADT^A01^ADT_A01|{control_id}|P|2.5\rPID|1||42^^^MR||D\u{fc}rer\r"
    ))
}

fn ack(code: &str, control_id: &str) -> Bytes {
    Bytes::from(format!("MSH|^~\\&|LAB|H|EHR|C|2026||ACK^A01^ACK|9|P|2.5\rMSA|{code}|{control_id}\r"))
}

/// Asks for both acknowledgements.
fn order(control_id: &str) -> Bytes {
    Bytes::from(format!("MSH|^~\\&|EHR|C|LAB|H|2026||ORM^O01|{control_id}|P|2.5|||AL|AL\rPID|1||42\r"))
}

fn encoded(bytes: &[u8]) -> Value {
    serde_json::to_value(binary_reply("", bytes)).unwrap()["data_base64"].take()
}

fn leased(number: u128, body: &[u8]) -> Value {
    leased_event(number, Some("42"), "application/hl7-v2+er7", json!({ "data_base64": encoded(body) }))
}

/// State of a message that was sent to this one of several partners, and is waited for until then.
fn kept(number: usize, partner: Option<&str>, until: i64) -> (String, Value) {
    let delivery = uuid::Uuid::from_u128(1_000_000 + number as u128);
    let mut kept = json!({"id": gatepost_adapter::digest(format!("OLD{number}").as_bytes()), "until": until,
        "lease": {"delivery": delivery, "token": "old"}});
    if let Some(partner) = partner {
        kept["partner"] = partner.into();
    }
    (format!("await/{number}"), encoded(kept.to_string().as_bytes()))
}

/// Where nobody listens yet.
async fn free_address() -> String {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    free.local_addr().unwrap().to_string()
}

/// As soon as somebody listens there, from this address of ours.
async fn connect_from(address: &str, listen: &str) -> Channel {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        if let Ok(stream) = socket.connect(listen.parse().unwrap()).await {
            return channel(stream);
        }
        tokio::task::yield_now().await;
    }
}

fn framed(body: &Bytes) -> Vec<u8> {
    let mut frame = mllp::frame(body).unwrap();
    frame.copy_to_bytes(frame.remaining()).to_vec()
}

async fn body_of(channel: &mut Channel) -> Bytes {
    match timeout(HANG, channel.next()).await.expect("no answer comes").unwrap() {
        Some(Item::Frame(body)) => body,
        other => panic!("no message but {other:?}"),
    }
}

async fn write(channel: &mut Channel, body: &Bytes) {
    channel.write(mllp::frame(body).unwrap()).await.unwrap();
}

/// The peer has closed without another word.
async fn is_closed(channel: &mut Channel) -> bool {
    matches!(timeout(HANG, channel.next()).await, Ok(Ok(None) | Err(_)))
}

fn channel(stream: TcpStream) -> Channel {
    Channel::new(Stream::plain(stream), Limits::new(BODY_BYTES_MAX, PAUSE_MAX)).unwrap()
}

fn awaited(settings: &Arc<Settings>, session: &Session) -> (Arc<Awaited>, LateDesk) {
    let (on_ack, confirm) = (settings.on_ack.clone(), session.confirm());
    let judge = move |_: Option<&str>, answer: &Answer| answer::outcome(&on_ack, confirm, answer);
    Awaited::open(session.clone(), settings, Box::new(judge))
}
