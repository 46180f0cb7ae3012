//! Reading SQLite. Every row has its sum; one whose sum does not fit is corrupt, whatever is in it.

use futures_util::TryStreamExt as _;
use gatepost_core::principal::Actor;
use gatepost_core::{DeliveryId, LeaseToken, MessageId, Timestamp};
use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Row as _, SqlitePool};

use super::record::{
    DeliveryColumns, DeliveryLeaves, DeliveryRecord, DetailRecord, Listed, MessageColumns, MessageHead,
    MessageRecord, Payload, ReplyRecord, leaf_numbers,
};
use super::source::{Check, DeliverySearch, MessageSearch};
use crate::keyring::WrappedTree;
use crate::leaves::Run;
use crate::ops::StoreError;
use crate::seal::{InPieces, Index, Owner, Place, Salt};
use crate::sqlite::row::{DELIVERY_SUMMED, MESSAGE_COLUMNS, bytes, get, opt_bytes};
use crate::{sql, sum};

/// Columns of a leaf that its sum covers.
const LEAF_COLUMNS: usize = 2;

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, SqliteArguments>;

#[derive(Clone)]
pub(crate) struct SqliteSource {
    pool: SqlitePool,
}

impl SqliteSource {
    pub(crate) fn new(pool: SqlitePool) -> Self {
        Self { pool }
    }

