package campaign

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// recheck is after how long a wait is looked at again when something is pending that no fact announces: a hit that is not judged yet, a mail that
// is still queued, a predicate that time alone may make true.
const (
	recheckHit   = time.Minute
	recheckQueue = 5 * time.Minute
	recheckMatch = time.Hour
)

// grace is how long after its deadline a wait for an event is decided: an event of the last moment may be in a transaction that is still going on.
const grace = 5 * time.Second

// pass takes a chunk of one run's journeys as far as they go, within one transaction.
type pass struct {
	docs    *documents
	tx      *postgres.Tx
	run     int64
	zone    *time.Location // the tenant's
	zones   map[string]*time.Location
	env     predicate.Env // what predicates are read with
	all     []int64       // the contacts of all its journeys
	locked  bool          // they are
	history history
	batches []delivery.Batch
}

// advance moves up to limit of the run's due journeys. It gives the batches that they made, for which the caller rings; more tells that others may be due, or
// these again.
func (d *documents) advance(ctx context.Context, tx *postgres.Tx, run int64, limit int) (more bool, batches []delivery.Batch, err error) {
	js, err := lease(ctx, tx, run, limit)
	if err != nil || len(js) == 0 {
		return false, nil, err
	}
	settings, err := d.settings(ctx, tx)
	if err != nil {
		return false, nil, err
	}
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return false, nil, err
	}
	p := &pass{docs: d, tx: tx, run: run, zone: settings.Location(), zones: map[string]*time.Location{}, env: env, all: contactsOf(js)}
	if err := p.walk(ctx, js); err != nil {
		return false, nil, err
	}
	if err := save(ctx, tx, js); err != nil {
		return false, nil, err
	}
	v, err := d.load(ctx, tx, js[0].document) // all are of one campaign
	if err != nil {
		return false, nil, err
	}
	if err := tx.AddFacts(ctx, ended(v.name, js)...); err != nil {
		return false, nil, err
	}
	again := slices.ContainsFunc(js, func(j *journey) bool { return !j.parked })
	return again || len(js) == limit, p.batches, nil
}

// walk takes the journeys from step to step until each stands at one where it must wait.
func (p *pass) walk(ctx context.Context, js []*journey) error {
	changed := true // goal and leave are asked first, and again after steps that change contacts
	for range maxImmediate {
		js = slices.DeleteFunc(slices.Clone(js), func(j *journey) bool { return j.parked })
		if len(js) == 0 {
			return nil
		}
		byDocument, documents := groups(js, func(j *journey) int64 { return j.document })
		asked := changed
		changed = false
		for _, id := range documents {
			v, err := p.docs.load(ctx, p.tx, id)
			if err != nil {
				return err
			}
			if v.flow == nil {
				return fmt.Errorf("document %d is no campaign, and journeys are in it", id)
			}
			group := byDocument[id]
			if asked {
				if group, err = p.ends(ctx, v, group); err != nil {
					return err
				}
			}
			byStep, steps := groups(group, func(j *journey) string { return j.step })
			for _, step := range steps {
				node, ok := v.flow.Node(step)
				if !ok {
					return fmt.Errorf("campaign %s version %d has no step %q, and journeys stand at it", v.name, v.number, step)
				}
				if err := p.do(ctx, v, node, byStep[step]); err != nil {
					return fmt.Errorf("campaign %s, step %s: %w", v.name, node.ID, err)
				}
				if err := p.history.write(ctx, p.tx); err != nil { // at once, since later steps of this pass read it
					return err
				}
				changed = changed || node.Kind == "tag" || node.Kind == "update" || node.Kind == "score"
			}
		}
	}
	return nil // the rest is due at once
}

// groups splits journeys by a key and gives the keys in order. The journeys of a group are in order of contact.
func groups[K cmp.Ordered](js []*journey, key func(*journey) K) (map[K][]*journey, []K) {
	by := map[K][]*journey{}
	var keys []K
	for _, j := range js {
		k := key(j)
		if by[k] == nil {
			keys = append(keys, k)
		}
		by[k] = append(by[k], j)
	}
	slices.Sort(keys)
	for _, k := range keys {
		slices.SortFunc(by[k], func(a, b *journey) int { return cmp.Or(cmp.Compare(a.contact, b.contact), cmp.Compare(a.id, b.id)) })
	}
	return by, keys
}

