package campaign

import (
	"context"
	"fmt"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

// Preflight says who would get the mail of a broadcast now, or enter a campaign now, and who would not and why.
type Preflight struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Email is what a broadcast sends; of a campaign, the first mail that it sends.
	Email string `json:"email,omitempty"`
	// Segment is the audience of a broadcast, where it is one segment.
	Segment string `json:"segment,omitempty"`
	// Topic is the email's; empty when it is transactional, or a campaign's mails are of several.
	Topic string `json:"topic,omitempty"`
	// Audience is how many are in it; Excluded how many of them are left out by exclude.
	Audience int64 `json:"audience"`
	Excluded int64 `json:"excluded"`
	// Recipients are those who will get the mail; Refused are the others of the audience, by reason.
	Recipients int64            `json:"recipients"`
	Refused    map[string]int64 `json:"refused"`
	// Unverified says of which of its emails the domain that they are from is not verified, and the remedy: a line each.
	Unverified []string `json:"unverified,omitempty"`
}

// GetPreflight looks at the campaign or broadcast in force of a name. One statement counts the whole audience. ErrNotFound, ErrAmbiguous.
func GetPreflight(ctx context.Context, tx *postgres.Tx, name string) (Preflight, error) {
	v, err := find(ctx, tx, name)
	if err != nil {
		return Preflight{}, err
	}
	b := v.broadcast()
	p := Preflight{Kind: "broadcast", Name: v.name, Refused: map[string]int64{}}
	if b != nil {
		p.Segment = b.To.Segment
	}
	mails := []string{}
	if b != nil {
		mails = append(mails, b.Email)
	} else if v.flow != nil {
		mails = allMails(v.flow)
	}
	if len(mails) > 0 {
		if p.Unverified, err = senderdomain.Unverified(ctx, tx, mails...); err != nil {
			return Preflight{}, err
		}
	}
	if c := v.campaign(); c != nil {
		p.Kind = "campaign"
		b = &spec.Broadcast{Exclude: c.Exclude}
		if len(mails) > 0 {
			b.Email = mails[0]
		}
		for _, way := range c.Enter { // those in its segments enter at its start
			if way.Segment != "" {
				b.To.Any = append(b.To.Any, spec.Predicate{Segment: way.Segment})
			}
		}
		if len(b.To.Any) == 0 { // entered by events alone
			return p, nil
		}
		if len(b.To.Any) == 1 {
			b.To = b.To.Any[0]
		}
	}
	p.Email = b.Email
	if b.Email != "" {
		e, err := (*documents)(nil).current(ctx, tx, spec.KindEmail, b.Email)
		if err != nil {
			return Preflight{}, err
		}
		if m, ok := e.doc.(*spec.Email); ok {
			p.Topic = m.Topic
		}
	}
	return p, p.count(ctx, tx, b)
}

// allMails are the emails of the send steps.
func allMails(f *spec.Flow) (emails []string) {
	for _, n := range f.Nodes {
		if n.Kind == "send" {
			emails = append(emails, n.Step.Send.Email)
		}
	}
	return emails
}

func (p *Preflight) count(ctx context.Context, tx *postgres.Tx, b *spec.Broadcast) error {
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return err
	}
	from, excluded, args, err := peopleSQL(b, env, 2)
	if err != nil {
		return fmt.Errorf("%s %s, %w", p.Kind, p.Name, err)
	}
	reason := "NULL::text" // nothing is sent, so nobody is refused
	if b.Email != "" {
		topic := ""
		if p.Topic != "" {
			topic = "t.topic"
		}
		reason = contact.GateSQL("c", topic)
	}
	rows, err := tx.Query(ctx, `SELECT CASE WHEN `+excluded+` THEN 'excluded' ELSE coalesce(`+reason+`, '') END, count(*)
		FROM (SELECT $1::text AS topic) t CROSS JOIN `+from+` GROUP BY 1`, append([]any{p.Topic}, args...)...)
	if err != nil {
		return fmt.Errorf("count the audience of %s: %w", p.Name, err)
	}
	err = eachRow(rows, func(reason string, n int64) {
		p.Audience += n
		switch reason {
		case "":
			p.Recipients = n
		case "excluded":
			p.Excluded = n
		default:
			p.Refused[reason] = n
		}
	})
	if err != nil {
		return fmt.Errorf("count the audience of %s: %w", p.Name, err)
	}
	return nil
}
