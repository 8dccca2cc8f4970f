package send

import (
	"context"
	"runtime"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/mailbox"
)

// BenchmarkSend is the whole path: batches of 500 leased, gated, rendered, handed over to a mailbox on loopback, recorded and closed.
func BenchmarkSend(b *testing.B) {
	w := newWorld(b)
	box, err := mailbox.Start(context.Background(), mailbox.Config{Dir: b.TempDir(), SMTPAddr: "127.0.0.1:0", Log: zap.NewNop()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = box.Close() }()
	in := w.start("ONDA_SMTP_URL=" + box.SMTPURL())
	w.plan(w.people(b.N), 500)
	b.ResetTimer()
	began := time.Now()
	for w.count("SELECT count(*) FROM batch WHERE state = 'open'") > 0 {
		w.mustSweep(in, "send")
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "mails/s")
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(m.Sys)/(1<<20), "MiB-sys")
	if got := box.Counts(); got.Distinct != b.N || got.Repeated != 0 {
		b.Fatalf("the mailbox has %+v, want %d", got, b.N)
	}
}
