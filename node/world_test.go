package node_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
)

// serve makes a pod answer on a TCP and a UDP port, with its name, the client's address and the text that it received.
// A TCP client sends a zero byte to ask for the answer.
func serve(t *testing.T, p *nodetest.Pod, port uint16) {
	t.Helper()
	for _, a := range p.Addrs {
		at := netip.AddrPortFrom(a, port)
		l, err := p.Listen(at)
		if err != nil {
			t.Fatal(err)
		}
		pc, err := p.ListenPacket(at)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close(); _ = pc.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go converse(p.Name, c)
			}
		}()
		go func() {
			buf := make([]byte, 65535)
			for {
				n, client, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(answer(p.Name, client, buf[:n]), client)
			}
		}()
	}
}

func converse(name string, c net.Conn) {
	defer c.Close()
	var got []byte
	buf := make([]byte, 32<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		got = append(got, buf[:n]...)
		for {
			i := bytes.IndexByte(got, 0)
			if i < 0 {
				break
			}
			_, _ = c.Write(append(answer(name, c.RemoteAddr(), got[:i]), 0))
			got = got[i+1:]
		}
	}
}

func answer(name string, client net.Addr, sent []byte) []byte {
	return fmt.Appendf(nil, "%s %s %s", name, netip.MustParseAddrPort(client.String()).Addr(), sent)
}

// client is a connection to a server started by serve.
type client struct {
	net.Conn
	network string
}

