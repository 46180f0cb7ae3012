//! A directory tree as a disk has it: what is durable, and what has been changed since in the order of its happening.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::Record;
use crate::dice::Dice;

/// What disks write whole.
const SECTOR_BYTES: u64 = 512;

/// What becomes of that which was not synced. Names of one directory survive in the order of their changes, as a journal
/// keeps them; bytes survive in any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    All,
    /// Some writes have reached the disk and others have not, whatever their order.
    Some,
    /// Likewise sector by sector: writes are torn.
    Torn,
}

/// What a crash took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Writes and changes of size of which at least a part was lost.
    pub writes: usize,
    /// Names that were made, changed or removed, and are as before.
    pub names: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    nodes: Vec<Node>,
    by_ino: HashMap<u64, usize>,
    /// The directory above the recorded one; of its names only that one is known.
    top: usize,
    top_path: PathBuf,
}

#[derive(Clone, Debug)]
enum Node {
    File {
        mode: u32,
        durable: Vec<u8>,
        pending: Vec<(u64, Change)>,
    },
    Dir {
        mode: u32,
        durable: BTreeMap<String, usize>,
        now: BTreeMap<String, usize>,
        pending: Vec<(u64, NameChange)>,
    },
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Size(u64),
}

/// One or two names of a directory, at once.
#[derive(Clone, Debug)]
struct NameChange(Vec<(String, Option<usize>)>);

impl Model {
    /// The tree as it is on a disk where everything is synced.
    pub(super) fn of(root: &Path) -> Self {
        let parent = root.parent().expect("a directory below another").to_path_buf();
        let mut model = Self { top_path: parent.clone(), ..Self::default() };
        let ino = fs::metadata(&parent).expect("the directory above is there").ino();
        model.top = model.add(ino, dir(0o700));
        if root.is_dir() {
            let node = model.scan(root);
            model.enter(model.top, &name(root), node);
        }
        model
    }

    fn scan(&mut self, at: &Path) -> usize {
        let status = fs::symlink_metadata(at).expect("a file has a status");
        if status.is_file() {
            if let Some(known) = self.by_ino.get(&status.ino()) {
                return *known;
            }
            let durable = fs::read(at).expect("files can be read");
            let file = Node::File { mode: status.mode() & 0o7777, durable, pending: Vec::new() };
            return self.add(status.ino(), file);
        }
        let node = self.add(status.ino(), dir(status.mode() & 0o7777));
        for entry in fs::read_dir(at).expect("directories can be read") {
            let path = entry.expect("directories can be read").path();
            let kind = fs::symlink_metadata(&path).expect("a file has a status").file_type();
            if (kind.is_file() || kind.is_dir()) && !shared_memory(&path) {
                let child = self.scan(&path);
                self.enter(node, &name(&path), child);
            }
        }
        node
    }

