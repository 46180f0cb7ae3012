//! What is made of a message before the writer gets it, on the task of whoever handed it in: the writer is one for all, and
//! hashing and sealing are most of what a message costs in processor time.

use gatepost_core::message::NewMessage;
use gatepost_core::principal::Actor;
use gatepost_core::{MessageId, Timestamp};

use crate::random::{self, uuid_at};
use crate::seal::{Domain, Index, Owner, Salt, SealedData, Vault, commitment};

/// Randomness of one message: its salt and the random part of its id.
pub(crate) const RANDOM_BYTES: usize = 42;

/// A message ready to be written if it turns out to be new.
pub(crate) struct Prepared {
    pub(crate) id: MessageId,
    /// Digest of the sender and its idempotency key.
    pub(crate) key: Index,
    /// Digest of what must be the same for the message to be the same.
    pub(crate) fingerprint: Index,
    pub(crate) subject: Option<Index>,
    pub(crate) partition: Option<Index>,
    pub(crate) correlation: Option<Index>,
    /// Of the second ordering key, if that is another than the first.
    pub(crate) barrier: Option<Index>,
    pub(crate) salt: Salt,
    /// What the audit log says of the payload.
    pub(crate) content: [u8; 32],
    /// Sealed.
    pub(crate) attributes: Vec<u8>,
    /// Sealed: what stays of the attributes when the content goes, if that stands apart from them.
    pub(crate) remains: Option<Vec<u8>>,
    /// Sealed.
    pub(crate) data: Vec<u8>,
    /// Of the payload, bytes.
    pub(crate) size: u64,
}

impl Prepared {
    /// Takes the payload and the attributes out of `message`: sealed, they stand here only. The error is the operating system's: it has no randomness to give.
    pub(crate) fn new(
        vault: &Vault,
        sender: &Actor,
        message: &mut NewMessage,
        now: Timestamp,
        remains: Remains,
    ) -> Result<Self, getrandom::Error> {
        Self::with(vault, sender, message, now, remains, &random::of_thread()?)
    }

    /// As [`Prepared::new`], with the randomness that its salt and its id are made of.
    pub(crate) fn with(
        vault: &Vault,
        sender: &Actor,
        message: &mut NewMessage,
        now: Timestamp,
        remains: Remains,
        random: &[u8; RANDOM_BYTES],
    ) -> Result<Self, getrandom::Error> {
        let (mut clear, mut unique) = ([0; 32], [0; 10]);
        clear.copy_from_slice(&random[..32]);
        unique.copy_from_slice(&random[32..]);
        let (key, fingerprint) = identity(vault, sender, message);
        let id = MessageId(uuid_at(now.as_micros(), &unique));
        let of = id.as_bytes();
        let index =
            |domain, text: &Option<String>| text.as_ref().map(|text| vault.index(domain, &[text.as_bytes()]));
        let size = message.data.len() as u64;
        let content = commitment(&clear, &message.data);
        let SealedData { salt, sealed } = vault.seal_data(&std::mem::take(&mut message.data), of, clear)?;
        let owner = Owner::Attributes { message: of };
        Ok(Self {
            id,
            key,
            fingerprint,
            subject: index(Domain::Subject, &message.subject),
            partition: index(Domain::Key, &message.partition_key),
            correlation: index(Domain::Correlation, &message.correlation_id),
            barrier: (message.barrier_key != message.partition_key)
                .then(|| index(Domain::Key, &message.barrier_key))
                .flatten(),
            content,
            salt,
            remains: match remains {
                Remains::Within => None,
                Remains::Apart => Some(vault.seal(&remains_of(&message.attributes), owner)?),
            },
            attributes: vault.seal(&std::mem::take(&mut message.attributes), owner)?,
            size,
            data: sealed,
        })
    }
}

/// Where that part of a message's attributes stands which stays when its content goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remains {
    /// With the others, which are taken out then.
    Within,
    Apart,
}

/// Which message it was; the rest of an event, as its subject and its extensions, may be about somebody.
pub(crate) fn remains_of(attributes: &[u8]) -> Vec<u8> {
    const KEPT: [&str; 6] = ["specversion", "id", "source", "type", "time", "datacontenttype"];
    let event: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(attributes).unwrap_or_default();
    let kept: serde_json::Map<_, _> =
        event.into_iter().filter(|(name, _)| KEPT.contains(&name.as_str())).collect();
    // Serialising a map of strings cannot fail.
    serde_json::to_vec(&kept).unwrap_or_default()
}

/// The key of a hand-in and its fingerprint.
pub(crate) fn identity(vault: &Vault, sender: &Actor, message: &NewMessage) -> (Index, Index) {
    let kind = sender.kind.as_str().as_bytes();
    let key =
        vault.index(Domain::Idempotency, &[kind, sender.name.as_bytes(), message.idempotency_key.as_bytes()]);
    let optional =
        |value: &Option<String>| value.as_ref().map_or(Vec::new(), |text| [b"+", text.as_bytes()].concat());
    let (subject, form) = (optional(&message.subject), optional(&message.datacontenttype));
    let partition = optional(&message.partition_key);
    let mut parts: Vec<&[u8]> =
        vec![message.kind.as_bytes(), message.source.as_bytes(), &subject, &form, &partition];
    // One part more, where there is one: that is no other message's list of parts.
    parts.extend(message.barrier_key.as_ref().map(|key| key.as_bytes()));
    parts.push(&message.data);
    (key, vault.index(Domain::Fingerprint, &parts))
}
