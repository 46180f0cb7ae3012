//! One flipped bit of any file is named or changes nothing.

use std::fmt;
use std::ops::Range;

use super::*;

/// On the first page, before what every page has.
const DATABASE_HEADER_BYTES: usize = 100;
/// The page type of a table's inner page.
const TABLE_INTERIOR: u8 = 5;

/// A page of a database: the tree it belongs to or that it is free, what it is in it, and how many of its bytes are not in use.
pub(super) struct Page {
    pub(super) tree: String,
    kind: String,
    unused: usize,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.tree, self.kind)
    }
}

pub(super) async fn pages(database: &Path) -> BTreeMap<u32, Page> {
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let rows = sqlx::query("SELECT pageno, name, pagetype, unused FROM dbstat")
        .fetch_all(&mut connection)
        .await
        .unwrap();
    let page = |row: &SqliteRow| Page {
        tree: row.get(1),
        kind: row.get(2),
        unused: usize::try_from(row.get::<i64, _>(3)).unwrap(),
    };
    let mut pages: BTreeMap<u32, Page> = rows.iter().map(|row| (row.get::<u32, _>(0), page(row))).collect();
    let count: u32 = sqlx::query("PRAGMA page_count").fetch_one(&mut connection).await.unwrap().get(0);
    for page in 1..=count {
        // A tree's pages are listed; what no tree has is free.
        pages.entry(page).or_insert_with(|| Page {
            tree: "free".to_owned(),
            kind: "free".to_owned(),
            unused: PAGE_BYTES,
        });
    }
    connection.close().await.unwrap();
    pages
}

pub(super) fn flip(path: &Path, bit: u64) {
    let mut bytes = fs::read(path).unwrap();
    let byte = usize::try_from(bit / 8).unwrap();
    bytes[byte] ^= 1 << (bit % 8);
    fs::write(path, bytes).unwrap();
}

/// The bytes of a page of which each bit must be named (SQLite's file format, §1.6 and §1.7): not what lies between its cells,
/// nor behind the end of what overflows. Some that must be too are left out, because it takes more to tell: the database's header
/// and free pages, the cells of a table's inner pages, whose keys need only stand between their neighbours', and of pages that
/// have splinters between their cells.
fn telling(database: &[u8], number: u32, page: &Page) -> Vec<Range<usize>> {
    let start = usize::try_from(number - 1).unwrap() * PAGE_BYTES;
    let bytes = &database[start..start + PAGE_BYTES];
    let number_at = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    let header = if number == 1 { DATABASE_HEADER_BYTES } else { 0 };
    let mut telling = Vec::new();
    let pointers = match page.kind.as_str() {
        "free" => return telling,
        "overflow" => {
            telling.push(0..PAGE_BYTES - page.unused);
            return telling;
        }
        "internal" => header + 12,
        _ => header + 8,
    };
    telling.push(header..pointers + 2 * number_at(header + 3));
    let splinters = bytes[header + 7];
    if bytes[header] == TABLE_INTERIOR || splinters > 0 {
        return telling;
    }
    // The blocks between cells are a list in the order of their places; each says where the next is, and its own length.
    let (mut from, mut block) = (number_at(header + 5), number_at(header + 1));
    while block != 0 {
        telling.push(from..block + 4);
        from = block + number_at(block + 2);
        block = number_at(block);
    }
    telling.push(from..PAGE_BYTES);
    telling
}

/// A number that is the same in every run and looks like any other.
pub(super) fn scattered(of: u64, salt: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&of.to_le_bytes(), salt)
}

/// Flips a bit in a copy and demands that it is named or changes nothing; whether it was named.
async fn flip_and_look(
    filled: &Filled,
    file: &Path,
    bit: u64,
    before: &BTreeMap<String, Vec<String>>,
    serve: bool,
) -> bool {
    let place = copied(&filled.place);
    let context = format!("bit {bit} of {}", file.display());
    flip(&place.path().join(file), bit);
    let named = named_by_doctor(place.path(), &context);
    if !named {
        match dump(&place.path().join(DATABASE)).await {
            Ok(after) => {
                assert_eq!(differing(before, &after), None, "{context}: unnamed, and another database")
            }
            Err(error) => panic!("{context}: unnamed, and unreadable: {error}"),
        }
    }
    if serve {
        assert_serves_only_what_was_accepted(&place, &filled.promised, &context).await;
    }
    named
}