// ends takes those out who reached the campaign's goal, or left it, and gives the others.
func (p *pass) ends(ctx context.Context, v *version, js []*journey) ([]*journey, error) {
	for _, end := range []struct {
		state string
		when  *spec.Predicate
	}{{goal, v.campaign().Goal}, {left, v.campaign().Leave}} {
		if end.when == nil {
			continue
		}
		is, err := p.matching(ctx, v, end.when, js)
		if err != nil {
			return nil, fmt.Errorf("campaign %s, %s: %w", v.name, end.state, err)
		}
		stay := js[:0:0]
		for _, j := range js {
			if !is[j.contact] {
				stay = append(stay, j)
				continue
			}
			p.history.move(j, end.state, "", p.tx.Now())
			j.end(end.state, "")
		}
		js = stay
	}
	return js, p.history.write(ctx, p.tx)
}

// do takes one step with all journeys that stand at it.
func (p *pass) do(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	switch n.Kind {
	case "send":
		return p.send(ctx, v, n, js)
	case "wait":
		return p.wait(ctx, v, n, js)
	case "if":
		return p.branch(ctx, v, n, js)
	case "tag", "update", "score", "stage":
		return p.change(ctx, v, n, js)
	case "goto":
		return p.jump(ctx, n, js)
	case "exit":
		for _, j := range js {
			j.outcome = n.Step.Exit.Reason
			p.history.move(j, "", "", j.stepAt)
		}
		return nil
	}
	return fmt.Errorf("steps of kind %q are unknown", n.Kind)
}

// location is where a journey's clocks are read.
func (p *pass) location(v *version, j *journey) *time.Location {
	zone := string(v.campaign().Zone)
	if v.campaign().Zone == spec.ZoneContact {
		zone = "contact " + j.zone
	}
	loc := p.zones[zone]
	if loc == nil {
		loc = v.campaign().Zone.Location(j.zone, p.zone)
		p.zones[zone] = loc
	}
	return loc
}

// branch parts the journeys by a predicate.
func (p *pass) branch(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	is, err := p.matching(ctx, v, n.Step.If, js)
	if err != nil {
		return err
	}
	for _, j := range js {
		if is[j.contact] {
			p.history.move(j, "then", n.Then, j.stepAt)
		} else {
			p.history.move(j, "else", n.Else, j.stepAt)
		}
	}
	return nil
}

// change tags contacts, sets their fields, gives them points or moves them to a stage.
func (p *pass) change(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	if !p.locked { // one step after the other would lock them in another order than a pass of another campaign does
		if err := contact.Lock(ctx, p.tx, p.all); err != nil {
			return err
		}
		p.locked = true
	}
	var err error
	if s := n.Step.Score; s != nil {
		points := make([]contact.Points, len(js)) // one for each journey: a contact may be in several by their keys
		for i, j := range js {
			points[i] = contact.Points{Contact: j.contact, Group: s.Group, Add: int64(s.Add)}
		}
		err = contact.AddPoints(ctx, p.tx, drainer, points, cause(v, n))
	} else if n.Step.Stage != "" {
		err = contact.SetStage(ctx, p.tx, drainer, contactsOf(js), n.Step.Stage, cause(v, n))
	} else if t := n.Step.Tag; t != nil {
		err = contact.Update(ctx, p.tx, drainer, contactsOf(js), contact.Change{AddTags: t.Add, RemoveTags: t.Remove}, cause(v, n))
	} else {
		err = contact.Assign(ctx, p.tx, drainer, contactsOf(js), n.Step.Set, cause(v, n))
	}
	if err != nil {
		return err
	}
	for _, j := range js {
		p.history.move(j, "", n.Next, j.stepAt)
	}
	return nil
}

// jump goes back (or ahead), unless a journey did so as often as it may.
func (p *pass) jump(ctx context.Context, n *spec.Node, js []*journey) error {
	jumps := map[int64]int{}
	if n.Step.Goto.AtMost > 0 {
		rows, err := p.tx.Query(ctx, "SELECT journey, count(*) FROM step WHERE journey = ANY ($1) AND step = $2 AND branch = 'jump' GROUP BY journey", idsOf(js), n.ID)
		if err != nil {
			return err
		}
		if err := eachRow(rows, func(journey int64, count int) { jumps[journey] = count }); err != nil {
			return err
		}
	}
	for _, j := range js {
		if n.Step.Goto.AtMost > 0 && jumps[j.id] >= n.Step.Goto.AtMost {
			p.history.move(j, "", n.Next, j.stepAt)
		} else {
			p.history.move(j, "jump", n.Then, j.stepAt)
		}
	}
	return nil
}

// cause is what a step's effects say that they come from.
func cause(v *version, n *spec.Node) string { return "campaign " + v.name + " step " + n.ID }
