//! Looks into a backend behind the store's back: counts rows anew, checks the claim index, verifies the audit log as an
//! auditor would.

#[path = "check/postgres.rs"]
pub(crate) mod postgres;

use std::collections::HashMap;
use std::path::Path;

use gatepost_audit::{DirTiles, Leaf, Options, Report, Tail, VerifierKey, verify_dir};
use gatepost_store::Database;
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{Connection as _, Row as _, SqliteConnection};

use crate::fixture::Place;

/// To be closed: dropped, it goes a moment later, and a store that stops meanwhile is not the last one, which brings the WAL into the
/// database.
pub(crate) async fn connect(place: &Place) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(place.path().join("gatepost.db"));
    SqliteConnection::connect_with(&options).await.unwrap()
}

/// Recounts what each queue says of itself from its deliveries, and each sender from what it has handed in.
const RECOUNT: &str = "SELECT q.name, \
    q.waiting, q.leased, q.sending, q.sent, q.in_doubt, q.held, q.dead, q.suspects, q.held_lanes, q.bytes, \
    coalesce(sum(d.state = 0), 0) AS c0, coalesce(sum(d.state = 1), 0) AS c1, coalesce(sum(d.state = 2), 0) AS c2, \
    coalesce(sum(d.state = 2 AND d.late = 1), 0) AS c3, coalesce(sum(d.state = 3), 0) AS c4, \
    coalesce(sum(d.state = 3 AND d.due IS NULL), 0) AS c5, coalesce(sum(d.state = 5), 0) AS c6, \
    coalesce(sum(d.state < 4 AND d.suspect = 1), 0) AS c7, \
    coalesce(sum(d.lane IS NOT NULL AND ((d.state = 3 AND d.due IS NULL) OR (d.state = 5 AND d.blocks = 1))), 0) AS c8, \
    coalesce(sum(CASE WHEN d.state < 4 THEN m.size ELSE 0 END), 0) AS c9 \
    FROM queue q LEFT JOIN delivery d ON d.queue = q.id LEFT JOIN message m ON m.seq = d.message WHERE q.kind <> 'sender' GROUP BY q.id \
    UNION ALL SELECT q.name, q.waiting, q.leased, q.sending, q.sent, q.in_doubt, q.held, q.dead, q.suspects, q.held_lanes, q.bytes, \
    count(d.pos), 0, 0, 0, 0, 0, 0, 0, 0, coalesce(sum(m.size), 0) FROM queue q LEFT JOIN delivery d ON d.sender = q.id AND d.state < 4 \
    LEFT JOIN message m ON m.seq = d.message WHERE q.kind = 'sender' GROUP BY q.id";

/// Who has handed in a delivery is who has handed in its message.
const STRANGERS: &str = "SELECT d.pos FROM delivery d JOIN message m ON m.seq = d.message LEFT JOIN queue q ON q.id = d.sender \
    WHERE d.sender IS NOT NULL AND q.name IS NOT m.sender_kind || ':' || m.sender";

/// Deliveries that could be claimed although another stands before them in their lane.
const OVERTAKERS: &str = "SELECT d.pos FROM delivery d WHERE d.ready IS NOT NULL AND d.lane IS NOT NULL AND EXISTS \
    (SELECT 1 FROM delivery e WHERE e.queue = d.queue AND (e.lane IN (d.lane, d.barrier) OR e.barrier IN (d.lane, d.barrier)) \
    AND e.pos < d.pos AND e.blocks = 1 AND (e.state NOT IN (1, 2) OR coalesce(d.barrier, e.barrier) IS NOT NULL))";

/// Deliveries that nothing stands before and that could never be claimed all the same.
const FORGOTTEN: &str = "SELECT d.pos FROM delivery d WHERE d.due IS NOT NULL AND d.ready IS NULL AND NOT EXISTS \
    (SELECT 1 FROM delivery e WHERE d.lane IS NOT NULL AND e.queue = d.queue AND e.pos < d.pos AND e.blocks = 1 \
    AND (e.lane IN (d.lane, d.barrier) OR e.barrier IN (d.lane, d.barrier)))";

/// Pieces of a payload that no message has, and that nothing says are to be removed.
const PIECES: &str = "SELECT p.pos FROM piece p WHERE EXISTS (SELECT 1 FROM piece a WHERE a.message = p.message AND a.number = 0) \
    = EXISTS (SELECT 1 FROM message m WHERE m.id = p.message AND m.data IS NOT NULL)";

