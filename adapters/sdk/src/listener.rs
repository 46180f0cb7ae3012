//! Taking connections: who may connect, how many at a time, and how many from one place.
//!
//! A failure of one connection never ends the others, and running out of file descriptors is waited out. Who is turned away
//! is told, with the reason and the number, but not one by one: whoever knocks must not fill the log.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{self, JoinSet};
use tokio::time::{Instant, sleep};

use crate::lifetime::Stop;
use crate::network::Network;

/// The process that had the port before may need a moment to let go of it.
const BIND_TRIES: u32 = 20;
const BIND_PAUSE: Duration = Duration::from_millis(500);
/// After accepting failed, which means that file descriptors or memory have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Turned-away connections are told about this often, with their number.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// One host has a whole network of so many bits to itself, as IPv6 is handed out.
const SOURCE_BITS_V6: u32 = 64;

/// Who is let in; whoever is not is told by the names of the settings that usually say so.
#[derive(Debug, Clone)]
pub struct Door {
    /// `allow_from`
    pub allow_from: Vec<Network>,
    /// `max_connections`
    pub connections_max: usize,
    /// `max_connections_per_source`: from one address, in IPv6 from one /64 network.
    pub connections_per_source_max: usize,
}

/// Serves each connection in a task of its own until asked to stop; then waits for those that are open.
pub async fn serve<F, S>(listener: TcpListener, door: &Door, stop: Stop, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let mut open = Open::default();
    let mut turned_away = TurnedAway::default();
    let mut failing = Failing::default();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    failing.is_over();
                    accepted
                }
                Err(error) => {
                    failing.again(&error);
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            // Finished connections are let go of as they end. One that panicked has taken down only itself.
            true = open.one_ended() => continue,
            () = stop.requested() => break,
        };
        match open.refusal(door, peer.ip()) {
            Some(reason) => turned_away.count(peer, reason),
            None => open.add(peer.ip(), serve(stream, peer)),
        }
    }
    drop(listener);
    while open.one_ended().await {}
}

/// The connections that there are.
#[derive(Default)]
struct Open {
    tasks: JoinSet<()>,
    sources: HashMap<task::Id, IpAddr>,
    counts: HashMap<IpAddr, usize>,
}

impl Open {
    fn refusal(&self, door: &Door, peer: IpAddr) -> Option<&'static str> {
        let from_there = self.counts.get(&source(peer)).copied().unwrap_or(0);
        if !door.allow_from.iter().any(|network| network.contains(peer)) {
            Some("its address is not in allow_from")
        } else if self.tasks.len() >= door.connections_max {
            Some("there are max_connections already")
        } else if from_there >= door.connections_per_source_max {
            Some("there are max_connections_per_source from there already")
        } else {
            None
        }
    }

    fn add(&mut self, peer: IpAddr, serving: impl Future<Output = ()> + Send + 'static) {
        let source = source(peer);
        let id = self.tasks.spawn(serving).id();
        self.sources.insert(id, source);
        *self.counts.entry(source).or_default() += 1;
    }

    /// False when there is none.
    async fn one_ended(&mut self) -> bool {
        let id = match self.tasks.join_next_with_id().await {
            None => return false,
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
        };
        if let Some(source) = self.sources.remove(&id)
            && let Some(count) = self.counts.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&source);
            }
        }
        true
    }
}

/// What counts as one place.
fn source(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << (u128::BITS - SOURCE_BITS_V6));
            std::net::Ipv6Addr::from(network).into()
        }
    }
}

/// Binds, and waits a while for an address that is in use.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    let mut tries = 1;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_TRIES => {
                if tries == 1 {
                    tracing::warn!(address, "the address is in use; trying again");
                }
                tries += 1;
                sleep(BIND_PAUSE).await;
            }
            bound => return bound,
        }
    }
}

/// Tries to accept a connection that have failed, one after the other.
#[derive(Default)]
struct Failing {
    tries: u64,
    told_at: Option<Instant>,
    /// Of these tries.
    is_told: bool,
}

impl Failing {
    fn again(&mut self, error: &io::Error) {
        self.tries += 1;
        if self.told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_EVERY) {
            tracing::warn!(%error, tries = self.tries, "cannot accept connections; trying again");
            (self.told_at, self.is_told) = (Some(Instant::now()), true);
        }
    }

    fn is_over(&mut self) {
        if std::mem::take(&mut self.is_told) {
            tracing::info!(tries = self.tries, "connections are accepted again");
        }
        self.tries = 0;
    }
}

/// Connections that were closed at once.
#[derive(Default)]
struct TurnedAway {
    untold: u64,
    told_at: Option<Instant>,
}

impl TurnedAway {
    fn count(&mut self, peer: SocketAddr, reason: &str) {
        self.untold += 1;
        if self.told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_EVERY) {
            tracing::warn!(%peer, connections = self.untold, reason, "turned a connection away");
            self.told_at = Some(Instant::now());
            self.untold = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_is_an_address_and_in_ipv6_the_network_of_one_host() {
        let source = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(source("10.1.2.3"), "10.1.2.3");
        assert_eq!(source("::ffff:10.1.2.3"), "10.1.2.3");
        assert_eq!(source("2001:db8:1:2:3:4:5:6"), source("2001:db8:1:2:9::"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
    }

    #[tokio::test]
    async fn places_are_counted_for_each_source_and_free_again_when_a_connection_has_ended() {
        let door =
            Door { allow_from: Network::loopback(), connections_max: 3, connections_per_source_max: 2 };
        let (near, far) = ("127.0.0.1".parse().unwrap(), "::1".parse().unwrap());
        let mut open = Open::default();
        open.add(near, std::future::pending());
        open.add(near, async { panic!("a connection that fails takes down only itself") });
        assert!(open.refusal(&door, near).unwrap().contains("per_source"));
        assert_eq!(open.refusal(&door, far), None);
        assert!(open.one_ended().await);
        assert_eq!(open.refusal(&door, near), None);
        open.add(near, std::future::pending());
        open.add(far, std::future::pending());
        assert!(open.refusal(&door, far).unwrap().contains("max_connections already"));
        assert!(open.refusal(&door, "10.0.0.1".parse().unwrap()).unwrap().contains("allow_from"));
    }

    #[tokio::test]
    async fn an_address_in_use_is_waited_for() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = holder.local_addr().unwrap().to_string();
        let binding = tokio::spawn({
            let address = address.clone();
            async move { bind(&address).await }
        });
        sleep(Duration::from_millis(50)).await;
        assert!(!binding.is_finished());
        drop(holder);
        assert_eq!(binding.await.unwrap().unwrap().local_addr().unwrap().to_string(), address);
    }
}
