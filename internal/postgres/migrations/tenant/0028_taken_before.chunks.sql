-- Marks the facts of what was corrected before 0027, 500 hits at once, each of which may be looked for on a cold disk in every partition, while readers of facts wait. Each hit is looked up by
-- itself: a join of such a chunk with all facts would read all of them. Those that are marked are locked first, so that nobody corrects them back meanwhile.
WITH upto AS MATERIALIZED (
    SELECT max(id) AS id FROM (SELECT id FROM hit WHERE id > (SELECT id FROM cursor WHERE name = 'taken') AND id <= (SELECT (data->>'to')::bigint FROM cursor WHERE name = 'taken') ORDER BY id LIMIT 500) l
), corrected AS MATERIALIZED (
    SELECT f.id
      FROM hit h
     CROSS JOIN LATERAL (SELECT id FROM fact WHERE contact = h.contact AND kind = CASE h.kind WHEN 'open' THEN 'email.opened' WHEN 'click' THEN 'email.clicked' END AND at = h.at
                                               AND (data->>'hit')::bigint = h.id AND NOT data ? 'taken' LIMIT 1) f
     WHERE h.id > (SELECT id FROM cursor WHERE name = 'taken') AND h.id <= (SELECT id FROM upto) AND h.verdict = 'machine' ORDER BY h.id FOR SHARE OF h
), marked AS (
    UPDATE fact SET data = data || '{"taken": true}' WHERE id = ANY (ARRAY(SELECT id FROM corrected))
), through AS (
    DELETE FROM cursor WHERE name = 'taken' AND (SELECT id FROM upto) IS NULL
)
UPDATE cursor SET id = (SELECT id FROM upto) WHERE name = 'taken' AND (SELECT id FROM upto) IS NOT NULL;
