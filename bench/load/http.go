package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"tapestry.dev/tapestry/bench/load/pace"
)

// zeros is the content of all bodies.
var zeros [maxMessage]byte

// serveHTTP answers GET /bytes/N with a body of N bytes, over HTTP/1.1 and HTTP/2 with prior knowledge, until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.PathValue("n"))
		if err != nil || n < 0 || n > maxMessage {
			http.Error(w, fmt.Sprintf("expected /bytes/N, N from 0 to %d", maxMessage), http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(n))
		_, _ = w.Write(zeros[:n]) // the client notices a short body
	})
	s := &http.Server{Handler: mux, Protocols: &protocols, ReadHeaderTimeout: helloTimeout}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// HTTPRequests gets /bytes/Response, Streams requests at a time. With keep-alive the connections are made before the
// time begins. A status other than 200, or a body of another length, is an error.
//
// The client is net/http's. It takes about twice the processor time that wrk takes for a request (20 us against 9 us
// where that was measured), and the cost of a request includes this time.
func HTTPRequests(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := o.Complete()
	if err != nil {
		return Result{}, err
	}
	getters := make([]*getter, o.Streams)
	for i := range getters {
		if i > 0 && o.HTTP.Version == "2" {
			getters[i] = getters[0]
			continue
		}
		g := newGetter(addr, o)
		defer g.transport.CloseIdleConnections()
		if !o.HTTP.NoKeepAlive {
			warmUp, cancel := context.WithTimeout(ctx, grace)
			err := g.get(warmUp)
			cancel()
			if err != nil {
				return Result{}, fmt.Errorf("load: HTTP: %w", err)
			}
		}
		getters[i] = g
	}
	loop := pace.Start(o.Time, o.Rate)
	err = inParallel(ctx, o.Streams, func(ctx context.Context, i int) error {
		bounded, cancel := context.WithDeadline(ctx, loop.Cutoff)
		defer cancel()
		return loop.Stream(ctx, func() error { return getters[i].get(bounded) })
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: HTTP: %w", err)
	}
	return transactions("http", o, loop.Tally())
}

// getter does one kind of request.
type getter struct {
	transport *http.Transport
	url, host string
	size      int64
}

func newGetter(addr string, o Options) *getter {
	t := &http.Transport{
		DialContext:        (&net.Dialer{Timeout: grace}).DialContext,
		DisableCompression: true,
		DisableKeepAlives:  o.HTTP.NoKeepAlive,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true, ServerName: o.HTTP.Host},
		Protocols:          new(http.Protocols),
		IdleConnTimeout:    2 * time.Minute,
	}
	g := &getter{transport: t, host: o.HTTP.Host, size: int64(o.Response)}
	switch {
	case o.HTTP.Version == "1.1":
		t.Protocols.SetHTTP1(true)
		t.MaxIdleConnsPerHost = 1
	case o.HTTP.TLS:
		t.Protocols.SetHTTP2(true)
	default:
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	scheme := "http"
	if o.HTTP.TLS {
		scheme = "https"
	}
	g.url = fmt.Sprintf("%s://%s/bytes/%d", scheme, addr, o.Response)
	return g
}

func (g *getter) get(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, g.url, nil)
	if err != nil {
		return err
	}
	r.Host = g.host
	response, err := g.transport.RoundTrip(r) // not a Client: no redirects, no cookies
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, response.Body)
	response.Body.Close()
	switch {
	case err != nil:
		return fmt.Errorf("GET %s: read the body: %w", g.url, err)
	case response.StatusCode != http.StatusOK:
		return fmt.Errorf("GET %s: got status %s, expected 200", g.url, response.Status)
	case n != g.size:
		return fmt.Errorf("GET %s: got %d bytes, expected %d", g.url, n, g.size)
	}
	return nil
}
