//! Who a peer is: principals are chosen by what the kernel or a certificate says about the connection; a bearer token only
//! narrows that choice, it never makes one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use gatepost_core::principal::{
    Actor, ActorKind, OperatorPermit, OperatorRight, QueuePermit, SendPermit, TypePatterns,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Adapter, AdapterProcess, App, Config, Operator, PrincipalLimits, Serves};

/// What the connection itself proves about its peer: credentials on a Unix socket, a certificate on TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerFacts {
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// The process group of a process that is alive: those that a supervised adapter starts stay in the adapter's.
    pub(crate) process_group: Option<i32>,
    /// The SPIFFE id in the client certificate.
    pub(crate) spiffe: Option<String>,
    /// The program that the process runs; like what follows, only if some selector asks for it.
    pub(crate) exe: Option<PathBuf>,
    /// The process's control group, from the root of the hierarchy.
    pub(crate) cgroup: Option<String>,
}

/// What has to be read of a peer's process, because some selector asks for it. It costs more than the credentials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) exe: bool,
    pub(crate) cgroup: bool,
}

/// What a peer must be to be a principal; every part that is given must match, and at least one is given besides `exe` and a token.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    /// uid
    pub(crate) user: Option<u32>,
    /// gid, primary or supplementary
    pub(crate) group: Option<u32>,
    pub(crate) spiffe: Option<String>,
    /// The program that its process runs; only together with `user`, for whoever is that user can make another look like it.
    pub(crate) exe: Option<PathBuf>,
    /// The systemd unit that its process belongs to.
    pub(crate) unit: Option<String>,
    /// A control group; those below it match too.
    pub(crate) cgroup: Option<String>,
    /// SHA-256 of the bearer token that must come with each request.
    pub(crate) token_sha256: Option<[u8; 32]>,
    /// Such a token must come, and is one that `gatepost token create` made for this principal.
    pub(crate) token_issued: bool,
}

/// Knows the tokens that were made for principals.
pub(crate) trait IssuedTokens {
    /// Whether `token` was made for the principal called `name` as `selector` describes it, and counts now.
    fn admit(&self, name: &str, selector: &Selector, token: &str) -> bool;
}

/// Where none were made.
impl IssuedTokens for () {
    fn admit(&self, _: &str, _: &Selector, _: &str) -> bool {
        false
    }
}

/// An authenticated principal and thereby its rights. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Principal {
    App(Arc<App>),
    Operator(Arc<Operator>),
    Adapter(Arc<Adapter>),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MatchError {
    /// Refuse and close without reading a byte.
    #[error("no principal of the configuration matches this peer")]
    Unknown,
    /// The connection matches, but its request carries no token or another one than the configuration asks for.
    #[error("the request carries no valid bearer token")]
    TokenRefused,
    /// Holds the principals' names, for the audit leaf and the log.
    #[error("the peer matches more than one principal: {}", .0.join(", "))]
    Ambiguous(Vec<String>),
}

impl Selector {
    /// Whether the connection matches, its token aside.
    pub(crate) fn matches(&self, peer: &PeerFacts) -> bool {
        let in_group = |gid| peer.gid == Some(gid) || peer.groups.contains(&gid);
        !self.is_empty()
            && self.user.is_none_or(|uid| peer.uid == Some(uid))
            && self.group.is_none_or(in_group)
            && self.spiffe.as_ref().is_none_or(|id| peer.spiffe.as_ref() == Some(id))
            && self.exe.as_ref().is_none_or(|exe| peer.exe.as_ref() == Some(exe))
            && self.unit.as_deref().is_none_or(|unit| peer.cgroup.as_deref().and_then(unit_of) == Some(unit))
            && self
                .cgroup
                .as_deref()
                .is_none_or(|above| peer.cgroup.as_deref().is_some_and(|cgroup| is_within(cgroup, above)))
    }

