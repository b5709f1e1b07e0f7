package hosttap_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/keeper"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }

var both = hosttap.Config{
	PodCIDRs: addresstest.Prefixes("10.244.1.0/24", "fd00:244:1::/64"),
	Pods:     addresstest.Prefixes("10.244.0.0/16", "fd00:244::/56"),
	Services: addresstest.Prefixes("10.96.0.0/12"),
	MTU:      1420, Owner: userns.Mapped(65532),
}

type world struct {
	ns     *tap.Namespace
	keeper *keeper.Keeper
}

func newWorld(t *testing.T) world {
	t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	w := world{ns, keeper.New()}
	t.Cleanup(func() { w.keeper.Close(); ns.Close() })
	return w
}

func (w world) ensure(t *testing.T, c hosttap.Config) {
	t.Helper()
	if err := hosttap.Ensure(w.ns, w.keeper, c); err != nil {
		t.Fatal(err)
	}
}

// device describes the host TAP as the kernel reports it.
type device struct {
	index, mtu    int
	owner         uint32
	addrs, routes []string
}

func (w world) device(t *testing.T) device {
	t.Helper()
	h, err := w.ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	l, err := h.LinkByName(hosttap.Name)
	if err != nil {
		t.Fatal(err)
	}
	d := device{index: l.Attrs().Index, mtu: l.Attrs().MTU, owner: l.(*netlink.Tuntap).Owner}
	addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			d.addrs = append(d.addrs, a.IPNet.String())
		}
	}
	routes, err := h.RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Protocol != unix.RTPROT_KERNEL && r.Gw != nil {
			d.routes = append(d.routes, r.Dst.String()+" via "+r.Gw.String()+" src "+r.Src.String())
		}
	}
	slices.Sort(d.addrs)
	slices.Sort(d.routes)
	return d
}

// meta returns what the keeper tells the agent.
func (w world) meta(t *testing.T) hosttap.Meta {
	t.Helper()
	it, err := w.keeper.Get(hosttap.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer it.File.Close()
	var m hosttap.Meta
	if err := json.Unmarshal(it.Meta, &m); err != nil {
		t.Fatal(err)
	}
	if info, err := tap.Check(it.File); err != nil || info.Name != m.Name {
		t.Fatalf("the kept descriptor is of %q, %v", info.Name, err)
	}
	return m
}

func TestEnsure(t *testing.T) {
	w := newWorld(t)
	w.ensure(t, both)
	first := w.device(t)
	wantAddrs := []string{"10.244.1.2/32", "fd00:244:1::2/128"}
	wantRoutes := []string{
		"10.244.0.0/16 via 169.254.1.1 src 10.244.1.2",
		"10.96.0.0/12 via 169.254.1.1 src 10.244.1.2",
		"fd00:244::/56 via fe80::1 src fd00:244:1::2",
	}
	if first.mtu != 1420 || int(first.owner) != both.Owner || !slices.Equal(first.addrs, wantAddrs) || !slices.Equal(first.routes, wantRoutes) {
		t.Errorf("got %+v, want addresses %v, routes %v", first, wantAddrs, wantRoutes)
	}
	if m := w.meta(t); m.MTU != 1420 || m.Name != "tapestry0" || !slices.Equal(m.Addrs, hosttap.Addrs(both.PodCIDRs)) ||
		!slices.Equal(m.Pods, both.Pods) || !slices.Equal(m.Services, both.Services) {
		t.Errorf("the agent would learn %+v", m)
	}

	w.ensure(t, both)
	if again := w.device(t); again.index != first.index || !slices.Equal(again.routes, first.routes) {
		t.Errorf("the second time %+v, the first time %+v", again, first)
	}

	// The node gets another range, and none of IPv6.
	w.ensure(t, hosttap.Config{PodCIDRs: addresstest.Prefixes("10.244.7.0/24"), Pods: addresstest.Prefixes("10.244.0.0/16"), MTU: 1300, Owner: userns.Mapped(1000)})
	changed := w.device(t)
	if changed.index != first.index || changed.mtu != 1300 || int(changed.owner) != userns.Mapped(1000) ||
		!slices.Equal(changed.addrs, []string{"10.244.7.2/32"}) || !slices.Equal(changed.routes, []string{"10.244.0.0/16 via 169.254.1.1 src 10.244.7.2"}) {
		t.Errorf("after the change: %+v", changed)
	}
	if m := w.meta(t); m.MTU != 1300 || len(m.Addrs) != 1 || len(m.Pods) != 1 || len(m.Services) != 0 {
		t.Errorf("after the change the agent would learn %+v", m)
	}
}

// TestDeviceRemoved deletes the interface while the keeper holds its descriptor.
func TestDeviceRemoved(t *testing.T) {
	w := newWorld(t)
	w.ensure(t, both)
	first := w.device(t)
	if err := tap.DeleteLink(w.ns, hosttap.Name); err != nil {
		t.Fatal(err)
	}
	w.ensure(t, both)
	if again := w.device(t); again.index == first.index || len(again.routes) != 3 {
		t.Errorf("got %+v after %+v was deleted", again, first)
	}
	w.meta(t)
}

// TestKeeperLost shows that the device outlives its keeper, and is taken over when nobody has it open any more.
func TestKeeperLost(t *testing.T) {
	w := newWorld(t)
	w.ensure(t, both)
	first := w.device(t)
	agent, err := w.keeper.Get(hosttap.Key)
	if err != nil {
		t.Fatal(err)
	}
	w.keeper.Close()
	w.keeper = keeper.New()
	err = hosttap.Ensure(w.ns, w.keeper, both)
	if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "stop it") {
		t.Errorf("while an agent has the device open: %v", err)
	}
	agent.File.Close()
	w.ensure(t, both)
	if again := w.device(t); again.index != first.index {
		t.Errorf("another device was made: %+v, %+v", again, first)
	}
	w.meta(t)
}

