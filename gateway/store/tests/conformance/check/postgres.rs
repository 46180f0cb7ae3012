//! As `check`, of PostgreSQL's tables.

use sqlx::postgres::PgRow;
use sqlx::{Connection as _, PgConnection, Row as _};

pub(crate) async fn connect(url: &str) -> PgConnection {
    let options: sqlx::postgres::PgConnectOptions = url.parse().unwrap();
    PgConnection::connect_with(&options.options([("search_path", "gatepost")])).await.unwrap()
}

pub(crate) async fn number(url: &str, statement: &'static str) -> i64 {
    let mut connection = connect(url).await;
    sqlx::query(statement).fetch_one(&mut connection).await.unwrap().get(0)
}

/// Recounts what each queue says of itself from its deliveries.
const RECOUNT: &str = "SELECT q.name, c.counts, d.counts AS found FROM queue q \
    CROSS JOIN LATERAL (SELECT array[coalesce(sum(waiting), 0), coalesce(sum(leased), 0), coalesce(sum(sending), 0), \
    coalesce(sum(sent), 0), coalesce(sum(in_doubt), 0), coalesce(sum(held), 0), coalesce(sum(dead), 0), coalesce(sum(suspects), 0), \
    coalesce(sum(held_lanes), 0), coalesce(sum(bytes), 0)]::bigint[] AS counts FROM queue_count WHERE queue = q.id) c \
    CROSS JOIN LATERAL (SELECT array[count(*) FILTER (WHERE d.state = 0), count(*) FILTER (WHERE d.state = 1), \
    count(*) FILTER (WHERE d.state = 2), count(*) FILTER (WHERE d.state = 2 AND d.late), count(*) FILTER (WHERE d.state = 3), \
    count(*) FILTER (WHERE d.state = 3 AND d.due IS NULL), count(*) FILTER (WHERE d.state = 5), \
    count(*) FILTER (WHERE d.state < 4 AND d.suspect), count(*) FILTER (WHERE d.lane IS NOT NULL AND ((d.state = 3 AND d.due IS NULL) \
    OR (d.state = 5 AND d.blocks))), coalesce(sum(m.size) FILTER (WHERE d.state < 4), 0)]::bigint[] AS counts \
    FROM delivery d JOIN message m ON m.seq = d.message WHERE d.queue = q.id) d WHERE q.kind <> 'sender' \
    UNION ALL SELECT q.name, array[coalesce(sum(c.waiting), 0), coalesce(sum(c.leased), 0), coalesce(sum(c.sending), 0), \
    coalesce(sum(c.sent), 0), coalesce(sum(c.in_doubt), 0), coalesce(sum(c.held), 0), coalesce(sum(c.dead), 0), \
    coalesce(sum(c.suspects), 0), coalesce(sum(c.held_lanes), 0), coalesce(sum(c.bytes), 0)]::bigint[], (SELECT array[count(*), 0, 0, 0, \
    0, 0, 0, 0, 0, coalesce(sum(m.size), 0)]::bigint[] FROM delivery d JOIN message m ON m.seq = d.message \
    WHERE d.sender = q.id AND d.state < 4) FROM queue q LEFT JOIN queue_count c ON c.queue = q.id WHERE q.kind = 'sender' GROUP BY q.id";

const COUNTS: [&str; 10] =
    ["waiting", "leased", "sending", "sent", "in_doubt", "held", "dead", "suspects", "held_lanes", "bytes"];

