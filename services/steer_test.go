package services

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// steeringTable is a Table of node a with Services over these endpoints, all of port 80 to 8080, one for each list.
func steeringTable(t *testing.T, before *Table, lists ...[]Endpoint) *Table {
	t.Helper()
	c := Config{Node: "a", NodeAddrs: addresstest.Addrs("192.0.2.1"), OwnAddrs: addresstest.Addrs("192.0.2.1")}
	for i, list := range lists {
		c.Services = c.Services.Append(&Service{
			Namespace: "d", Name: string(rune('s' + i)), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + i)})},
			Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}, Endpoints: list,
		})
	}
	table, problems := before.Update(c)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return table
}

// steered returns where connections to an endpoint go, sorted; nil if they are not steered.
func steered(table *Table, to string, wrapped bool) (list []string) {
	for port := range uint16(64) {
		f := tuple("tcp 10.9.0.1:30000 " + to)
		f.SrcPort += port
		c := table.Steer(f, wrapped)
		if c.Kind != packet.Picked {
			continue
		}
		if !table.Leads(f, c.Backend, c.To.Port) || table.Backend(c.Backend, c.To.Addr) != packet.BackendReady {
			list = append(list, "a backend that the Table does not know")
		}
		list = append(list, c.To.AddrPort().String())
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func TestSteer(t *testing.T) {
	const leaves = "10.0.0.1:8080"
	for _, c := range []struct {
		name   string
		before [][]Endpoint // if there was another Table
		lists  [][]Endpoint
		want   []string
	}{
		{"ready", nil, [][]Endpoint{eps("10.0.0.1 a rs", "10.0.0.2 a rs")}, nil},
		{"not ready, but there", nil, [][]Endpoint{eps("10.0.0.1 a", "10.0.0.2 a rs")}, nil},
		{"terminating", nil, [][]Endpoint{eps("10.0.0.1 a st", "10.0.0.2 a rs", "10.0.0.3 a rs")}, []string{"10.0.0.2:8080", "10.0.0.3:8080"}},
		{"those of this node first", nil, [][]Endpoint{eps("10.0.0.1 a t", "10.0.0.2 a rs", "10.0.1.3 b rs")}, []string{"10.0.0.2:8080"}},
		{"of another node", nil, [][]Endpoint{eps("10.0.0.1 a t", "10.0.0.2 a st", "10.0.1.3 b rs")}, []string{"10.0.1.3:8080"}},
		{"terminating on another node", nil, [][]Endpoint{eps("10.0.0.1 b st", "10.0.0.2 a rs")}, nil},
		{"nobody else", nil, [][]Endpoint{eps("10.0.0.1 a st")}, nil},
		{"nobody else is ready", nil, [][]Endpoint{eps("10.0.0.1 a st", "10.0.0.2 a st", "10.0.1.3 b st", "10.0.1.4 b")}, nil},
		{"gone", [][]Endpoint{eps("10.0.0.1 a rs", "10.0.1.3 b rs")}, [][]Endpoint{eps("10.0.1.3 b rs")}, []string{"10.0.1.3:8080"}},
		{"its Service is gone", [][]Endpoint{eps("10.0.0.1 a rs", "10.0.1.3 b rs")}, nil, nil},
		{"gone, and another Service has it", [][]Endpoint{eps("10.0.0.1 a rs", "10.0.1.3 b rs"), nil}, [][]Endpoint{eps("10.0.1.3 b rs"), eps("10.0.0.1 a rs")}, nil},
		{"of two Services, one of a part", nil, [][]Endpoint{
			eps("10.0.0.1 a st", "10.0.0.2 a rs", "10.0.1.3 b rs", "10.0.1.4 b rs"), eps("10.0.0.1 a st", "10.0.1.4 b rs"),
		}, []string{"10.0.1.4:8080"}},
		{"of two Services with nothing else in common", nil, [][]Endpoint{eps("10.0.0.1 a st", "10.0.0.2 a rs"), eps("10.0.0.1 a st", "10.0.1.4 b rs")}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := Empty(NewState(nil))
			if c.before != nil {
				table = steeringTable(t, table, c.before...)
			}
			table = steeringTable(t, table, c.lists...)
			if got := steered(table, leaves, false); !slices.Equal(got, c.want) {
				t.Errorf("goes to %v, want %v", got, c.want)
			}
			if got := table.IsEndpoint(packet.EndpointFrom(netip.MustParseAddrPort(leaves)), packet.TCP); !got && c.want != nil {
				t.Error("clients outside are told that it is no endpoint")
			}
			if got := steered(table, "10.0.0.1:8081", false); got != nil {
				t.Errorf("another port of it goes to %v", got)
			}
			f := tuple("tcp 10.9.0.1:30000 " + leaves)
			if n := testing.AllocsPerRun(10, func() { table.Steer(f, false) }); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

// A connection is steered to no endpoint at which it would be dropped: one without a known node, which may lie outside
// of the cluster, or a host, for a client that came wrapped.
func TestSteerWhereItArrives(t *testing.T) {
	const leaves = "10.0.0.1:8080"
	lost := func(spec string) Endpoint {
		e := ep(spec)
		e.Node = ""
		return e
	}
	for _, c := range []struct {
		name           string
		list           []Endpoint
		plain, wrapped []string
	}{
		{"without a node", []Endpoint{ep("10.0.0.1 a st"), lost("198.51.100.9 - rs"), ep("10.0.1.3 b rs")}, []string{"10.0.1.3:8080"}, []string{"10.0.1.3:8080"}},
		{"nothing but one without a node", []Endpoint{ep("10.0.0.1 a st"), lost("198.51.100.9 - rs")}, nil, nil},
		{"a host", eps("10.0.0.1 a st", "192.0.2.1 a rs", "10.0.1.3 b rs"), []string{"192.0.2.1:8080"}, []string{"10.0.1.3:8080"}},
		{"nothing but a host", eps("10.0.0.1 a st", "192.0.2.1 a rs"), []string{"192.0.2.1:8080"}, nil},
	} {
		table := steeringTable(t, Empty(NewState(nil)), c.list)
		if got := steered(table, leaves, false); !slices.Equal(got, c.plain) {
			t.Errorf("%s: goes to %v, want %v", c.name, got, c.plain)
		}
		if got := steered(table, leaves, true); !slices.Equal(got, c.wrapped) {
			t.Errorf("%s: a client that came wrapped goes to %v, want %v", c.name, got, c.wrapped)
		}
		if !table.IsEndpoint(packet.EndpointFrom(netip.MustParseAddrPort("198.51.100.9:8080")), packet.TCP) && c.list[1].Node == "" {
			t.Errorf("%s: clients outside are told that it is no endpoint", c.name)
		}
	}
}

// BenchmarkSteer leads connections away from an endpoint of two Services, with one host's many ports as the others:
// nearly none of them is in both Services.
func BenchmarkSteer(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			lists := [2][]Endpoint{eps("10.0.0.1 a st"), eps("10.0.0.1 a st")}
			for i := range 2 * n {
				e := ep("10.0.1.2 b rs")
				e.Ports = []EndpointPort{{"web", packet.TCP, uint16(10_000 + i)}}
				lists[i%2] = append(lists[i%2], e)
			}
			var table *Table
			c := Config{Node: "a"}
			for i, list := range lists {
				c.Services = c.Services.Append(&Service{
					Namespace: "d", Name: string(rune('s' + i)), ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + i)})},
					Ports: []Port{{Name: "web", Protocol: packet.TCP, Port: 80}}, Endpoints: list,
				})
			}
			table, _ = Empty(NewState(nil)).Update(c)
			f := tuple("tcp 10.9.0.1:30000 10.0.0.1:8080")
			b.ReportAllocs()
			for b.Loop() {
				table.Steer(f, false)
			}
		})
	}
}
