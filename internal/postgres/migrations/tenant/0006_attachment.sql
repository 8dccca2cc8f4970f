-- Files that go out with emails, by their hash, which the versions of emails name.
CREATE TABLE attachment (
    sha256  bytea PRIMARY KEY,
    content bytea NOT NULL
);
ALTER TABLE attachment ALTER COLUMN content SET STORAGE EXTERNAL;       -- most are compressed already
