//! Reading PostgreSQL. The content of a message that is purged is no longer there; what stays of its attributes stands with the
//! message itself.

use std::collections::HashMap;

use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{DeliveryId, MessageId, Timestamp};
use sqlx::PgPool;
use sqlx::postgres::{PgArguments, PgRow};

use super::record::{
    DeliveryColumns, DeliveryLeaves, DeliveryRecord, DetailRecord, Listed, MessageColumns, MessageHead,
    MessageRecord, Payload, ReplyRecord, leaf_numbers,
};
use super::source::{DeliverySearch, MessageSearch};
use crate::leaves::Run;
use crate::ops::StoreError;
use crate::postgres::row::Cells;
use crate::postgres::sql;
use crate::seal::{Index, Place};

type Query<'q> = sqlx::query::Query<'q, sqlx::Postgres, PgArguments>;

/// The number that stands for deliveries in doubt, and for dead ones.
const STUCK: [i64; 2] = [3, 5];

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
        row.map(|row| Cells::new(&row).take()).transpose()
    }

    pub(super) async fn message_payload(&self, seq: i64) -> Result<Option<Payload>, StoreError> {
        let row = self.optional(sqlx::query(sql::MESSAGE_PAYLOAD).bind(seq)).await?;
        row.map(|row| message_record(&row).map(|message| message.payload)).transpose()
    }

    pub(super) async fn messages_by_seq(
        &self,
        seqs: &[i64],
        inline: u64,
    ) -> Result<Vec<Listed<MessageRecord>>, StoreError> {
        let query = sqlx::query(sql::MESSAGES_BY_SEQ).bind(seqs.to_vec()).bind(bound(inline));
        self.listed(query, message_record).await
    }

    pub(super) async fn message_page(
        &self,
        search: &MessageSearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<Option<MessageHead>>>, StoreError> {
        let filter = search.filter;
        let sql = sql::message_page(search.subject.is_some(), search.key.is_some(), limit);
        let query = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(before)
            .bind(search.subject.map(|subject| subject.to_vec()))
            .bind(search.key.map(|key| key.to_vec()))
            .bind(filter.app.clone())
            .bind(filter.kind.clone())
            .bind(filter.since.map(Timestamp::as_micros))
            .bind(filter.until.map(Timestamp::as_micros));
        self.listed(query, |row| {
            let mut cells = Cells::new(row);
            let head = message_head(&mut cells);
            if cells.take::<bool>()? { head.map(Some) } else { Ok(None) }
        })
        .await
    }

    pub(super) async fn message_leases(&self, id: MessageId) -> Result<Vec<String>, StoreError> {
        let rows = self.all(sqlx::query(sql::MESSAGE_LEASES).bind(id.as_bytes().as_slice())).await?;
        rows.iter().map(|row| Cells::new(row).take()).collect()
    }

    pub(super) async fn message_by_correlation(
        &self,
        correlation: Index,
        adapter: &str,
    ) -> Result<Option<MessageRecord>, StoreError> {
        let query = sqlx::query(sql::MESSAGE_BY_CORRELATION).bind(correlation.to_vec()).bind(adapter);
        let row = self.optional(query).await?;
        row.map(|row| message_record(&row)).transpose()
    }

    pub(super) async fn delivery_by_id(&self, id: DeliveryId) -> Result<Option<DeliveryRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_ITEM).bind(id.as_bytes().as_slice())).await?;
        row.map(|row| delivery_record(&row)).transpose()
    }

    pub(super) async fn deliveries_of_message(
        &self,
        seq: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        self.listed(sqlx::query(sql::DELIVERY_ITEMS_OF_MESSAGE).bind(seq), delivery_record).await
    }

    pub(super) async fn delivery_page(
        &self,
        search: &DeliverySearch<'_>,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Listed<DeliveryRecord>>, StoreError> {
        let queue = match search.destination {
            None => None,
            Some(name) => match self.queue_id(name).await? {
                None => return Ok(Vec::new()),
                Some(id) => Some(i32::try_from(id).unwrap_or(i32::MAX)),
            },
        };
        // Held ones are in doubt.
        let state = if search.held { Some(STUCK[0]) } else { search.state };
        if search.held && search.state.is_some_and(|state| state != STUCK[0]) {
            return Ok(Vec::new());
        }
        let is_stuck = state.is_some_and(|state| STUCK.contains(&state));
        let statement = if is_stuck { sql::DELIVERIES_STUCK } else { sql::DELIVERIES_ALL };
        let state = state.and_then(|state| i16::try_from(state).ok());
        let mut query = sqlx::query(statement).bind(before).bind(limit).bind(queue).bind(state);
        if is_stuck {
            query = query.bind(search.held);
        }
        self.listed(query, delivery_record).await
    }

    pub(super) async fn delivery_sender(&self, id: DeliveryId) -> Result<Option<Actor>, StoreError> {
        let row = self.optional(sqlx::query(sql::DELIVERY_SENDER).bind(id.as_bytes().as_slice())).await?;
        let Some(row) = row else { return Ok(None) };
        let mut cells = Cells::new(&row);
        let kind = ActorKind::from_name(cells.take()?);
        let kind = kind.ok_or_else(|| Place { table: "message", column: "sender_kind", row: 0 }.corrupt())?;
        Ok(Some(Actor::new(kind, cells.take::<&str>()?)))
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
        let rows = self.all(sqlx::query(sql::DETAILS_OF_DELIVERY).bind(pos)).await?;
        let read = |row| {
            let mut cells = Cells::new(row);
            Ok(DetailRecord { leaf: cells.take()?, body: cells.take()? })
        };
        rows.iter().map(read).collect()
    }

    pub(super) async fn delivery_reply(&self, pos: i64) -> Result<Option<ReplyRecord>, StoreError> {
        let row = self.optional(sqlx::query(sql::REPLY_OF_DELIVERY).bind(pos)).await?;
        row.map(|row| Ok(ReplyRecord { pos, body: Cells::new(&row).take()? })).transpose()
    }

    pub(super) async fn queue_id(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let row = self.optional(sqlx::query(sql::QUEUE_ID).bind(name)).await?;
        row.map(|row| Cells::new(&row).take::<i32>().map(i64::from)).transpose()
    }

    pub(super) async fn queue_oldest_ready(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        self.time(sql::OLDEST_READY, queue).await
    }

    pub(super) async fn queue_oldest_born(&self, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        self.time(sql::OLDEST_BORN, queue).await
    }

    pub(crate) async fn tree_size(&self) -> Result<Option<u64>, StoreError> {
        let row = self.optional(sqlx::query(sql::TREE_SIZE)).await?;
        row.map(|row| Ok(u64::try_from(Cells::new(&row).take::<i64>()?).unwrap_or(0))).transpose()
    }

    pub(crate) async fn leaf_first(&self) -> Result<Option<u64>, StoreError> {
        let Some(row) = self.optional(sqlx::query(sql::LEAF_FIRST)).await? else { return Ok(None) };
        Ok(Cells::new(&row).take::<Option<i64>>()?.and_then(|first| u64::try_from(first).ok()))
    }

    pub(crate) async fn leaves(&self, from: u64, to: u64) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut leaves = Vec::new();
        for row in &self.all(sqlx::query(sql::LEAVES).bind(bound(from)).bind(bound(to))).await? {
            let run = run(row)?;
            let place = Place { table: "leaf", column: "bytes", row: bound(run.first) };
            let of_run = run.leaves().map_err(|_| place.corrupt())?;
            let wanted = of_run.filter(|(index, _)| (from..to).contains(index));
            leaves.extend(wanted.map(|(index, leaf)| (index, leaf.to_vec())));
        }
        Ok(leaves)
    }

    pub(super) async fn leaf_indices(&self, numbers: &[u64]) -> Result<Vec<Option<u64>>, StoreError> {
        let asked: Vec<i64> = numbers.iter().copied().map(bound).collect();
        let mut found: HashMap<i64, u64> = HashMap::with_capacity(numbers.len());
        for row in &self.all(sqlx::query(sql::LEAF_INDICES).bind(asked)).await? {
            let mut cells = Cells::new(row);
            let (number, index): (i64, i64) = (cells.take()?, cells.take()?);
            found.insert(number, u64::try_from(index).unwrap_or(0));
        }
        Ok(numbers.iter().map(|number| found.get(&bound(*number)).copied()).collect())
    }

    pub(super) async fn leaf_by_number(&self, number: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.optional(sqlx::query(sql::LEAF_BY_NUMBER).bind(bound(number))).await?;
        let Some(row) = row else { return Ok(None) };
        let run = run(&row)?;
        let place = Place { table: "leaf", column: "bytes", row: bound(run.first) };
        let mut leaves = run.leaves().map_err(|_| place.corrupt())?;
        Ok(leaves.find(|(of, _)| *of == number).map(|(_, leaf)| leaf.to_vec()))
    }

    async fn all(&self, query: Query<'_>) -> Result<Vec<PgRow>, StoreError> {
        query.fetch_all(&self.pool).await.map_err(failed)
    }

    async fn optional(&self, query: Query<'_>) -> Result<Option<PgRow>, StoreError> {
        query.fetch_optional(&self.pool).await.map_err(failed)
    }

    /// Every row with its number, which stands first, damaged or not.
    async fn listed<T>(
        &self,
        query: Query<'_>,
        read: impl Fn(&PgRow) -> Result<T, StoreError>,
    ) -> Result<Vec<Listed<T>>, StoreError> {
        let rows = self.all(query).await?;
        rows.iter().map(|row| Ok(Listed { number: Cells::new(row).take()?, row: read(row) })).collect()
    }

    /// The only column of the only row.
    async fn time(&self, statement: &'static str, queue: i64) -> Result<Option<Timestamp>, StoreError> {
        let queue = i32::try_from(queue).unwrap_or(i32::MAX);
        let Some(row) = self.optional(sqlx::query(statement).bind(queue)).await? else { return Ok(None) };
        Cells::new(&row).take_time()
    }
}

