package dns

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/services/dns/forward"
	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/awake"
)

// inMemory dials an upstream that is a goroutine, for tests in a synctest bubble.
func inMemory(answer func(*dns.Msg) *dns.Msg) func(context.Context, string, string) (net.Conn, error) {
	return func(_ context.Context, network, _ string) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			buf := make([]byte, dns.MaxMsgSize)
			if network == "tcp" {
				c := &dns.Conn{Conn: far}
				if r, err := c.ReadMsg(); err == nil {
					_ = c.WriteMsg(answer(r))
					far.Read(buf)
				}
				return
			}
			n, _ := far.Read(buf)
			r := new(dns.Msg)
			if r.Unpack(buf[:n]) != nil {
				return
			}
			b, _ := answer(r).Pack()
			far.Write(b)
			far.Read(buf) // until the client has closed
		}()
		return near, nil
	}
}

// ends returns a context for a Server that ends before the test's bubble does.
func ends(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx
}

func TestOwnAddressIsNoUpstream(t *testing.T) {
	s := answering(Options{Upstreams: fixed(netip.MustParseAddrPort("10.96.0.10:53"))})
	r := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	if m := s.reply(t.Context(), forward.Client{}, r); m.Rcode != dns.RcodeRefused {
		t.Errorf("got %v", m)
	}
}

// TestLoop makes the server its own upstream, under an address that it cannot recognise as its own.
func TestLoop(t *testing.T) {
	pc, l, addr := listen(t)
	s := answering(Options{Upstreams: fixed(addr), Timeout: time.Second, MaxForwards: 50})
	serveOn(t, s, pc, l)
	await.Until(t, "the loop is found", func() bool { return ask(t, addr, "udp", "example.com.", dns.TypeA).Rcode == dns.RcodeRefused })
}

// One client holds the maximum number of connections, all idle. Another client is answered at once, and the first
// loses the connection that was idle for longest.
func TestIdleConnections(t *testing.T) {
	s := New(Options{MaxConns: 8})
	s.Set(Config{})
	server := start(t, s)
	connect := func(local string) *dns.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		c, err := d.DialContext(t.Context(), "tcp", server.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(await.Patience))
		return &dns.Conn{Conn: c}
	}
	answered := func(c *dns.Conn) error {
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("dns-version.cluster.local.", dns.TypeTXT)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	var idle []*dns.Conn
	for range 8 {
		idle = append(idle, connect("127.0.0.2"))
		if err := answered(idle[len(idle)-1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := answered(idle[0]); err != nil { // now the second is idle for longest
		t.Fatal(err)
	}
	clock := awake.Start()
	defer clock.Stop()
	if err := answered(connect("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if took := clock.Now(); took > idleTimeout/2 {
		t.Errorf("another client waited for %s", took)
	}
	if err := answered(idle[1]); err == nil {
		t.Error("the connection idle for longest is still there")
	}
	if err := answered(idle[0]); err != nil {
		t.Errorf("the connection in use was taken: %v", err)
	}
	if n := s.Counters().Get("tapestry_dns_connections_lost_total"); n != 1 {
		t.Errorf("%v connections were taken, want 1", n)
	}
}

func TestClientOf(t *testing.T) {
	for _, a := range []net.Addr{
		&net.UDPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 7}, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 8}, otherAddr("10.0.0.1:9"), otherAddr("[::ffff:10.0.0.1]:9"),
	} {
		if got := conns.ClientOf(a); got.String() != "10.0.0.1" {
			t.Errorf("%T: %s", a, got)
		}
	}
	if got := conns.ClientOf(otherAddr("@")); got.IsValid() {
		t.Errorf("got %s of an address that is none", got)
	}
}

type otherAddr string

func (otherAddr) Network() string  { return "other" }
func (a otherAddr) String() string { return string(a) }

func TestCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{Upstreams: fixed(netip.MustParseAddrPort("192.0.2.1:53")), Dial: inMemory(func(r *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(r, dns.RcodeNameError) })})
		ctx := ends(t)
		from := &net.UDPAddr{IP: net.ParseIP("fd00::1"), Port: 7}
		for _, q := range []struct {
			name  string
			qtype uint16
		}{{"a.example.com.", dns.TypeA}, {"b.example.com.", dns.TypeA}, {"c.example.com.", dns.TypeLOC}, {"cluster.local.", dns.TypeSOA}} {
			if b := s.answer(ctx, from, new(dns.Msg).SetQuestion(q.name, q.qtype), forward.Client{}); len(b) == 0 {
				t.Errorf("no answer for %s", q.name)
			}
		}
		list := s.Counters()
		got := map[string]float64{}
		for _, v := range list.Find("coredns_dns_requests_total").Values {
			got[strings.Join(v.Labels, " ")] = v.N
		}
		if want := map[string]float64{"udp 2 A": 2, "udp 2 other": 1, "udp 2 SOA": 1}; !maps.Equal(got, want) {
			t.Errorf("requests: %v, want %v", got, want)
		}
		// Before there is a Config, a question about the zone fails.
		if got, want := list.Of("coredns_dns_responses_total"), map[string]float64{"NOERROR": 0, "NXDOMAIN": 3, "SERVFAIL": 1}; !maps.Equal(got, want) {
			t.Errorf("responses: %v, want %v", got, want)
		}
		if v := list.Find("coredns_dns_request_duration_seconds").Values[0]; v.Count != 4 {
			t.Errorf("durations: %+v", v)
		}
		if got := list.Of("coredns_forward_responses_total")["NXDOMAIN"]; got < 3 || list.Get("coredns_forward_requests_total") < 3 {
			t.Errorf("%v answers of upstreams to %v questions", got, list.Get("coredns_forward_requests_total"))
		}
		seen := map[string]bool{}
		for _, c := range list {
			if seen[c.Name] || c.Help == "" || c.Kind == "" {
				t.Errorf("%+v stands there twice, or says too little", c)
			}
			seen[c.Name] = true
		}
	})
}

