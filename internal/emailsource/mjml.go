package emailsource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/liquid"
)

// MJMLVariable is the environment variable that says where MJML's compiler is; else it is the mjml of the path.
const MJMLVariable = "ONDA_MJML"

const (
	maxMJML   = 256 << 10 // bytes of a source
	maxPage   = 4 << 20   // and of what the compiler writes
	mjmlLimit = time.Minute
)

var (
	openMJML    = regexp.MustCompile(`(?i)<mjml\b`)
	mjmlLang    = regexp.MustCompile(`(?i)<mjml\b[^>]*\slang\s*=`)
	mjmlInclude = regexp.MustCompile(`(?i)<mj-include\b`)
	mjmlPath    = regexp.MustCompile(` of \S+ \(`)
)

// mjmlToHTML has MJML's own compiler make a page, and leaves the Liquid in it as it is. It checks strictly: what MJML does not know is an error.
func mjmlToHTML(src, locale string) (string, error) {
	if len(src) > maxMJML {
		return "", fmt.Errorf("its MJML is larger than %d KiB: shorten it", maxMJML>>10)
	}
	if mjmlInclude.MatchString(src) {
		return "", errors.New("mj-include is not read: use a layout in MJML, or {file: ...}")
	}
	if at := openMJML.FindStringIndex(src); locale != "" && at != nil && !mjmlLang.MatchString(src) {
		src = src[:at[1]] + ` lang="` + locale + `"` + src[at[1]:]
	}
	m := liquid.Mask(src)
	page, err := runMJML(m.Text)
	if err != nil {
		return "", err
	}
	for _, at := range regexp.MustCompile(m.Pattern()).FindAllStringIndex(m.Text, -1) {
		if mark := m.Text[at[0]:at[1]]; !strings.Contains(page, mark) {
			line, _ := m.Position(at[0])
			return "", fmt.Errorf("MJML drops %s where it stands, in line %d: between elements put it into <mj-raw>", m.Restore(mark), line)
		}
	}
	return m.Restore(page), nil
}

// runMJML runs the compiler, which is a program of Node.js.
func runMJML(src string) (string, error) {
	program := os.Getenv(MJMLVariable)
	if program == "" {
		program = "mjml"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("MJML's compiler, %s, was not found: run npm install --global mjml@5.4.1, or set %s to where it is", program, MJMLVariable)
	}
	ctx, cancel := context.WithTimeout(context.Background(), mjmlLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--stdin", "--stdout", "--noStdoutFileComment", "--config.validationLevel", "strict", "--config.beautify", "false")
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(src)
	var out, said bounded
	cmd.Stdout, cmd.Stderr = &out, &said
	switch err := cmd.Run(); {
	case ctx.Err() != nil:
		return "", fmt.Errorf("MJML's compiler %s does not end within %v", path, mjmlLimit)
	case err != nil || openHTML.FindIndex(out.Bytes()) == nil:
		return "", fmt.Errorf("MJML refuses it: %s", complaint(said.String(), err))
	}
	return out.String(), nil
}

// bounded keeps what a program writes, up to a limit.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxPage {
		return 0, errors.New("too much")
	}
	return b.Buffer.Write(p)
}

// complaint gives what the compiler says is wrong, without what it says around that.
func complaint(said string, err error) string {
	var lines []string
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, " — ") {
			lines = append(lines, mjmlPath.ReplaceAllString(line, " ("))
		}
	}
	if len(lines) > 0 {
		return strings.Join(lines, "; ")
	}
	if said = strings.Join(strings.Fields(said), " "); said != "" {
		return clip(said)
	}
	if err != nil {
		return err.Error()
	}
	return "it makes no page of it"
}
