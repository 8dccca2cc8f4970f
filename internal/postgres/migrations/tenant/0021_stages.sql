-- Stages: where a contact stands, of the list in Settings; set by steps, read by internal/contact and internal/predicate.
ALTER TABLE contact ADD COLUMN stage text;                          -- NULL: none yet
