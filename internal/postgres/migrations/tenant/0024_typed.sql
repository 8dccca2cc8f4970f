-- An address as it was typed, where that is not the form in which it is stored, compared and mailed to; read by internal/contact.
ALTER TABLE contact ADD COLUMN typed text;                          -- NULL: as email
