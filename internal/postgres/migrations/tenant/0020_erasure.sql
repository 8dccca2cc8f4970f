-- Contacts are erased in steps: what was, by kind of rows, and whether that is all. Of a contact that is not erased it is NULL.
ALTER TABLE contact ADD COLUMN erasure jsonb;
CREATE INDEX contact_merged ON contact (merged_into) WHERE merged_into IS NOT NULL;
CREATE INDEX contact_erased ON contact (erased_at) WHERE erased_at IS NOT NULL;
