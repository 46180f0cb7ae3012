//! The files of a C2SP tlog-tiles log: their paths, and the bytes of tiles and entry bundles.

use std::fmt;

use crate::tree::Hash;

/// Hashes in a full tile, and entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;
/// The longest entry that fits its 16-bit length.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;
pub const TILE_BYTES_MAX: usize = TILE_WIDTH as usize * Hash::BYTES;
pub const BUNDLE_BYTES_MAX: usize = TILE_WIDTH as usize * (LENGTH_BYTES + ENTRY_BYTES_MAX);
/// The specification's last level; 256^8 entries are more than a 64-bit size can count.
pub const LEVEL_MAX: u8 = 63;

const LENGTH_BYTES: usize = 2;
/// Decimal digits in one element of a path.
const ELEMENT_DIGITS: usize = 3;

/// What a path below the log's directory names. `width` is absent when the tile or bundle is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TilePath {
    Tile { level: u8, index: u64, width: Option<u8> },
    Entries { index: u64, width: Option<u8> },
}

impl TilePath {
    /// Reads the one spelling of a path; anything else names nothing.
    pub fn parse(path: &str) -> Option<Self> {
        let mut elements = path.strip_prefix("tile/")?.split('/');
        let kind = elements.next()?;
        let (index, width) = parse_index(elements)?;
        let parsed = match kind {
            "entries" => Self::Entries { index, width },
            level => {
                Self::Tile { level: level.parse().ok().filter(|&level| level <= LEVEL_MAX)?, index, width }
            }
        };
        (parsed.to_string() == path).then_some(parsed)
    }
}

fn parse_index<'a>(mut elements: impl Iterator<Item = &'a str>) -> Option<(u64, Option<u8>)> {
    let mut index = 0u64;
    loop {
        let element = elements.next()?;
        let (digits, more) = match element.strip_prefix('x') {
            Some(digits) => (digits, true),
            None => (element, false),
        };
        let (digits, partial) = match digits.strip_suffix(".p") {
            Some(digits) => (digits, true),
            None => (digits, false),
        };
        index = index.checked_mul(1_000)?.checked_add(digits.parse().ok()?)?;
        if more {
            continue;
        }
        let width =
            if partial { Some(elements.next()?.parse().ok().filter(|&width| width > 0)?) } else { None };
        return elements.next().is_none().then_some((index, width));
    }
}

impl fmt::Display for TilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, width) = match self {
            Self::Tile { level, index, width } => {
                write!(f, "tile/{level}/")?;
                (index, width)
            }
            Self::Entries { index, width } => {
                f.write_str("tile/entries/")?;
                (index, width)
            }
        };
        let digits = format!("{index:03}");
        let padded = digits.len().next_multiple_of(ELEMENT_DIGITS);
        let digits = format!("{digits:0>padded$}");
        for start in (0..padded).step_by(ELEMENT_DIGITS) {
            let more = start + ELEMENT_DIGITS < padded;
            let element = &digits[start..start + ELEMENT_DIGITS];
            if more { write!(f, "x{element}/")? } else { f.write_str(element)? }
        }
        match width {
            Some(width) => write!(f, ".p/{width}"),
            None => Ok(()),
        }
    }
}

/// `tile/0/x001/x234/067`, or `tile/0/x001/x234/067.p/5` for the first five hashes of it.
pub fn tile_path(level: u8, index: u64, width: Option<u8>) -> String {
    TilePath::Tile { level, index, width }.to_string()
}

/// `tile/entries/x001/x234/067`, or with `.p/5` for the first five entries of it.
pub fn entries_path(index: u64, width: Option<u8>) -> String {
    TilePath::Entries { index, width }.to_string()
}

/// The file form of a tile.
pub fn tile_bytes(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.as_bytes()).copied().collect()
}

/// Reads a tile; `None` when the bytes are not a whole number of hashes between 1 and 256.
pub fn parse_tile(bytes: &[u8]) -> Option<Vec<Hash>> {
    let (hashes, rest) = bytes.as_chunks::<{ Hash::BYTES }>();
    let fits = (1..=usize::from(TILE_WIDTH)).contains(&hashes.len()) && rest.is_empty();
    fits.then(|| hashes.iter().copied().map(Hash::from).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("entry {entry} has {bytes} bytes, more than {ENTRY_BYTES_MAX}")]
    EntryTooLong { entry: usize, bytes: usize },
    #[error("it ends inside entry {entry}")]
    CutShort { entry: usize },
    #[error("it holds more than {TILE_WIDTH} entries")]
    TooManyEntries,
}

/// The file form of up to 256 entries: each after its length in two bytes, big-endian.
pub fn encode_bundle<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, BundleError> {
    let mut bundle = Vec::new();
    for (entry, bytes) in entries.into_iter().enumerate() {
        if entry == usize::from(TILE_WIDTH) {
            return Err(BundleError::TooManyEntries);
        }
        append_entry(&mut bundle, entry, bytes)?;
    }
    Ok(bundle)
}

/// Adds one entry to the file form of a bundle; `entry` is its position in it.
pub fn append_entry(bundle: &mut Vec<u8>, entry: usize, bytes: &[u8]) -> Result<(), BundleError> {
    let length =
        u16::try_from(bytes.len()).map_err(|_| BundleError::EntryTooLong { entry, bytes: bytes.len() })?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(bytes);
    Ok(())
}

