package healthcheck

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/freeport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopback listens on a free port, whatever port is asked for, and remembers the address.
type loopback struct {
	addrs map[uint16]string
	fail  error
}

func (l *loopback) listen(_ netip.Addr, port uint16) (net.Listener, error) {
	if l.fail != nil {
		return nil, l.fail
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		l.addrs[port] = ln.Addr().String()
	}
	return ln, err
}

func get(t *testing.T, addr string) (status int, weight, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get("http://" + addr + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("X-Load-Balancing-Endpoint-Weight"), strings.TrimSpace(string(data))
}

func TestAnswers(t *testing.T) {
	l := &loopback{addrs: map[uint16]string{}}
	var healthy atomic.Bool
	s := New(Options{Listen: l.listen, Healthy: healthy.Load})
	defer s.Close()
	check := services.HealthCheck{Namespace: "d", Name: "web", Port: 31000, Local: 2}
	for _, tt := range []struct {
		local   int
		healthy bool
		status  int
		body    string
	}{
		{2, true, 200, `{"service":{"namespace":"d","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}`},
		{0, true, 503, `{"service":{"namespace":"d","name":"web"},"localEndpoints":0,"serviceProxyHealthy":true}`},
		{1, false, 503, `{"service":{"namespace":"d","name":"web"},"localEndpoints":1,"serviceProxyHealthy":false}`},
	} {
		check.Local = tt.local
		healthy.Store(tt.healthy)
		if problems := s.Set([]services.HealthCheck{check}, nil); len(problems) != 0 {
			t.Fatal(problems)
		}
		status, weight, body := get(t, l.addrs[31000])
		if status != tt.status || body != tt.body || !json.Valid([]byte(body)) {
			t.Errorf("%d %s, want %d %s", status, body, tt.status, tt.body)
		}
		if want := string(rune('0' + tt.local)); weight != want {
			t.Errorf("weight %q, want %s", weight, want)
		}
	}
}

func TestPortsComeAndGo(t *testing.T) {
	l := &loopback{addrs: map[uint16]string{}}
	s := New(Options{Listen: l.listen, Healthy: func() bool { return true }})
	web := services.HealthCheck{Namespace: "d", Name: "web", Port: 31000, Local: 1}
	l.fail = syscall.EADDRINUSE
	problems := s.Set([]services.HealthCheck{web}, nil)
	if len(problems) != 1 || problems[0].Object != "Service d/web" || !strings.Contains(problems[0].Message, "healthCheckNodePort 31000") {
		t.Errorf("a taken port is told as %v", problems)
	}
	l.fail = nil
	if problems := s.Set([]services.HealthCheck{web}, nil); len(problems) != 0 {
		t.Errorf("the port was freed, yet %v", problems)
	}
	get(t, l.addrs[31000])
	if problems := s.Set(nil, nil); len(problems) != 0 {
		t.Error(problems)
	}
	if c, err := net.Dial("tcp", l.addrs[31000]); err == nil {
		c.Close()
		t.Error("the Service is gone, and its port is open")
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if problems := s.Set([]services.HealthCheck{web}, nil); problems != nil {
		t.Error("a closed server opened a port")
	}
}

// A port that another program holds is a Problem. When that program is gone, the port is opened without another Set.
func TestTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken atomic.Bool
		taken.Store(true)
		s := New(Options{Healthy: func() bool { return true }, Listen: func(netip.Addr, uint16) (net.Listener, error) {
			if taken.Load() {
				return nil, syscall.EADDRINUSE
			}
			return silent{make(chan struct{})}, nil
		}})
		defer s.Close()
		check := []services.HealthCheck{{Namespace: "d", Name: "web", Port: 32100}}
		if got := s.Set(check, nil); len(got) != 1 {
			t.Fatalf("told is %v", got)
		}
		time.Sleep(3 * retryPause)
		if got := s.Problems(); len(got) != 1 {
			t.Errorf("told is %v", got)
		}
		taken.Store(false)
		time.Sleep(retryPause)
		synctest.Wait()
		if got := s.Problems(); len(got) != 0 {
			t.Errorf("the port is free, and told is %v", got)
		}
	})
}

// silent is a listener to which nobody connects.
type silent struct{ closed chan struct{} }

func (l silent) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l silent) Close() error              { close(l.closed); return nil }
func (silent) Addr() net.Addr              { return &net.TCPAddr{} }

// Ports beyond the bound are told, and those that are open stay.
func TestPortsAreBounded(t *testing.T) {
	l := &loopback{addrs: map[uint16]string{}}
	s := New(Options{Listen: l.listen, Healthy: func() bool { return true }, MaxSockets: 1})
	defer s.Close()
	check := func(port uint16) services.HealthCheck {
		return services.HealthCheck{Namespace: "d", Name: "web", Port: port, Local: 1}
	}
	s.Set([]services.HealthCheck{check(31002)}, nil)
	problems := s.Set([]services.HealthCheck{check(31001), check(31002)}, nil)
	if len(problems) != 1 || !strings.Contains(problems[0].Message, "31001") || !strings.Contains(problems[0].Message, "LimitNOFILE") {
		t.Errorf("told is %v", problems)
	}
	get(t, l.addrs[31002])
	if problems := s.Set([]services.HealthCheck{check(31001)}, nil); len(problems) != 0 {
		t.Errorf("there is room, and told is %v", problems)
	}
	get(t, l.addrs[31001])
}

// Ports are open at the addresses that are named, as far as they can be, and follow when others are. What stays is not
// opened again.
func TestAtAddresses(t *testing.T) {
	// The last one is not of this host.
	a, b, other := netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.3"), netip.MustParseAddr("192.0.2.1")
	port := freeport.Of(t)
	var opened []netip.Addr
	s := New(Options{Healthy: func() bool { return true }, MaxSockets: 2, Listen: func(at netip.Addr, port uint16) (net.Listener, error) {
		l, err := listen(at, port)
		if err == nil {
			opened = append(opened, at)
		}
		return l, err
	}})
	defer s.Close()
	checks := []services.HealthCheck{{Namespace: "d", Name: "web", Port: port, Local: 1}}
	for _, tt := range []struct {
		at, open, closed []netip.Addr
		problems, opened int
	}{
		{at: []netip.Addr{a, b}, open: []netip.Addr{a, b}, opened: 2, closed: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
		{at: []netip.Addr{b}, open: []netip.Addr{b}, closed: []netip.Addr{a}},
		{at: []netip.Addr{a, other}, open: []netip.Addr{a}, closed: []netip.Addr{b}, opened: 1, problems: 1},
		// The third address is one too many.
		{at: []netip.Addr{a, b, netip.MustParseAddr("127.0.0.4")}, open: []netip.Addr{a, b}, opened: 1, problems: 1},
		{at: []netip.Addr{}, closed: []netip.Addr{a, b}},
		{open: []netip.Addr{a, b}, opened: 1},
	} {
		opened = nil
		if got := s.Set(checks, tt.at); len(got) != tt.problems {
			t.Errorf("at %s: told is %v", tt.at, got)
		}
		if len(opened) != tt.opened {
			t.Errorf("at %s: opened are %s, want %d", tt.at, opened, tt.opened)
		}
		for _, x := range tt.open {
			get(t, netip.AddrPortFrom(x, port).String())
		}
		for _, x := range tt.closed {
			if c, err := net.Dial("tcp", netip.AddrPortFrom(x, port).String()); err == nil {
				c.Close()
				t.Errorf("at %s: %s is open", tt.at, x)
			}
		}
	}
}
