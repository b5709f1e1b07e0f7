package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	headerTime = 10 * time.Second
	idleTime   = 5 * time.Minute
	streams    = 16 // calls of one connection at once
)

// Serve serves h on l until ctx ends, with at most this many connections at once: further ones are closed. With a
// config, clients speak TLS. It closes l, and returns nil when ctx has ended it.
func Serve(ctx context.Context, l net.Listener, config *tls.Config, most int, h *Handler) error {
	var protocols http.Protocols
	protocols.SetHTTP2(config != nil)
	protocols.SetUnencryptedHTTP2(config == nil)
	s := &http.Server{
		Handler: h, Protocols: &protocols, TLSConfig: config, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: streams},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // what strangers do wrong
	}
	stop := context.AfterFunc(ctx, func() { s.Close() }) // calls end with ctx, too, which they have from BaseContext
	defer stop()
	l = &limited{Listener: l, room: make(chan struct{}, most)}
	var err error
	if config != nil {
		err = s.ServeTLS(l, "", "")
	} else {
		err = s.Serve(l)
	}
	s.Close()
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve on %s: %w", l.Addr(), err)
}

// limited closes what it accepts beyond a number of connections.
type limited struct {
	net.Listener
	room chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.room <- struct{}{}:
			return &conn{Conn: c, leave: sync.OnceFunc(func() { <-l.room })}, nil
		default:
			c.Close()
		}
	}
}

type conn struct {
	net.Conn
	leave func()
}

func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}
