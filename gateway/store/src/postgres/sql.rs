//! Every statement of the writer on PostgreSQL, as a named constant; each begins with its name, so that the server's logs and
//! `pg_stat_statements` name it too.
//!
//! A test prepares each of them on a freshly migrated database.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::sql::statements;
use crate::writer::Holds;

pub(crate) const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("../../../../migrations/postgres/0001_foundation.sql")),
    (3, include_str!("../../../../migrations/postgres/0003_barriers.sql")),
    (4, include_str!("../../../../migrations/postgres/0004_second_keys.sql")),
    (5, include_str!("../../../../migrations/postgres/0005_pieces.sql")),
];

/// Columns of a delivery with what the writer needs of its message, in the order that `row::load` reads.
macro_rules! delivery_columns {
    () => {
        "d.pos, d.id, d.message, d.queue, d.lane, d.state, d.blocks, d.due, d.token, d.until, d.session, d.batch, d.late, \
         d.attempts, d.series, d.crashes, d.doubt, d.suspect, d.replayed, d.reason, d.expires_at, d.born, d.idle_at_birth, \
         d.changed_at, d.settled_token, d.settled_as, d.leaves, d.sender, d.barrier, m.id AS message_id, m.size, m.accepted_at, p.salt"
    };
}

/// The delivery `d` that a row of `w` names: a look-up for each, however many of either the planner expects. Plans are made once, as
/// a rule while the tables are empty, and a plain join read all deliveries for a handful of `w`.
macro_rules! delivery_of {
    ($column:literal) => {
        concat!(
            " CROSS JOIN LATERAL (SELECT * FROM delivery WHERE ",
            $column,
            " = w.",
            $column,
            " LIMIT 1) d"
        )
    };
}

/// A delivery whose message is not there is a damaged row, not none.
macro_rules! with_message {
    () => {
        " LEFT JOIN LATERAL (SELECT id, size, accepted_at, day, seq FROM message WHERE seq = d.message LIMIT 1) m ON true \
         LEFT JOIN LATERAL (SELECT salt FROM payload WHERE day = m.day AND seq = m.seq LIMIT 1) p ON true "
    };
}

/// Store time, where `s` is table `store`: the server's clock, and never behind what was noted of it.
macro_rules! store_time {
    () => {
        "greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, s.clock)"
    };
}
pub(super) use store_time;

macro_rules! ready_suspect {
    ($name:literal, $lock:literal) => {
        concat!(
            $name,
            " SELECT pos, due, bucket FROM ready WHERE queue = $1 AND suspect AND bucket = ANY($2::smallint[]) AND due <= $3 \
             ORDER BY due, pos LIMIT $4",
            $lock
        )
    };
}

/// Begins a transaction: a turn's number, store time, and the end of the node's right, whose row it keeps from being taken away until
/// its own end. Then a row for each queue that is held, and each session that is its adapter's newest, and stays so until the end: in one
/// order for every node, since two that hold some of the same would wait for each other. One call, of several statements.
pub(super) fn begin(node: i32, holds: &Holds) -> String {
    const BEGIN: &str = concat!(
        "BEGIN; SELECT nextval('turn'), ",
        store_time!(),
        ", n.until FROM node n, store s WHERE n.epoch = "
    );
    let mut script = format!("{BEGIN}{node} FOR KEY SHARE OF n");
    let held = holds.queues.iter().map(|queue| (*queue, None));
    let shared = holds.sessions.iter().map(|(queue, session)| (*queue, Some(*session)));
    let queues: BTreeMap<i64, Option<u64>> = shared.chain(held).collect();
    for (queue, session) in queues {
        let _ = match session {
            Some(session) => {
                write!(script, "; SELECT id FROM queue WHERE id = {queue} AND session = {session} FOR SHARE")
            }
            None => write!(script, "; SELECT id FROM queue WHERE id = {queue} FOR NO KEY UPDATE"),
        };
    }
    script
}

