-- A message with a second ordering key is found by that too.

-- HMAC of the second ordering key, if that is another than the first; null for messages with one or none. sum_indexed covers it
-- where it is not null.
ALTER TABLE message ADD COLUMN barrier BLOB;
CREATE INDEX message_barrier ON message (barrier, seq) WHERE barrier IS NOT NULL;
