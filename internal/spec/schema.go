package spec

import "encoding/json"

// schemaBuilder collects the definitions of a JSON Schema, each once.
type schemaBuilder struct {
	defs schema
}

// define gives a reference to a definition, which it makes when it is new.
func (b *schemaBuilder) define(name string, build func() schema) schema {
	if _, ok := b.defs[name]; !ok {
		b.defs[name] = true // a definition may refer to itself
		b.defs[name] = build()
	}
	return schema{"$ref": "#/$defs/" + name}
}

// JSONSchema gives the JSON Schema (draft 2020-12) of one document, for
// editors. It is made from the rules that the decoders are made of; what needs
// other documents, a calendar or arithmetic it does not say.
func JSONSchema() []byte {
	b := &schemaBuilder{defs: schema{}}
	var kinds []any
	for _, r := range specReaders() {
		kinds = append(kinds, schema{
			"if":   schema{"properties": schema{"kind": schema{"const": r.kind}}, "required": []string{"kind"}},
			"then": r.schema(b),
		})
	}
	out, err := json.MarshalIndent(schema{
		"$schema":     "https://json-schema.org/draft/2020-12/schema",
		"$id":         "https://onda.run/schema/onda-v1.json",
		"title":       "Onda documents",
		"description": "Fields, topics, segments, layouts, emails, broadcasts, campaigns, forms, settings and sender domains of Onda.",
		"type":        "object",
		"required":    []string{"apiVersion", "kind", "metadata", "spec"},
		"properties":  schema{"kind": schema{"enum": Kinds()}, "apiVersion": schema{"const": APIVersion}},
		"allOf":       kinds,
		"$defs":       b.defs,
	}, "", "  ")
	if err != nil {
		// maps of strings, numbers and lists always marshal
		panic(err)
	}
	return append(out, '\n')
}
