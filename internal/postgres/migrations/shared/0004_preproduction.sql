-- A pre-production is often a copy of production, people's addresses and all: what is mailed in a database with this mark goes to nobody of them. It is the database's and
-- not a setting of functions, so that no pod started by hand, and no command, mails without knowing. Versions before this one do not know: mark with this one, start this one.
ALTER TABLE onda.database ADD COLUMN preproduction boolean NOT NULL DEFAULT false;
