-- A fact of an open or a click says itself, by data.taken, that its hit was found to be a machine's later: the hit is forgotten before it. Whoever corrects the hit, versions before this one
-- as well, that is written here. What was corrected so far is for 0028, up to the hit that is noted.
CREATE FUNCTION mark_taken() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE fact SET data = CASE NEW.verdict WHEN 'machine' THEN data || '{"taken": true}' ELSE data - 'taken' END
     WHERE contact = NEW.contact AND kind = CASE NEW.kind WHEN 'open' THEN 'email.opened' WHEN 'click' THEN 'email.clicked' END AND at = NEW.at AND (data->>'hit')::bigint = NEW.id;
    RETURN NULL;
END $$;
CREATE TRIGGER mark_taken AFTER UPDATE OF verdict ON hit FOR EACH ROW WHEN (OLD.verdict <> NEW.verdict) EXECUTE FUNCTION mark_taken();
INSERT INTO cursor (name, xid, base, data)
SELECT 'taken', NULL, base, jsonb_build_object('to', pg_sequence_last_value(pg_get_serial_sequence('hit', 'id')::regclass)) FROM cursor WHERE name = 'segment';