statements! {
    // === start ===
    /// Whose database it is, and its time.
    STORE_LOOK = concat!("/* store_look */ SELECT store_key, log_key, ", store_time!(), " FROM store s");
    STORE_ADD = "/* store_add */ INSERT INTO store (id, store_key, log_key, clock, sequenced) VALUES (1, $1, $2, $3, 0) \
        ON CONFLICT DO NOTHING";
    /// None while a gateway is being copied into the database.
    NODE_ADD = concat!("/* node_add */ INSERT INTO node (epoch, name, version, since, until) \
        SELECT $1, $2, $3, t.now, t.now + $4 FROM (SELECT ", store_time!(), " AS now FROM store s) t \
        WHERE NOT EXISTS (SELECT 1 FROM copy WHERE part <> 'done')");
    NODE_RENEW = concat!("/* node_renew */ UPDATE node SET until = t.now + $2 FROM (SELECT ", store_time!(),
        " AS now FROM store s) t WHERE epoch = $1 AND until > t.now");
    /// Nor behind what was written.
    CLOCK_NOTE = concat!("/* clock_note */ UPDATE store s SET clock = greatest(", store_time!(), ", $1)");
    /// Waits until nothing of it is under way any more.
    NODE_LOCK = "/* node_lock */ SELECT epoch FROM node WHERE epoch = $1 FOR UPDATE";
    NODE_DROP = "/* node_drop */ DELETE FROM node WHERE epoch = $1";
    LEASES_TAKE = "/* leases_take */ UPDATE lease_group SET epoch = $2 WHERE epoch = $1";
    LEASES_OF_NOBODY = "/* leases_of_nobody */ SELECT DISTINCT epoch FROM lease_group g \
        WHERE NOT EXISTS (SELECT 1 FROM node n WHERE n.epoch = g.epoch)";
    BUCKETS_FREE = "/* buckets_free */ UPDATE bucket SET epoch = NULL WHERE epoch = $1";
    ROLES_FREE = "/* roles_free */ UPDATE role SET epoch = NULL WHERE epoch = $1";
    COUNTS_CLOSE = "/* counts_close */ INSERT INTO queue_count AS c (queue, epoch, waiting, leased, sending, sent, in_doubt, held, dead, \
        suspects, held_lanes, bytes) SELECT queue, 0, waiting, leased, sending, sent, in_doubt, held, dead, suspects, held_lanes, bytes \
        FROM queue_count WHERE epoch = $1 ORDER BY queue \
        ON CONFLICT (queue, epoch) DO UPDATE SET waiting = c.waiting + excluded.waiting, leased = c.leased + excluded.leased, \
        sending = c.sending + excluded.sending, sent = c.sent + excluded.sent, in_doubt = c.in_doubt + excluded.in_doubt, \
        held = c.held + excluded.held, dead = c.dead + excluded.dead, suspects = c.suspects + excluded.suspects, \
        held_lanes = c.held_lanes + excluded.held_lanes, bytes = c.bytes + excluded.bytes";
    COUNTS_DROP = "/* counts_drop */ DELETE FROM queue_count WHERE epoch = $1";
    BUCKETS_ADD = "/* buckets_add */ INSERT INTO bucket (queue, bucket) SELECT $1, b FROM generate_series(0, $2 - 1) b \
        ON CONFLICT DO NOTHING";
    BUCKETS_RELEASE = "/* buckets_release */ UPDATE bucket SET epoch = NULL WHERE queue = $1 AND epoch = $2 AND bucket = ANY($3::smallint[])";
    BUCKETS_ACQUIRE = "/* buckets_acquire */ UPDATE bucket b SET epoch = $2 WHERE b.queue = $1 AND b.bucket = ANY($3::smallint[]) \
        AND (b.epoch IS NULL OR b.epoch = $2 OR NOT EXISTS (SELECT 1 FROM node n WHERE n.epoch = b.epoch)) RETURNING b.bucket";
    BUCKETS_OWNED = "/* buckets_owned */ SELECT queue, bucket FROM bucket WHERE epoch = $1";
    CONSUMERS_ADD = "/* consumers_add */ INSERT INTO consumer (queue, epoch) SELECT q, $1 FROM unnest($2::int[]) AS q ON CONFLICT DO NOTHING";
    CONSUMERS_DROP = "/* consumers_drop */ DELETE FROM consumer WHERE epoch = $1 AND queue <> ALL($2::int[])";
    CONSUMERS_FREE = "/* consumers_free */ DELETE FROM consumer WHERE epoch = $1";
    /// Of nodes whose lease is over too, until somebody takes their place: their buckets are not free before.
    CONSUMERS = "/* consumers */ SELECT queue, epoch FROM consumer";
    /// All of them, and whether their lease is over.
    NODES = concat!("/* nodes */ SELECT n.epoch, n.until <= ", store_time!(), " FROM node n, store s");
    /// Not while something of it is under way: that one's connection is cut off before long.
    NODE_LOCK_OVER = concat!("/* node_lock_over */ SELECT n.epoch FROM node n, store s WHERE n.epoch = $1 AND n.until <= ",
        store_time!(), " FOR UPDATE OF n SKIP LOCKED");
    READY_WAITS = "/* ready_waits */ SELECT DISTINCT o.queue FROM unnest($1::int[], $2::smallint[]) AS o(queue, bucket) \
        WHERE EXISTS (SELECT 1 FROM ready r WHERE r.queue = o.queue AND r.bucket = o.bucket AND r.due <= $3)";

    // === the writer's reads ===
    QUEUES_LOAD = "/* queues_load */ SELECT q.id, q.name, q.kind, q.version, q.paused_since, q.trip_since, q.trip_reason, \
        q.trip_failures, q.trip_due, q.idle_before, q.idle_since, q.session, c.waiting, c.leased, c.sending, c.sent, c.in_doubt, \
        c.held, c.dead, c.suspects, c.held_lanes, c.bytes FROM queue q LEFT JOIN LATERAL (SELECT \
        coalesce(sum(waiting), 0)::bigint AS waiting, coalesce(sum(leased), 0)::bigint AS leased, \
        coalesce(sum(sending), 0)::bigint AS sending, coalesce(sum(sent), 0)::bigint AS sent, \
        coalesce(sum(in_doubt), 0)::bigint AS in_doubt, coalesce(sum(held), 0)::bigint AS held, \
        coalesce(sum(dead), 0)::bigint AS dead, coalesce(sum(suspects), 0)::bigint AS suspects, \
        coalesce(sum(held_lanes), 0)::bigint AS held_lanes, coalesce(sum(bytes), 0)::bigint AS bytes \
        FROM queue_count WHERE queue = q.id) c ON true ORDER BY q.id";
    TURN_NEXT = concat!("/* turn_next */ SELECT nextval('turn'), ", store_time!(), " FROM store s");
    DELIVERIES_BY_ID = concat!("/* deliveries_by_id */ SELECT ", delivery_columns!(), " FROM unnest($1::bytea[]) AS w(id)",
        delivery_of!("id"), with_message!());
    DELIVERIES_BY_POS = concat!("/* deliveries_by_pos */ SELECT ", delivery_columns!(), " FROM unnest($1::bigint[]) AS w(pos)",
        delivery_of!("pos"), with_message!());
    DELIVERIES_LEASED = concat!("/* deliveries_leased */ SELECT ", delivery_columns!(), " FROM (SELECT DISTINCT unnest(pos) AS pos \
        FROM lease_group WHERE epoch = $1) w", delivery_of!("pos"), with_message!(), "WHERE d.token IS NOT NULL");
    /// At most so many ($4), of at most so many ($5) from each bucket, behind a row with a turn's number and store time.
    DELIVERIES_READY = concat!("/* deliveries_ready */ (SELECT nextval('turn'), ", store_time!(), ", NULL::smallint FROM store s) UNION ALL \
        (SELECT r.pos, r.due, b.bucket FROM unnest($2::smallint[]) AS b(bucket) CROSS JOIN LATERAL (SELECT due, pos FROM ready WHERE queue = $1 \
        AND bucket = b.bucket AND due <= $3 ORDER BY due, pos LIMIT $5) r ORDER BY r.due, r.pos LIMIT $4)");
    /// The entries alone, which stay as they are until the end of the transaction; what others have locked is passed over.
    DELIVERIES_READY_LOCK = "/* deliveries_ready_lock */ WITH picked AS MATERIALIZED (SELECT b.bucket, r.due, r.pos \
        FROM unnest($2::smallint[]) AS b(bucket) CROSS JOIN LATERAL (SELECT due, pos FROM ready WHERE queue = $1 AND bucket = b.bucket \
        AND due <= $3 ORDER BY due, pos LIMIT $5) r ORDER BY r.due, r.pos LIMIT $4) \
        SELECT r.pos, r.due, r.bucket FROM picked p JOIN ready r ON r.queue = $1 AND r.bucket = p.bucket AND r.due = p.due AND r.pos = p.pos \
        ORDER BY r.due, r.pos FOR UPDATE OF r SKIP LOCKED";
    DELIVERIES_READY_SUSPECT = ready_suspect!("/* deliveries_ready_suspect */", "");
    DELIVERIES_READY_SUSPECT_LOCK = ready_suspect!("/* deliveries_ready_suspect_lock */", " FOR UPDATE SKIP LOCKED");
    READY_NEXT = "/* ready_next */ SELECT min(r.due) FROM unnest($2::smallint[]) AS b(bucket) CROSS JOIN LATERAL (SELECT due FROM ready \
        WHERE queue = $1 AND bucket = b.bucket AND due > $3 ORDER BY due LIMIT 1) r";
    DELIVERIES_OF_LANE = concat!("/* deliveries_of_lane */ SELECT ", delivery_columns!(), " FROM (SELECT pos FROM lane WHERE queue = $1 \
        AND lane = $2 ORDER BY pos LIMIT $3) w", delivery_of!("pos"), with_message!(), "ORDER BY d.pos");
    /// Whoever gives something back in lanes of these buckets holds them, one after the other in the order that they are named in.
    BUCKETS_HOLD = "/* buckets_hold */ SELECT b.bucket FROM (SELECT unnest($1::int[]) AS queue, unnest($2::smallint[]) AS bucket) w \
        CROSS JOIN LATERAL (SELECT bucket FROM bucket WHERE queue = w.queue AND bucket = w.bucket LIMIT 1 FOR UPDATE) b";
    /// Who leases in windowed lanes of these buckets keeps others from giving back there; where somebody does so, it leases nothing.
    BUCKETS_SHARE = "/* buckets_share */ SELECT b.bucket FROM (SELECT unnest($2::smallint[]) AS bucket) w \
        CROSS JOIN LATERAL (SELECT bucket FROM bucket WHERE queue = $1 AND bucket = w.bucket LIMIT 1 FOR SHARE SKIP LOCKED) b";
    /// Among so many behind a position in each of these lanes.
    DELIVERIES_IN_FLIGHT = concat!("/* deliveries_in_flight */ SELECT ", delivery_columns!(), " FROM (SELECT unnest($1::int[]) AS queue, \
        unnest($2::bytea[]) AS lane, unnest($3::bigint[]) AS after, unnest($4::int[]) AS width) l CROSS JOIN LATERAL (SELECT pos FROM lane m \
        WHERE m.queue = l.queue AND m.lane = l.lane AND m.pos > l.after ORDER BY pos LIMIT l.width) w", delivery_of!("pos"), with_message!(), "WHERE d.state IN (1, 2)");
    LANE_STUCK = "/* lane_stuck */ SELECT w.pos FROM lane w CROSS JOIN LATERAL (SELECT state FROM delivery WHERE pos = w.pos LIMIT 1) d \
        WHERE w.queue = $1 AND w.lane = $2 AND w.pos <= $3 AND (w.pos <= $4 OR d.state IN (1, 2, 3)) LIMIT 1";
    DELIVERIES_PAST_EXPIRY = concat!("/* deliveries_past_expiry */ SELECT ", delivery_columns!(), " FROM (SELECT pos FROM expiry \
        WHERE at <= $1 ORDER BY at LIMIT $2) w", delivery_of!("pos"), with_message!(), "WHERE d.state = 0");
    /// Of those that do not wait. One that goes back to waiting is noted again by whoever sends it there: it holds the delivery's row
    /// then, so that what is locked is left alone here.
    EXPIRY_DROP = "/* expiry_drop */ DELETE FROM expiry e USING (SELECT w.at, w.pos FROM (SELECT at, pos FROM expiry WHERE at <= $1 \
        ORDER BY at LIMIT $2) w CROSS JOIN LATERAL (SELECT pos FROM delivery WHERE pos = w.pos AND state <> 0 LIMIT 1 \
        FOR SHARE SKIP LOCKED) d) n WHERE e.at = n.at AND e.pos = n.pos";
    DELIVERIES_TO_MOVE = concat!("/* deliveries_to_move */ SELECT ", delivery_columns!(), " FROM (SELECT * FROM delivery WHERE pos > $2 \
        ORDER BY pos LIMIT $4) d", with_message!(), "WHERE d.queue = $1 AND d.state IN (0, 5) ORDER BY d.pos LIMIT $3");
    POSITION_AFTER = "/* position_after */ SELECT pos FROM (SELECT pos FROM delivery WHERE pos > $1 ORDER BY pos LIMIT $2) w \
        ORDER BY pos DESC LIMIT 1";
    POSITION_NEWEST = "/* position_newest */ SELECT pos FROM delivery ORDER BY pos DESC LIMIT 1";
    KEYS_USED = "/* keys_used */ SELECT k.key, m.fingerprint, m.id, m.accepted_at, d.id, d.queue, d.state FROM unnest($1::bytea[]) AS w(key) \
        CROSS JOIN LATERAL (SELECT key, message FROM dedup WHERE key = w.key LIMIT 1) k \
        CROSS JOIN LATERAL (SELECT * FROM message WHERE seq = k.message LIMIT 1) m LEFT JOIN LATERAL (SELECT id, queue, state, pos FROM delivery \
        WHERE pos >= m.first_pos AND pos < m.first_pos + m.deliveries LIMIT m.deliveries) d ON true ORDER BY m.seq, d.pos";
    MESSAGE_ATTRIBUTES = "/* message_attributes */ SELECT m.seq, m.id, coalesce(p.attributes, m.remains) FROM message m \
        LEFT JOIN payload p ON p.day = m.day AND p.seq = m.seq WHERE m.seq = $1";
    MESSAGES_SMALL = "/* messages_small */ SELECT m.id, m.accepted_at, m.sender_kind, m.sender, m.form, m.size, p.attributes, p.salt, p.data \
        FROM unnest($1::bigint[]) AS w(seq) CROSS JOIN LATERAL (SELECT * FROM message WHERE seq = w.seq AND size <= $2 LIMIT 1) m \
        CROSS JOIN LATERAL (SELECT * FROM payload WHERE day = m.day AND seq = m.seq LIMIT 1) p";
    ADAPTER_STATE_LOAD = "/* adapter_state_load */ SELECT adapter, key, value FROM adapter_state WHERE adapter = $1 ORDER BY key";
    KEYRING_LOAD = "/* keyring_load */ SELECT tree, key, body FROM keyring";
    KEYRING_TREES = "/* keyring_trees */ SELECT tree, key, body FROM keyring WHERE tree = ANY($1::bigint[])";
    /// In one order, so that two that hold some of the same never wait for each other.
    KEYRING_HOLD = "/* keyring_hold */ SELECT tree, key, body FROM keyring WHERE tree = ANY($1::bigint[]) ORDER BY tree FOR UPDATE";
    /// In the same order.
    KEYRING_FOLLOW = "/* keyring_follow */ SELECT tree, key, body FROM keyring ORDER BY tree FOR UPDATE";
    KEYRING_ADD = "/* keyring_add */ INSERT INTO keyring (tree, key, body) SELECT * FROM unnest($1::bigint[], $2::int[], $3::bytea[]) \
        ON CONFLICT (tree) DO NOTHING";
    KEYRING_PUT = "/* keyring_put */ UPDATE keyring k SET key = w.key, body = w.body \
        FROM unnest($1::bigint[], $2::int[], $3::bytea[]) AS w(tree, key, body) WHERE k.tree = w.tree";
    KEYRING_OLDEST = "/* keyring_oldest */ SELECT min(key)::bigint FROM keyring";
    ERASE_BY_ID = "/* erase_by_id */ SELECT seq, true FROM message WHERE id = $1";
    ERASE_BY_SUBJECT = "/* erase_by_subject */ SELECT seq, true FROM message WHERE subject = $1 AND seq > $2 ORDER BY seq LIMIT $3";
    ERASE_BY_APP = "/* erase_by_app */ SELECT seq, sender_kind = 'app' AND sender = $1 FROM message WHERE seq > $2 ORDER BY seq LIMIT $3";
    /// Their rows stay as they are until the end of the transaction.
    ERASE_READ = "/* erase_read */ SELECT m.seq, m.id, m.day, m.fingerprint, m.remains, p.attributes, p.data, m.first_pos, m.deliveries, \
        NOT EXISTS (SELECT 1 FROM delivery d WHERE d.pos >= m.first_pos AND d.pos < m.first_pos + m.deliveries AND d.state IN (0, 1, 2, 3)) \
        FROM unnest($1::bigint[]) AS w(seq) CROSS JOIN LATERAL (SELECT * FROM message WHERE seq = w.seq LIMIT 1 FOR UPDATE) m \
        LEFT JOIN LATERAL (SELECT attributes, data FROM payload WHERE day = m.day AND seq = m.seq LIMIT 1) p ON true ORDER BY m.seq";
    ERASE_READ_SEALED = "/* erase_read_sealed */ SELECT body FROM reply WHERE day = $1 AND delivery >= $2 AND delivery < $2 + $3 \
        UNION ALL SELECT body FROM detail WHERE day = $1 AND delivery >= $2 AND delivery < $2 + $3";
    ERASE_MESSAGE = "/* erase_message */ WITH w AS MATERIALIZED (UPDATE message SET fingerprint = $2, subject = NULL, key = NULL, \
        correlation = NULL, barrier = NULL, remains = $3 WHERE seq = $1 RETURNING seq, id, day, first_pos, deliveries), \
        p AS (DELETE FROM payload y USING w WHERE y.day = w.day AND y.seq = w.seq), \
        i AS (DELETE FROM piece y USING w WHERE y.day = w.day AND y.message = w.id), \
        r AS (DELETE FROM reply y USING w WHERE y.day = w.day AND y.delivery >= w.first_pos AND y.delivery < w.first_pos + w.deliveries), \
        d AS (DELETE FROM detail y USING w WHERE y.day = w.day AND y.delivery >= w.first_pos AND y.delivery < w.first_pos + w.deliveries) \
        SELECT 1 FROM w";
    ADAPTER_STATES = "/* adapter_states */ SELECT adapter, key, value FROM adapter_state";

    // === a turn's transaction ===
    /// The number of a message, by its id; null if it was not added.
    MESSAGE_IS_THERE = "/* message_is_there */ SELECT (SELECT seq FROM message WHERE id = $1)";
    /// Whether a turn was committed, by the numbers of its leaves.
    TURN_IS_THERE = "/* turn_is_there */ SELECT EXISTS (SELECT 1 FROM leaf_new WHERE number >= $1 AND number < $2) \
        OR EXISTS (SELECT 1 FROM leaf_place WHERE number >= $1 AND number < $2)";
    READY_ADD = "/* ready_add */ INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT * FROM unnest($1::int[], $2::smallint[], \
        $3::bigint[], $4::bigint[], $5::bool[])";
    LANE_ENTER = "/* lane_enter */ INSERT INTO lane (queue, lane, pos, home) SELECT * FROM unnest($1::int[], $2::bytea[], $3::bigint[], \
        $4::bytea[])";
    STUCK_DROP = "/* stuck_drop */ DELETE FROM stuck s USING unnest($1::smallint[], $2::bigint[]) AS n(state, pos) \
        WHERE s.state = n.state AND s.pos = n.pos";
    STUCK_ADD = "/* stuck_add */ INSERT INTO stuck (state, pos, queue, held) SELECT * FROM unnest($1::smallint[], $2::bigint[], $3::int[], \
        $4::bool[])";
    EXPIRY_ADD = "/* expiry_add */ INSERT INTO expiry (at, pos) SELECT * FROM unnest($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING";
    /// Takes back what was ready in a lane: one may have come to stand before it since. What is ready in another lane, and stands in
    /// this one besides, is left to that one's owner.
    LANES_CLEAR = "/* lanes_clear */ DELETE FROM ready r USING (SELECT d.queue, l.bucket, d.due, d.pos FROM unnest($1::int[], \
        $2::bytea[], $3::smallint[], $4::int[]) AS l(queue, lane, bucket, width) CROSS JOIN LATERAL (SELECT pos, home FROM lane m \
        WHERE m.queue = l.queue AND m.lane = l.lane ORDER BY pos LIMIT l.width) h CROSS JOIN LATERAL (SELECT queue, due, pos FROM delivery \
        WHERE pos = h.pos LIMIT 1) d WHERE d.due IS NOT NULL AND (h.home IS NULL OR h.home = l.lane)) n WHERE r.queue = n.queue AND r.bucket = n.bucket AND r.due = n.due AND r.pos = n.pos";
    /// Makes the first delivery of a lane ready that is not leased, if it is among the first of the lane's width and all before
    /// it are leased to the queue's newest session, or `sent` by whichever where it has one at a time. A dead or held one in front
    /// stays unready, and so does the rest of its lane; so does what is behind one of which nothing has been reported since its lane's
    /// partner was away. One that stands in two lanes is made ready in the one that is its home, where nobody stands before it in
    /// either; and nobody behind it.
    LANES_ADVANCE = "/* lanes_advance */ INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT l.queue, l.bucket, f.due, f.pos, f.suspect \
        FROM unnest($1::int[], $2::bytea[], $3::smallint[], $4::int[], $5::bigint[], $6::bool[]) AS l(queue, lane, bucket, width, session, succeeds) \
        CROSS JOIN LATERAL (SELECT d.pos, d.due, d.suspect, d.state, d.barrier, h.home FROM (SELECT pos, home FROM lane m \
        WHERE m.queue = l.queue AND m.lane = l.lane ORDER BY pos LIMIT l.width) h CROSS JOIN LATERAL (SELECT pos, due, suspect, state, barrier \
        FROM delivery WHERE pos = h.pos LIMIT 1) d WHERE d.state NOT IN (1, 2) \
        ORDER BY d.pos LIMIT 1) f WHERE f.due IS NOT NULL AND f.state IN (0, 3) AND (l.width = 1 OR NOT EXISTS (SELECT 1 FROM (\
        SELECT pos, home FROM lane m WHERE m.queue = l.queue AND m.lane = l.lane AND m.pos < f.pos ORDER BY pos LIMIT l.width) h \
        CROSS JOIN LATERAL (SELECT session, late, settled_as FROM delivery WHERE pos = h.pos LIMIT 1) e \
        WHERE h.home IS NOT NULL OR e.settled_as LIKE 'retry_lane%' OR (e.session IS DISTINCT FROM l.session AND NOT (e.late AND l.succeeds)))) \
        AND (f.home IS NULL OR f.home = l.lane AND NOT EXISTS (SELECT 1 FROM lane m WHERE m.queue = l.queue \
        AND m.lane IN (f.home, f.barrier) AND m.pos < f.pos)) ON CONFLICT DO NOTHING";
    /// The other lanes in which those are made ready that stand in these besides.
    LANES_OF_HOME = "/* lanes_of_home */ SELECT DISTINCT l.queue, h.home FROM unnest($1::int[], $2::bytea[], $3::int[]) AS l(queue, lane, width) \
        CROSS JOIN LATERAL (SELECT home FROM lane m WHERE m.queue = l.queue AND m.lane = l.lane AND m.home IS NOT NULL \
        ORDER BY pos LIMIT l.width) h WHERE h.home <> l.lane";
    LANES_CHANGED_ADD = "/* lanes_changed_add */ INSERT INTO lane_changed (queue, bucket, lane) SELECT * FROM unnest($1::int[], $2::smallint[], \
        $3::bytea[])";
    LANES_CHANGED_TAKE = "/* lanes_changed_take */ DELETE FROM lane_changed c USING (SELECT DISTINCT w.queue, w.bucket, w.lane \
        FROM unnest($1::int[], $2::smallint[]) AS o(queue, bucket) JOIN lane_changed w ON w.queue = o.queue AND w.bucket = o.bucket LIMIT $3) t \
        WHERE c.queue = t.queue AND c.bucket = t.bucket AND c.lane = t.lane RETURNING c.queue, c.lane";
    STATES_PUT = "/* states_put */ INSERT INTO adapter_state (adapter, key, value) SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[]) \
        ON CONFLICT (adapter, key) DO UPDATE SET value = excluded.value";
    STATES_DROP = "/* states_drop */ DELETE FROM adapter_state s USING unnest($1::text[], $2::text[]) AS n(adapter, key) \
        WHERE s.adapter = n.adapter AND s.key = n.key";
    QUEUE_ADD = "/* queue_add */ INSERT INTO queue (id, name, kind, version, trip_failures, idle_before, session) VALUES ($1, $2, $3, 1, 0, 0, 0)";
    QUEUE_CHANGE = "/* queue_change */ UPDATE queue SET kind = $4, paused_since = $5, trip_since = $6, trip_reason = $7, trip_failures = $8, \
        trip_due = $9, idle_before = $10, idle_since = $11, session = $12, version = version + 1 WHERE id = $1 AND name = $2 AND version = $3";
    DELIVERIES_LEASED_OF = concat!("/* deliveries_leased_of */ SELECT ", delivery_columns!(), " FROM (SELECT DISTINCT unnest(pos) AS pos \
        FROM lease_group) w", delivery_of!("pos"), with_message!(), "WHERE d.queue = $1 AND d.token IS NOT NULL");
    LEASES_LOAD = "/* leases_load */ SELECT id, pos FROM lease_group WHERE epoch = $1";
    LEASES_DROP = "/* leases_drop */ DELETE FROM lease_group WHERE id = ANY($1::bigint[])";

    // === payloads in pieces ===
    /// Begins messages ($2, of which so many pieces, $4, are written now), adds pieces ($6) to those that were begun before ($5), and
    /// writes all of them. Draws no number: the writer's turns may count on nobody doing that.
    PIECES_WRITE = concat!("/* pieces_write */ WITH valid AS MATERIALIZED (SELECT ", store_time!(), " < n.until AS is_valid \
        FROM node n, store s WHERE n.epoch = $1 FOR KEY SHARE OF n), \
        begun AS (INSERT INTO piece_ahead (message, epoch, day, pieces) SELECT unnest($2::bytea[]), $1, unnest($3::int[]), unnest($4::int[])), \
        grown AS (UPDATE piece_ahead a SET pieces = a.pieces + n.pieces FROM (SELECT unnest($5::bytea[]) AS message, \
        unnest($6::int[]) AS pieces) n WHERE a.message = n.message AND a.epoch = $1 AND a.pieces > 0 RETURNING 1), \
        written AS (INSERT INTO piece (day, message, number, bytes) SELECT unnest($7::int[]), unnest($8::bytea[]), unnest($9::int[]), \
        unnest($10::bytea[])) \
        SELECT CASE WHEN NOT coalesce((SELECT is_valid FROM valid), false) THEN refuse('GP001', 'the lease of this node is over') \
        WHEN (SELECT count(*) FROM grown) <> cardinality($5) THEN refuse('40001', 'pieces of a payload are not there') END");
    PIECES_DATE = "/* pieces_date */ WITH a AS (UPDATE piece_ahead SET day = $3 WHERE message = ANY($1::bytea[]) AND epoch = $2 AND day <> $3 \
        RETURNING message), old AS MATERIALIZED (SELECT a.message, o.day FROM piece_ahead o JOIN a ON a.message = o.message) \
        UPDATE piece p SET day = $3 FROM old WHERE p.day = old.day AND p.message = old.message";
    /// From then on no accept claims them, and none is added. While it is being written to, none.
    PIECES_HOLD = "/* pieces_hold */ UPDATE piece_ahead SET pieces = 0 WHERE message = (SELECT message FROM piece_ahead \
        WHERE message = $1 AND epoch = $2 FOR UPDATE SKIP LOCKED) RETURNING day";
    PIECES_DROP = "/* pieces_drop */ DELETE FROM piece WHERE day = $1 AND message = $2 AND number IN (SELECT number FROM piece \
        WHERE day = $1 AND message = $2 ORDER BY number DESC LIMIT $3)";
    PIECES_END = "/* pieces_end */ DELETE FROM piece_ahead WHERE message = $1";
    /// What this node does not know of, and what those have left that are gone. None of these writes any more: whoever took its place
    /// has waited for that.
    PIECES_ADOPT = "/* pieces_adopt */ UPDATE piece_ahead SET epoch = $1 WHERE message IN (SELECT a.message FROM piece_ahead a \
        WHERE a.message <> ALL($2::bytea[]) AND (a.epoch = $1 OR NOT EXISTS (SELECT 1 FROM node n WHERE n.epoch = a.epoch)) \
        FOR UPDATE SKIP LOCKED) RETURNING message";

    WAKE = "/* wake */ SELECT pg_notify($1, $2)";

    // === the audit log's order ===
    ROLE_ADD = "/* role_add */ INSERT INTO role (name) VALUES ($1) ON CONFLICT DO NOTHING";
    /// Who has a role, and whether that one's lease stands. None while another looks.
    ROLE_LOOK = concat!("/* role_look */ SELECT r.epoch, EXISTS (SELECT 1 FROM node n, store s WHERE n.epoch = r.epoch \
        AND n.until > ", store_time!(), ") FROM role r WHERE r.name = $1 \
        FOR UPDATE OF r SKIP LOCKED");
    ROLE_GIVE_UP = "/* role_give_up */ UPDATE role SET epoch = NULL WHERE name = $1 AND epoch = $2";
    ROLE_TAKE = "/* role_take */ UPDATE role SET epoch = $2 WHERE name = $1";
    LOG_SIZE = "/* log_size */ SELECT sequenced, NOT EXISTS (SELECT 1 FROM leaf_new) FROM store";
    TREE_SIZE = "/* tree_size */ SELECT sequenced FROM store";
    LEAVES_PLACE = "/* leaves_place */ WITH n AS (DELETE FROM leaf_new WHERE number IN (SELECT number FROM leaf_new ORDER BY number LIMIT $1) \
        RETURNING number, day, count), s AS (UPDATE store SET sequenced = sequenced + (SELECT coalesce(sum(count), 0) FROM n) \
        RETURNING sequenced - (SELECT coalesce(sum(count), 0) FROM n) AS first), \
        p AS (INSERT INTO leaf_place (first, number, day, count) SELECT s.first + sum(n.count) OVER (ORDER BY n.number) - n.count, \
        n.number, n.day, n.count FROM n, s) SELECT count(*) FROM n";

    // === reconciling with the log ===
    RECONCILE_PLACES = "/* reconcile_places */ SELECT first, number FROM leaf_place ORDER BY first";
    RECONCILE_UNPLACED = "/* reconcile_unplaced */ SELECT l.number, l.bytes FROM leaf_new n JOIN leaf l ON l.day = n.day AND l.number = n.number \
        ORDER BY l.number";
    RECONCILE_QUEUES = "/* reconcile_queues */ SELECT q.id, q.name, c.* FROM queue q CROSS JOIN LATERAL (SELECT \
        coalesce(sum(waiting), 0)::bigint, coalesce(sum(leased), 0)::bigint, coalesce(sum(sending), 0)::bigint, \
        coalesce(sum(sent), 0)::bigint, coalesce(sum(in_doubt), 0)::bigint, coalesce(sum(held), 0)::bigint, \
        coalesce(sum(dead), 0)::bigint, coalesce(sum(suspects), 0)::bigint, coalesce(sum(held_lanes), 0)::bigint, \
        coalesce(sum(bytes), 0)::bigint FROM queue_count WHERE queue = q.id) c";
    RECONCILE_MESSAGES = "/* reconcile_messages */ SELECT seq, id FROM message";
    /// A delivery whose message is gone is read too.
    RECONCILE_DELIVERIES = "/* reconcile_deliveries */ SELECT d.id, d.message, d.queue, d.state, d.attempts, d.series, d.leaves, d.late, \
        d.due, d.lane IS NOT NULL, d.blocks, d.suspect, d.sender, m.size FROM delivery d LEFT JOIN message m ON m.seq = d.message";

    // === backup ===
    PARTITIONED_DAYS = "/* partitioned_days */ SELECT DISTINCT substring(c.relname FROM '[0-9]+$')::integer AS day FROM pg_class c \
        WHERE c.relnamespace = 'gatepost'::regnamespace AND c.relispartition AND c.relname ~ '_[0-9]+$' AND c.relkind = 'r' ORDER BY day";
    TABLES_ARE_THERE = "/* tables_are_there */ SELECT EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = 'gatepost' AND tablename <> 'probe')";

    // === retention ===
    /// Days that have a partition of their own.
    DAYS_MADE = "/* days_made */ SELECT substr(c.relname, 9)::int AS day FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
        WHERE i.inhparent = 'payload'::regclass AND c.relname ~ '^payload_[0-9]+$' ORDER BY day";
    DAY_PURGE_BEGIN = "/* day_purge_begin */ INSERT INTO day_purge AS y (day, through, settled) VALUES ($1, 0, 0) \
        ON CONFLICT (day) DO UPDATE SET through = y.through RETURNING through";
    DAY_PURGE_NOTE = "/* day_purge_note */ UPDATE day_purge SET through = $2, settled = settled + $3 WHERE day = $1";
    DAY_PURGE_END = "/* day_purge_end */ DELETE FROM day_purge WHERE day = $1 RETURNING settled";
    /// These messages have come out of a day: of those that were counted with it.
    DAY_PURGE_LESS = "/* day_purge_less */ UPDATE day_purge y SET settled = settled - (SELECT count(*) FROM unnest($2::bigint[]) AS k(seq) \
        WHERE k.seq <= y.through) WHERE y.day = $1";
    /// Messages that have content under a day. Whose own row is gone counts as unsettled: nobody knows.
    CONTENT_OF_DAY = "/* content_of_day */ SELECT w.seq, coalesce(m.accepted_at, 0), coalesce(m.size, 0), m.accepted_at IS NULL OR EXISTS (SELECT 1 FROM delivery d \
        WHERE d.pos >= m.first_pos AND d.pos < m.first_pos + m.deliveries AND d.state IN (0, 1, 2, 3)) \
        FROM (SELECT seq FROM payload WHERE day = $1 AND seq > $2 ORDER BY seq LIMIT $3) w \
        LEFT JOIN LATERAL (SELECT accepted_at, size, first_pos, deliveries FROM message WHERE seq = w.seq LIMIT 1) m ON true ORDER BY w.seq";
    /// The next day of which there is content at all, and of which there is some outside of the days' own partitions.
    DAY_NEXT = "/* day_next */ SELECT day FROM payload WHERE day > $1 ORDER BY day LIMIT 1";
    DAY_NEXT_OTHER = "/* day_next_other */ SELECT day FROM payload_other WHERE day > $1 ORDER BY day LIMIT 1";
    /// Holds back whoever empties messages, until the end of the transaction.
    RETENTION_HOLD = "/* retention_hold */ SELECT name FROM role WHERE name = $1 FOR SHARE";
    CONTENT_LOOK = "/* content_look */ SELECT m.seq, m.day, p.seq IS NOT NULL FROM unnest($1::bigint[]) AS w(seq) \
        CROSS JOIN LATERAL (SELECT seq, day FROM message WHERE seq = w.seq LIMIT 1) m \
        LEFT JOIN LATERAL (SELECT seq FROM payload WHERE day = m.day AND seq = m.seq LIMIT 1) p ON true";
    /// The days of messages, which stay until the end of the transaction.
    DAYS_HOLD = "/* days_hold */ SELECT m.seq, m.day FROM unnest($1::bigint[]) AS w(seq) \
        CROSS JOIN LATERAL (SELECT seq, day FROM message WHERE seq = w.seq LIMIT 1 FOR SHARE) m";
    MESSAGES_KEEP = "/* messages_keep */ UPDATE message m SET day = 0 FROM unnest($1::bigint[]) AS w(seq) WHERE m.seq = w.seq AND m.day = $2";
    CONTENT_KEEP = "/* content_keep */ WITH w AS MATERIALIZED (SELECT m.id, m.first_pos, m.deliveries FROM unnest($1::bigint[]) AS k(seq) \
        CROSS JOIN LATERAL (SELECT id, first_pos, deliveries FROM message WHERE seq = k.seq LIMIT 1) m), \
        r AS (UPDATE reply y SET day = 0 FROM w WHERE y.day = $2 AND y.delivery >= w.first_pos AND y.delivery < w.first_pos + w.deliveries), \
        d AS (UPDATE detail y SET day = 0 FROM w WHERE y.day = $2 AND y.delivery >= w.first_pos AND y.delivery < w.first_pos + w.deliveries), \
        i AS (UPDATE piece y SET day = 0 FROM w WHERE y.day = $2 AND y.message = w.id) \
        UPDATE payload p SET day = 0 FROM unnest($1::bigint[]) AS k(seq) WHERE p.day = $2 AND p.seq = k.seq";
    REPLIES_DROP = "/* replies_drop */ DELETE FROM reply y USING (SELECT unnest($1::bigint[]) AS pos, unnest($2::bigint[]) AS seq) w \
        CROSS JOIN LATERAL (SELECT day FROM message WHERE seq = w.seq LIMIT 1) m WHERE y.day = m.day AND y.delivery = w.pos";
    PURGE_CONTENT = "/* purge_content */ WITH w AS MATERIALIZED (SELECT m.seq, m.id, m.day, m.first_pos, m.deliveries FROM message m \
        WHERE m.seq = ANY($1::bigint[])), \
        r AS (DELETE FROM reply y USING w WHERE y.day = w.day AND y.delivery >= w.first_pos AND y.delivery < w.first_pos + w.deliveries), \
        d AS (DELETE FROM detail y USING w WHERE y.day = w.day AND y.delivery >= w.first_pos AND y.delivery < w.first_pos + w.deliveries), \
        i AS (DELETE FROM piece y USING w WHERE y.day = w.day AND y.message = w.id) \
        DELETE FROM payload p USING w WHERE p.day = w.day AND p.seq = w.seq";
    /// Messages behind those whose idempotency keys are gone, if they are old enough.
    KEYS_FIND = "/* keys_find */ SELECT w.after, w.seq FROM (SELECT s.keys_gone AS after, m.seq, m.accepted_at FROM store s \
        CROSS JOIN LATERAL (SELECT seq, accepted_at FROM message WHERE seq > s.keys_gone ORDER BY seq LIMIT $2) m) w \
        WHERE w.accepted_at < $1 ORDER BY w.seq DESC LIMIT 1";
    PURGE_KEYS = "/* purge_keys */ DELETE FROM dedup k USING message m WHERE m.seq > $1 AND m.seq <= $2 AND k.key = m.dedup AND k.message = m.seq";
    KEYS_NOTE = "/* keys_note */ UPDATE store SET keys_gone = greatest(keys_gone, $1)";
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Connection as _, Executor as _, PgConnection, SqlSafeStr as _, SqlStr};

    #[tokio::test]
    async fn every_statement_prepares_on_a_fresh_database() {
        let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
        let mut connection = PgConnection::connect(&url).await.unwrap();
        sqlx::raw_sql("CREATE SCHEMA gatepost; SET search_path = gatepost")
            .execute(&mut connection)
            .await
            .unwrap();
        for (_, migration) in MIGRATIONS {
            sqlx::raw_sql(*migration).execute(&mut connection).await.unwrap();
        }
        let mut refused = Vec::new();
        for (name, text) in crate::postgres::commit::whole_texts() {
            if let Err(error) = connection.prepare(sqlx::AssertSqlSafe(text).into_sql_str()).await {
                refused.push(format!("{name}: {error}"));
            }
        }
        for (name, sql) in ALL.iter().chain(crate::postgres::copy::sql::ALL) {
            if let Err(error) = connection.prepare(SqlStr::from_static(sql)).await {
                refused.push(format!("{name}: {error}"));
            }
        }
        assert!(refused.is_empty(), "{refused:#?}");
    }
}
