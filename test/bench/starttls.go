package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// certificateEnv names the directory with the sink's certificate.
const certificateEnv = "ONDA_BENCH_CERTIFICATE"

// The files of a certificate.
const (
	certFile = "cert.pem"
	keyFile  = "key.pem"
)

// certificateIn reads the certificate of a directory; nil where none is named.
func certificateIn(dir string) (*tls.Config, error) {
	if dir == "" {
		return nil, nil
	}
	c, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, fmt.Errorf("read the sink's certificate: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12}, nil
}

// makeCertificate writes a certificate of this machine's own, which is its own root.
func makeCertificate(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make a certificate: %w", err)
	}
	for name, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return fmt.Errorf("write a certificate: %w", err)
		}
	}
	return nil
}

// prepareStartTLS measures sending over STARTTLS; the reference is the same without encryption.
func prepareStartTLS(ctx context.Context, l *lab) (r rounds, err error) {
	dir, err := os.MkdirTemp("", "onda-bench-")
	if err != nil {
		return r, fmt.Errorf("make a directory for a certificate: %w", err)
	}
	l.closers = append(l.closers, func() error { return os.RemoveAll(dir) })
	if err := makeCertificate(dir); err != nil {
		return r, err
	}
	to, err := startSinkProcess(ctx, certificateEnv+"="+dir)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, to.close)
	if err := prepareMails(ctx, l); err != nil {
		return r, err
	}
	settings := func(mode string) []string {
		return []string{
			"ONDA_LANE=bulk", "ONDA_SMTP_CONNECTIONS=" + strconv.Itoa(connections), "SSL_CERT_FILE=" + filepath.Join(dir, certFile),
			"ONDA_SMTP_URL=smtp://127.0.0.1:" + strconv.Itoa(to.port) + "?tls=" + mode,
		}
	}
	if err := l.start(ctx, "send", settings("starttls")...); err != nil {
		return r, err
	}
	plain, err := l.startSide(ctx, "send", settings("none")...)
	if err != nil {
		return r, err
	}
	l.closers = append(l.closers, func() error {
		_, err := plain.end()
		return err
	})
	cpu := &beside{name: "CPU of send", unit: "ms a mail", goal: 1.15}
	r.beside = []*beside{cpu}
	round := func(s *side, costs *[]float64) func(context.Context) (float64, error) {
		return func(ctx context.Context) (float64, error) {
			took, used, err := l.blast(ctx, s, to.ask)
			if err != nil {
				return 0, err
			}
			*costs = append(*costs, used.process/float64(l.mails)*1000)
			return float64(l.mails) / took.Seconds(), nil
		}
	}
	r.ours, r.reference = round(l.side, &cpu.ours), round(plain, &cpu.reference)
	return r, nil
}
