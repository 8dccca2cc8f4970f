-- One tenant's schema. Run as onda_owner with the schema first on the search path, so names are bare. The tenant's role owns nothing: it may
-- read and write what tables and sequences hold, by default privileges that internal/postgres sets, and make nothing.
-- Text with CHECK and no enum, domain or composite type: another schema's cached plan would fail on them.

-- Documents: what marketers write. A version is immutable; entity.current is the one in force (NULL: taken away).
CREATE TABLE entity (
    id      integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,   -- a topic's and form's number in tokens; never used again
    kind    text NOT NULL,
    name    text NOT NULL,
    current bigint,
    UNIQUE (kind, name)
);
CREATE TABLE document (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity     integer NOT NULL REFERENCES entity,
    version    integer NOT NULL,
    spec       jsonb NOT NULL,                                   -- canonical JSON, internal/spec.Decode reads it
    compiled   json,                                             -- of an email: its templates, put together with its layout; internal/spec.Compiled
    hash       bytea NOT NULL,                                   -- of spec as it was written
    applied_at timestamptz NOT NULL DEFAULT onda.now(),
    UNIQUE (entity, version)
);
ALTER TABLE entity ADD FOREIGN KEY (current) REFERENCES document;

CREATE TABLE link (                                              -- the only places a click may lead to
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    document bigint NOT NULL REFERENCES document,                -- the version of the email
    url      text NOT NULL,
    label    text NOT NULL DEFAULT '',
    UNIQUE (document, url)
);

CREATE TABLE key (                                               -- hmac: token keys, id is the key id in tokens
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('hmac', 'pepper', 'pk', 'sk')),
    secret     bytea NOT NULL,                                   -- of pk and sk only the SHA-256
    name       text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT onda.now(),
    retired_at timestamptz
);

