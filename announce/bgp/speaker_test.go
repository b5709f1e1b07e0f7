package bgp

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"tapestry.dev/tapestry/announce"
)

var node = []netip.Addr{netip.MustParseAddr("172.31.0.11"), netip.MustParseAddr("fd00:31::11")}

// What a route says, to routers of either family and either kind.
func TestPath(t *testing.T) {
	pref := uint32(200)
	for _, tt := range []struct {
		router, prefix string
		asn            uint32
		want           string
	}{
		{"192.0.2.254", "198.51.100.1/32", 64512, "{Origin: i} {Nexthop: 0.0.0.0} {Communities: 65000:100} {LargeCommunity: [ 65000:1:2]}"},
		{"192.0.2.254", "198.51.100.1/32", 65000, "{Origin: i} {Nexthop: 0.0.0.0} {LocalPref: 200} {Communities: 65000:100} {LargeCommunity: [ 65000:1:2]}"},
		{"fd00::1", "198.51.100.1/32", 64512, "{Origin: i} {Nexthop: 172.31.0.11} {Communities: 65000:100} {LargeCommunity: [ 65000:1:2]}"},
		{"192.0.2.254", "2001:db8::1/128", 64512, "{Origin: i} {MpReach(ipv6-unicast): {Nexthop: fd00:31::11, NLRIs: [2001:db8::1/128:0]}} {Communities: 65000:100} {LargeCommunity: [ 65000:1:2]}"},
	} {
		s := &speaker{peer: announce.Peer{Address: netip.AddrPortFrom(netip.MustParseAddr(tt.router), 179), ASN: tt.asn, MyASN: 65000}}
		r := announce.Route{Prefix: netip.MustParsePrefix(tt.prefix), Communities: []string{"65000:100", "65000:1:2"}, LocalPref: &pref}
		hop, _ := s.nextHop(r.Prefix, node)
		path, err := s.path(&told{r, hop})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range path.Attrs {
			got = append(got, a.String())
		}
		if text := strings.Join(got, " "); text != tt.want || path.Nlri.String() != tt.prefix {
			t.Errorf("%s to AS %d at %s: %s %s\nwant %s", tt.prefix, tt.asn, tt.router, path.Nlri, text, tt.want)
		}
	}
	s := &speaker{peer: announce.Peer{Address: netip.MustParseAddrPort("192.0.2.254:179")}}
	if hop, ok := s.nextHop(netip.MustParsePrefix("2001:db8::/64"), node[:1]); ok {
		t.Errorf("a node without IPv6 is the next hop %s of an IPv6 route", hop)
	}
}

func TestCommunities(t *testing.T) {
	plain, large := communities([]string{"0:1", "65535:65535", "4294967295:0:7"})
	if !slices.Equal(plain, []uint32{1, 1<<32 - 1}) || len(large) != 1 || *large[0] != (bgp.LargeCommunity{ASN: 1<<32 - 1, LocalData2: 7}) {
		t.Errorf("%v, %+v", plain, large)
	}
}

// A password is a file's, whatever name a BGPPeer gives.
func TestPassword(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"tor": "secret\n", "empty": "\n", "long": strings.Repeat("x", 81), "spaces": " a b \r\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "outside"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &announcer{o: Options{Passwords: dir}}
	for key, want := range map[string]string{"": "", "tor": "secret", "spaces": " a b "} {
		if got, err := a.password(&announce.Peer{PasswordKey: key}); err != nil || got != want {
			t.Errorf("%q: %q, %v", key, got, err)
		}
	}
	for key, want := range map[string]string{"empty": "has 0 bytes", "long": "has 81 bytes", "none": `there is no password "none"`, "../outside": "there is no password"} {
		if got, err := a.password(&announce.Peer{PasswordKey: key}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v", key, got, err)
		}
	}
}

// What a router was told is told anew when it would see a difference, and not otherwise. The next hop is one.
func TestToldAnew(t *testing.T) {
	p := announce.Peer{Name: "tor", Address: netip.MustParseAddrPort("127.0.0.1:1"), ASN: 64512, MyASN: 65000, HoldTime: 9}
	s, err := start(t.Context(), p, "", netip.MustParseAddr("192.0.2.9"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	route := announce.Route{Prefix: netip.MustParsePrefix("2001:db8::1/128"), Peer: "tor"}
	tell := func(r announce.Route, addrs ...netip.Addr) *apiutil.Path {
		t.Helper()
		if err := s.tell([]announce.Route{r}, addrs); err != nil {
			t.Fatal(err)
		}
		return s.paths[r.Prefix]
	}
	first := tell(route, node...)
	if again := tell(route, node...); again != first {
		t.Error("it is told anew, and says the same")
	}
	other := netip.MustParseAddr("fd00:31::12")
	moved := tell(route, node[0], other)
	if moved == first || !strings.Contains(moved.Attrs[1].String(), "Nexthop: "+other.String()) {
		t.Errorf("with another address the node is announced as %v", moved.Attrs)
	}
	if tell(route, node[0]) != nil || s.missing == "" {
		t.Errorf("without an address of the family it is announced, and told is %q", s.missing)
	}
}

// A router that stays down is told once, in the same words: each other text is another Event, and another write to the
// Node.
func TestDown(t *testing.T) {
	const nobody = "127.0.0.1:1"
	p := announce.Peer{Name: "tor", Address: netip.MustParseAddrPort(nobody), ASN: 64512, MyASN: 65000, HoldTime: 9}
	s, err := start(t.Context(), p, "", netip.MustParseAddr("192.0.2.9"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	at := func(d time.Duration) string { return s.state(context.Background(), s.session.Since.Add(d)).Problem }
	if got := at(late - 1); got != "" {
		t.Errorf("it is told early: %s", got)
	}
	first := at(late)
	if want := "there has been no session with the router at " + nobody + " (AS 64512) for more than 15s: see that it knows this node, and asks for no password"; first != want {
		t.Errorf("got  %s\nwant %s", first, want)
	}
	for _, d := range []time.Duration{time.Second, 5 * time.Second, time.Hour} {
		if got := at(late + d); got != first {
			t.Errorf("after %s more it is told as: %s", d, got)
		}
	}
}
