package ingress

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"

	"tapestry.dev/tapestry/test/await"
)

func TestRoundRobin(t *testing.T) {
	var hits [3]atomic.Int32
	var addrs []netip.AddrPort
	for i := range hits {
		addrs = append(addrs, backend(t, func(http.ResponseWriter, *http.Request) { hits[i].Add(1) }))
	}
	r := newRig(t, Options{}, anyRoute(addrs...))
	c := r.client(nil, speakHTTP1)
	for i := range 30 {
		if i == 15 {
			r.set(anyRoute(addrs...)) // after an equal Config the round robin goes on
		}
		get(t, c, "http://any.test/")
	}
	for i := range hits {
		if n := hits[i].Load(); n != 10 {
			t.Errorf("endpoint %d got %d of 30 requests, want 10", i, n)
		}
	}
}

// After a failed dial a request goes to the next endpoint with its whole body, of which the dial has read nothing.
func TestDialFailureTriesAnother(t *testing.T) {
	alive := backend(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Write(b)
	})
	var dead atomic.Int32
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr != alive.String() {
			dead.Add(1)
			return nil, errors.New("no such pod")
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	gone := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("[2001:db8::1]:80")}
	r := newRig(t, Options{Dial: dial}, anyRoute(gone[0], alive, gone[1]))
	c := r.client(nil, speakHTTP1)
	for range 20 {
		resp, err := c.Post("http://any.test/", "text/plain", strings.NewReader("whole"))
		if err != nil {
			t.Fatal(err)
		}
		if body := readAll(t, resp); resp.StatusCode != 200 || body != "whole" {
			t.Fatalf("got %d %q", resp.StatusCode, body)
		}
	}
	// Each dead endpoint is left out for a second after its failure, however long these requests took.
	if n := dead.Load(); n < 2 || n > 10 {
		t.Errorf("the dead endpoints were dialled %d times in 20 requests", n)
	}
	if n := r.Stats().Retries; n == 0 || n > uint64(dead.Load()) {
		t.Errorf("%d retries, %d failed dials", n, dead.Load())
	}
}

// When no endpoint can be reached none is left out: the next request dials again, and succeeds once an endpoint is
// back.
func TestAllDown(t *testing.T) {
	up := named(t, "up")
	var back atomic.Bool
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !back.Load() {
			return nil, errors.New("no such pod")
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	r := newRig(t, Options{Dial: dial}, anyRoute(endpointsIn(up)...))
	c := r.client(nil, speakHTTP1)
	for range 2 {
		if code, body := get(t, c, "http://any.test/"); code != 502 || !strings.Contains(body, "could not be reached") {
			t.Errorf("got %d %q, want 502", code, body)
		}
	}
	back.Store(true)
	if code, body := get(t, c, "http://any.test/"); code != 200 || body != "up" {
		t.Errorf("when back: got %d %q", code, body)
	}
}

// A backend that dies between two requests leaves a dead connection in the pool.
func TestBackendDeath(t *testing.T) {
	var names [2]string
	var servers [2]*httptest.Server
	for i := range servers {
		names[i] = string(rune('a' + i))
		servers[i] = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, names[i]) }))
		defer servers[i].Close()
	}
	r := newRig(t, Options{}, anyRoute(addrOf(servers[0]), addrOf(servers[1])))
	c := r.client(nil, speakHTTP1)
	seen := map[string]bool{}
	for range 4 {
		_, body := get(t, c, "http://any.test/")
		seen[body] = true
	}
	if len(seen) != 2 {
		t.Fatalf("before the death only %v answered", seen)
	}
	servers[0].CloseClientConnections()
	servers[0].Close()
	for range 10 {
		if code, body := get(t, c, "http://any.test/"); code != 200 || body != "b" {
			t.Errorf("after the death: got %d %q", code, body)
		}
	}
}

func TestBackendBreaksOff(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })))
	if code, body := get(t, r.client(nil, speakHTTP1), "http://any.test/"); code != 502 || !strings.Contains(body, "broke off") {
		t.Errorf("got %d %q, want 502", code, body)
	}
	if n := r.Stats().BadGateway; n != 1 {
		t.Errorf("BadGateway is %d", n)
	}
}

func TestBackendTooSlow(t *testing.T) {
	block := make(chan struct{})
	addr := backend(t, func(http.ResponseWriter, *http.Request) { <-block })
	r := newRig(t, Options{ResponseTimeout: 20 * time.Millisecond}, anyRoute(addr))
	code, body := get(t, r.client(nil, speakHTTP1), "http://any.test/")
	close(block)
	if code != 504 || !strings.Contains(body, "in time") {
		t.Errorf("got %d %q, want 504", code, body)
	}
}

// A dial that does not end is given up, and counts as a timeout.
func TestDialTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Endpoints: endpointsIn, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if err := s.Set(anyRoute(netip.MustParseAddrPort("192.0.2.1:80"))); err != nil {
			t.Fatal(err)
		}
		near, _ := net.Pipe()
		ctx := withClient(t.Context(), near)
		w := httptest.NewRecorder()
		start := time.Now()
		s.serve(w, httptest.NewRequestWithContext(ctx, "GET", "http://any.test/", nil))
		if w.Code != 504 || time.Since(start) != dialTimeout {
			t.Errorf("got %d after %v, want 504 after %v", w.Code, time.Since(start), dialTimeout)
		}
		s.Shutdown(t.Context())
	})
}

