package mails

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode"
)

// tools are Debian's Postfix, OpenDKIM and SpamAssassin, unpacked and not installed: nothing of the machine runs them.
type tools struct {
	t    *testing.T
	root string
	libs string
	perl []string
}

func newTools(t *testing.T, root string) *tools {
	t.Helper()
	k := &tools{t: t, root: root, perl: []string{"-T", "-I" + filepath.Join(root, "usr/share/perl5")}}
	libs := []string{filepath.Join(root, "usr/lib"), filepath.Join(root, "usr/lib/postfix")}
	for _, of := range []string{"usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/perl5/*"} {
		found, err := filepath.Glob(filepath.Join(root, of))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range found {
			if strings.Contains(dir, "perl5") {
				k.perl = append(k.perl, "-I"+dir)
			} else {
				libs = append(libs, dir)
			}
		}
	}
	k.libs = strings.Join(libs, ":")
	return k
}

func (k *tools) command(program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.WithoutCancel(k.t.Context()), filepath.Join(k.root, program), args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+k.libs)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// start runs a server until the test ends, and waits until it listens at a port of loopback.
func (k *tools) start(port int, program string, args ...string) {
	k.t.Helper()
	cmd := k.command(program, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		k.t.Fatalf("start %s: %v", program, err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	k.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for limit := time.Now().Add(time.Minute); ; { // they say nowhere that they listen
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(k.t.Context(), "tcp", at)
		if err == nil {
			_ = c.Close()
			return
		}
		select {
		case <-ended:
			k.t.Fatalf("%s ended: %s", program, out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(limit) {
			k.t.Fatalf("%s does not listen at %s", program, at)
		}
	}
}

// freePort is a port of loopback that nobody listens at.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// directory is one that servers which are not root can reach: a test's own is not.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "onda-mails-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// postfix starts an instance of Postfix: it takes mail from this machine, has a milter look at it and hands it on to a port. It gives its own port, and its log.
func (k *tools) postfix(milter, next int) (port int, log string) {
	k.t.Helper()
	dir := directory(k.t)
	port, log = freePort(k.t), filepath.Join(dir, "log")
	owner, err := user.Lookup("daemon") // one that no other instance has, and that is no login
	if err != nil {
		k.t.Fatal(err)
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, of := range []string{"pid", "maildrop", "public", "private", "active", "incoming", "deferred", "defer", "bounce", "corrupt", "hold", "saved", "flush", "trace", "../data"} {
		path := filepath.Join(dir, "queue", of)
		if err := os.MkdirAll(path, 0o755); err != nil {
			k.t.Fatal(err)
		}
		if of == "pid" { // root's own
			continue
		}
		if err := os.Chown(path, uid, -1); err != nil {
			k.t.Fatal(err)
		}
	}
	etc := filepath.Join(dir, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		k.t.Fatal(err)
	}
	write(k.t, filepath.Join(etc, "main.cf"), fmt.Sprintf(`
compatibility_level = 3.6
queue_directory = %[1]s/queue
data_directory = %[1]s/data
command_directory = %[2]s/usr/sbin
daemon_directory = %[2]s/usr/lib/postfix/sbin
shlib_directory = %[2]s/usr/lib/postfix
meta_directory = %[2]s/etc/postfix
import_environment = MAIL_CONFIG MAIL_LOGTAG TZ POSTLOG_SERVICE POSTLOG_HOSTNAME LANG=C LD_LIBRARY_PATH=%[3]s
maillog_file = %[1]s/log
maillog_file_prefixes = %[1]s
mail_owner = daemon
setgid_group = mail
default_privs = nobody
myhostname = relay.example
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
fast_flush_domains =
smtpd_relay_restrictions = permit_mynetworks, reject
smtp_dns_support_level = disabled
smtp_tls_security_level = none
smtpd_tls_security_level = none
default_transport = smtp:[127.0.0.1]:%[5]d
smtpd_milters = inet:127.0.0.1:%[4]d
milter_default_action = tempfail
smtputf8_enable = yes
`, dir, k.root, k.libs, milter, next))
	write(k.t, filepath.Join(etc, "master.cf"), fmt.Sprintf(`
127.0.0.1:%d inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
`, port))
	k.start(port, "usr/lib/postfix/sbin/master", "-c", etc, "-d")
	return port, log
}

// signingMilter starts an OpenDKIM that signs what is from some domains, with keys in PEM, and gives its port.
func (k *tools) signingMilter(selector string, keys map[string]string) (port int) {
	k.t.Helper()
	dir := k.t.TempDir()
	port = freePort(k.t)
	var table, signing strings.Builder
	for domain, key := range keys {
		path := write(k.t, filepath.Join(dir, domain+".pem"), key)
		fmt.Fprintf(&table, "%s %s:%s:%s\n", domain, domain, selector, path)
		fmt.Fprintf(&signing, "*@%s %s\n", domain, domain)
	}
	conf := write(k.t, filepath.Join(dir, "sign.conf"), fmt.Sprintf(`
Mode s
Socket inet:%d@127.0.0.1
Background no
Syslog no
Canonicalization relaxed/simple
OversignHeaders From
RequireSafeKeys no
KeyTable file:%s
SigningTable refile:%s
`, port, write(k.t, filepath.Join(dir, "keys"), table.String()), write(k.t, filepath.Join(dir, "signing"), signing.String())))
	k.start(port, "usr/sbin/opendkim", "-f", "-x", conf)
	return port
}

var dkimResult = regexp.MustCompile(`dkim=([a-z]+)[^;]*? header\.d=(\S+)[^;]*? header\.a=(\S+)`)

// verify has OpenDKIM verify the signatures of a mail, by records of DNS: what it says of each, such as "rsa-sha256 pass".
func (k *tools) verify(body, domain string, records map[string]string) (results []string) {
	k.t.Helper()
	dir := k.t.TempDir()
	var dns strings.Builder
	for name, value := range records {
		fmt.Fprintf(&dns, "%s %s\n", name, value)
	}
	conf := write(k.t, filepath.Join(dir, "verify.conf"), "Mode v\nSyslog no\nTestPublicKeys "+write(k.t, filepath.Join(dir, "records"), dns.String())+"\n")
	out, err := k.command("usr/sbin/opendkim", "-x", conf, "-v", "-v", "-t", write(k.t, filepath.Join(dir, "mail"), body)).CombinedOutput()
	for _, r := range dkimResult.FindAllStringSubmatch(string(out), -1) {
		result := r[3] + " " + r[1]
		if r[2] != domain {
			result += " of " + r[2]
		}
		results = append(results, result)
	}
	if len(results) == 0 {
		k.t.Errorf("opendkim finds no signature: %v: %s", err, out)
	}
	return results
}

// judgement is SpamAssassin's of one mail.
type judgement struct {
	score float64
	rules []string
}

var spamStatus = regexp.MustCompile(`(?ms)^X-Spam-Status: (?:Yes|No), score=(-?[0-9.]+) [^:]*?tests=([A-Z0-9_,\s]+|none).*?^X-Number: ([0-9]+)$`)

// spam has SpamAssassin judge mails, without the network, as from a relay that it does not know.
func (k *tools) spam(bodies []string) (out []judgement) {
	k.t.Helper()
	perl, err := exec.LookPath("perl")
	if err != nil {
		k.t.Fatal(err)
	}
	home := k.t.TempDir()
	var box strings.Builder
	for n, body := range bodies { // numbered, since it judges them in an order of its own
		fmt.Fprintf(&box, "From office@relay.example Thu Jan  1 00:00:00 2026\nX-Number: %d\n%s\n", n, strings.ReplaceAll(body, "\r\n", "\n"))
	}
	cmd := k.command("usr/bin/spamassassin")
	args := append([]string{"perl"}, k.perl...)
	args = append(args, cmd.Path, "--local", "--mbox",
		"--configpath="+filepath.Join(k.root, "usr/share/spamassassin"), "--siteconfigpath="+filepath.Join(k.root, "etc/spamassassin"),
		"--prefspath="+write(k.t, filepath.Join(home, "prefs"), "use_bayes 0\nreport_safe 0\nscore ALL_TRUSTED 0\nscore NO_RELAYS 0\n"))
	cmd.Path, cmd.Args, cmd.Stdin = perl, args, strings.NewReader(box.String())
	cmd.Env = append(cmd.Env, "HOME="+home)
	var errs strings.Builder
	cmd.Stderr = &errs
	all, err := cmd.Output()
	if err != nil {
		k.t.Fatalf("spamassassin: %v: %s", err, errs.String())
	}
	out = make([]judgement, len(bodies))
	found := spamStatus.FindAllSubmatch(all, -1)
	if len(found) != len(bodies) {
		k.t.Fatalf("spamassassin judged %d of %d mails: %s", len(found), len(bodies), errs.String())
	}
	for _, f := range found {
		n, err := strconv.Atoi(string(f[3]))
		if err != nil {
			k.t.Fatal(err)
		}
		if out[n].score, err = strconv.ParseFloat(string(f[1]), 64); err != nil {
			k.t.Fatal(err)
		}
		out[n].rules = strings.FieldsFunc(string(f[2]), func(c rune) bool { return c == ',' || unicode.IsSpace(c) })
	}
	return out
}
