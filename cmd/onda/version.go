package main

import (
	"runtime/debug"

	"github.com/onda-run/onda/internal/postgres"
)

type versionCmd struct{}

// Help is shown by --help.
func (versionCmd) Help() string { return "Example:\n  onda version --output json" }

// Run prints the version.
func (versionCmd) Run(s *session) error {
	v := map[string]any{"version": "devel", "schema": postgres.Schema}
	if info, ok := debug.ReadBuildInfo(); ok {
		v["version"], v["go"] = info.Main.Version, info.GoVersion
		for _, set := range info.Settings {
			if set.Key == "vcs.revision" {
				v["revision"] = set.Value
			}
		}
	}
	if ok, err := s.data(v); ok {
		return err
	}
	s.print("onda %v, %v, schema %d", v["version"], v["go"], postgres.Schema)
	return nil
}
