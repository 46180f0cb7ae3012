//! The audit trail of what principals read and were refused. `coalesce.rs` decides what becomes a leaf; this writes it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gatepost_audit::leaf::Event;
use gatepost_core::MessageId;
use gatepost_core::principal::{Actor, ActorKind};
use gatepost_store::{AuditNote, Store, StoreError};
use tokio::sync::watch;

use super::coalesce::Coalescer;
use super::tasks::Tasks;

/// How often ended windows are looked for; a counted leaf is late by this much at most.
const FLUSH_INTERVAL: Duration = Duration::from_secs(5);

/// Longer names of refused certificates stay out of the log, bytes.
const NAME_BYTES_MAX: usize = 256;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct AuditTrail {
    coalescer: Arc<Mutex<Coalescer>>,
    store: Store,
    tasks: Tasks,
}

impl AuditTrail {
    pub(crate) fn new(store: Store, tasks: Tasks) -> Self {
        Self { coalescer: Arc::default(), store, tasks }
    }

    /// A payload is about to be shown to an operator. It may be shown only after `Ok`: its leaf is durable then.
    pub(crate) async fn payload_read(&self, by: &Actor, message: MessageId) -> Result<(), StoreError> {
        let note = AuditNote { message: Some(message), ..AuditNote::new(Event::PayloadRead, by.clone()) };
        if self.coalescer().count(&note) {
            return Ok(());
        }
        // The window begins after the commit, so that nobody is counted into a leaf that is not there yet.
        self.write(vec![note.clone()]).await?;
        self.coalescer().opened(&note, Instant::now());
        Ok(())
    }

    /// An operator looked something up. When the store takes no writes operators must still see why, so the leaf comes later.
    pub(crate) async fn looked_up(&self, event: Event, by: &Actor, target: &'static str) {
        let note = AuditNote { target: Some(target.to_owned()), ..AuditNote::new(event, by.clone()) };
        self.note(note).await;
    }

    /// Somebody was refused. Neither blocks nor fails.
    pub(crate) fn refused(&self, by: Actor, code: &'static str) {
        self.refused_as(by, code, None);
    }

    /// Likewise; `name` is what a stranger's certificate calls it.
    fn refused_as(&self, by: Actor, code: &'static str, name: Option<String>) {
        let note =
            AuditNote { code: Some(code.to_owned()), target: name, ..AuditNote::new(Event::Refused, by) };
        let Some(leaf) = self.coalescer().take(note, Instant::now()) else { return };
        let trail = self.clone();
        self.tasks.start(async move { trail.write_or_restore(vec![leaf]).await });
    }

    /// Writes counted leaves as their windows end, until the gateway stops; then all that are left.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        loop {
            // A dropped sender means that the gateway is gone: that is a stop too.
            let stopped =
                tokio::time::timeout(FLUSH_INTERVAL, stop.wait_for(|stopped| *stopped)).await.is_ok();
            let leaves = {
                let mut coalescer = self.coalescer();
                if stopped { coalescer.drain() } else { coalescer.due(Instant::now()) }
            };
            self.write_or_restore(leaves).await;
            if stopped {
                return;
            }
        }
    }

    async fn note(&self, note: AuditNote) {
        let leaf = self.coalescer().take(note, Instant::now());
        self.write_or_restore(leaf.into_iter().collect()).await;
    }

    async fn write_or_restore(&self, leaves: Vec<AuditNote>) {
        if leaves.is_empty() {
            return;
        }
        if let Err(error) = self.write(leaves.clone()).await {
            tracing::warn!(%error, "audit leaves could not be written; a later leaf counts them");
            self.coalescer().restore(leaves, Instant::now());
        }
    }

    /// On a task of its own: the one who reads may go away, the leaf must not.
    async fn write(&self, leaves: Vec<AuditNote>) -> Result<(), StoreError> {
        let store = self.store.clone();
        let written = self.tasks.start(async move { store.audit_note(leaves).await });
        written.await.unwrap_or(Err(StoreError::Stopping))
    }

    /// Nothing panics while it is held, and half a count is still a count.
    fn coalescer(&self) -> MutexGuard<'_, Coalescer> {
        self.coalescer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connections that were turned away stand in the log like refused requests; with the name in their certificate, verified or claimed.
impl crate::listen::RefusalSink for AuditTrail {
    fn refused(&self, refusal: &crate::listen::Refusal) {
        if let (crate::listen::Serves::OneAdapter(adapter), true) =
            (&refusal.serves, refusal.code.is_the_adapters())
        {
            return self.refused(Actor::new(ActorKind::Adapter, &**adapter), refusal.code.as_str());
        }
        let verified = refusal.facts.as_ref().and_then(|facts| facts.spiffe.as_ref());
        let name = verified.or(refusal.claimed.as_ref()).filter(|name| name.len() <= NAME_BYTES_MAX);
        self.refused_as(super::identity::unknown_peer(), refusal.code.as_str(), name.cloned());
    }
}

#[cfg(test)]
impl AuditTrail {
    /// A connection whose certificate claims `name` was turned away.
    pub(crate) fn turned_away(&self, name: &str) {
        use crate::listen::{Refusal, RefusalCode, RefusalSink, Serves};
        let refusal = Refusal {
            serves: Serves::Apps,
            code: RefusalCode::CertificateIssuer,
            facts: None,
            claimed: Some(name.to_owned()),
            why: None,
            remote: None,
        };
        RefusalSink::refused(self, &refusal);
    }
}
