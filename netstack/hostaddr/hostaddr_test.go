package hostaddr_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"tapestry.dev/tapestry/netstack/hostaddr"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestWatch expects to be told of addresses that come and go on any interface, such as a loopback alias or one on a
// dummy interface, and of those of an interface that is deleted.
func TestWatch(t *testing.T) {
	lists, ended := make(chan []netip.Addr, 100), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { ended <- hostaddr.Watch(ctx, func(list []netip.Addr) { lists <- list }) }()
	until := func(what string, so func([]netip.Addr) bool) {
		t.Helper()
		for deadline := time.After(await.Patience); ; {
			select {
			case list := <-lists:
				if !slices.IsSortedFunc(list, netip.Addr.Compare) || len(slices.Compact(slices.Clone(list))) != len(list) {
					t.Fatalf("the list is not sorted, or has an address twice: %v", list)
				}
				if so(list) {
					return
				}
			case err := <-ended:
				t.Fatalf("%s: it ended: %v", what, err)
			case <-deadline:
				t.Fatalf("%s: not told", what)
			}
		}
	}
	has := func(text string) func([]netip.Addr) bool {
		return func(list []netip.Addr) bool { return slices.Contains(list, netip.MustParseAddr(text)) }
	}
	hasNot := func(text string) func([]netip.Addr) bool {
		return func(list []netip.Addr) bool { return !has(text)(list) }
	}
	until("at once", func([]netip.Addr) bool { return true })
	alias := netip.MustParsePrefix("10.99.0.1/32")
	must(t, tap.AddAddr(nil, "lo", alias))
	until("a loopback alias", has("10.99.0.1"))
	must(t, tap.NewBridge(nil, "docker9", 1500))
	must(t, tap.SetSysctl(nil, "net/ipv6/conf/docker9/disable_ipv6", "0"))
	must(t, tap.AddAddr(nil, "docker9", netip.MustParsePrefix("172.17.0.1/16")))
	must(t, tap.AddAddr(nil, "docker9", netip.MustParsePrefix("2001:db8:9::1/64")))
	until("IPv6", has("2001:db8:9::1"))
	if list, err := hostaddr.List(); err != nil || !has("172.17.0.1")(list) {
		t.Fatalf("%v, %v", list, err)
	}
	lo, err := netlink.LinkByName("lo")
	must(t, err)
	must(t, netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: alias.Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}}))
	until("the alias is gone", hasNot("10.99.0.1"))
	must(t, tap.DeleteLink(nil, "docker9"))
	until("the interface is gone", func(list []netip.Addr) bool { return hasNot("172.17.0.1")(list) && hasNot("2001:db8:9::1")(list) })
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(await.Patience):
		t.Error("it did not end")
	}
}
