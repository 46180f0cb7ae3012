//! The seal key's next version, and erasing, which ends with it: copies of what was erased are unreadable once no key is left that
//! opens what their keys were wrapped in.

use super::Store;
use crate::call::Op;
use crate::ops::{AuditNote, EraseStep, EraseWhat, Erased, Rotated, StoreError};
use gatepost_audit::Event as LeafEvent;
use gatepost_core::principal::Actor;

impl Store {
    /// Wraps all data keys with a new version of the seal key and destroys the older ones. One that was begun and not ended is ended.
    pub async fn seal_key_rotate(&self, by: Actor) -> Result<Rotated, StoreError> {
        let _turn = self.rotation.lock().await;
        let Some((current, newest)) = self.vault.seal_keys() else {
            return Err(StoreError::SealKey("this store has no seal key".to_owned()));
        };
        // Where other nodes have a say this refuses, before there is a key that they do not have.
        self.rewrap().await?;
        if newest == current {
            self.blocking({
                let seal_keys = self.seal_keys.clone();
                move || seal_keys.create(current + 1)
            })
            .await?;
            self.vault.take_keys(self.blocking_keys().await?);
        }
        self.rewrap().await?;
        let destroyed = self.destroy_older().await?;
        let (version, _) = self.vault.seal_keys().unwrap_or_default();
        let mut note = AuditNote::new(LeafEvent::SealKeyRotated, by);
        note.target = Some(version.to_string());
        note.count = Some(destroyed.len() as u64);
        self.audit_note(vec![note]).await?;
        Ok(Rotated { version, destroyed })
    }

    /// After a start: goes on with what the last one began.
    pub(crate) async fn seal_keys_settle(&self) -> Result<(), StoreError> {
        let Some((current, newest)) = self.vault.seal_keys() else { return Ok(()) };
        let _turn = self.rotation.lock().await;
        if newest > current && self.rewrap().await.is_err() {
            // Another node does not have it, which is nothing to fail for; an operator's word tries again.
            return Ok(());
        }
        self.destroy_older().await.map(drop)
    }

    /// Erases what was named, step by step, and makes copies of it unreadable.
    pub async fn erase(&self, by: Actor, what: EraseWhat) -> Result<Erased, StoreError> {
        let mut all = Erased::default();
        let mut step = EraseStep { by: by.clone(), what, after: 0 };
        loop {
            let given = step.clone();
            let erased = self.call(|answer| Op::Erase { step: given, answer }).await?;
            all.messages.extend(erased.messages);
            all.unsettled.extend(erased.unsettled);
            all.plain += erased.plain;
            match erased.next {
                Some(next) => step.after = next,
                None => break,
            }
        }
        if !all.messages.is_empty() {
            match self.seal_key_rotate(by).await {
                Ok(rotated) => all.seal_key = Some(rotated.version),
                Err(StoreError::SealKey(why)) => all.copies_remain = Some(why),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn rewrap(&self) -> Result<(), StoreError> {
        while self.call(|answer| Op::Rewrap { answer }).await? > 0 {}
        Ok(())
    }

    /// Destroys versions that nothing is wrapped with any more.
    async fn destroy_older(&self) -> Result<Vec<u32>, StoreError> {
        let oldest = self.call(|answer| Op::SealKeyOldest { answer }).await?;
        let Some((current, _)) = self.vault.seal_keys() else { return Ok(Vec::new()) };
        if oldest.is_some_and(|oldest| oldest < current) {
            return Ok(Vec::new());
        }
        let seal_keys = self.seal_keys.clone();
        let destroyed = self
            .blocking(move || {
                seal_keys.sweep()?;
                let older: Vec<u32> = seal_keys.load()?.into_keys().filter(|key| *key < current).collect();
                older.iter().try_for_each(|key| seal_keys.destroy(*key))?;
                Ok(older)
            })
            .await?;
        if !destroyed.is_empty() {
            self.vault.take_keys(self.blocking_keys().await?);
        }
        Ok(destroyed)
    }

    async fn blocking_keys(&self) -> Result<std::sync::Arc<crate::keyring::SealKeys>, StoreError> {
        let seal_keys = self.seal_keys.clone();
        self.blocking(move || seal_keys.keys()).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, crate::data_dir::DataDirError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|error| StoreError::Database(error.to_string()))?;
        done.map_err(|error| StoreError::SealKey(error.to_string()))
    }
}
