//! Everything that only reads. A pool of its own, short snapshots; nothing here can hold up the writer.

mod audit;
mod lists;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use gatepost_audit::{DirTiles, Leaf};
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{DeliveryId, MessageId, Timestamp};
use serde_json::value::RawValue;
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row as _, SqlitePool};

pub use audit::Receipt;

use crate::audit_log::Published;
use crate::clock::Clock;
use crate::ops::{DeliveryRow, HistoryRow, MessageDetail, StoreError, StoredMessage};
use crate::row::{DELIVERY_COLUMNS, MESSAGE_COLUMNS, bytes, form_of, get, opt_bytes, state_name};
use crate::seal::{Domain, Owner, Place, Vault};
use crate::writer::{DetailBody, Health};
use crate::{sql, sum};

#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    pool: SqlitePool,
    vault: Vault,
    files: DirTiles,
    published: Arc<Published>,
    health: Arc<Health>,
    clock: Clock,
}

impl Reader {
    pub(crate) fn new(
        pool: SqlitePool,
        vault: Vault,
        audit_dir: PathBuf,
        published: Arc<Published>,
        health: Arc<Health>,
        clock: Clock,
    ) -> Self {
        Self {
            inner: Arc::new(Inner { pool, vault, files: DirTiles::new(audit_dir), published, health, clock }),
        }
    }

    fn pool(&self) -> &SqlitePool {
        &self.inner.pool
    }

