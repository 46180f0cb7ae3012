//! Which addresses may connect: many protocols know no login, so the address is all there is to go by, and the default is this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Addresses that share their first `prefix` bits; as text `10.1.0.0/16`, or `10.1.2.3` for one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("not an address like 10.1.2.3 or a network like 10.1.0.0/16")]
pub struct NetworkError;

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text.as_str(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let widest = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
        let prefix = match prefix {
            Some(prefix) => {
                // One spelling: Rust's numbers may begin with a plus or zeros.
                let one_spelling = |bits: &u32| *bits <= widest && bits.to_string() == prefix;
                prefix.parse().ok().filter(one_spelling).ok_or(NetworkError)?
            }
            None => widest,
        };
        Ok(Self { address, prefix })
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        format!("{}/{}", network.address, network.prefix)
    }
}

impl Network {
    /// This host's own addresses.
    pub fn loopback() -> Vec<Self> {
        vec![
            Self { address: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 },
            Self { address: Ipv6Addr::LOCALHOST.into(), prefix: Ipv6Addr::BITS },
        ]
    }

    /// Whether `peer` is in it, also as IPv4 in the form of IPv6.
    pub fn contains(&self, peer: IpAddr) -> bool {
        // A socket for both families shows IPv4 peers as IPv6 ones.
        match (self.address, peer.to_canonical()) {
            (IpAddr::V4(address), IpAddr::V4(peer)) => {
                let differing = u32::from(address) ^ u32::from(peer);
                differing.leading_zeros() >= self.prefix
            }
            (IpAddr::V6(address), IpAddr::V6(peer)) => {
                let differing = u128::from(address) ^ u128::from(peer);
                differing.leading_zeros() >= self.prefix
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(network: &str, peer: &str) -> bool {
        Network::try_from(network.to_owned()).unwrap().contains(peer.parse().unwrap())
    }

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        assert!(allowed("10.1.2.3", "10.1.2.3"));
        assert!(!allowed("10.1.2.3", "10.1.2.4"));
        assert!(allowed("10.1.0.0/16", "10.1.255.255"));
        assert!(!allowed("10.1.0.0/16", "10.2.0.0"));
        assert!(allowed("0.0.0.0/0", "203.0.113.9"));
        assert!(!allowed("0.0.0.0/0", "2001:db8::1"));
        assert!(allowed("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!allowed("2001:db8::/32", "2001:db9::1"));
        assert!(allowed("10.0.0.0/8", "::ffff:10.9.9.9"));
    }

    #[test]
    fn by_default_only_this_host_may_connect() {
        let allowed =
            |peer: &str| Network::loopback().iter().any(|network| network.contains(peer.parse().unwrap()));
        assert!(allowed("127.0.0.1") && allowed("::1"));
        assert!(!allowed("10.0.0.1") && !allowed("fe80::1"));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "10.1",
            "10.1.2.3/",
            "10.1.2.3/33",
            "10.1.2.3/-1",
            "10.1.2.3/+8",
            "10.1.2.3/08",
            "::1/129",
            "localhost",
        ] {
            assert!(Network::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
