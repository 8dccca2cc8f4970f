package postgres_test

import (
	"errors"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Of a tenant's file and of commands the stricter counts, until the file has said what the command did, or somebody resumes it.
func TestAFileLiftsNothingThatACommandSet(t *testing.T) {
	t.Parallel()
	const active, suspended, deleted = postgres.Active, postgres.Suspended, postgres.Deleted
	a := pgtest.New(t).Admin(t)
	ctx := t.Context()
	suspend := func() error { _, err := a.Suspend(ctx, "acme", false); return err }
	remove := func() error { _, err := a.Delete(ctx, "acme"); return err }
	resume := func() error { _, err := a.Resume(ctx, "acme"); return err }
	for name, steps := range map[string][]struct {
		command func() error // or else the file
		file    string
		state   string // afterwards
		err     error
	}{
		"the file's own":                     {{file: suspended, state: suspended}, {file: active, state: active}, {file: deleted, state: deleted}, {file: suspended, state: suspended}, {file: deleted, state: deleted}, {file: active, state: active}},
		"suspended":                          {{command: suspend, state: suspended}, {file: active, state: suspended, err: postgres.ErrHeld}, {command: resume, state: active}, {file: active, state: active}, {file: suspended, state: suspended}, {file: active, state: active}},
		"suspended, and so says the file":    {{command: suspend, state: suspended}, {file: suspended, state: suspended}, {file: active, state: active}},
		"suspended, and deleted by the file": {{command: suspend, state: suspended}, {file: deleted, state: deleted}, {file: active, state: active}},
		"deleted": {
			{command: remove, state: deleted},
			{file: active, state: deleted, err: postgres.ErrHeld},
			{file: suspended, state: deleted, err: postgres.ErrHeld},
			{command: resume, state: active},
			{file: active, state: active},
		},
		"deleted, and so says the file": {{command: remove, state: deleted}, {file: deleted, state: deleted}, {file: active, state: active}},
		"by the file, and then by the command": {
			{file: suspended, state: suspended},
			{command: suspend, state: suspended},
			{file: active, state: suspended, err: postgres.ErrHeld},
			{file: deleted, state: deleted},
			{command: remove, state: deleted},
			{file: active, state: deleted, err: postgres.ErrHeld},
		},
		"moving": {
			{command: func() error { _, err := a.Suspend(ctx, "acme", true); return err }, state: postgres.Moving},
			{file: active, state: postgres.Moving, err: postgres.ErrMoving},
			{file: deleted, state: postgres.Moving, err: postgres.ErrMoving},
			{command: func() error { // would serve it
				if err := suspend(); err == nil {
					return errors.New("it was suspended")
				}
				return nil
			}, state: postgres.Moving},
		},
	} {
		if err := resume(); err != nil {
			t.Fatal(err)
		}
		for i, step := range steps {
			before, err := a.Tenant(ctx, "acme")
			if err != nil {
				t.Fatal(err)
			}
			if step.command != nil {
				err = step.command()
			} else {
				var changed bool
				if changed, err = a.Follow(ctx, "acme", step.file); changed != (before.State != step.state) {
					t.Errorf("%s, step %d: changed is %t", name, i+1, changed)
				}
			}
			if !errors.Is(err, step.err) {
				t.Errorf("%s, step %d: %v, want %v", name, i+1, err, step.err)
			}
			if after, err := a.Tenant(ctx, "acme"); err != nil || after.State != step.state {
				t.Errorf("%s, step %d: it is %s, want %s (%v)", name, i+1, after.State, step.state, err)
			}
		}
	}
}
