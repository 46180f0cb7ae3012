//! The auditor: reads a tlog-tiles directory from the first entry to the last and names the first thing that is wrong.
//!
//! It trusts the key it is given and nothing that the log says about itself. It never writes. Memory is bounded by
//! one bundle and by the deliveries that are not yet finished, not by the size of the log.
//!
//! A difference between an entry and its tile is a change made after the log was written ([`Fault::LeafChanged`],
//! [`Fault::TileChanged`]); an entry that agrees with its tile and still is malformed or impossible was written so by
//! the log ([`Fault::Leaf`], [`Fault::Semantic`]).

mod fault;
mod files;
mod semantics;
mod walk;

use std::io;
use std::path::Path;

pub use fault::{Fault, Outcome};
pub use semantics::SemanticError;

use crate::checkpoint::Checkpoint;
use crate::dir::{CHECKPOINT, DirTiles, read_bounded};
use crate::note::{NOTE_BYTES_MAX, VerifierKey};
use crate::tiles::{BundleEntries, BundleError, TILE_WIDTH, entries_path};
use crate::tree::Hash;
use files::{BundleFile, Files, Partials};
use walk::Walk;

/// The newest entries of a log that are not yet in full bundles.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    /// Index of the first of them.
    pub start: u64,
    pub leaves: Vec<Vec<u8>>,
}

/// Gives the entries from an index on, where the files end. It is called after the checkpoint was read, so that a
/// growing log gives at least what is signed; if they begin later, because they have become files meanwhile, the files
/// are looked at again.
pub type ReadTail<'a> = Box<dyn FnMut(u64) -> io::Result<Tail> + 'a>;

pub struct Options<'a> {
    /// The key that the checkpoint must be signed with.
    pub key: VerifierKey,
    /// A signed checkpoint that this log must extend, and the name to call it by.
    pub since: Option<(String, Vec<u8>)>,
    /// For a log whose newest entries are not in the directory. Partial files are then neither needed nor read.
    pub tail: Option<ReadTail<'a>>,
}

impl Options<'_> {
    pub fn new(key: VerifierKey) -> Self {
        Self { key, since: None, tail: None }
    }
}

/// What was found of a log in which nothing is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub origin: String,
    /// Entries that the checkpoint covers.
    pub size: u64,
    pub root: Hash,
    /// Entries beyond the checkpoint: normal just after a crash, or while the log grows.
    pub unsigned: u64,
    /// Size of the older checkpoint that the log was shown to extend.
    pub since: Option<u64>,
    /// Deliveries without a final outcome, dead ones included.
    pub deliveries_open: u64,
}