    fn add(&mut self, ino: u64, node: Node) -> usize {
        self.nodes.push(node);
        // An inode's number is used again when its file is gone.
        self.by_ino.insert(ino, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn enter(&mut self, dir: usize, name: &str, node: usize) {
        let Node::Dir { durable, now, .. } = &mut self.nodes[dir] else { panic!("{name} in a file") };
        durable.insert(name.to_owned(), node);
        now.insert(name.to_owned(), node);
    }

    fn node(&self, ino: u64) -> usize {
        *self.by_ino.get(&ino).unwrap_or_else(|| panic!("inode {ino} was made past the shim"))
    }

    /// The directory that holds `path`, as it is now.
    fn dir_of(&self, path: &Path) -> usize {
        let below = path.parent().and_then(|parent| parent.strip_prefix(&self.top_path).ok());
        let below = below.unwrap_or_else(|| panic!("{} is elsewhere", path.display()));
        below.components().fold(self.top, |dir, part| {
            let Node::Dir { now, .. } = &self.nodes[dir] else { panic!("{} in a file", path.display()) };
            let part = part.as_os_str().to_str().expect("paths of tests are text");
            *now.get(part).unwrap_or_else(|| panic!("{} was made past the shim", path.display()))
        })
    }

    fn rename(&mut self, at: u64, dir: usize, changes: Vec<(String, Option<usize>)>) {
        let Node::Dir { now, pending, .. } = &mut self.nodes[dir] else { panic!("names in a file") };
        for (name, node) in &changes {
            match node {
                Some(node) => now.insert(name.clone(), *node),
                None => now.remove(name),
            };
        }
        pending.push((at, NameChange(changes)));
    }

    fn change(&mut self, at: u64, ino: u64, change: Change) {
        let node = self.node(ino);
        let Node::File { pending, .. } = &mut self.nodes[node] else { panic!("bytes in a directory") };
        pending.push((at, change));
    }

    /// `at` is the record's place.
    pub(super) fn apply(&mut self, at: u64, record: Record) {
        match record {
            Record::Write { ino, offset, bytes } => self.change(at, ino, Change::Write { offset, bytes }),
            Record::Size { ino, size } => self.change(at, ino, Change::Size(size)),
            Record::Create { ino, mode, path } => {
                let file = Node::File { mode, durable: Vec::new(), pending: Vec::new() };
                let node = self.add(ino, file);
                self.rename(at, self.dir_of(&path), vec![(name(&path), Some(node))]);
            }
            Record::MakeDir { ino, mode, path } => {
                let node = self.add(ino, dir(mode));
                self.rename(at, self.dir_of(&path), vec![(name(&path), Some(node))]);
            }
            Record::Link { ino, path } => {
                let node = self.node(ino);
                self.rename(at, self.dir_of(&path), vec![(name(&path), Some(node))]);
            }
            Record::Unlink { path } => self.rename(at, self.dir_of(&path), vec![(name(&path), None)]),
            Record::Rename { from, to } => {
                let (source, target) = (self.dir_of(&from), self.dir_of(&to));
                let Node::Dir { now, .. } = &self.nodes[source] else { panic!("names in a file") };
                // A socket has no node, and needs none.
                let Some(&node) = now.get(&name(&from)) else { return };
                let (gone, come) = ((name(&from), None), (name(&to), Some(node)));
                if source == target {
                    self.rename(at, source, vec![gone, come]);
                } else {
                    self.rename(at, target, vec![come]);
                    self.rename(at, source, vec![gone]);
                }
            }
            Record::Sync { ino, began, .. } => {
                if let Some(&node) = self.by_ino.get(&ino) {
                    self.nodes[node].sync(began);
                }
            }
            Record::SyncAll { began } => self.nodes.iter_mut().for_each(|node| node.sync(began)),
            Record::SyncFailed { ino, began, .. } => {
                if let Some(&node) = self.by_ino.get(&ino) {
                    self.nodes[node].lose(began);
                }
            }
            Record::SyncAllFailed { ino, began } => {
                let mut open: Vec<usize> = self.by_ino.get(&ino).copied().into_iter().collect();
                while let Some(node) = open.pop() {
                    self.nodes[node].lose(began);
                    if let Node::Dir { now, .. } = &self.nodes[node] {
                        open.extend(now.values());
                    }
                }
            }
        }
    }

    /// Makes `root` look as the disk does after a crash.
    pub(super) fn crash(&self, loss: Loss, dice: &mut Dice, root: &Path) -> Forgotten {
        let mut forgotten = Forgotten::default();
        let after = self.names_after(self.top, loss, dice, &mut forgotten);
        if root.exists() {
            fs::remove_dir_all(root).expect("the directory can be cleared");
        }
        let mut contents = HashMap::new();
        if let Some(&node) = after.get(&name(root)) {
            self.put(node, root, loss, dice, &mut forgotten, &mut contents);
        }
        forgotten
    }

    fn names_after(
        &self,
        dir: usize,
        loss: Loss,
        dice: &mut Dice,
        forgotten: &mut Forgotten,
    ) -> BTreeMap<String, usize> {
        let Node::Dir { durable, pending, .. } = &self.nodes[dir] else { panic!("names in a file") };
        let kept = if loss == Loss::All { 0 } else { dice.below(pending.len() + 1) };
        forgotten.names += pending.len() - kept;
        let mut names = durable.clone();
        pending[..kept].iter().for_each(|(_, change)| change.apply(&mut names));
        names
    }

    fn put(
        &self,
        node: usize,
        at: &Path,
        loss: Loss,
        dice: &mut Dice,
        forgotten: &mut Forgotten,
        contents: &mut HashMap<usize, Vec<u8>>,
    ) {
        match &self.nodes[node] {
            Node::Dir { mode, .. } => {
                DirBuilder::new().mode(*mode).create(at).expect("a directory can be made");
                for (name, child) in self.names_after(node, loss, dice, forgotten) {
                    self.put(child, &at.join(name), loss, dice, forgotten, contents);
                }
            }
            Node::File { mode, durable, pending } => {
                // A file with two names has one content.
                let bytes = contents.entry(node).or_insert_with(|| {
                    let (bytes, lost) = content_after(durable, pending, loss, dice);
                    forgotten.writes += lost;
                    bytes
                });
                let file = OpenOptions::new().create_new(true).write(true).mode(*mode).open(at);
                file.and_then(|mut file| file.write_all(bytes)).expect("a file can be written");
            }
        }
    }

    /// What is other in `there`, with everything that was recorded taken as done.
    pub(super) fn differences(&self, there: &Self) -> Vec<String> {
        let (mine, theirs) = (self.listing(), there.listing());
        let paths = mine.keys().chain(theirs.keys().filter(|path| !mine.contains_key(*path)));
        paths
            .filter_map(|path| match (mine.get(path), theirs.get(path)) {
                (Some(mine), Some(theirs)) if mine == theirs => None,
                (Some(_), Some(_)) => Some(format!("{}: other bytes", path.display())),
                (Some(_), None) => Some(format!("{}: not there", path.display())),
                (None, _) => Some(format!("{}: not recorded", path.display())),
            })
            .collect()
    }

    /// Contents by path, `None` for directories.
    fn listing(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        let mut all = BTreeMap::new();
        let mut open = vec![(PathBuf::new(), self.top)];
        while let Some((path, node)) = open.pop() {
            match &self.nodes[node] {
                Node::Dir { now, .. } => {
                    open.extend(now.iter().map(|(name, node)| (path.join(name), *node)));
                    all.insert(path, None);
                }
                Node::File { durable, pending, .. } => {
                    let mut bytes = durable.clone();
                    pending.iter().for_each(|(_, change)| change.apply(&mut bytes));
                    all.insert(path, Some(bytes));
                }
            }
        }
        all
    }
}

impl Node {
    /// What was changed before `began` is durable.
    fn sync(&mut self, began: u64) {
        match self {
            Self::File { durable, pending, .. } => {
                for (_, change) in pending.extract_if(.., |(at, _)| *at < began) {
                    change.apply(durable);
                }
            }
            Self::Dir { durable, pending, .. } => {
                for (_, change) in pending.extract_if(.., |(at, _)| *at < began) {
                    change.apply(durable);
                }
            }
        }
    }

    /// The system has given up on what was changed before `began`, and will not try again.
    fn lose(&mut self, began: u64) {
        match self {
            Self::File { pending, .. } => pending.retain(|(at, _)| *at >= began),
            // File systems do not forget names: they stop. So these stay undecided.
            Self::Dir { .. } => {}
        }
    }
}

impl Change {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => write_at(to, *offset, bytes),
            Self::Size(size) => to.resize(place(*size), 0),
        }
    }
}

