//! Listening for partners: who says who it is with its first message is handed to its session; all others are told nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gatepost_adapter::listener;
use gatepost_adapter::tls::{Acceptor, PeerName, explain};
use gatepost_adapter::{Failure, Session};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::data_fields::DataFields;
use crate::link::{self, Reader};
use crate::message::{Message, Tag, tag};
use crate::session::Arrival;
use crate::settings::{Entrance, Plan};

/// Connections whose Logon has not come yet, in all and from one place.
const UNKNOWN_MAX: usize = 64;
const UNKNOWN_PER_SOURCE_MAX: usize = 16;
/// Longest first message: a Logon is short.
const LOGON_BYTES_MAX: usize = 16 * 1024;
/// How long a TLS handshake, and then a Logon, may take.
const LOGON_PATIENCE: Duration = Duration::from_secs(10);

const SEVERAL: &str = "its Logon names several sessions of this address";

/// By what every Logon says: BeginString, its SenderCompID, its TargetCompID.
type Who = (Vec<u8>, Vec<u8>, Vec<u8>);
type Doors<T = mpsc::Sender<Arrival>> = HashMap<Who, Vec<Door<T>>>;

/// Where a session is handed its connections.
struct Door<T> {
    /// SubIDs and LocationIDs of the partner's Logon: what tells sessions with the same CompIDs apart.
    ids: Vec<(Tag, String)>,
    /// Whether a Logon must have them.
    checks_ids: bool,
    /// Of these its certificate must have one, if there are any.
    names: Vec<PeerName>,
    arrivals: T,
}

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
        let door = Door {
            ids: config.partner_header.clone(),
            checks_ids: config.check_header,
            names: plan.partner_names.clone(),
            arrivals,
        };
        self.doors.entry(who).or_default().push(door);
    }

    /// Takes connections until the adapter is asked to stop.
    pub(crate) async fn run(self, gateway: Session) -> Result<(), Failure> {
        let address = &self.entrance.address;
        let acceptor = Arc::new(Acceptor::new(self.entrance.tls.as_ref())?);
        let listener = listener::bind(address)
            .await
            .map_err(|error| Failure::new(format!("cannot listen on {address}"), error))?;
        tracing::info!(address, "listening for partners");
        let rules = listener::Door {
            allow_from: self.entrance.allow_from,
            connections_max: UNKNOWN_MAX,
            connections_per_source_max: UNKNOWN_PER_SOURCE_MAX,
        };
        let doors = Arc::new(self.doors);
        listener::serve(listener, &rules, gateway.stop(), |stream, peer| {
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
    let first = timeout(LOGON_PATIENCE, reader.first()).await.map_err(|_| "no Logon came in time")?;
    let logon = first.map_err(|error| explain(&error))?.ok_or("it ended before a Logon came")?;
    if logon.msg_type() != b"A" {
        return Err("its first message is no Logon".to_owned());
    }
    let door = named(doors, &logon)?;
    let (stream, rest) = reader.into_parts();
    if !door.names.is_empty() && !stream.peer_names().iter().any(|name| door.names.contains(name)) {
        return Err("its certificate is not one of its session's partner".to_owned());
    }
    let arrival = Arrival { stream, logon, rest: rest.to_vec() };
    door.arrivals.send(arrival).await.map_err(|_| "its session is closed".to_owned())
}

/// The session that a Logon names: of those all of whose ids it has, the one that has most of them. If it has all ids of none,
/// the only one with its CompIDs that does not insist on its ids.
fn named<'a, T>(doors: &'a Doors<T>, logon: &Message) -> Result<&'a Door<T>, &'static str> {
    let between_them = doors.get(&who(logon)).map_or(&[][..], Vec::as_slice);
    let has_all = |door: &&Door<T>| door.ids.iter().all(|(tag, id)| logon.get(*tag) == Some(id.as_bytes()));
    let mut meant: Vec<&Door<T>> = between_them.iter().filter(has_all).collect();
    meant.sort_by_key(|door| std::cmp::Reverse(door.ids.len()));
    match meant[..] {
        [first, second, ..] if first.ids.len() == second.ids.len() => Err(SEVERAL),
        [first, ..] => Ok(first),
        [] => {
            let mut lenient = between_them.iter().filter(|door| !door.checks_ids);
            match (lenient.next(), lenient.next()) {
                (Some(only), None) => Ok(only),
                (Some(_), Some(_)) => Err(SEVERAL),
                (None, _) => Err("its Logon names no session of this address"),
            }
        }
    }
}

fn who(logon: &Message) -> Who {
    let value = |tag| logon.get(tag).unwrap_or_default().to_vec();
    (logon.begin_string().to_vec(), value(tag::SENDER_COMP_ID), value(tag::TARGET_COMP_ID))
}

#[cfg(test)]
mod tests {
    use gatepost_adapter::Level;

    use super::*;
    use crate::settings::{Settings, Way, plans};
    use crate::version::BeginString;
    use crate::wire::{Draft, parse};

    fn logon(ids: &[(Tag, &str)]) -> Message {
        let draft = Draft::new(BeginString::Fix44, "A").header(49, "SELL").header(56, "BUY");
        let bytes = ids.iter().fold(draft, |draft, (tag, id)| draft.header(*tag, id)).encode().unwrap();
        parse(bytes, &DataFields::default()).unwrap()
    }

    /// Those of `lenient` names do not insist on their ids.
    fn doors_with(all: &[(&'static str, &[(Tag, &str)])], lenient: &[&str]) -> Doors<&'static str> {
        let mut doors = Doors::new();
        for (name, ids) in all {
            let ids = ids.iter().map(|(tag, id)| (*tag, (*id).to_owned())).collect();
            let checks_ids = !lenient.contains(name);
            let door = Door { ids, checks_ids, names: Vec::new(), arrivals: *name };
            doors.entry(who(&logon(&[]))).or_default().push(door);
        }
        doors
    }

    fn doors(all: &[(&'static str, &[(Tag, &str)])]) -> Doors<&'static str> {
        doors_with(all, &[])
    }

    #[test]
    fn a_logon_names_the_session_that_says_most_of_what_it_says() {
        let doors = doors(&[
            ("any", &[]),
            ("desk 1", &[(57, "D1")]),
            ("desk 2", &[(57, "D2")]),
            ("trader", &[(57, "D1"), (50, "T")]),
            ("london", &[(142, "LDN")]),
        ]);
        for (ids, expected) in [
            (&[][..], Some("any")),
            (&[(57, "D3")], Some("any")),
            (&[(57, "D1")], Some("desk 1")),
            (&[(57, "D2"), (50, "T")], Some("desk 2")),
            (&[(57, "D1"), (50, "T")], Some("trader")),
            (&[(57, "D1"), (50, "T"), (142, "LDN")], Some("trader")),
            (&[(142, "LDN")], Some("london")),
            // As much of one as of the other.
            (&[(57, "D1"), (142, "LDN")], None),
        ] {
            assert_eq!(named(&doors, &logon(ids)).ok().map(|door| door.arrivals), expected, "{ids:?}");
        }
    }

    #[test]
    fn ids_that_a_session_has_must_be_there() {
        let doors = doors(&[("desk 1", &[(57, "D1"), (143, "NY")])]);
        for ids in [&[][..], &[(57, "D1")], &[(57, "D1"), (143, "LDN")], &[(57, "d1"), (143, "NY")]] {
            assert!(named(&doors, &logon(ids)).is_err(), "{ids:?}");
        }
        assert!(named(&doors, &logon(&[(57, "D1"), (143, "NY")])).is_ok());
    }

    #[test]
    fn a_logon_that_names_none_is_for_the_only_session_that_does_not_insist() {
        let desks: &[(&'static str, &[(Tag, &str)])] =
            &[("desk 1", &[(57, "D1")]), ("desk 2", &[(57, "D2")]), ("desk 3", &[(57, "D3"), (143, "NY")])];
        for (lenient, ids, expected) in [
            (&["desk 1"][..], &[][..], Some("desk 1")),
            (&["desk 1"], &[(57, "D9")], Some("desk 1")),
            (&["desk 1"], &[(57, "D3")], Some("desk 1")),
            // Whoever says who it is has its own.
            (&["desk 1"], &[(57, "D2")], Some("desk 2")),
            // Not even where one has more ids than the other.
            (&["desk 1", "desk 3"], &[], None),
            (&["desk 1", "desk 2"], &[(57, "D2")], Some("desk 2")),
        ] {
            let doors = doors_with(desks, lenient);
            let found = named(&doors, &logon(ids)).ok().map(|door| door.arrivals);
            assert_eq!(found, expected, "{lenient:?} {ids:?}");
        }
    }

    /// As the settings say it, all the way to the door.
    #[test]
    fn check_sub_ids_is_what_says_whether_a_session_insists() {
        for checks in [true, false] {
            let session = serde_json::json!({"name": "main", "listen": "127.0.0.1:1", "begin_string": "FIX.4.4",
                "sender_comp_id": "BUY", "target_comp_id": "SELL", "sender_sub_id": "D1", "check_sub_ids": checks});
            let settings: Settings =
                serde_json::from_value(serde_json::json!({ "sessions": [session] })).unwrap();
            let plan = plans(&settings, "lab", Level::Transport).unwrap().remove(0);
            let Way::Listen(entrance) = &plan.way else { panic!("it listens") };
            let mut listener = Listener::new(entrance.clone());
            listener.register(&plan, mpsc::channel(1).0);
            assert!(named(&listener.doors, &logon(&[(57, "D1")])).is_ok());
            assert_eq!(named(&listener.doors, &logon(&[])).is_ok(), !checks);
        }
    }
}
