//! How many connections there may be: in the whole gateway, on one listener, and of one peer on one listener.
//!
//! The count per peer is kept for each listener, so that one user's silent connections on the socket for apps take nothing away from
//! the operators' or the adapters' sockets, even where all of them run as the same user.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gatepost_api::session::ADAPTER_CONNECTIONS_MAX;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Counters, Limits, RefusalCode};
use crate::spaced::Spaced;

/// Connections of one listener that wait to be told that there is no place. Beyond it they are closed at once.
const LATE_MAX: usize = 256;

/// One host has as many IPv6 addresses as it likes within its site.
const SITE_MASK: u128 = u128::MAX << 64;

/// Whose connections are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PeerKey {
    User(u32),
    /// An IPv4 address, or the 64 bits of an IPv6 address that stand for one site.
    Address(IpAddr),
    /// All whom the kernel does not name.
    Nobody,
}

impl PeerKey {
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V4(v4) => IpAddr::V4(v4),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & SITE_MASK)),
        })
    }
}

/// Who answers for a connection that brings no request: on a Unix socket the process, so that others of its user do not wait with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Maker {
    Process(u32),
    Peer(PeerKey),
}

/// The gateway's total. Listeners draw on it.
#[derive(Debug)]
pub(super) struct Total {
    open: Mutex<usize>,
    max: usize,
}

impl Total {
    pub(super) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self { open: Mutex::new(0), max: limits.connections_total })
    }

    fn take(&self) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let free = *open < self.max;
        *open += usize::from(free);
        free
    }

    fn give_back(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// Connections of principals that have a limit of their own, over all listeners.
#[derive(Clone, Debug, Default)]
pub(super) struct Principals(Arc<Mutex<HashMap<String, usize>>>);

/// The right to one of a principal's connections, given back when dropped.
#[derive(Debug)]
pub(super) struct PrincipalSlot {
    principals: Principals,
    name: String,
}

impl Principals {
    pub(super) fn take(&self, name: String, max: usize) -> Result<PrincipalSlot, RefusalCode> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(name.clone()).or_default();
        if *count >= max {
            return Err(RefusalCode::PrincipalLimit);
        }
        *count += 1;
        Ok(PrincipalSlot { principals: self.clone(), name })
    }
}

impl Drop for PrincipalSlot {
    fn drop(&mut self) {
        let mut open = self.principals.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.name);
            }
        }
    }
}

/// One listener's connections.
#[derive(Debug)]
pub(super) struct Quota {
    total: Option<Arc<Total>>,
    ledger: Mutex<Ledger>,
    listener_max: usize,
    peer_max: usize,
    /// None where the gateway itself has started who connects.
    arrivals: Option<Spaced<PeerKey>>,
    turned_away: Spaced<PeerKey>,
    in_vain: Spaced<Maker>,
    late: Arc<Semaphore>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Ledger {
    open: usize,
    peers: HashMap<PeerKey, usize>,
}

impl Quota {
    pub(super) fn shared(limits: &Limits, total: &Arc<Total>, counters: &Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            total: Some(total.clone()),
            ledger: Mutex::default(),
            listener_max: limits.connections_per_listener,
            peer_max: limits.connections_per_peer,
            arrivals: Some(Spaced::new(limits.arrivals)),
            turned_away: Spaced::new(limits.turned_away),
            in_vain: Spaced::new(limits.in_vain),
            late: Arc::new(Semaphore::new(LATE_MAX)),
            counters: counters.clone(),
        })
    }

    /// Of a socket that lets one process in, so that its peer is its listener. It stands outside the gateway's total: apps cannot lock
    /// adapters out.
    pub(super) fn of_one_adapter(limits: &Limits, counters: &Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            total: None,
            ledger: Mutex::default(),
            listener_max: ADAPTER_CONNECTIONS_MAX,
            peer_max: ADAPTER_CONNECTIONS_MAX,
            arrivals: None,
            turned_away: Spaced::new(limits.turned_away),
            in_vain: Spaced::new(limits.in_vain),
            late: Arc::new(Semaphore::new(LATE_MAX)),
            counters: counters.clone(),
        })
    }

    /// A place for one more connection of `peer`, or which limit it would break.
    pub(super) fn take(self: &Arc<Self>, peer: PeerKey) -> Result<Slot, RefusalCode> {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.peers.get(&peer).is_some_and(|open| *open >= self.peer_max) {
            return Err(RefusalCode::PeerLimit);
        }
        if ledger.open >= self.listener_max {
            return Err(RefusalCode::ListenerLimit);
        }
        if self.total.as_ref().is_some_and(|total| !total.take()) {
            return Err(RefusalCode::GatewayLimit);
        }
        ledger.open += 1;
        *ledger.peers.entry(peer).or_default() += 1;
        self.counters.count_opened();
        Ok(Slot { quota: self.clone(), peer })
    }

    /// `None` if a peer for which there is no place is to be told at once.
    pub(super) fn late(&self, peer: PeerKey, now: Instant) -> Option<Late> {
        let wait = self.turned_away.next(&peer, now);
        if wait.is_zero() {
            return None;
        }
        let place = Arc::clone(&self.late).try_acquire_owned().ok()?;
        Some(Late { wait, _place: place })
    }
}

/// The right to be told later that there is no place.
#[derive(Debug)]
pub(super) struct Late {
    pub(super) wait: Duration,
    _place: OwnedSemaphorePermit,
}

/// The right to one connection, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    quota: Arc<Quota>,
    peer: PeerKey,
}

