-- Sender domains: when one was last looked at, and what was wrong then. verified_at stays what it is as long as nothing was found right again.
ALTER TABLE entity ADD COLUMN checked_at timestamptz, ADD COLUMN problems text[] NOT NULL DEFAULT '{}';
