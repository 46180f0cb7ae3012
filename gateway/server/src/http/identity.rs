//! Who makes a request: the principal that the connection's facts give, narrowed by a bearer token. No other header decides.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use gatepost_api::problem::Code;
use gatepost_core::principal::{Actor, ActorKind, OperatorPermit, OperatorRight};

use super::headers::TraceParent;
use super::problem::Refusal;
use crate::config::{Adapter, Config, IssuedTokens, MatchError, Principal};
use crate::listen::{Peer, Serves};

/// The authenticated principal of one request, and the configuration that holds for the whole of it.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) config: Arc<Config>,
    pub(crate) principal: Principal,
    pub(crate) actor: Actor,
    pub(crate) trace: Option<TraceParent>,
}

/// A refusal and whom it goes to.
pub(crate) struct Stranger {
    pub(crate) actor: Actor,
    pub(crate) refusal: Refusal,
}

/// The name under which peers that are nobody stand in the audit log.
const UNKNOWN_PEER: &str = "unknown";

/// Matches a peer against the configuration.
pub(crate) fn identify(
    config: &Config,
    peer: &Peer,
    bearer: Option<&str>,
    issued: &dyn IssuedTokens,
) -> Result<Principal, Stranger> {
    if let Serves::OneAdapter(name) = &peer.serves {
        // The supervisor's socket let only the process in that the supervisor started.
        let adapter =
            config.adapters.get(name.as_ref()).map(|adapter| Principal::Adapter(Arc::clone(adapter)));
        return adapter
            .ok_or_else(|| stranger(Code::Unauthenticated, "this adapter has left the configuration"));
    }
    let unmatched = || stranger(Code::Unauthenticated, "no principal of this socket matches the connection");
    let serves = peer.serves.configured().ok_or_else(unmatched)?;
    config.match_principal(serves, &peer.facts, bearer, issued).map_err(|error| match error {
        MatchError::Unknown => unmatched(),
        MatchError::TokenRefused => {
            stranger(Code::Unauthenticated, "the connection needs a valid token in `Authorization: Bearer`")
        }
        MatchError::Ambiguous(_) => {
            stranger(Code::AmbiguousIdentity, "more than one principal matches this connection and token")
        }
    })
}

pub(crate) fn unknown_peer() -> Actor {
    Actor::new(ActorKind::Peer, UNKNOWN_PEER)
}

fn stranger(code: Code, detail: &'static str) -> Stranger {
    Stranger { actor: unknown_peer(), refusal: Refusal::new(code, detail) }
}

impl Caller {
    /// The operator's permit for `right`.
    pub(crate) fn operator(&self, right: OperatorRight) -> Result<OperatorPermit, Refusal> {
        self.principal.operator_permit(right).ok_or_else(|| {
            Refusal::forbidden(format!("this call is for operators with the right `{}`", right.as_str()))
        })
    }

    pub(crate) fn is_operator(&self) -> bool {
        matches!(self.principal, Principal::Operator(_))
    }

    pub(crate) fn adapter(&self) -> Option<&Arc<Adapter>> {
        match &self.principal {
            Principal::Adapter(adapter) => Some(adapter),
            Principal::App(_) | Principal::Operator(_) => None,
        }
    }

    /// The session that a call is made in: adapters must name theirs, others have none.
    pub(crate) fn session(&self, named: Option<u64>, place: &'static str) -> Result<Option<u64>, Refusal> {
        match (&self.principal, named) {
            (Principal::Adapter(_), None) => Err(Refusal::invalid(format!(
                "an adapter names its session, as `POST /v1/session` gave it, in {place}"
            ))),
            (Principal::Adapter(_), epoch) => Ok(epoch),
            (Principal::App(_) | Principal::Operator(_), _) => Ok(None),
        }
    }
}

/// Put into the request's extensions by the middleware, which lets nobody through without it.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        parts
            .extensions
            .remove::<Self>()
            .ok_or_else(|| Refusal::internal("a handler ran before authentication"))
    }
}