-- People.
CREATE TABLE contact (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- never used again
    external_id text UNIQUE,
    email       text UNIQUE,                                     -- normalised
    fields      jsonb NOT NULL DEFAULT '{}',
    tags        text[] NOT NULL DEFAULT '{}',
    created_at  timestamptz NOT NULL DEFAULT onda.now(),
    changed_at  timestamptz NOT NULL DEFAULT onda.now(),
    expires_at  timestamptz,                                     -- unconfirmed: deleted then
    merged_into bigint,
    erased_at   timestamptz
);
CREATE INDEX contact_expires ON contact (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE consent (                                           -- the ledger: rows are only ever added
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    contact bigint NOT NULL,
    purpose text NOT NULL,                                       -- a topic's name, 'tracking.email' or 'tracking.web'
    channel text NOT NULL DEFAULT 'email',
    state   text NOT NULL CHECK (state IN ('pending', 'granted', 'withdrawn')),
    basis   text NOT NULL,                                       -- form, import, unsubscribe, preferences, complaint, api ...
    proof   jsonb NOT NULL DEFAULT '{}',                         -- form version, hash of the text shown, submission ...
    origin  bytea,                                               -- hashed address of origin
    origin_until timestamptz,                                    -- the origin is blanked then
    at      timestamptz NOT NULL DEFAULT onda.now()
);
CREATE INDEX consent_contact ON consent (contact, purpose, id);
CREATE INDEX consent_origin ON consent (origin_until) WHERE origin IS NOT NULL;
CREATE TABLE subscription (                                      -- the ledger's present state
    contact bigint NOT NULL,
    purpose text NOT NULL,
    state   text NOT NULL CHECK (state IN ('pending', 'granted', 'withdrawn')),
    consent bigint NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (contact, purpose)
);
CREATE INDEX subscription_purpose ON subscription (purpose, state, contact);

CREATE TABLE suppression (                                       -- by address, so that it outlives erasure and re-import
    hash     bytea NOT NULL,                                     -- HMAC(pepper, normalised address)
    channel  text NOT NULL DEFAULT 'email',
    reason   text NOT NULL CHECK (reason IN ('bounce', 'complaint', 'manual', 'erasure')),
    contact  bigint,
    delivery bigint,
    until    timestamptz NOT NULL DEFAULT 'infinity',
    at       timestamptz NOT NULL DEFAULT onda.now(),
    PRIMARY KEY (hash, channel, reason)
);
CREATE INDEX suppression_contact ON suppression (contact);

CREATE TABLE visitor (                                           -- not contacts; kept 30 days
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key      text NOT NULL UNIQUE,                               -- anonymousId
    contact  bigint,                                             -- attached by a form, a click or a secret-key identify
    first_at timestamptz NOT NULL DEFAULT onda.now(),
    last_at  timestamptz NOT NULL DEFAULT onda.now()
);
CREATE INDEX visitor_last ON visitor (last_at);

-- Segments.
CREATE TABLE segment (
    entity     integer PRIMARY KEY REFERENCES entity,
    document   bigint REFERENCES document,                       -- the version that its members were made by
    rebuild_to bigint NOT NULL DEFAULT 0,                        -- keyset cursor of a rebuild that is under way
    building   bigint REFERENCES document,                       -- NULL: no rebuild under way
    requested  boolean NOT NULL DEFAULT false,
    due_at     timestamptz NOT NULL DEFAULT 'infinity',          -- when time alone changes who is in it
    rebuilt_at timestamptz,
    members    bigint NOT NULL DEFAULT 0
);
CREATE TABLE member (
    segment integer NOT NULL,
    contact bigint NOT NULL,
    since   timestamptz NOT NULL DEFAULT onda.now(),
    kept    text NOT NULL DEFAULT '' CHECK (kept IN ('', 'in', 'out')),  -- by hand, survives every rebuild
    PRIMARY KEY (segment, contact)
);
CREATE INDEX member_contact ON member (contact);

-- Runs, batches, deliveries.
CREATE TABLE run (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('broadcast', 'campaign', 'standing')),  -- standing: a transactional email's
    entity     integer NOT NULL REFERENCES entity,
    document   bigint NOT NULL REFERENCES document,
    state      text NOT NULL CHECK (state IN ('scheduled', 'running', 'paused', 'cancelled', 'completed')),
    cause      text NOT NULL DEFAULT '',                         -- who or what started it
    starts_at  timestamptz NOT NULL DEFAULT onda.now(),
    audience   bigint,                                           -- how many it was started for
    planned_to bigint NOT NULL DEFAULT 0,                        -- keyset cursor over the audience's contacts
    planned    boolean NOT NULL DEFAULT false,                   -- the audience has been planned (or enrolled) in full
    started_at timestamptz,
    ended_at   timestamptz
);
CREATE UNIQUE INDEX run_open ON run (entity) WHERE state IN ('scheduled', 'running', 'paused');
CREATE INDEX run_entity ON run (entity, id);

CREATE TABLE batch (
    id          bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    run         bigint NOT NULL REFERENCES run,
    step        text NOT NULL DEFAULT '',
    attempt     integer NOT NULL DEFAULT 1,
    lane        smallint NOT NULL DEFAULT 0,                     -- 0 bulk (send), 1 transactional (send-api)
    email       bigint NOT NULL REFERENCES document,             -- the version of the email
    contacts    bigint[] NOT NULL CHECK (cardinality(contacts) BETWEEN 1 AND 500),  -- attempt > 1: deliveries
    mark        integer NOT NULL DEFAULT 0,
    fence       bigint NOT NULL DEFAULT 0,
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    not_before  timestamptz NOT NULL DEFAULT onda.now(),
    expires_at  timestamptz NOT NULL DEFAULT onda.now() + interval '24 hours',
    state       text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'closed')),
    sent        integer NOT NULL DEFAULT 0,                      -- counts are written when the batch closes
    deferred    integer NOT NULL DEFAULT 0,
    failed      integer NOT NULL DEFAULT 0,
    suppressed  integer NOT NULL DEFAULT 0,
    unknown     integer NOT NULL DEFAULT 0,
    cause       text NOT NULL DEFAULT '',                        -- id of the event or command that caused it
    planned_at  timestamptz NOT NULL DEFAULT onda.now(),
    closed_at   timestamptz
);
CREATE INDEX batch_open ON batch (lane, id) WHERE state = 'open';
CREATE INDEX batch_run ON batch (run, id);
CREATE INDEX batch_email ON batch (email, id);                   -- the run of an aggregate click

