package fn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// serve listens on the instance's port until ctx is done, then drains: it takes no new connections, lets requests finish within the time of ONDA_DRAIN,
// cancels those that have not, runs After once more and closes.
func serve(ctx context.Context, in *Instance) error {
	// The listening socket is all that readiness needs: nothing has been connected to.
	var lc net.ListenConfig
	listener, err := lc.Listen(context.WithoutCancel(ctx), "tcp", net.JoinHostPort(in.cfg.Host, strconv.Itoa(in.cfg.Port)))
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), in.cfg.Drain)
		defer cancel()
		return errors.Join(fmt.Errorf("PORT: %w", err), in.Stop(stop))
	}
	base, cancelRequests := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelRequests()
	server := &http.Server{
		Handler:           in,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          zap.NewStdLog(in.rt.Log),
		BaseContext:       func(net.Listener) context.Context { return base },
	}
	if in.cfg.GOMEMLIMIT == "" {
		server.ConnState = newConnections().changed
	}
	in.rt.Log.Info("serving", zap.Stringer("address", listener.Addr()))
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	var errs []error
	select {
	case err := <-failed:
		errs = append(errs, fmt.Errorf("serve: %w", err))
	case <-ctx.Done():
		in.rt.Log.Info("draining", zap.Duration("atMost", in.cfg.Drain))
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), in.cfg.Drain)
	defer cancel()
	in.drain()
	if err := server.Shutdown(stop); err != nil {
		errs = append(errs, fmt.Errorf("drain: requests were not finished within %s", in.cfg.Drain))
		cancelRequests()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		stop = grace
	}
	errs = append(errs, in.Stop(stop), server.Close())
	return errors.Join(errs...)
}
