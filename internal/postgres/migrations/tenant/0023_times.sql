-- What a sweep of segments finds by time besides facts: deliveries and contacts. Neither time is changed but with what other indexes are over, so these keep no update from being hot.
CREATE INDEX delivery_at ON delivery USING brin (at timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on);
CREATE INDEX contact_created ON contact USING brin (created_at timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on);
-- Facts that are about many contacts at once, whom no index finds: a few thousand to a million contacts.
CREATE INDEX fact_sets ON fact (kind, at) WHERE contacts IS NOT NULL;
