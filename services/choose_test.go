package services

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"tapestry.dev/tapestry/roll"
	"testing"
	"time"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// manyService returns a Service with n backends.
func manyService(n int) Service {
	s := Service{Namespace: "d", Name: "s", ClusterIPs: addresstest.Addrs("10.96.0.1"), Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}}
	for i := range n {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), ID: fmt.Sprintf("uid-%d", i),
			Ready: true, Serving: true, Ports: []EndpointPort{{"web", packet.TCP, 8080}},
		})
	}
	return s
}

func tableOf(ss ...Service) *Table {
	var c Config
	for i := range ss {
		c.Services = c.Services.Append(&ss[i])
	}
	t, _ := NewTable(c)
	return t
}

// flows returns n tuples like those of a few clients: consecutive ports, neighbouring addresses.
func flows(n int) []packet.Tuple {
	out := make([]packet.Tuple, n)
	first := *tuple("tcp 10.9.0.1:30000 10.96.0.1:80")
	for i := range out {
		out[i] = first
		out[i].Src[15] += byte(i % 8)
		out[i].SrcPort += uint16(i / 8)
	}
	return out
}

func TestOrderDoesNotMatter(t *testing.T) {
	for _, n := range []int{2, 8, rendezvousMax, rendezvousMax + 1, 300, 3000} {
		a := tableOf(manyService(n))
		s := manyService(n)
		rand.New(rand.NewPCG(1, 2)).Shuffle(n, func(i, j int) { s.Endpoints[i], s.Endpoints[j] = s.Endpoints[j], s.Endpoints[i] })
		s.Endpoints = append(s.Endpoints, s.Endpoints[0]) // one endpoint twice, as while EndpointSlices are rebalanced
		b := tableOf(s)
		for _, f := range flows(2000) {
			if a.Pick(&f) != b.Pick(&f) {
				t.Fatalf("%d backends: the order of endpoints changed the choice", n)
			}
		}
	}
}

func TestMinimalDisruption(t *testing.T) {
	const picks = 20000
	for _, n := range []int{2, 8, 15, 50, 300, 5000} {
		s := manyService(n + 1)
		with := tableOf(s)
		gone := s.Endpoints[n/2].Addr
		s.Endpoints = slices.Delete(slices.Clone(s.Endpoints), n/2, n/2+1)
		without := tableOf(s)
		moved := 0
		for _, f := range flows(picks) {
			a, b := with.Pick(&f), without.Pick(&f)
			if a.To.Addr != packet.AddrFrom(gone) && a != b {
				moved++
			}
		}
		limit := 0
		if n+1 > rendezvousMax {
			limit = picks * 4 / 100
		}
		if n+1 > maglevMax { // as often as 40 backends are chosen
			limit = picks * 40 / n
		}
		if moved > limit {
			t.Errorf("%d backends, one removed: %d of %d flows moved that need not, want at most %d", n+1, moved, picks, limit)
		}
	}
}

// TestSpread is a chi-square test against equal shares, with tolerance for the unevenness of Maglev.
func TestSpread(t *testing.T) {
	for _, n := range []int{2, 3, 8, rendezvousMax, rendezvousMax + 1, 100, 1000, 2500} {
		perBackend := min(400, 500_000/float64(n)) // there are no more flows
		table := tableOf(manyService(n))
		count := map[packet.Endpoint]float64{}
		for _, f := range flows(int(perBackend) * n) {
			count[table.Pick(&f).To]++
		}
		chi := 0.0
		for _, c := range count {
			chi += (c - perBackend) * (c - perBackend) / perBackend
		}
		if len(count) != n {
			t.Errorf("%d of %d backends are used", len(count), n)
		}
		// The mean of chi-square is the degrees of freedom, and its standard deviation is the square root of twice
		// that. With 1000 flows over 2 backends, chi-square above 12 happens once in 2000 hashes.
		if dof := float64(n - 1); chi > dof*1.5+11 {
			t.Errorf("%d backends: chi-square %.1f for %.0f degrees of freedom", n, chi, dof)
		}
	}
}

