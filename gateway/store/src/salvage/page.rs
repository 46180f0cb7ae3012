//! What stands on a page of a SQLite database: cells of b-trees, and records in them.
//! Layout: https://www.sqlite.org/fileformat2.html#b_tree_pages

use std::io;
use std::ops::Range;

use rusqlite::types::Value;

/// Longest record that is read, bytes: the largest message with its sender's and SQLite's own additions.
const RECORD_BYTES_MAX: u64 = 96 * 1024 * 1024;

/// Where pages are read from, by their numbers.
pub(super) trait Pages {
    fn page_bytes(&self) -> usize;
    /// A page, counted from 1; `None` if there is none.
    fn page(&self, number: u32) -> io::Result<Option<Vec<u8>>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    InnerIndex,
    InnerTable,
    LeafIndex,
    LeafTable,
}

impl Kind {
    const fn is_inner(self) -> bool {
        matches!(self, Self::InnerIndex | Self::InnerTable)
    }
}

/// What a page of a b-tree begins with.
struct Head {
    /// Where: the first page has the file's own head before it.
    start: usize,
    kind: Kind,
    /// Cells, the places of which stand from `pointers` on.
    count: usize,
    pointers: usize,
}

impl Head {
    fn read(number: u32, bytes: &[u8]) -> Option<Self> {
        let start = if number == 1 { 100 } else { 0 };
        let kind = match bytes.get(start)? {
            2 => Kind::InnerIndex,
            5 => Kind::InnerTable,
            10 => Kind::LeafIndex,
            13 => Kind::LeafTable,
            _ => return None,
        };
        let count = usize::from(u16_at(bytes, start + 3)?);
        Some(Self { start, kind, count, pointers: start + if kind.is_inner() { 12 } else { 8 } })
    }
}

/// A record in its encoded form, with the row number of a table's.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) row: Option<i64>,
    /// Absent where its bytes cannot even be found.
    pub(super) record: Option<Vec<u8>>,
    /// Pages that continue it.
    pub(super) overflow: Vec<u32>,
}

/// A page as far as it can be read.
pub(super) struct Page {
    pub(super) kind: Kind,
    pub(super) children: Vec<u32>,
    pub(super) cells: Vec<Cell>,
    /// Something on it cannot be what was written.
    pub(super) broken: bool,
}

impl Page {
    /// `None` if it is no page of a b-tree.
    pub(super) fn read(image: &dyn Pages, number: u32, bytes: &[u8]) -> Option<Self> {
        let Head { start, kind, count, pointers } = Head::read(number, bytes)?;
        let mut page = Self { kind, children: Vec::new(), cells: Vec::new(), broken: false };
        for cell in 0..count {
            let at = u16_at(bytes, pointers + 2 * cell).map(usize::from).filter(|at| *at >= pointers);
            if at.and_then(|at| page.read_cell(image, bytes, at)).is_none() {
                page.broken = true;
            }
        }
        if kind.is_inner() {
            page.children.extend(u32_at(bytes, start + 8));
        }
        Some(page)
    }

    /// The bytes of such a page between its list of cells and the first of them, which mean nothing.
    pub(super) fn unused(number: u32, bytes: &[u8]) -> Option<Range<usize>> {
        let Head { start, count, pointers, .. } = Head::read(number, bytes)?;
        let content = u16_at(bytes, start + 5).map(usize::from)?;
        Some(pointers + 2 * count..content)
            .filter(|unused| unused.start <= unused.end && unused.end <= bytes.len())
    }

    fn read_cell(&mut self, image: &dyn Pages, bytes: &[u8], mut at: usize) -> Option<()> {
        if self.kind.is_inner() {
            self.children.push(u32_at(bytes, at)?);
            at += 4;
        }
        if self.kind == Kind::InnerTable {
            return varint(bytes, &mut at).map(drop);
        }
        let length = varint(bytes, &mut at)?;
        let row = match self.kind {
            Kind::LeafTable => Some(varint(bytes, &mut at)?.cast_signed()),
            Kind::InnerTable | Kind::InnerIndex | Kind::LeafIndex => None,
        };
        let mut cell = Cell { row, record: None, overflow: Vec::new() };
        cell.record = self.payload(image, bytes, at, length, &mut cell.overflow);
        self.broken |= cell.record.is_none();
        self.cells.push(cell);
        Some(())
    }

    fn payload(
        &self,
        image: &dyn Pages,
        bytes: &[u8],
        at: usize,
        length: u64,
        followed: &mut Vec<u32>,
    ) -> Option<Vec<u8>> {
        if length > RECORD_BYTES_MAX {
            return None;
        }
        let length = usize::try_from(length).ok()?;
        let usable = image.page_bytes();
        let most = match self.kind {
            Kind::LeafTable => usable - 35,
            Kind::InnerTable | Kind::InnerIndex | Kind::LeafIndex => (usable - 12) * 64 / 255 - 23,
        };
        let least = (usable - 12) * 32 / 255 - 23;
        let local = if length <= most {
            length
        } else {
            let fitting = least + (length - least) % (usable - 4);
            if fitting <= most { fitting } else { least }
        };
        let mut payload = bytes.get(at..at + local)?.to_vec();
        if local == length {
            return Some(payload);
        }
        let mut next = u32_at(bytes, at + local)?;
        payload.reserve(length - local);
        while payload.len() < length {
            let page = image.page(next).ok()??;
            followed.push(next);
            let part = (length - payload.len()).min(usable - 4);
            payload.extend_from_slice(&page[4..4 + part]);
            next = u32_at(&page, 0)?;
        }
        // The last of a chain says so.
        (next == 0).then_some(payload)
    }
}

/// The values of a record, if it is one from its first to its last byte.
pub(super) fn values(record: &[u8], row: Option<i64>) -> Option<Vec<Value>> {
    let mut at = 0;
    let header = usize::try_from(varint(record, &mut at)?).ok()?;
    let mut body = header;
    let mut values = Vec::new();
    while at < header {
        let kind = varint(record.get(..header)?, &mut at)?;
        values.push(value(record, kind, &mut body)?);
    }
    if body != record.len() {
        return None;
    }
    // The key of a table of rows stands beside its record.
    if let (Some(row), Some(first @ Value::Null)) = (row, values.first_mut()) {
        *first = Value::Integer(row);
    }
    Some(values)
}

fn value(record: &[u8], kind: u64, at: &mut usize) -> Option<Value> {
    let integer_bytes = match kind {
        0 => return Some(Value::Null),
        1..=4 => usize::try_from(kind).ok()?,
        5 => 6,
        6 => 8,
        8 | 9 => return Some(Value::Integer(if kind == 9 { 1 } else { 0 })),
        12.. => {
            let length = usize::try_from((kind - 12) / 2).ok()?;
            let bytes = record.get(*at..at.checked_add(length)?)?.to_vec();
            *at += length;
            return Some(if kind.is_multiple_of(2) {
                Value::Blob(bytes)
            } else {
                Value::Text(String::from_utf8(bytes).ok()?)
            });
        }
        // Reals stand in no table.
        _ => return None,
    };
    let bytes = record.get(*at..*at + integer_bytes)?;
    *at += integer_bytes;
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let start = if negative { -1 } else { 0 };
    Some(Value::Integer(bytes.iter().fold(start, |value: i64, byte| value << 8 | i64::from(*byte))))
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for place in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if place == 8 {
            return Some(value << 8 | u64::from(byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    Some(value)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
