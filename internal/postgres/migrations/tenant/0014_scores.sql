-- Scores: what steps and the rules of Settings give contacts, by group; read by internal/contact and internal/track, which folds the rules from facts with a cursor of its own. It
-- begins where facts end now: no rule is older.
ALTER TABLE contact ADD COLUMN scores jsonb NOT NULL DEFAULT '{}';  -- group -> points
ALTER TABLE hit ADD COLUMN points jsonb;                            -- what rules gave for it, by group, to be taken back when it turns out to be a machine's
INSERT INTO cursor (name, xid, base)
SELECT 'track', (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + base)::text::xid8, base FROM cursor WHERE name = 'segment';
