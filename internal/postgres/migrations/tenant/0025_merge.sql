-- Contacts that are merged: what undoes it, on the row of the one that is no more; read by internal/contact.
ALTER TABLE contact ADD COLUMN merge jsonb;