    /// What must be read of a process to compare it with this.
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted { exe: self.exe.is_some(), cgroup: self.unit.is_some() || self.cgroup.is_some() }
    }

    /// Whether nothing that a connection proves is asked for. Such a selector matches nobody.
    pub(super) fn is_empty(&self) -> bool {
        self.user.is_none()
            && self.group.is_none()
            && self.spiffe.is_none()
            && self.unit.is_none()
            && self.cgroup.is_none()
    }

    /// Whether each connection that matches `other` also matches this one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        (self.user.is_none() || self.user == other.user)
            && (self.group.is_none() || self.group == other.group)
            && (self.spiffe.is_none() || self.spiffe == other.spiffe)
            && (self.exe.is_none() || self.exe == other.exe)
            && (self.unit.is_none() || self.unit == other.unit)
            && self
                .cgroup
                .as_deref()
                .is_none_or(|above| other.cgroup.as_deref().is_some_and(|cgroup| is_within(cgroup, above)))
    }

    /// Whether a token must come with each request.
    pub(super) fn needs_token(&self) -> bool {
        self.token_sha256.is_some() || self.token_issued
    }

    /// Hashing first makes the comparison independent of the token's length and content.
    fn admits(&self, name: &str, bearer: Option<&str>, issued: &dyn IssuedTokens) -> bool {
        match (&self.token_sha256, bearer) {
            (None, _) if !self.token_issued => true,
            (_, None) => false,
            (None, Some(token)) => issued.admit(name, self, token),
            (Some(expected), Some(token)) => {
                bool::from(Sha256::digest(token.as_bytes()).as_slice().ct_eq(expected.as_slice()))
            }
        }
    }

    /// What an issued token is bound to, as SHA-256: all that a connection must be. It is in force only while that is the same.
    pub(crate) fn binding(&self) -> [u8; 32] {
        let Self { user, group, spiffe, exe, unit, cgroup, token_sha256: _, token_issued: _ } = self;
        // Debug of numbers and strings, which quotes and escapes: two selectors never read the same.
        let text = format!("{:?}", (user, group, spiffe, exe, unit, cgroup));
        Sha256::digest(text.as_bytes()).into()
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selector")
            .field("user", &self.user)
            .field("group", &self.group)
            .field("spiffe", &self.spiffe)
            .field("exe", &self.exe)
            .field("unit", &self.unit)
            .field("cgroup", &self.cgroup)
            .field("token", &self.needs_token())
            .finish()
    }
}

/// What the names of units end in that processes run in.
pub(super) const UNIT_KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The systemd unit of a control group: the first component that is no slice. What a service makes below its own group, or a user's
/// manager below its own, is named by whoever runs there, and so is no unit here.
fn unit_of(cgroup: &str) -> Option<&str> {
    let component =
        cgroup.split('/').find(|component| !component.is_empty() && !component.ends_with(".slice"))?;
    // systemd puts one before a name that the kernel would take for a file of its own.
    let unit = component.strip_prefix('_').unwrap_or(component);
    UNIT_KINDS.iter().any(|kind| unit.ends_with(kind)).then_some(unit)
}

/// Whether `cgroup` is `above` or lies below it.
fn is_within(cgroup: &str, above: &str) -> bool {
    cgroup.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Config {
    /// What must be read of a process that connects to a socket for `serves`.
    pub(crate) fn wanted(&self, serves: Serves) -> Wanted {
        let all = |wanted: &mut dyn Iterator<Item = Wanted>| {
            wanted.fold(Wanted::default(), |sum, one| Wanted {
                exe: sum.exe || one.exe,
                cgroup: sum.cgroup || one.cgroup,
            })
        };
        match serves {
            Serves::Apps => all(&mut self.apps.values().map(|app| app.selector.wanted())),
            Serves::Operators => all(&mut self.operators.values().map(|operator| operator.selector.wanted())),
            Serves::Adapters => {
                let selectors = self.adapters.values().filter_map(|adapter| adapter_selector(adapter));
                all(&mut selectors.map(Selector::wanted))
            }
        }
    }

    /// Whose connections a connection counts among, and how many there may be. Principals that only their tokens tell apart share what they
    /// have together; where one of them has no limit, there is none.
    pub(crate) fn connections(&self, serves: Serves, peer: &PeerFacts) -> Option<(String, usize)> {
        let limits: Vec<(&str, Option<usize>)> = match serves {
            Serves::Apps => matching(&self.apps, app_selector, peer)
                .iter()
                .map(|candidate| (candidate.name, candidate.principal.limits.connections))
                .collect(),
            Serves::Adapters => matching(&self.adapters, adapter_selector, peer)
                .iter()
                .map(|candidate| (candidate.name, candidate.principal.limits.connections))
                .collect(),
            Serves::Operators => Vec::new(),
        };
        let most = limits.iter().try_fold(0usize, |sum, (_, limit)| Some(sum.saturating_add((*limit)?)))?;
        let names: Vec<&str> = limits.iter().map(|(name, _)| *name).collect();
        (!names.is_empty()).then(|| (format!("{} {}", serves.as_str(), names.join(" ")), most))
    }

    /// Why this configuration cannot be in force where the kernel proves nothing about peers' processes. Letting nobody in by such a
    /// selector would be safe too, and a riddle.
    pub(crate) fn unprovable(&self, processes_are_provable: bool) -> Option<String> {
        let asks = [Serves::Apps, Serves::Operators, Serves::Adapters]
            .into_iter()
            .find(|serves| self.wanted(*serves) != Wanted::default())?;
        (!processes_are_provable).then(|| {
            format!(
                "selectors of {} use `exe`, `unit` or `cgroup`, and this kernel cannot tell which process is behind a socket (it needs \
                 Linux 6.5): use `user` and `group`, or a newer kernel",
                asks.as_str()
            )
        })
    }

    /// Whether some principal could be behind this connection. If not, it is refused before anything is read from it.
    pub(crate) fn recognises(&self, serves: Serves, peer: &PeerFacts) -> bool {
        match serves {
            Serves::Apps => !matching(&self.apps, app_selector, peer).is_empty(),
            Serves::Operators => !matching(&self.operators, operator_selector, peer).is_empty(),
            Serves::Adapters => !matching(&self.adapters, adapter_selector, peer).is_empty(),
        }
    }

    /// The one principal behind a request. Supervised adapters are never found here: the supervisor knows them by their pid.
    pub(crate) fn match_principal(
        &self,
        serves: Serves,
        peer: &PeerFacts,
        bearer: Option<&str>,
        issued: &dyn IssuedTokens,
    ) -> Result<Principal, MatchError> {
        match serves {
            Serves::Apps => {
                only(matching(&self.apps, app_selector, peer), bearer, issued).map(Principal::App)
            }
            Serves::Operators => only(matching(&self.operators, operator_selector, peer), bearer, issued)
                .map(Principal::Operator),
            Serves::Adapters => {
                only(matching(&self.adapters, adapter_selector, peer), bearer, issued).map(Principal::Adapter)
            }
        }
    }
}

struct Candidate<'a, T> {
    name: &'a str,
    selector: &'a Selector,
    principal: &'a Arc<T>,
}

