//! What is computed from a message before the writer gets it, on the task of whoever handed it in: the writer is one for
//! all, and hashing is most of what a message costs in processor time.

use gatepost_core::message::NewMessage;
use gatepost_core::principal::Actor;

use crate::seal::{Domain, Index, Vault, commitment};

/// Digests of one message, and the salt they were made under.
pub(crate) struct Digests {
    /// Of the sender and its idempotency key.
    pub(crate) key: Index,
    /// Of what must be the same for the message to be the same.
    pub(crate) fingerprint: Index,
    pub(crate) subject: Option<Index>,
    pub(crate) partition: Option<Index>,
    pub(crate) correlation: Option<Index>,
    pub(crate) salt: [u8; 32],
    /// What the audit log says of the payload.
    pub(crate) content: [u8; 32],
}

impl Digests {
    /// The error is the operating system's: it has no randomness to give.
    pub(crate) fn of(vault: &Vault, sender: &Actor, message: &NewMessage) -> Result<Self, getrandom::Error> {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt)?;
        let (key, fingerprint) = identity(vault, sender, message);
        let index =
            |domain, text: &Option<String>| text.as_ref().map(|text| vault.index(domain, &[text.as_bytes()]));
        Ok(Self {
            key,
            fingerprint,
            subject: index(Domain::Subject, &message.subject),
            partition: index(Domain::Key, &message.partition_key),
            correlation: index(Domain::Correlation, &message.correlation_id),
            content: commitment(&salt, &message.data),
            salt,
        })
    }
}

/// The key of a hand-in and its fingerprint.
pub(crate) fn identity(vault: &Vault, sender: &Actor, message: &NewMessage) -> (Index, Index) {
    let kind = sender.kind.as_str().as_bytes();
    let key =
        vault.index(Domain::Idempotency, &[kind, sender.name.as_bytes(), message.idempotency_key.as_bytes()]);
    let optional =
        |value: &Option<String>| value.as_ref().map_or(Vec::new(), |text| [b"+", text.as_bytes()].concat());
    let fingerprint = vault.index(
        Domain::Fingerprint,
        &[
            message.kind.as_bytes(),
            message.source.as_bytes(),
            &optional(&message.subject),
            &optional(&message.datacontenttype),
            &optional(&message.partition_key),
            &message.data,
        ],
    );
    (key, fingerprint)
}
