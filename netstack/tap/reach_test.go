package tap_test

import (
	"net/netip"
	"slices"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/tap"
)

func TestWaysTo(t *testing.T) {
	ns := newNamespace(t)
	for _, err := range []error{
		tap.SetUp(ns, "lo"), tap.NewVeth(tap.End{Namespace: ns, Name: "a"}, tap.End{Namespace: ns, Name: "b"}, 0),
		tap.SetSysctl(ns, "net.ipv6.conf.all.disable_ipv6", "0"),
		tap.AddAddr(ns, "a", netip.MustParsePrefix("192.0.2.1/24")), tap.AddAddr(ns, "a", netip.MustParsePrefix("2001:db8::1/64")),
		tap.AddRoute(ns, "b", tap.Route{Dst: netip.MustParsePrefix("203.0.113.0/24")}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	got, err := tap.WaysTo(ns, addresstest.Addrs("192.0.2.1", "192.0.2.9", "203.0.113.7", "198.51.100.1", "2001:db8::9", "2001:db8:1::1"))
	want := []tap.Way{{Link: "lo", Own: true}, {Link: "a"}, {Link: "b"}, {}, {Link: "a"}, {}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if links, err := tap.LinksWith(ns, addresstest.Addrs("192.0.2.1", "2001:db8::1", "203.0.113.7")); err != nil || !slices.Equal(links, []string{"a"}) {
		t.Errorf("the interfaces are %v, %v", links, err)
	}
}

func TestNotForwarding(t *testing.T) {
	ns := newNamespace(t)
	if err := tap.NewVeth(tap.End{Namespace: ns, Name: "a"}, tap.End{Namespace: ns, Name: "b"}, 0); err != nil {
		t.Fatal(err)
	}
	set := func(key, value string) {
		if err := tap.SetSysctl(ns, key, value); err != nil {
			t.Fatal(err)
		}
	}
	check := func(is4 bool, want ...string) {
		t.Helper()
		if got, err := tap.NotForwarding(ns, is4, []string{"a", "b"}); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	set("net.ipv4.ip_forward", "0")
	set("net.ipv6.conf.all.forwarding", "0")
	check(true, "net.ipv4.conf.a.forwarding", "net.ipv4.conf.b.forwarding")
	check(false, "net.ipv6.conf.all.forwarding")
	set("net.ipv4.conf.a.forwarding", "1")
	check(true, "net.ipv4.conf.b.forwarding")
	set("net.ipv4.ip_forward", "1")
	check(true)
	set("net.ipv6.conf.all.forwarding", "1")
	check(false)
}