// TestMaglevTwin compares the table with one that is built as the paper describes.
func TestMaglevTwin(t *testing.T) {
	table := tableOf(manyService(40))
	s := table.units.At(0).sets[0]
	m := uint64(len(s.slots))
	owner := map[uint64]uint32{}
	next := make([]uint64, len(s.backends))
	for len(owner) < int(m) {
		for i := range next {
			id := s.backends[i].id & podMask
			offset, skip := finish(id^mixA)%m, finish(id^mixD)%(m-1)+1
			for {
				slot := (offset + next[i]*skip) % m
				next[i]++
				if _, taken := owner[slot]; !taken {
					owner[slot] = uint32(i)
					break
				}
			}
			if len(owner) == int(m) {
				break
			}
		}
	}
	for slot, want := range owner {
		if got := s.slots[slot]; got != want {
			t.Fatalf("slot %d belongs to %d, want %d", slot, got, want)
		}
	}
}

// slowPick is Pick by a scan of the Config, for sets of at most rendezvousMax backends, with a slow memory.
func slowPick(c *Config, t *packet.Tuple, memory slowMemory) packet.Choice {
	dst, src := t.Dst.Netip(), t.Src.Netip()
	ping := t.Proto == packet.ICMPv4 || t.Proto == packet.ICMPv6
	dns := slices.Contains(c.DNSAddrs, dst)
	if dns && (ping || t.DstPort == 53 && (t.Proto == packet.TCP || t.Proto == packet.UDP)) {
		return packet.Choice{Kind: packet.ToStack}
	}
	inside := slices.Contains(c.OwnAddrs, src) || slices.ContainsFunc(c.ClusterCIDRs, func(p netip.Prefix) bool { return p.Contains(src) })
	onNode, vip := slices.Contains(c.NodeAddrs, dst), false
	for _, nodePorts := range []bool{false, true} {
		for i := range c.Services.All() {
			s := c.Services.At(i)
			cluster, external := slices.Contains(s.ClusterIPs, dst), slices.Contains(s.ExternalIPs, dst)
			vip = vip || cluster || external
			for j := range s.Ports {
				p := &s.Ports[j]
				twice := func(q Port) bool { return q.Port == p.Port && q.Protocol == p.Protocol }
				if p.Protocol != t.Proto || slices.ContainsFunc(s.Ports[:j], twice) {
					continue
				}
				switch {
				case !nodePorts && cluster && p.Port == t.DstPort:
					return slowChoose(c, s, p, t, s.InternalLocal, c.Node, memory)
				case !nodePorts && external && p.Port == t.DstPort,
					nodePorts && onNode && p.NodePort != 0 && p.NodePort == t.DstPort && slowHasFamily(s, dst):
					node := c.Node
					if at := slowNodeAt(c, dst); inside && at != "" {
						node = at // the endpoints that serve external clients at that node
					}
					return slowChoose(c, s, p, t, s.ExternalLocal && (!inside || node != c.Node), node, memory)
				}
			}
		}
	}
	switch {
	case onNode:
		return packet.Choice{Kind: packet.NotFrontend}
	case vip, dns, slices.ContainsFunc(c.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(dst) }):
		return packet.Choice{Kind: packet.UnknownPort}
	}
	return packet.Choice{Kind: packet.NotFrontend}
}

// slowHasFamily reports whether a Service has the family of an address.
func slowHasFamily(s *Service, a netip.Addr) bool {
	return len(s.ClusterIPs) == 0 || slices.ContainsFunc(s.ClusterIPs, func(ip netip.Addr) bool { return ip.Is4() == a.Is4() })
}