/// What must not be found, and what it would be.
const UNSOUND: &[(&str, &str)] = &[
    (
        "could overtake",
        "SELECT r.pos FROM ready r JOIN delivery d ON d.pos = r.pos WHERE d.lane IS NOT NULL AND EXISTS (SELECT 1 FROM delivery e \
         WHERE e.queue = d.queue AND (e.lane IN (d.lane, d.barrier) OR e.barrier IN (d.lane, d.barrier)) AND e.pos < d.pos AND e.blocks \
         AND (e.state NOT IN (1, 2) OR coalesce(d.barrier, e.barrier) IS NOT NULL))",
    ),
    (
        "is forgotten",
        "SELECT d.pos FROM delivery d WHERE d.due IS NOT NULL AND NOT EXISTS (SELECT 1 FROM ready r WHERE r.pos = d.pos) \
         AND NOT EXISTS (SELECT 1 FROM delivery e WHERE d.lane IS NOT NULL AND e.queue = d.queue AND e.pos < d.pos AND e.blocks \
         AND (e.lane IN (d.lane, d.barrier) OR e.barrier IN (d.lane, d.barrier))) \
         AND NOT EXISTS (SELECT 1 FROM lane_changed c WHERE c.queue = d.queue AND c.lane IN (d.lane, d.barrier))",
    ),
    (
        "is ready as another",
        "SELECT r.pos FROM ready r LEFT JOIN delivery d ON d.pos = r.pos WHERE d.pos IS NULL OR d.queue <> r.queue \
         OR d.due IS DISTINCT FROM r.due OR d.suspect <> r.suspect OR d.state NOT IN (0, 3)",
    ),
    (
        "does not stand in its lane",
        "SELECT coalesce(d.pos, l.pos) FROM (SELECT queue, lane, pos, CASE WHEN barrier IS NOT NULL THEN lane END AS home FROM delivery \
         WHERE lane IS NOT NULL AND blocks UNION ALL SELECT queue, barrier, pos, lane FROM delivery WHERE barrier IS NOT NULL AND blocks) d \
         FULL JOIN lane l ON l.queue = d.queue AND l.lane = d.lane AND l.pos = d.pos \
         WHERE d.pos IS NULL OR l.pos IS NULL OR d.home IS DISTINCT FROM l.home",
    ),
    (
        "is stuck or not",
        "SELECT coalesce(d.pos, s.pos) FROM (SELECT * FROM delivery WHERE state IN (3, 5)) d FULL JOIN stuck s \
         ON s.pos = d.pos AND s.state = d.state AND s.queue = d.queue AND s.held = (d.state = 3 AND d.due IS NULL) \
         WHERE d.pos IS NULL OR s.pos IS NULL",
    ),
    (
        "is leased and would not be found",
        "SELECT d.pos FROM delivery d WHERE d.token IS NOT NULL AND NOT EXISTS (SELECT 1 FROM lease_group g WHERE d.pos = ANY(g.pos))",
    ),
    (
        "is another sender's",
        "SELECT d.pos FROM delivery d JOIN message m ON m.seq = d.message LEFT JOIN queue q ON q.id = d.sender \
         WHERE d.sender IS NOT NULL AND q.name IS DISTINCT FROM m.sender_kind || ':' || m.sender",
    ),
    (
        "will expire and would not be found",
        "SELECT d.pos FROM delivery d WHERE d.state = 0 AND d.expires_at IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM expiry e WHERE e.at = d.expires_at AND e.pos = d.pos)",
    ),
];

/// Pieces that belong to no message that has its content under their day, and that nothing says are to be removed.
const PIECES_OF_NOTHING: &str = "SELECT count(*) FROM piece p WHERE NOT EXISTS (SELECT 1 FROM piece_ahead a \
    WHERE a.message = p.message AND a.day = p.day) AND NOT EXISTS (SELECT 1 FROM message m JOIN payload l ON l.day = m.day AND l.seq = m.seq \
    WHERE m.id = p.message AND m.day = p.day AND get_byte(l.data, 0) = 2)";
/// Messages whose payloads stand in pieces that are not there, or of which somebody says that they have not been accepted.
const WITHOUT_PIECES: &str = "SELECT count(*) FROM message m JOIN payload l ON l.day = m.day AND l.seq = m.seq \
    WHERE length(l.data) > 0 AND get_byte(l.data, 0) = 2 AND ((SELECT coalesce(sum(length(bytes)), 0) FROM piece p WHERE p.day = m.day \
    AND p.message = m.id) = 0 OR EXISTS (SELECT 1 FROM piece_ahead a WHERE a.message = m.id))";

pub(super) async fn assert_sound(url: &str, context: &str) {
    let mut connection = connect(url).await;
    for row in sqlx::query(RECOUNT).fetch_all(&mut connection).await.unwrap() {
        let queue: String = row.get("name");
        let (kept, found): (Vec<i64>, Vec<i64>) = (row.get("counts"), row.get("found"));
        for (count, (kept, found)) in COUNTS.iter().zip(kept.iter().zip(&found)) {
            assert_eq!(kept, found, "{context}: {queue} says it has {kept} {count} and has {found}");
        }
    }
    for (what, query) in
        [("pieces belong to nothing", PIECES_OF_NOTHING), ("messages lack pieces", WITHOUT_PIECES)]
    {
        let found: i64 = sqlx::query(query).fetch_one(&mut connection).await.unwrap().get(0);
        assert_eq!(found, 0, "{context}: {found} {what}");
    }
    for (what, query) in UNSOUND {
        let rows: Vec<PgRow> = sqlx::query(*query).fetch_all(&mut connection).await.unwrap();
        assert!(rows.is_empty(), "{context}: delivery {} {what}", rows[0].get::<i64, _>(0));
    }
    connection.close().await.unwrap();
}

/// Every entry of the log that has its place.
pub(super) async fn entries(url: &str) -> Vec<Vec<u8>> {
    let mut connection = connect(url).await;
    let rows = sqlx::query(
        "SELECT p.first, p.count, l.bytes FROM leaf_place p JOIN leaf l ON l.day = p.day AND l.number = p.number ORDER BY p.first",
    );
    let rows = rows.fetch_all(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for row in &rows {
        assert_eq!(u64::try_from(row.get::<i64, _>("first")).unwrap(), entries.len() as u64, "a gap");
        let run = gatepost_audit::parse_bundle(row.get("bytes")).unwrap();
        assert_eq!(run.len(), usize::try_from(row.get::<i32, _>("count")).unwrap());
        entries.extend(run.into_iter().map(<[u8]>::to_vec));
    }
    entries
}
