//! Who is at the other end of a connection, and whose answers count for whose messages.

use std::io;
use std::net::IpAddr;

use gatepost_adapter::Network;
use gatepost_adapter::tls::{PeerName, Stream};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names of a certificate that are remembered with a message, bytes in all. It may hold more.
const NAMES_BYTES_MAX: usize = 1024;

/// The other end of a connection, as far as it has shown itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    address: IpAddr,
    /// Of its certificate, which has been verified.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<PeerName>,
}

impl Peer {
    pub(crate) fn of(stream: &Stream) -> io::Result<Self> {
        let address = stream.tcp().peer_addr()?.ip().to_canonical();
        let mut room = NAMES_BYTES_MAX;
        let fits = |name: &&PeerName| {
            let left = room.checked_sub(name.to_string().len());
            room = left.unwrap_or(0);
            left.is_some()
        };
        let names = stream.peer_names().iter().take_while(fits).cloned().collect();
        Ok(Self { address, names })
    }

    /// Whether both are one partner: by their certificates where both have shown one, else by their addresses.
    fn is(&self, other: &Self) -> bool {
        if self.names.is_empty() || other.names.is_empty() {
            self.address == other.address
        } else {
            self.names.iter().any(|name| other.names.contains(name))
        }
    }
}

/// Whose answers over connections of their own are taken.
#[derive(Debug, Clone, Default)]
pub(crate) enum Answerers {
    /// Those of the partner that the message went to.
    #[default]
    Partner,
    Listed(Vec<Answerer>),
}

impl Answerers {
    /// `sent_to`: where the message went, once that is known.
    pub(crate) fn include(&self, from: &Peer, sent_to: Option<&Peer>) -> bool {
        match self {
            Self::Partner => sent_to.is_some_and(|partner| partner.is(from)),
            Self::Listed(_) => self.admit(from),
        }
    }

    /// Whether answers from there are taken at all, to whichever messages.
    pub(crate) fn admit(&self, from: &Peer) -> bool {
        match self {
            Self::Partner => true,
            Self::Listed(answerers) => answerers.iter().any(|answerer| answerer.is(from)),
        }
    }
}

/// An address, a network, or a name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
#[schemars(with = "String")]
pub(crate) enum Answerer {
    Network(Network),
    Name(PeerName),
}

impl Answerer {
    pub(crate) fn is(&self, peer: &Peer) -> bool {
        match self {
            Self::Network(network) => network.contains(peer.address),
            Self::Name(name) => peer.names.contains(name),
        }
    }
}

impl TryFrom<String> for Answerer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if ["dns:", "uri:", "cn:"].iter().any(|kind| text.starts_with(kind)) {
            return PeerName::try_from(text).map(Self::Name).map_err(|error| error.to_string());
        }
        Network::try_from(text).map(Self::Network).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn peer(address: &str, names: &[&str]) -> Peer {
        let names = names.iter().map(|name| PeerName::try_from((*name).to_owned()).unwrap()).collect();
        Peer { address: address.parse().unwrap(), names }
    }

    #[test]
    fn one_partner_is_one_certificate_or_where_there_are_not_two_of_them_one_address() {
        let lab = ["dns:lab.example", "cn:lab"];
        for (one, other, same) in [
            (peer("10.0.0.1", &[]), peer("10.0.0.1", &[]), true),
            (peer("10.0.0.1", &[]), peer("10.0.0.2", &[]), false),
            (peer("10.0.0.1", &lab), peer("10.0.0.1", &[]), true),
            (peer("10.0.0.1", &lab), peer("10.0.0.2", &[]), false),
            (peer("10.0.0.1", &lab), peer("10.9.9.9", &["cn:lab"]), true),
            // Behind one address there may be several.
            (peer("10.0.0.1", &lab), peer("10.0.0.1", &["cn:ward"]), false),
        ] {
            assert_eq!(Answerers::Partner.include(&one, Some(&other)), same, "{one:?} {other:?}");
        }
        assert!(!Answerers::Partner.include(&peer("10.0.0.1", &[]), None), "it has not left yet");
    }

    #[test]
    fn who_is_listed_may_answer_wherever_the_message_went() {
        let listed: Vec<Answerer> = serde_json::from_str(r#"["10.1.0.0/16","cn:lab","::1"]"#).unwrap();
        let listed = Answerers::Listed(listed);
        let sent_to = peer("192.0.2.1", &[]);
        for (from, included) in [
            (peer("10.1.2.3", &[]), true),
            (peer("10.2.2.3", &[]), false),
            (peer("10.2.2.3", &["cn:lab"]), true),
            (peer("::1", &[]), true),
            (sent_to.clone(), false),
        ] {
            assert_eq!(listed.include(&from, Some(&sent_to)), included, "{from:?}");
        }
        assert!(serde_json::from_str::<Answerer>(r#""lab""#).is_err());
    }
}
