-- Contacts are erased in steps: what was, by kind of rows, and whether that is all. Of a contact that is not erased it is NULL.
ALTER TABLE contact ADD COLUMN erasure jsonb;
