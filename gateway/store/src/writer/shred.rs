//! Erasing messages at an operator's word, and wrapping data keys with a newer seal key.
//!
//! Erasing is one transaction a step: what identifies a message's content goes from its row, content, replies and evidence are
//! deleted, and the data keys of all of that are cut out of their trees, with an entry of the log for each message. Copies that the
//! database, its log, a replica or a backup still has are sealed with keys that nothing leads to any more once the trees as they were
//! before are unreadable too: their seal key is destroyed when nothing is wrapped with it any more (`gateway/store/src/store/keys.rs`).

use gatepost_audit::Event as LeafEvent;
use gatepost_core::principal::Actor;

use super::needs::Holds;
use super::outcome::Outcome;
use super::turn::Turn;
use super::{Writer, unavailable};
use crate::backend::{Backend, CommitError, EraseFind, Erasing, ToErase};
use crate::keyring::Locator;
use crate::ops::{AuditNote, EraseStep, EraseWhat, Erased, Rewrapped, StoreError};
use crate::prepared::remains_of;
use crate::seal::{Domain, Owner, Place, locator_of};

/// Most messages erased in one commit.
const STEP_MESSAGES_MAX: u32 = 64;
/// Most trees wrapped anew in one commit.
const STEP_TREES_MAX: usize = 64;

impl<B: Backend> Writer<B> {
    /// Wraps some of the trees that are wrapped with an older seal key; with the last of them goes the entry that says so.
    pub(super) fn rewrap(&mut self, by: &Actor) -> Result<Rewrapped, StoreError> {
        if let Some(error) = unavailable(&self.condition) {
            return Err(error);
        }
        let others = self.database.has_others();
        if others.inspect_err(|error| self.failed(error)).map_err(StoreError::from)? {
            return Err(StoreError::SealKey(
                "other nodes use this database and do not have the new seal key: stop them first, and give them the key before they \
                 start again"
                    .to_owned(),
            ));
        }
        let rewrapped = self.database.begin(&Holds::default()).and_then(|()| {
            let rewrapped = self.rewrap_open(by);
            self.database.roll_back()?;
            rewrapped
        });
        rewrapped.map_err(|error| {
            self.failed(&error);
            error.into()
        })
    }

    /// Leaves the transaction open when there is nothing to write, or on an error.
    fn rewrap_open(&mut self, by: &Actor) -> Result<Rewrapped, CommitError> {
        // Others that were here may have made trees, or cut leaves out of those that are known. From here on nobody does.
        self.database.keyring_follow()?;
        let (trees, left) = self.vault.rewrapped(STEP_TREES_MAX)?;
        if trees.is_empty() {
            return Ok(Rewrapped::Nothing);
        }
        self.database.keyring_put(&trees)?;
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        if left == 0 {
            let mut note = AuditNote::new(LeafEvent::SealKeyRotated, by.clone());
            note.target = trees.first().map(|tree| tree.key.to_string());
            turn.note(&note)?;
        }
        let base = self.database.commit(&turn)?;
        let outcome = Outcome::of(turn, base);
        self.install(Some(outcome), 0);
        self.vault.wrapped(&trees);
        Ok(if left == 0 { Rewrapped::Last } else { Rewrapped::Some })
    }

    /// Whether a tree is wrapped with a seal key that is older than the newest.
    pub(super) fn oldest_seal_key(&mut self) -> Result<Option<u32>, StoreError> {
        let oldest = self.database.keyring_oldest();
        oldest.inspect_err(|error| self.failed(error)).map_err(StoreError::from)
    }

    /// Erases what comes next of what an operator named.
    pub(super) fn erase(&mut self, step: &EraseStep) -> Result<Erased, StoreError> {
        if let Some(error) = unavailable(&self.condition) {
            return Err(error);
        }
        let erased = self.keep_keys().and_then(|()| self.database.begin(&Holds::default())).and_then(|()| {
            let erased = self.erase_open(step);
            self.database.roll_back()?;
            erased
        });
        erased.map_err(|error| {
            self.failed(&error);
            error.into()
        })
    }

    fn found_by(&self, what: &EraseWhat) -> EraseFind {
        match what {
            EraseWhat::Message(id) => EraseFind::Message(*id),
            EraseWhat::App(app) => EraseFind::App(app.clone()),
            EraseWhat::Subject(subject) => {
                EraseFind::Subject(self.vault.index(Domain::Subject, &[subject.as_bytes()]))
            }
        }
    }

    /// Leaves the transaction open when there is nothing to write, or on an error.
    fn erase_open(&mut self, step: &EraseStep) -> Result<Erased, CommitError> {
        let ToErase { messages, through, more } =
            self.database.to_erase(&self.found_by(&step.what), step.after, STEP_MESSAGES_MAX)?;
        let mut erased = Erased { next: more.then_some(through), ..Erased::default() };
        let mut locators: Vec<Locator> = Vec::new();
        let mut erasing = Vec::new();
        for message in messages {
            if !message.is_settled {
                erased.unsettled.push(message.id);
                continue;
            }
            if message.is_erased {
                continue;
            }
            let of = message.id.as_bytes();
            let owner = Owner::Attributes { message: of };
            let place = Place { table: "message", column: "attributes", row: message.seq };
            // What is damaged, or whose key is gone, is erased all the same.
            let attributes = self.vault.open(&message.attributes, owner, place);
            let remains = attributes.map(|attributes| remains_of(&attributes)).unwrap_or_default();
            let remains = self.vault.seal(&remains, owner).map_err(StoreError::from)?;
            let sealed = std::iter::once(&message.attributes).chain(&message.sealed);
            let found: Vec<Option<Locator>> = sealed.map(|sealed| locator_of(sealed)).collect();
            erased.plain += u64::from(found.iter().any(Option::is_none));
            locators.extend(found.into_iter().flatten());
            erasing.push(Erasing { seq: message.seq, id: message.id, remains });
            erased.messages.push(message.id);
        }
        if erasing.is_empty() || step.looks_only {
            return Ok(erased);
        }
        self.database.erase(&erasing)?;
        // As they are stored: what another node has cut out is not to be brought back.
        self.database.keyring_hold(&locators.iter().map(|locator| locator.tree).collect())?;
        let cut = self.vault.cut(&locators)?;
        self.database.keyring_put(&cut)?;
        let now = self.number()?;
        let mut turn =
            Turn::new(now, self.instance_epoch, &self.memory, &self.vault, &mut self.random, &self.gateway);
        for message in &erasing {
            let mut note = AuditNote::new(LeafEvent::MessageErased, step.by.clone());
            note.message = Some(message.id);
            turn.note(&note)?;
        }
        let base = self.database.commit(&turn)?;
        gatepost_faults::point("erase.committed");
        let outcome = Outcome::of(turn, base);
        self.install(Some(outcome), 0);
        // Only now: had the commit failed, the keys would be needed still.
        for tree in &cut {
            self.vault.learn(tree)?;
        }
        Ok(erased)
    }
}
