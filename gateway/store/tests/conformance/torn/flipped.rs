//! One flipped bit of any file is named or changes nothing.

use super::*;

/// What every page of a database belongs to: the name of its tree, or that it is free.
pub(super) async fn pages(database: &Path) -> BTreeMap<u32, (String, String)> {
    let options = SqliteConnectOptions::new().filename(database);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let rows =
        sqlx::query("SELECT pageno, name, pagetype FROM dbstat").fetch_all(&mut connection).await.unwrap();
    let mut pages: BTreeMap<u32, (String, String)> =
        rows.iter().map(|row| (row.get::<u32, _>(0), (row.get(1), row.get(2)))).collect();
    let count: u32 = sqlx::query("PRAGMA page_count").fetch_one(&mut connection).await.unwrap().get(0);
    for page in 1..=count {
        // A tree's pages are listed; what no tree has is free.
        pages.entry(page).or_insert_with(|| ("free".to_owned(), "free".to_owned()));
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

/// A number that is the same in every run and looks like any other.
pub(super) fn scattered(of: u64, salt: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&of.to_le_bytes(), salt)
}

/// Flips a bit in a copy and demands that it is named or changes nothing; how it was named.
async fn flip_and_look(
    filled: &Filled,
    file: &Path,
    bit: u64,
    before: &BTreeMap<String, Vec<String>>,
    serve: bool,
) -> &'static str {
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
    if named { "named" } else { "nothing changed" }
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
    pub(super) trees: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, found: &str) {
        self.flips += 1;
        self.named += u64::from(found == "named");
    }
}

/// Bits in the database's pages: in each its header, and places that no two pages have in common.
pub(super) async fn flip_pages(filled: &Filled, flips: &Flips, salt: u64) -> Tally {
    let database = filled.place.path().join(DATABASE);
    let before = dump(&database).await.unwrap();
    let pages = pages(&database).await;
    let page_bits = 8 * 4096;
    let mut tally = Tally::default();
    let mut seen: BTreeMap<&(String, String), usize> = BTreeMap::new();
    for (page, kind) in &pages {
        let nth = seen.entry(kind).or_default();
        *nth += 1;
        // The first page of each kind, and then some.
        if !(*nth - 1).is_multiple_of(flips.every) || flips.until.is_some_and(|until| Instant::now() > until)
        {
            continue;
        }
        tally.trees.insert(format!("{} {}", kind.0, kind.1));
        for bit in 0..flips.bits {
            let drawn = scattered(u64::from(*page) << 8 | bit, salt);
            let within = if bit == 0 { drawn % (8 * 12) } else { drawn % page_bits };
            let serve = usize::try_from(tally.flips).unwrap() % flips.serve_every == 0;
            let at = u64::from(page - 1) * page_bits + within;
            tally.add(flip_and_look(filled, Path::new(DATABASE), at, &before, serve).await);
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
    note(format_args!("{} bits of {} kinds of pages: {} named", tally.flips, tally.trees.len(), tally.named));
    assert!(tally.named > tally.flips / 2, "what is damaged is seen: {} of {}", tally.named, tally.flips);
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
