//! What the shim writes down. The numbers are those of `shim/disk.c`.

use std::path::{Path, PathBuf};

const HEAD_BYTES: usize = 24;

/// One change or sync, as it happened. `ino` is the file's inode; `began` is the record's length when a sync began: what
/// came later it need not have covered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Write {
        ino: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    Size {
        ino: u64,
        size: u64,
    },
    Create {
        ino: u64,
        mode: u32,
        path: PathBuf,
    },
    MakeDir {
        ino: u64,
        mode: u32,
        path: PathBuf,
    },
    Link {
        ino: u64,
        path: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Sync {
        ino: u64,
        began: u64,
        path: PathBuf,
    },
    SyncAll {
        began: u64,
    },
    SyncFailed {
        ino: u64,
        began: u64,
        path: PathBuf,
    },
    /// Of everything below a directory.
    SyncAllFailed {
        ino: u64,
        began: u64,
    },
}

pub(super) struct Journal(Vec<(u64, Record)>);

impl Journal {
    pub(super) fn read(file: &Path) -> Self {
        let bytes = std::fs::read(file).expect("the record can be read");
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        // A killed program leaves its last record unfinished at most; its operation was not answered.
        while let Some((record, after)) = parse(rest) {
            records.push(((bytes.len() - rest.len()) as u64, record));
            rest = after;
        }
        Self(records)
    }

    pub(super) fn into_placed(self) -> impl Iterator<Item = (u64, Record)> {
        self.0.into_iter()
    }

    pub(super) fn into_records(self) -> Vec<Record> {
        self.0.into_iter().map(|(_, record)| record).collect()
    }
}

fn parse(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let small = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let large = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let (body, rest) = rest.split_at_checked(usize::try_from(small(0)).expect("a length"))?;
    let (ino, b) = (large(8), large(16));
    let path = || path(body);
    let mode = u32::try_from(b).unwrap_or(0);
    let record = match small(4) {
        1 => Record::Write { ino, offset: b, bytes: body.to_vec() },
        2 => Record::Size { ino, size: b },
        3 => Record::Create { ino, mode, path: path() },
        4 => Record::MakeDir { ino, mode, path: path() },
        5 => Record::Link { ino, path: path() },
        6 | 8 => Record::Unlink { path: path() },
        7 => {
            let zero = body.iter().position(|byte| *byte == 0).expect("two paths");
            Record::Rename { from: self::path(&body[..zero]), to: self::path(&body[zero + 1..]) }
        }
        9 => Record::Sync { ino, began: b, path: path() },
        10 => Record::SyncAll { began: b },
        11 => Record::SyncFailed { ino, began: b, path: path() },
        12 => Record::SyncAllFailed { ino, began: b },
        other => panic!("the record holds a {other}"),
    };
    Some((record, rest))
}

fn path(bytes: &[u8]) -> PathBuf {
    String::from_utf8(bytes.to_vec()).expect("paths of tests are text").into()
}
