package fn

import (
	"context"
	"errors"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

// newLogger logs to out: one JSON line an entry, or a form for people where out is a terminal or the configuration says so.
func newLogger(name string, cfg Config, out *os.File) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(cfg.LogLevel)
	if err != nil {
		return nil, err
	}
	enc := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", MessageKey: "message", NameKey: "logger", StacktraceKey: "stack",
		EncodeTime: zapcore.RFC3339NanoTimeEncoder, EncodeLevel: zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.MillisDurationEncoder, EncodeName: zapcore.FullNameEncoder,
	}
	encoder := zapcore.NewJSONEncoder(enc)
	if cfg.Log == "console" || cfg.Log == "auto" && term.IsTerminal(int(out.Fd())) {
		enc.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		enc.EncodeLevel = zapcore.CapitalColorLevelEncoder
		encoder = zapcore.NewConsoleEncoder(enc)
	}
	log := zap.New(zapcore.NewCore(encoder, zapcore.Lock(out), level)).With(zap.String("function", name))
	for _, v := range [][2]string{{"service", "K_SERVICE"}, {"revision", "K_REVISION"}} { // set by Knative
		if value := os.Getenv(v[1]); value != "" {
			log = log.With(zap.String("knative.dev/"+v[0], value))
		}
	}
	return log, nil
}

// line is the log line of one request while it is collected.
type line struct {
	start time.Time
	event bool // and not a request over HTTP

	mu     sync.Mutex
	tenant string
	err    error
}

type lineKey struct{}

// LogTenant names the tenant of a request over HTTP in its log line, once it is proven. For events the runtime does it.
func LogTenant(ctx context.Context, tenant string) {
	if l, ok := ctx.Value(lineKey{}).(*line); ok {
		l.setTenant(tenant)
	}
}

func (l *line) setTenant(tenant string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tenant = tenant
}

// LogError gives an error to the log line of the request, for handlers that answer errors themselves, for instance with a page. It must hold nothing
// personal.
func LogError(ctx context.Context, err error) {
	if l, ok := ctx.Value(lineKey{}).(*line); ok {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.err = err
	}
}

// write logs the line: what it was, how it ended and how long it took. Errors that pass by themselves are warnings, and so is an event that can never
// succeed. What a caller did wrong over HTTP, such as a wrong key, is for the caller to mend.
func (l *line) write(log *zap.Logger, status int, fields ...zap.Field) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.tenant != "" {
		fields = append(fields, zap.String("tenant", l.tenant))
	}
	fields = append(fields, zap.Int("status", status), zap.Duration("duration", time.Since(l.start)))
	level := zapcore.InfoLevel
	if l.err != nil {
		fields = append(fields, zap.String("error", scrub(l.err.Error())))
		switch {
		case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || status < 400:
			level = zapcore.WarnLevel
		case status >= 500:
			level = zapcore.ErrorLevel
		case l.event:
			level = zapcore.WarnLevel
		}
	}
	var p *panicked
	if errors.As(l.err, &p) {
		fields = append(fields, zap.Any("panic", p.value), zap.ByteString("stack", p.stack))
	}
	log.Log(level, "request", fields...)
}

// scrub takes out what looks like an address, should an error quote one after all.
func scrub(s string) string {
	if !strings.Contains(s, "@") {
		return s
	}
	return regexp.MustCompile(`[^\s<>"'(),;:=/]+@[^\s<>"'(),;]+`).ReplaceAllString(s, "[address]")
}

// short cuts a text for an answer's body: brokers keep 1,024 bytes of it.
func short(s string) string {
	const most = 300
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= most {
		return s
	}
	cut := most
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}
