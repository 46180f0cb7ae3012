//! Who a peer is: principals are chosen by what the kernel or a certificate says about the connection; a bearer token only
//! narrows that choice, it never makes one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use gatepost_core::principal::{
    Actor, ActorKind, OperatorPermit, OperatorRight, QueuePermit, SendPermit, TypePatterns,
};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Adapter, AdapterProcess, App, Config, Operator, Serves};

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
}

/// What a peer must be to be a principal; every part that is given must match, and at least one of the first three is given.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    /// uid
    pub(crate) user: Option<u32>,
    /// gid, primary or supplementary
    pub(crate) group: Option<u32>,
    pub(crate) spiffe: Option<String>,
    /// SHA-256 of the bearer token that must come with each request.
    pub(crate) token_sha256: Option<[u8; 32]>,
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
    }

    /// Whether nothing that a connection proves is asked for. Such a selector matches nobody.
    pub(super) fn is_empty(&self) -> bool {
        self.user.is_none() && self.group.is_none() && self.spiffe.is_none()
    }

    /// Whether each connection that matches `other` also matches this one.
    pub(super) fn covers(&self, other: &Self) -> bool {
        (self.user.is_none() || self.user == other.user)
            && (self.group.is_none() || self.group == other.group)
            && (self.spiffe.is_none() || self.spiffe == other.spiffe)
    }

    /// Hashing first makes the comparison independent of the token's length and content.
    fn admits(&self, bearer: Option<&str>) -> bool {
        match (&self.token_sha256, bearer) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(expected), Some(token)) => {
                bool::from(Sha256::digest(token.as_bytes()).as_slice().ct_eq(expected.as_slice()))
            }
        }
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Selector")
            .field("user", &self.user)
            .field("group", &self.group)
            .field("spiffe", &self.spiffe)
            .field("token", &self.token_sha256.is_some())
            .finish()
    }
}

impl Config {
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
    ) -> Result<Principal, MatchError> {
        match serves {
            Serves::Apps => only(matching(&self.apps, app_selector, peer), bearer).map(Principal::App),
            Serves::Operators => {
                only(matching(&self.operators, operator_selector, peer), bearer).map(Principal::Operator)
            }
            Serves::Adapters => {
                only(matching(&self.adapters, adapter_selector, peer), bearer).map(Principal::Adapter)
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

fn only<T>(mut candidates: Vec<Candidate<'_, T>>, bearer: Option<&str>) -> Result<Arc<T>, MatchError> {
    if candidates.is_empty() {
        return Err(MatchError::Unknown);
    }
    candidates.retain(|candidate| candidate.selector.admits(bearer));
    match candidates.as_slice() {
        [] => Err(MatchError::TokenRefused),
        [one] => Ok(Arc::clone(one.principal)),
        several => Err(MatchError::Ambiguous(several.iter().map(|one| one.name.to_owned()).collect())),
    }
}

impl Principal {
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
