package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/localbroker"
)

// Config says what runs and how. The zero value of a field means what its comment says.
type Config struct {
	// Addr is where the ingress listens: a loopback address and port, 127.0.0.1:8080 when empty. Port 0 takes any.
	Addr string
	// PortFlag is the option that changes the port, named when it is in use; --port when empty.
	PortFlag string
	// Root is the module's directory; the working directory when empty. Eventing is the directory of manifests; Root/eventing when empty.
	Root, Eventing string
	// Services are what the ingress serves; Services() when nil.
	Services []Service
	// Scale says for services, by name, how many processes there may be.
	Scale map[string]int

	// Binaries is a directory of binaries that are built already, by function: then nothing is built and code is not watched. When it is empty, they are
	// built into BuildDir (Root/.onda/bin when empty) when they are first needed and when their code changed.
	Binaries, BuildDir string
	// Builds runs the functions in this process instead, by function.
	Builds map[string]fn.Build
	// RebuildEach makes a new instance of a function for each request and ends it afterwards; only with Builds.
	RebuildEach bool

	// Env is what all functions get beside the environment of this process (with Builds: nothing but Env). ServiceEnv is for single services, by name, and
	// wins.
	Env        map[string]string
	ServiceEnv map[string]map[string]string

	// Idle is how long a process may be without a request; 10 s when 0. Grace is how long it has after SIGTERM; 10 s when 0. Start is how long it has to
	// become ready; 30 s when 0.
	Idle, Grace, Start time.Duration
	// Tick replaces the PingSource's schedule of each minute; when negative there are no ticks but Handle.Tick's.
	Tick time.Duration
	// Chaos is how badly the broker behaves at first.
	Chaos localbroker.Chaos
	// Clock is the broker's; the machine's when nil.
	Clock localbroker.Clock
	// OnEvent sees each event that a function publishes or is posted, once; it must be quick.
	OnEvent func(cloudevents.Event)

	// Documents are directories whose edits are handed to OnDocuments.
	Documents   []string
	OnDocuments func(ctx context.Context, dir string) error

	// Routes are further pages of the ingress, by http.ServeMux pattern. Links are listed on the page at /.
	Routes map[string]http.Handler
	Links  []Link

	// Logs is a directory for the logs of functions, a file each; when it is empty they go to Output, each line with its service's name.
	Logs string
	// Output is the terminal; os.Stderr when nil.
	Output io.Writer
	// Log tells of failed deliveries and the like; none when nil.
	Log *zap.Logger
}

// Link is something to look at.
type Link struct {
	Title, URL, Text string
}

// withDefaults fills in what is empty, and checks.
func (c Config) withDefaults() (Config, error) {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:8080"
	}
	if c.PortFlag == "" {
		c.PortFlag = "--port"
	}
	if c.Root == "" {
		c.Root = "."
	}
	if c.Eventing == "" {
		c.Eventing = filepath.Join(c.Root, "eventing")
	}
	if c.Services == nil {
		c.Services = Services()
	}
	if c.BuildDir == "" {
		c.BuildDir = filepath.Join(c.Root, ".onda", "bin")
	}
	for _, d := range []struct {
		value  *time.Duration
		normal time.Duration
	}{{&c.Idle, 10 * time.Second}, {&c.Grace, 10 * time.Second}, {&c.Start, 30 * time.Second}} {
		if *d.value == 0 {
			*d.value = d.normal
		}
	}
	if c.Clock == nil {
		c.Clock = localbroker.RealClock{}
	}
	if c.Output == nil {
		c.Output = os.Stderr
	}
	if c.Log == nil {
		c.Log = zap.NewNop()
	}
	return c, c.check()
}

func (c Config) check() error {
	host, _, err := net.SplitHostPort(c.Addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", c.Addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("address %q is not a loopback address: what a cluster keeps to itself is open here, so that nobody else may reach it", c.Addr)
	}
	known := map[string]bool{}
	for _, s := range c.Services {
		known[s.Name] = true
		if c.Builds != nil && c.Builds[s.Function] == nil {
			return fmt.Errorf("service %s: there is no build of function %s", s.Name, s.Function)
		}
	}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(c.ServiceEnv)), slices.Collect(maps.Keys(c.Scale))) {
		if !known[name] {
			return fmt.Errorf("there is no service %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
	}
	if c.RebuildEach && c.Builds == nil {
		return errors.New("RebuildEach needs Builds")
	}
	return c.Chaos.Check()
}

// environment is what a service's function reads, beside the PORT of a process.
func (c Config) environment(s Service, base string) map[string]string {
	env := map[string]string{"ONDA_DRAIN": (c.Grace * 4 / 5).String()}
	maps.Copy(env, c.Env)
	if s.Lane != "" {
		env["ONDA_LANE"] = s.Lane
	}
	maps.Copy(env, c.ServiceEnv[s.Name])
	maps.Copy(env, map[string]string{
		"ONDA_HOST":         "127.0.0.1",
		"K_SINK":            base + "/broker",
		"K_SERVICE":         s.Name,
		"K_REVISION":        s.Name + "-dev",
		"K_CONFIGURATION":   s.Name,
		"ONDA_SERVE":        s.Serve,
		"ONDA_FUNCTION_URL": base + "/functions/{function}",
	})
	return env
}