fn app_selector(app: &App) -> Option<&Selector> {
    Some(&app.selector)
}

fn operator_selector(operator: &Operator) -> Option<&Selector> {
    Some(&operator.selector)
}

fn adapter_selector(adapter: &Adapter) -> Option<&Selector> {
    match &adapter.process {
        AdapterProcess::External(selector) => Some(selector),
        AdapterProcess::Supervised(_) => None,
    }
}

fn matching<'a, T>(
    pool: &'a BTreeMap<String, Arc<T>>,
    selector: impl Fn(&T) -> Option<&Selector>,
    peer: &PeerFacts,
) -> Vec<Candidate<'a, T>> {
    pool.iter()
        .filter_map(|(name, principal)| Some(Candidate { name, selector: selector(principal)?, principal }))
        .filter(|candidate| candidate.selector.matches(peer))
        .collect()
}

fn only<T>(
    mut candidates: Vec<Candidate<'_, T>>,
    bearer: Option<&str>,
    issued: &dyn IssuedTokens,
) -> Result<Arc<T>, MatchError> {
    if candidates.is_empty() {
        return Err(MatchError::Unknown);
    }
    candidates.retain(|candidate| candidate.selector.admits(candidate.name, bearer, issued));
    match candidates.as_slice() {
        [] => Err(MatchError::TokenRefused),
        [one] => Ok(Arc::clone(one.principal)),
        several => Err(MatchError::Ambiguous(several.iter().map(|one| one.name.to_owned()).collect())),
    }
}

impl Principal {
    /// What it may take; operators have what every principal has.
    pub(crate) fn limits(&self) -> PrincipalLimits {
        match self {
            Self::App(app) => app.limits,
            Self::Adapter(adapter) => adapter.limits,
            Self::Operator(_) => PrincipalLimits::default(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::App(app) => &app.name,
            Self::Operator(operator) => &operator.name,
            Self::Adapter(adapter) => &adapter.name,
        }
    }

    pub(crate) fn actor(&self) -> Actor {
        let kind = match self {
            Self::App(_) => ActorKind::App,
            Self::Operator(_) => ActorKind::Operator,
            Self::Adapter(_) => ActorKind::Adapter,
        };
        Actor::new(kind, self.name())
    }

    /// The permit to send messages of type `kind`, or `None`. Operators send nothing.
    pub(crate) fn send_permit(&self, kind: &str) -> Option<SendPermit> {
        self.send()?.permit(&self.actor(), kind)
    }

    /// What it may send; `None` for an operator.
    pub(crate) fn send(&self) -> Option<&TypePatterns> {
        match self {
            Self::App(app) => Some(&app.send),
            Self::Adapter(adapter) => Some(&adapter.send),
            Self::Operator(_) => None,
        }
    }

    /// The permit to lease from and settle in `queue`, or `None`.
    pub(crate) fn queue_permit(&self, queue: &str) -> Option<QueuePermit> {
        QueuePermit::grant(&self.actor(), self.own_queues(), queue)
    }

    /// The queues it consumes: an app's inboxes, an adapter's own queue.
    pub(crate) fn own_queues(&self) -> &[String] {
        match self {
            Self::App(app) => &app.inboxes,
            Self::Adapter(adapter) => std::slice::from_ref(&adapter.name),
            Self::Operator(_) => &[],
        }
    }

    /// The permit of an operator who has `right`, or `None`.
    pub(crate) fn operator_permit(&self, right: OperatorRight) -> Option<OperatorPermit> {
        match self {
            Self::Operator(operator) => operator.rights.permit(&self.actor(), right),
            Self::App(_) | Self::Adapter(_) => None,
        }
    }
}
