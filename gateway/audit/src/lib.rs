//! The audit log: leaf encoding, Merkle tree, signed notes, proofs and their verification.
//!
//! The log is an RFC 6962 SHA-256 Merkle tree, published as C2SP tlog-tiles with signed-note checkpoints (Ed25519)
//! and tlog-proof receipts, so that programs which have never heard of Gatepost can check it.
//!
//! **Architecture invariant:** this crate knows neither the store nor the server, draws no randomness and reads no
//! clock. What it verifies, it verifies from bytes in files, which is why an auditor can believe it.
//!
//! * [`leaf`]: what one entry says, and its one canonical encoding
//! * [`tree`], [`merkle`], [`edge`]: hashing, proofs, and the growing right edge of the tree
//! * [`note`], [`checkpoint`], [`proof`]: the signed texts
//! * [`tiles`], [`dir`], [`export`]: the files
//! * [`verify`]: the auditor

pub mod checkpoint;
pub mod dir;
pub mod edge;
pub mod export;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod leaf;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tiles;
pub mod tree;
pub mod verify;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use dir::{DirTiles, TileError, VKEY, read_checkpoint, write_checkpoint, write_file_durable};
pub use edge::{FullTile, TileEdge, WithEdge};
pub use export::{ExportError, Exporter};
pub use leaf::{ActorKind, By, Event, Leaf, LeafDelivery, LeafError, Level, State};
pub use merkle::{
    NodeSource, ProofError, TreeError, consistency_proof, inclusion_proof, root_at, verify_consistency,
    verify_inclusion,
};
pub use note::{NoteError, SignerKey, VerifierKey};
pub use proof::{Proof, ProofTextError};
pub use tiles::{TILE_WIDTH, TilePath, encode_bundle, entries_path, parse_bundle, tile_path};
pub use tree::{Frontier, Hash, empty_root, leaf_hash, node_hash, range_root};
pub use verify::{Fault, Options, ReadTail, Report, Tail, verify_dir};
