// Package httpserve serves small answers of an agent over HTTP, to clients that are not trusted.
package httpserve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/share/descriptors"
)

// Until serves h on l until ctx ends, and closes l. No request takes longer than limit, and no connection is idle for
// longer. Connections are shared out among the clients: a client that opens many loses its own, and cannot use up the
// node's descriptors.
func Until(ctx context.Context, l net.Listener, h http.Handler, limit time.Duration) error {
	srv := http.Server{
		Handler: h, ReadHeaderTimeout: limit, ReadTimeout: limit, WriteTimeout: limit, IdleTimeout: limit,
		BaseContext: func(net.Listener) context.Context { return ctx },
		// Errors of requests are not logged, since clients can cause any number of them.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = srv.Close()
	})
	err := srv.Serve(conns.New(descriptors.Ours().Of(descriptors.Reports), nil).Over(l))
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
