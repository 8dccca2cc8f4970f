-- By which lists of known machines hits are judged, and how far they are judged again since these changed; read by internal/track. It is no reader of facts: without an xid it holds none.
ALTER TABLE cursor
    ALTER COLUMN xid DROP NOT NULL,
    ADD COLUMN lists text,                                       -- hash of the lists
    ADD COLUMN since timestamptz,                                -- when they were first seen here
    ADD COLUMN at timestamptz;                                   -- how far, by hit.at and then hit.id; NULL: through
INSERT INTO cursor (name, xid, base) SELECT 'scanners', NULL, base FROM cursor WHERE name = 'segment';
