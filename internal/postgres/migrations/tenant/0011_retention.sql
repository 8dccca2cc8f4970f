-- What Settings.retention says of deliveries and facts. Whole partitions go at once; internal/track does it.

-- A batch whose deliveries are forgotten keeps its counts, for reports, and whom it was for no longer: mark is how many they were.
ALTER TABLE batch DROP CONSTRAINT batch_contacts_check;
ALTER TABLE batch ADD CONSTRAINT batch_contacts_check CHECK (cardinality(contacts) BETWEEN CASE state WHEN 'open' THEN 1 ELSE 0 END AND 500) NOT VALID;
CREATE INDEX batch_kept ON batch (id) WHERE cardinality(contacts) > 0;  -- marks leave it alone, and there is one for 500 mails

-- The oldest partition of delivery or of fact, and its bounds, once new rows go into another; none until then.
CREATE FUNCTION oldest_partition(parent text) RETURNS TABLE (part text, lo bigint, hi bigint) LANGUAGE sql STABLE AS $$
    SELECT o.part, o.lo, o.hi
      FROM (SELECT c.relname::text AS part, substring(b FROM 'FROM \(''?(\d+)''?\)')::bigint AS lo, substring(b FROM 'TO \(''?(\d+)''?\)')::bigint AS hi
              FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) b WHERE i.inhparent = parent::regclass ORDER BY 2 LIMIT 1) o
     WHERE o.hi <= coalesce(pg_sequence_last_value(pg_get_serial_sequence(CASE parent WHEN 'delivery' THEN 'batch' ELSE parent END, 'id')::regclass), 0)
                   * CASE parent WHEN 'delivery' THEN 512 ELSE 1 END
$$;

-- Drops the oldest partition of deliveries or of facts if nothing in it is younger than the time given (NULL: it is kept for ever), and nothing may still change or read it. true
-- when one was dropped: there may be more. It runs as onda_owner, so it takes no names from its caller. The lock it needs is waited for so briefly that no hit and no mail is held up
-- behind it: where somebody has the table at that moment, it gives way, and is asked again.
CREATE FUNCTION drop_partition(deliveries timestamptz, facts timestamptz) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET lock_timeout = '50ms' AS $$
DECLARE
    parent text;
    before timestamptz;
    o record;
    held text;
    keep boolean;
BEGIN
    FOR parent, before IN VALUES ('delivery', deliveries), ('fact', facts) LOOP
        SELECT part, lo, hi INTO o FROM oldest_partition(parent);
        CONTINUE WHEN before IS NULL OR NOT FOUND;
        IF parent = 'delivery' THEN                              -- mails that wait, for whatever attempt
            held := format('SELECT EXISTS (SELECT FROM batch WHERE state = ''open'' AND id >= %s AND id < %s) OR EXISTS (SELECT FROM %I WHERE state = ''deferred'')', o.lo >> 9, o.hi >> 9, o.part);
        ELSE                                                     -- facts that a reader has not come to
            held := format('SELECT EXISTS (SELECT FROM cursor c, LATERAL (SELECT FROM %I f WHERE (f.xid, f.id) > (c.xid, c.id) LIMIT 1) f)', o.part);
        END IF;
        EXECUTE held INTO keep;
        CONTINUE WHEN keep;
        -- Those that came last are looked at first, and given a day for retries, since to look at all takes seconds.
        EXECUTE format('SELECT coalesce(max(at) > $1 - interval ''1 day'', false) FROM (SELECT at FROM %I ORDER BY id DESC LIMIT 1000) l', o.part) INTO keep USING before;
        CONTINUE WHEN keep;
        EXECUTE format('SELECT EXISTS (SELECT FROM %I WHERE at > $1)', o.part) INTO keep USING before;
        CONTINUE WHEN keep;
        BEGIN
            EXECUTE format('LOCK TABLE ONLY %I IN ACCESS EXCLUSIVE MODE', parent);
            EXECUTE held INTO keep;                              -- again, now that nobody writes
            CONTINUE WHEN keep;
            EXECUTE format('DROP TABLE %I', o.part);
            RETURN true;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END LOOP;
    RETURN false;
END $$;
