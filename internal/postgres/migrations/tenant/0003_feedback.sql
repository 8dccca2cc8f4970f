-- Webhooks of providers: what proves that they are theirs, and what they told until it is worked off.
ALTER TABLE key DROP CONSTRAINT key_kind_check;
ALTER TABLE key ADD CONSTRAINT key_kind_check CHECK (kind IN ('hmac', 'pepper', 'pk', 'sk', 'webhook')); -- webhook: name is the provider, in force until retired_at

CREATE TABLE feedback (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery bigint NOT NULL,
    kind     text NOT NULL CHECK (kind IN ('delivered', 'bounced', 'complained', 'unsubscribed')),
    class    text NOT NULL DEFAULT '',                               -- of bounced: hard, soft, block, policy
    at       timestamptz NOT NULL,                                   -- when it happened
    taken_at timestamptz NOT NULL DEFAULT onda.now()
);