-- A delivery's id is its batch's id * 512 + its number in it (from 1); its row is written with its outcome.
CREATE TABLE delivery (
    id            bigint NOT NULL PRIMARY KEY,
    contact       bigint NOT NULL,
    state         text NOT NULL CHECK (state IN ('sent', 'deferred', 'failed', 'suppressed', 'unknown')),
    attempt       integer NOT NULL DEFAULT 1,
    reason        text CHECK (reason IN ('no_consent', 'pending', 'suppressed', 'capped', 'duplicate', 'expired', 'late', 'quota',
                                         'cancelled', 'domain_unverified', 'bad_address', 'erased')),
    class         text CHECK (class IN ('hard', 'soft', 'block', 'policy')),
    code          integer,                                       -- SMTP reply code
    status        text,                                          -- RFC 3463
    detail        text,                                          -- first line of the reply, addresses blanked out
    tracking      text CHECK (tracking IN ('full', 'aggregate', 'none')),
    at            timestamptz NOT NULL DEFAULT now(),
    retry_at      timestamptz,
    delivered_at  timestamptz,                                   -- what came back later
    bounced_at    timestamptz,
    bounce_class  text CHECK (bounce_class IN ('hard', 'soft', 'block', 'policy')),
    complained_at timestamptz
) PARTITION BY RANGE (id);
CREATE INDEX delivery_contact ON delivery (contact, id);
CREATE INDEX delivery_retry ON delivery (retry_at) WHERE state = 'deferred';

CREATE TABLE request (                                           -- of one transactional mail; kept 7 days
    delivery    bigint PRIMARY KEY,
    key         text UNIQUE,                                     -- Idempotency-Key
    hash        bytea NOT NULL,                                  -- of the request, to tell a repeat from a reuse of the key
    data        jsonb NOT NULL DEFAULT '{}',
    attachments jsonb NOT NULL DEFAULT '[]',
    at          timestamptz NOT NULL DEFAULT onda.now()
);
CREATE INDEX request_at ON request (at);

CREATE TABLE allowance (                                         -- caps, quotas, duplicates: reservations
    kind    text NOT NULL,                                       -- cap:<topic or *>, quota, duplicate:<run>:<step>
    contact bigint NOT NULL,                                     -- 0: the tenant
    period  timestamptz NOT NULL,
    n       integer NOT NULL,
    PRIMARY KEY (kind, contact, period)
);
CREATE INDEX allowance_period ON allowance (period);

-- Journeys: contacts in campaigns.
CREATE TABLE journey (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run        bigint NOT NULL,
    contact    bigint NOT NULL,
    key        text NOT NULL DEFAULT '',                         -- one journey a key, when entered by an event with one
    document   bigint NOT NULL REFERENCES document,              -- the version it entered and keeps
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'done', 'goal', 'left', 'cancelled')),
    outcome    text NOT NULL DEFAULT '',                         -- the label of the exit step
    step       text NOT NULL,                                    -- node of the campaign's flow it stands at
    step_at    timestamptz NOT NULL DEFAULT onda.now(),
    visit      integer NOT NULL DEFAULT 1,                       -- number of the step it stands at, in its own history
    due_at     timestamptz NOT NULL DEFAULT onda.now(),          -- 'infinity': waits for an event alone
    until      timestamptz,                                      -- deadline of the wait it stands at
    data       jsonb NOT NULL DEFAULT '{}',                      -- of the event that started it
    cause      text NOT NULL DEFAULT '',
    entered_at timestamptz NOT NULL DEFAULT onda.now(),
    ended_at   timestamptz
);
CREATE UNIQUE INDEX journey_active ON journey (run, contact, key) WHERE state = 'active';
CREATE INDEX journey_due ON journey (run, due_at) WHERE state = 'active';  -- by run: those of a paused one are passed over
CREATE INDEX journey_contact ON journey (contact, run);
CREATE TABLE step (                                              -- a journey's history: a step is done once, a row each
    journey  bigint NOT NULL,
    visit    integer NOT NULL,
    step     text NOT NULL,
    branch   text NOT NULL DEFAULT '',                           -- then, else, timeout ...
    delivery bigint,                                             -- of a send step
    at       timestamptz NOT NULL DEFAULT onda.now(),
    PRIMARY KEY (journey, visit)
);
CREATE INDEX step_delivery ON step (delivery) WHERE delivery IS NOT NULL;

