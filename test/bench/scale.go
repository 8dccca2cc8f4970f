package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// factsEach is how many facts there are for each contact of a world, over two years; those that came first did most.
const factsEach = 10

// makePeople are the contacts; the parameter is how many.
const makePeople = `INSERT INTO contact (email, fields, tags, created_at)
	SELECT 'p' || n || '@example.com',
		jsonb_build_object('plan', CASE WHEN n %% 3 = 0 THEN 'paid' ELSE 'free' END, 'level', n %% 100, 'first_name', 'Ada', 'last_name', 'Lovelace' || n %% 1000,
			'city', (ARRAY['Lisbon', 'Oslo', 'Paris', 'Porto', 'Rome', 'Turin', 'Bergen', 'Lyon', 'Faro', 'Graz'])[1 + n / 7 %% 10],
			'birthday', to_char(date '1950-01-01' + (n * 7 %% 20000)::int, 'YYYY-MM-DD'),
			'trial_ends', to_char((onda.now() - interval '400 days' + n * 13 %% 43200 * interval '20 minutes') AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
		CASE WHEN n %% 50 = 0 THEN '{vip,beta}'::text[] WHEN n %% 10 = 0 THEN '{beta}' ELSE '{}' END,
		onda.now() - n * 17 %% 730 * interval '1 day'
	FROM generate_series(1, %[1]d::bigint) n`

// makeSubscriptions has three in four ask for the newsletter, of whom one in twenty said no later.
const makeSubscriptions = `INSERT INTO subscription (contact, purpose, state, consent, at)
	SELECT id, 'news', CASE WHEN id % 20 = 3 THEN 'withdrawn' ELSE 'granted' END, 0, onda.now() FROM contact WHERE id % 4 > 0`

// makePast are facts in the order in which they happened; the parameters are the first and the last of them, how many there will be, and of how many contacts.
const makePast = `INSERT INTO fact (kind, name, contact, data, at)
	SELECT (ARRAY['email.opened', 'email.opened', 'email.opened', 'email.opened', 'email.clicked', 'page.viewed', 'page.viewed', 'page.viewed', 'event.tracked', 'form.submitted'])[1 + k],
		CASE k WHEN 8 THEN 'order.placed' WHEN 9 THEN 'contact-us' ELSE '' END, 1 + floor(%[4]d * r * r)::bigint,
		CASE WHEN k < 5 THEN jsonb_build_object('hit', 1000000000 + i, 'link', i %% 10) WHEN k < 8 THEN jsonb_build_object('url', 'https://example.com/page/' || i %% 40)
			WHEN k = 8 THEN jsonb_build_object('total', i %% 400) ELSE '{}' END,
		onda.now() - interval '730 days' * (1 - i / %[3]d::float8)
	FROM (SELECT i, floor(random() * 10)::int AS k, random() AS r FROM generate_series(%[1]d::bigint, %[2]d::bigint) i OFFSET 0) f`

// scaleDocuments are the fields and the topic, and what mails need.
func scaleDocuments() string {
	return mailDocuments() + `
---
apiVersion: onda/v1
kind: Field
metadata: {name: level}
spec: {type: number}
---
apiVersion: onda/v1
kind: Field
metadata: {name: birthday}
spec: {type: date}
---
apiVersion: onda/v1
kind: Field
metadata: {name: trial_ends}
spec: {type: datetime}
`
}

// world gives the name of a database with a tenant of so many contacts and their past, which is made unless it is there. It may be of an older schema.
func world(ctx context.Context, server string, contacts int) (name string, err error) {
	const prefix = "onda_world_"
	name = fmt.Sprintf("%s%d_%x", prefix, contacts, sha256.Sum256([]byte(makePeople+makePast+makeSubscriptions+scaleDocuments())))[:60]
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return "", fmt.Errorf("connect to postgres: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close(context.Background())) }()
	rows, err := conn.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix)
	if err != nil {
		return "", fmt.Errorf("look for worlds: %w", err)
	}
	there, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", fmt.Errorf("look for worlds: %w", err)
	}
	if slices.Contains(there, name) {
		return name, nil
	}
	for _, old := range there { // made otherwise
		if !strings.HasPrefix(old, fmt.Sprintf("%s%d_", prefix, contacts)) {
			continue
		}
		if _, err := conn.Exec(ctx, "DROP DATABASE "+old+" WITH (FORCE)"); err != nil {
			return "", fmt.Errorf("drop an old world: %w", err)
		}
	}
	fmt.Printf("  making %d contacts and %d facts, which are kept for the next time\n", contacts, contacts*factsEach)
	l, err := newLab(ctx, options{server: server})
	if err != nil {
		return "", err
	}
	err = l.fill(ctx, contacts)
	l.db.Close() // nobody may be at a database that is given another name
	if err == nil {
		_, err = conn.Exec(ctx, "ALTER DATABASE "+l.database+" RENAME TO "+name)
	}
	return name, errors.Join(err, l.close())
}

// fill makes the contacts and their past.
func (l *lab) fill(ctx context.Context, contacts int) error {
	if err := l.apply(ctx, scaleDocuments()); err != nil {
		return err
	}
	statements := []string{fmt.Sprintf(makePeople, contacts), makeSubscriptions}
	const part = 1_000_000
	facts := contacts * factsEach
	for from := 1; from <= facts; from += part {
		statements = append(statements, fmt.Sprintf(makePast, from, min(from+part-1, facts), facts, contacts))
	}
	// All of it was read long ago.
	statements = append(statements, "UPDATE cursor SET (xid, id) = (SELECT xid, id FROM fact ORDER BY xid DESC, id DESC LIMIT 1) WHERE name IN ('segment', 'campaign', 'track')")
	if err := l.exec(ctx, statements...); err != nil {
		return err
	}
	return l.refresh(ctx)
}

// spread lays the facts of a world into so many partitions as those of a larger tenant are in: whoever looks for the facts of a contact looks in each.
func (l *lab) spread(ctx context.Context, partitions int) error {
	facts := l.contacts * factsEach
	statements := []string{"ALTER TABLE fact DETACH PARTITION fact_0"}
	for i := range partitions {
		to := strconv.Itoa((i+1)*(facts/partitions) + 1)
		if i == partitions-1 {
			to = "16777216" // as far as the one goes that they were in
		}
		name := "fact_part_" + strconv.Itoa(i)
		statements = append(statements, "CREATE TABLE "+name+" (LIKE fact INCLUDING ALL EXCLUDING IDENTITY)",
			fmt.Sprintf("ALTER TABLE fact ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%s)", name, i*(facts/partitions)+min(i, 1), to))
	}
	if err := l.own(ctx, append(statements, "INSERT INTO fact SELECT * FROM fact_0 ORDER BY id", "DROP TABLE fact_0")...); err != nil {
		return err
	}
	return l.refresh(ctx)
}
