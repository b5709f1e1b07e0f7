package services

import (
	"fmt"
	"net/netip"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// hostPort makes a TCP HostPort from "host pod".
func hostPort(s string) HostPort {
	var host, pod string
	fmt.Sscan(s, &host, &pod)
	h, p := netip.MustParseAddrPort(host), netip.MustParseAddrPort(pod)
	return HostPort{Pod: "d/p", ID: "u", Addr: h.Addr(), Port: h.Port(), Protocol: packet.TCP, To: p}
}

func hostPortConfig() Config {
	c := testConfig()
	udp := hostPort("192.0.2.1:8080 10.0.0.33:53")
	udp.Protocol = packet.UDP
	c.HostPorts = []HostPort{
		hostPort("127.0.0.1:8080 10.0.0.31:80"), hostPort("192.0.2.1:8080 10.0.0.32:80"), udp,
		hostPort("0.0.0.0:9090 10.0.0.34:80"), hostPort("[::]:9090 [fd00::34]:80"),
	}
	return c
}

// The conformance test of hostPorts uses the same port on another address and with another protocol.
func TestHostPorts(t *testing.T) {
	table, problems := NewTable(hostPortConfig())
	for _, p := range problems {
		if p.Object == "Pod d/p" {
			t.Error(p)
		}
	}
	if got := len(table.HostPorts()); got != 5 {
		t.Errorf("%d are served, want 5", got)
	}
	tests := []struct {
		name, tuple    string
		packet, onHost string // where a packet and a client of a socket go; "" if not to a pod
	}{
		{"loopback", "tcp 127.0.0.1:999 127.0.0.1:8080", "", "10.0.0.31:80"},
		{"the node's address", "tcp 10.0.0.7:999 192.0.2.1:8080", "10.0.0.32:80", "10.0.0.32:80"},
		{"the other protocol", "udp 10.0.0.7:999 192.0.2.1:8080", "10.0.0.33:53", "10.0.0.33:53"},
		{"loopback, the other protocol", "udp 127.0.0.1:999 127.0.0.1:8080", "", ""},
		{"every address", "tcp 203.0.113.1:999 192.0.2.1:9090", "10.0.0.34:80", "10.0.0.34:80"},
		{"every address, IPv6", "tcp [2001:db8:f::1]:999 [2001:db8::1]:9090", "[fd00::34]:80", "[fd00::34]:80"},
		{"every address, loopback", "tcp 127.0.0.1:999 127.0.0.1:9090", "", "10.0.0.34:80"},
		{"another node", "tcp 10.0.0.7:999 192.0.2.2:9090", "", "10.0.0.34:80"}, // not an address of this node
		{"a ClusterIP", "tcp 10.0.0.7:999 10.96.0.1:9090", "", "10.0.0.34:80"},  // nor this one
		{"a node port", "tcp 203.0.113.1:999 192.0.2.1:30080", "10.0.0.1:8080", "10.0.0.1:8080"},
	}
	for _, tt := range tests {
		for _, by := range []struct {
			name, want string
			pick       func(*packet.Tuple) packet.Choice
		}{{"packet", tt.packet, table.Pick}, {"socket", tt.onHost, table.PickOnHost}} {
			got := by.pick(tuple(tt.tuple))
			to := ""
			if got.Kind == packet.Picked {
				to = got.To.AddrPort().String()
			}
			if to != by.want {
				t.Errorf("%s, %s: goes to %q, want %q", tt.name, by.name, to, by.want)
			}
			if got.Backend != 0 && table.Backend(got.Backend, got.To.Addr) != packet.BackendReady {
				t.Errorf("%s, %s: the pod is not ready", tt.name, by.name)
			}
		}
	}
}

// A flow whose pod is gone must be found stale. A flow to another pod at the same address is a different flow.
func TestHostPortBackend(t *testing.T) {
	c := hostPortConfig()
	table, _ := NewTable(c)
	first := table.Pick(tuple("tcp 10.0.0.7:999 192.0.2.1:8080"))
	c.HostPorts = slices.Clone(c.HostPorts)
	c.HostPorts[1].ID = "successor"
	table, _ = table.Update(c)
	if table.Backend(first.Backend, first.To.Addr) != packet.BackendGone {
		t.Error("the pod has gone, its hostPort has not")
	}
	if again := table.Pick(tuple("tcp 10.0.0.7:999 192.0.2.1:8080")); again.Backend == first.Backend || table.Backend(again.Backend, again.To.Addr) != packet.BackendReady {
		t.Error("the successor is taken for the pod before, or is not ready")
	}
}

func TestHostPortProblems(t *testing.T) {
	c := testConfig()
	c.Services.At(6).Ports = nil
	c.HostPorts = []HostPort{hostPort("0.0.0.0:30080 10.0.0.31:80"), hostPort("127.0.0.1:30080 10.0.0.31:80"), hostPort("0.0.0.0:30081 10.0.0.31:80")}
	table, problems := NewTable(c)
	problems = slices.DeleteFunc(problems, func(p Problem) bool { return p.Object != "Pod d/p" })
	want := Problem{"Pod d/p", "hostPort 30080/TCP is the node port of Service d/dual, which keeps it; give the pod another hostPort"}
	if len(problems) != 2 || problems[0] != want || problems[1] != want {
		t.Errorf("got %v", problems)
	}
	if served := table.HostPorts(); len(served) != 1 || served[0].Port != 30081 {
		t.Errorf("served are %v", served)
	}
	c.Services = roll.From(c.Services.Slice()[1:]) // without the Service, the pod gets the port
	if table, _ = table.Update(c); len(table.HostPorts()) != 3 {
		t.Errorf("served are %v", table.HostPorts())
	}
}

func TestSourceRanges(t *testing.T) {
	for name, tt := range map[string]struct {
		ranges []netip.Prefix
		client string
		want   packet.ChoiceKind
	}{
		"no ranges":                {nil, "203.0.113.1", packet.Picked},
		"inside":                   {addresstest.Prefixes("192.0.2.0/24", "203.0.113.0/24"), "203.0.113.1", packet.Picked},
		"outside":                  {addresstest.Prefixes("192.0.2.0/24"), "203.0.113.1", packet.DropSource},
		"a pod outside":            {addresstest.Prefixes("203.0.113.0/24"), "10.0.0.7", packet.DropSource},
		"only of the other family": {addresstest.Prefixes("2001:db8::/32"), "203.0.113.1", packet.DropSource},
		"none that can be read":    {[]netip.Prefix{}, "203.0.113.1", packet.DropSource},
	} {
		c := testConfig()
		s := c.Services.At(0)
		s.ExternalIPs, s.SourceRanges = addresstest.Addrs("198.51.100.9"), tt.ranges
		table, _ := NewTable(c)
		if got := table.Pick(tuple("tcp " + tt.client + ":999 198.51.100.9:80")).Kind; got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
		for _, open := range []string{"10.96.0.1:80", "192.0.2.1:30080"} { // kube-proxy leaves these open too
			if got := table.Pick(tuple("tcp " + tt.client + ":999 " + open)).Kind; got != packet.Picked {
				t.Errorf("%s: %s is closed, too: %d", name, open, got)
			}
		}
	}
}

func TestHealthChecks(t *testing.T) {
	c := testConfig()
	c.Services = roll.From([]*Service{
		{Namespace: "d", Name: "some", HealthCheckNodePort: 31000, Endpoints: eps("10.0.0.1 a rs", "10.0.0.2 a rs", "10.0.0.3 b rs", "10.0.0.4 a st", "10.0.0.5 a")},
		{Namespace: "d", Name: "none", HealthCheckNodePort: 31001, Endpoints: eps("10.0.0.3 b rs")},
		{Namespace: "d", Name: "unready", HealthCheckNodePort: 31002, PublishNotReady: true, Endpoints: eps("10.0.0.3 a")},
		{Namespace: "d", Name: "without"},
	})
	dual := eps("10.0.0.6 a rs", "fd00::6 a rs")
	dual[0].ID, dual[1].ID = "pod", "pod"
	c.Services = c.Services.Append(&Service{Namespace: "d", Name: "dual", HealthCheckNodePort: 31004, Endpoints: dual})
	table, _ := NewTable(c)
	want := []HealthCheck{{"d", "some", 31000, 2}, {"d", "none", 31001, 0}, {"d", "unready", 31002, 1}, {"d", "dual", 31004, 1}}
	if got := table.HealthChecks(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// An address that a load balancer assigned may be a node's own. The endpoint must have the packet's family and be on
// that node.
func TestLoadBalancerAddressOfAnotherNode(t *testing.T) {
	c := testConfig()
	c.NodeNames = []string{"a", "b", "a", "b"}
	s := &Service{Namespace: "d", Name: "balanced", ClusterIPs: addresstest.Addrs("10.96.0.9", "fd96::9"), ExternalIPs: addresstest.Addrs("192.0.2.2", "2001:db8::2"), ExternalLocal: true,
		Ports:     []Port{{Name: "web", Protocol: packet.TCP, Port: 4443}},
		Endpoints: eps("10.0.0.7 a rs", "fd00::7 a rs", "10.0.1.7 b rs", "fd00:1::7 b rs")}
	c.Services = c.Services.Append(s)
	single := *s
	single.Endpoints = eps("10.0.0.7 a rs", "10.0.1.7 b rs")
	for name, tt := range map[string]struct {
		service *Service
		tuple   string
		want    string
	}{
		"dual stack, IPv4":   {s, "tcp 10.0.0.9:999 192.0.2.2:4443", "10.0.1.7:8080"},
		"dual stack, IPv6":   {s, "tcp [fd00::9]:999 [2001:db8::2]:4443", "[fd00:1::7]:8080"},
		"single stack, IPv4": {&single, "tcp 10.0.0.9:999 192.0.2.2:4443", "10.0.1.7:8080"},
	} {
		c.Services = c.Services.With(roll.Edit[*Service]{At: c.Services.Len() - 1, To: tt.service})
		table, _ := NewTable(c)
		if got := table.Pick(tuple(tt.tuple)); got.Kind != packet.Picked || got.To.AddrPort().String() != tt.want {
			t.Errorf("%s: got %v %v, want %s", name, got.Kind, got.To.AddrPort(), tt.want)
		}
	}
}

// A pod counts as external at other nodes' addresses, but not at its own node's.
func TestLocalPolicyAtAnotherNode(t *testing.T) {
	c := testConfig()
	c.NodeNames = []string{"a", "b", "a", "b"}
	c.Services.At(6).Ports = nil
	c.Services = c.Services.Append(&Service{Namespace: "d", Name: "no-more", ClusterIPs: addresstest.Addrs("10.96.0.9"), ExternalLocal: true,
		Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80, NodePort: 30089}}})
	table, _ := NewTable(c)
	for _, tt := range []struct {
		tuple string
		kind  packet.ChoiceKind
		to    string
	}{
		{"tcp 10.0.0.7:999 192.0.2.2:30083", packet.Picked, "10.0.1.4:8080"}, // that node has the only endpoint
		{"tcp 10.0.0.7:999 192.0.2.1:30083", packet.Picked, "10.0.1.4:8080"}, // this node may use it, too
		{"tcp 10.0.0.7:999 192.0.2.2:30084", packet.Picked, "10.0.1.5:8080"}, // of two endpoints, the one on that node
		{"tcp 10.0.0.7:999 192.0.2.2:30080", packet.Picked, "10.0.0.1:8080"}, // policy Cluster
		{"tcp 10.0.0.7:999 192.0.2.2:30089", packet.NoEndpoints, ""},         // none anywhere
	} {
		for range 2 { // the first round makes the set, the second finds it
			got := table.Pick(tuple(tt.tuple))
			if got.Kind != tt.kind || tt.to != "" && got.To.AddrPort().String() != tt.to {
				t.Errorf("%s: %+v, want %s", tt.tuple, got, tt.to)
			}
			if got.Backend != 0 && table.Backend(got.Backend, got.To.Addr) != packet.BackendReady {
				t.Errorf("%s: the backend is not ready", tt.tuple)
			}
		}
	}
	c.Services.At(3).Endpoints = c.Services.At(3).Endpoints[:1]
	changed := *c.Services.At(3)
	c.Services = c.Services.With(roll.Edit[*Service]{At: 3, To: &changed})
	table, _ = NewTable(c)
	if got := table.Pick(tuple("tcp 10.0.0.7:999 192.0.2.2:30084")); got.Kind != packet.DropLocal {
		t.Errorf("no endpoint is on that node: %+v, want a drop", got)
	}
}

// TestStaysOnHost: datagrams of a client of a socket on the host go where its address and port lead now.
func TestStaysOnHost(t *testing.T) {
	c := hostPortConfig()
	table, _ := NewTable(c)
	for _, tt := range []struct {
		to     string
		change func(*Config)
		want   bool
	}{
		{"tcp 127.0.0.1:999 127.0.0.1:8080", func(*Config) {}, true},
		{"tcp 127.0.0.1:999 127.0.0.1:8080", func(c *Config) { c.HostPorts = c.HostPorts[1:] }, false},
		{"tcp 127.0.0.1:999 127.0.0.1:8080", func(c *Config) { c.HostPorts[0].To = netip.MustParseAddrPort("10.0.0.99:80") }, false},
		{"tcp 127.0.0.1:999 127.0.0.1:9090", func(c *Config) { c.HostPorts[0], c.HostPorts[3] = c.HostPorts[3], c.HostPorts[0] }, true},
		{"tcp 203.0.113.1:999 192.0.2.1:30080", func(*Config) {}, true},
		{"tcp 127.0.0.1:999 127.0.0.1:30080", func(*Config) {}, true},
		{"tcp 127.0.0.1:999 127.0.0.1:30080", func(c *Config) { c.Services = roll.List[*Service]{} }, false},
		{"tcp 203.0.113.1:999 192.0.2.1:30080", func(c *Config) { c.Services = roll.List[*Service]{} }, false},
		{"tcp 127.0.0.1:999 127.0.0.1:30080", func(c *Config) {
			for i, s := range c.Services.All() {
				own := *s
				own.Name += "-new" // the same pods, the same port
				c.Services = c.Services.With(roll.Edit[*Service]{At: i, To: &own})
			}
		}, false},
	} {
		next := c
		next.HostPorts = slices.Clone(c.HostPorts)
		tt.change(&next)
		changed, _ := table.Update(next)
		choice := table.PickOnHost(tuple(tt.to))
		if got := changed.StaysOnHost(tuple(tt.to), choice); got != tt.want || choice.Kind != packet.Picked {
			t.Errorf("%s, %v: got %v, want %v", tt.to, choice, got, tt.want)
		}
	}
}
