-- What happened between two moments, of whomever: segments are swept for what time alone changes. It takes a few hundred KB a partition and costs writers next to nothing; what was told late is
-- borne by there being several ranges a block.
CREATE INDEX fact_at ON fact USING brin (at timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on);
