-- What goes out from a sender domain ('': from any) to a mailbox provider or a domain ('': to any): how fast, and whether at all.
CREATE TABLE throttle (
    domain     text NOT NULL,
    provider   text NOT NULL,
    rate       double precision NOT NULL DEFAULT 0,          -- pace: mails a second, as it was when the next two were written
    next_at    timestamptz NOT NULL DEFAULT '-infinity',     -- when the next first attempt may go out, by the server's clock
    again_at   timestamptz NOT NULL DEFAULT '-infinity',     -- the same for further attempts
    since      timestamptz NOT NULL DEFAULT now(),           -- breaker: what came of mails at once, halved each hour
    sent       integer NOT NULL DEFAULT 0,
    bounced    integer NOT NULL DEFAULT 0,                   -- hard: the address is wrong
    blocked    integer NOT NULL DEFAULT 0,
    since_day  timestamptz NOT NULL DEFAULT now(),           -- what came of them later, halved each day, and of how many
    mailed     integer NOT NULL DEFAULT 0,
    returned   integer NOT NULL DEFAULT 0,
    complained integer NOT NULL DEFAULT 0,
    open_until timestamptz NOT NULL DEFAULT '-infinity',     -- nothing goes out until then, by the tenant's clock
    trips      integer NOT NULL DEFAULT 0,                   -- how often it opened since it last went well
    why        text NOT NULL DEFAULT '',
    PRIMARY KEY (domain, provider)
) WITH (fillfactor = 50);

ALTER TABLE run
    ADD COLUMN planned_count bigint NOT NULL DEFAULT 0,      -- how many recipients were planned
    ADD COLUMN planned_of bigint NOT NULL DEFAULT 0,         -- of how many, when it is spread over a time
    ADD COLUMN pass text NOT NULL DEFAULT '' CHECK (pass IN ('', 'engaged', 'others')); -- a broadcast in a warm-up: who opened or clicked lately comes before the others

ALTER TABLE batch
    ADD COLUMN granted_to integer NOT NULL DEFAULT 0,        -- recipients up to here have their part of the quotas and warm-ups of a day
    ADD COLUMN granted_on date;
