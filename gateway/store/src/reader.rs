//! Everything that only reads. A pool of its own, short snapshots; nothing here can hold up the writer.

mod audit;
mod lists;
mod postgres;
mod record;
mod source;
mod sqlite;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gatepost_audit::{DirTiles, Leaf};
use gatepost_core::message::INLINE_DATA_BYTES_MAX;
use gatepost_core::principal::Actor;
use gatepost_core::{DeliveryId, MessageId, Timestamp};
use serde_json::value::RawValue;

pub use audit::Receipt;
pub(crate) use source::{Check, Source};

use crate::clock::Clock;
use crate::keyring::Locator;
use crate::ops::{DeliveryRow, HistoryRow, MessageDetail, StoreError, StoredMessage};
use crate::published::Published;
use crate::seal::{Domain, Owner, Place, Vault, locator_of};
use crate::writer::{DetailBody, Health};
use record::{DeliveryLeaves, MessageRecord, Payload, ReplyRecord};

#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    source: Source,
    vault: Vault,
    files: DirTiles,
    published: Arc<Published>,
    health: Arc<Health>,
    clock: Clock,
}

impl Reader {
    pub(crate) fn new(
        source: Source,
        vault: Vault,
        audit_dir: PathBuf,
        published: Arc<Published>,
        health: Arc<Health>,
        clock: Clock,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                source,
                vault,
                files: DirTiles::new(audit_dir),
                published,
                health,
                clock,
            }),
        }
    }

    fn source(&self) -> &Source {
        &self.inner.source
    }

    /// Store time.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// A message by its id, with its payload if asked for and still kept.
    pub async fn message(&self, id: MessageId, data: Data) -> Result<Option<StoredMessage>, StoreError> {
        let Some(record) = self.source().message_by_id(id).await? else { return Ok(None) };
        let seq = record.head.seq;
        let mut message = self.stored_message(record).await?;
        if data == Data::Include && !message.purged {
            let payload = self.source().message_payload(seq).await?;
            let payload =
                payload.ok_or_else(|| Place { table: "message", column: "seq", row: seq }.corrupt())?;
            message.data = self.data(payload, message.id, seq).await?;
            // It may have been purged between the two reads.
            message.purged = message.data.is_none();
        }
        Ok(Some(message))
    }

    /// Messages by their place in accept order, with payloads up to the inline limit. A damaged one does not keep the others.
    pub(crate) async fn messages_by_seq(
        &self,
        seqs: &[i64],
    ) -> Result<HashMap<i64, Result<StoredMessage, StoreError>>, StoreError> {
        if seqs.is_empty() {
            return Ok(HashMap::new());
        }
        let listed = self.source().messages_by_seq(seqs, INLINE_DATA_BYTES_MAX).await?;
        let mut messages = HashMap::with_capacity(listed.len());
        for listed in listed {
            let message = match listed.row {
                Ok(record) => self.stored_message(record).await,
                Err(error) => Err(error),
            };
            messages.insert(listed.number, message);
        }
        Ok(messages)
    }

    /// A message with its deliveries, their replies and every step.
    pub async fn message_detail(&self, id: MessageId) -> Result<Option<MessageDetail>, StoreError> {
        let Some(record) = self.source().message_by_id(id).await? else { return Ok(None) };
        let seq = record.head.seq;
        let message = self.stored_message(record).await?;
        let deliveries = self.deliveries_of(id).await?;
        let mut history = Vec::new();
        for delivery in self.source().delivery_leaves_of_message(seq).await? {
            history.extend(self.history(delivery).await?);
        }
        Ok(Some(MessageDetail { message, deliveries, history }))
    }

    /// The deliveries of a message with what was answered: the settle's reply, else the first event that the adapter
    /// emitted with the message's id as its `correlationid`.
    pub async fn deliveries_of(
        &self,
        id: MessageId,
    ) -> Result<Vec<(DeliveryRow, Option<String>)>, StoreError> {
        let Some(seq) = self.source().message_seq(id).await? else { return Ok(Vec::new()) };
        let mut deliveries = Vec::new();
        for listed in self.source().deliveries_of_message(seq).await? {
            let delivery = listed.row?;
            let reply = match self.source().delivery_reply(delivery.pos).await? {
                Some(reply) => Some(self.reply(reply).await?),
                None => self.correlated_reply(id, &delivery.item.destination).await?,
            };
            deliveries.push((delivery.item, reply));
        }
        Ok(deliveries)
    }

    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRow>, StoreError> {
        Ok(self.source().delivery_by_id(id).await?.map(|delivery| delivery.item))
    }

    /// Who sent the message of a delivery.
    pub async fn delivery_sender(&self, id: DeliveryId) -> Result<Option<Actor>, StoreError> {
        self.source().delivery_sender(id).await
    }

    /// Whether a delivery of the message is leased now in one of `queues`.
    pub async fn message_leased_in(&self, id: MessageId, queues: &[String]) -> Result<bool, StoreError> {
        Ok(self.source().message_leases(id).await?.iter().any(|queue| queues.contains(queue)))
    }

    async fn reply(&self, reply: ReplyRecord) -> Result<String, StoreError> {
        let place = Place { table: "reply", column: "body", row: reply.pos };
        let body = self.unseal(reply.body, Owner::Reply { delivery: reply.pos }, place).await?;
        String::from_utf8(body.to_vec()).map_err(|_| place.corrupt())
    }

    async fn correlated_reply(&self, id: MessageId, adapter: &str) -> Result<Option<String>, StoreError> {
        let correlation = self.inner.vault.index(Domain::Correlation, &[id.to_string().as_bytes()]);
        let record = self.source().message_by_correlation(correlation, adapter).await?;
        let Some(record) = record else { return Ok(None) };
        let place = Place { table: "message", column: "form", row: record.head.seq };
        let message = self.stored_message(record).await?;
        let Some(data) = message.data else { return Ok(None) };
        reply_json(message.form, &data, &message.attributes).ok_or_else(|| place.corrupt()).map(Some)
    }

    /// The steps of one delivery, from its leaves and what the database keeps beside them.
    async fn history(&self, delivery: DeliveryLeaves) -> Result<Vec<HistoryRow>, StoreError> {
        let DeliveryLeaves { pos, id, numbers } = delivery;
        let mut details = HashMap::new();
        for detail in self.source().delivery_details(pos).await? {
            let leaf = detail.leaf;
            let place = Place { table: "detail", column: "body", row: leaf };
            let owner = Owner::Detail { leaf, delivery: pos };
            details.insert(leaf, self.unseal(detail.body, owner, place).await?);
        }
        let mut history = Vec::new();
        let indices = self.source().leaf_indices(&numbers).await?;
        for (number, index) in numbers.into_iter().zip(indices) {
            let entry = match index {
                Some(index) => self.entry(index).await?,
                None => self.entry_without_place(number).await?,
            };
            let leaf = Leaf::parse(&entry).map_err(|error| StoreError::Audit(error.to_string()))?;
            let detail = details.get(&i64::try_from(number).unwrap_or(-1));
            let detail = detail.and_then(|body| serde_json::from_slice::<OwnedDetail>(body).ok());
            history.push(HistoryRow {
                delivery: id,
                at: Timestamp::from_micros(leaf.at),
                event: leaf.event.as_str().to_owned(),
                attempt: leaf.attempt,
                code: leaf.code.as_deref().map(str::to_owned),
                by: format!("{}:{}", leaf.by.kind.as_str(), leaf.by.name),
                reason: detail.as_ref().and_then(|detail| detail.reason.clone()),
                evidence: detail.and_then(|detail| detail.evidence),
            });
        }
        Ok(history)
    }

    async fn stored_message(&self, record: MessageRecord) -> Result<StoredMessage, StoreError> {
        let MessageRecord { head, attributes, payload } = record;
        let place = Place { table: "message", column: "attributes", row: head.seq };
        let owner = Owner::Attributes { message: head.id.as_bytes() };
        let attributes = self.unseal(attributes, owner, place).await?;
        let purged = matches!(payload, Payload::Purged);
        Ok(StoredMessage {
            id: head.id,
            sender: head.sender,
            accepted_at: head.accepted_at,
            attributes,
            form: head.form,
            size: head.size,
            data: self.data(payload, head.id, head.seq).await?,
            purged,
        })
    }

    /// The payload, if it has been read.
    async fn data(
        &self,
        payload: Payload,
        message: MessageId,
        seq: i64,
    ) -> Result<Option<Bytes>, StoreError> {
        let Payload::Read { salt, sealed } = payload else { return Ok(None) };
        let place = Place { table: "message", column: "data", row: seq };
        let owner = Owner::Data { message: message.as_bytes(), salt: &salt };
        self.unseal(sealed, owner, place).await.map(Some)
    }

    pub(crate) async fn unseal(
        &self,
        sealed: Vec<u8>,
        owner: Owner<'_>,
        place: Place,
    ) -> Result<Bytes, StoreError> {
        let vault = &self.inner.vault;
        // Another node may have begun a tree since this one looked.
        if let Some(Locator { tree, .. }) = locator_of(&sealed).filter(|locator| !vault.knows(locator.tree))
            && let Some(stored) = self.source().keyring_tree(tree).await?
        {
            vault.learn(&stored)?;
        }
        vault.open_owned(sealed, owner, place)
    }
}

