package bounce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// RecipientHeader names an envelope recipient of the mail, which a relay knows and the mail itself may not say. It may be given more than once.
const RecipientHeader = "Onda-Recipient"

func (s *service) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /bounces/{tenant}", s.post)
	mux.HandleFunc("POST /bounces/{tenant}/{provider}", s.postWebhook)
	mux.HandleFunc("/bounces/{tenant}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", http.MethodPost)
		fn.Problem(w, r, http.StatusMethodNotAllowed, "Method not allowed", "post the mail that came back")
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fn.Problem(w, r, http.StatusNotFound, "Not found", "post a mail that came back to /bounces/{tenant}")
	})
	return mux
}

// post takes one mail: 200 with what became of it once that is stored.
func (s *service) post(w http.ResponseWriter, r *http.Request) {
	tenant := r.PathValue("tenant")
	key, ok := fn.ProgramKey(r)
	if !ok || key.Kind != token.SecretKey {
		w.Header().Set("WWW-Authenticate", `Basic realm="onda"`)
		fn.Problem(w, r, http.StatusUnauthorized, "Unauthorized", "give a secret key of the tenant (onda_sk_...) as the user of basic authentication or as a bearer token")
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "message/rfc822" {
		fn.Problem(w, r, http.StatusUnsupportedMediaType, "Unsupported media type", "the body is the mail itself, with Content-Type: message/rfc822")
		return
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4*mail.MaxReport))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		fn.Problem(w, r, http.StatusRequestEntityTooLarge, "Too large", "a mail that came back has at most 4 MiB; send its first part")
		return
	}
	if err != nil {
		fn.Fail(w, r, fn.Unavailable(err))
		return
	}
	var result Result
	err = s.db.InTenant(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		sum := key.Hash()
		secret, ok, err := tx.ProgramKey(ctx, sum[:])
		if err != nil {
			return err
		}
		if !ok || !secret || key.Tenant != tx.Tenant.Number {
			return errForeignKey
		}
		result, err = s.take(ctx, tx, bytes.NewReader(raw), r.Header.Values(RecipientHeader)...)
		return err
	})
	switch {
	case errors.Is(err, errForeignKey), errors.Is(err, postgres.ErrUnknownTenant), errors.Is(err, postgres.ErrForeignTenant):
		fn.LogError(r.Context(), err)
		fn.Problem(w, r, http.StatusForbidden, "Forbidden", "the key is not in force, or not of this tenant")
		return
	case err != nil:
		fn.Fail(w, r, err)
		return
	}
	fn.LogTenant(r.Context(), tenant)
	if result == Unattributed {
		s.log.Warn("a report could not be attributed to a mail", zap.String("tenant", tenant))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]Result{"result": result})
}

var errForeignKey = errors.New("the key is not in force, or not of this tenant")

// postWebhook takes a provider's webhook: 202 once what it tells is stored. Providers repeat what is answered otherwise, for hours at least, so that a secret that is not set
// yet, or wrong, loses nothing that is mended in that time.
func (s *service) postWebhook(w http.ResponseWriter, r *http.Request) {
	tenant, name := r.PathValue("tenant"), r.PathValue("provider")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxWebhook))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		fn.Problem(w, r, http.StatusRequestEntityTooLarge, "Too large", "a webhook has at most 4 MiB; let the provider send fewer events at once")
		return
	}
	if err != nil {
		fn.Fail(w, r, fn.Unavailable(err))
		return
	}
	h := hook{header: r.Header.Get, body: body}
	if user, password, ok := r.BasicAuth(); ok {
		h.login = user + ":" + password
	} else if scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		h.login = strings.TrimSpace(rest)
	}
	out, err := s.webhook(r.Context(), tenant, name, h)
	switch {
	case errors.Is(err, errNoWebhook), errors.Is(err, postgres.ErrUnknownTenant), errors.Is(err, postgres.ErrForeignTenant):
		fn.LogError(r.Context(), err)
		fn.Problem(w, r, http.StatusNotFound, "No such webhook", "the tenant takes none of this provider; onda bounce secret sets one up for "+strings.Join(Providers(), ", "))
	case errors.Is(err, errSignature), errors.Is(err, errOld):
		fn.LogError(r.Context(), err)
		w.Header().Set("WWW-Authenticate", `Basic realm="onda"`)
		fn.Problem(w, r, http.StatusUnauthorized, "Unauthorized", err.Error())
	case errors.Is(err, errUnreadable):
		fn.LogTenant(r.Context(), tenant)
		fn.Fail(w, r, fn.Permanent(err))
	case err != nil:
		fn.Fail(w, r, err)
	default:
		fn.LogTenant(r.Context(), tenant)
		if out.Unattributed+out.Unreadable > 0 {
			s.log.Warn("a webhook told about mails that are not the tenant's, or what cannot be read", zap.String("tenant", tenant), zap.String("provider", name),
				zap.Int("unattributed", out.Unattributed), zap.Int("unreadable", out.Unreadable))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(out)
	}
}

// maxWebhook bounds a webhook's body: four times what any of the providers sends at once.
const maxWebhook = 4 << 20

// fetchHTTPS reads a small file. It goes nowhere else than to the URL, which its caller has checked.
func fetchHTTPS(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		return nil, fn.Unavailable(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, fn.Unavailable(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fn.Unavailable(fmt.Errorf("%s answers %s", resp.Request.URL.Host, resp.Status))
	}
	return body, nil
}