/// Whether looking at the directory names anything; it must change nothing.
pub(super) fn named_by_doctor(dir: &Path, context: &str) -> bool {
    let before = contents(dir);
    let inspected =
        salvage::inspect(dir, &Default::default()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(before == contents(dir), "{context}: looking at it changed it");
    !inspected.damage.is_empty()
}

pub(super) fn differing(
    one: &BTreeMap<String, Vec<String>>,
    other: &BTreeMap<String, Vec<String>>,
) -> Option<String> {
    let table = one.keys().find(|table| one.get(*table) != other.get(*table))?;
    let (one, other) = (&one[table], other.get(table)?);
    let at =
        one.iter().zip(other).position(|(one, other)| one != other).unwrap_or(one.len().min(other.len()));
    Some(format!("{table}, row {at}: {:?} and {:?}", one.get(at), other.get(at)))
}

/// How many bits of each page are tried, and of which pages.
pub(super) struct Flips {
    pub(super) every: usize,
    pub(super) bits: u64,
    pub(super) serve_every: usize,
    pub(super) until: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Tally {
    pub(super) flips: u64,
    pub(super) named: u64,
    /// Flips that had to be named, whatever else is in the database.
    pub(super) telling: u64,
    pub(super) trees: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, named: bool) {
        self.flips += 1;
        self.named += u64::from(named);
    }
}

/// Bits in the database's pages: in each its header, and places that no two pages have in common.
pub(super) async fn flip_pages(filled: &Filled, flips: &Flips, salt: u64) -> Tally {
    let database = filled.place.path().join(DATABASE);
    let before = dump(&database).await.unwrap();
    let pages = pages(&database).await;
    let bytes = fs::read(&database).unwrap();
    let page_bits = 8 * u64::try_from(PAGE_BYTES).unwrap();
    let mut tally = Tally::default();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (number, page) in &pages {
        let kind = page.to_string();
        let nth = seen.entry(kind.clone()).or_default();
        *nth += 1;
        // The first page of each kind, and then some.
        if !(*nth - 1).is_multiple_of(flips.every) || flips.until.is_some_and(|until| Instant::now() > until)
        {
            continue;
        }
        tally.trees.insert(kind.clone());
        let telling = telling(&bytes, *number, page);
        for bit in 0..flips.bits {
            let drawn = scattered(u64::from(*number) << 8 | bit, salt);
            let within = if bit == 0 { drawn % (8 * 12) } else { drawn % page_bits };
            let serve = usize::try_from(tally.flips).unwrap() % flips.serve_every == 0;
            let at = u64::from(number - 1) * page_bits + within;
            let named = flip_and_look(filled, Path::new(DATABASE), at, &before, serve).await;
            let byte = usize::try_from(within / 8).unwrap();
            if telling.iter().any(|range| range.contains(&byte)) {
                assert!(named, "bit {within} of page {number}, {kind}, tells something, and is not named");
                tally.telling += 1;
            }
            tally.add(named);
        }
    }
    tally
}

/// Bits in every other file of the directory.
pub(super) async fn flip_files(filled: &Filled, flips: &Flips, salt: u64) -> Tally {
    let before = dump(&filled.place.path().join(DATABASE)).await.unwrap();
    let mut tally = Tally::default();
    for (number, file) in files(filled.place.path()).into_iter().enumerate() {
        let length = fs::metadata(filled.place.path().join(&file)).unwrap().len();
        let name = file.display().to_string();
        if length == 0 || name.starts_with(DATABASE) || name == "reserve" {
            continue;
        }
        tally.trees.insert(name);
        for bit in 0..flips.bits {
            let at = scattered((number as u64) << 8 | bit, salt) % (8 * length);
            let serve = usize::try_from(tally.flips).unwrap() % flips.serve_every == 0;
            tally.add(flip_and_look(filled, &file, at, &before, serve).await);
        }
    }
    tally
}

#[tokio::test]
async fn a_flipped_bit_of_any_page_is_named_or_changes_nothing() {
    let filled = filled_place(12).await;
    assert_eq!(
        salvage::inspect(filled.place.path(), &Default::default()).unwrap().damage,
        [],
        "nothing is damaged yet"
    );
    let flips = Flips { every: 97, bits: 3, serve_every: 7, until: None };
    let tally = flip_pages(&filled, &flips, 1).await;
    let trees: BTreeSet<String> =
        tally.trees.iter().filter_map(|tree| Some(tree.split(' ').next()?.to_owned())).collect();
    for name in [
        "sqlite_schema",
        "store",
        "queue",
        "message",
        "dedup",
        "delivery",
        "detail",
        "reply",
        "adapter_state",
        "leaf",
        "message_subject",
        "message_key",
        "message_correlation",
        "delivery_message",
        "delivery_ready",
        "delivery_lane",
        "delivery_stuck",
        "detail_delivery",
        "free",
    ] {
        assert!(trees.contains(name), "no page of {name} among {trees:?}");
    }
    for kind in ["message internal", "message leaf", "message overflow", "delivery internal"] {
        assert!(tally.trees.contains(kind), "no {kind} page among {:?}", tally.trees);
    }
    note(format_args!(
        "{} bits of {} kinds of pages: {} named, of them {} had to be",
        tally.flips,
        tally.trees.len(),
        tally.named,
        tally.telling
    ));
    // A page's first bytes say what it is, and the first bit that is flipped in each is one of theirs.
    let kinds = u64::try_from(tally.trees.len()).unwrap();
    assert!(
        tally.telling >= kinds,
        "too few that had to be named: {} in {kinds} kinds of pages",
        tally.telling
    );
}

#[tokio::test]
async fn a_flipped_bit_of_any_file_beside_the_database_is_named_or_changes_nothing() {
    let filled = filled_place(12).await;
    let flips = Flips { every: 1, bits: 3, serve_every: 5, until: None };
    let tally = flip_files(&filled, &flips, 1).await;
    for name in [
        "keys/store.key",
        "keys/audit.key",
        "keys/seal-1.key",
        "audit/checkpoint",
        "audit/vkey",
        "audit/tile/0/000",
        "audit/tile/entries/000",
    ] {
        assert!(tally.trees.contains(name), "no {name} among {:?}", tally.trees);
    }
    assert!(tally.named > 0);
}
