package dev

import (
	"time"

	"github.com/onda-run/onda/internal/localbroker"
)

// Status is what runs and has run.
type Status struct {
	URL      string             `json:"url"`
	Began    time.Time          `json:"began"`
	Services []ServiceStatus    `json:"services"`
	Broker   localbroker.Counts `json:"broker"`
	Chaos    localbroker.Chaos  `json:"chaos"`
}

// ServiceStatus is one service.
type ServiceStatus struct {
	Service  string `json:"service"`
	Function string `json:"function"`
	Serve    string `json:"serve"`
	// State is zero, starting, ready or ending.
	State string `json:"state"`
	// Starts are the processes that were started, Kills those that a signal ended, Requests those that a process was given.
	Starts   int64 `json:"starts"`
	Kills    int64 `json:"kills"`
	Requests int64 `json:"requests"`
	// ReadyLast and ReadyMost are the seconds from exec until ready, last and at most.
	ReadyLast float64 `json:"readyLastSeconds"`
	ReadyMost float64 `json:"readyMostSeconds"`
	// PeakRSS is the most memory that any of its processes had, in bytes; 0 when they run in this process.
	PeakRSS   int64           `json:"peakRSS"`
	Processes []ProcessStatus `json:"processes"`
	// Error is why it did not start the last time; BuildError what the compiler says about its newest code.
	Error      string `json:"error,omitempty"`
	BuildError string `json:"buildError,omitempty"`
}

// ProcessStatus is one process, or one instance in this process.
type ProcessStatus struct {
	PID      int       `json:"pid,omitempty"`
	State    string    `json:"state"`
	Since    time.Time `json:"since"`
	InFlight int       `json:"inFlight"`
	RSS      int64     `json:"rss,omitempty"`
	PeakRSS  int64     `json:"peakRSS,omitempty"`
}

// Service is the status of one service; the zero value when there is none of that name.
func (s Status) Service(name string) ServiceStatus {
	for _, service := range s.Services {
		if service.Service == name {
			return service
		}
	}
	return ServiceStatus{}
}

// Status is what runs and has run.
func (h *Handle) Status() Status {
	s := Status{URL: h.url, Began: h.began, Broker: h.broker.Counts(), Chaos: h.broker.Chaos()}
	for _, service := range h.cfg.Services {
		s.Services = append(s.Services, h.backends[service.Name].status())
	}
	return s
}

// Timeline is when each process was up, in order of start.
func (h *Handle) Timeline() []Span { return h.time.all() }
