-- Until when time was looked at for each segment, and which cannot be computed; read by internal/segment. All are computed once more: until here, who entered a campaign or ended there was
-- no fact.
ALTER TABLE segment
    ADD COLUMN swept_at timestamptz,                             -- its members are those of this time, as far as time alone changes them; NULL: not known
    ADD COLUMN sweep_to timestamptz,                             -- NULL: none is under way; else rebuild_to is how far it is
    ADD COLUMN failures integer NOT NULL DEFAULT 0,              -- how often in a row it could not be computed
    ADD COLUMN failed text,                                      -- what of
    ADD COLUMN retry_at timestamptz;                             -- it is left alone until then
UPDATE segment SET requested = true;
