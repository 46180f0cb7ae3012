//! Whether the write-ahead log is whole. SQLite itself cannot tell: it reads up to the first frame that does not fit and takes
//! that for the end, since that is what a power cut leaves of the newest transaction. But a transaction is synced before the
//! next one begins. So when frames of a later transaction stand behind one that does not fit, it is no power cut: it is damage,
//! and what SQLite would make of it could be pages of different age.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Layout: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
pub(crate) const HEADER_BYTES: usize = 32;
pub(crate) const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;
const PAGE_BYTES_MAX: u32 = 65_536;
/// Salts that differ in more bits are another log's.
const SALT_BITS_FLIPPED_MAX: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WalState {
    /// Everything in it fits, or is what a power cut may leave.
    Whole,
    HeaderDamaged,
    /// Counted from 1.
    FrameDamaged(u64),
}

/// SQLite's checksum of 32-bit words, in the byte order that the header chooses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    big_endian: bool,
    sums: (u32, u32),
}

impl Chain {
    pub(crate) fn of_header(header: &[u8; HEADER_BYTES]) -> Self {
        let mut chain = Self { big_endian: number(header, 0) & 1 == 1, sums: (0, 0) };
        chain.add(&header[..24]);
        chain
    }

    pub(crate) fn add_frame(&mut self, frame: &[u8]) {
        self.add(&frame[..8]);
        self.add(&frame[FRAME_HEADER_BYTES..]);
    }

    /// Whether a frame is the next one of the log with this header.
    pub(crate) fn fits(mut self, frame: &[u8], header: &[u8; HEADER_BYTES]) -> bool {
        if frame[8..16] != header[16..24] || number(frame, 0) == 0 {
            return false;
        }
        self.add_frame(frame);
        self.is(&frame[16..24])
    }

    fn add(&mut self, bytes: &[u8]) {
        let word = |bytes: [u8; 4]| {
            if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
        };
        let (mut one, mut two) = self.sums;
        for pair in bytes.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *pair;
            one = one.wrapping_add(word([a, b, c, d])).wrapping_add(two);
            two = two.wrapping_add(word([e, f, g, h])).wrapping_add(one);
        }
        self.sums = (one, two);
    }

    fn is(&self, bytes: &[u8]) -> bool {
        self.sums == (number(bytes, 0), number(bytes, 1))
    }
}

/// The big-endian number at a position counted in numbers.
pub(crate) fn number(bytes: &[u8], position: usize) -> u32 {
    let at = position * 4;
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(crate) fn state(path: &Path) -> io::Result<WalState> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(WalState::Whole),
        Err(error) => return Err(error),
    };
    read(BufReader::with_capacity(1 << 20, file))
}

fn read(mut file: impl Read) -> io::Result<WalState> {
    let mut header = [0; HEADER_BYTES];
    // Made, or made longer, and never written: there is nothing in it.
    if !filled(&mut file, &mut header)? || header == [0; HEADER_BYTES] {
        return Ok(WalState::Whole);
    }
    // It was synced before the first frame was written, and is less than a sector.
    if !is_log_header(&header) {
        return Ok(WalState::HeaderDamaged);
    }
    let mut chain = Chain::of_header(&header);
    let mut frame = vec![0; FRAME_HEADER_BYTES + number(&header, 2) as usize];
    let mut count = 0;
    while filled(&mut file, &mut frame)? {
        count += 1;
        if !chain.fits(&frame, &header) {
            // What follows is compared by its salts only: they are this log's, and no earlier one's.
            return Ok(if goes_on(file, &mut frame, &header[16..24])? {
                WalState::FrameDamaged(count)
            } else {
                WalState::Whole
            });
        }
        chain.add_frame(&frame);
    }
    Ok(WalState::Whole)
}

/// Whether this is a log's header with its checksum.
pub(crate) fn is_log_header(header: &[u8; HEADER_BYTES]) -> bool {
    let page_bytes = number(header, 2);
    number(header, 0) & !1 == MAGIC
        && page_bytes.is_power_of_two()
        && (512..=PAGE_BYTES_MAX).contains(&page_bytes)
        && Chain::of_header(header).is(&header[24..])
}

/// Whether frames of a later transaction stand behind one that does not fit: some commit, and anything behind that.
pub(crate) fn goes_on(mut file: impl Read, frame: &mut [u8], salts: &[u8]) -> io::Result<bool> {
    let mut committed = is_nearly(&frame[8..16], salts) && number(frame, 1) > 0;
    while filled(&mut file, frame)? {
        if frame[8..16] != *salts {
            continue;
        }
        if committed {
            return Ok(true);
        }
        committed = number(frame, 1) > 0;
    }
    Ok(false)
}

/// Whether a frame that does not fit is of this log all the same: its salts may be what is damaged. An earlier log's second one
/// was drawn at random, so it differs in about half of its bits.
pub(crate) fn is_nearly(found: &[u8], salts: &[u8]) -> bool {
    let flipped: u32 = found.iter().zip(salts).map(|(one, other)| (one ^ other).count_ones()).sum();
    flipped <= SALT_BITS_FLIPPED_MAX
}

/// Pages that frames hold, by their numbers from 0; one that several frames hold stands here several times.
pub(crate) struct Pages {
    /// The size of each.
    pub(crate) bytes: u64,
    pub(crate) numbers: Vec<u64>,
}

/// The pages of these frames, counted from 0, of a log that may begin anew meanwhile: frames of another are passed over. Their
/// checksums are not looked at.
pub(crate) fn pages(path: &Path, frames: Range<u64>) -> io::Result<Pages> {
    let file = File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    if !is_log_header(&header) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let bytes = u64::from(number(&header, 2));
    let mut numbers = Vec::new();
    for frame in frames {
        let mut head = [0; FRAME_HEADER_BYTES];
        file.read_exact_at(&mut head, HEADER_BYTES as u64 + frame * (FRAME_HEADER_BYTES as u64 + bytes))?;
        if head[8..16] == header[16..24] {
            numbers.extend(u64::from(number(&head, 0)).checked_sub(1));
        }
    }
    Ok(Pages { bytes, numbers })
}

