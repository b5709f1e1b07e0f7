package services

import (
	"net/netip"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// TestIsEndpoint checks that IsEndpoint knows endpoints on this node and endpoints without a node, ready or not, for
// as long as a Service has them.
func TestIsEndpoint(t *testing.T) {
	at := func(addr string, port uint16, proto packet.Proto) (packet.Endpoint, packet.Proto) {
		return packet.EndpointFrom(netip.AddrPortFrom(netip.MustParseAddr(addr), port)), proto
	}
	endpoint := func(addr, node string, ready bool) Endpoint {
		return Endpoint{Addr: netip.MustParseAddr(addr), ID: addr, Node: node, Ready: ready, Ports: []EndpointPort{{Name: "p", Protocol: packet.UDP, Port: 8080}}}
	}
	service := func(name string, endpoints ...Endpoint) *Service {
		return &Service{Namespace: "default", Name: name, Ports: []Port{{Name: "p", Protocol: packet.UDP, Port: 80, NodePort: 30080}}, Endpoints: endpoints}
	}
	c := Config{Node: "here", Services: roll.From([]*Service{
		service("a", endpoint("10.0.0.1", "here", true), endpoint("10.0.0.2", "here", false), endpoint("10.0.1.1", "there", true)),
		service("b", endpoint("10.0.0.3", "", true), endpoint("fd00::3", "here", true)),
	})}
	table, _ := NewTable(c)
	expect := func(table *Table, addr string, port uint16, proto packet.Proto, want bool) {
		t.Helper()
		if got := table.IsEndpoint(at(addr, port, proto)); got != want {
			t.Errorf("%s %d/%d: %v, want %v", addr, port, proto, got, want)
		}
	}
	for _, addr := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::3"} {
		expect(table, addr, 8080, packet.UDP, true)
		expect(table, addr, 8080, packet.TCP, false)
		expect(table, addr, 80, packet.UDP, false)
		expect(table, addr, 8080, packet.ICMPv4, false)
	}
	expect(table, "10.0.1.1", 8080, packet.UDP, false)
	expect(table, "10.0.0.9", 8080, packet.UDP, false)
	c.Services = roll.From([]*Service{service("a", endpoint("10.0.0.4", "here", true)), c.Services.At(1)})
	next, _ := table.Update(c)
	expect(next, "10.0.0.1", 8080, packet.UDP, false)
	expect(next, "10.0.0.4", 8080, packet.UDP, true)
	expect(next, "10.0.0.3", 8080, packet.UDP, true)
	expect(table, "10.0.0.4", 8080, packet.UDP, false)
	c.Services = roll.From(c.Services.Slice()[1:])
	next, _ = next.Update(c)
	expect(next, "10.0.0.4", 8080, packet.UDP, false)
	expect(next, "fd00::3", 8080, packet.UDP, true)
}

// TestLeads checks whether an address still leads to the Service port for which a backend was chosen, whatever the
// state of the backend.
func TestLeads(t *testing.T) {
	c := testConfig()
	table, _ := NewTable(c)
	for _, to := range []string{
		"tcp 10.0.0.7:999 10.96.0.1:80", "tcp [fd00::7]:999 [fd96::1]:80", "tcp 203.0.113.1:9 192.0.2.1:30080", "tcp 10.0.0.7:9 198.51.100.3:80",
		"tcp 10.0.0.7:9 192.0.2.2:30084",
	} {
		tp := tuple(to)
		choice := table.Pick(tp)
		if choice.Kind != packet.Picked {
			t.Fatalf("%s: %v", to, choice)
		}
		leads := func(change func(*Config)) bool {
			next := c
			next.Services = roll.List[*Service]{}
			for _, s := range c.Services.All() {
				own := *s
				own.Ports = slices.Clone(s.Ports)
				next.Services = next.Services.Append(&own)
			}
			change(&next)
			changed, _ := table.Update(next)
			return changed.Leads(tp, choice.Backend, choice.To.Port)
		}
		all := func(change func(*Service)) func(*Config) {
			return func(c *Config) {
				for _, s := range c.Services.All() {
					change(s)
				}
			}
		}
		for name, tt := range map[string]struct {
			change func(*Config)
			want   bool
		}{
			"nothing changed":        {func(*Config) {}, true},
			"no endpoint is left":    {all(func(s *Service) { s.Endpoints = nil }), true},
			"other endpoints":        {all(func(s *Service) { s.Endpoints = eps("10.0.0.77 a rs", "fd00::77 a rs") }), true},
			"the port is another":    {all(func(s *Service) { s.Ports[0].Port, s.Ports[0].NodePort = 7, 30007 }), false},
			"another protocol":       {all(func(s *Service) { s.Ports[0].Protocol = packet.UDP }), false},
			"another port has it":    {all(func(s *Service) { s.Ports[0].Name = "new" }), false},
			"another Service has it": {all(func(s *Service) { s.Name += "-new" }), false},
			"no Services":            {func(c *Config) { c.Services = roll.List[*Service]{} }, false},
		} {
			if got := leads(tt.change); got != tt.want {
				t.Errorf("%s: %s: got %v, want %v", to, name, got, tt.want)
			}
		}
	}
}