-- What happened.
CREATE TABLE fact (
    xid        xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id         bigint GENERATED BY DEFAULT AS IDENTITY,
    kind       text NOT NULL,                                    -- email.clicked, segment.joined, tag.changed ...
    name       text NOT NULL DEFAULT '',                         -- event.tracked: its name; consent: purpose; segment, form: name ...
    contact    bigint,
    visitor    bigint,
    run        bigint,
    contacts   bigint[],
    deliveries bigint[],
    data       jsonb,
    at         timestamptz NOT NULL DEFAULT onda.now(),          -- when it happened, not when it was written
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);
CREATE INDEX fact_cursor ON fact (xid, id);
CREATE INDEX fact_contact ON fact (contact, kind, at) WHERE contact IS NOT NULL;

CREATE TABLE cursor (
    name text PRIMARY KEY,
    xid  xid8 NOT NULL DEFAULT '0',
    id   bigint NOT NULL DEFAULT 0,
    base bigint NOT NULL DEFAULT 0                               -- what the default of fact.xid adds to this server's: see Admin.Rearm
);
INSERT INTO cursor (name) VALUES ('segment'), ('campaign');

CREATE TABLE hit (                                               -- requests of pixels and links, as they came
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind      text NOT NULL CHECK (kind IN ('open', 'click', 'view')),
    delivery  bigint NOT NULL DEFAULT 0,                         -- 0: aggregate
    contact   bigint,
    link      integer NOT NULL DEFAULT 0,
    run       bigint,
    step      text NOT NULL DEFAULT '',
    agent     text NOT NULL DEFAULT '',
    method    text NOT NULL DEFAULT 'GET',
    origin    bytea,                                             -- hashed
    verdict   text CHECK (verdict IN ('human', 'machine')),      -- NULL: not judged yet
    reason    text NOT NULL DEFAULT '',
    at        timestamptz NOT NULL DEFAULT onda.now()
);
CREATE INDEX hit_unjudged ON hit (at) WHERE verdict IS NULL;
CREATE INDEX hit_delivery ON hit (delivery) WHERE delivery > 0;
CREATE INDEX hit_origin ON hit (at) WHERE origin IS NOT NULL;       -- to be blanked

CREATE TABLE stat (
    run     bigint NOT NULL,
    step    text NOT NULL,
    hour    timestamptz NOT NULL,
    kind    text NOT NULL,                                       -- open, click, unsubscribe, complaint, bounce
    verdict text NOT NULL DEFAULT '',                            -- human, machine; bounces: their class
    link    integer NOT NULL DEFAULT 0,
    tracked boolean NOT NULL DEFAULT true,                       -- false: aggregate
    n       bigint NOT NULL,
    firsts  bigint NOT NULL DEFAULT 0,                           -- of which the first of their delivery
    PRIMARY KEY (run, step, hour, kind, verdict, link, tracked)
);