// slowNodeAt returns the name of the other node that has the address. If several have it, it returns the last.
func slowNodeAt(c *Config, a netip.Addr) (name string) {
	for i, x := range c.NodeAddrs {
		if x == a && c.NodeNames[i] != c.Node {
			name = c.NodeNames[i]
		}
	}
	return name
}

// slowChoose chooses among all endpoints, or among the node's endpoints when the policy is Local.
func slowChoose(c *Config, s *Service, p *Port, t *packet.Tuple, local bool, node string, memory slowMemory) packet.Choice {
	targets := Select(s, p, Scope{Family: familyOf(t.Dst.Is4())})
	if len(targets) == 0 {
		return packet.Choice{Kind: packet.NoEndpoints}
	}
	if local {
		if targets = Select(s, p, Scope{Family: familyOf(t.Dst.Is4()), Node: node}); len(targets) == 0 {
			return packet.Choice{Kind: packet.DropLocal}
		}
	}
	var known *slowSession
	h := flowHash(t)
	if s.Affinity > 0 {
		k := slowKey{t.Src, s.Name, p.Name, p.Protocol, ""}
		if local && node != c.Node {
			k.there = node
		}
		known = memory.session(k, s.Affinity)
		h = sessionHash(&t.Src, known.turn)
	}
	var best packet.Choice
	for _, x := range targets {
		id := backendID(podID(x.Endpoint.ID, x.Endpoint.Addr), portID(s, p), x.Port)
		choice := packet.Choice{Kind: packet.Picked, Backend: id, To: packet.Endpoint{Addr: packet.AddrFrom(x.Endpoint.Addr), Port: x.Port}}
		if known != nil && known.backend == id {
			return choice
		}
		if best.Backend == 0 || score(h, id) > score(h, best.Backend) {
			best = choice
		}
	}
	if known != nil {
		known.backend = best.Backend
	}
	return best
}

// randomConfig draws from few addresses and ports, so that Services often claim the same ones.
func randomConfig(r *rand.Rand) Config {
	pool := addresstest.Addrs("10.96.0.1", "10.96.0.2", "192.0.2.1", "198.51.100.1", "fd96::1", "2001:db8::1")
	protos := []packet.Proto{packet.TCP, packet.UDP, packet.SCTP}
	some := func(n int) (out []netip.Addr) {
		for range r.IntN(n + 1) {
			out = append(out, pool[r.IntN(len(pool))])
		}
		return out
	}
	c := Config{Node: "a", NodeAddrs: some(3), OwnAddrs: some(1), DNSAddrs: some(1)}
	for range c.NodeAddrs {
		c.NodeNames = append(c.NodeNames, string(rune('a'+r.IntN(2))))
	}
	if r.IntN(2) == 0 {
		c.ServiceCIDRs = addresstest.Prefixes("10.96.0.0/16", "fd96::/64")
		c.ClusterCIDRs = addresstest.Prefixes("10.0.0.0/31")
	}
	for i := range r.IntN(5) {
		s := Service{Namespace: "d", Name: fmt.Sprint("s", i), ClusterIPs: some(2), ExternalIPs: some(1),
			InternalLocal: r.IntN(3) == 0, ExternalLocal: r.IntN(3) == 0, PublishNotReady: r.IntN(5) == 0}
		if r.IntN(3) == 0 {
			s.Affinity = time.Hour
		}
		for j := range r.IntN(4) {
			s.Ports = append(s.Ports, Port{Name: fmt.Sprint(j % 2), Protocol: protos[r.IntN(3)], Port: uint16(52 + r.IntN(3)), NodePort: uint16(52 * r.IntN(2))})
		}
		for range r.IntN(rendezvousMax) {
			e := Endpoint{Addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(20) + 1)}), ID: fmt.Sprint(r.IntN(20)), Node: string(rune('a' + r.IntN(2))),
				Ready: r.IntN(2) == 0, Serving: r.IntN(2) == 0, Terminating: r.IntN(2) == 0}
			if r.IntN(2) == 0 {
				e.Addr = netip.MustParseAddr(fmt.Sprintf("fd00::%d", r.IntN(9)+1))
			}
			for j := range r.IntN(3) {
				e.Ports = append(e.Ports, EndpointPort{fmt.Sprint(j), protos[r.IntN(3)], uint16(8080 + r.IntN(2))})
			}
			s.Endpoints = append(s.Endpoints, e)
		}
		c.Services = c.Services.Append(&s)
	}
	return c
}