// TestFind has everybody gone who held the device. Its owner attaches again without a capability, and learns what the
// keeper told the agent before.
func TestFind(t *testing.T) {
	w := newWorld(t)
	mine := both
	mine.Owner = os.Geteuid()
	lost := func() {
		w.keeper.Close()
		w.keeper = keeper.New()
	}
	find := func() error {
		return w.ns.Do(func() error {
			defer withoutCapabilities(t)()
			return hosttap.Find(nil, w.keeper)
		})
	}
	if err := find(); !errors.Is(err, tap.ErrNoDevice) {
		t.Errorf("without a device: %v", err)
	}
	w.ensure(t, mine)
	before, told := w.device(t), w.meta(t)
	if err := find(); !errors.Is(err, unix.EBUSY) {
		t.Errorf("while a keeper has the device: %v", err)
	}
	lost()
	if err := find(); err != nil {
		t.Fatal(err)
	}
	if after, now := w.device(t), w.meta(t); !reflect.DeepEqual(after, before) || !reflect.DeepEqual(now, told) {
		t.Errorf("found %+v with %+v, want %+v with %+v", after, now, before, told)
	}

	other := userns.Mapped(65532)
	if other == mine.Owner {
		return // a namespace with one user has nobody else
	}
	mine.Owner = other
	w.ensure(t, mine)
	lost()
	if err := find(); !errors.Is(err, unix.EPERM) {
		t.Errorf("the device is somebody else's: %v", err)
	}
}

// withoutCapabilities takes the capabilities from the thread, which must be locked, and returns a function that gives
// them back.
func withoutCapabilities(t *testing.T) func() {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	none := data
	none[0].Effective, none[1].Effective = 0, 0
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Capset(&header, &data[0]); err != nil {
			t.Error(err)
		}
	}
}

