//! What can be wrong with a log, one variant per thing an auditor would do about it, each with its exit code.

use std::io;

use super::semantics::SemanticError;
use crate::checkpoint::CheckpointError;
use crate::leaf::LeafError;
use crate::note::NoteError;
use crate::proof::{ProofTextError, ReceiptError};
use crate::tiles::BundleError;

/// Exit codes of `gatepost-verify`, fixed: scripts depend on them. 0 is a log in which nothing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// The checkpoint is not signed by the key.
    Signature = 10,
    /// The entries do not hash to the signed root.
    Root = 11,
    /// A tile or a bundle was changed, cut or is missing.
    Files = 12,
    /// The log signed two histories.
    Fork = 13,
    /// The log contains an entry that is malformed.
    Leaf = 16,
    /// The log contains an entry that cannot follow those before it.
    Semantic = 17,
    /// The log is shorter than it was.
    RolledBack = 18,
    /// Wrong usage, or something cannot be read.
    Usage = 20,
}

#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot read {path}")]
    Unreadable { path: String, source: io::Error },
    #[error("{path:?} holds no verifier key")]
    Key { path: String, source: NoteError },
    #[error("{path} is not a proof")]
    Proof { path: String, source: ProofTextError },
    #[error("{path} proves nothing")]
    Receipt { path: String, source: ReceiptError },
    #[error("{path} is not a checkpoint of this log signed by the key")]
    Signature { path: String, source: CheckpointError },
    #[error(
        "the {size} entries do not hash to the signed root, though entries and tiles agree: both were changed{}",
        since_hint(*.since)
    )]
    Root { size: u64, since: Option<(u64, bool)> },
    #[error("leaf {leaf} in {path} was changed: its hash in {tile} is part of the signed tree")]
    LeafChanged { leaf: u64, path: String, tile: String },
    #[error("the hash of leaf {leaf} in {path} was changed: the leaf itself is part of the signed tree")]
    LeafHashChanged { leaf: u64, path: String },
    #[error(
        "leaf {leaf} in {path} and its hash in {tile} differ, and the rest of the log does not prove either"
    )]
    LeafDiffers { leaf: u64, path: String, tile: String },
    #[error("hash {position} of {path} is not the one of the entries below it (from leaf {leaf} on)")]
    TileChanged { path: String, position: usize, leaf: u64 },
    #[error("{path} has {bytes} bytes, which is not its width in hashes")]
    TileLength { path: String, bytes: usize },
    #[error(
        "{path} is missing, needed from leaf {leaf} on{}",
        if .path.contains(".p/") { MISSING_PARTIAL_HINT } else { "" }
    )]
    Missing { path: String, leaf: u64 },
    #[error("{path} is not a bundle of its width: at leaf {leaf}")]
    Bundle { path: String, leaf: u64, source: BundleError },
    #[error("{path} is not the beginning of {of}")]
    BundleDiffers { path: String, of: String },
    #[error(
        "two checkpoints signed by the same key contradict each other: the one of {since} entries is not part of \
         the one of {size}; keep both as evidence"
    )]
    Fork { since: u64, size: u64 },
    #[error("leaf {leaf} is malformed")]
    Leaf { leaf: u64, source: LeafError },
    #[error("leaf {leaf} is impossible")]
    Semantic { leaf: u64, source: SemanticError },
    #[error("the log has {size} signed entries, but had {since}: it was truncated or rolled back")]
    RolledBack { since: u64, size: u64 },
}

impl Fault {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unreadable { .. } | Self::Key { .. } | Self::Proof { .. } => Outcome::Usage,
            Self::Receipt { source: ReceiptError::NoEntry, .. } => Outcome::Usage,
            Self::Receipt { source: ReceiptError::Inclusion(_), .. } => Outcome::Root,
            Self::Receipt { source: ReceiptError::Checkpoint(_), .. } => Outcome::Signature,
            Self::Signature { .. } => Outcome::Signature,
            Self::Root { .. } => Outcome::Root,
            Self::LeafChanged { .. }
            | Self::LeafHashChanged { .. }
            | Self::LeafDiffers { .. }
            | Self::TileChanged { .. }
            | Self::TileLength { .. }
            | Self::Missing { .. }
            | Self::Bundle { .. }
            | Self::BundleDiffers { .. } => Outcome::Files,
            Self::Fork { .. } => Outcome::Fork,
            Self::Leaf { .. } => Outcome::Leaf,
            Self::Semantic { .. } => Outcome::Semantic,
            Self::RolledBack { .. } => Outcome::RolledBack,
        }
    }

    pub fn exit_code(&self) -> u8 {
        self.outcome() as u8
    }

    /// The first leaf that is wrong, where it can be told.
    pub fn leaf(&self) -> Option<u64> {
        match self {
            Self::LeafChanged { leaf, .. }
            | Self::LeafHashChanged { leaf, .. }
            | Self::LeafDiffers { leaf, .. }
            | Self::TileChanged { leaf, .. }
            | Self::Missing { leaf, .. }
            | Self::Bundle { leaf, .. }
            | Self::Leaf { leaf, .. }
            | Self::Semantic { leaf, .. } => Some(*leaf),
            _ => None,
        }
    }

    /// The file that is wrong, below the log's directory.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Unreadable { path, .. }
            | Self::Key { path, .. }
            | Self::Proof { path, .. }
            | Self::Receipt { path, .. }
            | Self::Signature { path, .. }
            | Self::LeafChanged { path, .. }
            | Self::LeafHashChanged { path, .. }
            | Self::LeafDiffers { path, .. }
            | Self::TileChanged { path, .. }
            | Self::TileLength { path, .. }
            | Self::Missing { path, .. }
            | Self::Bundle { path, .. }
            | Self::BundleDiffers { path, .. } => Some(path),
            Self::Root { .. }
            | Self::Fork { .. }
            | Self::Leaf { .. }
            | Self::Semantic { .. }
            | Self::RolledBack { .. } => None,
        }
    }

    /// A word for programs that read `--json`.
    pub fn word(&self) -> &'static str {
        match self.outcome() {
            Outcome::Signature => "signature",
            Outcome::Root => "root",
            Outcome::Files => "files",
            Outcome::Fork => "fork",
            Outcome::Leaf => "leaf",
            Outcome::Semantic => "semantic",
            Outcome::RolledBack => "rolled_back",
            Outcome::Usage => "usage",
        }
    }
}

const MISSING_PARTIAL_HINT: &str = " (the newest entries of a gateway are in its database: verify with `gatepost audit verify`, or export first)";

fn since_hint(since: Option<(u64, bool)>) -> String {
    match since {
        None => String::new(),
        Some((size, true)) => format!("; the first {size} are still those of the older checkpoint"),
        Some((size, false)) => format!("; already the first {size} are not those of the older checkpoint"),
    }
}