impl Slot {
    /// How long this connection waits before it is listened to.
    pub(super) fn wait(&self, maker: Maker, now: Instant) -> Duration {
        let quota = &self.quota;
        let Some(arrivals) = &quota.arrivals else { return Duration::ZERO };
        arrivals.next(&self.peer, now).max(quota.in_vain.ahead(&maker, now))
    }

    /// This connection has ended without one request: what its maker connects next is listened to later. What answers it is not
    /// spaced, since no request is known.
    pub(super) fn was_in_vain(&self, maker: Maker, now: Instant) {
        self.quota.in_vain.next(&maker, now);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut ledger = self.quota.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.open -= 1;
        if let Some(open) = ledger.peers.get_mut(&self.peer) {
            *open -= 1;
            if *open == 0 {
                // Forgotten, or the map would grow by one entry for each address that ever connected.
                ledger.peers.remove(&self.peer);
            }
        }
        if let Some(total) = &self.quota.total {
            total.give_back();
        }
        self.quota.counters.count_closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            connections_per_listener: 3,
            connections_total: 4,
            connections_per_peer: 2,
            ..Limits::default()
        }
    }

    #[test]
    fn each_limit_is_named_and_given_back() {
        let (limits, counters) = (limits(), Arc::new(Counters::default()));
        let total = Total::new(&limits);
        let (apps, operators) =
            (Quota::shared(&limits, &total, &counters), Quota::shared(&limits, &total, &counters));
        let user = PeerKey::User;

        let first = apps.take(user(1)).unwrap();
        let second = apps.take(user(1)).unwrap();
        assert_eq!(apps.take(user(1)).unwrap_err(), RefusalCode::PeerLimit);
        let third = apps.take(user(2)).unwrap();
        assert_eq!(apps.take(user(2)).unwrap_err(), RefusalCode::ListenerLimit);
        let fourth = operators.take(user(1)).expect("another listener counts peers anew");
        assert_eq!(operators.take(user(1)).unwrap_err(), RefusalCode::GatewayLimit);
        assert_eq!(counters.open(), 4);

        drop((first, second, third, fourth));
        assert_eq!(counters.open(), 0);
        assert!(apps.ledger.lock().unwrap().peers.is_empty(), "no trace of a peer that left");
        assert_eq!(*total.open.lock().unwrap(), 0);
    }

    #[test]
    fn who_knocks_without_end_is_told_later_and_only_so_many_wait_for_that() {
        let (limits, counters) = (limits(), Arc::new(Counters::default()));
        let total = Total::new(&limits);
        let (quota, now) = (Quota::shared(&limits, &total, &counters), Instant::now());
        let knock = |user| quota.late(PeerKey::User(user), now);
        for _ in 0..limits.turned_away.prompt {
            assert!(knock(1).is_none(), "at first at once");
        }
        let waiting: Vec<Late> = (0..LATE_MAX).map_while(|_| knock(1)).collect();
        assert_eq!(waiting.len(), LATE_MAX);
        assert!(waiting.is_sorted_by(|a, b| a.wait < b.wait), "one after the other");
        assert!(knock(1).is_none(), "nobody is kept beyond that");
        assert!(knock(2).is_none(), "another one has not knocked yet");
        drop(waiting);
        assert!(knock(1).is_some());
    }

    #[test]
    fn who_connects_over_and_over_waits_and_an_adapter_does_not() {
        let (limits, counters) = (limits(), Arc::new(Counters::default()));
        let total = Total::new(&limits);
        let (apps, now) = (Quota::shared(&limits, &total, &counters), Instant::now());
        let waits =
            |quota: &Arc<Quota>, user| quota.take(PeerKey::User(user)).unwrap().wait(Maker::Process(1), now);
        for _ in 0..limits.arrivals.prompt {
            assert_eq!(waits(&apps, 1), Duration::ZERO);
        }
        assert_eq!(waits(&apps, 1), limits.arrivals.interval);
        assert_eq!(waits(&apps, 2), Duration::ZERO);
        let adapter = Quota::of_one_adapter(&limits, &counters);
        assert!((0..limits.arrivals.prompt * 2).all(|_| waits(&adapter, 1).is_zero()));
    }

    #[test]
    fn who_connects_in_vain_waits_sooner_and_no_other_process_with_it() {
        let (limits, counters) = (limits(), Arc::new(Counters::default()));
        let total = Total::new(&limits);
        let (apps, now) = (Quota::shared(&limits, &total, &counters), Instant::now());
        let slot = apps.take(PeerKey::User(1)).unwrap();
        for _ in 0..limits.in_vain.prompt {
            assert!(slot.wait(Maker::Process(7), now).is_zero());
            slot.was_in_vain(Maker::Process(7), now);
        }
        assert_eq!(slot.wait(Maker::Process(7), now), limits.in_vain.interval);
        assert!(slot.wait(Maker::Process(8), now).is_zero(), "another one of the same user");
        assert!(slot.wait(Maker::Peer(PeerKey::Nobody), now).is_zero());
    }

    #[test]
    fn addresses_of_one_ipv6_site_count_together() {
        let key = |text: &str| PeerKey::of_address(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }

    #[test]
    fn an_adapter_gets_in_when_the_gateway_is_full() {
        let (limits, counters) = (limits(), Arc::new(Counters::default()));
        let total = Total::new(&limits);
        let apps = [Quota::shared(&limits, &total, &counters), Quota::shared(&limits, &total, &counters)];
        let _slots: Vec<Slot> =
            (0..8).filter_map(|n| apps[n % 2].take(PeerKey::User(n as u32)).ok()).collect();
        assert_eq!(counters.open(), 4);
        assert!(Quota::of_one_adapter(&limits, &counters).take(PeerKey::User(0)).is_ok());
    }
}
