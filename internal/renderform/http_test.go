package renderform

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fn"
)

// What programs send in JSON is read as what a form has in it, and no more of it than there is use for.
func TestFormsInJSON(t *testing.T) {
	t.Parallel()
	const notObject, notValue, many = "the body is not a JSON object", "the values must be texts, numbers, booleans or lists of them", "a form may have 10000 values"
	read := func(body io.Reader) (url.Values, error) {
		r := httptest.NewRequest(http.MethodPost, "/f/acme/newsletter", body)
		r.Header.Set("Content-Type", "application/json")
		return readValues(httptest.NewRecorder(), r)
	}
	for body, want := range map[string]url.Values{
		`{}`: {},
		`{"email": "ada@example.com", "age": 42, "big": 12345678901234567890, "member": true, "nothing": null, "interests": ["ski", 7, null, false], "none": []}`: {
			"email": {"ada@example.com"}, "age": {"42"}, "big": {"12345678901234567890"}, "member": {"true"}, "interests": {"ski", "7", "false"},
		},
		`{"email": "a", "email": "b"}`: {"email": {"a", "b"}},
	} {
		got, err := read(strings.NewReader(body))
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", body, err, diff)
		}
	}
	for body, want := range map[string]string{
		``: notObject, `[]`: notObject, `"x"`: notObject, `{`: notObject, `{"a"`: notObject, `{"a": 1`: notObject, `{"a": [1}`: notObject, `{"a": [1,]}`: notObject, `{1: 2}`: notObject, `null`: notObject,
		`{"a": {}}`: notValue, `{"a": [[1]]}`: notValue, `{"a": ` + strings.Repeat("[", 100_000): notValue,
		`{"a": [1` + strings.Repeat(",1", maxValues) + `]}`: many, `{"a": 1` + strings.Repeat(`,"a": null`, maxValues) + `, "b": 1}`: many,
	} {
		if _, err := read(strings.NewReader(body)); !fn.IsPermanent(err) || err.Error() != want {
			t.Errorf("%.40s: %v, want %s", body, err, want)
		}
	}
	for _, broken := range []error{&http.MaxBytesError{Limit: 1}, fn.ErrBody} {
		if _, err := read(io.MultiReader(strings.NewReader(`{"a": "b`), failing{broken})); !errors.Is(err, broken) {
			t.Errorf("%v: %v", broken, err)
		}
	}
	rest := strings.NewReader(`{"a": [1` + strings.Repeat(",1", 1_000_000) + `]}`)
	if _, err := read(rest); err == nil || rest.Len() < 1_900_000 {
		t.Errorf("%v, and %d bytes were left", err, rest.Len())
	}
}

// failing is a body that cannot be read.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// Names that are far too long are of nothing, and are not kept as such.
func TestLongNamesAreNotKept(t *testing.T) {
	t.Parallel()
	c := newCache(nil, nil) // it asks nobody
	for _, name := range []formName{{strings.Repeat("a", 300), "newsletter"}, {"acme", strings.Repeat("a", 300)}} {
		if _, err := c.get(t.Context(), name.tenant, name.form); !errors.Is(err, errNotFound) || len(c.forms) > 0 {
			t.Errorf("%v, %d are kept", err, len(c.forms))
		}
	}
}
