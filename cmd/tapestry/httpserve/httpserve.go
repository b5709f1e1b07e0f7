// Package httpserve serves what an agent tells over HTTP: small answers, to clients that are not trusted.
package httpserve

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"tapestry.dev/tapestry/share/conns"
)

// maxConns is how many connections there are at most: a few who ask every few seconds need a few.
const maxConns = 64

// Until serves h on l until ctx ends, and closes l. No request takes longer than limit, and no connection waits longer
// for one. Connections are shared out among the clients: whoever opens many loses its own, and the node's descriptors
// are not spent on them.
func Until(ctx context.Context, l net.Listener, h http.Handler, limit time.Duration) error {
	srv := http.Server{
		Handler: h, ReadHeaderTimeout: limit, ReadTimeout: limit, WriteTimeout: limit, IdleTimeout: limit,
		BaseContext: func(net.Listener) context.Context { return ctx },
		// Broken requests are the clients' and come at their will.
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(closed)
		_ = srv.Close()
	})
	err := srv.Serve(conns.New(maxConns, nil).Over(l))
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