// TestManyRanges has more ranges than fit where the device tells them.
func TestManyRanges(t *testing.T) {
	w := newWorld(t)
	many := both
	many.Owner, many.Pods = os.Geteuid(), nil
	for i := range 40 {
		many.Pods = append(many.Pods, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24))
	}
	w.ensure(t, many)
	w.keeper.Close()
	w.keeper = keeper.New()
	if err := hosttap.Find(w.ns, w.keeper); err != nil {
		t.Fatal(err)
	}
	if m := w.meta(t); len(m.Pods)+len(m.Services) != 0 || len(m.Addrs) != 2 {
		t.Errorf("found %+v, want no ranges rather than some of them", m)
	}
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	w.ensure(t, both)
	for range 2 { // the second time there is no device
		if err := hosttap.Remove(w.ns); err != nil {
			t.Fatal(err)
		}
	}
	h, err := w.ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if _, err := h.LinkByName(hosttap.Name); err == nil {
		t.Error("the device is still there")
	}
}

// TestLoadBalancers has ranges of load balancers routed into the device. The agent learns them, also when nobody is
// left who held the device, and they go with the next run without them.
func TestLoadBalancers(t *testing.T) {
	w := newWorld(t)
	c := both
	c.Owner = os.Geteuid()
	c.LoadBalancers = addresstest.Prefixes("203.0.113.0/24", "2001:db8:1b::/64")
	w.ensure(t, c)
	routes := w.device(t).routes
	for _, want := range []string{"203.0.113.0/24 via 169.254.1.1 src 10.244.1.2", "2001:db8:1b::/64 via fe80::1 src fd00:244:1::2"} {
		if !slices.Contains(routes, want) {
			t.Errorf("the routes are %q, want %q among them", routes, want)
		}
	}
	if m := w.meta(t); !slices.Equal(m.LoadBalancers, c.LoadBalancers) || !slices.Equal(m.Services, c.Services) {
		t.Errorf("the agent would learn %+v", m)
	}
	told := w.meta(t)
	w.keeper.Close()
	w.keeper = keeper.New()
	if err := w.ns.Do(func() error { return hosttap.Find(nil, w.keeper) }); err != nil {
		t.Fatal(err)
	}
	if now := w.meta(t); !reflect.DeepEqual(now, told) {
		t.Errorf("found %+v, want %+v", now, told)
	}
	c.LoadBalancers = nil
	w.ensure(t, c)
	if d, m := w.device(t), w.meta(t); len(d.routes) != 3 || len(m.LoadBalancers) != 0 {
		t.Errorf("afterwards: %+v, %+v", d, m)
	}
}

// TestLoadBalancersOfHost: a range in which the host has an address or a route is refused. A route to it through the
// device would cut the host off.
func TestLoadBalancersOfHost(t *testing.T) {
	w := newWorld(t)
	if err := errors.Join(
		tap.NewVeth(tap.End{Namespace: w.ns, Name: "eth0"}, tap.End{Namespace: w.ns, Name: "peer"}, 0),
		tap.AddAddr(w.ns, "eth0", netip.MustParsePrefix("192.0.2.1/24")),
		tap.AddRoute(w.ns, "eth0", tap.Route{Dst: netip.MustParsePrefix("198.51.100.0/24"), Via: netip.MustParseAddr("192.0.2.9")}),
	); err != nil {
		t.Fatal(err)
	}
	for r, want := range map[string]string{
		"192.0.2.0/24": "eth0 has the address 192.0.2.1", "0.0.0.0/0": "has the address", "192.0.2.1/32": "the address 192.0.2.1",
		"198.51.100.0/24": "eth0 has the route to 198.51.100.0/24",
	} {
		c := both
		c.LoadBalancers = addresstest.Prefixes(r)
		if err := hosttap.Ensure(w.ns, w.keeper, c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", r, err, want)
		}
	}
	c := both
	c.LoadBalancers = addresstest.Prefixes("192.0.2.128/28") // of the host's network, as addresses that are announced there
	w.ensure(t, c)
}
