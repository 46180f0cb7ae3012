//! Reading PostgreSQL. It has sums of its pages itself; what is found corrupt here is what no writer of this store writes.
//!
//! Content is partitioned by the day of its message: a message whose payload's row is not there is purged.

mod sql;
#[cfg(test)]
mod tests;

use futures_util::TryStreamExt as _;
use gatepost_core::principal::Actor;
use gatepost_core::{DeliveryId, LeaseToken, MessageId, Timestamp};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{PgPool, Row as _};

use super::record::{
    DeliveryColumns, DeliveryLeaves, DeliveryRecord, DetailRecord, Listed, MessageColumns, MessageHead,
    MessageRecord, NodeRecord, Payload, ReplyRecord, leaf_numbers,
};
use super::source::{Check, DeliverySearch, MessageSearch};
use crate::keyring::WrappedTree;
use crate::leaves::{Placed, Run};
use crate::ops::StoreError;
use crate::seal::{InPieces, Index, Owner, Place, Salt};

/// Numbers of the states whose deliveries stand in table `stuck`.
const IN_DOUBT: i64 = 3;
const DEAD: i64 = 5;

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

#[derive(Clone)]
pub(crate) struct PgSource {
    pool: PgPool,
}

impl PgSource {
    pub(crate) fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    pub(super) async fn message_by_id(&self, id: MessageId) -> Result<Option<MessageRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::MESSAGE_BY_ID).bind(id.as_bytes().as_slice())).await?;
        row.map(|row| message_record(&row)).transpose()
    }

    pub(super) async fn message_seq(&self, id: MessageId) -> Result<Option<i64>, StoreError> {
        let row = self.optional(sqlx::query(sql::MESSAGE_SEQ).bind(id.as_bytes().as_slice())).await?;
        row.map(|row| get(&row, "seq")).transpose()
    }

    pub(super) async fn message_payload(&self, seq: i64) -> Result<Option<Payload>, StoreError> {
        let mut rows = sqlx::query(sql::MESSAGE_PAYLOAD).bind(seq).fetch(&self.pool);
        let Some(first) = rows.try_next().await.map_err(failed)? else { return Ok(None) };
        let payload = payload(&first, seq)?;
        let Some((salt, pieces)) = in_pieces(&first, &payload, seq)? else { return Ok(Some(payload)) };
        // One piece after the other, so that no more than the payload is held.
        let mut sealed = get::<Option<Vec<u8>>>(&first, "bytes")?.unwrap_or_default();
        let mut count = 1;
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            sealed.extend_from_slice(get(&row, "bytes")?);
            count += 1;
        }
        if count != pieces.count || sealed.len() as u64 != pieces.bytes {
            return Err(Place { table: "payload", column: "data", row: seq }.corrupt());
        }
        Ok(Some(Payload::Read { salt, sealed }))
    }

    /// A message whose payload was asked for and stands in pieces is read with them.
    async fn whole(&self, mut message: MessageRecord) -> Result<MessageRecord, StoreError> {
        let seq = message.head.seq;
        if matches!(&message.payload, Payload::Read { sealed, .. } if InPieces::is(sealed)) {
            let place = Place { table: "message", column: "seq", row: seq };
            message.payload = self.message_payload(seq).await?.ok_or_else(|| place.corrupt())?;
        }
        Ok(message)
    }

    pub(super) async fn keyring_tree(&self, tree: u64) -> Result<Option<WrappedTree>, StoreError> {
        let number = i64::try_from(tree).unwrap_or(i64::MAX);
        let row = self.optional(sqlx::query(sql::KEYRING_TREE).bind(number)).await?;
        let place = Place { table: "keyring", column: "key", row: number };
        row.map(|row| {
            let key = u32::try_from(get::<i32>(&row, "key")?).map_err(|_| place.corrupt())?;
            Ok(WrappedTree { tree, key, body: get(&row, "body")? })
        })
        .transpose()
    }

    pub(super) async fn messages_by_seq(
        &self,
        seqs: &[i64],
        inline: u64,
    ) -> Result<Vec<Listed<MessageRecord>>, StoreError> {
        let query = sqlx::query(sql::MESSAGES_BY_SEQ).bind(seqs).bind(bound(inline));
        let mut messages = Vec::with_capacity(seqs.len());
        for Listed { number, row } in self.listed(query, "seq", message_record).await? {
            let row = match row {
                Ok(message) => match self.whole(message).await {
                    Err(error) if !matches!(error, StoreError::Corrupt { .. }) => return Err(error),
                    row => row,
                },
                damaged => damaged,
            };
            messages.push(Listed { number, row });
        }
        Ok(messages)
    }

    pub(super) async fn message_page(
        &self,
        search: &MessageSearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<Option<MessageHead>>>, StoreError> {
        let filter = search.filter;
        let page = |statement| {
            sqlx::query(statement)
                .bind(before)
                .bind(limit)
                .bind(filter.app.as_deref())
                .bind(filter.kind.as_deref())
                .bind(filter.since.map(Timestamp::as_micros))
                .bind(filter.until.map(Timestamp::as_micros))
        };
        let query = match (&search.subject, &search.key) {
            (None, None) => page(sql::MESSAGE_PAGE),
            (Some(subject), None) => page(sql::MESSAGE_PAGE_OF_SUBJECT).bind(subject.as_slice()),
            (None, Some(key)) => page(sql::MESSAGE_PAGE_OF_KEY).bind(key.as_slice()),
            (Some(subject), Some(key)) => {
                page(sql::MESSAGE_PAGE_OF_SUBJECT_AND_KEY).bind(subject.as_slice()).bind(key.as_slice())
            }
        };
        self.listed(
            query,
            "seq",
            |row| {
                if get(row, "matches")? { message_head(row).map(Some) } else { Ok(None) }
            },
        )
        .await
    }

    pub(super) async fn message_leases(&self, id: MessageId) -> Result<Vec<String>, StoreError> {
        let rows = self.all(sqlx::query(sql::MESSAGE_LEASES).bind(id.as_bytes().as_slice())).await?;
        rows.iter().map(|row| get(row, "name")).collect()
    }

    pub(super) async fn message_by_correlation(
        &self,
        correlation: Index,
        adapter: &str,
    ) -> Result<Option<MessageRecord>, StoreError> {
        let query = sqlx::query(sql::MESSAGE_BY_CORRELATION).bind(correlation.as_slice()).bind(adapter);
        let Some(row) = self.optional(query).await? else { return Ok(None) };
        self.whole(message_record(&row)?).await.map(Some)
    }

    pub(super) async fn delivery_by_id(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_BY_ID).bind(id.as_bytes().as_slice())).await?;
        row.map(|row| delivery_record(&row)).transpose()
    }

    pub(super) async fn deliveries_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        self.listed(sqlx::query(sql::DELIVERIES_OF_MESSAGE).bind(seq), "pos", delivery_record).await
    }

    pub(super) async fn delivery_page(
        &self,
        search: &DeliverySearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        // Held ones are in doubt; a dead one has no time at which it is due, so that there this asks for nothing more.
        let (statement, state, held) = match (search.state, search.held) {
            (Some(IN_DOUBT), held) => (sql::DELIVERY_PAGE_STUCK, Some(IN_DOUBT), held),
            (None, true) => (sql::DELIVERY_PAGE_STUCK, Some(IN_DOUBT), true),
            (Some(DEAD), _) => (sql::DELIVERY_PAGE_STUCK, Some(DEAD), false),
            (state, held) => (sql::DELIVERY_PAGE, state, held),
        };
        let state = state.and_then(|state| i16::try_from(state).ok());
        let query =
            sqlx::query(statement).bind(before).bind(limit).bind(state).bind(held).bind(search.destination);
        self.listed(query, "pos", delivery_record).await
    }

    pub(super) async fn delivery_sender(&self, id: DeliveryId) -> Result<Option<Actor>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_SENDER).bind(id.as_bytes().as_slice())).await?;
        let Some(row) = row else { return Ok(None) };
        if !get::<bool>(&row, "found")? {
            return Err(Place { table: "message", column: "seq", row: get(&row, "message")? }.corrupt());
        }
        message_head(&row).map(|head| Some(head.sender))
    }

    pub(super) async fn delivery_ids_of_message(&self, id: MessageId) -> Result<Vec<DeliveryId>, StoreError> {
        let Some(seq) = self.message_seq(id).await? else { return Ok(Vec::new()) };
        let leaves = self.delivery_leaves_of_message(seq).await?;
        Ok(leaves.into_iter().map(|delivery| delivery.id).collect())
    }

    pub(super) async fn delivery_leaves(&self, id: DeliveryId) -> Result<Option<DeliveryLeaves>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_LEAVES).bind(id.as_bytes().as_slice())).await?;
        row.map(|row| leaves_of(&row)).transpose()
    }

    pub(super) async fn delivery_leaves_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<DeliveryLeaves>, StoreError> {
        let rows = self.all(sqlx::query(sql::DELIVERY_LEAVES_OF_MESSAGE).bind(seq)).await?;
        rows.iter().map(leaves_of).collect()
    }

    pub(super) async fn delivery_details(&self, pos: i64) -> Result<Vec<DetailRecord>, StoreError> {
        let rows = self.all(sqlx::query(sql::DELIVERY_DETAILS).bind(pos)).await?;
        rows.iter().map(|row| Ok(DetailRecord { leaf: get(row, "leaf")?, body: get(row, "body")? })).collect()
    }

    pub(super) async fn delivery_reply(&self, pos: i64) -> Result<Option<ReplyRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_REPLY).bind(pos)).await?;
        row.map(|row| Ok(ReplyRecord { pos, body: get(&row, "body")? })).transpose()
    }

    pub(super) async fn queue_id(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let row = self.optional(sqlx::query(sql::QUEUE_ID).bind(name)).await?;
        row.map(|row| Ok(i64::from(get::<i32>(&row, "id")?))).transpose()
    }

    pub(super) async fn queue_oldest_ready(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        self.time(sqlx::query(sql::QUEUE_OLDEST_READY).bind(queue)).await
    }

    pub(super) async fn queue_away(
        &self,
        queue: i64,
        of_node: Option<u32>,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<(DeliveryId, LeaseToken)>, StoreError> {
        let statement = sqlx::query(sql::QUEUE_AWAY).bind(queue).bind(now.as_micros()).bind(limit);
        let rows = self.all(statement.bind(of_node.map(u32::cast_signed))).await?;
        let away = |row| {
            Ok((DeliveryId::from_bytes(get(row, "id")?), LeaseToken::from_bytes(get(row, "settled_token")?)))
        };
        rows.iter().map(away).collect()
    }

    pub(super) async fn queue_oldest_born(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        self.time(sqlx::query(sql::QUEUE_OLDEST_BORN).bind(queue)).await
    }

    pub(super) async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.all(sqlx::query(sql::NODES)).await?.iter().map(node_record).collect()
    }

    pub(super) async fn tree_size(&self) -> Result<Option<u64>, StoreError> {
        let row = self.optional(sqlx::query(sql::TREE_SIZE)).await?;
        let place = Place { table: "store", column: "sequenced", row: 1 };
        row.map(|row| place.count(get(&row, "sequenced")?)).transpose()
    }

    pub(super) async fn placed(&self, from: u64, to: u64) -> Result<Vec<Placed>, StoreError> {
        let rows = self.all(sqlx::query(sql::LEAVES_PLACED).bind(bound(from)).bind(bound(to))).await?;
        let placed = |row: &PgRow| {
            let first: i64 = get(row, "first")?;
            let place = |column| Place { table: "leaf_place", column, row: first };
            Ok(Placed {
                first: place("first").count(first)?,
                number: place("number").count(get(row, "number")?)?,
                count: place("count").count(i64::from(get::<i32>(row, "count")?))?,
            })
        };
        rows.iter().map(placed).collect()
    }

    /// Rows have no sums, so that there is nothing more to check where leaves must be what was written: the tree is.
    pub(super) async fn leaves(
        &self,
        from: u64,
        to: u64,
        _check: Check,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut leaves = Vec::new();
        for row in &self.all(sqlx::query(sql::LEAVES).bind(bound(from)).bind(bound(to))).await? {
            let of_run = run(row, "first")?;
            leaves.extend(of_run.into_iter().filter(|(index, _)| (from..to).contains(index)));
        }
        Ok(leaves)
    }

    pub(super) async fn leaf_indices(&self, numbers: &[u64]) -> Result<Vec<Option<u64>>, StoreError> {
        let numbers: Vec<i64> = numbers.iter().copied().map(bound).collect();
        let rows = self.all(sqlx::query(sql::LEAF_INDICES).bind(numbers)).await?;
        let index = |row| Ok(get::<Option<i64>>(row, "index")?.and_then(|index| u64::try_from(index).ok()));
        rows.iter().map(index).collect()
    }

    pub(super) async fn leaf_by_number(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.optional(sqlx::query(sql::LEAF_BY_NUMBER).bind(bound(number))).await?;
        let Some(row) = row else { return Ok(None) };
        Ok(run(&row, "number")?.into_iter().find(|(of, _)| *of == number).map(|(_, leaf)| leaf))
    }

    async fn all(&self, query: Query<'_>) -> Result<Vec<PgRow>, StoreError> {
        query.fetch_all(&self.pool).await.map_err(failed)
    }

    async fn optional(&self, query: Query<'_>) -> Result<Option<PgRow>, StoreError> {
        query.fetch_optional(&self.pool).await.map_err(failed)
    }

    /// Every row with its number, damaged or not.
    async fn listed<T>(
        &self,
        query: Query<'_>,
        number: &'static str,
        read: impl Fn(&PgRow) -> Result<T, StoreError>,
    ) -> Result<Vec<Listed<T>>, StoreError> {
        let rows = self.all(query).await?;
        rows.iter().map(|row| Ok(Listed { number: get(row, number)?, row: read(row) })).collect()
    }

    async fn time(&self, query: Query<'_>) -> Result<Option<Timestamp>, StoreError> {
        let Some(row) = self.optional(query).await? else { return Ok(None) };
        Ok(get::<Option<i64>>(&row, "at")?.map(Timestamp::from_micros))
    }
}

