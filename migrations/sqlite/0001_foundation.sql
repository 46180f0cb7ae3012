-- Gatepost's store on SQLite. Frozen once released: change it by a new migration.
-- Times are store time in microseconds since the Unix epoch. "Sealed" columns are opaque: one module reads and writes them.
-- "HMAC" columns hold 16 bytes of HMAC-SHA-256 under the store's key, searched by exact match.
-- SQLite has no checksums of its pages. "sum" columns have one of the row, written with each change and checked whenever the row is
-- read; a sealed value has its own. So a bit that flips on the disk is found before anything is made of it.

CREATE TABLE store (
    id             INTEGER PRIMARY KEY CHECK (id = 1), -- one row
    clock          INTEGER NOT NULL,                   -- newest store time written; time never goes back behind it
    instance_epoch INTEGER NOT NULL,                   -- counts starts; part of every lease token
    leaf_count     INTEGER NOT NULL,                   -- size of the audit tree: index of the next leaf
    keyed          INTEGER NOT NULL,                   -- idempotency keys of messages up to this one are in table dedup
    store_key      BLOB NOT NULL,                      -- HMAC of nothing: whether the key is the one that all this was written with
    sum            INTEGER NOT NULL                    -- of the columns before it
) STRICT;

-- Queues, and of each sender what it has handed in: all that has not ended counts as waiting there, in whatever queue it is.
CREATE TABLE queue (
    id            INTEGER PRIMARY KEY,
    name          TEXT NOT NULL UNIQUE, -- of a sender app:NAME or adapter:NAME, as no queue is called
    kind          TEXT NOT NULL CHECK (kind IN ('adapter', 'external_adapter', 'inbox', 'builtin', 'removed', 'sender')),
    paused_since  INTEGER,           -- an operator's pause
    trip_since    INTEGER,           -- the breaker is open since
    trip_reason   TEXT,              -- why
    trip_failures INTEGER NOT NULL,  -- failed probes in a row
    trip_due      INTEGER,           -- when the next probe may go
    idle_before   INTEGER NOT NULL,  -- microseconds paused or tripped in all, up to the last change
    idle_since    INTEGER,           -- paused or tripped without a break since
    session       INTEGER NOT NULL,  -- epoch of the adapter's newest session; 0 before the first
    waiting       INTEGER NOT NULL,  -- deliveries by state …
    leased        INTEGER NOT NULL,
    sending       INTEGER NOT NULL,
    sent          INTEGER NOT NULL,  -- … of those sending: written, proof may come late
    in_doubt      INTEGER NOT NULL,
    held          INTEGER NOT NULL,  -- … of those in doubt: wait for a person
    dead          INTEGER NOT NULL,
    suspects      INTEGER NOT NULL,  -- not ended, and an adapter died with its lease
    held_lanes    INTEGER NOT NULL,  -- deliveries that hold their lane: held in doubt, or dead under on_dead = hold_lane
    bytes         INTEGER NOT NULL,  -- payload bytes of deliveries that have not ended
    sum           INTEGER NOT NULL,  -- of the columns before it
    CHECK ((trip_since IS NULL) = (trip_reason IS NULL) AND (trip_since IS NULL) = (trip_due IS NULL))
) STRICT;

-- What senders handed in. Immutable but for the purge, which empties data and salt together.
CREATE TABLE message (
    seq         INTEGER PRIMARY KEY, -- accept order
    id          BLOB NOT NULL UNIQUE CHECK (length(id) = 16), -- UUIDv7
    accepted_at INTEGER NOT NULL,
    sender_kind TEXT NOT NULL,       -- app or adapter
    sender      TEXT NOT NULL,       -- its name
    kind        TEXT NOT NULL,       -- CloudEvents type
    form        INTEGER NOT NULL CHECK (form BETWEEN 0 AND 3), -- none, json, text, base64
    size        INTEGER NOT NULL,    -- payload bytes
    sum         INTEGER NOT NULL,    -- of the columns before it
    dedup       BLOB NOT NULL,       -- HMAC of sender and idempotency key
    fingerprint BLOB NOT NULL,       -- HMAC of what must be the same for the message to be the same
    subject     BLOB,                -- HMAC
    key         BLOB,                -- HMAC of the partition key
    correlation BLOB,                -- HMAC of the correlation id
    sum_indexed INTEGER NOT NULL,    -- of seq and of the columns between the two sums
    attributes  BLOB NOT NULL,       -- sealed: the event's JSON without data
    salt        BLOB,                -- 32 random bytes, masked, behind where their data key is; audit leaves commit to the payload under them
    data        BLOB,                -- sealed payload
    CHECK ((salt IS NULL) = (data IS NULL))
) STRICT;
CREATE INDEX message_subject ON message (subject, seq) WHERE subject IS NOT NULL;
CREATE INDEX message_key ON message (key, seq) WHERE key IS NOT NULL;
CREATE INDEX message_correlation ON message (correlation) WHERE correlation IS NOT NULL;

-- Idempotency keys whose window has not passed. The newest are not here yet but in the writer's memory, read from the messages
-- at start: keys are random, and moved here in sorted runs they touch a fraction of the pages.
CREATE TABLE dedup (
    key     BLOB PRIMARY KEY,        -- HMAC of sender and idempotency key
    message INTEGER NOT NULL         -- message.seq
) STRICT, WITHOUT ROWID;

