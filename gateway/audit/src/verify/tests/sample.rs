//! A log to tamper with.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::checkpoint::Checkpoint;
use crate::export::Exporter;
use crate::leaf::{ActorKind, By, Event, Leaf, LeafDelivery, State};
use crate::note::SignerKey;
use crate::tree::{Frontier, Hash, leaf_hash};
use crate::verify::{Fault, Options, Report, verify_dir};

pub(super) const ORIGIN: &str = "clinic-1";
/// Two full bundles and one of 88.
pub(super) const SIZE: usize = 600;

pub(super) fn key() -> SignerKey {
    SignerKey::from_seed(ORIGIN, &[42; 32]).unwrap()
}

pub(super) fn id(kind: u8, number: usize) -> [u8; 16] {
    let mut id = [kind; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    id
}

pub(super) fn leaf(number: usize, event: Event) -> Leaf<'static> {
    Leaf::new(1_795_423_812_000_000 + number as i64 * 1_001, By::new(ActorKind::Gateway, ORIGIN), event)
}

pub(super) fn delivery_leaf(number: usize, event: Event, delivery: usize, attempt: u32) -> Leaf<'static> {
    Leaf { delivery: Some(id(2, delivery)), attempt: Some(attempt), series: Some(0), ..leaf(number, event) }
}

pub(super) fn accepted(number: usize, deliveries: &[usize]) -> Leaf<'static> {
    Leaf {
        by: By::new(ActorKind::App, "ehr"),
        message: Some(id(1, number)),
        content: Some([number as u8; 32]),
        size: Some(number as u64 * 17),
        deliveries: deliveries.iter().map(|&n| LeafDelivery { id: id(2, n), to: "lab".into() }).collect(),
        ..leaf(number, Event::Accepted)
    }
}

/// Ordinary deliveries, some that die and are replayed, some that never end, and an operator in between.
pub(super) fn leaves(count: usize) -> Vec<Vec<u8>> {
    let mut leaves = vec![leaf(0, Event::LogOpened)];
    for message in 0.. {
        let n = leaves.len();
        leaves.push(accepted(n, &[message]));
        leaves.push(delivery_leaf(n + 1, Event::Attempt, message, 1));
        match message % 7 {
            0 => leaves.push(delivery_leaf(n + 2, Event::InDoubt, message, 1)),
            1 => {
                leaves.push(delivery_leaf(n + 2, Event::Dead, message, 1));
                let again = |event| Leaf { series: Some(1), ..delivery_leaf(n + 3, event, message, 0) };
                leaves.push(again(Event::Replayed));
                leaves.push(Leaf { attempt: Some(1), ..again(Event::Attempt) });
                leaves.push(Leaf {
                    attempt: Some(1),
                    state: Some(State::Delivered),
                    ..again(Event::Delivered)
                });
            }
            2 => leaves.push(Leaf { subject_of: Some("lab".into()), ..leaf(n + 2, Event::QueuePaused) }),
            _ => leaves.push(delivery_leaf(n + 2, Event::Delivered, message, 1)),
        }
        if leaves.len() >= count {
            break;
        }
    }
    leaves.iter().take(count).map(|leaf| leaf.encode().unwrap()).collect()
}

pub(super) fn root(leaves: &[Vec<u8>]) -> Hash {
    let mut frontier = Frontier::new();
    leaves.iter().for_each(|leaf| frontier.push(leaf_hash(leaf)));
    frontier.root()
}

pub(super) fn signed(leaves: &[Vec<u8>]) -> String {
    let size = leaves.len() as u64;
    Checkpoint { origin: ORIGIN.to_owned(), size, root: root(leaves) }.sign(&key()).unwrap()
}

pub(super) struct Log {
    pub(super) dir: TempDir,
}

impl Log {
    pub(super) fn export(leaves: &[Vec<u8>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut exporter = Exporter::create(dir.path()).unwrap();
        leaves.iter().for_each(|leaf| exporter.push(leaf).unwrap());
        exporter.finish(&signed(leaves), &key().verifier()).unwrap();
        Self { dir }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.path(path)).unwrap()
    }

    pub(super) fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        std::fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        std::fs::write(self.path(path), bytes).unwrap();
    }

    pub(super) fn remove(&self, path: &str) {
        std::fs::remove_file(self.path(path)).unwrap();
    }

    pub(super) fn verify(&self) -> Result<Report, Fault> {
        verify(self.dir.path(), Options::new(key().verifier()))
    }

    pub(super) fn verify_since(&self, since: &str) -> Result<Report, Fault> {
        let since = Some(("since".to_owned(), since.as_bytes().to_vec()));
        verify(self.dir.path(), Options { since, ..Options::new(key().verifier()) })
    }
}

pub(super) fn verify(dir: &Path, options: Options<'_>) -> Result<Report, Fault> {
    verify_dir(dir, options, &mut |_, _| {})
}