// The addresses of one owner are one client: connections from two of its addresses replace each other, not those of
// another client. The same holds for its questions.
func TestOwnersOfAddresses(t *testing.T) {
	owner := func(a netip.Addr) netip.Addr {
		if netip.MustParsePrefix("127.0.2.0/24").Contains(a) {
			return netip.MustParseAddr("127.0.2.1")
		}
		return a
	}
	s := New(Options{MaxConns: 8, Owner: owner})
	s.Set(Config{})
	server := start(t, s)
	connect := func(local string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		c, err := d.DialContext(t.Context(), "tcp", server.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	others := []net.Conn{connect("127.0.3.1"), connect("127.0.3.1"), connect("127.0.3.1")}
	await.Until(t, "the other's connections are there", func() bool { return s.conns.Held(netip.MustParseAddr("127.0.3.1")) == len(others) })
	for i := range 40 {
		connect(netip.AddrFrom4([4]byte{127, 0, 2, byte(2 + i)}).String())
	}
	await.Until(t, "the owner's connections were taken", func() bool { return s.Counters().Get("tapestry_dns_connections_lost_total") == 35 })
	if held := s.conns.Held(netip.MustParseAddr("127.0.3.1")); held != 3 {
		t.Errorf("the other has %d connections left of 3", held)
	}
	if stats := s.conns.Stats(); stats.Owners != 2 || stats.Most != 5 {
		t.Errorf("the addresses are not one client: %+v", stats)
	}
}

// A slow outside name on a connection delays no name of the cluster that is asked for behind it (RFC 7766 6.2.1.1), and
// no other outside name. It delayed them until the upstream answered, or for 4.5 seconds.
func TestSlowNameOnOneConnection(t *testing.T) {
	release := make(chan struct{})
	s := answering(Options{Upstreams: fixed(netip.MustParseAddrPort("192.0.2.1:53")), Dial: inMemory(func(r *dns.Msg) *dns.Msg {
		if strings.HasPrefix(strings.ToLower(r.Question[0].Name), "slow") {
			<-release
		}
		return new(dns.Msg).SetRcode(r, dns.RcodeNameError)
	})})
	c, err := net.Dial("tcp", start(t, s).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(await.Patience))
	conn := &dns.Conn{Conn: c}
	for id, name := range []string{"slow.example.com.", "dual.default.svc.cluster.local.", "quick.example.com.", "ext.default.svc.cluster.local."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeA)
		m.Id = uint16(id)
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	// The slow name's answer comes last, whether it was released or given up.
	var order []uint16
	for range 4 {
		m, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if order = append(order, m.Id); len(order) == 3 {
			close(release)
		}
	}
	if order[3] != 0 {
		t.Errorf("the answers came in the order %v", order)
	}
}
