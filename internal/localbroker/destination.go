package localbroker

import (
	"errors"
	"fmt"
	"net/url"

	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// Resolver tells the URL that stands for an addressable object here.
type Resolver func(Ref) (string, error)

// destination takes over what a manifest says; validation has seen to it that there is a ref or a URI.
func destination(d *duckv1.Destination) Destination {
	var out Destination
	if d.Ref != nil {
		out.Ref = Ref{APIVersion: d.Ref.APIVersion, Kind: d.Ref.Kind, Namespace: d.Ref.Namespace, Name: d.Ref.Name}
	}
	if d.URI != nil {
		out.URI = d.URI.String()
	}
	return out
}

// resolve makes a URL of a destination. The URI's path goes below the ref's address, which here may have a path itself.
func (d Destination) resolve(resolve Resolver) (*url.URL, error) {
	if d.Ref == (Ref{}) {
		u, err := url.Parse(d.URI)
		if err != nil {
			return nil, fmt.Errorf("uri: %w", err)
		}
		return u, nil
	}
	if resolve == nil {
		return nil, errors.New("nothing resolves references")
	}
	base, err := resolve(d.Ref)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Ref, err)
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Ref, err)
	}
	if d.URI == "" {
		return u, nil
	}
	below, err := url.Parse(d.URI)
	if err != nil {
		return nil, fmt.Errorf("%s: uri: %w", d.Ref, err)
	}
	u = u.JoinPath(below.EscapedPath())
	u.RawQuery = below.RawQuery
	return u, nil
}
