//! Every statement of the readers on PostgreSQL, as a named constant; each begins with its name.
//!
//! What is looked up by its key for each row of something else stands in a `LATERAL` with a `LIMIT`: so it stays a look-up, in the
//! one partition that the day names, however many rows the planner expects. As a plain join it would read a whole table or all
//! partitions wherever that looks cheaper, which it does for a bad guess.

use crate::sql::statements;

/// Of a message `m`, in the order of `MessageColumns`.
macro_rules! message_head {
    () => {
        "m.seq, m.id, m.accepted_at, m.sender_kind, m.sender, m.kind, m.form, m.size"
    };
}

/// A message with what its content has left, or, where that is gone, what remains of its attributes.
macro_rules! message {
    ($name:literal, $data:literal, $which:literal) => {
        concat!(
            "/* ",
            $name,
            " */ SELECT ",
            message_head!(),
            ", coalesce(p.attributes, m.remains) AS attributes, p.salt, ",
            $data,
            " AS data FROM message m LEFT JOIN LATERAL (SELECT attributes, salt, data FROM payload WHERE day = m.day AND seq = m.seq \
             LIMIT 1) p ON true WHERE ",
            $which
        )
    };
}

/// A page of messages: an index gives them in order, the rest of the filter only marks them.
macro_rules! message_walk {
    ($which:literal) => {
        concat!(
            "SELECT ",
            message_head!(),
            ", (($3::text IS NULL OR m.sender = $3) AND ($4::text IS NULL OR m.kind = $4) \
             AND ($5::bigint IS NULL OR m.accepted_at >= $5) AND ($6::bigint IS NULL OR m.accepted_at < $6)) AS matches \
             FROM message m WHERE m.seq < $1",
            $which,
            " ORDER BY m.seq DESC LIMIT $2"
        )
    };
}

/// One page of messages, from one index or of two that have no message in common.
macro_rules! message_page {
    ($name:literal, $which:literal) => {
        concat!("/* ", $name, " */ ", message_walk!($which))
    };
    ($name:literal, $which:literal, $or:literal) => {
        concat!(
            "/* ",
            $name,
            " */ (",
            message_walk!($which),
            ") UNION ALL (",
            message_walk!($or),
            ") ORDER BY seq DESC LIMIT $2"
        )
    };
}

/// A delivery `d` of a message `m` as lists show it.
macro_rules! delivery_item {
    ($name:literal, $from:literal, $which:literal) => {
        concat!(
            "/* ",
            $name,
            " */ SELECT d.pos, d.id, m.id AS message_id, q.name AS queue_name, d.state, d.reason, d.attempts, d.series, d.doubt, \
             d.replayed, m.accepted_at, d.changed_at, d.due FROM ",
            $from,
            " JOIN queue q ON q.id = d.queue WHERE ",
            $which
        )
    };
}

