// Package tenantname says what a tenant may be called: the same to those who write its file, make its schema and enter it.
package tenantname

import (
	"fmt"
	"strings"
)

// Check tells what is wrong with a name. It is that of a role and a schema in Postgres, and a DNS label of at most 40 characters, since dedicated tenants have a
// namespace of it.
func Check(name string) error {
	if !isLabel(name) || reserved(name) {
		return fmt.Errorf("%.60q: want 1 to 40 of a-z, 0-9 and -, with a letter at the beginning and no - at the end, as a DNS label, and not none, onda, postgres, public or onda-*", name)
	}
	return nil
}

func isLabel(name string) bool {
	if name == "" || len(name) > 40 || name[0] < 'a' || name[0] > 'z' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// reserved are names of others: roles and schemas that a database has, namespaces of Onda's own, and what Postgres takes for no role at all (SET ROLE none).
func reserved(name string) bool {
	switch name {
	case "none", "onda", "postgres", "public":
		return true
	}
	return strings.HasPrefix(name, "onda-")
}
