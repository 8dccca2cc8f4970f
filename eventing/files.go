// Package eventing holds the manifests that decide which event goes where: the only routing truth, for clusters and for onda dev alike. They are
// embedded, so that the command line and tests read the very same files.
package eventing

import "embed"

// Files are the manifests and JSON Schemas of this directory: broker.yaml, sources/tick.yaml, triggers/, eventtypes/ and schemas/.
//
//go:embed broker.yaml sources/tick.yaml triggers/*.yaml eventtypes/*.yaml schemas/*.json
var Files embed.FS
