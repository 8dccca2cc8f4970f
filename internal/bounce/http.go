package bounce

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

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
	mux.HandleFunc("POST /bounces/{tenant}/{provider}", func(w http.ResponseWriter, r *http.Request) {
		fn.Problem(w, r, http.StatusNotFound, "No such provider", "this version takes reports as mails (message/rfc822) at /bounces/{tenant} and no provider's webhooks")
	})
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
