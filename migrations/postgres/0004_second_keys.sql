-- A message with a second ordering key is found by that too.

-- HMAC of the second ordering key, if that is another than the first; null for messages with one or none.
ALTER TABLE message ADD COLUMN barrier bytea;
CREATE INDEX message_barrier ON message (barrier, seq) WHERE barrier IS NOT NULL;
