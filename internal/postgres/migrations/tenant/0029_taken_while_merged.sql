-- While what a merged contact had is moved in steps, a hit may be the winner's already and its fact the loser's still, or the other way round: it was not marked then, and counted for good. Who
-- the losers are is looked up by their facts, which an index finds. One contact at a time, since for several Postgres would look by the time alone; and the first once more, whose the fact may
-- have become while it was waited for.
CREATE OR REPLACE FUNCTION mark_taken() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    whose bigint[] := ARRAY[NEW.contact];
    i integer := 1;
BEGIN
    WHILE i <= cardinality(whose) LOOP
        UPDATE fact SET data = CASE NEW.verdict WHEN 'machine' THEN data || '{"taken": true}' ELSE data - 'taken' END
         WHERE contact = whose[i] AND kind = CASE NEW.kind WHEN 'open' THEN 'email.opened' WHEN 'click' THEN 'email.clicked' END AND at = NEW.at AND (data->>'hit')::bigint = NEW.id;
        EXIT WHEN FOUND;
        IF i = 1 THEN
            whose := whose || ARRAY(SELECT merged_into FROM contact WHERE id = NEW.contact AND merged_into IS NOT NULL
                              UNION SELECT (data->>'contact')::bigint FROM fact WHERE contact = NEW.contact AND kind = 'contact.merged');
            EXIT WHEN cardinality(whose) = 1;
            whose := whose || NEW.contact;
        END IF;
        i := i + 1;
    END LOOP;
    RETURN NULL;
END $$;
