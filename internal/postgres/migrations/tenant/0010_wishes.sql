-- What a person wishes of marketing mail beside topics; read by internal/contact. Nullable and without a check, so that no row is read or written by this.
ALTER TABLE contact
    ADD COLUMN paused_until timestamptz,                         -- none until then
    ADD COLUMN frequency text;                                   -- at most so many: 3/week, 1/month
