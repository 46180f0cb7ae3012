//! Named places where a test lets a process die or stand still.
//!
//! In a normal build every function here is empty and inlined, and the environment is not read. With the feature `on`, which only
//! the fault laboratory's builds have, the variable `GATEPOST_FAULTS` says what happens where:
//!
//! ```text
//! store.before_commit=kill@7;sdk.after_answer=pause:50;once=/tmp/fired
//! ```
//!
//! Actions are `kill` (SIGKILL to itself), `stop` (SIGSTOP to itself) and `pause:MS`; `@N` means the N-th time that the process comes
//! by, without it every time. `once=FILE` lets each point happen once over all processes that share the file, which names
//! those that have happened: an adapter that is started again does not die again.

/// The points of `gatepost`.
pub const GATEWAY_POINTS: [&str; 14] = [
    // A transaction has been written and is not committed.
    "store.before_commit",
    // It is committed, and nobody has been told.
    "store.after_commit",
    // Pieces of a large payload are durable, and the message has not been accepted.
    "store.pieces_written",
    // The WAL is being brought into the database.
    "store.wal_checkpoint",
    // A migration has been made and is not committed.
    "store.in_migration",
    // It is committed, and the next is not begun.
    "store.after_migration",
    // The new checkpoint of the audit log is a durable file under a temporary name.
    "audit.checkpoint_written",
    // The old one has its second name.
    "audit.previous_kept",
    // The new one has its name, and the directory is not synced.
    "audit.checkpoint_renamed",
    // Tiles and bundles are written and not synced.
    "audit.files_written",
    // They are durable, and their rows are still there.
    "audit.files_synced",
    // A new configuration has been found good, and nothing of it is in force.
    "reload.validated",
    // The store has its queues, and the old one is still in force.
    "reload.half_way",
    // It is in force, and the adapters still run as before.
    "reload.swapped",
];

/// The points of `gatepost migrate`.
pub const COPY_POINTS: [&str; 4] = [
    // A batch has been written and is not committed.
    "copy.before_commit",
    // It is committed, and the next is not begun.
    "copy.after_commit",
    // The copy is finished, and the old database still has its name.
    "copy.finished",
    // It has another name, and the directory is not synced.
    "copy.renamed",
];

/// The points of adapters.
pub const ADAPTER_POINTS: [&str; 5] = [
    // The attempt is recorded, and no byte has left.
    "sdk.after_begin",
    // Half of the bytes have left.
    "hl7.mid_write",
    // The partner has answered, and the gateway has not been told.
    "sdk.after_answer",
    // The gateway has settled it, and the adapter has not seen the answer.
    "sdk.after_settle",
    // A partner's message is stored, and the partner has not been told.
    "hl7.before_ack",
];

/// Those of `gatepost-fix`: before and behind the commits of a session, by the most that they hold, and at its connection.
pub const FIX_POINTS: [&str; 12] = [
    // Orders have numbers, and that is not durable.
    "fix.before_begin",
    // It is, and no byte has left.
    "fix.after_begin",
    // Half of the bytes of some have left.
    "fix.mid_write",
    // All have, and the session has not been told.
    "fix.after_write",
    // What has become of orders is known, and not durable.
    "fix.before_outcome",
    "fix.after_outcome",
    // Messages have come, and are not durable.
    "fix.before_receive",
    // They are, and nothing of them has been acted on.
    "fix.after_receive",
    // The session's own messages have come or are to leave.
    "fix.before_numbers",
    "fix.after_numbers",
    // The numbers begin at 1 again, and that is not durable.
    "fix.before_reset",
    "fix.after_reset",
];

/// Around the commit that lets a message go which the gateway does not take.
pub const FIX_REFUSAL_POINTS: [&str; 2] = [
    // What the partner is owed for it is not durable.
    "fix.before_refusal",
    // It is, and the partner has not been told.
    "fix.after_refusal",
];

/// The points of `gatepost`'s commands that copy data and put it back.
pub const COMMAND_POINTS: [&str; 3] = [
    // The database has been copied, and the log's files have not.
    "backup.snapshot_taken",
    // All of the backup is durable, under a temporary name.
    "backup.complete",
    // A part of what is restored gets its place next.
    "restore.before_a_part",
];

/// The points of erasing and of another seal key, in their order.
pub const SEAL_KEY_POINTS: [&str; 4] = [
    // The new one is a durable file, and nothing is wrapped with it.
    "seal_key.made",
    // Messages are erased, and copies of them can still be opened.
    "erase.committed",
    // All is wrapped with the new one, and the old one is there.
    "seal_key.rewrapped",
    // The old one has lost its name, and is still readable.
    "seal_key.unnamed",
];

#[cfg(feature = "on")]
mod on;

#[cfg(feature = "on")]
pub use on::{during, handed_on, point};

/// Whether this build has points at all.
pub const ON: bool = cfg!(feature = "on");

/// The process comes by the point `name`.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub fn point(_name: &str) {}

/// Does `work`, in the middle of which the point `name` lies.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub fn during<T>(_name: &str, work: impl FnOnce() -> T) -> T {
    work()
}

/// The variable that a child with a cleared environment needs too; none in a normal build.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub fn handed_on() -> Option<(&'static str, std::ffi::OsString)> {
    None
}
