package mail

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// TLSMode says how a connection to a relay is encrypted.
type TLSMode string

// The ways to encrypt: from the first byte (RFC 8314), by STARTTLS (RFC 3207), which is then required, or not at all.
const (
	TLSImplicit TLSMode = "implicit"
	TLSStart    TLSMode = "starttls"
	TLSNone     TLSMode = "none"
)

// Relay is where mail is handed over, as ParseURL reads it.
type Relay struct {
	Host     string
	Port     int
	User     string // empty: no authentication
	Password string
	TLS      TLSMode
	HELO     string // name given in EHLO; empty: the machine's host name
	// Weight is the relay's part of the connections, among several; 0: only while the others are away.
	Weight int
	// Provider is whose it is, where webhooks need a Reference: postmark or sendgrid. By the host unless provider= names one.
	Provider string
	// MaxMessages and MaxAge are after how much a connection to it is given up for another; 0: as the pool says.
	MaxMessages int
	MaxAge      time.Duration
	// Rate is how many mails a second it takes from all who use it; 0: as many as it answers. Whoever hands mails over keeps to it.
	Rate float64

	// TLSConfig replaces the default (system roots, TLS 1.2 or later, the host's name checked): tests bring their own roots.
	TLSConfig *tls.Config
}

// maxWeight bounds weights, and so how many connections one relay gets before another has its turn.
const maxWeight = 100

// minRate and maxRate bound rates: a mail waits for its time with its connection open.
const minRate, maxRate = 0.1, 1e5

// ParseURLs reads one or more relays as ParseURL does, separated by spaces: weight=3 gives one three times the connections of another, weight=0 makes it a standby.
func ParseURLs(s string) ([]Relay, error) {
	all := strings.Fields(s)
	if len(all) == 0 {
		all = []string{""}
	}
	relays := make([]Relay, len(all))
	weights := 0
	for i, one := range all {
		var err error
		if relays[i], err = ParseURL(one); err != nil {
			if len(all) > 1 {
				err = fmt.Errorf("relay %d of %d: %w", i+1, len(all), err)
			}
			return nil, err
		}
		weights += relays[i].Weight
	}
	if weights == 0 {
		return nil, errors.New("SMTP URL has weight=0: a standby needs another relay to stand by for")
	}
	return relays, nil
}

