-- The visitors of a contact: for who shows, merges or erases it. Few visitors are anybody's.
CREATE INDEX visitor_contact ON visitor (contact) WHERE contact IS NOT NULL;
