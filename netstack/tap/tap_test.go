package tap_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

var (
	macA = packet.MAC{2, 0, 0, 0, 0, 0xa}
	macB = packet.MAC{2, 0, 0, 0, 0, 0xb}
	podA = []netip.Addr{netip.MustParseAddr("10.1.0.5"), netip.MustParseAddr("fd00:1::5")}
	podB = []netip.Addr{netip.MustParseAddr("10.1.0.6"), netip.MustParseAddr("fd00:1::6")}
)

func newNamespace(t testing.TB) *tap.Namespace {
	t.Helper()
	ns, err := tap.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := tap.SetUp(ns, "lo"); err != nil {
		t.Fatal(err)
	}
	return ns
}

func newPod(t testing.TB, addrs []netip.Addr, mac packet.MAC) (*tap.Namespace, *os.File) {
	t.Helper()
	ns := newNamespace(t)
	f, err := tap.Create(ns, tap.PodConfig(addrs, mac, 1400))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return ns, f
}

func newDevice(t testing.TB, f *os.File, o tap.Options) *tap.Device {
	t.Helper()
	d, err := tap.NewDevice(f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func handle(t testing.TB, ns *tap.Namespace) *netlink.Handle {
	t.Helper()
	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

func linkNames(t testing.TB, ns *tap.Namespace) []string {
	t.Helper()
	links, err := handle(t, ns).LinkList()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names
}

// The kernel takes IPv6 from an interface with less than its least MTU. That is said, and not that it has none.
func TestMTUTooSmallForIPv6(t *testing.T) {
	ns := newNamespace(t)
	if f, err := tap.Create(ns, tap.PodConfig(podA, macA, 1279)); err == nil || !strings.Contains(err.Error(), "1280") {
		t.Errorf("with 1279 bytes: %v", err)
		if err == nil {
			f.Close()
		}
	}
	for _, c := range []struct {
		addrs []netip.Addr
		mtu   int
	}{{podA, 1280}, {podA[:1], 496}} {
		f, err := tap.Create(newNamespace(t), tap.PodConfig(c.addrs, macA, c.mtu))
		if err != nil {
			t.Fatalf("%v with %d bytes: %v", c.addrs, c.mtu, err)
		}
		f.Close()
	}
}

func TestCreatePod(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	h := handle(t, ns)
	link, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	attrs := link.Attrs()
	if attrs.MTU != 1400 || packet.MAC(attrs.HardwareAddr) != macA || attrs.Flags&net.FlagUp == 0 || attrs.TxQLen != tap.DefaultTxQueueLen {
		t.Errorf("link is %+v", attrs)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		addrs, err := h.AddrList(link, family)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, a := range addrs {
			ones, bits := a.Mask.Size()
			found = found || ones == bits && (a.IP.Equal(podA[0].AsSlice()) || a.IP.Equal(podA[1].AsSlice()))
			if a.Scope != unix.RT_SCOPE_LINK && a.Flags&unix.IFA_F_TENTATIVE != 0 {
				t.Errorf("%s is tentative", a.IP)
			}
		}
		if !found {
			t.Errorf("no pod address in %v", addrs)
		}
		neighs, err := h.NeighList(attrs.Index, family)
		if err != nil {
			t.Fatal(err)
		}
		permanent := 0
		for _, n := range neighs {
			if n.State == netlink.NUD_PERMANENT && packet.MAC(n.HardwareAddr) == tap.RouterMAC {
				permanent++
			}
		}
		if permanent != 1 {
			t.Errorf("neighbours %v, want one permanent", neighs)
		}
		routes, err := h.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil || len(routes) != 1 || routes[0].Gw == nil {
			t.Errorf("default routes %v, %v", routes, err)
		}
	}

	f.Close()
	await.Until(t, "the device goes with its descriptor", func() bool { return !contains(linkNames(t, ns), "eth0") })
}

func TestCreateIPv4Only(t *testing.T) {
	ns, _ := newPod(t, podA[:1], macA)
	addrs, err := handle(t, ns).AddrList(nil, unix.AF_INET6)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if !a.IP.IsLoopback() {
			t.Errorf("an IPv4 pod has %s", a.IP)
		}
	}
}

func TestCreateHost(t *testing.T) {
	ns := newNamespace(t)
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:1::/48")}
	addrs := []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00:1::2")}
	cfg := tap.HostConfig("tapestry0", addrs, ranges, 1400, os.Getuid())
	for range 2 { // idempotent
		f, err := tap.Create(ns, cfg)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	f, err := tap.Open("tapestry0", ns)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := handle(t, ns)
	for _, r := range ranges {
		want := addrs[0]
		if r.Addr().Is6() {
			want = addrs[1]
		}
		routes, err := h.RouteGet(r.Addr().Next().Next().Next().AsSlice())
		if err != nil || len(routes) != 1 || !routes[0].Src.Equal(want.AsSlice()) {
			t.Errorf("route to %s: %v, %v; want source %s", r, routes, err, want)
		}
	}
	f.Close()
	// Another configuration replaces what there was.
	if f, err = tap.Create(ns, tap.HostConfig("tapestry0", addrs[:1], ranges[1:2], 1400, os.Getuid())); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	link, err := h.LinkByName("tapestry0")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := h.AddrList(link, unix.AF_INET6); err != nil || len(got) != 0 {
		t.Errorf("IPv6 addresses %v, %v remain", got, err)
	}
	if got, err := h.RouteList(link, netlink.FAMILY_ALL); err != nil || len(got) != 1 || got[0].Dst.String() != "10.96.0.0/12" {
		t.Errorf("routes %v, %v", got, err)
	}
	if err := tap.DeleteLink(ns, "tapestry0"); err != nil {
		t.Fatal(err)
	}
	if err := newDeviceError(f); err == nil || !strings.Contains(err.Error(), "attached") {
		t.Errorf("a descriptor of a deleted device: %v", err)
	}
}

func newDeviceError(f *os.File) error {
	_, err := tap.Check(f)
	return err
}

func TestCreateFails(t *testing.T) {
	ns := newNamespace(t)
	if err := tap.NewBridge(ns, "br0", 0); err != nil {
		t.Fatal(err)
	}
	f, err := tap.Create(ns, tap.Config{Name: "used", Owner: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := linkNames(t, ns)
	bad := netip.MustParseAddr("10.9.9.9")
	for _, tc := range []struct {
		name string
		cfg  tap.Config
		want string
	}{
		{"no name", tap.Config{Owner: -1}, "1 to 15 bytes"},
		{"long name", tap.Config{Name: "sixteen-bytes-xx", Owner: -1}, "1 to 15 bytes"},
		{"name in use", tap.Config{Name: "used", Owner: -1}, "exists already"},
		{"not a tap", tap.Config{Name: "br0", Reuse: true, Owner: -1}, "is a bridge"},
		{"mtu", tap.Config{Name: "x", MTU: 1 << 20, Owner: -1}, "set mtu"},
		{"next hop out of reach", tap.Config{Name: "x", Owner: -1,
			Routes: []tap.Route{{Dst: netip.MustParsePrefix("0.0.0.0/0"), Via: bad}}}, "add route"},
		{"source not ours", tap.Config{Name: "x", Owner: -1, Persist: true,
			Routes: []tap.Route{{Dst: netip.MustParsePrefix("10.0.0.0/8"), Src: bad}}}, "add route"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f, err := tap.Create(ns, tc.cfg)
			if err == nil {
				f.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q, want %q in it", err, tc.want)
			}
			if after := linkNames(t, ns); len(after) != len(before) {
				t.Errorf("left behind: %v", after)
			}
		})
	}
	if _, err := tap.Open("absent", ns); err == nil || contains(linkNames(t, ns), "absent") {
		t.Errorf("opening an absent device: %v", err)
	}
}

func TestCheckRefuses(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	plain := attachRaw(t, "plain0", unix.IFF_TAP|unix.IFF_NO_PI)
	tun := attachRaw(t, "tun0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	for _, tc := range []struct {
		f    *os.File
		want string
	}{
		{null, "must be a descriptor of /dev/net/tun"},
		{bare, "must be attached"},
		{plain, "plain0 must be a TAP with IFF_VNET_HDR"},
		{tun, "tun0 must be a TAP with IFF_VNET_HDR"},
	} {
		if _, err := tap.Check(tc.f); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", tc.f.Name(), err, tc.want)
		}
		if _, err := tap.NewDevice(tc.f, tap.Options{}); err == nil {
			t.Errorf("%s: NewDevice took it", tc.f.Name())
		}
		tc.f.Close()
	}
}

// attachRaw attaches to a device of the given kind in the current namespace.
func attachRaw(t *testing.T, name string, flags uint16) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestSelfTest(t *testing.T) {
	_, f := newPod(t, podA, macA)
	for _, tc := range []struct{ want, got tap.Offloads }{
		{tap.AllOffloads, tap.AllOffloads},
		{tap.Csum | tap.TSO4, tap.Csum | tap.TSO4},
		{tap.TSO4, 0}, // depends on checksums
		{0, 0},
	} {
		got, err := tap.SelfTest(f, tc.want)
		if err != nil {
			t.Fatal(err)
		}
		// Before Linux 6.2 there is no USO.
		if got != tc.got && got != tc.got&^tap.USO {
			t.Errorf("asked for %s, works: %s", tc.want, got)
		}
	}
}

func contains(s []string, x string) bool {
	for _, y := range s {
		if x == y {
			return true
		}
	}
	return false
}

func TestNamespaceDo(t *testing.T) {
	home, err := tap.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	ns := newNamespace(t)
	failed := errors.New("failed")
	err = ns.Do(func() error {
		here, err := tap.CurrentNamespace()
		if err != nil {
			return err
		}
		defer here.Close()
		if !same(t, here, ns) {
			t.Error("Do runs elsewhere")
		}
		return failed
	})
	if err != failed {
		t.Errorf("Do returned %v", err)
	}
	back, err := tap.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if !same(t, back, home) {
		t.Error("Do did not come back")
	}
	if _, err := tap.OpenNamespace("/proc/self/ns/mnt"); err == nil {
		t.Error("took a mount namespace")
	}
}

func same(t *testing.T, a, b *tap.Namespace) bool {
	t.Helper()
	x, err := a.File().Stat()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.File().Stat()
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(x, y)
}