func dial(t *testing.T, p *nodetest.Pod, network string, to netip.AddrPort) client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	c, err := p.Dial(ctx, network, to)
	if err != nil {
		t.Fatalf("%s dials %s by %s: %v", p.Name, to, network, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return client{c, network}
}

// ask sends text and returns the answer. It sends lost datagrams again, since WireGuard may lose its first packets.
func (c client) ask(text string) (string, error) {
	if c.network == "tcp" {
		_ = c.SetDeadline(time.Now().Add(await.Patience))
		if _, err := c.Write(append([]byte(text), 0)); err != nil {
			return "", err
		}
		var got []byte
		for buf := make([]byte, 32<<10); ; {
			n, err := c.Read(buf)
			if err != nil {
				return "", err
			}
			got = append(got, buf[:n]...)
			if got[len(got)-1] == 0 {
				return string(got[:len(got)-1]), nil
			}
		}
	}
	buf := make([]byte, 65535)
	for end := time.Now().Add(await.Patience); ; {
		if _, err := c.Write([]byte(text)); err != nil {
			return "", err
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(buf)
		if err == nil || time.Now().After(end) {
			return string(buf[:n]), err
		}
	}
}

// answers asserts who answers, and which client address the server sees.
func (c client) answers(t *testing.T, name string, as netip.Addr) {
	t.Helper()
	got, err := c.ask("hello")
	if want := fmt.Sprintf("%s %s hello", name, as); err != nil || got != want {
		t.Errorf("%s %s: got %q, %v; want %q", c.network, c.RemoteAddr(), got, err, want)
	}
}

// Every pod reaches every other, which sees the pod's own address.
func TestPods(t *testing.T) {
	c := nodetest.New(t, 3)
	var pods []*nodetest.Pod
	for _, m := range c.Members {
		pods = append(pods, m.Pod(3))
	}
	pods = append(pods, c.Members[0].Pod(4))
	for _, p := range pods {
		serve(t, p, 8080)
	}
	for _, from := range pods {
		for _, to := range pods {
			for family, a := range to.Addrs {
				if from == to {
					continue // this traffic stays in the pod's own kernel
				}
				for _, network := range []string{"tcp", "udp"} {
					dial(t, from, network, netip.AddrPortFrom(a, 8080)).answers(t, to.Name, from.Addrs[family])
				}
			}
		}
	}
	for _, m := range c.Members {
		if got := m.Problems(); len(got) != 0 {
			t.Errorf("%s has problems: %v", m.Name, got)
		}
	}
}

// A megabyte crosses the tunnel completely.
func TestStream(t *testing.T) {
	c := nodetest.New(t, 2)
	from, to := c.Members[0].Pod(3), c.Members[1].Pod(3)
	serve(t, to, 8080)
	sent := make([]byte, 1<<20)
	_, _ = rand.Read(sent)
	for i := range sent {
		sent[i] |= 1 // never zero, which means the end
	}
	for family, a := range to.Addrs {
		got, err := dial(t, from, "tcp", netip.AddrPortFrom(a, 8080)).ask(string(sent))
		if want := fmt.Sprintf("%s %s %s", to.Name, from.Addrs[family], sent); err != nil || got != want {
			t.Errorf("%s: %d bytes came back, want %d, or others: %v", a, len(got), len(want), err)
		}
	}
}

// web returns a Service over pods, with addresses of both families.
func web(nodePort uint16, pods ...*nodetest.Pod) *services.Service {
	s := &services.Service{
		Namespace: "default", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.80"), netip.MustParseAddr("fd00:10:96::50")},
	}
	var targets []services.EndpointPort
	for _, proto := range []packet.Proto{packet.TCP, packet.UDP} {
		s.Ports = append(s.Ports, services.Port{Name: "p", Protocol: proto, Port: 80, NodePort: nodePort})
		targets = append(targets, services.EndpointPort{Name: "p", Protocol: proto, Port: 8080})
	}
	s.Endpoints = nodetest.Endpoints(targets, pods...)
	return s
}

// A Service leads to its endpoints on all nodes. The endpoints see the client's address, and the Service has a DNS
// name. An endpoint that leaves gets no new connections.
func TestService(t *testing.T) {
	c := nodetest.New(t, 3)
	from := c.Members[0].Pod(3)
	backends := []*nodetest.Pod{c.Members[0].Pod(4), c.Members[1].Pod(4), c.Members[2].Pod(4)}
	for _, p := range backends {
		serve(t, p, 8080)
	}
	c.Serve(web(0, backends...))
	s := c.Members[0].Config().Services.Services.At(0)
	for family, vip := range s.ClusterIPs {
		for _, network := range []string{"tcp", "udp"} {
			seen := map[string]bool{}
			for i := 0; len(seen) < len(backends) && i < 200; i++ {
				got, err := dial(t, from, network, netip.AddrPortFrom(vip, 80)).ask("hello")
				if err != nil {
					t.Fatalf("%s %s: %v", network, vip, err)
				}
				var name, as string
				if _, err := fmt.Sscanf(got, "%s %s hello", &name, &as); err != nil || as != from.Addrs[family].String() {
					t.Fatalf("%s %s: got %q, want that %s was seen", network, vip, got, from.Addrs[family])
				}
				seen[name] = true
			}
			if len(seen) != len(backends) {
				t.Errorf("%s %s: only %v answered", network, vip, seen)
			}
		}
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return from.Dial(ctx, network[:3], netip.AddrPortFrom(nodetest.DNS[0], 53))
	}}
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	if got, err := resolver.LookupNetIP(ctx, "ip", "web.default.svc.cluster.local."); err != nil || len(got) != 2 {
		t.Errorf("the Service's name: %v, %v; want %v", got, err, s.ClusterIPs)
	}
	c.Serve(web(0, backends[2]))
	for family, vip := range s.ClusterIPs {
		for range 20 {
			dial(t, from, "tcp", netip.AddrPortFrom(vip, 80)).answers(t, backends[2].Name, from.Addrs[family])
		}
	}
}

// A NodePort leads to a pod on another node. For a client on localhost, the pod sees the node's address.
func TestNodePort(t *testing.T) {
	c := nodetest.New(t, 2)
	near, far := c.Members[0].Pod(3), c.Members[1].Pod(3)
	for _, p := range []*nodetest.Pod{near, far} {
		serve(t, p, 8080)
		c.Serve(web(30080, p))
		for _, network := range []string{"tcp", "udp"} {
			at, ok := c.Members[0].HostSocket(network, 30080)
			if !ok {
				t.Fatalf("nobody listens for the NodePort, %s", network)
			}
			answersOutside(t, c.Members[0], network, at, p.Name)
		}
	}
}

// answersOutside asserts who answers a client on a node's localhost. The pod must see the node's address.
func answersOutside(t *testing.T, m *nodetest.Member, network string, at netip.AddrPort, name string) {
	t.Helper()
	conn, err := net.DialTimeout(network, at.String(), await.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client{conn, network}.answers(t, name, m.Addr)
}

// A port that another program holds on the host is reported, does no other harm, and is opened once it is free.
func TestNodePortTaken(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	leave := m.Squat("tcp", 30099)
	p, q := m.Pod(3), m.Pod(4)
	serve(t, p, 8080)
	serve(t, q, 8080)
	other := web(30081, q)
	other.Name, other.ClusterIPs = "other", []netip.Addr{netip.MustParseAddr("10.96.0.81")}
	c.Serve(web(30099, p), other)
	got := m.Problems()
	if len(got) != 1 || got[0].Object != "Service default/web" || got[0].Warning || got[0].Shared || !got[0].Port ||
		!strings.Contains(got[0].Message, "NodePort 30099/TCP is taken on this host by another program; stop that program or give the Service another port") {
		t.Errorf("told is %+v", got)
	}
	if got := c.Members[1].Problems(); len(got) != 0 {
		t.Errorf("on the other node it is a problem: %+v", got)
	}
	ask := func(m *nodetest.Member, network string, port uint16, name string) {
		t.Helper()
		at, ok := m.HostSocket(network, port)
		if !ok {
			t.Fatalf("nobody listens for %s %d on %s", network, port, m.Name)
		}
		answersOutside(t, m, network, at, name)
	}
	ask(m, "udp", 30099, p.Name)
	ask(m, "tcp", 30081, q.Name)
	ask(c.Members[1], "tcp", 30099, p.Name)
	leave()
	for limit := time.After(await.Patience); len(m.Problems()) > 0; {
		select {
		case <-limit:
			t.Fatalf("the port is free and still not had: %+v", m.Problems())
		case <-time.After(10 * time.Millisecond):
		}
	}
	ask(m, "tcp", 30099, p.Name)
}

// An Ingress route leads to the endpoints that L4 finds ready, also when these change and the route does not.
func TestIngress(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	pods := []*nodetest.Pod{m.Pod(3), c.Members[1].Pod(3)}
	for _, p := range pods {
		l, err := p.Listen(netip.AddrPortFrom(p.Addrs[0], 8080))
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, p.Name) })}
		t.Cleanup(func() { _ = s.Close() })
		go func() { _ = s.Serve(l) }()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.ServeHTTP(t.Context(), l) }()
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	browser := http.Client{Transport: transport, Timeout: await.Patience}
	routes := []ingress.Route{{Source: "default/web", Backend: ingress.ServicePort{Namespace: "default", Name: "web", Port: "80"}}}
	for i, want := range []string{pods[0].Name, pods[1].Name, ""} {
		c.Serve(web(0, pods[i:min(i+1, len(pods))]...))
		config := m.Config()
		config.Ingress = ingress.Config{Routes: routes}
		if err := m.Set(config); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			resp, err := browser.Get("http://" + l.Addr().String() + "/")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil || want != "" && string(body) != want || want == "" && resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("got %s %q %v, want %q", resp.Status, body, err, want)
			}
		}
	}
}

