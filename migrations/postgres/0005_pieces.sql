-- Sealed payloads that are too large for one commit, in pieces that were written ahead of their message, a few with each transaction of
-- their own. Then payload.data says so, and how many there are.

-- They go with the content of their message.
CREATE TABLE piece (
    day     integer NOT NULL,        -- message.day
    message bytea NOT NULL,          -- message.id
    number  integer NOT NULL,        -- from 1
    bytes   bytea NOT NULL,          -- of the sealed payload
    PRIMARY KEY (day, message, number)
) PARTITION BY RANGE (day);
ALTER TABLE piece ALTER bytes SET STORAGE EXTERNAL;
CREATE TABLE piece_other PARTITION OF piece DEFAULT; -- of days that have no partition (any more)

-- Messages that have pieces and have not been accepted. The accept takes the row away, if all pieces are there.
CREATE TABLE piece_ahead (
    message bytea PRIMARY KEY,       -- as message.id will be
    epoch   integer NOT NULL,        -- node.epoch: who writes them; when that one is gone another removes them
    day     integer NOT NULL,        -- piece.day: when the first was written
    pieces  integer NOT NULL         -- so many are there
) WITH (fillfactor = 50);