/// Fills the buffer; false at the file's end, also where that comes early.
fn filled(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A log of several transactions, as a killed writer leaves it; each with one or more frames.
    fn log() -> (Vec<u8>, usize) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let connection = crate::sqlite::connection::connect(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        for n in 0..5 {
            connection.execute("INSERT INTO t VALUES (zeroblob(?1))", [n * 3000]).unwrap();
        }
        let wal = std::fs::read(dir.path().join("a.db-wal")).unwrap();
        let page = number(&wal, 2) as usize;
        (wal, FRAME_HEADER_BYTES + page)
    }

    fn frames(wal: &[u8], frame: usize) -> usize {
        (wal.len() - HEADER_BYTES) / frame
    }

    #[test]
    fn every_cut_is_what_a_power_cut_leaves() {
        let (wal, _) = log();
        for end in (0..wal.len()).step_by(512).chain([wal.len()]) {
            assert_eq!(read(&wal[..end]).unwrap(), WalState::Whole, "cut at {end}");
        }
    }

    #[test]
    fn a_flipped_bit_is_named_unless_it_is_in_the_newest_transaction() {
        let (wal, frame) = log();
        let count = frames(&wal, frame);
        let commit = |index: usize| number(&wal[HEADER_BYTES + index * frame..], 1) > 0;
        let last = (0..count - 1).rev().find(|&index| commit(index)).unwrap() + 1;
        assert!(count > 8 && last > 4, "{count} {last}");
        let heads = (0..count).flat_map(|index| {
            let start = HEADER_BYTES + index * frame;
            start..start + FRAME_HEADER_BYTES
        });
        for byte in (0..wal.len()).step_by(7).chain(0..HEADER_BYTES).chain(heads) {
            let mut flipped = wal.clone();
            flipped[byte] ^= 1 << (byte % 8);
            let found = read(&*flipped).unwrap();
            if byte < HEADER_BYTES {
                assert_eq!(found, WalState::HeaderDamaged, "byte {byte}");
                continue;
            }
            let index = (byte - HEADER_BYTES) / frame;
            // What makes a frame look like a commit makes those behind it look like a later transaction's.
            let looks_like_a_commit = (4..8).contains(&((byte - HEADER_BYTES) % frame));
            let named = found == WalState::FrameDamaged(index as u64 + 1);
            let expected = named || index >= last && found == WalState::Whole;
            assert!(
                expected && (!named || index < last || looks_like_a_commit),
                "byte {byte} of frame {index}, {last} is the last transaction's first: {found:?}"
            );
        }
    }

    #[test]
    fn frames_of_an_earlier_log_mean_nothing() {
        let (wal, frame) = log();
        let mut older = wal[HEADER_BYTES..].to_vec();
        for start in (0..older.len()).step_by(frame) {
            older[start + 8] ^= 0xff;
        }
        let log = [&wal[..HEADER_BYTES + frame], &older].concat();
        assert_eq!(read(&*log).unwrap(), WalState::Whole);

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &log).unwrap();
        let count = frames(&log, frame) as u64;
        assert_eq!(pages(file.path(), 0..count).unwrap().numbers, [0]);
        assert!(pages(file.path(), 0..count + 1).is_err(), "there is no such frame");
    }

    /// All that differs from what the database file was before.
    #[test]
    fn the_pages_of_frames_are_those_that_a_checkpoint_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, log) = (dir.path().join("a.db"), dir.path().join("a.db-wal"));
        let connection = crate::sqlite::connection::connect(&path).unwrap();
        connection.execute_batch("CREATE TABLE t (x)").unwrap();
        let reader = crate::sqlite::connection::connect(&path).unwrap();
        let (mut before, mut reached, mut begun_anew) = (Vec::new(), 0, 0);
        for round in 0..20 {
            let rows = if round % 7 == 0 { 2000 } else { 3 };
            let add = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?1)
                INSERT INTO t SELECT randomblob(200) FROM n";
            connection.execute(add, [rows]).unwrap();
            connection.execute("UPDATE t SET x = randomblob(200) WHERE rowid % 600 = ?1", [round]).unwrap();
            if !reader.is_autocommit() {
                reader.execute_batch("ROLLBACK").unwrap();
            }
            // Somebody who reads from the WAL keeps it from beginning anew.
            if round % 5 != 0 {
                reader.execute_batch("BEGIN; SELECT count(*) FROM t").unwrap();
            }
            let frames = crate::sqlite::connection::checkpoint(
                &connection,
                crate::sqlite::connection::CheckpointMode::Passive,
            )
            .unwrap()
            .frames;
            if frames < reached {
                (reached, begun_anew) = (0, begun_anew + 1);
            }
            let pages = pages(&log, reached..frames).unwrap();
            reached = frames;
            let after = std::fs::read(&path).unwrap();
            let page_bytes = usize::try_from(pages.bytes).unwrap();
            let changed: Vec<u64> = after
                .chunks(page_bytes)
                .enumerate()
                .filter(|(page, bytes)| before.chunks(page_bytes).nth(*page) != Some(bytes))
                .map(|(page, _)| page as u64)
                .collect();
            let named: BTreeSet<u64> = pages.numbers.into_iter().collect();
            assert!(named.iter().eq(&changed), "round {round}: {named:?} {changed:?}");
            before = after;
        }
        assert!((1..10).contains(&begun_anew), "{begun_anew} of 20");
    }
}