/// The counts of every queue are those of its deliveries, and the claim index holds what may be claimed.
pub(crate) async fn assert_sound(place: &Place, context: &str) {
    if let Database::Postgres { url, .. } = &place.database {
        return postgres::assert_sound(url, context).await;
    }
    const COUNTS: [&str; 10] = [
        "waiting",
        "leased",
        "sending",
        "sent",
        "in_doubt",
        "held",
        "dead",
        "suspects",
        "held_lanes",
        "bytes",
    ];
    let mut connection = connect(place).await;
    for row in sqlx::query(RECOUNT).fetch_all(&mut connection).await.unwrap() {
        let queue: String = row.get("name");
        for (position, count) in COUNTS.iter().enumerate() {
            let (kept, found): (i64, i64) = (row.get(*count), row.get(format!("c{position}").as_str()));
            assert_eq!(kept, found, "{context}: {queue} says it has {kept} {count} and has {found}");
        }
    }
    for (what, query) in
        [("could overtake", OVERTAKERS), ("is forgotten", FORGOTTEN), ("is another sender's", STRANGERS)]
    {
        let rows: Vec<SqliteRow> = sqlx::query(query).fetch_all(&mut connection).await.unwrap();
        assert!(rows.is_empty(), "{context}: delivery {} {what}", rows[0].get::<i64, _>(0));
    }
    let rows: Vec<SqliteRow> = sqlx::query(PIECES).fetch_all(&mut connection).await.unwrap();
    assert!(rows.is_empty(), "{context}: {} pieces belong to nothing", rows.len());
    connection.close().await.unwrap();
}

/// Every entry of the log, from its files and, for the newest, from the database.
pub(crate) async fn entries(place: &Place) -> Vec<Vec<u8>> {
    if let Database::Postgres { url, .. } = &place.database {
        return postgres::entries(url).await;
    }
    let mut connection = connect(place).await;
    let rows =
        sqlx::query("SELECT idx, bytes FROM leaf ORDER BY idx").fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let first = rows.first().map_or(0, |row| u64::try_from(row.get::<i64, _>("idx")).unwrap());
    let mut entries = Vec::new();
    let files = DirTiles::new(place.path().join("audit"));
    for bundle in 0..first / 256 {
        let bundle = files.bundle_file(bundle, None).unwrap().expect("a filed bundle is there");
        entries.extend(gatepost_audit::parse_bundle(&bundle).unwrap().into_iter().map(<[u8]>::to_vec));
    }
    for row in &rows {
        assert_eq!(
            u64::try_from(row.get::<i64, _>("idx")).unwrap(),
            entries.len() as u64,
            "a run is missing"
        );
        let run = gatepost_audit::parse_bundle(row.get("bytes")).unwrap();
        entries.extend(run.into_iter().map(<[u8]>::to_vec));
    }
    entries
}

/// Leaves that have been committed, whether or not they have their place in the tree.
pub(crate) async fn leaves(place: &Place) -> u64 {
    let statement = [
        "SELECT leaf_count FROM store",
        "SELECT sequenced + (SELECT coalesce(sum(count), 0) FROM leaf_new)::bigint FROM store",
    ];
    u64::try_from(number(place, statement).await).unwrap()
}

/// The one number that a statement gives, in SQLite's words and in PostgreSQL's.
pub(crate) async fn number(place: &Place, [sqlite, postgres]: [&'static str; 2]) -> i64 {
    match &place.database {
        Database::Sqlite => {
            let mut connection = connect(place).await;
            let number = sqlx::query(sqlite).fetch_one(&mut connection).await.unwrap().get(0);
            connection.close().await.unwrap();
            number
        }
        Database::Postgres { url, .. } => postgres::number(url, postgres).await,
    }
}

pub(crate) fn vkey(dir: &Path) -> VerifierKey {
    VerifierKey::parse(std::fs::read_to_string(dir.join("audit/vkey")).unwrap().trim()).unwrap()
}

/// Verifies the log of a stopped store from its files.
pub(crate) async fn assert_log(place: &Place, context: &str) -> Report {
    let all = entries(place).await;
    let mut options = Options::new(vkey(place.path()));
    options.tail = Some(Box::new(move |start| {
        let leaves = all[usize::try_from(start).unwrap()..].to_vec();
        Ok(Tail { start, leaves })
    }));
    match verify_dir(&place.path().join("audit"), options, &mut |_, _| {}) {
        Ok(report) => report,
        Err(fault) => panic!("{context}: the log does not verify: {fault} ({fault:?})"),
    }
}

/// One leaf of a delivery.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) event: String,
    /// The state after it.
    pub(crate) state: Option<String>,
}

/// What the log says of each delivery.
pub(crate) fn by_delivery(entries: &[Vec<u8>]) -> HashMap<[u8; 16], Vec<Step>> {
    let mut found: HashMap<[u8; 16], Vec<Step>> = HashMap::new();
    for entry in entries {
        let leaf = Leaf::parse(entry).unwrap();
        let state = leaf.state.map(|state| state.as_str().to_owned());
        let step = Step { event: leaf.event.as_str().to_owned(), state };
        for id in leaf.delivery.iter().chain(leaf.deliveries.iter().map(|delivery| &delivery.id)) {
            found.entry(*id).or_default().push(step.clone());
        }
    }
    found
}