// ParseURL reads smtp://user:pass@host:587?tls=starttls, the form of ONDA_SMTP_URL. Without tls, port 465 and the scheme smtps
// mean implicit, anything else starttls. Without a port it is 465 for implicit, 587 for starttls and 25 for none. Its errors
// never show the password. provider=postmark is for a relay of Postmark's behind another name.
func ParseURL(s string) (Relay, error) {
	if strings.TrimSpace(s) == "" {
		return Relay{}, errors.New("SMTP URL is empty: want smtp://user:pass@host:587?tls=starttls")
	}
	u, err := url.Parse(s)
	if err != nil {
		var ue *url.Error // its text would show the whole URL
		if errors.As(err, &ue) {
			err = ue.Err
		}
		if strings.Contains(err.Error(), "port") || strings.Contains(err.Error(), "userinfo") || strings.Contains(err.Error(), "escape") {
			return Relay{}, errors.New("SMTP URL does not parse: percent-encode special characters in user and password (/ is %2F, @ is %40, % is %25)")
		}
		return Relay{}, errors.New("SMTP URL does not parse: want smtp://user:pass@host:587?tls=starttls")
	}
	if u.Scheme != "smtp" && u.Scheme != "smtps" {
		return Relay{}, fmt.Errorf("SMTP URL has scheme %q: want smtp:// or smtps://", u.Scheme)
	}
	r := Relay{Host: u.Hostname(), User: u.User.Username(), Weight: 1, Provider: providerOf(u.Hostname())}
	r.Password, _ = u.User.Password()
	if r.Host == "" {
		return Relay{}, errors.New("SMTP URL names no host: want smtp://user:pass@host:587?tls=starttls")
	}
	if u.Path != "" && u.Path != "/" {
		return Relay{}, fmt.Errorf("SMTP URL has a path, which means nothing (a / in user or password is written %%2F)")
	}
	if (r.User == "") != (r.Password == "") {
		return Relay{}, errors.New("SMTP URL has a user without a password or a password without a user: give both or neither")
	}
	if p := u.Port(); p != "" {
		if r.Port, err = strconv.Atoi(p); err != nil || r.Port < 1 || r.Port > 65535 {
			return Relay{}, fmt.Errorf("SMTP URL has port %q: want 1 to 65535", p)
		}
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Relay{}, errors.New("SMTP URL has a query that does not parse: want ?tls=starttls, implicit or none, helo=NAME, weight=N, rate=N, messages=N, age=5m and provider=NAME")
	}
	for name, values := range query {
		if len(values) > 1 {
			return Relay{}, fmt.Errorf("SMTP URL gives %s twice", name)
		}
		switch name {
		case "tls":
			r.TLS = TLSMode(values[0])
			if r.TLS != TLSImplicit && r.TLS != TLSStart && r.TLS != TLSNone {
				return Relay{}, fmt.Errorf("SMTP URL has tls=%q: want starttls, implicit or none", values[0])
			}
		case "helo":
			r.HELO = values[0]
			if r.HELO == "" || strings.ContainsFunc(r.HELO, func(c rune) bool { return c <= ' ' || c > '~' }) {
				return Relay{}, fmt.Errorf("SMTP URL has helo=%q: want a host name", values[0])
			}
		case "weight":
			if r.Weight, err = strconv.Atoi(values[0]); err != nil || r.Weight < 0 || r.Weight > maxWeight {
				return Relay{}, fmt.Errorf("SMTP URL has weight=%q: want 0 to %d", values[0], maxWeight)
			}
		case "messages":
			if r.MaxMessages, err = strconv.Atoi(values[0]); err != nil || r.MaxMessages < 1 {
				return Relay{}, fmt.Errorf("SMTP URL has messages=%q: want how many mails a connection serves, from 1", values[0])
			}
		case "age":
			if r.MaxAge, err = time.ParseDuration(values[0]); err != nil || r.MaxAge < time.Second {
				return Relay{}, fmt.Errorf("SMTP URL has age=%q: want how long a connection serves, such as 5m", values[0])
			}
		case "rate":
			if r.Rate, err = strconv.ParseFloat(values[0], 64); err != nil || !(r.Rate >= minRate && r.Rate <= maxRate) {
				return Relay{}, fmt.Errorf("SMTP URL has rate=%q: want mails a second, from %g to %g", values[0], minRate, maxRate)
			}
		case "provider":
			r.Provider = values[0]
			if _, ok := referenceOf(r.Provider); !ok {
				return Relay{}, fmt.Errorf("SMTP URL has provider=%q: want postmark or sendgrid; others need none", values[0])
			}
		default:
			return Relay{}, fmt.Errorf("SMTP URL has an unknown parameter %q: want tls, helo, weight, rate, messages, age or provider", name)
		}
	}
	switch {
	case u.Scheme == "smtps" && r.TLS != "" && r.TLS != TLSImplicit:
		return Relay{}, fmt.Errorf("SMTP URL has scheme smtps and tls=%s, which contradict each other", r.TLS)
	case r.TLS == "" && (u.Scheme == "smtps" || r.Port == 465):
		r.TLS = TLSImplicit
	case r.TLS == "":
		r.TLS = TLSStart
	}
	if r.Port == 0 {
		r.Port = map[TLSMode]int{TLSImplicit: 465, TLSStart: 587, TLSNone: 25}[r.TLS]
	}
	if r.User != "" && r.TLS == TLSNone && !r.loopback() {
		return Relay{}, errors.New("SMTP URL would send its password unencrypted: use tls=starttls or tls=implicit, or leave user and password out")
	}
	return r, nil
}

// String gives the relay without its password.
func (r Relay) String() string {
	u := url.URL{Scheme: "smtp", Host: r.Addr(), RawQuery: "tls=" + string(r.TLS)}
	if r.User != "" {
		u.User = url.User(r.User)
	}
	return u.String()
}

// GoString keeps the password out of %#v.
func (r Relay) GoString() string { return "mail.Relay(" + r.String() + ")" }

// Addr gives host:port.
func (r Relay) Addr() string { return net.JoinHostPort(r.Host, strconv.Itoa(r.Port)) }

func (r Relay) loopback() bool {
	if r.Host == "localhost" {
		return true
	}
	ip := net.ParseIP(r.Host)
	return ip != nil && ip.IsLoopback()
}
