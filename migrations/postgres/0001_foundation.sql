-- Gatepost's store on PostgreSQL, for several nodes. Frozen once released: change it by a new migration.
-- Times are store time in microseconds since the Unix epoch, taken from the database's clock. "Sealed" columns are opaque: one
-- module reads and writes them. "HMAC" columns hold 16 bytes of HMAC-SHA-256 under the store's key, searched by exact match.
-- Numbers of messages, deliveries and leaves come from sequence "turn": each transaction that writes takes one value, shifts it 20
-- bits to the left and counts on from there. It takes it after its reads and before its writes, so that what depends on something
-- has the larger number. One that follows its own node's last without anybody between them may count on behind that one's numbers.
-- What is large is stored as it is: compressing it cost an eighth of the server's time for a message, and what is sealed does not
-- get smaller. Partitions take that from their table.
-- Row versions are what a queue costs here. So a delivery's row has no index on anything that changes while it lives, and is
-- changed in place (HOT); who is ready, stands in a lane, is stuck or will expire is in small tables beside it. Nothing refers to
-- anything by a foreign key: each write is one transaction that says what it expects, and a check for each row would cost more than
-- the row.

CREATE SEQUENCE turn MINVALUE 1;

-- Refuses a write from within its own statement, which so leaves nothing.
CREATE FUNCTION refuse(code text, reason text) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = reason; END $$;

CREATE TABLE store (
    id          integer PRIMARY KEY CHECK (id = 1), -- one row
    store_key   bytea NOT NULL,                     -- HMAC of nothing: whether the key is the one that all this was written with
    log_key     text NOT NULL,                      -- public key of the audit log, in the form of a note's verifier
    clock       bigint NOT NULL,                    -- a store time that has passed; time never goes back behind it
    sequenced   bigint NOT NULL,                    -- size of the audit tree: index of the next leaf
    keys_gone   bigint NOT NULL DEFAULT 0           -- message.seq: the idempotency keys of all up to this one have been dropped
);

-- One row for each start of a gateway. It is the node's right to write: every transaction holds a lock on its row and looks at its
-- deadline, and who takes over waits for that lock.
CREATE TABLE node (
    epoch   integer PRIMARY KEY,      -- random, and part of every lease token
    name    text NOT NULL,            -- the host's, for people
    version text NOT NULL,            -- of the program
    since   bigint NOT NULL,          -- when it started
    until   bigint NOT NULL           -- its lease; it renews it while it can
) WITH (fillfactor = 50);

-- Queues, and of each sender what it has handed in: all that has not ended counts as waiting there, in whatever queue it is.
CREATE TABLE queue (
    id            integer PRIMARY KEY,
    name          text NOT NULL UNIQUE, -- of a sender app:NAME or adapter:NAME, as no queue is called
    kind          text NOT NULL CHECK (kind IN ('adapter', 'external_adapter', 'inbox', 'builtin', 'removed', 'sender')),
    version       bigint NOT NULL,   -- counts changes of this row: who changes it says which one it has seen
    paused_since  bigint,            -- an operator's pause
    trip_since    bigint,            -- the breaker is open since
    trip_reason   text,              -- why
    trip_failures bigint NOT NULL,   -- failed probes in a row
    trip_due      bigint,            -- when the next probe may go
    idle_before   bigint NOT NULL,   -- microseconds paused or tripped in all, up to the last change
    idle_since    bigint,            -- paused or tripped without a break since
    session       bigint NOT NULL,   -- epoch of the adapter's newest session; 0 before the first
    CHECK ((trip_since IS NULL) = (trip_reason IS NULL) AND (trip_since IS NULL) = (trip_due IS NULL))
) WITH (fillfactor = 50);

