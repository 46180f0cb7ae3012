//! Every statement, as a named constant; each begins with its name, so that a database's own logs name it too.
//!
//! A test prepares each of them on a freshly migrated database.

pub(crate) const MIGRATIONS: &[(i64, &str)] = &[
    (1, include_str!("../../../migrations/sqlite/0001_foundation.sql")),
    (2, include_str!("../../../migrations/sqlite/0002_pieces.sql")),
    (3, include_str!("../../../migrations/sqlite/0003_barriers.sql")),
    (4, include_str!("../../../migrations/sqlite/0004_second_keys.sql")),
];

/// What a delivery's sum covers, and the sum.
macro_rules! delivery_summed {
    () => {
        "d.pos, d.id, d.message, d.queue, d.lane, d.state, d.blocks, d.due, d.token, d.until, d.session, d.batch, d.late, \
         d.attempts, d.series, d.crashes, d.doubt, d.suspect, d.replayed, d.reason, d.expires_at, d.born, d.idle_at_birth, \
         d.changed_at, d.settled_token, d.settled_as, d.leaves, d.sender, d.barrier, d.sum"
    };
}

/// What a message's first sum covers, and the sum.
macro_rules! message_summed {
    () => {
        "seq, id, accepted_at, sender_kind, sender, kind, form, size, sum"
    };
}

/// Columns of a delivery with what the writer needs of its message, in the order that `row::Row` reads.
macro_rules! delivery_columns {
    () => {
        concat!(delivery_summed!(), ", d.ready, m.id AS message_id, m.salt, m.size, m.accepted_at")
    };
}

/// A delivery as lists show it.
macro_rules! delivery_item {
    () => {
        concat!(
            "SELECT ",
            delivery_summed!(),
            ", m.id AS message_id, q.name AS queue_name, m.accepted_at FROM delivery d JOIN message m ON m.seq = d.message \
             JOIN queue q ON q.id = d.queue"
        )
    };
}

macro_rules! deliveries_where {
    ($name:literal, $condition:literal) => {
        concat!(
            "/* ",
            $name,
            " */ SELECT ",
            delivery_columns!(),
            // A delivery whose message is not there is a damaged row, not none.
            " FROM delivery d LEFT JOIN message m ON m.seq = d.message WHERE ",
            $condition
        )
    };
}

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)+) => {
        $($(#[$doc])* pub(crate) const $name: &str = $sql;)+

        #[cfg(test)]
        pub(crate) const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),+];
    };
}
pub(crate) use statements;

