// Package serve is the built-in program of a lab's pods: it answers TCP, UDP and HTTP with who it is, who asked, and what
// it got, so that a test or a person sees at once where a connection went.
package serve

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// maxGot bounds what an answer repeats of a request, in bytes.
const maxGot = 64 << 10

// Config is what to serve.
type Config struct {
	// Name is who answers; "" is the host name.
	Name string
	// Address to listen on; "" is all.
	Address string
	// The ports of each kind. Without any, HTTP on 8080.
	HTTP, TCP, UDP []int
	Log            *slog.Logger
}

// Answer is one answer, a line of JSON.
type Answer struct {
	// Pod is the server's name.
	Pod string `json:"pod"`
	// Client and Server are the two ends of the connection as the server sees them, "address:port".
	Client string `json:"client"`
	Server string `json:"server"`
	// Proto is "tcp", "udp", "HTTP/1.1", "HTTP/2.0" or "websocket".
	Proto string `json:"proto"`
	// Got is what the client sent.
	Got string `json:"got"`

	// Of HTTP only.
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

// Run serves until ctx is done. It fails when a port cannot be had.
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
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var running sync.WaitGroup
	serve := func(f func() error) {
		running.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	var err error
	for _, port := range c.HTTP {
		err = errors.Join(err, s.listen(ctx, c.Address, port, serve, s.serveHTTP))
	}
	for _, port := range c.TCP {
		err = errors.Join(err, s.listen(ctx, c.Address, port, serve, s.serveTCP))
	}
	for _, port := range c.UDP {
		pc, lerr := new(net.ListenConfig).ListenPacket(ctx, "udp", net.JoinHostPort(c.Address, strconv.Itoa(port)))
		if lerr != nil {
			err = errors.Join(err, lerr)
			continue
		}
		context.AfterFunc(ctx, func() { pc.Close() })
		serve(func() error { return s.serveUDP(pc.(*net.UDPConn)) })
	}
	if err != nil {
		cancel(err)
	} else {
		s.log.Info("serving", "pod", s.name, "http", c.HTTP, "tcp", c.TCP, "udp", c.UDP)
	}
	<-ctx.Done()
	running.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (s *server) listen(ctx context.Context, addr string, port int, serve func(func() error), f func(context.Context, net.Listener) error) error {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	serve(func() error { return f(ctx, ln) })
	return nil
}

// serveTCP answers each connection at once, for clients that only connect, and then each of its lines.
func (s *server) serveTCP(ctx context.Context, ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			lines := bufio.NewScanner(c)
			lines.Buffer(nil, maxGot)
			for got := ""; ; got = lines.Text() {
				if _, err := c.Write(s.line(c.RemoteAddr(), c.LocalAddr(), "tcp", got)); err != nil {
					return
				}
				if !lines.Scan() {
					return
				}
			}
		}()
	}
}

func (s *server) serveUDP(c *net.UDPConn) error {
	buf := make([]byte, maxGot)
	oob := make([]byte, 256)
	if err := wantDestination(c); err != nil {
		return err
	}
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			continue // an ICMP error of an earlier answer
		}
		// The answer has to come from where the question went, which a socket on all addresses does not see to by itself.
		to := netip.AddrPortFrom(destination(oob[:oobn]), c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
		answer := s.line(unmapped(from), unmapped(to), "udp", string(bytes.TrimRight(buf[:n], "\n")))
		_, _, _ = c.WriteMsgUDPAddrPort(answer, source(to.Addr()), from) // UDP promises nothing
	}
}

// line is an answer as one line of JSON.
func (s *server) line(client, server fmt.Stringer, proto, got string) []byte {
	return encode(Answer{Pod: s.name, Client: client.String(), Server: server.String(), Proto: proto, Got: got})
}

func encode(a Answer) []byte {
	b, err := json.Marshal(a)
	if err != nil {
		b = []byte(`{"error":` + strconv.Quote(err.Error()) + `}`)
	}
	return append(b, '\n')
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func readGot(r io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(r, maxGot))
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