    /// Store time.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// A message by its id, with its payload if asked for and still kept.
    pub async fn message(&self, id: MessageId, data: Data) -> Result<Option<StoredMessage>, StoreError> {
        let Some(row) = self.optional(sqlx::query(sql::MESSAGE_BY_ID).bind(id.as_bytes().to_vec())).await?
        else {
            return Ok(None);
        };
        let mut message = self.stored_message(&row)?;
        if data == Data::Include && !message.purged {
            let seq: i64 = get(&row, "seq")?;
            let row = self.optional(sqlx::query(sql::MESSAGE_DATA).bind(seq)).await?;
            let row = row.ok_or_else(|| Place { table: "message", column: "seq", row: seq }.corrupt())?;
            message.data = self.data(&row, message.id, seq)?;
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
        let inline = i64::try_from(gatepost_core::message::INLINE_DATA_BYTES_MAX).unwrap_or(i64::MAX);
        let query =
            sqlx::query(sql::MESSAGES_BY_SEQ).bind(sql::seq_list(seqs)).bind(seqs.len() as i64).bind(inline);
        let mut messages = HashMap::with_capacity(seqs.len());
        for row in self.all(query).await? {
            let seq: i64 = get(&row, "seq")?;
            let message = self.stored_message(&row).and_then(|mut message| {
                if message.size <= gatepost_core::message::INLINE_DATA_BYTES_MAX && !message.purged {
                    message.data = self.data(&row, message.id, seq)?;
                }
                Ok(message)
            });
            messages.insert(seq, message);
        }
        Ok(messages)
    }

    /// A message with its deliveries, their replies and every step.
    pub async fn message_detail(&self, id: MessageId) -> Result<Option<MessageDetail>, StoreError> {
        let Some(row) = self.optional(sqlx::query(sql::MESSAGE_BY_ID).bind(id.as_bytes().to_vec())).await?
        else {
            return Ok(None);
        };
        let seq: i64 = get(&row, "seq")?;
        let message = self.stored_message(&row)?;
        let deliveries = self.deliveries_of(id).await?;
        let mut history = Vec::new();
        for row in self.all(sqlx::query(sql::DELIVERIES_LEAVES_OF_MESSAGE).bind(seq)).await? {
            history.extend(self.history(&row).await?);
        }
        Ok(Some(MessageDetail { message, deliveries, history }))
    }

    /// The deliveries of a message with what was answered: the settle's reply, else the first event that the adapter
    /// emitted with the message's id as its `correlationid`.
    pub async fn deliveries_of(
        &self,
        id: MessageId,
    ) -> Result<Vec<(DeliveryRow, Option<String>)>, StoreError> {
        let Some(row) = self.optional(sqlx::query(sql::MESSAGE_BY_ID).bind(id.as_bytes().to_vec())).await?
        else {
            return Ok(Vec::new());
        };
        let seq: i64 = get(&row, "seq")?;
        let mut deliveries = Vec::new();
        for row in self.all(sqlx::query(sql::DELIVERY_ITEMS_OF_MESSAGE).bind(seq)).await? {
            let delivery = delivery_row(&row)?;
            let reply = match self.reply(get(&row, "pos")?).await? {
                Some(reply) => Some(reply),
                None => self.correlated_reply(id, &delivery.destination).await?,
            };
            deliveries.push((delivery, reply));
        }
        Ok(deliveries)
    }

    pub async fn delivery(&self, id: DeliveryId) -> Result<Option<DeliveryRow>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_ITEM).bind(id.as_bytes().to_vec())).await?;
        row.map(|row| delivery_row(&row)).transpose()
    }

    /// Who sent the message of a delivery.
    pub async fn delivery_sender(&self, id: DeliveryId) -> Result<Option<Actor>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_LEAVES).bind(id.as_bytes().to_vec())).await?;
        let Some(row) = row else { return Ok(None) };
        sound_delivery(&row)?;
        let seq: i64 = get(&row, "message")?;
        let row = self.optional(sqlx::query(sql::SENDER_OF_MESSAGE).bind(seq)).await?;
        let Some(row) = row else {
            return Err(Place { table: "message", column: "seq", row: seq }.corrupt());
        };
        sound_message(&row)?;
        sender(&row).map(Some)
    }

    /// Whether a delivery of the message is leased now in one of `queues`.
    pub async fn message_leased_in(&self, id: MessageId, queues: &[String]) -> Result<bool, StoreError> {
        let rows = self.all(sqlx::query(sql::MESSAGE_LEASED_IN).bind(id.as_bytes().to_vec())).await?;
        for row in rows {
            if queues.contains(&get::<String>(&row, "name")?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn reply(&self, pos: i64) -> Result<Option<String>, StoreError> {
        let row = self.optional(sqlx::query(sql::REPLY_OF_DELIVERY).bind(pos)).await?;
        let Some(row) = row else { return Ok(None) };
        let place = Place { table: "reply", column: "body", row: pos };
        let body = self.unseal(get(&row, "body")?, Owner::Reply { delivery: pos }, place)?;
        text(&body, Place { table: "reply", column: "body", row: pos }).map(Some)
    }

    async fn correlated_reply(&self, id: MessageId, adapter: &str) -> Result<Option<String>, StoreError> {
        let correlation = self.inner.vault.index(Domain::Correlation, &[id.to_string().as_bytes()]);
        let query =
            sqlx::query(sql::REPLY_BY_CORRELATION).bind(correlation.to_vec()).bind(adapter.to_owned());
        let Some(row) = self.optional(query).await? else { return Ok(None) };
        let seq: i64 = get(&row, "seq")?;
        let message = self.stored_message(&row)?;
        let Some(data) = self.data(&row, message.id, seq)? else { return Ok(None) };
        let place = Place { table: "message", column: "form", row: seq };
        reply_json(message.form, &data, &message.attributes).ok_or_else(|| place.corrupt()).map(Some)
    }

    /// The steps of one delivery, from its leaves and what the database keeps beside them.
    async fn history(&self, row: &SqliteRow) -> Result<Vec<HistoryRow>, StoreError> {
        let pos: i64 = get(row, "pos")?;
        sound_delivery(row)?;
        let delivery = DeliveryId::from_bytes(bytes(row, "id", pos)?);
        let mut details = HashMap::new();
        for row in self.all(sqlx::query(sql::DETAILS_OF_DELIVERY).bind(pos)).await? {
            let leaf: i64 = get(&row, "leaf")?;
            let place = Place { table: "detail", column: "body", row: leaf };
            details
                .insert(leaf, self.unseal(get(&row, "body")?, Owner::Detail { leaf, delivery: pos }, place)?);
        }
        let mut history = Vec::new();
        for index in leaf_indices(get(row, "leaves")?) {
            let entry = self.entry(index).await?;
            let leaf = Leaf::parse(&entry).map_err(|error| StoreError::Audit(error.to_string()))?;
            let detail = details.get(&i64::try_from(index).unwrap_or(-1));
            let detail = detail.and_then(|body| serde_json::from_slice::<OwnedDetail>(body).ok());
            history.push(HistoryRow {
                delivery,
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

    fn stored_message(&self, row: &SqliteRow) -> Result<StoredMessage, StoreError> {
        let seq: i64 = get(row, "seq")?;
        sound_message(row)?;
        let form = form_of(get(row, "form")?);
        let id = bytes(row, "id", seq)?;
        let place = Place { table: "message", column: "attributes", row: seq };
        Ok(StoredMessage {
            id: MessageId::from_bytes(id),
            sender: sender(row)?,
            accepted_at: Timestamp::from_micros(get(row, "accepted_at")?),
            attributes: self.unseal(get(row, "attributes")?, Owner::Attributes { message: &id }, place)?,
            form: form.ok_or_else(|| Place { table: "message", column: "form", row: seq }.corrupt())?,
            size: Place { table: "message", column: "size", row: seq }.count(get(row, "size")?)?,
            data: None,
            purged: get::<Option<&[u8]>>(row, "salt")?.is_none(),
        })
    }

    /// The payload; `None` if it is purged.
    fn data(&self, row: &SqliteRow, message: MessageId, seq: i64) -> Result<Option<Bytes>, StoreError> {
        let place = Place { table: "message", column: "data", row: seq };
        let sealed = get::<Option<Vec<u8>>>(row, "data")?;
        match (opt_bytes(row, "salt", seq)?, sealed) {
            (Some(salt), Some(sealed)) => {
                let owner = Owner::Data { message: message.as_bytes(), salt: &salt };
                self.unseal(sealed, owner, place).map(Some)
            }
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(place.corrupt()),
        }
    }

    fn unseal(&self, sealed: Vec<u8>, owner: Owner<'_>, place: Place) -> Result<Bytes, StoreError> {
        let content = self.inner.vault.open(&sealed, owner, place)?;
        let skipped = sealed.len() - content.len();
        Ok(Bytes::from(sealed).slice(skipped..))
    }

    async fn all(
        &self,
        query: sqlx::query::Query<'_, sqlx::Sqlite, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        query.fetch_all(self.pool()).await.map_err(|error| StoreError::Database(error.to_string()))
    }

    async fn optional(
        &self,
        query: sqlx::query::Query<'_, sqlx::Sqlite, SqliteArguments>,
    ) -> Result<Option<SqliteRow>, StoreError> {
        query.fetch_optional(self.pool()).await.map_err(|error| StoreError::Database(error.to_string()))
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

fn leaf_indices(leaves: &[u8]) -> impl Iterator<Item = u64> + '_ {
    leaves.chunks_exact(8).map(|index| index.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Refuses a row that begins with a delivery's columns if they do not have the sum that stands behind them.
fn sound_delivery(row: &SqliteRow) -> Result<(), StoreError> {
    let place = Place { table: "delivery", column: "sum", row: get(row, "pos")? };
    if sum::holds_read(row, 0, DELIVERY_COLUMNS)? { Ok(()) } else { Err(place.corrupt()) }
}

/// As [`sound_delivery`], for a message.
fn sound_message(row: &SqliteRow) -> Result<(), StoreError> {
    let place = Place { table: "message", column: "sum", row: get(row, "seq")? };
    if sum::holds_read(row, 0, MESSAGE_COLUMNS)? { Ok(()) } else { Err(place.corrupt()) }
}

fn sender(row: &SqliteRow) -> Result<Actor, StoreError> {
    let kind = ActorKind::from_name(get(row, "sender_kind")?)
        .ok_or_else(|| Place { table: "message", column: "sender_kind", row: 0 }.corrupt())?;
    Ok(Actor::new(kind, get::<String>(row, "sender")?))
}

fn delivery_row(row: &SqliteRow) -> Result<DeliveryRow, StoreError> {
    let pos: i64 = get(row, "pos")?;
    sound_delivery(row)?;
    let code: i64 = get(row, "state")?;
    let state =
        state_name(code).ok_or_else(|| Place { table: "delivery", column: "state", row: pos }.corrupt())?;
    let due = get::<Option<i64>>(row, "due")?.map(Timestamp::from_micros);
    let dead = get::<Option<&str>>(row, "reason")?.and_then(gatepost_core::delivery::Reason::from_code);
    let held = state == "in_doubt" && due.is_none();
    let count = |column| {
        let corrupt = |_| Place { table: "delivery", column, row: pos }.corrupt();
        u32::try_from(get::<i64>(row, column)?).map_err(corrupt)
    };
    Ok(DeliveryRow {
        id: DeliveryId::from_bytes(bytes(row, "id", pos)?),
        message: MessageId::from_bytes(opt_bytes(row, "message_id", pos)?.unwrap_or_default()),
        destination: get::<String>(row, "queue_name")?,
        state,
        reason: dead.map(gatepost_core::delivery::Reason::as_str).or(held.then_some("held")),
        attempts: count("attempts")?,
        series: count("series")?,
        doubt: get(row, "doubt")?,
        replayed: get(row, "replayed")?,
        accepted_at: Timestamp::from_micros(get(row, "accepted_at")?),
        changed_at: Timestamp::from_micros(get(row, "changed_at")?),
        due,
    })
}

fn text(bytes: &[u8], place: Place) -> Result<String, StoreError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| place.corrupt())
}

/// The largest row number there is: pages begin before it.
const FROM_NEWEST: i64 = i64::MAX;

fn cursor_position(cursor: Option<&str>) -> Result<i64, StoreError> {
    cursor.map_or(Ok(FROM_NEWEST), |cursor| {
        cursor.parse::<i64>().ok().filter(|&at| at > 0).ok_or(StoreError::BadCursor)
    })
}

fn column_error(error: sqlx::Error) -> StoreError {
    StoreError::Database(error.to_string())
}

fn scalar<'r, T>(row: &'r SqliteRow) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(0).map_err(column_error)
}