    pub(super) async fn message_by_id(&self, id: MessageId) -> Result<Option<MessageRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::MESSAGE_BY_ID).bind(id.as_bytes().to_vec())).await?;
        row.map(|row| message_record(&row)).transpose()
    }

    pub(super) async fn message_seq(&self, id: MessageId) -> Result<Option<i64>, StoreError> {
        let row = self.optional(sqlx::query(sql::MESSAGE_BY_ID).bind(id.as_bytes().to_vec())).await?;
        row.map(|row| get(&row, "seq")).transpose()
    }

    pub(super) async fn message_payload(&self, seq: i64) -> Result<Option<Payload>, StoreError> {
        let mut rows = sqlx::query(sql::MESSAGE_DATA).bind(seq).fetch(&self.pool);
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
            return Err(Place { table: "message", column: "data", row: seq }.corrupt());
        }
        Ok(Some(Payload::Read { salt, sealed }))
    }

    /// A payload that stands in pieces is read anew, with them.
    async fn whole(&self, payload: Payload, seq: i64) -> Result<Payload, StoreError> {
        match payload {
            Payload::Read { ref sealed, .. } if InPieces::is(sealed) => {
                let place = Place { table: "message", column: "seq", row: seq };
                self.message_payload(seq).await?.ok_or_else(|| place.corrupt())
            }
            Payload::Read { .. } | Payload::Purged | Payload::Unread => Ok(payload),
        }
    }

    pub(super) async fn keyring_tree(&self, tree: u64) -> Result<Option<WrappedTree>, StoreError> {
        let number = i64::try_from(tree).unwrap_or(i64::MAX);
        let row = self.optional(sqlx::query(sql::KEYRING_TREE).bind(number)).await?;
        let place = Place { table: "keyring", column: "key", row: number };
        row.map(|row| {
            let key = u32::try_from(get::<i64>(&row, "key")?).map_err(|_| place.corrupt())?;
            Ok(WrappedTree { tree, key, body: get(&row, "body")? })
        })
        .transpose()
    }

    pub(super) async fn messages_by_seq(
        &self,
        seqs: &[i64],
        inline: u64,
    ) -> Result<Vec<Listed<MessageRecord>>, StoreError> {
        let query = sqlx::query(sql::MESSAGES_BY_SEQ)
            .bind(sql::seq_list(seqs))
            .bind(seqs.len() as i64)
            .bind(bound(inline));
        let mut messages = self
            .listed(query, "seq", |row| {
                let mut message = message_record(row)?;
                if message.head.size <= inline && matches!(message.payload, Payload::Unread) {
                    message.payload = payload(row, message.head.seq)?;
                }
                Ok(message)
            })
            .await?;
        for Listed { number, row } in &mut messages {
            let Ok(message) = row else { continue };
            let payload = std::mem::replace(&mut message.payload, Payload::Unread);
            match self.whole(payload, *number).await {
                Ok(whole) => message.payload = whole,
                Err(error @ StoreError::Corrupt { .. }) => *row = Err(error),
                Err(error) => return Err(error),
            }
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
        let query = sqlx::query(sqlx::AssertSqlSafe(message_page_sql(search, limit)))
            .bind(before)
            .bind(search.subject.map(|subject| subject.to_vec()))
            .bind(search.key.map(|key| key.to_vec()))
            .bind(filter.app.clone())
            .bind(filter.kind.clone())
            .bind(filter.since.map(Timestamp::as_micros))
            .bind(filter.until.map(Timestamp::as_micros));
        self.listed(query, "seq", |row| {
            if get::<bool>(row, "matches")? { message_head(row).map(Some) } else { Ok(None) }
        })
        .await
    }

    pub(super) async fn message_leases(&self, id: MessageId) -> Result<Vec<String>, StoreError> {
        let rows = self.all(sqlx::query(sql::MESSAGE_LEASED_IN).bind(id.as_bytes().to_vec())).await?;
        rows.iter().map(|row| get(row, "name")).collect()
    }

    pub(super) async fn message_by_correlation(
        &self,
        correlation: Index,
        adapter: &str,
    ) -> Result<Option<MessageRecord>, StoreError> {
        let query =
            sqlx::query(sql::REPLY_BY_CORRELATION).bind(correlation.to_vec()).bind(adapter.to_owned());
        let Some(row) = self.optional(query).await? else { return Ok(None) };
        let message = message_record(&row)?;
        let payload = self.whole(payload(&row, message.head.seq)?, message.head.seq).await?;
        Ok(Some(MessageRecord { payload, ..message }))
    }

    pub(super) async fn delivery_by_id(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_ITEM).bind(id.as_bytes().to_vec())).await?;
        row.map(|row| delivery_record(&row)).transpose()
    }

    pub(super) async fn deliveries_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        self.listed(sqlx::query(sql::DELIVERY_ITEMS_OF_MESSAGE).bind(seq), "pos", delivery_record).await
    }

    /// Their ids alone, for who has no health to tell of a damaged one.
    pub(super) async fn delivery_ids_of_message(&self, id: MessageId) -> Result<Vec<DeliveryId>, StoreError> {
        let query = sqlx::query(sql::DELIVERIES_OF_MESSAGE_ID).bind(id.as_bytes().to_vec());
        let rows = self.all(query).await?;
        rows.iter().map(|row| Ok(DeliveryId::from_bytes(bytes(row, "id", 0)?))).collect()
    }

    pub(super) async fn delivery_page(
        &self,
        search: &DeliverySearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        let sql = sql::delivery_list(search.state, search.held, search.destination.is_some());
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(before).bind(limit);
        if let Some(destination) = search.destination {
            query = query.bind(destination.to_owned());
        }
        self.listed(query, "pos", delivery_record).await
    }

    pub(super) async fn delivery_sender(&self, id: DeliveryId) -> Result<Option<Actor>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_LEAVES).bind(id.as_bytes().to_vec())).await?;
        let Some(row) = row else { return Ok(None) };
        sound_delivery(&row)?;
        let seq: i64 = get(&row, "message")?;
        let row = self.optional(sqlx::query(sql::SENDER_OF_MESSAGE).bind(seq)).await?;
        let Some(row) = row else {
            return Err(Place { table: "message", column: "seq", row: seq }.corrupt());
        };
        message_head(&row).map(|head| Some(head.sender))
    }

    pub(super) async fn delivery_leaves(&self, id: DeliveryId) -> Result<Option<DeliveryLeaves>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_LEAVES).bind(id.as_bytes().to_vec())).await?;
        row.map(|row| leaves_of(&row)).transpose()
    }

    pub(super) async fn delivery_leaves_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<DeliveryLeaves>, StoreError> {
        let rows = self.all(sqlx::query(sql::DELIVERIES_LEAVES_OF_MESSAGE).bind(seq)).await?;
        rows.iter().map(leaves_of).collect()
    }

    pub(super) async fn delivery_details(&self, pos: i64) -> Result<Vec<DetailRecord>, StoreError> {
        let rows = self.all(sqlx::query(sql::DETAILS_OF_DELIVERY).bind(pos)).await?;
        rows.iter().map(|row| Ok(DetailRecord { leaf: get(row, "leaf")?, body: get(row, "body")? })).collect()
    }

    pub(super) async fn delivery_reply(&self, pos: i64) -> Result<Option<ReplyRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::REPLY_OF_DELIVERY).bind(pos)).await?;
        row.map(|row| Ok(ReplyRecord { pos, body: get(&row, "body")? })).transpose()
    }

    pub(super) async fn queue_id(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let row = self.optional(sqlx::query(sql::QUEUE_ID).bind(name.to_owned())).await?;
        row.map(|row| get(&row, "id")).transpose()
    }

    pub(super) async fn queue_oldest_ready(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        self.time(sqlx::query(sql::OLDEST_READY).bind(queue)).await
    }

    pub(super) async fn queue_away(
        &self,
        queue: i64,
        _of_node: Option<u32>,
        now: Timestamp,
        limit: i64,
    ) -> Result<Vec<(DeliveryId, LeaseToken)>, StoreError> {
        let rows = self.all(sqlx::query(sql::AWAY).bind(queue).bind(now.as_micros()).bind(limit)).await?;
        let away = |row: &SqliteRow| {
            Ok((
                DeliveryId::from_bytes(bytes(row, "id", 0)?),
                LeaseToken::from_bytes(bytes(row, "settled_token", 0)?),
            ))
        };
        rows.iter().map(away).collect()
    }

    pub(super) async fn queue_oldest_born(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        self.time(sqlx::query(sql::OLDEST_BORN).bind(queue)).await
    }

    pub(crate) async fn tree_size(&self) -> Result<Option<u64>, StoreError> {
        let row = self.optional(sqlx::query(sql::STORE_LOAD)).await?;
        row.map(|row| Ok(u64::try_from(get::<i64>(&row, "leaf_count")?).unwrap_or(0))).transpose()
    }

    pub(crate) async fn leaf_first(&self) -> Result<Option<u64>, StoreError> {
        let row = self.optional(sqlx::query(sql::LEAF_FIRST)).await?;
        let first = row.map(|row| row.try_get::<i64, _>(0).map_err(failed)).transpose()?;
        Ok(first.and_then(|first| u64::try_from(first).ok()))
    }

    pub(crate) async fn leaves(
        &self,
        from: u64,
        to: u64,
        check: Check,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        // A run that holds `from` begins in its tile.
        let query = sqlx::query(sql::LEAVES).bind(bound(Run::tile_start(from))).bind(bound(to));
        let mut leaves = Vec::new();
        for row in &self.all(query).await? {
            let index: i64 = get(row, "idx")?;
            let place = |column| Place { table: "leaf", column, row: index };
            if check == Check::Sums && !sum::holds_read(row, 0, LEAF_COLUMNS)? {
                return Err(place("sum").corrupt());
            }
            let run = Run { first: place("idx").count(index)?, bytes: get(row, "bytes")? };
            let of_run = run.leaves().map_err(|_| place("bytes").corrupt())?;
            let wanted = of_run.filter(|(index, _)| (from..to).contains(index));
            leaves.extend(wanted.map(|(index, leaf)| (index, leaf.to_vec())));
        }
        Ok(leaves)
    }

    /// The one writer gives a leaf its place as it writes it: its number is its index.
    #[expect(clippy::unused_async, reason = "another database has to ask")]
    pub(super) async fn leaf_indices(&self, numbers: &[u64]) -> Result<Vec<Option<u64>>, StoreError> {
        Ok(numbers.iter().copied().map(Some).collect())
    }

    pub(super) async fn leaf_by_number(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let leaves = self.leaves(number, number.saturating_add(1), Check::Sums).await?;
        Ok(leaves.into_iter().next().map(|(_, leaf)| leaf))
    }

    async fn all(&self, query: Query<'_>) -> Result<Vec<SqliteRow>, StoreError> {
        query.fetch_all(&self.pool).await.map_err(failed)
    }

    async fn optional(&self, query: Query<'_>) -> Result<Option<SqliteRow>, StoreError> {
        query.fetch_optional(&self.pool).await.map_err(failed)
    }

    /// Every row with its number, damaged or not.
    async fn listed<T>(
        &self,
        query: Query<'_>,
        number: &'static str,
        read: impl Fn(&SqliteRow) -> Result<T, StoreError>,
    ) -> Result<Vec<Listed<T>>, StoreError> {
        let rows = self.all(query).await?;
        rows.iter().map(|row| Ok(Listed { number: get(row, number)?, row: read(row) })).collect()
    }

    /// The only column of the only row, if there is one.
    async fn time(&self, query: Query<'_>) -> Result<Option<Timestamp>, StoreError> {
        let Some(row) = self.optional(query).await? else { return Ok(None) };
        let at: Option<i64> = row.try_get(0).map_err(failed)?;
        Ok(at.map(Timestamp::from_micros))
    }
}

