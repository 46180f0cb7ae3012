//! Who is at the other end, in facts that the peer cannot choose, and what happens to those who are nobody here.

use std::{fmt, net::SocketAddr, sync::Arc};

use crate::config::{self, PeerFacts, Wanted};

/// Whom a socket serves; who a peer may be depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Serves {
    Apps,
    Operators,
    /// External adapters, by selectors as for apps.
    Adapters,
    /// The one process that the supervisor started for this adapter: whoever is let in is that adapter.
    OneAdapter(Arc<str>),
}

impl Serves {
    /// Whose selectors decide; `None` for a supervised adapter, which the supervisor vouches for.
    pub(crate) const fn configured(&self) -> Option<config::Serves> {
        match self {
            Self::Apps => Some(config::Serves::Apps),
            Self::Operators => Some(config::Serves::Operators),
            Self::Adapters => Some(config::Serves::Adapters),
            Self::OneAdapter(_) => None,
        }
    }

    /// The name of the kind, as it stands in metrics and logs.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::Apps => "apps",
            Self::Operators => "operators",
            Self::Adapters | Self::OneAdapter(_) => "adapters",
        }
    }
}

impl From<config::Serves> for Serves {
    fn from(serves: config::Serves) -> Self {
        match serves {
            config::Serves::Apps => Self::Apps,
            config::Serves::Operators => Self::Operators,
            config::Serves::Adapters => Self::Adapters,
        }
    }
}

/// One connection's number, unique while the gateway runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId(pub(crate) u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// The authenticated end of a connection; every request's extensions hold one.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) serves: Serves,
    pub(crate) facts: Arc<PeerFacts>,
    pub(crate) connection: ConnectionId,
    /// The process that connected to a Unix socket. For logs only: its number may belong to another process by now.
    pub(crate) pid: Option<u32>,
}

/// Says whether anybody here could be this peer.
pub(crate) trait PeerGate: Send + Sync + 'static {
    /// Whether the facts match the selectors of any principal that the socket serves, tokens aside: a token narrows an identity
    /// later, it never makes one. Not asked for the sockets of supervised adapters.
    fn may_match(&self, serves: config::Serves, facts: &PeerFacts) -> bool;

    /// Whose connections this one counts among besides its user's or address's, and how many there may be.
    fn connections(&self, _serves: &Serves, _facts: &PeerFacts) -> Option<(String, usize)> {
        None
    }

    /// What must be read of a peer's process for that.
    fn wanted(&self, _serves: config::Serves) -> Wanted {
        Wanted::default()
    }
}

/// Hears of every connection that was turned away.
pub(crate) trait RefusalSink: Send + Sync + 'static {
    /// Must neither block nor fail: it is called on the way of every refused connection, as often as a peer likes to connect.
    fn refused(&self, refusal: &Refusal);
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) serves: Serves,
    pub(crate) code: RefusalCode,
    /// As far as they were known.
    pub(crate) facts: Option<PeerFacts>,
    /// The name that a refused certificate claims. It proves nothing.
    pub(crate) claimed: Option<String>,
    /// What was wrong with the certificate, for people.
    pub(crate) why: Option<String>,
    /// The other end of a TCP connection.
    pub(crate) remote: Option<SocketAddr>,
}

impl Refusal {
    pub(super) fn new(serves: Serves, code: RefusalCode) -> Self {
        Self { serves, code, facts: None, claimed: None, why: None, remote: None }
    }
}

impl RefusalCode {
    /// Whether it is the adapter itself, recognised, that was refused something.
    pub(crate) const fn is_the_adapters(self) -> bool {
        matches!(
            self,
            Self::HostNotAllowed | Self::FileNotAllowed | Self::RequestMalformed | Self::RequestLimit
        )
    }
}

macro_rules! refusal_codes {
    ($($(#[$doc:meta])* $variant:ident, $name:literal;)+) => {
        /// Why a connection was turned away.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(crate) enum RefusalCode { $($(#[$doc])* $variant),+ }

        impl RefusalCode {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

refusal_codes! {
    /// No principal of the socket's kind has selectors that match.
    UnknownPeer, "unknown_peer";
    /// The peer's user has no number in this namespace, so that the kernel shows the overflow user in its place.
    UnmappedUser, "unmapped_user";
    /// The peer's process cannot be seen from this process namespace.
    UnseenProcess, "unseen_process";
    /// The process that connected ended before its facts were complete.
    PeerGone, "peer_gone";
    /// The kernel did not say who the peer is.
    NoCredentials, "no_credentials";
    /// On a supervised adapter's socket: not the process that the supervisor started.
    NotTheAdapter, "not_the_adapter";
    /// The adapter asked to be connected to what it may not reach.
    HostNotAllowed, "host_not_allowed";
    /// The adapter asked for a file that it may not read.
    FileNotAllowed, "file_not_allowed";
    /// It asked for nothing that could be understood, or not in time.
    RequestMalformed, "request_malformed";
    /// It asked for more at a time than it may.
    RequestLimit, "request_limit";
    /// What came is no TLS handshake, or one that was given up.
    TlsFailed, "tls_failed";
    TlsTimeout, "tls_timeout";
    /// The client speaks no TLS 1.3, or no cipher or group that is offered.
    TlsVersion, "tls_version";
    CertificateMissing, "certificate_missing";
    CertificateExpired, "certificate_expired";
    CertificateNotYetValid, "certificate_not_yet_valid";
    /// No authority of the listener vouches for it.
    CertificateIssuer, "certificate_issuer";
    /// It is not for clients.
    CertificatePurpose, "certificate_purpose";
    /// It cannot be read, or breaks a rule that its chain lays down.
    CertificateInvalid, "certificate_invalid";
    CertificateRevoked, "certificate_revoked";
    /// No revocation list tells whether it was revoked.
    RevocationUnknown, "revocation_unknown";
    RevocationExpired, "revocation_expired";
    /// The client certificate does not have exactly one URI name.
    CertificateName, "certificate_name";
    /// Its URI name is not a SPIFFE id.
    CertificateSpiffe, "certificate_spiffe";
    PeerLimit, "peer_limit";
    /// The principal has as many connections open as its own limit allows.
    PrincipalLimit, "principal_limit";
    ListenerLimit, "listener_limit";
    GatewayLimit, "gateway_limit";
    /// The gateway lacks descriptors or memory to find out who the peer is.
    Exhausted, "exhausted";
}
