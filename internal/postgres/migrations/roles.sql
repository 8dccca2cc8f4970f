-- What stands before the first migration: roles, which are the server's and so may be there already, the schema, and the table that
-- counts migrations. Run by the login of onda migrate as itself; repeating it changes nothing. Needs CREATEROLE and CREATE on this database.

-- onda_owner owns everything and logs in nowhere: tenants' roles only use their tables, so that nothing they plant can run with the rights of
-- others who use them. onda_tenant has what all tenants' roles have. The pool enters tenants by their roles and inherits nothing from them.
DO $$
DECLARE
    r record;
BEGIN
    FOR r IN VALUES ('onda_owner', 'NOLOGIN'), ('onda_tenant', 'NOLOGIN'), ('onda_pool', 'LOGIN NOINHERIT'), ('onda_schedule', 'LOGIN') LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = r.column1);
        BEGIN
            EXECUTE format('CREATE ROLE %I %s', r.column1, r.column2);
            IF r.column1 = 'onda_pool' THEN
                ALTER ROLE onda_pool SET search_path = "$user";
                -- A process that is stopped in the middle of a transaction must not hold back every cursor on the server.
                ALTER ROLE onda_pool SET idle_in_transaction_session_timeout = '10s';
                ALTER ROLE onda_pool SET max_parallel_workers_per_gather = 0;
                ALTER ROLE onda_pool SET jit = off;
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN -- made by a migration of another database at this moment
            NULL;
        END;
    END LOOP;
    -- From Postgres 16 on, whoever made a role may grant it, and is a member that may not act as it: so this is a grant to oneself.
    IF NOT pg_has_role(current_user, 'onda_owner', CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END) THEN
        GRANT onda_owner TO CURRENT_USER;
    END IF;
    IF to_regnamespace('onda') IS NULL THEN
        CREATE SCHEMA onda AUTHORIZATION onda_owner;
    END IF;
    -- Only the database's owner may; where the login is not, it stays as Postgres makes it, without CREATE for everybody.
    IF pg_has_role(current_user, (SELECT nspowner FROM pg_namespace WHERE nspname = 'public'), 'USAGE') THEN
        REVOKE ALL ON SCHEMA public FROM PUBLIC;
    END IF;
    SET LOCAL ROLE onda_owner;
    CREATE TABLE IF NOT EXISTS onda.migration (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now());
END $$;