/// Indexes give the messages in order, a page from each one; the rest of the search only marks them.
fn message_page_sql(search: &MessageSearch<'_>, limit: i64) -> String {
    let filter = search.filter;
    let mut matches = String::from("1");
    for (given, clause) in [
        (filter.app.is_some(), " AND sender = $4"),
        (filter.kind.is_some(), " AND kind = $5"),
        (filter.since.is_some(), " AND accepted_at >= $6"),
        (filter.until.is_some(), " AND accepted_at < $7"),
    ] {
        if given {
            matches.push_str(clause);
        }
    }
    let subject = if search.subject.is_some() { " AND subject = $2" } else { "" };
    let walk = |key: &str| {
        format!(
            "SELECT seq, id, accepted_at, sender_kind, sender, kind, form, size, sum, ({matches}) AS matches \
             FROM message WHERE seq < $1{subject}{key} ORDER BY seq DESC LIMIT {limit}"
        )
    };
    let walks = match search.key {
        None => walk(""),
        // No message has the same key twice.
        Some(_) => format!(
            "SELECT * FROM ({}) UNION ALL SELECT * FROM ({}) ORDER BY seq DESC LIMIT {limit}",
            walk(" AND key = $3"),
            walk(" AND barrier = $3")
        ),
    };
    format!("/* message_list */ {walks}")
}