impl NameChange {
    fn apply(&self, to: &mut BTreeMap<String, usize>) {
        for (name, node) in &self.0 {
            match node {
                Some(node) => to.insert(name.clone(), *node),
                None => to.remove(name),
            };
        }
    }
}

/// What a file holds after a crash, and how many of its changes were not kept whole.
fn content_after(durable: &[u8], pending: &[(u64, Change)], loss: Loss, dice: &mut Dice) -> (Vec<u8>, usize) {
    let mut bytes = durable.to_vec();
    if loss == Loss::All {
        return (bytes, pending.len());
    }
    let mut lost = 0;
    // Of ten. Few, half and nearly all are different worlds.
    let kept_of_ten = [1, 5, 9][dice.below(3)];
    let mut keeps = || dice.below(10) < kept_of_ten;
    for (_, change) in pending {
        match change {
            Change::Write { offset, bytes: written } if loss == Loss::Torn => {
                let mut whole = true;
                for (at, sector) in sectors(*offset, written) {
                    if keeps() {
                        write_at(&mut bytes, at, sector);
                    } else {
                        whole = false;
                    }
                }
                lost += usize::from(!whole);
            }
            change if keeps() => change.apply(&mut bytes),
            _ => lost += 1,
        }
    }
    (bytes, lost)
}

/// A write, cut where the disk's sectors end.
fn sectors(offset: u64, bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut pieces = Vec::new();
    let (mut at, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let length = place(SECTOR_BYTES - at % SECTOR_BYTES).min(rest.len());
        let (piece, after) = rest.split_at(length);
        pieces.push((at, piece));
        at += length as u64;
        rest = after;
    }
    pieces
}

fn write_at(to: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (place(offset), place(offset) + bytes.len());
    if to.len() < end {
        to.resize(end, 0);
    }
    to[start..end].copy_from_slice(bytes);
}

fn place(offset: u64) -> usize {
    usize::try_from(offset).expect("files of tests fit into memory")
}

fn dir(mode: u32) -> Node {
    Node::Dir { mode, durable: BTreeMap::new(), now: BTreeMap::new(), pending: Vec::new() }
}

fn name(path: &Path) -> String {
    path.file_name().and_then(|name| name.to_str()).expect("paths of tests are text").to_owned()
}

fn shared_memory(path: &Path) -> bool {
    name(path).ends_with("-shm")
}
