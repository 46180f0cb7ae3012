//! The seal key's next version, and erasing, which ends with it: copies of what was erased are unreadable once no key is left that
//! opens what their keys were wrapped in.

use super::Store;
use crate::call::Op;
use crate::keyring::SealVersions;
use crate::ops::{AuditNote, EraseStep, EraseWhat, Erased, Rewrapped, Rotated, StoreError};
use gatepost_audit::Event as LeafEvent;
use gatepost_core::principal::Actor;

impl Store {
    /// Wraps all data keys with a new version of the seal key and destroys the older ones. One that was begun and not ended is ended.
    pub async fn seal_key_rotate(&self, by: Actor) -> Result<Rotated, StoreError> {
        let _turn = self.rotation.lock().await;
        let SealVersions { oldest, newest, .. } = self.seal_versions()?;
        if oldest == newest {
            self.add_seal_key(&by).await?;
        }
        self.end_rotation(by).await
    }

    /// After a start: goes on with what the last one began.
    pub(crate) async fn seal_keys_settle(&self, gateway: Actor) -> Result<(), StoreError> {
        let Some(SealVersions { oldest, newest, .. }) = self.vault.seal_keys() else { return Ok(()) };
        let _turn = self.rotation.lock().await;
        if oldest == newest {
            return self.destroy_older().await.map(drop);
        }
        match self.end_rotation(gateway).await {
            // Another node does not have it, which is nothing to fail for; an operator's word tries again.
            Ok(_) | Err(StoreError::SealKey(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Erases what was named, step by step, and makes copies of it unreadable.
    pub async fn erase(&self, by: Actor, what: EraseWhat) -> Result<Erased, StoreError> {
        let _turn = self.rotation.lock().await;
        let step = EraseStep { by: by.clone(), what, after: 0, looks_only: true };
        let found = self.erase_steps(step.clone()).await?;
        if found.messages.is_empty() {
            return Ok(found);
        }
        // Before anything is erased: if that is killed in the middle, a rotation has been begun, and the next start ends it.
        let refused = match self.begin_rotation_for_erasing(by.clone()).await {
            Ok(()) => None,
            Err(StoreError::SealKey(why)) => Some(why),
            Err(error) => return Err(error),
        };
        let mut erased = self.erase_steps(EraseStep { looks_only: false, ..step }).await?;
        if refused.is_some() {
            erased.copies_remain = refused;
            return Ok(erased);
        }
        match self.end_rotation(by).await {
            Ok(rotated) => erased.seal_key = Some(rotated.version),
            Err(StoreError::SealKey(why)) => erased.copies_remain = Some(why),
            Err(error) => return Err(error),
        }
        Ok(erased)
    }

    /// Until all is done, or until something is found if that is all that is asked for.
    async fn erase_steps(&self, mut step: EraseStep) -> Result<Erased, StoreError> {
        let mut all = Erased::default();
        loop {
            let given = step.clone();
            let erased = self.call(|answer| Op::Erase { step: given, answer }).await?;
            all.messages.extend(erased.messages);
            all.unsettled.extend(erased.unsettled);
            all.plain += erased.plain;
            match erased.next {
                Some(next) if !step.looks_only || all.messages.is_empty() => step.after = next,
                _ => return Ok(all),
            }
        }
    }

    fn seal_versions(&self) -> Result<SealVersions, StoreError> {
        self.vault.seal_keys().ok_or_else(|| StoreError::SealKey("this store has no seal key".to_owned()))
    }

    /// What is wrapped now must be unreadable in the end, with whichever version it is.
    async fn begin_rotation_for_erasing(&self, by: Actor) -> Result<(), StoreError> {
        let SealVersions { oldest, current, newest } = self.seal_versions()?;
        if oldest < current {
            self.end_rotation(by.clone()).await?;
        } else if current < newest {
            return Ok(());
        }
        self.add_seal_key(&by).await
    }

    /// Where other nodes have a say this refuses, rather than make a key that they do not have.
    async fn add_seal_key(&self, by: &Actor) -> Result<(), StoreError> {
        self.rewrap(by).await?;
        let (seal_keys, version) = (self.seal_keys.clone(), self.seal_versions()?.newest + 1);
        self.blocking(move || seal_keys.create(version)).await?;
        gatepost_faults::point("seal_key.made");
        self.take_seal_keys().await
    }

    async fn end_rotation(&self, by: Actor) -> Result<Rotated, StoreError> {
        let has_entry = self.rewrap(&by).await?;
        gatepost_faults::point("seal_key.rewrapped");
        let destroyed = self.destroy_older().await?;
        let SealVersions { current: version, .. } = self.seal_versions()?;
        if !has_entry {
            let mut note = AuditNote::new(LeafEvent::SealKeyRotated, by);
            note.target = Some(version.to_string());
            self.audit_note(vec![note]).await?;
        }
        Ok(Rotated { version, destroyed })
    }

    /// Wraps all data keys with the newest seal key; whether there were any, whose last was committed with an entry of the log.
    async fn rewrap(&self, by: &Actor) -> Result<bool, StoreError> {
        loop {
            let by = by.clone();
            match self.call(|answer| Op::Rewrap { by, answer }).await? {
                Rewrapped::Some => {}
                Rewrapped::Last => return Ok(true),
                Rewrapped::Nothing => return Ok(false),
            }
        }
    }

    /// Destroys versions that nothing is wrapped with any more.
    async fn destroy_older(&self) -> Result<Vec<u32>, StoreError> {
        let oldest = self.call(|answer| Op::SealKeyOldest { answer }).await?;
        let Some(SealVersions { current, .. }) = self.vault.seal_keys() else { return Ok(Vec::new()) };
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
            self.take_seal_keys().await?;
        }
        Ok(destroyed)
    }

    async fn take_seal_keys(&self) -> Result<(), StoreError> {
        let seal_keys = self.seal_keys.clone();
        self.vault.take_keys(self.blocking(move || seal_keys.keys()).await?);
        Ok(())
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