CREATE TABLE delivery (
    pos         INTEGER PRIMARY KEY, -- accept order; the order within a lane
    id          BLOB NOT NULL UNIQUE CHECK (length(id) = 16), -- UUIDv7
    message     INTEGER NOT NULL REFERENCES message (seq) DEFERRABLE INITIALLY DEFERRED,
    queue       INTEGER NOT NULL REFERENCES queue (id) DEFERRABLE INITIALLY DEFERRED,
    lane        BLOB,                -- HMAC of the ordering key; null for unordered ones
    state       INTEGER NOT NULL CHECK (state BETWEEN 0 AND 7), -- waiting leased sending in_doubt delivered dead expired discarded
    blocks      INTEGER NOT NULL CHECK (blocks IN (0, 1)), -- stands in the way of those behind it in its lane
    due         INTEGER,             -- may be leased from then on, as far as its own state goes
    ready       INTEGER,             -- = due where its lane lets it be leased; the claim index
    token       BLOB,                -- newest lease …
    until       INTEGER,             -- … its deadline
    session     INTEGER,             -- … the session that holds it
    batch       BLOB,                -- … hash of the lease call's request_id
    late        INTEGER NOT NULL CHECK (late IN (0, 1)), -- sent: proof may come from a later session
    attempts    INTEGER NOT NULL,
    series      INTEGER NOT NULL,
    crashes     INTEGER NOT NULL,
    doubt       INTEGER NOT NULL CHECK (doubt IN (0, 1)),
    suspect     INTEGER NOT NULL CHECK (suspect IN (0, 1)),
    replayed    INTEGER NOT NULL CHECK (replayed IN (0, 1)),
    reason      TEXT,                -- of a dead one
    expires_at  INTEGER,
    born        INTEGER NOT NULL,    -- when this series began
    idle_at_birth INTEGER NOT NULL,  -- the queue's idle time then, microseconds
    changed_at  INTEGER NOT NULL,    -- when it entered its state
    settled_token BLOB,              -- token and outcome that ended the last lease
    settled_as  TEXT,
    leaves      BLOB NOT NULL,       -- indices of its audit leaves, eight bytes each, big endian
    sender      INTEGER,             -- queue.id of who handed it in; null for one that the configuration did not name
    sum         INTEGER NOT NULL,    -- of all columns but ready, in their order
    CHECK ((state IN (1, 2)) = (token IS NOT NULL) AND (token IS NULL) = (until IS NULL)),
    CHECK ((state = 5) = (reason IS NOT NULL)),
    CHECK (ready IS NULL OR (ready = due AND state IN (0, 3))),
    CHECK (due IS NULL OR state IN (0, 3)),
    CHECK (state <> 0 OR due IS NOT NULL)
) STRICT;
CREATE INDEX delivery_message ON delivery (message);
CREATE INDEX delivery_ready ON delivery (queue, ready, pos) WHERE ready IS NOT NULL;
CREATE INDEX delivery_suspect ON delivery (queue, ready, pos) WHERE suspect = 1 AND ready IS NOT NULL;
CREATE INDEX delivery_lane ON delivery (queue, lane, pos) WHERE blocks = 1 AND lane IS NOT NULL;
CREATE INDEX delivery_leased ON delivery (until) WHERE token IS NOT NULL;
CREATE INDEX delivery_expiry ON delivery (expires_at) WHERE state = 0 AND expires_at IS NOT NULL;
CREATE INDEX delivery_stuck ON delivery (state, pos) WHERE state IN (3, 5);

-- What only the database keeps of a delivery's steps: free text and evidence.
CREATE TABLE detail (
    leaf     INTEGER PRIMARY KEY, -- the audit leaf it belongs to
    delivery INTEGER NOT NULL,    -- delivery.pos
    body     BLOB NOT NULL        -- sealed JSON: reason, evidence
) STRICT;
CREATE INDEX detail_delivery ON detail (delivery);

CREATE TABLE reply (
    delivery INTEGER PRIMARY KEY, -- delivery.pos
    body     BLOB NOT NULL        -- sealed JSON: datacontenttype, data or data_base64
) STRICT;

CREATE TABLE adapter_state (
    adapter TEXT NOT NULL,
    key     TEXT NOT NULL,
    value   BLOB NOT NULL,        -- sealed
    PRIMARY KEY (adapter, key)
) STRICT, WITHOUT ROWID;

-- What the data keys of sealed values are computed from, wrapped with a seal key that is not in the database.
CREATE TABLE keyring (
    tree INTEGER PRIMARY KEY,     -- random
    key  INTEGER NOT NULL,        -- version of the seal key
    body BLOB NOT NULL,           -- wrapped
    sum  INTEGER NOT NULL         -- of the columns before it
) STRICT;

-- The same once more, on other pages: a damaged row of keyring would take a million values along.
CREATE TABLE keyring_copy (
    tree INTEGER PRIMARY KEY,
    key  INTEGER NOT NULL,
    body BLOB NOT NULL,
    sum  INTEGER NOT NULL
) STRICT;

-- The newest part of the audit log; what stands in full bundle files under data_dir/audit is no longer here. A row is a run of
-- consecutive leaves that were committed together and belong to one tile of 256.
CREATE TABLE leaf (
    idx   INTEGER PRIMARY KEY,    -- position of its first leaf in the tree
    bytes BLOB NOT NULL,          -- each leaf after its length, two bytes, big endian: the runs of a tile in order are its bundle
    sum   INTEGER NOT NULL        -- of the columns before it
) STRICT;
CREATE TRIGGER leaf_is_immutable BEFORE UPDATE ON leaf BEGIN SELECT RAISE(ABORT, 'audit leaves are immutable'); END;
