// Package dev is scale to zero on one machine: what Knative Serving and Eventing do in a cluster, for a developer, a tour and tests. An ingress on one
// loopback port starts each function's own binary at its first request, holds requests until it is ready, ends it when it is idle, and starts it again
// when it died or its code changed; the broker of internal/localbroker routes events by the manifests of eventing/.
//
// Functions can run in one process instead, behind the same ingress and broker, for debuggers and tests.
package dev
