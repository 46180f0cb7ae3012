//! Listening for partners: who says who it is with its first message is handed to its session; all others are told nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::listener::{self, Door};
use gatepost_adapter::tls::{Acceptor, explain};
use gatepost_adapter::{Failure, Session};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::data_fields::DataFields;
use crate::link::{self, Reader};
use crate::message::{Message, tag};
use crate::session::Arrival;
use crate::settings::{Entrance, Plan};

/// Connections whose Logon has not come yet, in all and from one place.
const UNKNOWN_MAX: usize = 64;
const UNKNOWN_PER_SOURCE_MAX: usize = 16;
/// Longest first message: a Logon is short.
const LOGON_BYTES_MAX: usize = 16 * 1024;
/// How long a TLS handshake, and then a Logon, may take.
const LOGON_PATIENCE: Duration = Duration::from_secs(10);

/// By what a Logon says: BeginString, its SenderCompID, its TargetCompID.
type Who = (Vec<u8>, Vec<u8>, Vec<u8>);
type Doors = HashMap<Who, mpsc::Sender<Arrival>>;

/// One address, and the sessions whose partners connect to it.
pub(crate) struct Listener {
    entrance: Entrance,
    doors: Doors,
}

impl Listener {
    pub(crate) fn new(entrance: Entrance) -> Self {
        Self { entrance, doors: HashMap::new() }
    }

    pub(crate) fn register(&mut self, plan: &Plan, arrivals: mpsc::Sender<Arrival>) {
        let config = &plan.config;
        let who = (
            config.begin_string.as_str().as_bytes().to_vec(),
            config.target_comp_id.clone().into_bytes(),
            config.sender_comp_id.clone().into_bytes(),
        );
        self.doors.insert(who, arrivals);
    }

    /// Takes connections until the adapter is asked to stop.
    pub(crate) async fn run(self, gateway: Session) -> Result<(), Failure> {
        let address = &self.entrance.address;
        let acceptor = Arc::new(Acceptor::new(self.entrance.tls.as_ref())?);
        let listener = listener::bind(address)
            .await
            .map_err(|error| Failure::new(format!("cannot listen on {address}"), error))?;
        tracing::info!(address, "listening for partners");
        let door = Door {
            allow_from: self.entrance.allow_from,
            connections_max: UNKNOWN_MAX,
            connections_per_source_max: UNKNOWN_PER_SOURCE_MAX,
        };
        let doors = Arc::new(self.doors);
        listener::serve(listener, &door, gateway.stop(), |stream, peer| {
            let (acceptor, doors) = (Arc::clone(&acceptor), Arc::clone(&doors));
            async move {
                if let Err(why) = introduce(stream, &acceptor, &doors).await {
                    tracing::warn!(%peer, why, "closing a connection");
                }
            }
        })
        .await;
        Ok(())
    }
}

/// Reads the first message and hands the connection to the session that it names.
async fn introduce(stream: TcpStream, acceptor: &Acceptor, doors: &Doors) -> Result<(), String> {
    let stream = acceptor.accept(stream, LOGON_PATIENCE).await.map_err(|error| error.to_string())?;
    link::prepare(&stream).map_err(|_| "it cannot be used")?;
    let mut reader = Reader::new(stream, LOGON_BYTES_MAX, DataFields::default());
    let first = timeout(LOGON_PATIENCE, reader.next()).await.map_err(|_| "no Logon came in time")?;
    let logon = first.map_err(|error| explain(&error))?.ok_or("it ended before a Logon came")?;
    if logon.msg_type() != b"A" {
        return Err("its first message is no Logon".to_owned());
    }
    let door = doors.get(&who(&logon)).ok_or("its Logon names no session of this address")?;
    let (stream, rest) = reader.into_parts();
    let arrival = Arrival { stream, logon, rest: rest.to_vec() };
    door.send(arrival).await.map_err(|_| "its session is closed".to_owned())
}

fn who(logon: &Message) -> Who {
    let value = |tag| logon.get(tag).unwrap_or_default().to_vec();
    (logon.begin_string().to_vec(), value(tag::SENDER_COMP_ID), value(tag::TARGET_COMP_ID))
}
