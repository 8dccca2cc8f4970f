package localbroker

import (
	"fmt"
	"math"
	"net/http"
	"time"

	"github.com/rickb777/date/period"
	duckv1 "knative.dev/eventing/pkg/apis/duck/v1"
)

// delivery is how hard a subscriber is tried: the delivery spec of a Trigger or Broker. Retry-After is not heeded, since Knative's feature
// delivery-retryafter is off unless a cluster's administrator turns it on.
type delivery struct {
	retries    int
	backoff    func(n int) time.Duration // before retry n, from 0
	timeout    time.Duration             // of one attempt; 0 for none
	structured bool                      // the JSON format rather than binary mode
}

func newDelivery(spec *duckv1.DeliverySpec) (delivery, error) {
	d := delivery{backoff: func(int) time.Duration { return 0 }}
	if spec == nil {
		return d, nil
	}
	if spec.Retry != nil {
		d.retries = int(*spec.Retry)
	}
	d.structured = spec.Format != nil && *spec.Format == duckv1.DeliveryFormatJson
	// One of the two alone does nothing: retries then follow each other at once.
	if spec.BackoffPolicy != nil && spec.BackoffDelay != nil {
		delay, err := duration(*spec.BackoffDelay)
		if err != nil {
			return d, fmt.Errorf("backoffDelay: %w", err)
		}
		switch *spec.BackoffPolicy {
		case duckv1.BackoffPolicyExponential:
			d.backoff = func(n int) time.Duration { return delay * time.Duration(math.Exp2(float64(n))) }
		case duckv1.BackoffPolicyLinear: // from 0: the first retry is immediate
			d.backoff = func(n int) time.Duration { return delay * time.Duration(n) }
		}
	}
	if spec.Timeout != nil {
		timeout, err := duration(*spec.Timeout)
		if err != nil {
			return d, fmt.Errorf("timeout: %w", err)
		}
		d.timeout = timeout
	}
	return d, nil
}

// duration reads an ISO 8601 duration as Knative does.
func duration(text string) (time.Duration, error) {
	p, err := period.Parse(text)
	if err != nil {
		return 0, err
	}
	d, _ := p.Duration()
	return d, nil
}

// retriable tells whether an answer is worth another attempt: no answer at all, 404 (a pod that is becoming ready), 408, 409, 429 and all from 500 on; the
// same set as SelectiveRetry of Knative's dispatcher.
func retriable(status int) bool {
	switch status {
	case 0, http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}
