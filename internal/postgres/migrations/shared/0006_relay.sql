-- The Secret with the relay that a tenant's mails go through, by its file; NULL for the cell's. In the row that every transaction of the tenant reads anyway. Versions before
-- this one know nothing of it and use the cell's: start this one first.
ALTER TABLE onda.tenant ADD COLUMN smtp_secret text CHECK (smtp_secret <> '');
