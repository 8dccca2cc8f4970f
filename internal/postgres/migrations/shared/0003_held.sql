-- held: a command set the state, which onda tenant sync does not lift then, whatever the tenant's file says. Versions before this one know nothing of it, and leave it
-- as it is.
ALTER TABLE onda.tenant ADD COLUMN held boolean NOT NULL DEFAULT false;

-- Names of tenants that are gone for good: a file that still says one of them is active makes no new tenant of it, only a person does.
CREATE TABLE onda.purged (
    name text PRIMARY KEY,
    at   timestamptz NOT NULL DEFAULT now()
);
