//! Lists, newest first, in pages. A filter that no index serves looks at a bounded number of rows and then hands out a
//! cursor, so that no search holds a snapshot for long.

use std::fmt::Write as _;

use gatepost_core::{MessageId, State, Timestamp};
use sqlx::sqlite::SqliteRow;

use super::{Reader, cursor_position, delivery_row, scalar, sender, sound_message};
use crate::ops::{DeliveryFilter, DeliveryRow, MessageFilter, MessageRow, Page, QueueRow, StoreError};
use crate::row::{bytes, get};
use crate::seal::{Domain, Place};
use crate::sql;

/// Messages looked at for one page when the filter is not served by an index.
const SCAN_MESSAGES_MAX: i64 = 5000;

impl Reader {
    pub async fn delivery_list(
        &self,
        filter: &DeliveryFilter,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<Page<DeliveryRow>, StoreError> {
        let before = cursor_position(cursor)?;
        let state = match &filter.state {
            None => None,
            Some(name) => match State::NAMES.iter().position(|known| known == name) {
                Some(code) => i64::try_from(code).ok(),
                None => return Ok(Page { items: Vec::new(), next: None }),
            },
        };
        let sql = sql::delivery_list(state, filter.held, filter.destination.is_some());
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(before).bind(i64::from(limit) + 1);
        if let Some(destination) = &filter.destination {
            query = query.bind(destination.clone());
        }
        let rows = self.all(query).await?;
        let (rows, next) = page(rows, limit, "pos")?;
        let items = self.sound(rows.iter().map(delivery_row))?;
        Ok(Page { items, next })
    }

    pub async fn message_list(
        &self,
        filter: &MessageFilter,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<Page<MessageRow>, StoreError> {
        let mut before = cursor_position(cursor)?;
        let sql = self.message_sql(filter);
        let mut items = Vec::new();
        loop {
            let rows = self.message_rows(&sql, filter, before).await?;
            let scanned_all = (rows.len() as i64) < SCAN_MESSAGES_MAX;
            for row in &rows {
                before = get(row, "seq")?;
                if get::<bool>(row, "matches")? {
                    if items.len() == limit as usize {
                        // One more than the page: the next page begins with it.
                        return Ok(Page { items, next: Some((before + 1).to_string()) });
                    }
                    let item = self.message_item(row, filter).await;
                    items.extend(self.sound([item])?.into_iter().flatten());
                }
            }
            if scanned_all {
                return Ok(Page { items, next: None });
            }
            if !items.is_empty() || rows.len() as i64 >= SCAN_MESSAGES_MAX {
                return Ok(Page { items, next: Some(before.to_string()) });
            }
        }
    }

    /// The inner query walks an index where the filter has one; the rest of the filter only marks rows.
    fn message_sql(&self, filter: &MessageFilter) -> String {
        let mut matches = String::from("1");
        let mut within = String::from("seq < $1");
        for (given, clause) in
            [(filter.subject.is_some(), " AND subject = $2"), (filter.key.is_some(), " AND key = $3")]
        {
            if given {
                within.push_str(clause);
            }
        }
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
        let mut sql = String::new();
        let _ = write!(
            sql,
            "/* message_list */ SELECT seq, id, accepted_at, sender_kind, sender, kind, form, size, sum, ({matches}) AS matches \
             FROM message WHERE {within} ORDER BY seq DESC LIMIT {SCAN_MESSAGES_MAX}"
        );
        sql
    }

    async fn message_rows(
        &self,
        sql: &str,
        filter: &MessageFilter,
        before: i64,
    ) -> Result<Vec<SqliteRow>, StoreError> {
        let index = |domain, text: &Option<String>| {
            text.as_ref().map(|text| self.inner.vault.index(domain, &[text.as_bytes()]).to_vec())
        };
        let query = sqlx::query(sqlx::AssertSqlSafe(sql.to_owned()))
            .bind(before)
            .bind(index(Domain::Subject, &filter.subject))
            .bind(index(Domain::Key, &filter.key))
            .bind(filter.app.clone())
            .bind(filter.kind.clone())
            .bind(filter.since.map(Timestamp::as_micros))
            .bind(filter.until.map(Timestamp::as_micros));
        self.all(query).await
    }

    /// `None` when none of its deliveries fits the filter.
    async fn message_item(
        &self,
        row: &SqliteRow,
        filter: &MessageFilter,
    ) -> Result<Option<MessageRow>, StoreError> {
        let seq: i64 = get(row, "seq")?;
        sound_message(row)?;
        let rows = self.all(sqlx::query(sql::DELIVERY_ITEMS_OF_MESSAGE).bind(seq)).await?;
        let deliveries: Vec<DeliveryRow> = self.sound(rows.iter().map(delivery_row))?;
        let wanted = |delivery: &DeliveryRow| {
            filter.state.as_ref().is_none_or(|state| state == delivery.state)
                && filter.destination.as_ref().is_none_or(|name| *name == delivery.destination)
        };
        if (filter.state.is_some() || filter.destination.is_some()) && !deliveries.iter().any(wanted) {
            return Ok(None);
        }
        Ok(Some(MessageRow {
            id: MessageId::from_bytes(bytes(row, "id", seq)?),
            sender: sender(row)?,
            kind: get(row, "kind")?,
            accepted_at: Timestamp::from_micros(get(row, "accepted_at")?),
            size: Place { table: "message", column: "size", row: seq }.count(get(row, "size")?)?,
            deliveries,
        }))
    }

    /// The sound ones of rows just read. One that is damaged must not keep a list from who looks for it: health names it.
    fn sound<T>(&self, read: impl IntoIterator<Item = Result<T, StoreError>>) -> Result<Vec<T>, StoreError> {
        let noted = read.into_iter().filter_map(|row| match row {
            Err(StoreError::Corrupt { table, row, .. }) => {
                self.inner.health.damage_found(table, &row);
                None
            }
            row => Some(row),
        });
        noted.collect()
    }

    /// Every queue with its counts and ages, by name.
    pub async fn queue_list(&self) -> Result<Vec<QueueRow>, StoreError> {
        let mut rows = self.inner.health.queue_rows();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        for row in &mut rows {
            self.add_ages(row).await?;
        }
        Ok(rows)
    }

    pub async fn queue(&self, name: &str) -> Result<Option<QueueRow>, StoreError> {
        let row = self.inner.health.queue_rows().into_iter().find(|row| row.name == name);
        let Some(mut row) = row else { return Ok(None) };
        self.add_ages(&mut row).await?;
        Ok(Some(row))
    }

    async fn add_ages(&self, row: &mut QueueRow) -> Result<(), StoreError> {
        let now = self.now();
        let Some(id) = self.optional(sqlx::query(sql::QUEUE_ID).bind(row.name.clone())).await? else {
            return Ok(());
        };
        let id: i64 = scalar(&id)?;
        let ready = self.optional(sqlx::query(sql::OLDEST_READY).bind(id)).await?;
        if let Some(ready) = ready {
            let ready = Timestamp::from_micros(scalar(&ready)?);
            row.stats.oldest_ready = (ready <= now).then(|| now.since(ready));
        }
        if let Some(born) = self.optional(sqlx::query(sql::OLDEST_BORN).bind(id)).await? {
            let born: Option<i64> = scalar(&born)?;
            row.stats.oldest = born.map(|born| now.since(Timestamp::from_micros(born)));
        }
        Ok(())
    }
}

/// Cuts the row beyond the page off and makes it the cursor.
fn page(
    mut rows: Vec<SqliteRow>,
    limit: u32,
    column: &str,
) -> Result<(Vec<SqliteRow>, Option<String>), StoreError> {
    if rows.len() <= limit as usize {
        return Ok((rows, None));
    }
    rows.truncate(limit as usize);
    let last: i64 = rows.last().map_or(Ok(1), |row| get(row, column))?;
    Ok((rows, Some(last.to_string())))
}