func FuzzPickTwin(f *testing.F) {
	for i := range uint64(3000) {
		f.Add(i, i*7)
	}
	f.Fuzz(func(t *testing.T, a, b uint64) {
		r := rand.New(rand.NewPCG(a, b))
		c := randomConfig(r)
		table, _ := NewTable(c)
		memory := slowMemory{}
		srcs := []string{"10.0.0.1", "10.9.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"}
		dsts := []string{"10.96.0.1", "10.96.0.2", "10.96.0.3", "192.0.2.1", "198.51.100.1", "fd96::1", "fd96::2", "2001:db8::1", "8.8.8.8"}
		protos := []packet.Proto{packet.TCP, packet.UDP, packet.SCTP, packet.ICMPv4}
		for range 100 {
			tu := packet.Tuple{
				Src: packet.AddrFrom(netip.MustParseAddr(srcs[r.IntN(len(srcs))])), SrcPort: uint16(r.Uint32()),
				Dst: packet.AddrFrom(netip.MustParseAddr(dsts[r.IntN(len(dsts))])), DstPort: uint16(52 + r.IntN(4)), Proto: protos[r.IntN(len(protos))],
			}
			got, want := table.Pick(&tu), slowPick(&c, &tu, memory)
			if got != want {
				t.Fatalf("%v:%d -> %v:%d/%d: got %+v, want %+v\n%+v", tu.Src, tu.SrcPort, tu.Dst, tu.DstPort, tu.Proto, got, want, c)
			}
			// The fallback to terminating endpoints is decided per node, so such a backend only serves in this Table.
			state := table.Backend(got.Backend, got.To.Addr)
			if there := slowNodeAt(&c, tu.Dst.Netip()) != "" && state == packet.BackendServing; got.Kind == packet.Picked && state != packet.BackendReady && !there {
				t.Fatalf("picked a backend that is not ready, but %v", state)
			}
		}
	})
}

func cluster(services, endpoints int) Config {
	c := Config{Node: "a", ServiceCIDRs: addresstest.Prefixes("10.96.0.0/12"), NodeAddrs: addresstest.Addrs("192.0.2.1", "192.0.2.2")}
	for i := range services {
		s := manyService(endpoints)
		s.Name = fmt.Sprint("s", i)
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		c.Services = c.Services.Append(&s)
	}
	return c
}

func BenchmarkPick(b *testing.B) {
	for _, bb := range []struct{ services, endpoints int }{{1, 3}, {1, 8}, {1, 16}, {1, 1000}, {1, 10}, {1000, 10}, {10000, 10}} {
		b.Run(fmt.Sprintf("services=%d/endpoints=%d", bb.services, bb.endpoints), func(b *testing.B) {
			table, _ := NewTable(cluster(bb.services, bb.endpoints))
			tuples := make([]packet.Tuple, 1<<14)
			first := *tuple("tcp 10.0.0.1:1 10.96.0.0:80")
			for i := range tuples {
				tuples[i] = first
				n := i * 7919 % bb.services
				tuples[i].Dst[14], tuples[i].Dst[15] = byte(n>>8), byte(n)
				tuples[i].SrcPort += uint16(i)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				table.Pick(&tuples[i&(1<<14-1)])
				i++
			}
		})
	}
}

