package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// devKeys are the secret keys with which the mailbox server of onda dev hands mails that come back to the bounce function: one a tenant, made when it is
// first needed, and kept in a file for the next run.
type devKeys struct {
	path     string
	adminURL string

	mu  sync.Mutex
	all map[string]string // by tenant; those in force
}

// of gives the tenant's key.
func (k *devKeys) of(ctx context.Context, tenant string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key := k.all[tenant]; key != "" {
		return key, nil
	}
	a, err := postgres.OpenAdmin(ctx, k.adminURL)
	if err != nil {
		return "", err
	}
	defer func() { _ = a.Close(ctx) }()
	t, err := a.Tenant(ctx, tenant)
	if err != nil {
		return "", err
	}
	kept, err := readEnv(k.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	key, err := token.ParseProgramKey(kept[tenant])
	sum := key.Hash()
	known := false
	if err == nil && key.Tenant == t.Number { // the database may be another than that of the last run
		if known, err = a.HasProgramKey(ctx, tenant, sum[:]); err != nil {
			return "", err
		}
	}
	if !known {
		if key, err = token.NewProgramKey(token.SecretKey, t.Number); err != nil {
			return "", err
		}
		sum = key.Hash()
		if err := a.AddProgramKey(ctx, tenant, string(token.SecretKey), "onda dev", sum[:]); err != nil {
			return "", err
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[tenant] = key.Reveal()
		if err := writeEnv(k.path, kept); err != nil {
			return "", err
		}
	}
	if k.all == nil {
		k.all = map[string]string{}
	}
	k.all[tenant] = key.Reveal()
	return key.Reveal(), nil
}

// readEnv reads a file of NAME=value lines.
func readEnv(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	env := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, value, ok := strings.Cut(lines.Text(), "="); ok {
			env[name] = value
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return env, nil
}

// writeEnv writes such a file as a whole, for its owner alone: there are keys in it.
func writeEnv(path string, env map[string]string) error {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&b, "%s=%s\n", name, env[name])
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
