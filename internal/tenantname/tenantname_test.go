package tenantname

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"a", "acme", "casa-verde", "a1", "ondas", "none-such", strings.Repeat("a", 40)} {
		if err := Check(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "Acme", "1a", "-a", "a-", "a b", "a_b", "a.b", `a"b`, "a\x00", "é", strings.Repeat("a", 41), "none", "onda", "public", "postgres", "pg_x", "onda_pool", "onda-x",
	} {
		if err := Check(name); err == nil || !strings.Contains(err.Error(), "want 1 to 40 of a-z") {
			t.Errorf("%q: %v", name, err)
		}
	}
}