/// Verifies the log in `dir`. `progress` is called with the entries done and the entries signed, once per bundle.
pub fn verify_dir(
    dir: &Path,
    options: Options<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, Fault> {
    let key = std::slice::from_ref(&options.key);
    let signed = read_bounded(&dir.join(CHECKPOINT), NOTE_BYTES_MAX)
        .map_err(|source| Fault::Unreadable { path: CHECKPOINT.to_owned(), source })?;
    let checkpoint = Checkpoint::open(&signed, key)
        .map_err(|source| Fault::Signature { path: CHECKPOINT.to_owned(), source })?;
    let since = match options.since {
        None => None,
        Some((path, signed)) => {
            let since = Checkpoint::open(&signed, key).map_err(|source| Fault::Signature { path, source })?;
            check_since(&checkpoint, &since)?;
            Some(since)
        }
    };
    let partials = if options.tail.is_some() { Partials::Ignored } else { Partials::Expected };
    let mut walk = Walk::start(Files { tiles: DirTiles::new(dir), partials }, checkpoint, since)?;
    let Some(mut read_tail) = options.tail else {
        walk_files(&mut walk, progress)?;
        return Ok(walk.finish());
    };
    let walked =
        walk_files(&mut walk, progress).and_then(|()| walk_tail(&mut walk, &mut read_tail, progress));
    match walked {
        Ok(()) => Ok(walk.finish()),
        // The files alone do not prove which of the two is the signed one.
        Err(fault @ Fault::LeafDiffers { .. }) => Err(match read_tail(0) {
            Ok(tail) => walk.told_with(&tail, fault),
            Err(_) => fault,
        }),
        Err(fault) => Err(fault),
    }
}

/// What two checkpoints alone can tell.
fn check_since(newest: &Checkpoint, since: &Checkpoint) -> Result<(), Fault> {
    if since.size > newest.size {
        return Err(Fault::RolledBack { since: since.size, size: newest.size });
    }
    if since.size == newest.size && since.root != newest.root {
        return Err(Fault::Fork { since: since.size, size: newest.size });
    }
    Ok(())
}

/// Reads bundle files from where the walk is to where they end.
fn walk_files(walk: &mut Walk, progress: &mut dyn FnMut(u64, u64)) -> Result<(), Fault> {
    while walk.entries().is_multiple_of(u64::from(TILE_WIDTH)) {
        let index = walk.entries() / u64::from(TILE_WIDTH);
        let Some(bundle) = walk.files.bundle(index, walk.signed_in_bundle(index))? else { break };
        walk_bundle(walk, index, &bundle)?;
        progress(walk.entries(), walk.size());
    }
    Ok(())
}

/// Reads the entries of one file, each before the next is even delimited: a fault is named where it begins.
fn walk_bundle(walk: &mut Walk, index: u64, bundle: &BundleFile) -> Result<(), Fault> {
    walk.open_bundle(index, &bundle.path)?;
    walk_bundle_entries(walk, &bundle.path, bundle.width, &bundle.bytes)?;
    walk.files.check_narrower(index, bundle)
}

fn walk_bundle_entries(walk: &mut Walk, path: &str, width: u16, bytes: &[u8]) -> Result<(), Fault> {
    let first = walk.entries();
    let broken = |leaf, source| Fault::Bundle { path: path.to_owned(), leaf, source };
    for entry in BundleEntries::new(bytes) {
        let leaf = walk.entries();
        let entry = entry.map_err(|source| broken(leaf, source))?;
        if leaf == first + u64::from(width) {
            return Err(broken(leaf, BundleError::TooManyEntries));
        }
        walk.entry(entry)?;
    }
    let found = walk.entries() - first;
    if found < u64::from(width) {
        return Err(broken(walk.entries(), BundleError::CutShort { entry: found as usize }));
    }
    Ok(())
}

fn walk_tail(
    walk: &mut Walk,
    read_tail: &mut ReadTail<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), Fault> {
    let unreadable = |source| Fault::Unreadable { path: "the newest entries".to_owned(), source };
    let mut tail = read_tail(walk.entries()).map_err(unreadable)?;
    while tail.start > walk.entries() {
        let before = walk.entries();
        walk_files(walk, progress)?;
        if walk.entries() == before {
            break;
        }
        tail = read_tail(walk.entries()).map_err(unreadable)?;
    }
    let missing = |leaf| Fault::Missing { path: entries_path(leaf / u64::from(TILE_WIDTH), None), leaf };
    // Entries leave the tail only after their bundle is a file, so the two may overlap.
    let overlap = walk.entries().checked_sub(tail.start).ok_or_else(|| missing(walk.entries()))?;
    walk.open_tail();
    for leaf in tail.leaves.iter().skip(usize::try_from(overlap).unwrap_or(usize::MAX)) {
        walk.entry(leaf)?;
    }
    progress(walk.entries(), walk.size());
    if walk.entries() < walk.size() {
        return Err(missing(walk.entries()));
    }
    Ok(())
}

/// A key file or a key itself, as given on a command line.
pub fn read_vkey(text: &str) -> Result<VerifierKey, Fault> {
    if let Ok(key) = VerifierKey::parse(text) {
        return Ok(key);
    }
    let malformed = |source| Fault::Key { path: text.to_owned(), source };
    match read_bounded(Path::new(text), NOTE_BYTES_MAX) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            VerifierKey::parse(text.trim_end_matches('\n')).map_err(malformed)
        }
        // Neither a file nor a key: what is wrong with it as a key is more useful when it looks like one.
        Err(error) if error.kind() == io::ErrorKind::NotFound && text.contains('+') => {
            VerifierKey::parse(text).map_err(malformed)
        }
        Err(source) => Err(Fault::Unreadable { path: text.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests;