// TestProbe runs the node's own check of its packet path.
func TestProbe(t *testing.T) {
	c := nodetest.New(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
	defer cancel()
	if err := c.Members[0].Probe(ctx); err != nil {
		t.Error(err)
	}
	c.Members[0].Close()
	if err := c.Members[0].Probe(ctx); err == nil {
		t.Error("a packet comes through a closed node")
	}
	if err := c.Members[0].Set(c.Members[0].Config()); err == nil {
		t.Error("a closed node was set")
	}
}

// Connections, translated or between pods, continue when the node at either end restarts.
func TestRestart(t *testing.T) {
	c := nodetest.New(t, 2)
	from, to := c.Members[0].Pod(3), c.Members[1].Pod(3)
	serve(t, to, 8080)
	c.Serve(web(0, to))
	var held []client
	for _, vip := range c.Members[0].Config().Services.Services.At(0).ClusterIPs {
		held = append(held, dial(t, from, "tcp", netip.AddrPortFrom(vip, 80)), dial(t, from, "udp", netip.AddrPortFrom(vip, 80)))
	}
	for _, a := range to.Addrs {
		held = append(held, dial(t, from, "tcp", netip.AddrPortFrom(a, 8080)))
	}
	check := func(when string) {
		t.Helper()
		for _, h := range held {
			got, err := h.ask(when)
			var name, as string
			if _, serr := fmt.Sscanf(got, "%s %s", &name, &as); err != nil || serr != nil || name != to.Name || !bytes.HasSuffix([]byte(got), []byte(when)) {
				t.Errorf("%s, %s to %s: got %q, %v", when, h.network, h.RemoteAddr(), got, err)
			}
		}
	}
	check("at first")
	for i, m := range c.Members {
		m.Restart()
		check(fmt.Sprintf("after node %d has started anew", i+1))
	}
}

// A pod reaches every address of the host through the host TAP, with its own address: one that the host had at the
// start, and one added later. Other addresses outside the cluster are refused if egress to them is denied.
func TestHostAddrs(t *testing.T) {
	c := nodetest.New(t, 1)
	m := c.Members[0]
	p, host := m.Pod(3), m.AttachHostTAP()
	arrives := func(to string) {
		t.Helper()
		dst := netip.MustParseAddrPort(to)
		conn := dial(t, p, "udp", dst)
		for end := time.After(await.Patience); ; {
			if _, err := conn.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			select {
			case f := <-host.Frames():
				var got packet.Packet
				if got.ParseFrame(f) == packet.Good && got.Tuple.Dst == packet.AddrFrom(dst.Addr()) {
					if got.Tuple.Src != packet.AddrFrom(p.Addrs[0]) && got.Tuple.Src != packet.AddrFrom(p.Addrs[1]) {
						t.Errorf("%s came from %s", to, got.Tuple.Src)
					}
					return
				}
			case <-end:
				t.Fatalf("%s: nothing came to the host; %v", to, m.Packets())
			}
		}
	}
	refused := func(to string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), await.Patience)
		defer cancel()
		if conn, err := p.Dial(ctx, "tcp", netip.MustParseAddrPort(to)); err == nil {
			_ = conn.Close()
			t.Errorf("%s: a connection", to)
		} else if ctx.Err() != nil {
			t.Errorf("%s: no answer", to)
		}
	}
	refused("172.17.0.1:22")
	m.SetHostAddrs(netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("2001:db8::1"), m.Addr)
	arrives("172.17.0.1:22")
	arrives("[2001:db8::1]:22")
	arrives(netip.AddrPortFrom(m.Addr, 22).String())
	m.SetHostAddrs(netip.MustParseAddr("10.99.0.1"))
	arrives("10.99.0.1:22")
	refused("172.17.0.1:22")
	await.Until(t, "two packets counted as denied", func() bool { return m.Packets().Drops["egress-denied"] >= 2 })
	m.Restart()
	host = m.AttachHostTAP()
	arrives("10.99.0.1:22")
}
