package renderform

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/url"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

const (
	// fresh is how long a form is shown before it is looked whether it, its fields, the settings or the state of its tenant are others now.
	fresh = time.Second
	// readTimeout is of one such look, for which several visitors may wait.
	readTimeout = 5 * time.Second
	// maxForms and maxShown bound what a process keeps: forms, and bytes of their pages.
	maxForms = 1_000 // and as many tenants
	maxShown = 6 << 20
	maxName  = 200
)

// cache keeps forms as they are in force, and the pages that they make, so that showing one asks nobody.
type cache struct {
	db    *postgres.DB
	now   func() time.Time
	reads singleflight.Group
	lists lists

	mu       sync.Mutex
	forms    map[formName]*known
	bytes    int                       // of pages
	settings map[string]*spec.Settings // of tenants, as they were read last: how a page looks that says that something went wrong
}

type formName struct{ tenant, form string }

// known is a version of a form, or that there is none.
type known struct {
	form    *form
	err     error
	checked time.Time // guarded by cache.mu

	mu     sync.Mutex
	pages  map[shownAs]*shown
	second int64  // of moment
	moment string // the last one
}

// shownAs is what a form looks different by.
type shownAs struct {
	lang string
	kind kind
}

// kind is where a form is shown.
type kind int

const (
	asPage   kind = iota
	asScript      // on another site, in a shadow tree
	asFrame       // on another site, in a frame
)

func newCache(db *postgres.DB, now func() time.Time) *cache {
	return &cache{db: db, now: now, forms: map[formName]*known{}, settings: map[string]*spec.Settings{}}
}

// get gives a form as it was in force within the last second. errNotFound when there was none; a tenant that is not served at this moment is an error, and is not kept.
func (c *cache) get(ctx context.Context, tenant, name string) (*known, error) {
	if len(tenant)+len(name) > maxName { // they would be kept
		return nil, errNotFound
	}
	key := formName{tenant, name}
	c.mu.Lock()
	k := c.forms[key]
	if k != nil && c.now().Sub(k.checked) >= fresh {
		k = nil
	}
	c.mu.Unlock()
	if k != nil {
		return k, k.err
	}
	read := c.reads.DoChan(strconv.Quote(tenant)+name, func() (any, error) {
		// Others wait for it too, and so it does not end with the first one's request.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
		defer cancel()
		return c.read(ctx, key)
	})
	select {
	case r := <-read:
		if r.Err != nil {
			return nil, r.Err
		}
		k, _ := r.Val.(*known)
		return k, k.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *cache) read(ctx context.Context, key formName) (*known, error) {
	k := &known{checked: c.now(), pages: map[shownAs]*shown{}}
	var settings *spec.Settings
	k.err = within(ctx, c.db, key.tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if k.form, err = readForm(ctx, tx, key.form, 0); err == nil {
			settings = k.form.settings
			_, err = tx.Keys(ctx) // who shows it needs them
		} else if errors.Is(err, errNotFound) {
			var failed error
			settings, failed = contact.Settings(ctx, tx)
			err = cmp.Or(failed, err)
		}
		return err
	})
	if k.err != nil && !errors.Is(k.err, errNotFound) {
		return nil, k.err
	}
	if k.err == nil {
		k.form.lists = &c.lists
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.settings, key.tenant) // also where it is gone
	if settings != nil {
		if len(c.settings) >= maxForms {
			clear(c.settings)
		}
		c.settings[key.tenant] = settings
	}
	if was := c.forms[key]; was != nil && was.err == nil && k.err == nil && was.form.same(k.form) {
		was.checked = k.checked
		return was, nil
	}
	if len(c.forms) >= maxForms {
		maps.DeleteFunc(c.forms, func(_ formName, k *known) bool { return k.err != nil })
	}
	if len(c.forms) >= maxForms || c.bytes > maxShown {
		clear(c.forms)
		c.bytes = 0
	}
	c.forms[key] = k
	return k, nil
}

// settingsOf gives the settings of a tenant as they were read last; nil where they are not known.
func (c *cache) settingsOf(tenant string) *spec.Settings {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.settings[tenant]
}

// page gives how a form looks, and makes it the first time it is asked for.
func (c *cache) page(k *known, as shownAs, render func() (*shown, error)) (*shown, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := k.pages[as]; p != nil {
		return p, nil
	}
	p, err := render()
	if err != nil {
		return nil, err
	}
	k.pages[as] = p
	c.mu.Lock()
	c.bytes += p.size
	c.mu.Unlock()
	return p, nil
}

// momentNow is the signed moment for a page that is shown now: one for all that are in the same second.
func (k *known) momentNow(key token.Key, now time.Time) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.second != now.Unix() {
		k.second, k.moment = now.Unix(), k.form.moment(key, now)
	}
	return k.moment
}

// holes are what differs between two showings of the same page: hidden inputs. What stands for their values while it is rendered is what nobody else could have written.
type holes struct {
	mark  string
	names []string
}

func newHoles() *holes { return &holes{mark: "onda" + rand.Text()} }

// add gives what to render in the place of an input's value.
func (h *holes) add(name string) string {
	h.names = append(h.names, name)
	return h.mark + strconv.Itoa(len(h.names)-1) + "."
}

// shown is a rendered page with its holes.
type shown struct {
	header map[string][]string
	parts  [][]byte // one more than there are holes
	fills  []string // which input's value follows each part
	script bool
	size   int
}

// cut takes a rendered page apart at its holes.
func (h *holes) cut(body []byte, header map[string][]string, script bool) (*shown, error) {
	p := &shown{header: header, script: script, size: len(body)}
	for {
		before, after, found := bytes.Cut(body, []byte(h.mark))
		p.parts = append(p.parts, bytes.Clone(before))
		if !found {
			return p, nil
		}
		number, rest, _ := bytes.Cut(after, []byte("."))
		n, err := strconv.Atoi(string(number))
		if err != nil || n >= len(h.names) {
			return nil, fmt.Errorf("a hole of a page is %.20q", number)
		}
		p.fills, body = append(p.fills, h.names[n]), rest
	}
}

// fill gives the page with values in its holes.
func (p *shown) fill(values url.Values) []byte {
	body := make([]byte, 0, p.size+256)
	for i, part := range p.parts {
		body = append(body, part...)
		if i == len(p.fills) {
			break
		}
		value := template.HTMLEscapeString(values.Get(p.fills[i]))
		if p.script && value != "" { // it stands in a string
			quoted, err := json.Marshal(value)
			if err != nil { // a string always can be marshalled
				panic(err)
			}
			body = append(body, quoted[1:len(quoted)-1]...)
			continue
		}
		body = append(body, value...)
	}
	return body
}
