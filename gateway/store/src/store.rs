//! The handle through which the gateway uses its store. Cheap to clone.
//!
//! Writes travel to the one writer task as operations; it drains whatever waits, commits it in one transaction and answers
//! all of it afterwards. So a caller that goes away never cancels a transaction, and an answer means that the commit is
//! on stable storage. Reads use a pool of their own.

mod keys;
mod places;
mod wake;

use std::sync::Arc;
use std::time::Duration;

use gatepost_core::message::{INLINE_DATA_BYTES_MAX, NewMessage};
use gatepost_core::principal::{Actor, OperatorPermit};
use gatepost_core::queue::TripReason;
use gatepost_core::{DeliveryId, MessageId};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::call::{Answer, Claimed, ClaimedDelivery, DamagedLease, Op};
use crate::clock::Clock;
use crate::hints::Hints;
use crate::keyring::source::SealKeySource;
use crate::ops::{
    Accept, AcceptError, Accepted, AdapterRole, AuditNote, DeliveryRow, LeaseAnswer, LeaseError,
    LeaseRequest, Leased, MoveError, MoveStep, Moved, OperateError, Pause, QueueSetup, Session, SessionEnd,
    Settle, SettleAnswer, SettleError, StoreError, StoredMessage, Verb,
};
use crate::prepared::{Prepared, Remains, identity};
use crate::reader::Reader;
use crate::recent::{Recent, RecentMessage};
use crate::seal::{Owner, Place, Vault};
use crate::writer::Health;
pub(crate) use places::{Place as AcceptPlace, Places};

/// Payload bytes that are hashed where the caller runs; more of them would keep others on its thread waiting.
const PREPARED_INLINE_BYTES_MAX: usize = 256 * 1024;

/// How many large operations are hashed and sealed at once: on half of the processors, so that the writer and whoever hands in small
/// messages have the others.
pub(crate) fn preparing() -> Arc<Semaphore> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Arc::new(Semaphore::new((processors / 2).max(1)))
}

#[derive(Clone)]
pub struct Store {
    pub(crate) ops: mpsc::Sender<Op>,
    pub(crate) reader: Reader,
    pub(crate) vault: Vault,
    pub(crate) seal_keys: Arc<dyn SealKeySource>,
    /// Held while the seal key is changed.
    pub(crate) rotation: Arc<tokio::sync::Mutex<()>>,
    pub(crate) clock: Clock,
    pub(crate) hints: Arc<Hints>,
    pub(crate) health: Arc<Health>,
    pub(crate) recent: Arc<Recent>,
    pub(crate) remains: Remains,
    /// Turns to hash and seal what is large.
    pub(crate) preparing: Arc<Semaphore>,
    /// … and of outcomes, whose leases run meanwhile: they do not wait behind what is handed in.
    pub(crate) preparing_outcomes: Arc<Semaphore>,
    pub(crate) places: Places,
}

impl Store {
    /// Accepts messages: all of them or none. A message whose idempotency key was used before with the same content is
    /// answered as the first time, with `duplicate`.
    pub async fn message_accept(&self, accept: Accept) -> Result<Vec<Accepted>, AcceptError> {
        self.message_accept_from(accept, ()).await
    }

    /// As [`Store::message_accept`]. `room`, in which its bytes are the sender's until then, is dropped when the store has a place for them,
    /// and of small ones when they are answered.
    pub async fn message_accept_from<R>(
        &self,
        accept: Accept,
        room: R,
    ) -> Result<Vec<Accepted>, AcceptError> {
        let Accept { permit, session, messages } = accept;
        let sender = permit.sender().clone();
        let place = self.places.take(messages.iter().map(|message| message.data.len()).sum()).await?;
        let _room = place.is_none().then_some(room);
        let (messages, prepared) = self.prepare(&self.preparing, sender, messages, |message| message).await?;
        let accept = Accept { permit, session, messages };
        self.call(|answer| Op::Accept { accept, prepared, place, answer }).await
    }

    /// What a message was answered when it was handed in before under the same key with the same content; `None` if it was
    /// not. So a repetition can be answered although routes or rights have changed since.
    pub async fn accepted_before(
        &self,
        sender: &Actor,
        message: &NewMessage,
    ) -> Result<Option<Accepted>, StoreError> {
        let (key, fingerprint) = identity(&self.vault, sender, message);
        self.call(|answer| Op::AcceptedBefore { key, fingerprint, answer }).await
    }

