//! Who acts, and what they may do. Rights are granted as values: what needs a right demands the value in its signature,
//! so that a path that forgot to ask does not compile.

use std::fmt;

/// The kinds of actors that the audit log knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActorKind {
    Gateway,
    App,
    Adapter,
    Operator,
    /// A peer that was not recognised.
    Peer,
}

impl ActorKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::App => "app",
            Self::Adapter => "adapter",
            Self::Operator => "operator",
            Self::Peer => "peer",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Gateway, Self::App, Self::Adapter, Self::Operator, Self::Peer]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

/// One actor, as it stands in an audit leaf.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Actor {
    pub kind: ActorKind,
    pub name: String,
}

impl Actor {
    pub fn new(kind: ActorKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.name)
    }
}

/// What an operator's configuration lets it do (`can = [...]`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperatorRight {
    Read,
    Operate,
    ReadPayload,
    Audit,
}

impl OperatorRight {
    pub const NAMES: &'static [&'static str] = &["read", "operate", "read_payload", "audit"];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::ReadPayload => "read_payload",
            Self::Audit => "audit",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Read, Self::Operate, Self::ReadPayload, Self::Audit]
            .into_iter()
            .find(|right| right.as_str() == name)
    }
}

/// The types a sender may send: literal, or with `*` at the end for any rest, dots included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypePatterns(Vec<TypePattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum TypePattern {
    Literal(String),
    Prefix(String),
}

impl TypePatterns {
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Self {
        let parse = |pattern: S| {
            let pattern = pattern.as_ref();
            match pattern.strip_suffix('*') {
                Some(prefix) => TypePattern::Prefix(prefix.to_owned()),
                None => TypePattern::Literal(pattern.to_owned()),
            }
        };
        Self(patterns.into_iter().map(parse).collect())
    }

    fn matches(&self, kind: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            TypePattern::Literal(literal) => literal == kind,
            TypePattern::Prefix(prefix) => kind.starts_with(prefix.as_str()),
        })
    }

    /// The permit to send `kind`, or `None`.
    pub fn permit(&self, sender: &Actor, kind: &str) -> Option<SendPermit> {
        self.matches(kind).then(|| SendPermit { sender: sender.clone() })
    }
}

/// Proof that `sender` may send what it hands in. Only [`TypePatterns::permit`] makes one.
#[derive(Clone, Debug)]
pub struct SendPermit {
    sender: Actor,
}

impl SendPermit {
    pub fn sender(&self) -> &Actor {
        &self.sender
    }
}

/// Proof that an operator has a right. Only [`OperatorRights::permit`] makes one.
#[derive(Clone, Debug)]
pub struct OperatorPermit {
    operator: Actor,
}

impl OperatorPermit {
    pub fn operator(&self) -> &Actor {
        &self.operator
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OperatorRights(Vec<OperatorRight>);

impl OperatorRights {
    pub fn new(rights: Vec<OperatorRight>) -> Self {
        Self(rights)
    }

    pub fn permit(&self, operator: &Actor, right: OperatorRight) -> Option<OperatorPermit> {
        self.0.contains(&right).then(|| OperatorPermit { operator: operator.clone() })
    }
}

/// Proof that a consumer may lease from and settle in one queue: the adapter itself, or an app of the inbox.
#[derive(Clone, Debug)]
pub struct QueuePermit {
    consumer: Actor,
    queue: String,
}

impl QueuePermit {
    /// Grants `queue` to a consumer whose configuration names it.
    pub fn grant(consumer: &Actor, own_queues: &[String], queue: &str) -> Option<Self> {
        own_queues
            .iter()
            .any(|own| own == queue)
            .then(|| Self { consumer: consumer.clone(), queue: queue.to_owned() })
    }

    pub fn consumer(&self) -> &Actor {
        &self.consumer
    }

    pub fn queue(&self) -> &str {
        &self.queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r13_6_a_star_at_the_end_matches_any_rest_and_is_literal_elsewhere() {
        let patterns = TypePatterns::new(["org.hl7.v2.*", "a*b", "exact"]);
        for (kind, expected) in [
            ("org.hl7.v2.ORU_R01", true),
            ("org.hl7.v2.a.b.c", true),
            ("org.hl7.v2", false),
            ("a*b", true),
            ("axb", false),
            ("exact", true),
            ("exactly", false),
        ] {
            let app = Actor::new(ActorKind::App, "ehr");
            assert_eq!(patterns.permit(&app, kind).is_some(), expected, "{kind}");
        }
    }
}