/// Reads a whole bundle.
pub fn parse_bundle(bundle: &[u8]) -> Result<Vec<&[u8]>, BundleError> {
    BundleEntries::new(bundle).collect()
}

/// The entries of a bundle one by one, so that a fault in one does not hide those before it.
#[derive(Debug, Clone)]
pub struct BundleEntries<'a> {
    rest: &'a [u8],
    entry: usize,
}

impl<'a> BundleEntries<'a> {
    pub fn new(bundle: &'a [u8]) -> Self {
        Self { rest: bundle, entry: 0 }
    }

    fn take(&mut self) -> Result<&'a [u8], BundleError> {
        let entry = self.entry;
        self.entry += 1;
        if entry == usize::from(TILE_WIDTH) {
            return Err(BundleError::TooManyEntries);
        }
        let cut = BundleError::CutShort { entry };
        let (length, rest) = self.rest.split_first_chunk::<LENGTH_BYTES>().ok_or(cut)?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (bytes, rest) = rest.split_at_checked(length).ok_or(cut)?;
        self.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Iterator for BundleEntries<'a> {
    type Item = Result<&'a [u8], BundleError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let taken = self.take();
        if taken.is_err() {
            self.rest = &[];
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_spelled_as_the_specification_says() {
        let cases = [
            (0, None, "tile/0/000"),
            (1, Some(1), "tile/0/001.p/1"),
            (999, None, "tile/0/999"),
            (1_000, None, "tile/0/x001/000"),
            (1_234, Some(5), "tile/0/x001/234.p/5"),
            (1_234_067, None, "tile/0/x001/x234/067"),
            (1_234_067, Some(255), "tile/0/x001/x234/067.p/255"),
        ];
        for (index, width, path) in cases {
            assert_eq!(tile_path(0, index, width), path);
            assert_eq!(TilePath::parse(path), Some(TilePath::Tile { level: 0, index, width }));
            let entries = path.replace("tile/0/", "tile/entries/");
            assert_eq!(entries_path(index, width), entries);
            assert_eq!(TilePath::parse(&entries), Some(TilePath::Entries { index, width }));
        }
        assert_eq!(tile_path(63, 0, None), "tile/63/000");
    }

    #[test]
    fn every_other_spelling_of_a_path_is_refused() {
        for bad in [
            "",
            "tile",
            "tile/",
            "tile/0",
            "tile/0/",
            "tile/0/0",
            "tile/0/00",
            "tile/0/0000",
            "tile/00/000",
            "tile/64/000",
            "tile/+1/000",
            "tile/-1/000",
            "tile/0/+00",
            "tile/0/x000/001",
            "tile/0/001/234",
            "tile/0/x001/234/",
            "tile/0/000.p",
            "tile/0/000.p/",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/000.p/1/2",
            "tile/0/x001.p/1",
            "/tile/0/000",
            "tile//0/000",
            "tile/0/../000",
            "tile/data/000",
            "tile/0/x999/x999/x999/x999/x999/x999/999",
            "checkpoint",
        ] {
            assert_eq!(TilePath::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_bundle_refuses_what_its_lengths_cannot_say() {
        let long = vec![b'a'; ENTRY_BYTES_MAX + 1];
        assert_eq!(
            encode_bundle([b"a".as_slice(), &long]),
            Err(BundleError::EntryTooLong { entry: 1, bytes: ENTRY_BYTES_MAX + 1 })
        );
        assert_eq!(encode_bundle(vec![b"".as_slice(); 257]), Err(BundleError::TooManyEntries));
        assert_eq!(parse_bundle(&[0; 2 * 257]), Err(BundleError::TooManyEntries));
        let longest = encode_bundle([&long[1..]]).unwrap();
        assert_eq!(parse_bundle(&longest).unwrap(), [&long[1..]]);
        let bundle = encode_bundle([b"one".as_slice(), b"two"]).unwrap();
        assert_eq!(bundle, b"\x00\x03one\x00\x03two");
        for end in [6, 7, 8, 9] {
            assert_eq!(parse_bundle(&bundle[..end]), Err(BundleError::CutShort { entry: 1 }), "{end}");
        }
    }

    #[test]
    fn a_tile_is_one_to_256_whole_hashes() {
        for (bytes, hashes) in
            [(0, None), (31, None), (32, Some(1)), (33, None), (8_192, Some(256)), (8_224, None)]
        {
            assert_eq!(parse_tile(&vec![7; bytes]).map(|tile| tile.len()), hashes, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn paths_and_bundles_come_back(
            index in any::<u64>(),
            level in 0..=LEVEL_MAX,
            width in prop::option::of(1..=255u8),
            entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..30),
        ) {
            let tile = TilePath::Tile { level, index, width };
            prop_assert_eq!(TilePath::parse(&tile.to_string()), Some(tile));
            let bundle = encode_bundle(entries.iter().map(Vec::as_slice)).unwrap();
            prop_assert_eq!(parse_bundle(&bundle).unwrap(), entries);
        }
    }
}