// An endpoint that swallows SYNs is left out after its dial has failed.
func TestSilentEndpointIsLeftOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var silent atomic.Int32
		var serving sync.WaitGroup
		s := New(Options{Endpoints: endpointsIn, Dial: func(ctx context.Context, _, addr string) (net.Conn, error) {
			if addr == "192.0.2.1:80" {
				silent.Add(1)
				<-ctx.Done()
				time.Sleep(time.Millisecond) // a dial does not return at the very moment of its deadline
				return nil, ctx.Err()
			}
			near, far := net.Pipe()
			serving.Go(func() {
				for in := bufio.NewReader(far); ; {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
			})
			return near, nil
		}})
		if err := s.Set(anyRoute(netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80"))); err != nil {
			t.Fatal(err)
		}
		near, _ := net.Pipe()
		ctx := withClient(t.Context(), near)
		var waits time.Duration
		for range 10 {
			w, start := httptest.NewRecorder(), time.Now()
			s.serve(w, httptest.NewRequestWithContext(ctx, "GET", "http://any.test/", nil))
			waits += time.Since(start)
			if w.Code != 200 {
				t.Errorf("got %d", w.Code)
			}
			time.Sleep(10 * time.Millisecond) // the next request comes when the dial has ended
		}
		if n := silent.Load(); n != 1 || waits > dialTimeout+100*time.Millisecond {
			t.Errorf("%d dials to the silent endpoint, and %v of waiting", n, waits)
		}
		s.Shutdown(t.Context())
		serving.Wait()
	})
}

func TestClientLeaves(t *testing.T) {
	arrived, left := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done() // the Server must not hold the backend when the client has gone
		close(left)
	})
	r := newRig(t, Options{}, anyRoute(addr))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://any.test/", nil)
	if _, err := r.client(nil, speakHTTP1).Do(req); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	<-left
	await.Until(t, "the client's leaving is counted", func() bool { return r.Stats().ClientGone == 1 && r.Stats().InFlight == 0 })
}

// Requests succeed while routes, endpoints and certificates change.
func TestSwapUnderLoad(t *testing.T) {
	a, b := named(t, "a"), named(t, "b")
	cert, roots := certificate(t, "shop.example")
	configs := []Config{anyRoute(endpointsIn(a)...), anyRoute(endpointsIn(b)...), anyRoute(endpointsIn(a)[0], endpointsIn(b)[0])}
	for i := range configs {
		configs[i].Certificates = []Certificate{cert}
	}
	r := newRig(t, Options{}, configs[0])
	var done atomic.Bool
	var requests atomic.Int64
	var wg sync.WaitGroup
	for _, protocols := range []func(*http.Protocols){speakHTTP1, speakHTTP2} {
		for _, url := range []string{"http://shop.example/", "https://shop.example/"} {
			c := r.client(roots, protocols)
			wg.Go(func() {
				for !done.Load() {
					resp, err := c.Get(url)
					if err != nil {
						t.Errorf("%s: %v", url, err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if err != nil || resp.StatusCode != 200 || len(b) != 1 {
						t.Errorf("%s: got %d %q %v", url, resp.StatusCode, b, err)
						return
					}
					requests.Add(1)
				}
			})
		}
	}
	for i := 0; i < 300 || requests.Load() < 300 && !t.Failed(); i++ {
		r.set(configs[i%len(configs)])
	}
	done.Store(true)
	wg.Wait()
}

func TestShutdownDrains(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		io.WriteString(w, "late")
	})
	r := newRig(t, Options{}, anyRoute(addr))
	c := r.client(nil, speakHTTP1)
	got := make(chan string, 1)
	go func() {
		resp, err := c.Get("http://any.test/")
		if err != nil {
			got <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		got <- string(b)
	}()
	<-arrived
	stopped := make(chan error, 1)
	go func() { stopped <- r.Shutdown(context.Background()) }()
	await.Until(t, "new connections are refused", func() bool {
		c, err := net.Dial("tcp", r.http)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case err := <-stopped:
		t.Fatalf("Shutdown did not wait: %v", err)
	default:
	}
	close(release)
	if body := <-got; body != "late" {
		t.Errorf("the request under way got %q", body)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if n := r.Stats().Cut; n != 0 {
		t.Errorf("%d were cut", n)
	}
}

// Shutdown waits for an upgraded connection, and cuts it when its context ends.
func TestShutdownCutsUpgraded(t *testing.T) {
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.Read(r.Context())
	})
	r := newRig(t, Options{}, anyRoute(addr))
	c, _, err := websocket.Dial(t.Context(), "ws://any.test/", &websocket.DialOptions{HTTPClient: r.client(nil, speakHTTP1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := r.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	if _, _, err := c.Read(t.Context()); err == nil {
		t.Error("the connection is still open")
	}
	if n := r.Stats().Cut; n != 1 {
		t.Errorf("Cut is %d, want 1", n)
	}
}

// A request under way goes on when its route, endpoint and certificate are no longer in the Config.
func TestSetLeavesRequestsAlone(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	addr := backend(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "early ")
		http.NewResponseController(w).Flush()
		close(arrived)
		<-release
		io.WriteString(w, "late")
	})
	r := newRig(t, Options{}, anyRoute(addr))
	c := r.client(nil, speakHTTP1)
	resp, err := c.Get("http://any.test/")
	if err != nil {
		t.Fatal(err)
	}
	<-arrived
	r.set(Config{})
	if code, _ := get(t, c, "http://any.test/"); code != 404 {
		t.Errorf("a new request got %d, want 404", code)
	}
	close(release)
	if body := readAll(t, resp); body != "early late" {
		t.Errorf("the request under way got %q", body)
	}
}
