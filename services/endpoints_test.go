package services

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

func TestEndpoints(t *testing.T) {
	both := []Port{{Name: "web", Protocol: packet.TCP, Port: 80}, {Name: "dns", Protocol: packet.UDP, Port: 53}, {Protocol: packet.TCP, Port: 81}}
	hinted := eps("10.0.0.1 a rs", "10.0.0.2 b rs")
	hinted[0].ForZone, hinted[1].ForZone = Here, Elsewhere
	c := Config{Node: "a", Services: roll.From([]*Service{
		{Namespace: "d", Name: "dual", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: both, Endpoints: eps("fd00::1 a rs", "10.0.0.2 b rs", "10.0.0.1 a rs", "10.0.0.3 a")},
		{Namespace: "d", Name: "headless", Ports: both, Endpoints: eps("10.0.0.4 a rs")},
		{Namespace: "d", Name: "hinted", ClusterIPs: addresstest.Addrs("10.96.0.3"), Ports: both, Endpoints: hinted},
		{Namespace: "d", Name: "leaving", ClusterIPs: addresstest.Addrs("10.96.0.2"), Ports: both, Endpoints: eps("10.0.0.5 a st", "10.0.0.6 a t")},
		{Namespace: "d", Name: "local", ClusterIPs: addresstest.Addrs("10.96.0.4"), Ports: both, InternalLocal: true, Endpoints: eps("10.0.0.7 b rs")},
		{Namespace: "d", Name: "unready", Ports: both, PublishNotReady: true, Endpoints: eps("10.0.0.8 a")},
	})}
	table, _ := NewTable(c)
	for _, tt := range []struct{ service, port, want string }{
		{"dual", "web", "[10.0.0.1:8080 10.0.0.2:8080 [fd00::1]:8080]"},
		{"dual", "80", "[10.0.0.1:8080 10.0.0.2:8080 [fd00::1]:8080]"},
		{"dual", "dns", "[]"},   // not TCP
		{"dual", "53", "[]"},    // not TCP
		{"dual", "81", "[]"},    // no endpoint has this port
		{"dual", "82", "[]"},    // no such port
		{"dual", "", "[]"},      // the empty name matches no port
		{"dual", "other", "[]"}, // no such port
		{"headless", "web", "[10.0.0.4:8080]"},
		{"hinted", "web", "[10.0.0.1:8080]"},
		{"leaving", "web", "[10.0.0.5:8080]"},
		{"local", "web", "[10.0.0.7:8080]"},
		{"none", "web", "[]"},
		{"unready", "web", "[10.0.0.8:8080]"},
	} {
		p := ServicePort{"d", tt.service, tt.port}
		for range 2 { // the first round makes the list, the second finds it
			if got := fmt.Sprint(table.Endpoints(p)); got != tt.want {
				t.Errorf("%v: got %s, want %s", p, got, tt.want)
			}
		}
	}
	if !table.Serves("d", "dual", netip.MustParseAddr("10.0.0.1")) || table.Serves("d", "dual", netip.MustParseAddr("10.0.0.3")) ||
		!table.Serves("d", "unready", netip.MustParseAddr("10.0.0.8")) || table.Serves("d", "none", netip.MustParseAddr("10.0.0.1")) {
		t.Error("Serves is wrong")
	}
}

// The holder of the list can tell by the slice's identity that nothing has changed.
func TestEndpointsAreShared(t *testing.T) {
	c := cluster(100, 10)
	c.Services = sorted(c.Services)
	before, _ := NewTable(c)
	p := ServicePort{"d", "s7", "80"}
	list := before.Endpoints(p)
	next := c
	next.Services = c.Services
	for i, s := range next.Services.All() {
		if s.Name == "s8" {
			next.Services = next.Services.With(roll.Edit[*Service]{At: i, To: fewer(s)})
		}
	}
	after, _ := before.Update(next)
	if again := after.Endpoints(p); len(list) != 10 || &again[0] != &list[0] {
		t.Error("another Service's endpoint changed the list")
	}
	if other := after.Endpoints(ServicePort{"d", "s8", "80"}); len(other) != 9 {
		t.Errorf("the Service that changed has %d", len(other))
	}
	if n := testing.AllocsPerRun(100, func() { after.Endpoints(p) }); n > 1 {
		t.Errorf("to find the list allocates %v times", n)
	}
}

// FuzzEndpointsAreThoseOfClusterIPs checks that, in one family, L7 uses the same endpoints as L4.
func FuzzEndpointsAreThoseOfClusterIPs(f *testing.F) {
	for i := range uint64(500) {
		f.Add(i)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		c := randomConfig(r)
		for _, s := range c.Services.All() {
			s.ClusterIPs, s.InternalLocal = addresstest.Addrs("10.96.0.1"), false
			s.Endpoints = slices.DeleteFunc(s.Endpoints, func(e Endpoint) bool { return e.Addr.Is6() })
			for i := range s.Endpoints {
				s.Endpoints[i].ForZone = Hint(r.IntN(3))
			}
		}
		table, _ := NewTable(c)
		for i, s := range c.Services.All() {
			for j := range s.Ports {
				if s.portOf(strconv.Itoa(int(s.Ports[j].Port))) != j {
					continue
				}
				var want []netip.AddrPort
				for _, b := range table.units.At(i).sets[setIndex(j, false, true)].backends {
					want = append(want, b.to.AddrPort())
				}
				slices.SortFunc(want, netip.AddrPort.Compare)
				want = slices.Compact(want)
				if got := table.Endpoints(ServicePort{s.Namespace, s.Name, strconv.Itoa(int(s.Ports[j].Port))}); !slices.Equal(got, want) {
					t.Fatalf("%+v port %d: got %v, want %v", s, j, got, want)
				}
			}
		}
	})
}

// TestServes holds Serves against a look at each endpoint, for random Services that follow one another.
func TestServes(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	address := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(32))}) }
	var table *Table
	for range 200 {
		s := &Service{Namespace: "d", Name: "s", PublishNotReady: random.IntN(4) == 0}
		for range random.IntN(20) {
			s.Endpoints = append(s.Endpoints, Endpoint{Addr: address(), Ready: random.IntN(2) == 0})
		}
		table, _ = table.Update(Config{Services: roll.From([]*Service{s})})
		for i := range 32 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
			want := slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Addr == a && (e.Ready || s.PublishNotReady) })
			if got := table.Serves("d", "s", a); got != want {
				t.Fatalf("%s of %+v: %v, want %v", a, s, got, want)
			}
		}
	}
}

// BenchmarkServes is the question of cluster DNS for one endpoint by its address, of a Service with 20,000.
func BenchmarkServes(b *testing.B) {
	s := &Service{Namespace: "d", Name: "s"}
	for i := range 20000 {
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Ready: true})
	}
	table, _ := NewTable(Config{Services: roll.From([]*Service{s})})
	for b.Loop() {
		table.Serves("d", "s", s.Endpoints[15000].Addr)
	}
}
