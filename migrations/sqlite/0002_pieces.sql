-- Sealed payloads that are too large for one commit, in pieces that were written ahead of their message, a few with each commit. Then
-- message.data says so, and how many there are.
CREATE TABLE piece (
    pos     INTEGER PRIMARY KEY,
    message BLOB NOT NULL CHECK (length(message) = 16), -- message.id
    number  INTEGER NOT NULL,  -- from 1; 0 stands there as long as the message has not been accepted, and is none
    bytes   BLOB NOT NULL,     -- of the sealed payload
    sum     INTEGER NOT NULL   -- of the columns before it but pos
) STRICT;
CREATE UNIQUE INDEX piece_message ON piece (message, number);
CREATE INDEX piece_ahead ON piece (message) WHERE number = 0;