fn node_record(row: &PgRow) -> Result<NodeRecord, StoreError> {
    let (queues, counts): (Vec<String>, Vec<i32>) = (get(row, "queues")?, get(row, "counts")?);
    let counts = counts.into_iter().map(|count| u32::try_from(count).unwrap_or(0));
    Ok(NodeRecord {
        name: get(row, "name")?,
        epoch: get::<i32>(row, "epoch")?.cast_unsigned(),
        version: get(row, "version")?,
        since: Timestamp::from_micros(get(row, "since")?),
        until: Timestamp::from_micros(get(row, "until")?),
        roles: get(row, "roles")?,
        buckets: queues.into_iter().zip(counts).collect(),
    })
}

fn message_record(row: &PgRow) -> Result<MessageRecord, StoreError> {
    let head = message_head(row)?;
    let payload = payload(row, head.seq)?;
    Ok(MessageRecord { head, attributes: get(row, "attributes")?, payload })
}

fn message_head(row: &PgRow) -> Result<MessageHead, StoreError> {
    let seq: i64 = get(row, "seq")?;
    let columns = MessageColumns {
        seq,
        id: fixed(row, "id", Place { table: "message", column: "id", row: seq })?,
        accepted_at: get(row, "accepted_at")?,
        sender_kind: get(row, "sender_kind")?,
        sender: get(row, "sender")?,
        kind: get(row, "kind")?,
        form: i64::from(get::<i16>(row, "form")?),
        size: get(row, "size")?,
    };
    columns.read()
}

