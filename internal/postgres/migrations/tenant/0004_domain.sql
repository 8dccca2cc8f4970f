-- Sender domains: the version of a Domain that a check last found right, and when. Mails go by that version, not by one that nobody has tried.
ALTER TABLE entity ADD COLUMN verified bigint REFERENCES document, ADD COLUMN verified_at timestamptz;

-- dkim: a private key in PKCS #8; name is where DNS has the public one, published_at when a check saw it there.
ALTER TABLE key DROP CONSTRAINT key_kind_check;
ALTER TABLE key ADD CONSTRAINT key_kind_check CHECK (kind IN ('hmac', 'pepper', 'pk', 'sk', 'webhook', 'dkim'));
ALTER TABLE key ADD COLUMN published_at timestamptz;
CREATE UNIQUE INDEX key_dkim ON key (name) WHERE kind = 'dkim';
