//! The audit log's entries, wherever they still stand: rows of the database, bundles, and the hashes in the tiles that say which of
//! two different ones is right.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use gatepost_audit::tiles::TilePath;
use gatepost_audit::{
    Checkpoint, DirTiles, FullTile, Hash, NodeSource as _, TILE_WIDTH, TileEdge, VerifierKey, entries_path,
    leaf_hash, parse_bundle,
};

use super::mend::{BYTES_MAX, mended};
use super::{Damage, Fate};

const WIDTH: u64 = TILE_WIDTH as u64;
/// Bytes before each entry of a bundle that say how long it is.
const LENGTH_BYTES: usize = 2;

/// A log as it was found.
pub(super) struct Log {
    files: DirTiles,
    /// Entries of the database's rows.
    rows: BTreeMap<u64, Vec<u8>>,
}

/// What a walk through all entries came to.
pub(super) struct Walked {
    /// The entries that are there without a gap, from the first one on.
    pub(super) size: u64,
    /// The newest sound checkpoint as it is signed, if the entries have its root.
    pub(super) checkpoint: Option<(Checkpoint, String)>,
    /// Why the log cannot be continued, if it cannot.
    pub(super) broken: Option<String>,
    pub(super) damage: Vec<Damage>,
}

impl Log {
    pub(super) fn new(dir: &Path, rows: BTreeMap<u64, Vec<u8>>) -> Self {
        Self { files: DirTiles::new(dir), rows }
    }

    /// The entries that only rows have, from a tile's border on, where the files end.
    pub(super) fn rows(&self) -> &BTreeMap<u64, Vec<u8>> {
        &self.rows
    }

    /// Goes through the entries up to `size`, or as far as they lead if that is not known, and compares them with the tiles and with
    /// the checkpoint. `take` gets each entry; `full` each tile that they fill.
    pub(super) fn walk(
        &self,
        size: Option<u64>,
        key: Option<&VerifierKey>,
        mut take: impl FnMut(u64, &[u8]) -> io::Result<()>,
        mut full: impl FnMut(&FullTile, Option<&[u8]>) -> io::Result<()>,
    ) -> io::Result<Walked> {
        let mut walked = Walked { size: 0, checkpoint: None, broken: None, damage: Vec::new() };
        let checkpoint = key.and_then(|key| self.checkpoint(key, &mut walked.damage));
        let signed = checkpoint.as_ref().map_or(0, |(checkpoint, _)| checkpoint.size);
        let mut edge = TileEdge::new();
        let mut root = edge.root();
        let mut bundle = Vec::new();
        for group in 0.. {
            let first = group * WIDTH;
            if size.is_some_and(|size| first >= size) {
                break;
            }
            let wanted = size.map_or(WIDTH, |size| WIDTH.min(size - first));
            let entries = self.group(group, wanted, &mut walked.damage)?;
            for (index, entry) in (first..).zip(&entries) {
                take(index, entry)?;
                let mut filled = Vec::new();
                append(&mut bundle, entry);
                edge.push(leaf_hash(entry), &mut filled);
                for tile in &filled {
                    self.compare(tile, &mut walked.damage);
                    full(tile, (tile.level == 0).then_some(bundle.as_slice()))?;
                }
                if !filled.is_empty() {
                    bundle.clear();
                }
                if edge.size() == signed {
                    root = edge.root();
                }
            }
            if (entries.len() as u64) < wanted {
                break;
            }
        }
        walked.size = edge.size();
        let due = size.unwrap_or(0).max(signed);
        if walked.size < due {
            let (from, to) = (walked.size, due - 1);
            walked.broken = Some(format!("entries {from} to {to} are not there as they were written"));
        }
        match checkpoint {
            None if key.is_some() => {
                walked.broken.get_or_insert_with(|| "no checkpoint is signed with its key".to_owned());
            }
            Some((checkpoint, _)) if walked.broken.is_none() && checkpoint.root != root => {
                let why = format!("its first {signed} entries have another root than the one that is signed");
                walked.broken = Some(why);
            }
            checkpoint => walked.checkpoint = checkpoint,
        }
        Ok(walked)
    }

    /// The newest checkpoint that its key signed, and its text.
    fn checkpoint(&self, key: &VerifierKey, damage: &mut Vec<Damage>) -> Option<(Checkpoint, String)> {
        let key = std::slice::from_ref(key);
        let open = |signed: &[u8]| {
            let checkpoint = Checkpoint::open(signed, key).ok()?;
            Some((checkpoint, String::from_utf8(signed.to_vec()).ok()?))
        };
        let mut damaged = |fate, why: &str| {
            damage.push(Damage::file("audit/checkpoint", fate, why));
        };
        let newest =
            std::fs::read(self.files.dir().join(gatepost_audit::dir::CHECKPOINT)).unwrap_or_default();
        if let Some(found) = open(&newest) {
            return Some(found);
        }
        if let Some(sound) = mended(&newest, |signed| open(signed).is_some()) {
            damaged(Fate::Mended, "its signature does not fit; with one bit changed it does");
            return open(&sound);
        }
        let before = std::fs::read(self.files.dir().join(gatepost_audit::dir::CHECKPOINT_PREVIOUS))
            .unwrap_or_default();
        let found = open(&before);
        match &found {
            Some((checkpoint, _)) => damaged(
                Fate::Lost,
                &format!("its signature does not fit; the one before it signs {} entries", checkpoint.size),
            ),
            None => damaged(Fate::Lost, "its signature does not fit, and none is before it"),
        }
        found
    }