CREATE TABLE submission (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    form         integer NOT NULL REFERENCES entity,
    document     bigint NOT NULL REFERENCES document,
    contact      bigint,
    state        text NOT NULL CHECK (state IN ('pending', 'confirmed', 'done', 'rejected', 'expired')),
    reason       text NOT NULL DEFAULT '',
    once         bytea UNIQUE,                                   -- of the rendered page, so that a repeated post is one submission
    data         jsonb NOT NULL DEFAULT '{}',
    origin       bytea,
    delivery     bigint,                                         -- the confirmation mail
    at           timestamptz NOT NULL DEFAULT onda.now(),
    expires_at   timestamptz NOT NULL DEFAULT 'infinity',        -- of a pending one
    confirmed_at timestamptz,
    keep_until   timestamptz NOT NULL DEFAULT 'infinity'
);
CREATE INDEX submission_origin ON submission (form, origin, at);
CREATE INDEX submission_contact ON submission (contact);
CREATE INDEX submission_pending ON submission (expires_at) WHERE state = 'pending';
CREATE INDEX submission_keep ON submission (keep_until) WHERE keep_until < 'infinity';

-- Events on their way out, and those that can never succeed.
CREATE TABLE outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    drainer     text NOT NULL,
    type        text NOT NULL,
    event       jsonb NOT NULL,                                  -- structured CloudEvent; a doorbell's items are merged when posted
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    tries       integer NOT NULL DEFAULT 0,
    at          timestamptz NOT NULL DEFAULT onda.now()
);
CREATE INDEX outbox_drainer ON outbox (drainer, id);
CREATE TABLE failure (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    function    text NOT NULL,
    event       jsonb NOT NULL,
    error       text NOT NULL,
    at          timestamptz NOT NULL DEFAULT onda.now(),
    replayed_at timestamptz
);

-- What only an owner may do and functions need in the middle of their work. These two run as onda_owner, so they take no names and no values from their
-- caller, and look names up in this schema alone.

-- Makes the next partition of deliveries and of facts when the present one is half used, so that no writer ever finds none.
CREATE FUNCTION ensure_partitions() RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    width CONSTANT bigint := 1 << 24;                            -- in ids
    parent text;
    counter text;
    used bigint;
    lo bigint;
    hi bigint;
    recipients bigint;
BEGIN
    FOREACH parent IN ARRAY '{delivery,fact}'::text[] LOOP
        -- A batch has 512 delivery ids, however few its recipients are.
        counter := pg_get_serial_sequence(CASE parent WHEN 'delivery' THEN 'batch' ELSE parent END, 'id');
        used := coalesce(pg_sequence_last_value(counter::regclass), 0) * CASE parent WHEN 'delivery' THEN 512 ELSE 1 END;
        FOR look IN 1..2 LOOP
            SELECT coalesce(max(substring(b FROM 'FROM \(''?(\d+)''?\)')::bigint), 0), coalesce(max(substring(b FROM 'TO \(''?(\d+)''?\)')::bigint), 0) INTO lo, hi
              FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid, pg_get_expr(c.relpartbound, c.oid) b WHERE i.inhparent = parent::regclass;
            EXIT WHEN hi > 0 AND used < lo + (hi - lo) / 2;
            IF look = 1 THEN                                     -- another may make it meanwhile; no reader or writer is kept waiting
                EXECUTE format('LOCK TABLE %I IN SHARE UPDATE EXCLUSIVE MODE', parent);
                CONTINUE;
            END IF;
            recipients := 512;
            IF parent = 'delivery' THEN                          -- wider by how far batches are from full
                SELECT coalesce(avg(n)::bigint, 512) INTO recipients FROM (SELECT cardinality(contacts) n FROM batch ORDER BY id DESC LIMIT 1000) b;
            END IF;
            -- LIKE and ATTACH, since PARTITION OF waits for every reader of the table. EXCLUDING IDENTITY: the parent's counts, and Postgres 17 refuses to
            -- attach a table that has one of its own.
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING IDENTITY)', parent || '_' || hi, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', parent, parent || '_' || hi, hi,
                greatest(hi, used) + width * 512 / greatest(recipients, 1));
        END LOOP;
    END LOOP;
END $$;
SELECT ensure_partitions();

-- Tells Postgres how large an import has made the tables.
CREATE FUNCTION update_statistics() RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS
$$ ANALYZE contact, consent, subscription, fact $$;
