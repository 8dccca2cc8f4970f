package predicate

import "github.com/onda-run/onda/internal/spec"

// Moving calls each for the dates of contacts that the predicate compares with what moves, as Crossing looks them up: by their value, or by the day of the year.
func Moving(p *spec.Predicate, env Env, each func(field string, yearly bool)) {
	p.Walk(func(q *spec.Predicate) {
		if q.Field == nil {
			return
		}
		typ, _ := env.fieldType(q.Field.Field)
		switch {
		case typ != spec.TypeDate && typ != spec.TypeDatetime:
		case q.Field.Op == spec.OpYearly:
			each(q.Field.Field, true)
		case len(env.bounds(q.Field.Test, typ == spec.TypeDate)) > 0:
			each(q.Field.Field, false)
		}
	})
}