    /// The first entries of a tile that can be had, at most as many as are wanted.
    fn group(&self, group: u64, wanted: u64, damage: &mut Vec<Damage>) -> io::Result<Vec<Vec<u8>>> {
        let first = group * WIDTH;
        let hashes = self.files.tile(0, group, TILE_WIDTH).ok();
        let rows: Vec<Vec<u8>> =
            (first..first + wanted).map_while(|index| self.rows.get(&index).cloned()).collect();
        let of_rows = |entries: &[Vec<u8>]| match &hashes {
            Some(hashes) => entries.iter().zip(hashes).all(|(entry, hash)| leaf_hash(entry) == *hash),
            None => true,
        };
        if rows.len() as u64 == wanted && of_rows(&rows) {
            return Ok(rows);
        }
        let path = entries_path(group, None);
        let file = self.files.file(&TilePath::Entries { index: group, width: None });
        let Ok(Some(bundle)) = file else {
            if hashes.is_some() || (rows.is_empty() && wanted < WIDTH) {
                damage.push(Damage::file(
                    format!("audit/{path}"),
                    Fate::Lost,
                    "it is not there or cannot be read",
                ));
            }
            return Ok(rows);
        };
        let parsed = parse_bundle(&bundle).ok().filter(|entries| entries.len() as u64 == WIDTH);
        let entries: Option<Vec<Vec<u8>>> =
            parsed.map(|entries| entries.into_iter().take(wanted as usize).map(<[u8]>::to_vec).collect());
        let Some(hashes) = &hashes else { return Ok(entries.unwrap_or_default()) };
        if let Some(entries) = entries.filter(|entries| of_rows(entries)) {
            return Ok(entries);
        }
        let Some((entries, mended)) = self.by_hashes(first, &bundle, hashes) else {
            let why = "what stands in it has other hashes than its tile says";
            damage.push(Damage::file(format!("audit/{path}"), Fate::Lost, why));
            return Ok(Vec::new());
        };
        let fate = if mended { Fate::Mended } else { Fate::Rebuilt };
        damage.push(Damage::file(
            format!("audit/{path}"),
            fate,
            "an entry has another hash than its tile says",
        ));
        Ok(entries)
    }

    /// The entries of a damaged bundle or of a sound one beside a damaged tile, as the hashes say; whether bits were put right.
    fn by_hashes(&self, first: u64, bundle: &[u8], hashes: &[Hash]) -> Option<(Vec<Vec<u8>>, bool)> {
        let fits = |entry: &[u8], at: usize| hashes.get(at).is_some_and(|hash| leaf_hash(entry) == *hash);
        let (mut entries, mut at, mut wrong) = (Vec::new(), 0, Vec::new());
        while entries.len() < usize::from(TILE_WIDTH) {
            let position = entries.len();
            let length = bundle.get(at..at + LENGTH_BYTES)?;
            let length = u16::from_be_bytes(length.try_into().ok()?);
            let entry = |length: u16| bundle.get(at + LENGTH_BYTES..at + LENGTH_BYTES + usize::from(length));
            let lengths = [length].into_iter().chain((0..16).map(|bit| length ^ 1 << bit));
            let found = lengths.filter_map(entry).find(|entry| fits(entry, position));
            let sound = match (found, self.rows.get(&(first + position as u64))) {
                (Some(found), _) => {
                    if found.len() != usize::from(length) {
                        wrong.push(position);
                    }
                    at += LENGTH_BYTES + found.len();
                    found.to_vec()
                }
                (None, row) => {
                    wrong.push(position);
                    let stored = entry(length)?;
                    at += LENGTH_BYTES + stored.len();
                    match row.filter(|row| fits(row, position)) {
                        Some(row) => row.clone(),
                        None if stored.len() > BYTES_MAX => return None,
                        None => {
                            mended(stored, |entry| fits(entry, position)).unwrap_or_else(|| stored.to_vec())
                        }
                    }
                }
            };
            entries.push(sound);
        }
        if at != bundle.len() {
            return None;
        }
        let unlike: Vec<usize> =
            entries.iter().enumerate().filter(|(at, entry)| !fits(entry, *at)).map(|(at, _)| at).collect();
        // One entry against its hash: the root decides later which of the two was changed.
        match unlike.len() {
            0 => Some((entries, !wrong.is_empty())),
            1 => Some((entries, false)),
            _ => None,
        }
    }

    /// Whether a tile's file holds what the entries make of it. A file that is not there yet is none that is damaged.
    fn compare(&self, tile: &FullTile, damage: &mut Vec<Damage>) {
        let file = self.files.file(&TilePath::Tile { level: tile.level, index: tile.index, width: None });
        match file {
            Ok(Some(found)) if found == tile.bytes() => {}
            Ok(None) if self.rows.contains_key(&(tile.index * WIDTH)) || tile.level > 0 => {}
            _ => damage.push(Damage::file(
                format!("audit/{}", tile.path()),
                Fate::Rebuilt,
                "it does not hold the hashes of its entries",
            )),
        }
    }
}

/// Adds an entry to a bundle. One that was read from a bundle or from a run fits into one.
fn append(bundle: &mut Vec<u8>, entry: &[u8]) {
    let length = u16::try_from(entry.len()).unwrap_or(u16::MAX);
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
}
