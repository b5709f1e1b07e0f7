package tap_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestUnderlay joins two namespaces by a bridge and moves data between them over both families.
func TestUnderlay(t *testing.T) {
	wire := newNamespace(t)
	check(t, tap.NewBridge(wire, "br0", 9000))
	var nodes []*tap.Namespace
	for i := range 2 {
		ns := newNamespace(t)
		port := fmt.Sprintf("port%d", i)
		check(t, tap.SetSysctl(ns, "net.ipv6.conf.default.accept_dad", "0"))
		mac := packet.MAC{2, 0, 0, 0, 1, byte(i)}
		check(t, tap.NewVeth(tap.End{Namespace: wire, Name: port}, tap.End{Namespace: ns, Name: "eth0", MAC: mac}, 9000))
		check(t, tap.SetBridge(wire, port, "br0"))
		check(t, tap.AddAddr(ns, "eth0", netip.MustParsePrefix(fmt.Sprintf("192.168.9.%d/24", i+1))))
		check(t, tap.AddAddr(ns, "eth0", netip.MustParsePrefix(fmt.Sprintf("fd09::%d/64", i+1))))
		check(t, tap.AddRoute(ns, "eth0", tap.Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Via: netip.MustParseAddr("192.168.9.9")}))
		link, err := handle(t, ns).LinkByName("eth0")
		check(t, err)
		if a := link.Attrs(); a.MTU != 9000 || packet.MAC(a.HardwareAddr) != mac {
			t.Errorf("eth0 is %+v", a)
		}
		nodes = append(nodes, ns)
	}
	for _, addr := range []string{"192.168.9.2", "fd09::2"} {
		transfer(t, nodes[0], nodes[1], netip.MustParseAddr(addr), 1<<20)
	}
	check(t, tap.SetMTU(nodes[0], "eth0", 1500))
	check(t, tap.SetBridge(wire, "port0", ""))
	link, err := handle(t, wire).LinkByName("port0")
	check(t, err)
	if link.Attrs().MasterIndex != 0 {
		t.Error("port0 is still in the bridge")
	}
	if err := tap.NewBridge(wire, "br0", 0); err == nil || !strings.Contains(err.Error(), "make bridge br0") {
		t.Errorf("a second bridge of one name: %v", err)
	}
	if err := tap.SetUp(wire, "absent"); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("an absent interface: %v", err)
	}
}

// TestVXLAN joins two namespaces by a tunnel over a veth pair and moves data through it.
func TestVXLAN(t *testing.T) {
	ends := []*tap.Namespace{newNamespace(t), newNamespace(t)}
	check(t, tap.NewVeth(tap.End{Namespace: ends[0], Name: "eth0"}, tap.End{Namespace: ends[1], Name: "eth0"}, 1500))
	for i, ns := range ends {
		local, remote := netip.AddrFrom4([4]byte{192, 168, 9, byte(1 + i)}), netip.AddrFrom4([4]byte{192, 168, 9, byte(2 - i)})
		check(t, tap.AddAddr(ns, "eth0", netip.PrefixFrom(local, 24)))
		v := tap.VXLAN{Name: "vxlan0", ID: 7, Local: local, Remote: remote, Port: 4789, MTU: 1450}
		check(t, tap.NewVXLAN(ns, v))
		check(t, tap.AddAddr(ns, "vxlan0", netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/24", i+1))))
		link, err := handle(t, ns).LinkByName("vxlan0")
		check(t, err)
		if a, ok := link.(*netlink.Vxlan); !ok || a.MTU != 1450 || a.VxlanId != 7 || a.Port != 4789 || !a.Group.Equal(remote.AsSlice()) {
			t.Errorf("vxlan0 is %+v", link)
		}
		if err := tap.NewVXLAN(ns, v); err == nil || !strings.Contains(err.Error(), "make vxlan vxlan0") {
			t.Errorf("a second tunnel of one name: %v", err)
		}
	}
	transfer(t, ends[0], ends[1], netip.MustParseAddr("10.9.0.2"), 1<<20)
}

func TestEnableUnprivilegedPing(t *testing.T) {
	ns := newNamespace(t)
	ping := func() error {
		return ns.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
	}
	if err := ping(); err != unix.EACCES {
		t.Errorf("an echo socket in a new namespace: %v", err)
	}
	check(t, tap.EnableUnprivilegedPing(ns))
	check(t, ping())
}

func TestStart(t *testing.T) {
	ns := newNamespace(t)
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	check(t, ns.Start(cmd))
	check(t, cmd.Wait())
	var want string
	check(t, ns.Do(func() (err error) {
		want, err = os.Readlink("/proc/thread-self/ns/net")
		return err
	}))
	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("started in %s, want %s", got, want)
	}
}

// TestCongestionControl asks for an algorithm that no kernel has, and for one that every kernel allows everywhere.
func TestCongestionControl(t *testing.T) {
	ns := newNamespace(t)
	check(t, tap.SetCongestionControl(ns, "no-such", "reno"))
	check(t, tap.SetCongestionControl(ns, "no-such"))
	var got []byte
	check(t, ns.Do(func() (err error) {
		got, err = os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		return err
	}))
	if string(got) != "reno\n" {
		t.Errorf("the namespace uses %q, want reno", got)
	}
}
