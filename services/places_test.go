package services

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/packet"
)

// TestPlaces: ranges name addresses of their family and leave the other as it is, as in kube-proxy; loopback and
// addresses that the Node does not have count like others.
func TestPlaces(t *testing.T) {
	host := addresstest.Addrs("10.9.0.1", "127.0.0.1", "192.0.2.1", "192.0.2.9", "::1", "2001:db8::1", "2001:db8:9::1", "fe80::1")
	for _, tt := range []struct {
		texts    string
		all4     bool
		of4      string
		all6     bool
		of6      string
		portless string // of the Nodes' addresses
	}{
		{"", true, "", true, "", ""},
		{"192.0.2.0/24", false, "192.0.2.1 192.0.2.9", true, "", "198.51.100.1"},
		{"192.0.2.9/32 10.0.0.0/8", false, "10.9.0.1 192.0.2.9", true, "", "192.0.2.1 198.51.100.1"},
		{"127.0.0.0/8 2001:db8:9::/48", false, "127.0.0.1", false, "2001:db8:9::1", "192.0.2.1 192.0.2.9 198.51.100.1 2001:db8::1"},
		{"fe80::/10", true, "", false, "", "2001:db8::1"},
		{"0.0.0.0/0 192.0.2.1/32", true, "", true, "", ""},
		{"primary", false, "192.0.2.1", false, "2001:db8::1", "192.0.2.9"},
	} {
		p, err := ParsePlaces(strings.Fields(tt.texts))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Everywhere(true); got != tt.all4 {
			t.Errorf("%q: all of IPv4 %v", tt.texts, got)
		}
		if got := p.Everywhere(false); got != tt.all6 {
			t.Errorf("%q: all of IPv6 %v", tt.texts, got)
		}
		first4, first6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
		if got := p.Of(true, host, first4); !tt.all4 && !slices.Equal(got, addresstest.Addrs(strings.Fields(tt.of4)...)) {
			t.Errorf("%q: of IPv4 %v, want %s", tt.texts, got, tt.of4)
		}
		if got := p.Of(false, host, first6); !tt.all6 && !slices.Equal(got, addresstest.Addrs(strings.Fields(tt.of6)...)) {
			t.Errorf("%q: of IPv6 %v, want %s", tt.texts, got, tt.of6)
		}
		var portless []string
		for _, a := range [][2]string{{"192.0.2.1", "192.0.2.1"}, {"192.0.2.9", "192.0.2.1"}, {"198.51.100.1", "198.51.100.1"}, {"2001:db8::1", "2001:db8::1"}} {
			if !p.Serves(netip.MustParseAddr(a[0]), netip.MustParseAddr(a[1])) {
				portless = append(portless, a[0])
			}
		}
		if got := strings.Join(portless, " "); got != tt.portless {
			t.Errorf("%q: without node ports are %s, want %s", tt.texts, got, tt.portless)
		}
	}
	for text, want := range map[string]string{
		"192.0.2.1": `"192.0.2.1" is no range`, "primary 10.0.0.0/8": "stands beside ranges", "::ffff:10.0.0.0/104": "in the form of IPv6", "eth0": "or primary",
	} {
		if _, err := ParsePlaces(strings.Fields(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

// TestNoNodePorts: at a node's address without node ports their numbers are the host's own, for packets of pods. A
// client of a host socket has its backend at every address at which there is a socket.
func TestNoNodePorts(t *testing.T) {
	c := testConfig()
	c.NoNodePorts = addresstest.Addrs("192.0.2.1")
	table, _ := NewTable(c)
	for _, tt := range []struct {
		tuple     string
		pod, host packet.ChoiceKind
	}{
		{"tcp 10.0.0.7:1000 192.0.2.1:30080", packet.NotFrontend, packet.Picked},
		{"tcp 10.0.0.7:1000 192.0.2.2:30080", packet.Picked, packet.Picked},
		{"tcp 10.0.0.7:1000 [2001:db8::1]:30080", packet.Picked, packet.Picked},
		{"tcp 203.0.113.7:1000 10.9.0.1:30080", packet.NotFrontend, packet.Picked},
		{"tcp 203.0.113.7:1000 127.0.0.1:30080", packet.NotFrontend, packet.Picked},
		{"tcp 203.0.113.7:1000 10.96.0.1:30080", packet.UnknownPort, packet.UnknownPort},
		{"tcp 203.0.113.7:1000 10.9.0.1:30099", packet.NotFrontend, packet.NotFrontend},
	} {
		at := tuple(tt.tuple)
		if got := table.Pick(at).Kind; got != tt.pod {
			t.Errorf("%s: a pod's packet gets %v, want %v", tt.tuple, got, tt.pod)
		}
		if got := table.PickOnHost(at).Kind; got != tt.host {
			t.Errorf("%s: a client of a socket gets %v, want %v", tt.tuple, got, tt.host)
		}
	}
	again := c
	again.NoNodePorts = nil
	next, _ := table.Update(again)
	if kind := next.Pick(tuple("tcp 10.0.0.7:1000 192.0.2.1:30080")).Kind; kind != packet.Picked {
		t.Errorf("when it has node ports again: %v", kind)
	}
}

// Users write the addresses of endpoints. Those that would have had one hash under known constants have many.
func TestHashesCannotBeChosen(t *testing.T) {
	k := frontKey{port: 80, proto: packet.TCP}
	rest := uint64(k.port)<<16 | uint64(k.proto)<<8
	hashes := map[uint64]bool{}
	for n := range uint64(1000) {
		hi := 0xfd00_0000_0000_0000 | n
		binary.LittleEndian.PutUint64(k.addr[:8], hi)
		binary.LittleEndian.PutUint64(k.addr[8:], mix(hi^mixA, mixB)^rest*mixD)
		hashes[k.hash()] = true
	}
	if len(hashes) < 999 {
		t.Errorf("1,000 keys have %d hashes", len(hashes))
	}
}
