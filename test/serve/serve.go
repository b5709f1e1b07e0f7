// Package serve is the built-in program of a lab's pods. It answers TCP, UDP and HTTP with its own name, the client's
// address and what it received, so that a test or a person sees at once where a connection went.
package serve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tapestry.dev/tapestry/cmd/tapestry/connectivity/talk"
)

// Config is what to serve.
type Config struct {
	// Name is the name in answers; "" is the host name.
	Name string
	// Address is the address to listen on; "" is all addresses.
	Address string
	// The ports of each kind. If all are empty, HTTP is served on port 8080.
	HTTP, TCP, UDP []int
	Log            *slog.Logger
}

// Answer is one answer, a line of JSON. Its Proto is "tcp", "udp", "HTTP/1.1", "HTTP/2.0" or "websocket".
type Answer struct {
	talk.Answer

	// Only in answers over HTTP.
	Method string      `json:"method,omitempty"`
	Host   string      `json:"host,omitempty"`
	Path   string      `json:"path,omitempty"`
	Header http.Header `json:"header,omitempty"`
}

// server is a running Config.
type server struct {
	name    string
	log     *slog.Logger
	failing atomic.Bool // /health
}

// Run serves until ctx ends. It returns an error when a port cannot be used.
func Run(ctx context.Context, c Config) error {
	s := &server{name: c.Name, log: c.Log}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.name == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		s.name = name
	}
	if len(c.HTTP)+len(c.TCP)+len(c.UDP) == 0 {
		c.HTTP = []int{8080}
	}
	lines, err := talk.Listen(ctx, talk.Config{Name: s.name, Address: c.Address, TCP: c.TCP, UDP: c.UDP})
	var web []net.Listener
	for _, port := range c.HTTP {
		ln, lerr := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(c.Address, strconv.Itoa(port)))
		if lerr != nil {
			err = errors.Join(err, lerr)
			continue
		}
		defer ln.Close()
		web = append(web, ln)
	}
	if err != nil {
		if lines != nil {
			lines.Close()
		}
		return err
	}
	s.log.Info("serving", "pod", s.name, "http", c.HTTP, "tcp", c.TCP, "udp", c.UDP)
	running, ctx := errgroup.WithContext(ctx)
	running.Go(func() error { return lines.Serve(ctx) })
	for _, ln := range web {
		running.Go(func() error { return s.serveHTTP(ctx, ln) })
	}
	return running.Wait()
}

func readGot(r io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(r, talk.MaxGot))
	if err != nil {
		return ""
	}
	return string(b)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
