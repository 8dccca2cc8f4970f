-- What a tenant may send, by its file; NULL for as much as it likes. In the row that every transaction of the tenant reads anyway.
ALTER TABLE onda.tenant
    ADD COLUMN mails_per_second double precision CHECK (mails_per_second > 0),
    ADD COLUMN mails_per_day bigint CHECK (mails_per_day >= 0),
    ADD COLUMN mails_per_month bigint CHECK (mails_per_month >= 0);

-- How fast a relay is used by all tenants of a cell and all processes: when its next mail may go out.
CREATE TABLE onda.relay (
    name    text PRIMARY KEY CHECK (length(name) <= 300),
    next_at timestamptz NOT NULL
);
-- Takes some mails' time at a relay, unless that is further ahead than the caller would wait, and gives how many seconds from now it begins, or how long that is.
-- A tenant with a login of its own has its own time at relays, which is no other's: at few of them, and by no more than a minute ahead.
CREATE FUNCTION onda.relay_slots(relay text, mails integer, per_second double precision, ahead double precision, OUT taken boolean, OUT wait double precision)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    whose text := CASE WHEN session_user = 'onda_pool' THEN '' ELSE session_user || ' ' END;
    length interval := make_interval(secs => least(greatest(mails, 0) / greatest(per_second, 0.01), 60));
    at timestamptz;
BEGIN
    IF whose <> '' AND (SELECT count(*) FROM onda.relay r WHERE r.name <> whose || relay AND starts_with(r.name, whose)) >= 20 THEN
        RAISE EXCEPTION 'too many relays of %', session_user;
    END IF;
    INSERT INTO onda.relay AS r (name, next_at) VALUES (whose || relay, clock_timestamp() + length)
    ON CONFLICT (name) DO UPDATE SET next_at = greatest(r.next_at, clock_timestamp()) + length
        WHERE r.next_at <= clock_timestamp() + make_interval(secs => least(ahead, 60))
    RETURNING r.next_at - length INTO at;
    taken := at IS NOT NULL;
    IF NOT taken THEN
        SELECT r.next_at INTO at FROM onda.relay r WHERE r.name = whose || relay_slots.relay;
    END IF;
    wait := greatest(0, extract(epoch FROM at - clock_timestamp()));
END $$;
REVOKE ALL ON FUNCTION onda.relay_slots FROM PUBLIC;
GRANT EXECUTE ON FUNCTION onda.relay_slots TO onda_tenant, onda_pool;
