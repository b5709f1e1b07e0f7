package leaving

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

func endpoint(addr byte, service string, is Standing) Endpoint {
	return Endpoint{
		Key:      Key{Endpoint: packet.Endpoint{Addr: packet.AddrFrom(netip.AddrFrom4([4]byte{10, 0, 0, addr})), Port: 80}, Proto: packet.TCP},
		Port:     Port{Namespace: "d", Name: service, Proto: packet.TCP},
		Standing: is,
	}
}

func TestLeaving(t *testing.T) {
	now := time.Hour
	m := New(func() time.Duration { return now })
	names := func(addr byte) (list []string) {
		for _, p := range m.Leaving(endpoint(addr, "", Stays).Key) {
			list = append(list, p.Name)
		}
		slices.Sort(list)
		return list
	}
	want := func(when string, list ...string) {
		t.Helper()
		if got := names(1); !slices.Equal(got, list) {
			t.Errorf("%s: leaves %v, want %v", when, got, list)
		}
	}
	want("unknown")
	a, b := endpoint(1, "a", Stays), endpoint(1, "b", Stays)
	m.Change(nil, []Endpoint{a, b})
	want("ready")
	leaves := a
	leaves.Standing = Leaves
	m.Change([]Endpoint{a}, []Endpoint{leaves})
	want("one Service still has it")
	m.Change([]Endpoint{b}, nil)
	want("it has left one and terminates in the other", "a", "b")
	m.Change([]Endpoint{leaves}, nil)
	want("it has left both", "a", "b")
	m.Change(nil, []Endpoint{a})
	want("it has come back")
	m.Change([]Endpoint{a}, nil)
	now += linger - 1
	m.Change(nil, []Endpoint{endpoint(2, "c", Stays)})
	want("after a minute less a bit", "a", "b")
	now++
	m.Change(nil, []Endpoint{endpoint(3, "c", Stays)})
	if want("after a minute"); m.Len() != 2 {
		t.Errorf("%d endpoints are remembered, want 2", m.Len())
	}
	// One pod terminates, and another has its address already.
	m.Change(nil, []Endpoint{endpoint(1, "a", Stays), endpoint(1, "a", Leaves)})
	want("another pod has the address")
}

// Whoever makes Services that come and go cannot fill the memory.
func TestLeavingIsBounded(t *testing.T) {
	m := New(func() time.Duration { return time.Hour })
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var list []Endpoint
		for range 10 {
			e := endpoint(byte(r.IntN(256)), "s", Stays)
			e.Endpoint.Port = uint16(r.IntN(1 << 16))
			list = append(list, e)
		}
		m.Change(nil, list)
		m.Change(list, nil)
	}
	if m.Len() > most || len(m.left) > most {
		t.Errorf("%d endpoints are remembered, want %d at most", m.Len(), most)
	}
}
