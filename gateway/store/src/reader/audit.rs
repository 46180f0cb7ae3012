//! The audit log as the API serves it: checkpoint, tiles, entries, receipts.

use bytes::Bytes;
use gatepost_audit::{NodeSource as _, Proof, TILE_WIDTH, encode_bundle, inclusion_proof, parse_bundle};
use gatepost_core::DeliveryId;

use super::{Check, Reader};
use crate::ops::StoreError;
use crate::published::TreeView;

/// Proofs of everything that the log says of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub enum Receipt {
    Unknown,
    /// A checkpoint that covers all of its leaves does not exist yet.
    Pending,
    /// C2SP tlog-proof texts, in the order of the leaves.
    Proofs(Vec<String>),
}

impl Reader {
    /// The newest checkpoint, a signed note.
    pub fn checkpoint(&self) -> Bytes {
        // The store is not open before it has signed its tree.
        Bytes::copy_from_slice(self.inner.published.signed().text.as_bytes())
    }

    /// A tile of hashes; `None` when the signed tree does not have it. Without `width` it is the full one.
    pub async fn tile(&self, level: u8, index: u64, width: Option<u8>) -> Result<Option<Bytes>, StoreError> {
        let signed = self.inner.published.signed();
        let width = width.map_or(TILE_WIDTH, u16::from);
        let wanted = index.saturating_mul(u64::from(TILE_WIDTH)).saturating_add(u64::from(width));
        let nodes = signed.size.checked_shr(8 * u32::from(level)).unwrap_or(0);
        if width == 0 || wanted > nodes {
            return Ok(None);
        }
        let reader = self.clone();
        let hashes = tokio::task::spawn_blocking(move || {
            let inner = &reader.inner;
            let view = TreeView { files: &inner.files, published: &inner.published, signed: &signed };
            view.tile(level, index, width).map_err(|error| StoreError::Audit(error.to_string()))
        });
        let hashes = hashes.await.map_err(|error| StoreError::Audit(error.to_string()))??;
        Ok(Some(Bytes::from(gatepost_audit::tiles::tile_bytes(&hashes))))
    }

    /// A bundle of entries; `None` when the signed tree does not have it.
    pub async fn entries(&self, index: u64, width: Option<u8>) -> Result<Option<Bytes>, StoreError> {
        let size = self.inner.published.signed().size;
        let width = width.map_or(TILE_WIDTH, u16::from);
        let from = index.saturating_mul(u64::from(TILE_WIDTH));
        if width == 0 || from.saturating_add(u64::from(width)) > size {
            return Ok(None);
        }
        let entries = self.entry_range(from, from + u64::from(width)).await?;
        let bundle = encode_bundle(entries.iter().map(Vec::as_slice));
        bundle.map(|bundle| Some(Bytes::from(bundle))).map_err(|error| StoreError::Audit(error.to_string()))
    }

    /// One entry of the log, committed if not yet signed.
    pub async fn entry(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        let mut entries = self.entry_range(index, index + 1).await?;
        entries.pop().ok_or_else(|| StoreError::Audit(format!("entry {index} is missing")))
    }

    /// An entry that is committed and has no place in the tree yet, or had none a moment ago.
    pub(super) async fn entry_without_place(&self, number: u64) -> Result<Vec<u8>, StoreError> {
        let entry = self.source().leaf_by_number(number).await?;
        entry.ok_or_else(|| StoreError::Audit(format!("the entry with number {number} is missing")))
    }

    /// Entries of one bundle, from the database or, once filed, from its file.
    pub(crate) async fn entry_range(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let rows = self.source().leaves(from, to, Check::Sums).await?;
        if rows.len() as u64 == to - from {
            return Ok(rows.into_iter().map(|(_, bytes)| bytes).collect());
        }
        let bundle_index = from / u64::from(TILE_WIDTH);
        let bundle = self
            .inner
            .files
            .bundle_file(bundle_index, None)
            .map_err(|error| StoreError::Audit(error.to_string()))?;
        let missing = || StoreError::Audit(format!("entry {from} is neither in the database nor in a file"));
        let bundle = bundle.ok_or_else(missing)?;
        let entries = parse_bundle(&bundle).map_err(|error| StoreError::Audit(error.to_string()))?;
        let first = usize::try_from(from % u64::from(TILE_WIDTH)).unwrap_or(0);
        let count = usize::try_from(to - from).unwrap_or(0);
        let wanted = entries.get(first..first + count).ok_or_else(missing)?;
        Ok(wanted.iter().map(|entry| entry.to_vec()).collect())
    }

    /// Proves every leaf of a delivery against the newest checkpoint.
    pub async fn receipt(&self, delivery: DeliveryId) -> Result<Receipt, StoreError> {
        let leaves = self.source().delivery_leaves(delivery).await?;
        let Some(leaves) = leaves else { return Ok(Receipt::Unknown) };
        let indices = self.source().leaf_indices(&leaves.numbers).await?;
        let signed = self.inner.published.signed();
        let signed_only = |index: Option<u64>| index.filter(|&index| index < signed.size);
        let indices: Option<Vec<u64>> = indices.into_iter().map(signed_only).collect();
        let Some(indices) = indices else { return Ok(Receipt::Pending) };
        let mut entries = Vec::with_capacity(indices.len());
        for index in indices {
            entries.push((index, self.entry(index).await?));
        }
        let reader = self.clone();
        let proofs = tokio::task::spawn_blocking(move || {
            let inner = &reader.inner;
            let view = TreeView { files: &inner.files, published: &inner.published, signed: &signed };
            let prove = |(index, entry): (u64, Vec<u8>)| -> Result<String, StoreError> {
                let hashes = inclusion_proof(&view, index, signed.size)
                    .map_err(|error| StoreError::Audit(error.to_string()))?;
                // The entry travels with its proof, so that a receipt says by itself what it proves.
                Ok(Proof { entry: Some(entry), index, hashes, checkpoint: signed.text.to_string() }.to_text())
            };
            entries.into_iter().map(prove).collect::<Result<Vec<String>, StoreError>>()
        });
        proofs.await.map_err(|error| StoreError::Audit(error.to_string()))?.map(Receipt::Proofs)
    }
}