/// A payload's columns cannot be null: one without data was not asked for it.
fn payload(row: &PgRow, seq: i64) -> Result<Payload, StoreError> {
    if get::<Option<&[u8]>>(row, "salt")?.is_none() {
        return Ok(Payload::Purged);
    }
    let Some(sealed) = get::<Option<Vec<u8>>>(row, "data")? else { return Ok(Payload::Unread) };
    let salt = fixed(row, "salt", Place { table: "payload", column: "salt", row: seq })?;
    Ok(Payload::Read { salt: Salt::from_stored(salt), sealed })
}

/// Whether a payload stands in pieces, and its salt.
fn in_pieces(row: &PgRow, payload: &Payload, seq: i64) -> Result<Option<(Salt, InPieces)>, StoreError> {
    let Payload::Read { salt, sealed } = payload else { return Ok(None) };
    if !InPieces::is(sealed) {
        return Ok(None);
    }
    let id = fixed(row, "id", Place { table: "message", column: "id", row: seq })?;
    let pieces = InPieces::read(sealed, Owner::Data { message: &id, salt });
    let pieces = pieces.ok_or_else(|| Place { table: "payload", column: "data", row: seq }.corrupt())?;
    Ok(Some((*salt, pieces)))
}

fn delivery_record(row: &PgRow) -> Result<DeliveryRecord, StoreError> {
    let pos: i64 = get(row, "pos")?;
    let place = |column| Place { table: "delivery", column, row: pos };
    let columns = DeliveryColumns {
        pos,
        id: fixed(row, "id", place("id"))?,
        message: fixed(row, "message_id", place("message"))?,
        destination: get(row, "queue_name")?,
        state: i64::from(get::<i16>(row, "state")?),
        reason: get(row, "reason")?,
        attempts: i64::from(get::<i32>(row, "attempts")?),
        series: i64::from(get::<i32>(row, "series")?),
        doubt: get(row, "doubt")?,
        replayed: get(row, "replayed")?,
        accepted_at: get(row, "accepted_at")?,
        changed_at: get(row, "changed_at")?,
        due: get(row, "due")?,
    };
    columns.read()
}