statements! {
    // === the writer's reads ===
    STORE_LOAD = "/* store_load */ SELECT id, clock, instance_epoch, leaf_count, keyed, store_key, sum FROM store";
    SEQUENCES_LOAD = "/* sequences_load */ SELECT coalesce((SELECT max(seq) FROM message), 0), \
        coalesce((SELECT max(pos) FROM delivery), 0)";
    QUEUES_LOAD = "/* queues_load */ SELECT id, name, kind, paused_since, trip_since, trip_reason, trip_failures, trip_due, \
        idle_before, idle_since, session, waiting, leased, sending, sent, in_doubt, held, dead, suspects, held_lanes, bytes, sum \
        FROM queue ORDER BY id";
    DELIVERY_BY_ID = deliveries_where!("delivery_by_id", "d.id = ?1");
    #[cfg(test)]
    DELIVERIES_ALL = deliveries_where!("deliveries_all", "true ORDER BY d.pos");
    DELIVERIES_LEASED = deliveries_where!("deliveries_leased", "d.token IS NOT NULL");
    DELIVERY_BY_POS = deliveries_where!("delivery_by_pos", "d.pos = ?1");
    DELIVERIES_READY = "/* deliveries_ready */ SELECT pos, ready FROM delivery \
        WHERE queue = ?1 AND ready IS NOT NULL AND ready <= ?2 ORDER BY ready, pos LIMIT ?3";
    DELIVERIES_READY_SUSPECT = "/* deliveries_ready_suspect */ SELECT pos, ready FROM delivery \
        WHERE queue = ?1 AND suspect = 1 AND ready IS NOT NULL AND ready <= ?2 ORDER BY ready, pos LIMIT ?3";
    /// Of both kinds: those whose first lane it is, and those whose second.
    DELIVERIES_OF_LANE = concat!(
        deliveries_where!("deliveries_of_lane", "d.queue = ?1 AND d.lane = ?2 AND d.blocks = 1"),
        " UNION ALL ",
        deliveries_where!("and_beside", "d.queue = ?1 AND d.barrier = ?2 AND d.blocks = 1"),
        " ORDER BY 1 LIMIT ?3");
    DELIVERIES_PAST_EXPIRY = deliveries_where!("deliveries_past_expiry",
        "d.state = 0 AND d.expires_at IS NOT NULL AND d.expires_at <= ?1 ORDER BY d.expires_at LIMIT ?2");
    /// What waits or is dead, in accept order. By position: nothing is indexed for what operators do once in a year.
    DELIVERIES_TO_MOVE = deliveries_where!("deliveries_to_move",
        "d.pos > ?2 AND d.pos <= ?3 AND +d.queue = ?1 AND +d.state IN (0, 5) ORDER BY d.pos LIMIT ?4");
    LANE_STUCK = "/* lane_stuck */ SELECT pos FROM delivery WHERE queue = ?1 AND lane = ?2 AND blocks = 1 AND pos <= ?3 \
        AND (+state IN (1, 2, 3) OR +pos <= ?4) UNION ALL SELECT pos FROM delivery WHERE queue = ?1 AND barrier = ?2 AND blocks = 1 \
        AND pos <= ?3 AND (+state IN (1, 2, 3) OR +pos <= ?4) LIMIT 1";
    MESSAGE_ATTRIBUTES = "/* message_attributes */ SELECT id, attributes FROM message WHERE seq = ?1";
    READY_NEXT = "/* ready_next */ SELECT ready FROM delivery WHERE queue = ?1 AND ready IS NOT NULL AND ready > ?2 \
        ORDER BY ready LIMIT 1";
    KEYS_LOAD = "/* keys_load */ SELECT seq, dedup, fingerprint, subject, key, correlation, barrier, sum_indexed FROM message WHERE seq > ?1 \
        ORDER BY seq LIMIT ?2";
    KEY_FIND = "/* key_find */ SELECT message FROM dedup WHERE key = ?1";
    KEY_OF_MESSAGE = concat!("/* key_of_message */ SELECT seq, dedup, fingerprint, subject, key, correlation, barrier, sum_indexed, ",
        message_summed!(), " FROM message WHERE seq = ?1");
    DELIVERIES_OF_MESSAGE = concat!("/* deliveries_of_message */ SELECT ", delivery_summed!(), " FROM delivery d WHERE d.message = ?1 ORDER BY d.pos");
    ADAPTER_STATE_LOAD = "/* adapter_state_load */ SELECT adapter, key, value FROM adapter_state WHERE adapter = ?1 ORDER BY key";
    KEYRING_LOAD = "/* keyring_load */ SELECT tree, key, body, sum FROM keyring UNION ALL SELECT tree, key, body, sum FROM keyring_copy";
    KEYRING_TREE = "/* keyring_tree */ SELECT tree, key, body FROM keyring WHERE tree = $1";
    KEYRING_ADD = "/* keyring_add */ INSERT OR IGNORE INTO keyring (tree, key, body, sum) VALUES (?1, ?2, ?3, ?4)";
    KEYRING_COPY_ADD = "/* keyring_copy_add */ INSERT OR IGNORE INTO keyring_copy (tree, key, body, sum) VALUES (?1, ?2, ?3, ?4)";
    KEYRING_PUT = "/* keyring_put */ UPDATE keyring SET key = ?2, body = ?3, sum = ?4 WHERE tree = ?1";
    KEYRING_COPY_PUT = "/* keyring_copy_put */ UPDATE keyring_copy SET key = ?2, body = ?3, sum = ?4 WHERE tree = ?1";
    KEYRING_OLDEST = "/* keyring_oldest */ SELECT min(key) FROM (SELECT key FROM keyring UNION ALL SELECT key FROM keyring_copy)";
    ADAPTER_STATES = "/* adapter_states */ SELECT adapter, key, value FROM adapter_state";

    PIECES_AHEAD = "/* pieces_ahead */ SELECT message FROM piece WHERE number = 0";
    PIECES_OF_MESSAGE = "/* pieces_of_message */ SELECT bytes FROM piece WHERE message = ?1 AND number > 0 ORDER BY number";

    // === a turn's transaction ===
    BEGIN = "/* begin */ BEGIN IMMEDIATE";
    COMMIT = "/* commit */ COMMIT";
    MESSAGE_ADD = "/* message_add */ INSERT INTO message (seq, id, accepted_at, sender_kind, sender, kind, form, size, sum, dedup, \
        fingerprint, subject, key, correlation, barrier, sum_indexed, attributes, salt, data) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?18, ?9, ?10, ?11, ?12, ?13, ?14, ?19, ?15, ?16, ?17)";
    PIECE_ADD = "/* piece_add */ INSERT INTO piece (message, number, bytes, sum) VALUES (?1, ?2, ?3, ?4)";
    /// With the accept of their message.
    PIECES_CLAIM = "/* pieces_claim */ DELETE FROM piece WHERE message = ?1 AND number = 0";
    /// A key whose window has passed may stand there still; the newer message takes it over.
    KEY_PUT = "/* key_put */ INSERT OR REPLACE INTO dedup (key, message) VALUES (?1, ?2)";
    DELIVERY_ADD = "/* delivery_add */ INSERT INTO delivery (pos, id, message, queue, lane, state, blocks, due, token, until, session, \
        batch, late, attempts, series, crashes, doubt, suspect, replayed, reason, expires_at, born, idle_at_birth, changed_at, \
        settled_token, settled_as, leaves, sender, barrier, ready, sum) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, \
        ?25, ?26, ?27, ?28, ?29, ?30, ?31)";
    /// Its parameters are those of the new row, in the table's order, and the old state and token.
    DELIVERY_CHANGE = "/* delivery_change */ UPDATE delivery SET lane = ?5, state = ?6, blocks = ?7, due = ?8, token = ?9, until = ?10, \
        session = ?11, batch = ?12, late = ?13, attempts = ?14, series = ?15, crashes = ?16, doubt = ?17, suspect = ?18, \
        replayed = ?19, reason = ?20, born = ?22, idle_at_birth = ?23, changed_at = ?24, settled_token = ?25, settled_as = ?26, \
        leaves = ?27, barrier = ?29, ready = ?30, sum = ?31 WHERE pos = ?1 AND state = ?32 AND token IS ?33";
    /// Its parameters are those of [`DELIVERY_CHANGE`]. The columns that every step of an ordinary delivery changes; the others
    /// stay, and so do their indices and checks.
    DELIVERY_STEP = "/* delivery_step */ UPDATE delivery SET state = ?6, blocks = ?7, due = ?8, token = ?9, until = ?10, \
        session = ?11, batch = ?12, attempts = ?14, changed_at = ?24, settled_token = ?25, settled_as = ?26, leaves = ?27, \
        ready = ?30, sum = ?31 WHERE pos = ?1 AND state = ?32 AND token IS ?33";
    /// Before the change of a delivery that is at another destination afterwards: its lane there is part of the change.
    DELIVERY_MOVE = "/* delivery_move */ UPDATE delivery SET queue = ?3, lane = NULL, barrier = NULL, ready = NULL \
        WHERE pos = ?1 AND queue = ?2";
    /// Takes back what was ready in a windowed lane: the one in front of it may have gone back since. Whatever was made ready
    /// stands within the lane's width of its head, since deliveries only ever leave from before it.
    LANE_CLEAR = "/* lane_clear */ UPDATE OR ROLLBACK delivery SET ready = NULL WHERE ready IS NOT NULL AND pos IN (\
        SELECT d.pos FROM delivery d WHERE d.queue = ?1 AND d.lane = ?2 AND d.blocks = 1 ORDER BY d.pos LIMIT ?3)";
    LANE_CLEAR_BESIDE = "/* lane_clear_beside */ UPDATE OR ROLLBACK delivery SET ready = NULL WHERE ready IS NOT NULL AND pos IN (\
        SELECT d.pos FROM delivery d WHERE d.queue = ?1 AND d.barrier = ?2 AND d.blocks = 1 ORDER BY d.pos LIMIT ?3)";
    /// Makes the first delivery of a lane ready that is not leased, if fewer than the lane's width stand before it, all
    /// leased to the queue's newest session, or `sent` by whichever where it has one at a time (?5). A dead or held one in front stays
    /// unready, and so does the rest of its lane; so does what is behind one of which nothing has been reported since its lane's partner
    /// was away. One that stands in another lane besides is made ready only where nobody stands before it in either, and nobody behind it.
    LANE_ADVANCE = "/* lane_advance */ UPDATE OR ROLLBACK delivery AS f SET ready = due WHERE f.due IS NOT NULL AND f.ready IS NULL \
        AND f.state IN (0, 3) AND f.pos = min(\
        coalesce((SELECT d.pos FROM delivery d WHERE d.queue = ?1 AND d.lane = ?2 AND d.blocks = 1 AND d.state NOT IN (1, 2) \
        ORDER BY d.pos LIMIT 1), 9223372036854775807), \
        coalesce((SELECT d.pos FROM delivery d WHERE d.queue = ?1 AND d.barrier = ?2 AND d.blocks = 1 AND d.state NOT IN (1, 2) \
        ORDER BY d.pos LIMIT 1), 9223372036854775807)) \
        AND (SELECT count(*) + coalesce(sum((e.session IS NOT ?4 AND NOT (e.late AND ?5)) OR e.barrier IS NOT NULL OR ifnull(e.settled_as GLOB 'retry_lane*', 0)), 0) * ?3 \
        FROM delivery e WHERE e.queue = ?1 AND e.lane = ?2 AND e.blocks = 1 AND e.pos < f.pos) < ?3 \
        AND NOT EXISTS (SELECT 1 FROM delivery e WHERE e.queue = ?1 AND e.barrier = ?2 AND e.blocks = 1 AND e.pos < f.pos) \
        AND (f.barrier IS NULL OR NOT EXISTS (SELECT 1 FROM delivery e WHERE e.queue = ?1 AND e.lane IN (f.lane, f.barrier) \
        AND e.blocks = 1 AND e.pos < f.pos) AND NOT EXISTS (SELECT 1 FROM delivery e WHERE e.queue = ?1 \
        AND e.barrier IN (f.lane, f.barrier) AND e.blocks = 1 AND e.pos < f.pos))";
    LEAVES_ADD = "/* leaves_add */ INSERT INTO leaf (idx, bytes, sum) VALUES (?1, ?2, ?3)";
    DETAIL_ADD = "/* detail_add */ INSERT INTO detail (leaf, delivery, body) VALUES (?1, ?2, ?3)";
    REPLY_DROP = "/* reply_drop */ DELETE FROM reply WHERE delivery = ?1";
    REPLY_PUT = "/* reply_put */ INSERT OR REPLACE INTO reply (delivery, body) VALUES (?1, ?2)";
    STATE_PUT = "/* state_put */ INSERT OR REPLACE INTO adapter_state (adapter, key, value) VALUES (?1, ?2, ?3)";
    STATE_DROP = "/* state_drop */ DELETE FROM adapter_state WHERE adapter = ?1 AND key = ?2";
    QUEUE_CHANGE = "/* queue_change */ UPDATE queue SET kind = ?3, paused_since = ?4, trip_since = ?5, trip_reason = ?6, \
        trip_failures = ?7, trip_due = ?8, idle_before = ?9, idle_since = ?10, session = ?11, waiting = ?12, leased = ?13, sending = ?14, \
        sent = ?15, in_doubt = ?16, held = ?17, dead = ?18, suspects = ?19, held_lanes = ?20, bytes = ?21, sum = ?22 \
        WHERE id = ?1 AND name = ?2";
    STORE_CHANGE = "/* store_change */ UPDATE store SET clock = ?2, instance_epoch = ?3, leaf_count = ?4, keyed = ?5, store_key = ?6, \
        sum = ?7 WHERE id = ?1 AND leaf_count = ?8";

    // === reconciling with the log ===
    RECONCILE_QUEUES = "/* reconcile_queues */ SELECT id, name, waiting, leased, sending, sent, in_doubt, held, dead, suspects, \
        held_lanes, bytes FROM queue";
    RECONCILE_MESSAGES = "/* reconcile_messages */ SELECT seq, id FROM message";
    /// A delivery whose message is gone is read too.
    RECONCILE_DELIVERIES = "/* reconcile_deliveries */ SELECT d.id, d.message, d.queue, d.state, d.attempts, d.series, d.leaves, d.late, \
        d.due, d.lane IS NOT NULL AS in_lane, d.blocks, d.suspect, d.sender, m.size FROM delivery d LEFT JOIN message m ON m.seq = d.message";

    // === copied into another database ===
    COPY_MESSAGES = concat!("/* copy_messages */ SELECT ", message_summed!(), ", seq, dedup, fingerprint, subject, key, correlation, \
        barrier, sum_indexed, attributes, salt, data, EXISTS (SELECT 1 FROM dedup k WHERE k.key = m.dedup AND k.message = m.seq), \
        (SELECT min(pos) FROM delivery d WHERE d.message = m.seq), (SELECT max(pos) FROM delivery d WHERE d.message = m.seq) \
        FROM message m WHERE seq > ?1 ORDER BY seq");
    /// A delivery of another message among those of this one.
    COPY_STRANGER = "/* copy_stranger */ SELECT pos FROM delivery WHERE pos BETWEEN ?2 AND ?3 AND message <> ?1 LIMIT 1";
    COPY_DELIVERIES = concat!("/* copy_deliveries */ SELECT d.ready IS NOT NULL, ", delivery_columns!(), " FROM delivery d \
        LEFT JOIN message m ON m.seq = d.message WHERE d.pos > ?1 ORDER BY d.pos");
    COPY_DETAILS = "/* copy_details */ SELECT t.leaf, t.delivery, t.body, m.accepted_at FROM detail t LEFT JOIN delivery d ON d.pos = t.delivery \
        LEFT JOIN message m ON m.seq = d.message WHERE t.leaf > ?1 ORDER BY t.leaf";
    COPY_REPLIES = "/* copy_replies */ SELECT r.delivery, r.body, m.accepted_at FROM reply r LEFT JOIN delivery d ON d.pos = r.delivery \
        LEFT JOIN message m ON m.seq = d.message WHERE r.delivery > ?1 ORDER BY r.delivery";
    COPY_STATES = "/* copy_states */ SELECT adapter, key, value FROM adapter_state ORDER BY adapter, key LIMIT -1 OFFSET ?1";
    /// The largest number of each part, in the order of the parts that have numbers.
    COPY_LAST = "/* copy_last */ SELECT coalesce((SELECT max(seq) FROM message), 0), coalesce((SELECT max(pos) FROM delivery), 0), \
        coalesce((SELECT max(leaf) FROM detail), 0), coalesce((SELECT max(delivery) FROM reply), 0), \
        (SELECT count(*) FROM adapter_state)";
    /// What must be there in the end, in the order of the copy's own counts. Keys that are not in their index yet stand in messages.
    COPY_COUNTS = "/* copy_counts */ SELECT (SELECT count(*) FROM queue), (SELECT count(*) FROM message), \
        (SELECT count(*) FROM message WHERE data IS NOT NULL), \
        (SELECT count(*) FROM dedup k JOIN message m ON m.seq = k.message AND m.dedup = k.key) + (SELECT count(DISTINCT m.dedup) \
        FROM message m WHERE m.seq > ?1 AND NOT EXISTS (SELECT 1 FROM dedup k JOIN message u ON u.seq = k.message AND u.dedup = k.key \
        WHERE k.key = m.dedup)), \
        (SELECT count(*) FROM delivery), (SELECT count(*) FROM delivery WHERE ready IS NOT NULL), \
        (SELECT count(lane) + count(barrier) FROM delivery WHERE blocks = 1), (SELECT count(*) FROM delivery WHERE token IS NOT NULL), \
        (SELECT count(*) FROM delivery WHERE state IN (3, 5)), \
        (SELECT count(*) FROM delivery WHERE state = 0 AND expires_at IS NOT NULL), \
        (SELECT count(*) FROM detail), (SELECT count(*) FROM reply), (SELECT count(*) FROM adapter_state)";

    // === single writes beside it ===
    STORE_START = "/* store_start */ INSERT OR REPLACE INTO store (id, clock, instance_epoch, leaf_count, keyed, store_key, sum) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    QUEUE_ADD = "/* queue_add */ INSERT INTO queue (id, name, kind, paused_since, trip_since, trip_reason, trip_failures, trip_due, \
        idle_before, idle_since, session, waiting, leased, sending, sent, in_doubt, held, dead, suspects, held_lanes, bytes, sum) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";
    LEAVES_DROP = "/* leaves_drop */ DELETE FROM leaf WHERE idx < ?1";
    PURGE_FIND = "/* purge_find */ SELECT seq FROM (SELECT seq, accepted_at FROM message WHERE seq > ?1 \
        AND seq <= ?4 ORDER BY seq LIMIT ?3) WHERE accepted_at < ?2";
    PURGE_READ = "/* purge_read */ SELECT seq, id, attributes FROM message WHERE seq > ?1 AND seq <= ?2 AND data IS NOT NULL \
        AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = message.seq AND d.state IN (0, 1, 2, 3)) ORDER BY seq";
    PURGE_MESSAGE = "/* purge_message */ UPDATE message SET data = NULL, salt = NULL, attributes = ?2 WHERE seq = ?1";
    PURGE_REPLIES = "/* purge_replies */ DELETE FROM reply WHERE delivery IN (SELECT d.pos FROM delivery d JOIN message m ON m.seq = d.message \
        WHERE m.seq > ?1 AND m.seq <= ?2 AND m.data IS NULL)";
    PURGE_DETAILS = "/* purge_details */ DELETE FROM detail WHERE delivery IN (SELECT d.pos FROM delivery d JOIN message m ON m.seq = d.message \
        WHERE m.seq > ?1 AND m.seq <= ?2 AND m.data IS NULL)";
    ERASE_BY_ID = "/* erase_by_id */ SELECT seq, true FROM message WHERE id = ?1";
    ERASE_BY_SUBJECT = "/* erase_by_subject */ SELECT seq, true FROM message WHERE subject = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";
    ERASE_BY_APP = "/* erase_by_app */ SELECT seq, sender_kind = 'app' AND sender = ?1 FROM message WHERE seq > ?2 ORDER BY seq LIMIT ?3";
    ERASE_READ = "/* erase_read */ SELECT id, dedup, fingerprint, attributes, data, \
        NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.seq AND d.state IN (0, 1, 2, 3)) FROM message m WHERE m.seq = ?1";
    ERASE_READ_SEALED = "/* erase_read_sealed */ SELECT body FROM reply WHERE delivery IN (SELECT pos FROM delivery WHERE message = ?1) \
        UNION ALL SELECT body FROM detail WHERE delivery IN (SELECT pos FROM delivery WHERE message = ?1)";
    ERASE_MESSAGE = "/* erase_message */ UPDATE message SET fingerprint = ?2, subject = NULL, key = NULL, correlation = NULL, \
        barrier = NULL, sum_indexed = ?3, attributes = ?4, salt = NULL, data = NULL WHERE seq = ?1";
    ERASE_REPLIES = "/* erase_replies */ DELETE FROM reply WHERE delivery IN (SELECT pos FROM delivery WHERE message = ?1)";
    ERASE_DETAILS = "/* erase_details */ DELETE FROM detail WHERE delivery IN (SELECT pos FROM delivery WHERE message = ?1)";
    PURGE_PIECES = "/* purge_pieces */ DELETE FROM piece WHERE message = (SELECT id FROM message WHERE seq = ?1)";
    /// Those of an accepted message stay. The last ones first: the row that says that they are to go goes last.
    PIECES_DROP = "/* pieces_drop */ DELETE FROM piece WHERE pos IN (SELECT pos FROM piece WHERE message = ?1 \
        AND EXISTS (SELECT 1 FROM piece WHERE message = ?1 AND number = 0) ORDER BY number DESC LIMIT ?2)";
    PURGE_DEDUP = "/* purge_dedup */ DELETE FROM dedup WHERE key IN (SELECT dedup FROM message WHERE seq > ?1 AND seq <= ?2) \
        AND message > ?1 AND message <= ?2";

    // === reads for everybody else ===
    MESSAGE_BY_ID = concat!("/* message_by_id */ SELECT ", message_summed!(), ", attributes, salt FROM message WHERE id = $1");
    /// In one statement with the pieces: between two of them they may be purged.
    MESSAGE_DATA = "/* message_data */ SELECT m.id, m.salt, m.data, p.bytes FROM message m \
        LEFT JOIN piece p ON p.message = m.id AND p.number > 0 WHERE m.seq = $1 ORDER BY p.number";
    /// For the writer too, which binds by number.
    MESSAGES_BY_SEQ = concat!("/* messages_by_seq */ SELECT ", message_summed!(), ", attributes, salt, \
        CASE WHEN size <= ?3 THEN data END AS data FROM message WHERE seq IN (WITH RECURSIVE k(i) AS \
        (SELECT 0 WHERE ?2 > 0 UNION ALL SELECT i + 1 FROM k WHERE i + 1 < ?2) \
        SELECT CAST(substr(?1, i * 20 + 1, 20) AS INTEGER) FROM k)");
    MESSAGE_LEASED_IN = "/* message_leased_in */ SELECT q.name FROM delivery d JOIN message m ON m.seq = d.message \
        JOIN queue q ON q.id = d.queue WHERE m.id = $1 AND d.token IS NOT NULL";
    DELIVERY_ITEMS_OF_MESSAGE = concat!("/* delivery_items_of_message */ ", delivery_item!(), " WHERE d.message = $1 ORDER BY d.pos");
    DELIVERY_ITEM = concat!("/* delivery_item */ ", delivery_item!(), " WHERE d.id = $1");
    DELIVERY_LEAVES = concat!("/* delivery_leaves */ SELECT ", delivery_summed!(), " FROM delivery d WHERE d.id = $1");
    SENDER_OF_MESSAGE = concat!("/* sender_of_message */ SELECT ", message_summed!(), " FROM message WHERE seq = $1");
    DELIVERIES_LEAVES_OF_MESSAGE = concat!("/* deliveries_leaves_of_message */ SELECT ", delivery_summed!(), " FROM delivery d \
        WHERE d.message = $1 ORDER BY d.pos");
    DETAILS_OF_DELIVERY = "/* details_of_delivery */ SELECT leaf, body FROM detail WHERE delivery = $1";
    DELIVERIES_OF_MESSAGE_ID = "/* deliveries_of_message_id */ SELECT d.id FROM delivery d JOIN message m ON m.seq = d.message \
        WHERE m.id = $1 ORDER BY d.pos";
    REPLY_OF_DELIVERY = "/* reply_of_delivery */ SELECT body FROM reply WHERE delivery = $1";
    REPLY_BY_CORRELATION = concat!("/* reply_by_correlation */ SELECT ", message_summed!(), ", attributes, salt, data FROM message WHERE correlation = $1 \
        AND sender_kind = 'adapter' AND sender = $2 ORDER BY seq LIMIT 1");
    QUEUE_ID = "/* queue_id */ SELECT id FROM queue WHERE name = $1";
    OLDEST_READY = "/* oldest_ready */ SELECT ready FROM delivery WHERE queue = $1 AND ready IS NOT NULL ORDER BY ready LIMIT 1";
    /// Among those that are due next.
    AWAY = "/* away */ SELECT id, settled_token FROM (SELECT id, settled_token, settled_as FROM delivery WHERE queue = $1 AND ready > $2 \
        ORDER BY ready LIMIT 5000) WHERE settled_as GLOB 'retry_lane*' LIMIT $3";
    /// As in lists: the state is said twice for the sake of the partial index.
    OLDEST_BORN = "/* oldest_born */ SELECT min(born) FROM (SELECT born FROM (SELECT born FROM delivery WHERE queue = $1 AND ready IS NOT NULL \
        ORDER BY ready LIMIT 1000) UNION ALL SELECT born FROM (SELECT born FROM delivery WHERE queue = $1 AND token IS NOT NULL LIMIT 1000) \
        UNION ALL SELECT born FROM (SELECT born FROM delivery WHERE state = 3 AND state IN (3, 5) AND queue = $1 ORDER BY pos LIMIT 1000))";
    LEAVES = "/* leaves */ SELECT idx, bytes, sum FROM leaf WHERE idx >= $1 AND idx < $2 ORDER BY idx";
    LEAF_FIRST = "/* leaf_first */ SELECT coalesce(min(idx), -1) FROM leaf";
}

