package dev

import "slices"

// Service is what a Knative Service is in a cluster: a function's binary, what it serves, and how it scales.
type Service struct {
	// Name is the service's name, in addresses and as K_SERVICE.
	Name string
	// Function is the name of the binary, the directory below functions/.
	Function string
	// Serve is ONDA_SERVE: http, events or both.
	Serve string
	// Lane is ONDA_LANE, of a service of send.
	Lane string
	// Paths are the patterns of the public URLs that reach it (http.ServeMux); none for a cluster-local service.
	Paths []string
	// Concurrency is how many requests a process is given at a time; 0 for any number. More are held.
	Concurrency int
	// Scale is how many processes there may be; 1 when 0.
	Scale int
}

// Services are Onda's, as functions/*/service.yaml has them.
func Services() []Service {
	return []Service{
		{Name: "send", Function: "send", Serve: "events", Lane: "bulk", Concurrency: 4},
		{Name: "send-api", Function: "send", Serve: "http", Lane: "transactional", Paths: []string{"/v1/emails"}},
		{Name: "send-api-events", Function: "send", Serve: "events", Lane: "transactional", Concurrency: 4},
		{Name: "track", Function: "track", Serve: "http", Paths: []string{"/o/", "/c/", "/u/", "/p/", "/w/", "/onda.js", "/e", "/v1/"}},
		{Name: "track-events", Function: "track", Serve: "events", Concurrency: 4},
		{Name: "segment", Function: "segment", Serve: "events", Concurrency: 4},
		{Name: "render-form", Function: "render-form", Serve: "http", Paths: []string{"/f/", "/y/"}},
		{Name: "campaign", Function: "campaign", Serve: "events", Concurrency: 4},
		{Name: "schedule", Function: "schedule", Serve: "events", Concurrency: 4},
		{Name: "bounce", Function: "bounce", Serve: "http", Paths: []string{"/bounces/"}},
	}
}

// functions are the binaries of services, sorted, each once.
func functions(services []Service) []string {
	var names []string
	for _, s := range services {
		names = append(names, s.Function)
	}
	slices.Sort(names)
	return slices.Compact(names)
}