// BenchmarkPickMiss measures what every flow between pods costs: its destination is no frontend. The last case is an
// address of a Service, but not a port of it.
func BenchmarkPickMiss(b *testing.B) {
	for _, bb := range []struct {
		services int
		dst      string
		want     packet.ChoiceKind
	}{
		{1, "10.0.1.1:80", packet.NotFrontend}, {1000, "10.0.1.1:80", packet.NotFrontend}, {10000, "10.0.1.1:80", packet.NotFrontend},
		{10000, "10.96.0.0:81", packet.UnknownPort},
	} {
		b.Run(fmt.Sprintf("services=%d/%v", bb.services, bb.dst), func(b *testing.B) {
			table, _ := NewTable(cluster(bb.services, 3))
			tuples := make([]packet.Tuple, 1<<14)
			for i := range tuples {
				tuples[i] = *tuple("tcp 10.0.0.1:1 " + bb.dst)
				tuples[i].SrcPort += uint16(i)
				tuples[i].Dst[14], tuples[i].Dst[15] = tuples[i].Dst[14]+byte(i*7919>>8)%4, byte(i*7919)
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if c := table.Pick(&tuples[i&(1<<14-1)]); c.Kind != bb.want {
					b.Fatal(c)
				}
				i++
			}
		})
	}
}

func BenchmarkNewTable(b *testing.B) {
	for _, bb := range []struct{ services, endpoints int }{{10000, 10}, {1, 1000}} {
		b.Run(fmt.Sprintf("services=%d/endpoints=%d", bb.services, bb.endpoints), func(b *testing.B) {
			c := cluster(bb.services, bb.endpoints)
			b.ReportAllocs()
			for b.Loop() {
				NewTable(c)
			}
		})
	}
}

// BenchmarkPortsAndEndpoints compiles one Service with many ports and many endpoints, whose ports share their tables.
func BenchmarkPortsAndEndpoints(b *testing.B) {
	for _, bb := range []struct{ ports, endpoints int }{{1000, 1000}, {3000, 1000}, {5000, 1000}, {1, 10_000}, {10, 10_000}, {100, 10_000}} {
		b.Run(fmt.Sprintf("ports=%d/endpoints=%d", bb.ports, bb.endpoints), func(b *testing.B) {
			s := manyPorts(bb.ports, bb.endpoints, false)
			for i := range s.Endpoints {
				s.Endpoints[i].Ready = true
			}
			c := Config{Services: roll.From([]*Service{s})}
			b.ReportAllocs()
			for b.Loop() {
				NewTable(c)
			}
		})
	}
}

// BenchmarkManyPorts measures the search for the endpoints of every port: one step for each pair of a port and an
// endpoint. No endpoint is ready, so that no Maglev table is made. With own, endpoints share no list of ports, as when
// they are in several EndpointSlices.
func BenchmarkManyPorts(b *testing.B) {
	for _, bb := range []struct{ ports, endpoints int }{{10, 1000}, {100, 1000}, {1000, 1000}} {
		for _, own := range []bool{false, true} {
			b.Run(fmt.Sprintf("ports=%d/endpoints=%d/own=%v", bb.ports, bb.endpoints, own), func(b *testing.B) {
				c := Config{Services: roll.From([]*Service{manyPorts(bb.ports, bb.endpoints, own)})}
				b.ReportAllocs()
				for b.Loop() {
					NewTable(c)
				}
			})
		}
	}
}

func manyPorts(ports, endpoints int, own bool) *Service {
	s := manyService(endpoints)
	s.Ports = nil
	var list []EndpointPort
	for i := range ports {
		name := fmt.Sprint("port-", i)
		s.Ports = append(s.Ports, Port{Name: name, Protocol: packet.TCP, Port: uint16(1 + i)})
		list = append(list, EndpointPort{name, packet.TCP, uint16(10_000 + i)})
	}
	for i := range s.Endpoints {
		s.Endpoints[i].Ready = false
		if s.Endpoints[i].Ports = list; own {
			s.Endpoints[i].Ports = slices.Clone(list)
		}
	}
	return &s
}