/// Whether a read brings the payload along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    Include,
    Omit,
}

#[derive(serde::Deserialize)]
struct OwnedDetail {
    reason: Option<String>,
    evidence: Option<String>,
}

impl From<DetailBody<'_>> for OwnedDetail {
    fn from(body: DetailBody<'_>) -> Self {
        Self { reason: body.reason.map(str::to_owned), evidence: body.evidence.map(str::to_owned) }
    }
}

#[derive(serde::Serialize)]
struct ReplyJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

#[derive(serde::Deserialize)]
struct ContentType {
    datacontenttype: Option<String>,
}

/// An event's payload in the shape of a settle's reply.
fn reply_json(form: gatepost_core::message::DataForm, data: &[u8], attributes: &[u8]) -> Option<String> {
    use base64::Engine as _;
    use gatepost_core::message::DataForm;
    let datacontenttype = serde_json::from_slice::<ContentType>(attributes).ok()?.datacontenttype;
    let quoted;
    let (data, data_base64) = match form {
        DataForm::None => (None, None),
        DataForm::Json => (Some(serde_json::from_slice::<&RawValue>(data).ok()?), None),
        DataForm::Text => {
            quoted = serde_json::value::to_raw_value(std::str::from_utf8(data).ok()?).ok()?;
            (Some(&*quoted), None)
        }
        DataForm::Base64 => (None, Some(base64::engine::general_purpose::STANDARD.encode(data))),
    };
    serde_json::to_string(&ReplyJson { datacontenttype, data, data_base64 }).ok()
}

/// The largest row number there is: pages begin before it.
const FROM_NEWEST: i64 = i64::MAX;

fn cursor_position(cursor: Option<&str>) -> Result<i64, StoreError> {
    cursor.map_or(Ok(FROM_NEWEST), |cursor| {
        cursor.parse::<i64>().ok().filter(|&at| at > 0).ok_or(StoreError::BadCursor)
    })
}