statements! {
    // === data keys ===
    KEYRING_TREE = "/* keyring_tree */ SELECT tree, key, body FROM keyring WHERE tree = $1";

    // === messages ===
    MESSAGE_BY_ID = message!("message_by_id", "NULL::bytea", "m.id = $1");
    MESSAGE_SEQ = "/* message_seq */ SELECT seq FROM message WHERE id = $1";
    /// In one statement with the pieces: between two of them they may be purged, or moved.
    MESSAGE_PAYLOAD = "/* message_payload */ SELECT m.id, p.salt, p.data, i.bytes FROM message m LEFT JOIN LATERAL (SELECT salt, data FROM payload \
        WHERE day = m.day AND seq = m.seq LIMIT 1) p ON true LEFT JOIN LATERAL (SELECT number, bytes FROM piece \
        WHERE day = m.day AND message = m.id ORDER BY number LIMIT 1000000) i ON true WHERE m.seq = $1 ORDER BY i.number";
    MESSAGES_BY_SEQ = message!("messages_by_seq", "CASE WHEN m.size <= $2 THEN p.data END", "m.seq = ANY($1::bigint[])");
    MESSAGE_BY_CORRELATION = message!("message_by_correlation", "p.data", "m.seq = (SELECT min(c.seq) FROM message c \
        WHERE c.correlation = $1 AND c.sender_kind = 'adapter' AND c.sender = $2)");
    MESSAGE_PAGE = message_page!("message_page", "");
    MESSAGE_PAGE_OF_SUBJECT = message_page!("message_page_of_subject", " AND m.subject = $7");
    MESSAGE_PAGE_OF_KEY = message_page!("message_page_of_key", " AND m.key = $7", " AND m.barrier = $7");
    MESSAGE_PAGE_OF_SUBJECT_AND_KEY = message_page!("message_page_of_subject_and_key", " AND m.subject = $7 AND m.key = $8",
        " AND m.subject = $7 AND m.barrier = $8");
    MESSAGE_LEASES = "/* message_leases */ SELECT q.name FROM message m JOIN delivery d ON d.pos >= m.first_pos \
        AND d.pos < m.first_pos + m.deliveries JOIN queue q ON q.id = d.queue WHERE m.id = $1 AND d.token IS NOT NULL";

    // === deliveries ===
    DELIVERY_BY_ID = delivery_item!("delivery_by_id", "delivery d JOIN message m ON m.seq = d.message", "d.id = $1");
    DELIVERIES_OF_MESSAGE = delivery_item!("deliveries_of_message", "message m JOIN delivery d ON d.pos >= m.first_pos \
        AND d.pos < m.first_pos + m.deliveries", "m.seq = $1 ORDER BY d.pos");
    DELIVERY_PAGE = delivery_item!("delivery_page", "delivery d JOIN message m ON m.seq = d.message", "d.pos < $1 \
        AND ($3::smallint IS NULL OR d.state = $3) AND (d.due IS NULL OR NOT $4::boolean) AND ($5::text IS NULL OR q.name = $5) \
        ORDER BY d.pos DESC LIMIT $2");
    /// In doubt or dead, which are few among all that wait.
    DELIVERY_PAGE_STUCK = delivery_item!("delivery_page_stuck", "stuck s CROSS JOIN LATERAL (SELECT * FROM delivery WHERE pos = s.pos \
        LIMIT 1) d JOIN message m ON m.seq = d.message", "s.pos < $1 AND s.state = $3 AND (s.held OR NOT $4::boolean) \
        AND ($5::text IS NULL OR q.name = $5) ORDER BY s.pos DESC LIMIT $2");
    DELIVERY_SENDER = concat!("/* delivery_sender */ SELECT d.message, m.seq IS NOT NULL AS found, ", message_head!(),
        " FROM delivery d LEFT JOIN message m ON m.seq = d.message WHERE d.id = $1");
    DELIVERY_LEAVES = "/* delivery_leaves */ SELECT pos, id, leaves FROM delivery WHERE id = $1";
    DELIVERY_LEAVES_OF_MESSAGE = "/* delivery_leaves_of_message */ SELECT d.pos, d.id, d.leaves FROM message m JOIN delivery d \
        ON d.pos >= m.first_pos AND d.pos < m.first_pos + m.deliveries WHERE m.seq = $1 ORDER BY d.pos";
    DELIVERY_DETAILS = "/* delivery_details */ SELECT t.leaf, t.body FROM delivery d JOIN message m ON m.seq = d.message \
        JOIN detail t ON t.day = m.day AND t.delivery = d.pos WHERE d.pos = $1";
    DELIVERY_REPLY = "/* delivery_reply */ SELECT r.body FROM delivery d JOIN message m ON m.seq = d.message \
        JOIN reply r ON r.day = m.day AND r.delivery = d.pos WHERE d.pos = $1";

    // === queues ===
    QUEUE_ID = "/* queue_id */ SELECT id FROM queue WHERE name = $1";
    /// The first of each bucket, since only within one are they in the order of their time.
    QUEUE_OLDEST_READY = "/* queue_oldest_ready */ SELECT min(r.due) AS at FROM generate_series(0, 63) AS b(bucket) \
        CROSS JOIN LATERAL (SELECT due FROM ready WHERE queue = $1 AND bucket = b.bucket ORDER BY due LIMIT 1) r";
    /// Among those of each bucket that are due next. A token begins with the node that gave it.
    QUEUE_AWAY = "/* queue_away */ SELECT d.id, d.settled_token FROM (SELECT r.pos FROM generate_series(0, 63) AS b(bucket) \
        CROSS JOIN LATERAL (SELECT due, pos FROM ready WHERE queue = $1 AND bucket = b.bucket AND due > $2 ORDER BY due, pos LIMIT 80) r) r \
        CROSS JOIN LATERAL (SELECT id, settled_token, settled_as FROM delivery WHERE pos = r.pos LIMIT 1) d \
        WHERE d.settled_as LIKE 'retry_lane%' AND ($4::int IS NULL OR NOT EXISTS (SELECT 1 FROM node n WHERE n.epoch <> $4 \
        AND int4send(n.epoch) = substring(d.settled_token FROM 1 FOR 4))) LIMIT $3";
    /// Among the thousand that are ready first, unless more than 64 of them are in one bucket, which only makes it look at others; a
    /// thousand leased ones, found among the ten thousand of the oldest commits; and the thousand in doubt that came first.
    QUEUE_OLDEST_BORN = "/* queue_oldest_born */ SELECT min(born) AS at FROM (\
        (SELECT d.born FROM (SELECT r.pos FROM generate_series(0, 63) AS b(bucket) CROSS JOIN LATERAL (SELECT due, pos FROM ready \
        WHERE queue = $1 AND bucket = b.bucket ORDER BY due, pos LIMIT 64) r ORDER BY r.due, r.pos LIMIT 1000) r \
        CROSS JOIN LATERAL (SELECT born FROM delivery WHERE pos = r.pos LIMIT 1) d) \
        UNION ALL (SELECT d.born FROM (SELECT unnest(pos) AS pos FROM lease_group ORDER BY id LIMIT 10000) l \
        CROSS JOIN LATERAL (SELECT born FROM delivery WHERE pos = l.pos AND queue = $1 AND token IS NOT NULL LIMIT 1) d LIMIT 1000) \
        UNION ALL (SELECT d.born FROM (SELECT pos FROM stuck WHERE state = 3 AND queue = $1 ORDER BY pos LIMIT 1000) s \
        CROSS JOIN LATERAL (SELECT born FROM delivery WHERE pos = s.pos LIMIT 1) d)) AS looked_at";

    // === the audit log ===
    NODES = "/* nodes */ SELECT n.name, n.epoch, n.version, n.since, n.until, \
        ARRAY(SELECT r.name FROM role r WHERE r.epoch = n.epoch ORDER BY r.name) AS roles, b.queues, b.counts \
        FROM node n CROSS JOIN LATERAL (SELECT coalesce(array_agg(q.name ORDER BY q.name), '{}') AS queues, \
        coalesce(array_agg(c.count ORDER BY q.name), '{}') AS counts FROM (SELECT queue, count(*)::int AS count FROM bucket \
        WHERE epoch = n.epoch GROUP BY queue) c JOIN queue q ON q.id = c.queue) b ORDER BY n.name, n.since, n.epoch";
    TREE_SIZE = "/* tree_size */ SELECT sequenced FROM store";
    /// As [`LEAVES`], without what is in them.
    LEAVES_PLACED = "/* leaves_placed */ SELECT first, number, count FROM leaf_place \
        WHERE first >= coalesce((SELECT max(b.first) FROM leaf_place b WHERE b.first <= $1), $1) AND first < $2 ORDER BY first";
    /// From the run in which $1 stands, if there is one.
    LEAVES = "/* leaves */ SELECT p.first, p.count, l.bytes FROM leaf_place p CROSS JOIN LATERAL (SELECT bytes FROM leaf \
        WHERE day = p.day AND number = p.number LIMIT 1) l \
        WHERE p.first >= coalesce((SELECT max(b.first) FROM leaf_place b WHERE b.first <= $1), $1) AND p.first < $2 ORDER BY p.first";
    LEAF_INDICES = "/* leaf_indices */ SELECT CASE WHEN n.number < p.number + p.count THEN p.first + n.number - p.number END AS index \
        FROM unnest($1::bigint[]) WITH ORDINALITY AS n(number, nth) LEFT JOIN LATERAL (SELECT first, number, count FROM leaf_place \
        WHERE number <= n.number ORDER BY number DESC LIMIT 1) p ON true ORDER BY n.nth";
    /// The run stands in one of the two tables, whenever this looks.
    LEAF_BY_NUMBER = "/* leaf_by_number */ SELECT r.number, r.count, l.bytes FROM (\
        (SELECT number, day, count FROM leaf_new WHERE number <= $1 ORDER BY number DESC LIMIT 1) UNION ALL \
        (SELECT number, day, count FROM leaf_place WHERE number <= $1 ORDER BY number DESC LIMIT 1)) r CROSS JOIN LATERAL (SELECT bytes \
        FROM leaf WHERE day = r.day AND number = r.number LIMIT 1) l WHERE r.number + r.count > $1";
}
