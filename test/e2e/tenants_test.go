package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// objects counts what the API server keeps for Onda's namespaces.
func (t *test) objects() int {
	t.Helper()
	n := 0
	for _, ns := range []string{pool, "onda-system"} {
		kinds := "ksvc,configuration,revision,route,broker,trigger,eventtype,subscription,channel,configmap,secret,service,endpointslice,deployment,job,serviceaccount"
		n += len(strings.Fields(t.k("-n", ns, "get", kinds, "-o", "name")))
	}
	return n
}

// 200 pooled tenants: how long each takes to make, what each costs at rest, and one of them sending while the others sleep.
func TestTwoHundredTenants(t *testing.T) {
	c := begin(t)
	const tenants, contacts = 200, 1000
	c.atZero()
	objects := c.objects()
	size := value[int64](c, "SELECT pg_database_size('onda')")
	var took []time.Duration
	for i := range tenants {
		began := time.Now()
		c.run("", "tenant", "create", fmt.Sprintf("many%03d", i))
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	c.Logf("%d tenants, each by a command of its own: median %.0f ms, p95 %.0f ms, longest %.0f ms", tenants, ms(median(took)), ms(took[tenants*95/100]), ms(took[tenants-1]))
	if n := c.objects(); n != objects {
		t.Errorf("%d API objects more", n-objects)
	}
	c.atZero()
	c.Logf("at rest: API objects 0, pods 0, Postgres %.1f MB a tenant", float64(value[int64](c, "SELECT pg_database_size('onda')")-size)/tenants/(1<<20))

	c.company("many100", contacts)
	c.atZero()
	due := value[int](c, "SELECT count(*) FROM onda.wakeup WHERE tenant LIKE 'many%' AND tenant <> 'many100' AND at < now() + '1 hour'")
	c.start("many100", "spring-news", contacts-contacts/100)
	c.audit("many100", c.completed(patience, "many100"), contacts, 0)
	if n := value[int](c, "SELECT count(*) FROM onda.wakeup WHERE tenant LIKE 'many%' AND tenant <> 'many100' AND at < now() + '1 hour'"); n != due {
		t.Errorf("%d functions of sleeping tenants are woken within the hour, %d before", n, due)
	}
	c.atZero()
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
