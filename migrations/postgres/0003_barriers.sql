-- Deliveries with a second ordering key, as a merge of two patients has: they stand in two lanes, and block both.

-- HMAC of the second ordering key; null for those with one or none.
ALTER TABLE delivery ADD COLUMN barrier bytea;

-- Of a delivery that stands in two lanes, in both of its rows: delivery.lane, whose bucket's owner says when it is ready. Null for
-- those in one.
ALTER TABLE lane ADD COLUMN home bytea;
-- Empty but for such deliveries that block.
CREATE INDEX lane_of_two ON lane (queue, lane, pos) WHERE home IS NOT NULL;
