-- Deliveries with a second ordering key, as a merge of two patients has: they stand in two lanes, and block both.

-- HMAC of the second ordering key; null for those with one or none.
ALTER TABLE delivery ADD COLUMN barrier bytea;

-- Of a delivery that stands in two lanes, in both of its rows: delivery.lane, whose bucket's owner says when it is ready. Null for
-- those in one.
ALTER TABLE lane ADD COLUMN home bytea;
-- Empty but for such deliveries that block.
CREATE INDEX lane_of_two ON lane (queue, lane, pos) WHERE home IS NOT NULL;

-- A note for each change. Where one note stood for many, a change that found it there and committed after its owner had taken it was
-- never looked at.
ALTER TABLE lane_changed DROP CONSTRAINT lane_changed_pkey;
CREATE INDEX lane_changed_bucket ON lane_changed (queue, bucket, lane);