-- What each node has added to a queue's counts: of the same row written by all they would wait for each other. The sum counts.
CREATE TABLE queue_count (
    queue      integer NOT NULL,       -- queue.id
    epoch      integer NOT NULL,       -- node.epoch; 0 for those that have ended
    waiting    bigint NOT NULL,        -- deliveries by state …
    leased     bigint NOT NULL,
    sending    bigint NOT NULL,
    sent       bigint NOT NULL,        -- … of those sending: written, proof may come late
    in_doubt   bigint NOT NULL,
    held       bigint NOT NULL,        -- … of those in doubt: wait for a person
    dead       bigint NOT NULL,
    suspects   bigint NOT NULL,        -- not ended, and an adapter died with its lease
    held_lanes bigint NOT NULL,        -- deliveries that hold their lane: held in doubt, or dead under on_dead = hold_lane
    bytes      bigint NOT NULL,        -- payload bytes of deliveries that have not ended
    PRIMARY KEY (queue, epoch)
) WITH (fillfactor = 30);

-- What senders handed in, without its content. Immutable.
CREATE TABLE message (
    seq         bigint PRIMARY KEY,  -- accept order
    id          bytea NOT NULL UNIQUE CHECK (length(id) = 16), -- UUIDv7
    day         integer NOT NULL,    -- store time at accept, in days: the partition of its content; 0: kept beyond its day
    accepted_at bigint NOT NULL,
    sender_kind text NOT NULL,       -- app or adapter
    sender      text NOT NULL,       -- its name
    kind        text NOT NULL,       -- CloudEvents type
    form        smallint NOT NULL CHECK (form BETWEEN 0 AND 3), -- none, json, text, base64
    size        bigint NOT NULL,     -- payload bytes
    dedup       bytea NOT NULL,      -- HMAC of sender and idempotency key
    fingerprint bytea NOT NULL,      -- HMAC of what must be the same for the message to be the same
    subject     bytea,               -- HMAC
    key         bytea,               -- HMAC of the partition key
    correlation bytea,               -- HMAC of the correlation id
    first_pos   bigint NOT NULL,     -- its deliveries have consecutive positions from this one …
    deliveries  integer NOT NULL,    -- … so many
    remains     bytea NOT NULL       -- sealed: what stays of the event's JSON when its content goes
);
CREATE INDEX message_subject ON message (subject, seq) WHERE subject IS NOT NULL;
CREATE INDEX message_key ON message (key, seq) WHERE key IS NOT NULL;
CREATE INDEX message_correlation ON message (correlation) WHERE correlation IS NOT NULL;

-- The content of messages. When a whole day is old enough its partition is dropped, with those of detail and reply. What is not
-- settled by then is moved to day 0 before that, in the same step as its message's row: day 0 means "kept beyond its day". It has no
-- partition of its own, and is emptied row by row once it is settled.
CREATE TABLE payload (
    day        integer NOT NULL,     -- message.day
    seq        bigint NOT NULL,      -- message.seq
    attributes bytea NOT NULL, -- sealed: the event's JSON without data
    salt       bytea NOT NULL,       -- 32 random bytes, masked, behind where their data key is; audit leaves commit to the payload under them
    data       bytea NOT NULL, -- sealed payload
    PRIMARY KEY (day, seq)
) PARTITION BY RANGE (day);
ALTER TABLE payload ALTER attributes SET STORAGE EXTERNAL, ALTER data SET STORAGE EXTERNAL;
CREATE TABLE payload_other PARTITION OF payload DEFAULT; -- of days that have no partition (any more)

-- Idempotency keys whose window has not passed. Not partitioned by time: only so is a key unique.
CREATE TABLE dedup (
    key         bytea PRIMARY KEY,   -- HMAC of sender and idempotency key
    message     bigint NOT NULL,     -- message.seq
    accepted_at bigint NOT NULL      -- message.accepted_at
);

