-- What all tenants of a database share: who they are, at which hosts they answer, and when each function has
-- work for them. Row-level security keeps a tenant's role to its own rows; tenants' own data needs none, since it
-- is in schemas of their own. Run as onda_owner, like all migrations.
--
-- No function here is SECURITY DEFINER, and bodies are parsed when they are made, so that no caller's search_path decides what is run.

-- One row. A clock may be moved only in a database that says it is for development.
CREATE TABLE onda.database (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    development boolean NOT NULL DEFAULT false
);
INSERT INTO onda.database DEFAULT VALUES;

-- Due dates are compared with this clock and never with now(), so that a test or a demo can move it. The setting is
-- local to a transaction, and '' (not NULL) in the transaction after one that set it.
CREATE FUNCTION onda.now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN pg_catalog.now() + coalesce(nullif(current_setting('onda.offset', true), '')::interval, '0');

-- Which server's history this database is on. A restored or failed-over database answers another value than the one
-- that its tenants were armed with, and send leases nothing there. The timeline is that of the WAL that is written now: the one
-- of the control file is of the last checkpoint, which is minutes behind when a standby has just taken over.
CREATE FUNCTION onda.identity() RETURNS text LANGUAGE sql STABLE
RETURN (SELECT system_identifier::text || '/' || CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
       ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer END FROM pg_control_system());

CREATE TABLE onda.tenant (
    number     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,   -- in tokens and Message-IDs; never used again
    name       text NOT NULL UNIQUE CHECK (name ~ '^[a-z][a-z0-9-]{0,39}$'),
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended', 'moving', 'deleted')),
    schema     integer NOT NULL DEFAULT 0,                          -- the newest migration its schema has had
    "offset"   interval NOT NULL DEFAULT '0',                       -- how far its clock is moved
    armed      text NOT NULL DEFAULT onda.identity(),
    namespace  text NOT NULL DEFAULT 'onda',                        -- where its functions and its broker are: a ring of the pool's, or its own
    own        text[],                                              -- of a sandbox, the functions that are there; the rest are the pool's. NULL: all of them
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz CHECK ((deleted_at IS NULL) = (state <> 'deleted'))
);

CREATE FUNCTION onda.refuse_offset() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT (SELECT development FROM onda.database) THEN
        RAISE EXCEPTION 'the clock of tenant % cannot be moved: this database is not marked as one for development', NEW.name
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER tenant_offset BEFORE UPDATE OF "offset" ON onda.tenant
    FOR EACH ROW WHEN (NEW."offset" IS DISTINCT FROM OLD."offset") EXECUTE FUNCTION onda.refuse_offset();

CREATE TABLE onda.host (
    host   text PRIMARY KEY,
    tenant text NOT NULL REFERENCES onda.tenant (name),
    kind   text NOT NULL CHECK (kind IN ('link', 'form'))
);

-- A row for every tenant and function; 'infinity' when there is nothing to do. Only moved earlier by writers, and
-- moved later only by its function, under a lock: see wakeup.go.
CREATE TABLE onda.wakeup (
    tenant   text NOT NULL REFERENCES onda.tenant (name),
    function text NOT NULL,
    at       timestamptz NOT NULL DEFAULT 'infinity',
    swept    timestamptz NOT NULL DEFAULT now(),    -- when schedule had it called whether anything was due or not; on the server's clock
    PRIMARY KEY (tenant, function)
);
CREATE INDEX wakeup_at ON onda.wakeup (at) WHERE at < 'infinity';

-- Events that can never succeed and name no tenant that exists: without their data, which could be anyone's.
CREATE TABLE onda.failure (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    function text NOT NULL,
    tenant   text NOT NULL,
    event    jsonb NOT NULL,
    error    text NOT NULL,
    at       timestamptz NOT NULL DEFAULT now()
);

GRANT USAGE ON SCHEMA onda TO onda_tenant, onda_pool, onda_schedule;
GRANT SELECT ON onda.database TO onda_tenant, onda_pool, onda_schedule;
GRANT SELECT ON onda.tenant, onda.host TO onda_tenant, onda_pool, onda_schedule;
GRANT INSERT, DELETE ON onda.host TO onda_tenant;
-- Neither a row nor a function's name: schedule makes an address of it.
GRANT SELECT, UPDATE (at) ON onda.wakeup TO onda_tenant;
GRANT SELECT, UPDATE (swept) ON onda.wakeup TO onda_schedule;
GRANT INSERT ON onda.failure TO onda_tenant, onda_pool;

ALTER TABLE onda.tenant ENABLE ROW LEVEL SECURITY;
ALTER TABLE onda.host ENABLE ROW LEVEL SECURITY;
ALTER TABLE onda.wakeup ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON onda.tenant FOR SELECT TO onda_tenant USING (name = current_user);
CREATE POLICY own ON onda.host TO onda_tenant USING (tenant = current_user) WITH CHECK (tenant = current_user);
CREATE POLICY own ON onda.wakeup TO onda_tenant USING (tenant = current_user) WITH CHECK (tenant = current_user);
CREATE POLICY every ON onda.tenant FOR SELECT TO onda_pool, onda_schedule USING (true);
CREATE POLICY every ON onda.host FOR SELECT TO onda_pool USING (true);
CREATE POLICY every ON onda.wakeup TO onda_schedule USING (true);
