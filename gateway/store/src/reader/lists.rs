//! Lists, newest first, in pages. A filter that no index serves looks at a bounded number of rows and then hands out a
//! cursor, so that no search holds a snapshot for long.

use gatepost_core::{DeliveryId, LeaseToken, State};

use super::record::{Listed, MessageHead};
use super::source::{DeliverySearch, MessageSearch};
use super::{Reader, cursor_position};
use crate::ops::{
    DeliveryFilter, DeliveryRow, MessageFilter, MessageRow, NodeRow, Page, QueueRow, Sessions, StoreError,
};
use crate::postgres::{ROLE_OF_ADAPTER, ROLE_SEQUENCER};
use crate::seal::Domain;

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
        let search = DeliverySearch { state, held: filter.held, destination: filter.destination.as_deref() };
        let rows = self.source().delivery_page(&search, before, i64::from(limit) + 1).await?;
        let (rows, next) = page(rows, limit);
        let items = self.sound(rows.into_iter().map(|listed| listed.row))?;
        Ok(Page { items: items.into_iter().map(|delivery| delivery.item).collect(), next })
    }

    pub async fn message_list(
        &self,
        filter: &MessageFilter,
        cursor: Option<&str>,
        limit: u32,
    ) -> Result<Page<MessageRow>, StoreError> {
        let mut before = cursor_position(cursor)?;
        let index = |domain, text: &Option<String>| {
            text.as_ref().map(|text| self.inner.vault.index(domain, &[text.as_bytes()]))
        };
        let search = MessageSearch {
            subject: index(Domain::Subject, &filter.subject),
            key: index(Domain::Key, &filter.key),
            filter,
        };
        let mut items = Vec::new();
        let rows = self.source().message_page(&search, before, SCAN_MESSAGES_MAX).await?;
        let scanned_all = (rows.len() as i64) < SCAN_MESSAGES_MAX;
        for listed in rows {
            before = listed.number;
            let Some(row) = listed.row.transpose() else { continue };
            if items.len() == limit as usize {
                // One more than the page: the next page begins with it.
                return Ok(Page { items, next: Some((before + 1).to_string()) });
            }
            let item = match row {
                Ok(head) => self.message_item(head, filter).await,
                Err(error) => Err(error),
            };
            items.extend(self.sound([item])?.into_iter().flatten());
        }
        Ok(Page { items, next: (!scanned_all).then(|| before.to_string()) })
    }

    /// `None` when none of its deliveries fits the filter.
    async fn message_item(
        &self,
        head: MessageHead,
        filter: &MessageFilter,
    ) -> Result<Option<MessageRow>, StoreError> {
        let rows = self.source().deliveries_of_message(head.seq).await?;
        let sound = self.sound(rows.into_iter().map(|listed| listed.row))?;
        let deliveries: Vec<DeliveryRow> = sound.into_iter().map(|delivery| delivery.item).collect();
        let wanted = |delivery: &DeliveryRow| {
            filter.state.as_ref().is_none_or(|state| state == delivery.state)
                && filter.destination.as_ref().is_none_or(|name| *name == delivery.destination)
        };
        if (filter.state.is_some() || filter.destination.is_some()) && !deliveries.iter().any(wanted) {
            return Ok(None);
        }
        let MessageHead { id, sender, kind, accepted_at, size, .. } = head;
        Ok(Some(MessageRow { id, sender, kind, accepted_at, size, deliveries }))
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

    pub(crate) async fn queue_number(&self, name: &str) -> Result<Option<i64>, StoreError> {
        self.source().queue_id(name).await
    }

    /// Some of those that have gone back for their lanes' trouble and are not due yet, with the tokens that wake them: not those whose
    /// session runs on, at another node.
    pub(crate) async fn queue_away(
        &self,
        queue: i64,
        sessions: Sessions,
        limit: usize,
    ) -> Result<Vec<(DeliveryId, LeaseToken)>, StoreError> {
        let of_node = match sessions {
            Sessions::One => None,
            Sessions::OfNode => Some(self.inner.health.node()),
        };
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.source().queue_away(queue, of_node, self.now(), limit).await
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

    /// The gateways that share the database, by name; none where it is this one's alone.
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, StoreError> {
        let (here, now) = (self.inner.health.node(), self.now());
        let rows = self.source().nodes().await?.into_iter().map(|node| NodeRow {
            is_here: node.epoch == here,
            lease: (now < node.until).then(|| node.until.since(now)),
            is_sequencer: node.roles.iter().any(|role| role == ROLE_SEQUENCER),
            adapters: node
                .roles
                .iter()
                .filter_map(|role| role.strip_prefix(ROLE_OF_ADAPTER).map(str::to_owned))
                .collect(),
            name: node.name,
            epoch: node.epoch,
            version: node.version,
            since: node.since,
            shares: node.buckets,
        });
        Ok(rows.collect())
    }

    async fn add_ages(&self, row: &mut QueueRow) -> Result<(), StoreError> {
        let now = self.now();
        let Some(id) = self.source().queue_id(&row.name).await? else { return Ok(()) };
        if let Some(ready) = self.source().queue_oldest_ready(id).await? {
            row.stats.oldest_ready = (ready <= now).then(|| now.since(ready));
        }
        let born = self.source().queue_oldest_born(id).await?;
        row.stats.oldest = born.map(|born| now.since(born));
        Ok(())
    }
}

/// Cuts the row beyond the page off; the last one that stays is the cursor.
fn page<T>(mut rows: Vec<Listed<T>>, limit: u32) -> (Vec<Listed<T>>, Option<String>) {
    if rows.len() <= limit as usize {
        return (rows, None);
    }
    rows.truncate(limit as usize);
    let last = rows.last().map_or(1, |row| row.number);
    (rows, Some(last.to_string()))
}