CREATE TABLE delivery (
    pos         bigint PRIMARY KEY,  -- accept order; the order within a lane
    id          bytea NOT NULL UNIQUE CHECK (length(id) = 16), -- UUIDv7
    message     bigint NOT NULL,     -- message.seq
    queue       integer NOT NULL,    -- queue.id
    lane        bytea,               -- HMAC of the ordering key; null for unordered ones
    state       smallint NOT NULL CHECK (state BETWEEN 0 AND 7), -- waiting leased sending in_doubt delivered dead expired discarded
    blocks      boolean NOT NULL,    -- stands in the way of those behind it in its lane
    due         bigint,              -- may be leased from then on, as far as its own state goes
    token       bytea,               -- newest lease …
    until       bigint,              -- … its deadline
    session     bigint,              -- … the session that holds it
    batch       bytea,               -- … hash of the lease call's request_id
    late        boolean NOT NULL,    -- sent: proof may come from a later session
    attempts    integer NOT NULL,
    series      integer NOT NULL,
    crashes     integer NOT NULL,
    doubt       boolean NOT NULL,
    suspect     boolean NOT NULL,
    replayed    boolean NOT NULL,
    reason      text,                -- of a dead one
    expires_at  bigint,
    born        bigint NOT NULL,     -- when this series began
    idle_at_birth bigint NOT NULL,   -- the queue's idle time then, microseconds
    changed_at  bigint NOT NULL,     -- when it entered its state
    settled_token bytea,             -- token and outcome that ended the last lease
    settled_as  text,
    leaves      bytea NOT NULL,      -- numbers of its audit leaves, eight bytes each, big endian
    sender      integer,             -- queue.id of who handed it in; null for one that the configuration did not name
    CHECK ((state IN (1, 2)) = (token IS NOT NULL) AND (token IS NULL) = (until IS NULL)),
    CHECK ((state = 5) = (reason IS NOT NULL)),
    CHECK (due IS NULL OR state IN (0, 3)),
    CHECK (state <> 0 OR due IS NOT NULL)
) WITH (fillfactor = 60);

-- Who may be leased from when: unordered deliveries, and the heads of lanes. A bucket has one owner, and only that one leases.
CREATE TABLE ready (
    queue   integer NOT NULL,        -- delivery.queue
    bucket  smallint NOT NULL,       -- of the delivery's lane, or of its id if it has none
    due     bigint NOT NULL,         -- delivery.due
    pos     bigint NOT NULL,         -- delivery.pos
    suspect boolean NOT NULL,        -- delivery.suspect
    PRIMARY KEY (queue, bucket, due, pos)
);
CREATE INDEX ready_suspect ON ready (queue, due, pos) WHERE suspect;

-- Who stands in a lane: ordered deliveries that block it.
CREATE TABLE lane (
    queue integer NOT NULL,          -- delivery.queue
    lane  bytea NOT NULL,            -- delivery.lane
    pos   bigint NOT NULL,           -- delivery.pos
    PRIMARY KEY (queue, lane, pos)
);

-- Lanes that somebody who does not own their bucket has changed; its owner looks who is ready in them now.
CREATE TABLE lane_changed (
    queue  integer NOT NULL,         -- queue.id
    bucket smallint NOT NULL,        -- of the lane
    lane   bytea NOT NULL,           -- delivery.lane
    PRIMARY KEY (queue, bucket, lane)
);

-- Who owns a bucket. It changes hands by its owner's word, or when the owner's lease is over.
CREATE TABLE bucket (
    queue  integer NOT NULL,         -- queue.id
    bucket smallint NOT NULL,
    epoch  integer,                  -- node.epoch; null: nobody
    PRIMARY KEY (queue, bucket)
) WITH (fillfactor = 50);

-- Which nodes have a consumer of a queue connected to them; its buckets are shared out among these.
CREATE TABLE consumer (
    queue integer NOT NULL,          -- queue.id
    epoch integer NOT NULL,          -- node.epoch
    PRIMARY KEY (queue, epoch)
);

-- Deliveries that a commit has leased, so that they are found when their node is gone. Some may have ended since.
CREATE TABLE lease_group (
    id    bigint PRIMARY KEY,        -- number of the commit
    epoch integer NOT NULL,          -- node.epoch
    pos   bigint[] NOT NULL          -- delivery.pos
);

-- Deliveries that will expire. Those that have ended or been leased since are dropped when their time comes.
CREATE TABLE expiry (
    at  bigint NOT NULL,             -- delivery.expires_at
    pos bigint NOT NULL,             -- delivery.pos
    PRIMARY KEY (at, pos)
);

-- Deliveries in doubt, and dead ones.
CREATE TABLE stuck (
    state smallint NOT NULL CHECK (state IN (3, 5)), -- delivery.state
    pos   bigint NOT NULL,           -- delivery.pos
    queue integer NOT NULL,          -- delivery.queue
    held  boolean NOT NULL,          -- in doubt, and waits for a person
    PRIMARY KEY (state, pos)
);

