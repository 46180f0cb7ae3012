//! Every statement of a copy, as a named constant; each begins with its name.

use crate::sql::statements;

/// Run as a script: what is only for the planner cannot be prepared.
pub(super) const TABLES_ANALYZE: &str =
    "ANALYZE message, payload, dedup, delivery, ready, lane, stuck, expiry, detail, reply, leaf, leaf_place";

statements! {
    // === how far it has come ===
    /// Nobody becomes a node while this is held.
    NODES_KEEP_OUT = "/* nodes_keep_out */ LOCK TABLE node IN SHARE ROW EXCLUSIVE MODE";
    COPY_LOOK = "/* copy_look */ SELECT entries, root, part, through FROM copy FOR UPDATE";
    COPY_UNFINISHED = "/* copy_unfinished */ SELECT EXISTS (SELECT 1 FROM copy WHERE part <> 'done')";
    /// The database's own clock, and whether a gateway has ever written anything.
    DATABASE_LOOK = "/* database_look */ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, EXISTS (SELECT 1 FROM node) \
        OR EXISTS (SELECT 1 FROM leaf_new) OR EXISTS (SELECT 1 FROM queue) OR EXISTS (SELECT 1 FROM store WHERE sequenced > 0)";
    COPY_BEGIN = "/* copy_begin */ INSERT INTO copy (id, entries, root, part, through) VALUES (1, $1, $2, $3, $4)";
    COPY_ADVANCE = "/* copy_advance */ UPDATE copy SET part = $3, through = $4 WHERE part = $1 AND through = $2";
    COPY_DROP = "/* copy_drop */ DELETE FROM copy";
    COPY_EMPTY = "/* copy_empty */ TRUNCATE queue, queue_count, message, payload, dedup, delivery, ready, lane, lane_changed, bucket, \
        consumer, lease_group, expiry, stuck, detail, reply, adapter_state, leaf, leaf_new, leaf_place";

    // === its rows ===
    /// Epoch 0 is that of nodes that are gone.
    COPY_QUEUE_COUNTS = "/* copy_queue_counts */ INSERT INTO queue_count (queue, epoch, waiting, leased, sending, sent, in_doubt, held, dead, \
        suspects, held_lanes, bytes) SELECT queue, 0, waiting, leased, sending, sent, in_doubt, held, dead, suspects, held_lanes, bytes \
        FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], \
        $9::bigint[], $10::bigint[], $11::bigint[]) AS n(queue, waiting, leased, sending, sent, in_doubt, held, dead, suspects, \
        held_lanes, bytes)";
    /// Of such a node: the next start takes them over, as from any.
    COPY_LEASES = "/* copy_leases */ INSERT INTO lease_group (id, epoch, pos) VALUES ($1, 0, $2)";
    COPY_DETAILS = "/* copy_details */ INSERT INTO detail (day, delivery, leaf, body) SELECT * FROM unnest($1::int[], $2::bigint[], \
        $3::bigint[], $4::bytea[])";
    COPY_REPLIES = "/* copy_replies */ INSERT INTO reply (day, delivery, body) SELECT * FROM unnest($1::int[], $2::bigint[], $3::bytea[])";
    COPY_MESSAGES = "/* copy_messages */ INSERT INTO message (seq, id, day, accepted_at, sender_kind, sender, kind, form, size, dedup, \
        fingerprint, subject, key, correlation, barrier, first_pos, deliveries, remains) SELECT * FROM unnest($1::bigint[], $2::bytea[], \
        $3::int[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::smallint[], $9::bigint[], $10::bytea[], $11::bytea[], $12::bytea[], \
        $13::bytea[], $14::bytea[], $15::bytea[], $16::bigint[], $17::int[], $18::bytea[])";
    COPY_PAYLOADS = "/* copy_payloads */ INSERT INTO payload (day, seq, attributes, salt, data) SELECT * FROM unnest($1::int[], $2::bigint[], \
        $3::bytea[], $4::bytea[], $5::bytea[])";
    /// Messages come in order, so of two with the same key the later one has it.
    COPY_KEYS = "/* copy_keys */ INSERT INTO dedup (key, message, accepted_at) SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bigint[]) \
        ON CONFLICT (key) DO UPDATE SET message = excluded.message, accepted_at = excluded.accepted_at";
    /// The columns of a delivery as `commit::bind_rows` binds them, then what does not change and what the tables beside it need.
    COPY_DELIVERIES = "/* copy_deliveries */ WITH n AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::int[], $3::bytea[], $4::smallint[], \
        $5::bool[], $6::bigint[], $7::bytea[], $8::bigint[], $9::bigint[], $10::bytea[], $11::bool[], $12::int[], $13::int[], $14::int[], \
        $15::bool[], $16::bool[], $17::bool[], $18::text[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bytea[], $23::text[], \
        $24::bytea[], $25::bytea[], $26::bytea[], $27::bigint[], $28::bigint[], $29::smallint[], $30::bool[], $31::int[]) AS n(pos, queue, lane, state, blocks, due, \
        token, until, session, batch, late, attempts, series, crashes, doubt, suspect, replayed, reason, born, idle_at_birth, changed_at, \
        settled_token, settled_as, leaves, barrier, id, message, expires_at, bucket, is_ready, sender)), \
        l AS (INSERT INTO lane (queue, lane, pos, home) SELECT queue, w.lane, pos, CASE WHEN barrier IS NOT NULL THEN n.lane END \
        FROM n CROSS JOIN LATERAL (VALUES (n.lane), (n.barrier)) AS w(lane) WHERE blocks AND w.lane IS NOT NULL), \
        r AS (INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT queue, bucket, due, pos, suspect FROM n WHERE is_ready), \
        e AS (INSERT INTO expiry (at, pos) SELECT expires_at, pos FROM n WHERE expires_at IS NOT NULL AND state = 0), \
        s AS (INSERT INTO stuck (state, pos, queue, held) SELECT state, pos, queue, state = 3 AND due IS NULL FROM n WHERE state IN (3, 5)) \
        INSERT INTO delivery (pos, queue, lane, state, blocks, due, token, until, session, batch, late, attempts, series, crashes, doubt, \
        suspect, replayed, reason, born, idle_at_birth, changed_at, settled_token, settled_as, leaves, barrier, id, message, expires_at, sender) \
        SELECT pos, queue, lane, state, blocks, due, token, until, session, batch, late, attempts, series, crashes, doubt, suspect, \
        replayed, reason, born, idle_at_birth, changed_at, settled_token, settled_as, leaves, barrier, id, message, expires_at, sender FROM n";
    COPY_ENTRIES = "/* copy_entries */ WITH n AS MATERIALIZED (SELECT * FROM unnest($1::int[], $2::bigint[], $3::int[], $4::bytea[]) \
        AS n(day, number, count, bytes)), p AS (INSERT INTO leaf_place (first, number, day, count) SELECT number, number, day, count FROM n) \
        INSERT INTO leaf (day, number, bytes) SELECT day, number, bytes FROM n";

    // === the end ===
    /// In the order of the original's own counts.
    COPY_COUNTS = "/* copy_counts */ SELECT (SELECT count(*) FROM queue), (SELECT count(*) FROM message), (SELECT count(*) FROM payload), \
        (SELECT count(*) FROM dedup), (SELECT count(*) FROM delivery), (SELECT count(*) FROM ready), (SELECT count(*) FROM lane), \
        (SELECT coalesce(sum(cardinality(pos)), 0)::bigint FROM lease_group), (SELECT count(*) FROM stuck), (SELECT count(*) FROM expiry), \
        (SELECT count(*) FROM detail), (SELECT count(*) FROM reply), (SELECT count(*) FROM adapter_state)";
    COPIED_ENTRIES = "/* copied_entries */ SELECT p.first, p.count, l.bytes FROM leaf_place p CROSS JOIN LATERAL (SELECT bytes FROM leaf \
        WHERE day = p.day AND number = p.number LIMIT 1) l WHERE p.first >= $1 AND p.first < $2 ORDER BY p.first";
    LAST_NUMBERS = "/* last_numbers */ SELECT coalesce((SELECT max(seq) FROM message), 0), coalesce((SELECT max(pos) FROM delivery), 0)";
    TURN_SET = "/* turn_set */ SELECT setval('turn', $1, false)";
    STORE_END = "/* store_end */ UPDATE store SET sequenced = $1, clock = greatest(clock, $2)";
}