fn message_head(cells: &mut Cells<'_>) -> Result<MessageHead, StoreError> {
    let seq = cells.take()?;
    let place = |column| Place { table: "message", column, row: seq };
    let columns = MessageColumns {
        seq,
        id: cells.take_bytes(place("id"))?,
        accepted_at: cells.take()?,
        sender_kind: cells.take()?,
        sender: cells.take()?,
        kind: cells.take()?,
        form: i64::from(cells.take::<i16>()?),
        size: cells.take()?,
    };
    columns.read()
}

fn message_record(row: &PgRow) -> Result<MessageRecord, StoreError> {
    let mut cells = Cells::new(row);
    let head = message_head(&mut cells)?;
    let attributes = cells.take()?;
    let salt = cells.take_opt_bytes(Place { table: "payload", column: "salt", row: head.seq })?;
    let payload = match (salt, cells.take::<Option<Vec<u8>>>()?) {
        (Some(salt), Some(sealed)) => Payload::Read { salt, sealed },
        (Some(_), None) => Payload::Unread,
        (None, _) => Payload::Purged,
    };
    Ok(MessageRecord { head, attributes, payload })
}

fn delivery_record(row: &PgRow) -> Result<DeliveryRecord, StoreError> {
    let mut cells = Cells::new(row);
    let pos = cells.take()?;
    let place = |column| Place { table: "delivery", column, row: pos };
    let columns = DeliveryColumns {
        pos,
        id: cells.take_bytes(place("id"))?,
        message: cells.take_bytes(place("message"))?,
        destination: cells.take()?,
        state: i64::from(cells.take::<i16>()?),
        reason: cells.take()?,
        attempts: i64::from(cells.take::<i32>()?),
        series: i64::from(cells.take::<i32>()?),
        doubt: cells.take()?,
        replayed: cells.take()?,
        accepted_at: cells.take()?,
        changed_at: cells.take()?,
        due: cells.take()?,
    };
    columns.read()
}

fn leaves_of(row: &PgRow) -> Result<DeliveryLeaves, StoreError> {
    let mut cells = Cells::new(row);
    let pos = cells.take()?;
    let id = DeliveryId::from_bytes(cells.take_bytes(Place { table: "delivery", column: "id", row: pos })?);
    Ok(DeliveryLeaves { pos, id, numbers: leaf_numbers(cells.take()?) })
}

/// A run of leaves after the number or the index of its first one.
fn run(row: &PgRow) -> Result<Run, StoreError> {
    let mut cells = Cells::new(row);
    let first: i64 = cells.take()?;
    Ok(Run { first: u64::try_from(first).unwrap_or(0), bytes: cells.take()? })
}

fn bound(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn failed(error: sqlx::Error) -> StoreError {
    StoreError::Database(error.to_string())
}
