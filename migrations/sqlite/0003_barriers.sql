-- Deliveries with a second ordering key, as a merge of two patients has: they stand in two lanes, and block both.

-- HMAC of the second ordering key; null for those with one or none. A row's sum covers it where it is not null.
ALTER TABLE delivery ADD COLUMN barrier BLOB;
-- Empty but for such deliveries that block: whoever looks through a lane looks here too.
CREATE INDEX delivery_beside ON delivery (queue, barrier, pos) WHERE blocks = 1 AND barrier IS NOT NULL;
