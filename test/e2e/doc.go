// Package e2e puts Onda to the proof on a real cluster: make e2e, with a Postgres and a mail server outside the cluster, as in production. Everything is done
// with the manifests in config/, the command line and the public ingress. Without a cluster only what needs none is tested.
package e2e
