// Package localbroker is a broker for one machine that routes with the very manifests of eventing/ that a cluster uses: Brokers, Triggers and
// PingSources, decoded strictly into Knative's types, defaulted and validated by Knative's own webhook code, filtered by Knative's own filter packages, and
// retried, dead-lettered and replied to by the rules of Knative's broker of class MTChannelBasedBroker over in-memory channels with the asynchronous
// handler: an event is answered 202 at once, and what the broker holds is lost when it ends. Nothing in Onda may depend on an event to arrive; Chaos makes
// sure of it by dropping, repeating, delaying and reordering them.
//
// It is the only package that links knative.dev/eventing. Functions never import it; cmd/onda, internal/dev and tests do.
package localbroker