/// Digits of a number in a list that travels as one blob.
const LIST_DIGITS: usize = 20;

/// The first parameter of [`MESSAGES_BY_SEQ`]; the second is how many they are.
pub(crate) fn seq_list(seqs: &[i64]) -> Vec<u8> {
    seqs.iter().flat_map(|seq| format!("{seq:LIST_DIGITS$}").into_bytes()).collect()
}

/// Lists of deliveries, newest first: one statement for every combination of filters, since SQLite chooses its index by
/// what stands in the text.
pub(crate) fn delivery_list(state: Option<i64>, held: bool, by_queue: bool) -> String {
    let mut sql = format!("/* delivery_list */ {} WHERE d.pos < $1", delivery_item!());
    match state {
        // Said twice: the partial index of stuck deliveries applies only where its own condition stands word for word, and
        // without it a list of three dead ones would read all that wait.
        Some(state @ (3 | 5)) => sql.push_str(&format!(" AND d.state = {state} AND d.state IN (3, 5)")),
        Some(state) => sql.push_str(&format!(" AND d.state = {state}")),
        None if held => sql.push_str(" AND d.state = 3 AND d.state IN (3, 5)"),
        None => {}
    }
    if held {
        sql.push_str(" AND d.due IS NULL");
    }
    if by_queue {
        sql.push_str(" AND q.name = $3");
    }
    sql.push_str(" ORDER BY d.pos DESC LIMIT $2");
    sql
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::{Connection, Executor, SqlStr, SqliteConnection};

    #[tokio::test]
    async fn every_statement_prepares_on_a_fresh_database() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for (_, migration) in MIGRATIONS {
            sqlx::raw_sql(*migration).execute(&mut connection).await.unwrap();
        }
        for (name, sql) in ALL {
            let prepared = connection.prepare(SqlStr::from_static(sql)).await;
            assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
        }
        for state in [None, Some(3), Some(5)] {
            for held in [false, true] {
                for by_queue in [false, true] {
                    let sql = delivery_list(state, held, by_queue);
                    sqlx::query(sqlx::AssertSqlSafe(sql))
                        .bind(1)
                        .bind(1)
                        .bind("x")
                        .fetch_all(&mut connection)
                        .await
                        .unwrap();
                }
            }
        }
    }

    /// The steps in which SQLite runs a statement.
    fn plan(connection: &rusqlite::Connection, statement: &str) -> Vec<String> {
        let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
        plan.raw_query().mapped(|row| row.get(3)).map(Result::unwrap).collect()
    }

    fn migrated() -> rusqlite::Connection {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        for (_, migration) in MIGRATIONS {
            connection.execute_batch(migration).unwrap();
        }
        connection
    }

    /// What an operator looks at, and each look at a queue, must not read all that waits.
    #[test]
    fn few_dead_or_doubtful_ones_are_found_among_any_number_of_waiting_ones() {
        let connection = migrated();
        let mut statements = vec![OLDEST_BORN.to_owned(), OLDEST_READY.to_owned(), AWAY.to_owned()];
        for (state, held) in [(Some(3), false), (Some(5), false), (None, true), (Some(3), true)] {
            statements.extend([false, true].map(|by_queue| delivery_list(state, held, by_queue)));
        }
        for statement in statements {
            for step in plan(&connection, &statement) {
                let through_all =
                    step == "SCAN delivery" || step.contains("d USING INTEGER PRIMARY KEY (rowid<");
                assert!(!through_all, "{step}: {statement}");
            }
        }
    }

    /// Claiming, settling and committing must cost the same with ten rows and with ten million.
    #[test]
    fn no_statement_of_the_hot_path_scans_a_table() {
        let connection = migrated();
        let hot = [
            DELIVERY_BY_ID,
            DELIVERY_BY_POS,
            DELIVERIES_READY,
            DELIVERIES_READY_SUSPECT,
            DELIVERIES_OF_LANE,
            READY_NEXT,
            KEY_FIND,
            KEY_OF_MESSAGE,
            KEY_PUT,
            MESSAGE_ADD,
            DELIVERY_ADD,
            DELIVERY_STEP,
            DELIVERY_CHANGE,
            LANE_CLEAR,
            LANE_CLEAR_BESIDE,
            LANE_ADVANCE,
            LEAVES_ADD,
            STATE_DROP,
            QUEUE_CHANGE,
            STORE_CHANGE,
            MESSAGES_BY_SEQ,
            MESSAGE_DATA,
            PIECES_AHEAD,
            PIECES_OF_MESSAGE,
            PIECE_ADD,
            PIECES_CLAIM,
            PIECES_DROP,
            PURGE_PIECES,
            DELIVERIES_OF_MESSAGE,
            LEAVES,
        ];
        let tables = [
            "message", "dedup", "delivery", "leaf", "detail", "reply", "queue", "store", "piece", "d", "e",
            "f", "m", "p",
        ];
        let mut scans = Vec::new();
        for statement in hot {
            for step in plan(&connection, statement) {
                if tables.iter().any(|table| step == format!("SCAN {table}")) {
                    scans.push(format!("{step}: {}", &statement[..60]));
                }
            }
        }
        assert!(scans.is_empty(), "{scans:#?}");
    }
}
