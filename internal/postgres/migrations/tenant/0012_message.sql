-- Which messages of programs came, by the hash of their ids, so that one that is sent again is told from a new one; read by internal/track. A row of allowance and its two
-- indexes took three times as much to write.
CREATE TABLE message (
    id uuid PRIMARY KEY,
    at timestamptz NOT NULL
);
CREATE INDEX message_at ON message USING brin (at);              -- forgotten in the order in which they came
