package services

import (
	"tapestry.dev/tapestry/netstack/packet"
	"testing"
)

// Ports that the same pods serve share one Maglev table, whatever their target ports, and choose the same pod for a
// hash. A port that other pods serve has its own.
func TestPortsShareTables(t *testing.T) {
	s := manyPorts(5, 1000, false)
	for i := range s.Endpoints {
		s.Endpoints[i].Ready = true
	}
	s.Ports = append(s.Ports, Port{Name: "other", Protocol: packet.TCP, Port: 9})
	own := append([]EndpointPort{{"other", packet.TCP, 99}}, s.Endpoints[0].Ports...)
	for i := range s.Endpoints[:500] {
		s.Endpoints[i].Ports = own
	}
	table := tableOf(*s)
	first, tables := &table.units.At(0).sets[setIndex(0, false, true)], map[*uint32]bool{}
	for j := range s.Ports {
		set := &table.units.At(0).sets[setIndex(j, false, true)]
		tables[&set.slots[0]] = true
		want := 1000
		if j == 5 {
			want = 500
		}
		if len(set.backends) != want {
			t.Fatalf("port %d has %d backends, want %d", j, len(set.backends), want)
		}
		for h := uint64(0); j < 5 && h < 10_000; h++ {
			one, two := first.winner(finish(h)), set.winner(finish(h))
			if one.id&podMask != two.id&podMask || one.to.Addr != two.to.Addr || (j > 0) == (one.id == two.id) {
				t.Fatalf("hash %d leads to %v at port 0 and to %v at port %d", h, one, two, j)
			}
		}
	}
	if len(tables) != 2 {
		t.Errorf("%d tables for two groups of pods", len(tables))
	}
}