-- What only the database keeps of a delivery's steps: free text and evidence. Goes with the content of its message.
CREATE TABLE detail (
    day      integer NOT NULL,       -- message.day
    delivery bigint NOT NULL,        -- delivery.pos
    leaf     bigint NOT NULL,        -- number of the audit leaf it belongs to
    body     bytea NOT NULL,         -- sealed JSON: reason, evidence
    PRIMARY KEY (day, delivery, leaf)
) PARTITION BY RANGE (day);
ALTER TABLE detail ALTER body SET STORAGE EXTERNAL;
CREATE TABLE detail_other PARTITION OF detail DEFAULT; -- of days that have no partition (any more)

CREATE TABLE reply (
    day      integer NOT NULL,       -- message.day
    delivery bigint NOT NULL,        -- delivery.pos
    body     bytea NOT NULL,         -- sealed JSON: datacontenttype, data or data_base64
    PRIMARY KEY (day, delivery)
) PARTITION BY RANGE (day);
ALTER TABLE reply ALTER body SET STORAGE EXTERNAL;
CREATE TABLE reply_other PARTITION OF reply DEFAULT; -- of days that have no partition (any more)

-- Days that are looked through before their partitions are dropped: how far that has come.
CREATE TABLE day_purge (
    day     integer PRIMARY KEY,     -- payload.day
    through bigint NOT NULL,         -- payload.seq: of all up to this one it is known that they are settled, or they have been moved to day 0
    settled bigint NOT NULL          -- how many of those go with the day
) WITH (fillfactor = 50);

CREATE TABLE adapter_state (
    adapter text NOT NULL,
    key     text NOT NULL,
    value   bytea NOT NULL,          -- sealed
    PRIMARY KEY (adapter, key)
);

-- What the data keys of sealed values are computed from, wrapped with a seal key that is not in the database.
CREATE TABLE keyring (
    tree bigint PRIMARY KEY,         -- random
    key  integer NOT NULL,           -- version of the seal key
    body bytea NOT NULL              -- wrapped
);

-- Leaves of the audit log as they were committed: a row is a run of consecutive leaves of one commit, as a rule of one page at most. Retention drops
-- nothing of it: the audit log stays.
CREATE TABLE leaf (
    day    integer NOT NULL,         -- store time of the commit, in days; thirty of them are a partition, and none is ever dropped
    number bigint NOT NULL,          -- of its first leaf
    bytes  bytea NOT NULL,           -- each leaf after its length, two bytes, big endian
    PRIMARY KEY (day, number)
) PARTITION BY RANGE (day);
ALTER TABLE leaf ALTER bytes SET STORAGE EXTERNAL;
CREATE TABLE leaf_other PARTITION OF leaf DEFAULT; -- of days that have no partition (any more)

-- Runs that have no place in the tree yet.
CREATE TABLE leaf_new (
    number bigint PRIMARY KEY,       -- leaf.number
    day    integer NOT NULL,         -- leaf.day
    count  integer NOT NULL          -- leaves in it
);

-- Where runs stand in the tree. One node at a time writes here, and leaves no gap.
CREATE TABLE leaf_place (
    first  bigint PRIMARY KEY,       -- index of its first leaf in the tree
    number bigint NOT NULL UNIQUE,   -- leaf.number
    day    integer NOT NULL,         -- leaf.day
    count  integer NOT NULL          -- leaves in it
);

-- What one node does for all: numbering leaves, dropping what is old, running an adapter that runs once.
CREATE TABLE role (
    name  text PRIMARY KEY,
    epoch integer                    -- node.epoch; null: nobody
) WITH (fillfactor = 50);

-- The copy of a gateway that was on SQLite; no row where there never was one. Until it is finished no gateway may use the database.
CREATE TABLE copy (
    id       integer PRIMARY KEY CHECK (id = 1), -- one row
    entries  bigint NOT NULL,        -- size of the audit tree that is copied …
    root     bytea NOT NULL,         -- … and its root: which state of the gateway it is a copy of
    part     text NOT NULL CHECK (part IN ('queues', 'messages', 'deliveries', 'details', 'replies', 'states', 'entries', 'done')),
    through  bigint NOT NULL         -- what of the part is copied: up to this number, or so many
);
