package node_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"tapestry.dev/tapestry/ingress"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/node/nodetest"
	"tapestry.dev/tapestry/services"
	"tapestry.dev/tapestry/test/await"
)

// endpointAt returns a Service with a NodePort and one endpoint, at an address that a user wrote.
func endpointAt(name string, nodePort uint16, to netip.AddrPort) *services.Service {
	s := web(nodePort)
	s.Name, s.ClusterIPs = name, []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 1, byte(nodePort)})}
	s.Endpoints = []services.Endpoint{{
		Addr: to.Addr(), ID: to.Addr().String(), Ready: true, Serving: true,
		Ports: []services.EndpointPort{{Name: "p", Protocol: packet.TCP, Port: to.Port()}, {Name: "p", Protocol: packet.UDP, Port: to.Port()}},
	}}
	return s
}

// converseWith says hello at a host socket and returns the answer.
func converseWith(at netip.AddrPort) ([]byte, error) {
	conn, err := net.DialTimeout("tcp", at.String(), await.Patience)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(await.Patience))
	if _, err := conn.Write([]byte("hello\x00")); err != nil {
		return nil, err
	}
	got := make([]byte, 100)
	n, err := conn.Read(got)
	return got[:n], err
}

// A client of a NodePort gets nowhere if the endpoint is a Service's address, an address of a range of pods that no
// node has, or leads back to a NodePort: the client is cut off, and nothing is sent on.
func TestEndpointsOfUsers(t *testing.T) {
	c := nodetest.New(t, 2)
	m := c.Members[0]
	p := c.Members[1].Pod(3)
	serve(t, p, 8080)
	host := m.AttachHostTAP()
	m.SetHostAddrs(m.Addr, netip.MustParseAddr("172.17.0.1"))
	c.Serve(
		endpointAt("a", 30081, netip.MustParseAddrPort("10.96.0.80:80")), // the address of web
		endpointAt("b", 30082, netip.MustParseAddrPort("10.96.0.10:53")),
		endpointAt("c", 30083, netip.MustParseAddrPort("10.244.1.2:30083")), // this host, by its host TAP
		endpointAt("d", 30084, netip.MustParseAddrPort("172.17.0.1:30083")), // this host, by another interface
		endpointAt("e", 30085, netip.MustParseAddrPort("192.0.2.2:30080")),  // another node
		endpointAt("f", 30086, netip.MustParseAddrPort("10.244.2.2:30086")), // another node, by its host TAP
		web(30080, p),
		endpointAt("f", 30086, netip.MustParseAddrPort("10.244.200.1:80")), // nobody, in the range of pods
	)
	for _, port := range []uint16{30081, 30082, 30083, 30084, 30085, 30086} {
		at, ok := m.HostSocket("tcp", port)
		if !ok {
			t.Fatalf("nobody listens at %d", port)
		}
		if got, err := converseWith(at); len(got) > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("NodePort %d: got %q, %v; want to be cut off", port, got, err)
		}
		at, ok = m.HostSocket("udp", port)
		if !ok {
			t.Fatalf("nobody listens at %d/UDP", port)
		}
		conn, err := net.Dial("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
		_ = conn.Close()
	}
	// The good NodePort still works afterwards.
	for _, network := range []string{"tcp", "udp"} {
		at, ok := m.HostSocket(network, 30080)
		if !ok {
			t.Fatalf("nobody listens for the NodePort, %s", network)
		}
		answersOutside(t, m, network, at, p.Name)
	}
	for {
		select {
		case f := <-host.Frames():
			var got packet.Packet
			if got.ParseFrame(f) == packet.Good && (got.Tuple.DstPort == 30083 || got.Tuple.DstPort == 30080) {
				t.Errorf("the host got %v", got.Tuple)
			}
		default:
			return
		}
	}
}

// A request to an Ingress whose backend leads, past what any node knows to be its own, to the Ingress of another node,
// and from there back, ends after a few passes.
func TestIngressesInACircle(t *testing.T) {
	c := nodetest.New(t, 2)
	var at [2]string
	for i, m := range c.Members {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at[i] = l.Addr().String()
		go func() { _ = m.ServeHTTP(t.Context(), l) }()
	}
	var list []*services.Service
	for i, m := range c.Members {
		p := m.Pod(3)
		carry(t, p, at[1-i])
		s := web(0, p)
		s.Name, s.ClusterIPs = p.Name, []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 2, byte(i)})}
		list = append(list, s)
	}
	c.Serve(list...)
	for i, m := range c.Members {
		config := m.Config()
		config.Ingress = ingress.Config{Routes: []ingress.Route{{Source: "default/web", Backend: ingress.ServicePort{Namespace: "default", Name: list[i].Name, Port: "80"}}}}
		if err := m.Set(config); err != nil {
			t.Fatal(err)
		}
	}
	transport := new(http.Transport)
	defer transport.CloseIdleConnections()
	browser := http.Client{Transport: transport, Timeout: await.Patience}
	resp, err := browser.Get("http://" + at[0] + "/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusLoopDetected {
		t.Errorf("got %s", resp.Status)
	}
	var requests float64
	for _, m := range c.Members {
		requests += m.Counters().Get("tapestry_ingress_requests_total")
	}
	if requests != 9 {
		t.Errorf("of one request there were %v", requests)
	}
}

// carry makes a pod a load balancer of port 8080: what comes in goes to an address of the host, byte by byte.
func carry(t *testing.T, p *nodetest.Pod, to string) {
	t.Helper()
	l, err := p.Listen(netip.AddrPortFrom(p.Addrs[0], 8080))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.Close()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
}