fn leaves_of(row: &PgRow) -> Result<DeliveryLeaves, StoreError> {
    let pos: i64 = get(row, "pos")?;
    let id = fixed(row, "id", Place { table: "delivery", column: "id", row: pos })?;
    Ok(DeliveryLeaves { pos, id: DeliveryId::from_bytes(id), numbers: leaf_numbers(get(row, "leaves")?) })
}

/// The leaves of a run, counted from what the column says of its first one.
fn run(row: &PgRow, first: &'static str) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
    let at: i64 = get(row, first)?;
    let place = |column| Place { table: "leaf", column, row: at };
    let run = Run { first: place(first).count(at)?, bytes: get(row, "bytes")? };
    let leaves = run.leaves().map_err(|_| place("bytes").corrupt())?;
    let leaves: Vec<(u64, Vec<u8>)> = leaves.map(|(index, leaf)| (index, leaf.to_vec())).collect();
    // One more or less would shift every leaf behind it.
    if i32::try_from(leaves.len()).ok() != Some(get(row, "count")?) {
        return Err(place("count").corrupt());
    }
    Ok(leaves)
}

fn get<'r, T>(row: &'r PgRow, column: &str) -> Result<T, StoreError>
where
    T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    row.try_get(column).map_err(failed)
}

fn fixed<const N: usize>(row: &PgRow, column: &str, place: Place) -> Result<[u8; N], StoreError> {
    get::<&[u8]>(row, column)?.try_into().map_err(|_| place.corrupt())
}

fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A database that does not answer is away: whoever asks may ask again.
fn failed(error: sqlx::Error) -> StoreError {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => {
            StoreError::ReadOnly(error.to_string())
        }
        sqlx::Error::Database(of_server) if of_server.code().is_some_and(|code| code.starts_with("57")) => {
            StoreError::ReadOnly(of_server.message().to_owned())
        }
        error => StoreError::Database(error.to_string()),
    }
}
