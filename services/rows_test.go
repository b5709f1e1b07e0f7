package services

import (
	"net/netip"
	"strings"
	"tapestry.dev/tapestry/roll"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
)

// A row shows only so many backends of a frontend that the row fits into a message of the local API.
func TestRowsAreShort(t *testing.T) {
	s := &Service{Namespace: "d", Name: "web", ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")}, Ports: []Port{{Protocol: packet.TCP, Port: 80}}}
	for i := range 5000 {
		s.Endpoints = append(s.Endpoints, Endpoint{
			Addr: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), Ready: true, Serving: true,
			Ports: []EndpointPort{{Protocol: packet.TCP, Port: 8080}},
		})
	}
	table, problems := NewTable(Config{Services: roll.From([]*Service{s})})
	rows := table.Rows()
	if len(problems) > 0 || len(rows) != 1 || len(rows[0].Backends) > 500 || !strings.HasSuffix(rows[0].Backends, ",and 4980 more") {
		t.Errorf("got %+v", rows)
	}
}
