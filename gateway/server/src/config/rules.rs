//! The rules by which a configuration is refused or warned of, each with an id that stays: faults, `gatepost check --json` and
//! docs/rules.md name it. A fault without a rule is a plain mistake.

/// What the gateway does about a configuration that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It does not start, and a reload changes nothing.
    Refused,
    /// It starts, and says so in `check`, in `status` and in its log.
    Warned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    TcpWithoutCertificates,
    AllAddresses,
    AbstractSocket,
    SocketDirectory,
    OpenKeyFile,
    OnePeerTwoPrincipals,
    NoSelector,
    RootIsAnApp,
    TlsVersion,
    UnknownRevocation,
    TokenWithoutEnd,
    UnverifiedDatabase,
    SandboxOff,
    WritableProgram,
    AdapterIsGateway,
    ConnectAnywhere,
    NoBacklogLimit,
    KeyBesideData,
    MetricsOffHost,
    UnknownKey,
    OneKeyTwoPurposes,
}

/// A rule as people read it.
pub(crate) struct Facts {
    pub(crate) id: &'static str,
    pub(crate) verdict: Verdict,
    /// What is wrong.
    pub(crate) what: &'static str,
    /// What to do.
    pub(crate) advice: &'static str,
}

impl Rule {
    pub(crate) const ALL: [Self; 21] = [
        Self::TcpWithoutCertificates,
        Self::AllAddresses,
        Self::AbstractSocket,
        Self::SocketDirectory,
        Self::OpenKeyFile,
        Self::OnePeerTwoPrincipals,
        Self::NoSelector,
        Self::RootIsAnApp,
        Self::TlsVersion,
        Self::UnknownRevocation,
        Self::TokenWithoutEnd,
        Self::UnverifiedDatabase,
        Self::SandboxOff,
        Self::WritableProgram,
        Self::AdapterIsGateway,
        Self::ConnectAnywhere,
        Self::NoBacklogLimit,
        Self::KeyBesideData,
        Self::MetricsOffHost,
        Self::UnknownKey,
        Self::OneKeyTwoPurposes,
    ];

    pub(crate) const fn id(self) -> &'static str {
        self.facts().id
    }

    /// The one table of rules. Numbers that are missing were never given a rule here.
    pub(crate) const fn facts(self) -> Facts {
        use Verdict::{Refused, Warned};
        let (id, verdict, what, advice) = match self {
            Self::TcpWithoutCertificates => (
                "A01",
                Refused,
                "a TCP listener without client certificates",
                "give it tls = { cert, key, client_ca }, or listen on a Unix socket",
            ),
            Self::AllAddresses => (
                "A02",
                Warned,
                "a listener on all addresses of the host",
                "write the one address that peers need",
            ),
            Self::AbstractSocket => (
                "A03",
                Refused,
                "an abstract socket, which has no owner and no permissions",
                "write the path of a file",
            ),
            Self::SocketDirectory => (
                "A04",
                Refused,
                "a socket in a directory where others could put another in its place",
                "let the directory belong to root or the gateway's user, and take writing away from its group and others",
            ),
            Self::OpenKeyFile => (
                "A05",
                Refused,
                "a secret that others can read, or a certificate, authority or revocation list that others can write",
                "chmod 0600 for keys and addresses with passwords, go-w for certificates and lists; name the file itself, not a link",
            ),
            Self::OnePeerTwoPrincipals => (
                "A06",
                Refused,
                "two principals that one peer would match",
                "change a selector, or give each a token of its own",
            ),
            Self::NoSelector => (
                "A07",
                Refused,
                "a principal without a selector that the kernel or a certificate vouches for",
                "add user, group or spiffe",
            ),
            Self::RootIsAnApp => {
                ("A08", Warned, "root as an app or an external adapter", "run it as a user of its own")
            }
            Self::TlsVersion => (
                "A09",
                Refused,
                "a version of TLS below 1.3, or a choice of ciphers",
                "take the key away: listeners speak TLS 1.3",
            ),
            Self::UnknownRevocation => (
                "A10",
                Refused,
                "certificates let in although nobody knows whether they are revoked",
                "take the key away: unknown is refused",
            ),
            Self::TokenWithoutEnd => (
                "A11",
                Warned,
                "a token that never ends",
                "take token_sha256 away, write token = true, and make one with `gatepost token create`",
            ),
            Self::UnverifiedDatabase => (
                "A12",
                Refused,
                "a PostgreSQL server on another host that need not prove who it is",
                "end its address with ?sslmode=verify-full",
            ),
            Self::SandboxOff => ("A15", Refused, "an adapter without a sandbox", "let the sandbox be on"),
            Self::WritableProgram => (
                "A16",
                Warned,
                "an adapter's program that others than root and the gateway's user can change",
                "chown it to root, and chmod go-w",
            ),
            Self::AdapterIsGateway => (
                "A17",
                Refused,
                "an adapter that runs as the gateway's own user",
                "give it a user of its own",
            ),
            Self::ConnectAnywhere => {
                ("A18", Warned, "an adapter that may connect anywhere", "name its partner's host and port")
            }
            Self::NoBacklogLimit => (
                "A19",
                Warned,
                "a destination without a limit of its backlog, or with one that limits nothing",
                "give it max_backlog = { messages, bytes } that the disk can hold",
            ),
            Self::KeyBesideData => (
                "A20",
                Warned,
                "the key of the stored messages on the volume that holds them",
                "keep it on another volume, or as a systemd credential",
            ),
            Self::MetricsOffHost => (
                "A22",
                Refused,
                "metrics or health without authentication",
                "take the key away: both are served to principals, on the listeners there are",
            ),
            Self::UnknownKey => {
                ("A24", Refused, "a key that the gateway does not know", "correct it, or take it away")
            }
            Self::OneKeyTwoPurposes => (
                "A25",
                Refused,
                "one file that holds the secret of two purposes",
                "make a key for each purpose",
            ),
        };
        Facts { id, verdict, what, advice }
    }
}

/// Keys that others' configurations have and this one never will: what they would switch off cannot be switched off.
/// `path` is the key's, with `name` at its end.
pub(super) fn of_unknown_key(path: &str, name: &str) -> Rule {
    let plain = name.to_ascii_lowercase();
    let about = |words: &[&str]| words.iter().any(|word| plain.contains(word));
    // Elsewhere such words may be a mistake about something else.
    let of_listeners = path.starts_with("listen[") || path.starts_with("gateway.");
    if of_listeners && about(&["tls_", "min_version", "max_version", "protocol", "cipher", "ssl"]) {
        Rule::TlsVersion
    } else if of_listeners && about(&["revo", "crl_", "ocsp"]) {
        Rule::UnknownRevocation
    } else if about(&["metrics", "health", "prometheus"]) {
        Rule::MetricsOffHost
    } else {
        Rule::UnknownKey
    }
}