fn message_record(row: &SqliteRow) -> Result<MessageRecord, StoreError> {
    let head = message_head(row)?;
    let purged = get::<Option<&[u8]>>(row, "salt")?.is_none();
    let payload = if purged { Payload::Purged } else { Payload::Unread };
    Ok(MessageRecord { head, attributes: get(row, "attributes")?, payload })
}

fn message_head(row: &SqliteRow) -> Result<MessageHead, StoreError> {
    let seq: i64 = get(row, "seq")?;
    if !sum::holds_read(row, 0, MESSAGE_COLUMNS)? {
        return Err(Place { table: "message", column: "sum", row: seq }.corrupt());
    }
    let columns = MessageColumns {
        seq,
        id: bytes(row, "id", seq)?,
        accepted_at: get(row, "accepted_at")?,
        sender_kind: get(row, "sender_kind")?,
        sender: get(row, "sender")?,
        kind: get(row, "kind")?,
        form: get(row, "form")?,
        size: get(row, "size")?,
    };
    columns.read()
}

fn payload(row: &SqliteRow, seq: i64) -> Result<Payload, StoreError> {
    match (opt_bytes(row, "salt", seq)?, get::<Option<Vec<u8>>>(row, "data")?) {
        (Some(salt), Some(sealed)) => Ok(Payload::Read { salt: Salt::from_stored(salt), sealed }),
        (None, None) => Ok(Payload::Purged),
        (Some(_), None) | (None, Some(_)) => {
            Err(Place { table: "message", column: "data", row: seq }.corrupt())
        }
    }
}

/// Whether a payload stands in pieces, and its salt.
fn in_pieces(row: &SqliteRow, payload: &Payload, seq: i64) -> Result<Option<(Salt, InPieces)>, StoreError> {
    let Payload::Read { salt, sealed } = payload else { return Ok(None) };
    if !InPieces::is(sealed) {
        return Ok(None);
    }
    let owner = Owner::Data { message: &bytes(row, "id", seq)?, salt };
    let pieces = InPieces::read(sealed, owner);
    let pieces = pieces.ok_or_else(|| Place { table: "message", column: "data", row: seq }.corrupt())?;
    Ok(Some((*salt, pieces)))
}

fn delivery_record(row: &SqliteRow) -> Result<DeliveryRecord, StoreError> {
    let pos = sound_delivery(row)?;
    let columns = DeliveryColumns {
        pos,
        id: bytes(row, "id", pos)?,
        message: opt_bytes(row, "message_id", pos)?.unwrap_or_default(),
        destination: get(row, "queue_name")?,
        state: get(row, "state")?,
        reason: get(row, "reason")?,
        attempts: get(row, "attempts")?,
        series: get(row, "series")?,
        doubt: get(row, "doubt")?,
        replayed: get(row, "replayed")?,
        accepted_at: get(row, "accepted_at")?,
        changed_at: get(row, "changed_at")?,
        due: get(row, "due")?,
    };
    columns.read()
}

fn leaves_of(row: &SqliteRow) -> Result<DeliveryLeaves, StoreError> {
    let pos = sound_delivery(row)?;
    let id = DeliveryId::from_bytes(bytes(row, "id", pos)?);
    Ok(DeliveryLeaves { pos, id, numbers: leaf_numbers(get(row, "leaves")?) })
}

/// Refuses a row that begins with a delivery's columns if they do not have the sum that stands behind them; its position.
fn sound_delivery(row: &SqliteRow) -> Result<i64, StoreError> {
    let pos = get(row, "pos")?;
    if sum::holds_read_with_added(row, 0, DELIVERY_SUMMED)? {
        return Ok(pos);
    }
    Err(Place { table: "delivery", column: "sum", row: pos }.corrupt())
}

fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn failed(error: sqlx::Error) -> StoreError {
    StoreError::Database(error.to_string())
}