    /// Hashes and seals the messages of `items`, which keep the rest of them.
    async fn prepare<T: Send + 'static>(
        &self,
        preparing: &Arc<Semaphore>,
        sender: Actor,
        mut items: Vec<T>,
        message_of: fn(&mut T) -> &mut NewMessage,
    ) -> Result<(Vec<T>, Vec<Prepared>), StoreError> {
        let bytes: usize = items.iter_mut().map(|item| message_of(item).data.len()).sum();
        let (vault, now, remains) = (self.vault.clone(), self.clock.now(), self.remains);
        let prepare = move || {
            let prepared =
                items.iter_mut().map(|item| Prepared::new(&vault, &sender, message_of(item), now, remains));
            prepared.collect::<Result<_, _>>().map(|prepared| (items, prepared))
        };
        let prepared = if bytes <= PREPARED_INLINE_BYTES_MAX {
            prepare()
        } else {
            let turn = Arc::clone(preparing).acquire_owned().await.map_err(|_| StoreError::Stopping)?;
            let task = tokio::task::spawn_blocking(move || {
                // Until it is done, also when nobody waits for it any more.
                let _turn = turn;
                prepare()
            });
            task.await.map_err(|error| StoreError::Database(error.to_string()))?
        };
        prepared.map_err(|error| StoreError::Database(error.to_string()))
    }

    /// Leases what may be leased now; never waits for more. See [`Store::queue_hint`] for when to ask again.
    pub async fn delivery_lease(&self, request: LeaseRequest) -> Result<LeaseAnswer, LeaseError> {
        let claimed: Claimed = self.call(|answer| Op::Lease(request, answer)).await?;
        let recent = self.recent.take(claimed.deliveries.iter().map(|delivery| delivery.message));
        let older = claimed.deliveries.iter().filter(|delivery| !recent.contains_key(&delivery.message));
        let seqs: Vec<i64> = older.map(|delivery| delivery.message_seq).collect();
        let messages = self.reader.messages_by_seq(&seqs).await?;
        let mut deliveries = Vec::with_capacity(claimed.deliveries.len());
        let mut damaged = Vec::new();
        for claimed in claimed.deliveries {
            let sound = match (recent.get(&claimed.message), messages.get(&claimed.message_seq)) {
                (Some(recent), _) => self.open(claimed.message, claimed.message_seq, recent).await,
                (None, Some(Ok(message))) if message.id == claimed.message => Ok(message.clone()),
                (None, Some(Err(error))) => Err(error.clone()),
                (None, Some(Ok(_)) | None) => Err(StoreError::Corrupt {
                    table: "delivery",
                    column: "message",
                    row: claimed.delivery.to_string(),
                }),
            };
            let message = match sound {
                Ok(message) => message,
                Err(damage @ StoreError::Corrupt { .. }) => {
                    let ClaimedDelivery { delivery, token, .. } = claimed;
                    damaged.push(DamagedLease { delivery, token, damage });
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            deliveries.push(Leased {
                delivery: claimed.delivery,
                token: claimed.token,
                attempt: claimed.attempt,
                doubt: claimed.doubt,
                replayed: claimed.replayed,
                lease: claimed.lease,
                message,
            });
        }
        if damaged.is_empty() {
            return Ok(LeaseAnswer { deliveries, next_due: claimed.next_due });
        }
        self.call::<(), StoreError>(|answer| Op::Damaged { leased: damaged, answer }).await?;
        // What stands behind them may be leased at once.
        Ok(LeaseAnswer { deliveries, next_due: Some(Duration::ZERO) })
    }

    /// A message that was at hand, as its row would give it.
    async fn open(
        &self,
        id: MessageId,
        seq: i64,
        recent: &RecentMessage,
    ) -> Result<StoredMessage, StoreError> {
        let message = id.as_bytes();
        let place = |column| Place { table: "message", column, row: seq };
        let owner = Owner::Attributes { message };
        let attributes = self.reader.unseal(recent.attributes.to_vec(), owner, place("attributes")).await?;
        let inline = recent.size <= INLINE_DATA_BYTES_MAX;
        let owner = Owner::Data { message, salt: &recent.salt };
        let data = match inline {
            true => Some(self.reader.unseal(recent.data.to_vec(), owner, place("data")).await?),
            false => None,
        };
        Ok(StoredMessage {
            id,
            accepted_at: recent.accepted_at,
            attributes,
            form: recent.form,
            size: recent.size,
            data,
            purged: false,
            sender: recent.sender.clone(),
        })
    }

    /// Outcomes, emitted events and adapter state in one transaction.
    pub async fn delivery_settle(&self, settle: Settle) -> Result<SettleAnswer, SettleError> {
        let (turns, consumer) = (&self.preparing_outcomes, settle.consumer.clone());
        let (emit, prepared) = self.prepare(turns, consumer, settle.emit, |emit| &mut emit.message).await?;
        let settle = Settle { emit, ..settle };
        self.call(|answer| Op::Settle { settle, prepared, answer }).await
    }

    /// Opens an adapter's session and ends its earlier ones. What these gave back for one partner's trouble is due again.
    pub async fn session_open(
        &self,
        adapter: String,
        version: Option<String>,
    ) -> Result<Session, StoreError> {
        let named = adapter.clone();
        let session = self.call(|answer| Op::SessionOpen { adapter: named, version, answer }).await?;
        if let Err(error) = self.wake_all(&adapter, &session).await {
            tracing::warn!(adapter, %error, "what waits for the adapter's partners comes by itself, later");
        }
        Ok(session)
    }

    /// Ends an adapter's session: what it had leased goes back or into doubt.
    pub async fn session_end(&self, adapter: String, end: SessionEnd) -> Result<(), StoreError> {
        self.call(|answer| Op::SessionEnd { adapter, end, answer }).await
    }

    /// Whether this gateway may run an adapter that runs once: nobody else does. On SQLite there is nobody else.
    pub async fn adapter_claim(&self, adapter: String) -> Result<Option<AdapterRole>, StoreError> {
        self.call(|answer| Op::Claim { adapter, answer }).await
    }

    /// Lets others run an adapter that this gateway does not run any more.
    pub async fn adapter_yield(&self, adapter: String) -> Result<(), StoreError> {
        self.call(|answer| Op::Yield { adapter, answer }).await
    }

    /// Replays, discards or resolves a delivery at an operator's word.
    pub async fn delivery_operate(
        &self,
        permit: &OperatorPermit,
        delivery: DeliveryId,
        verb: Verb,
        reason: String,
    ) -> Result<DeliveryRow, OperateError> {
        let permit = permit.clone();
        self.call(|answer| Op::Operate { permit, delivery, verb, reason, answer }).await
    }

    /// One step of giving a destination's deliveries to another one, in a transaction of its own: those after position
    /// `after`, 0 at first. The answer says where to go on; stopping between steps loses nothing.
    pub async fn deliveries_move(
        &self,
        permit: &OperatorPermit,
        from: String,
        to: String,
        after: i64,
        reason: String,
    ) -> Result<Moved, MoveError> {
        let step = MoveStep { operator: permit.operator().clone(), from, to, after, reason };
        self.call(|answer| Op::Move { step, answer }).await
    }

    /// Pauses or resumes a queue at an operator's word.
    pub async fn queue_pause(
        &self,
        permit: &OperatorPermit,
        queue: String,
        pause: Pause,
    ) -> Result<(), StoreError> {
        let permit = permit.clone();
        self.call(|answer| Op::QueuePause { permit, queue, pause, answer }).await
    }

    /// Opens a queue's breaker, or closes it.
    pub async fn queue_trip(&self, queue: String, trip: Option<TripReason>) -> Result<(), StoreError> {
        self.call(|answer| Op::QueueTrip { queue, trip, answer }).await
    }

    /// Puts the configuration's queues in force; deliveries already accepted keep their lanes.
    pub async fn queues_configure(&self, queues: Vec<QueueSetup>) -> Result<(), StoreError> {
        self.call(|answer| Op::Configure { queues, answer }).await
    }

    /// Writes operator and security events into the audit log.
    pub async fn audit_note(&self, notes: Vec<AuditNote>) -> Result<(), StoreError> {
        self.call(|answer| Op::Note(notes, answer)).await
    }

    /// Everything that only reads.
    pub fn read(&self) -> &Reader {
        &self.reader
    }

    /// A hint that the queue may have something to lease. Arm it, then lease, then wait for it.
    pub fn queue_hint(&self, queue: &str) -> Arc<tokio::sync::Notify> {
        self.hints.queue(queue)
    }

    /// A hint that a delivery of the message has ended. Arm it, then read, then wait for it.
    pub fn message_hint(&self, message: MessageId) -> crate::hints::MessageHint {
        self.hints.message(message)
    }

    /// Waits until the writer has ended. Before it was stopped that is a fault, after which nothing can be written any more.
    pub async fn writer_ended(&self) {
        self.ops.closed().await;
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    async fn call<T, E: From<StoreError>>(&self, op: impl FnOnce(Answer<T, E>) -> Op) -> Result<T, E> {
        let (answer, answered) = oneshot::channel();
        self.ops.send(op(answer)).await.map_err(|_| StoreError::Stopping)?;
        answered.await.map_err(|_| StoreError::Stopping)?
    }
}
