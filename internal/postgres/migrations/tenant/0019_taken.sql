-- A fact of an open or a click says itself that its hit was found to be a machine's later, by data.taken: the hit is forgotten before it. Written by internal/track; here for what was
-- corrected so far.
UPDATE fact f SET data = f.data || '{"taken": true}'
  FROM hit h
 WHERE h.verdict = 'machine' AND f.contact = h.contact AND f.at = h.at AND f.kind IN ('email.opened', 'email.clicked') AND (f.data->>'hit')::bigint = h.id;
