package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// comesBack hands mails to a return path, or to the address of List-Unsubscribe, to the bounce function, as a relay's pipe would.
type comesBack struct {
	base   string // of the ingress
	tenant string // whose they are when their token does not tell
	db     *postgres.DB
	keys   *devKeys
	client http.Client
}

func newComesBack(base, tenant string, db *postgres.DB, keys *devKeys) *comesBack {
	return &comesBack{base: base, tenant: tenant, db: db, keys: keys, client: http.Client{Timeout: 20 * time.Second}}
}

// take is a mailbox's OnMail.
func (c *comesBack) take(ctx context.Context, rcpt string, raw []byte) (bool, error) {
	purpose := token.ReturnPath
	tok, ours := mail.ReturnPathToken(rcpt)
	if !ours {
		local, _, _ := strings.Cut(strings.ToLower(rcpt), "@")
		if tok, ours = strings.CutPrefix(local, "u+"); !ours {
			return false, nil
		}
		purpose = token.Unsubscribe
	}
	tenant := c.tenant
	if claims, err := token.Peek(tok, purpose); err == nil { // the bounce function proves it
		name, err := c.db.TenantByNumber(ctx, claims.Tenant)
		if err != nil && !errors.Is(err, postgres.ErrUnknownTenant) {
			return true, err
		}
		if err == nil {
			tenant = name
		}
	}
	key, err := c.keys.of(ctx, tenant)
	if err != nil {
		return true, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/bounces/"+tenant, bytes.NewReader(raw))
	if err != nil {
		return true, err
	}
	r.Header.Set("Content-Type", "message/rfc822")
	r.Header.Set(bounce.RecipientHeader, rcpt)
	r.SetBasicAuth(key, "")
	resp, err := c.client.Do(r)
	if err != nil {
		return true, fmt.Errorf("hand over to bounce: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection is used again
	if resp.StatusCode != http.StatusOK {
		return true, fmt.Errorf("bounce answers %s", resp.Status)
	}
	return true, nil
}
