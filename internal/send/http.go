package send

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// Bounds of a request.
const (
	maxRequest     = 10 << 20 // bytes, attachments in base64 included
	maxAttachments = 20
	maxKey         = 255 // characters of an Idempotency-Key
)

func (s *sender) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/emails", s.postEmail)
	return mux
}

// emailRequest is the body of POST /v1/emails.
type emailRequest struct {
	To          string                `json:"to"`
	Email       string                `json:"email"`
	Data        map[string]any        `json:"data"`
	Attachments []delivery.Attachment `json:"attachments"`
}

// problemError is an error that is told to the program as it is.
type problemError struct {
	status        int
	title, detail string
}

func (p *problemError) Error() string { return p.title + ": " + p.detail }

func refuse(status int, title, detail string) error {
	return &problemError{status, title, detail}
}

// postEmail stores one transactional mail and answers with its delivery, once it is committed. This process sends it afterwards, and the sweep comes by should
// it end before.
func (s *sender) postEmail(w http.ResponseWriter, r *http.Request) {
	tenant, id, err := s.takeEmail(w, r)
	var p *problemError
	switch {
	case errors.As(err, &p):
		if p.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="onda", charset="UTF-8"`)
		}
		fn.Problem(w, r, p.status, p.title, p.detail)
		return
	case err != nil:
		fn.Fail(w, r, answer(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusAccepted)
	_ = json.NewEncoder(w).Encode(map[string]string{"delivery": strconv.FormatInt(id, 10)})
	s.accepted.take(tenant)
}

func (s *sender) takeEmail(w http.ResponseWriter, r *http.Request) (tenant string, id int64, err error) {
	key, err := programKey(r)
	if err != nil {
		return "", 0, err
	}
	tenant, err = s.db.TenantByNumber(r.Context(), key.Tenant)
	if errors.Is(err, postgres.ErrUnknownTenant) {
		return "", 0, errUnauthorized()
	}
	if err != nil {
		return "", 0, err
	}
	if err := s.proveKey(r.Context(), tenant, key); err != nil {
		return "", 0, err
	}
	fn.LogTenant(r.Context(), tenant)
	idempotency := r.Header.Get("Idempotency-Key")
	if len(idempotency) > maxKey || strings.ContainsFunc(idempotency, func(c rune) bool { return c < ' ' || c > '~' }) {
		return "", 0, refuse(http.StatusBadRequest, "Bad Idempotency-Key", fmt.Sprintf("want at most %d characters of ASCII", maxKey))
	}
	req, err := readEmail(w, r)
	if err != nil {
		return "", 0, err
	}
	if idempotency != "" {
		idempotency = "api:" + idempotency // apart from the keys of events and forms
	}
	err = s.db.InTenant(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		id, err = s.storeEmail(ctx, tx, req, idempotency)
		return err
	})
	return tenant, id, err
}

func errUnauthorized() error {
	return refuse(http.StatusUnauthorized, "No valid key", "give the tenant's secret key (onda_sk_...) as the user name of basic authentication, or as a bearer token")
}

// programKey reads the key from the request: the user name or the password of basic authentication (SDKs differ), or a bearer token.
func programKey(r *http.Request) (token.ProgramKey, error) {
	var texts []string
	if user, password, ok := r.BasicAuth(); ok {
		texts = append(texts, user, password)
	} else if scheme, t, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
		texts = append(texts, strings.TrimSpace(t))
	}
	for _, t := range texts {
		if k, err := token.ParseProgramKey(t); err == nil {
			return k, nil
		}
	}
	return token.ProgramKey{}, errUnauthorized()
}

// proveKey refuses a key that is not the tenant's, and one that is in every browser.
func (s *sender) proveKey(ctx context.Context, tenant string, key token.ProgramKey) error {
	var secret, ok, cells bool
	sum := key.Hash()
	err := s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		secret, ok, err = tx.ProgramKey(ctx, sum[:])
		cells = tx.Tenant.SMTPSecret == "" && s.unfitFor(&tx.Tenant) == nil
		return err
	})
	switch {
	case errors.Is(err, postgres.ErrUnknownTenant): // it was deleted, or is none of this login's
		return errUnauthorized()
	case err != nil:
		return err
	case !ok:
		return errUnauthorized()
	case !secret || key.Kind != token.SecretKey:
		return refuse(http.StatusForbidden, "Not with a public key", "a public key may only tell what visitors do; use the tenant's secret key (onda_sk_...), and keep it out of browsers")
	}
	if l := s.lanes[delivery.Transactional]; l != nil && cells {
		l.expect()
	}
	return nil
}

func readEmail(w http.ResponseWriter, r *http.Request) (req emailRequest, err error) {
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return req, refuse(http.StatusUnsupportedMediaType, "Not JSON", "send the request with Content-Type: application/json")
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest))
	d.DisallowUnknownFields()
	err = d.Decode(&req)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return req, refuse(http.StatusRequestEntityTooLarge, "Too large", fmt.Sprintf("a request may have %d MiB, attachments in base64 included", maxRequest>>20))
	case err != nil:
		return req, refuse(http.StatusBadRequest, "Bad JSON", jsonProblem(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return req, refuse(http.StatusBadRequest, "Bad JSON", "there is something after the object")
	}
	switch {
	case req.To == "":
		return req, refuse(http.StatusUnprocessableEntity, "No recipient", `"to" is missing: the address to send to`)
	case req.Email == "":
		return req, refuse(http.StatusUnprocessableEntity, "No email", `"email" is missing: the name of the email to send`)
	case len(req.Attachments) > maxAttachments:
		return req, refuse(http.StatusRequestEntityTooLarge, "Too many attachments", fmt.Sprintf("a mail may have %d attachments", maxAttachments))
	}
	for i, a := range req.Attachments {
		if a.Name == "" || len(a.Content) == 0 {
			return req, refuse(http.StatusUnprocessableEntity, "Bad attachment", fmt.Sprintf(`attachments[%d] needs a "name" and, in base64, "content"`, i))
		}
	}
	return req, nil
}

// jsonProblem says what is wrong with a body in words that name the place, and no more of it than that.
func jsonProblem(err error) string {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Sprintf("at byte %d: %s", syntax.Offset, syntax)
	case errors.As(err, &kind):
		return fmt.Sprintf("%q cannot be a %s", kind.Field, kind.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the body ends too early"
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return strings.TrimPrefix(err.Error(), "json: ") + `: known are to, email, data and attachments`
	case strings.Contains(err.Error(), "base64"):
		return "the content of an attachment is not base64"
	}
	return "the body cannot be read"
}

// storeEmail checks the request against the email in force, finds or makes the contact, and stores the mail.
func (s *sender) storeEmail(ctx context.Context, tx *postgres.Tx, req emailRequest, key string) (int64, error) {
	if why := s.unfitFor(&tx.Tenant); why != nil { // it would wait until it expires
		return 0, refuse(http.StatusServiceUnavailable, "Nothing is mailed", why.Error())
	}
	email, err := s.composer.ByName(ctx, tx, req.Email)
	switch {
	case errors.Is(err, compose.ErrUnknown):
		return 0, refuse(http.StatusUnprocessableEntity, "Unknown email", fmt.Sprintf("there is no email %q; apply it, or see onda email preview for the names", req.Email))
	case errors.Is(err, compose.ErrBroken):
		return 0, refuse(http.StatusUnprocessableEntity, "Broken email", fmt.Sprintf("the email %q cannot be made; apply it again", req.Email))
	case err != nil:
		return 0, err
	case !email.Transactional:
		return 0, refuse(http.StatusUnprocessableEntity, "Not transactional", fmt.Sprintf("the email %q has a topic: it needs consent, and goes out by a campaign or broadcast", req.Email))
	}
	if missing := email.MissingData(req.Data); len(missing) > 0 {
		return 0, refuse(http.StatusUnprocessableEntity, "Missing data", fmt.Sprintf("the email %q needs %s", req.Email, strings.Join(missing, ", ")))
	}
	to, _, err := contact.Ensure(ctx, tx, req.To)
	if errors.Is(err, contact.ErrAddress) {
		return 0, refuse(http.StatusUnprocessableEntity, "Bad address", `"to" is not an address that mail can be sent to`)
	}
	if err != nil {
		return 0, err
	}
	id, _, err := delivery.Request(ctx, tx, delivery.Function(delivery.Transactional), delivery.TransactionalMail{
		Email: req.Email, Contact: to, Data: req.Data, Attachments: req.Attachments, Key: key, Cause: "POST /v1/emails",
		Silent: s.lanes[delivery.Transactional] != nil,
	})
	if errors.Is(err, delivery.ErrKeyReused) {
		return 0, refuse(http.StatusUnprocessableEntity, "Idempotency-Key reused", "the key was used for another request within the last seven days; take a new one")
	}
	if errors.Is(err, delivery.ErrData) {
		return 0, refuse(http.StatusUnprocessableEntity, "Bad data", err.Error())
	}
	return id, err
}
