// Command onda is Onda's command line: it applies documents, imports contacts, starts campaigns, explains and reports what happened, makes tenants,
// and runs all of Onda on one machine (onda dev).
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
)

// Exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
)

type cli struct {
	Tenant string `help:"Tenant to work in." env:"ONDA_TENANT" placeholder:"NAME"`
	Output string `help:"How data is printed: text or json." enum:"text,json" default:"text" short:"o" placeholder:"text"`

	Dev      devCmd      `cmd:"" help:"Run all of Onda on this machine, each function started at its first request and ended when idle."`
	Migrate  migrateCmd  `cmd:"" help:"Bring the database to the newest schema."`
	Apply    applyCmd    `cmd:"" help:"Apply a directory of documents, all or nothing."`
	Diff     diffCmd     `cmd:"" help:"Show what apply would change."`
	Delete   deleteCmd   `cmd:"" help:"Take a document away that nothing refers to."`
	Schema   schemaCmd   `cmd:"" help:"Print the JSON Schema of the documents, for editors."`
	Import   importCmd   `cmd:"" help:"Import contacts from a CSV file."`
	Export   exportCmd   `cmd:"" help:"Write contacts, or what was sent in with a form and its files."`
	Contact  contactCmd  `cmd:"" help:"Show and merge contacts; export all that is stored of a person, or erase it."`
	Segment  segmentCmd  `cmd:"" help:"List, count, preview and explain segments."`
	Campaign campaignCmd `cmd:"" help:"Start, pause, resume, cancel and look into campaigns and broadcasts."`
	Explain  explainCmd  `cmd:"" help:"Tell all that is known about one delivery."`
	Report   reportCmd   `cmd:"" help:"Report what became of a campaign's mails."`
	Email    emailCmd    `cmd:"" help:"Preview an email, or send a test of it."`
	Bounce   bounceCmd   `cmd:"" help:"Hand mails that came back to Onda; set the secrets of providers' webhooks."`
	Event    eventCmd    `cmd:"" help:"Send events, list those that failed, and replay them."`
	Domain   domainCmd   `cmd:"" help:"Check the domains that emails are from, and make the keys that Onda signs with."`
	TenantC  tenantCmd   `cmd:"" name:"tenant" help:"Make and list tenants, make their keys, move their clocks."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for what the first one ends
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command and returns its exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	s := &session{stdin: stdin, stdout: stdout, stderr: stderr}
	exit := -1
	parser, err := kong.New(&c, kong.Name("onda"), kong.Description("Marketing automation that scales to zero."), kong.Writers(stdout, stderr),
		kong.UsageOnError(), kong.Exit(func(code int) { exit = code }), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "onda: %v\n", err)
		return exitFailed
	}
	k, err := parser.Parse(args)
	if exit >= 0 { // --help
		return exit
	}
	if err != nil {
		var wrong *kong.ParseError
		at := "onda"
		if errors.As(err, &wrong) {
			at = command(wrong.Context)
		}
		_, _ = fmt.Fprintf(stderr, "onda: %v\nTry: %s --help\n", err, at)
		return exitUsage
	}
	failed := exitFailed
	if strings.HasPrefix(k.Command(), "bounce post") {
		failed = exitTempFail // whatever it is, the mail server keeps the mail until it is mended
	}
	if err := s.loadEnv(); err != nil {
		_, _ = fmt.Fprintf(stderr, "onda: %v\n", err)
		return failed
	}
	s.tenant, s.json = c.Tenant, c.Output == "json"
	if s.tenant == "" {
		s.tenant = s.env("ONDA_TENANT")
	}
	defer s.close()
	k.BindTo(ctx, (*context.Context)(nil))
	err = k.Run(s)
	var usage usageError
	switch {
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(stderr, "onda: %v\nTry: %s --help\n", err, command(k))
		return exitUsage
	case errors.Is(err, errQuiet):
		return failed
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		_, _ = fmt.Fprintln(stderr, "onda: interrupted")
		return failed
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "onda: %s\n", s.inWords(err))
		return failed
	}
	return 0
}

// command is what was typed of a command, without its arguments.
func command(k *kong.Context) string {
	words := []string{"onda"}
	for _, p := range k.Path {
		if p.Command != nil {
			words = append(words, p.Command.Name)
		}
	}
	return strings.Join(words, " ")
}
