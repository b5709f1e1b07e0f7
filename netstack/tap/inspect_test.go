package tap_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
)

func TestInspect(t *testing.T) {
	want := tap.PodConfig(podA, macA, 1400)
	for name, spoil := range map[string]func(h *netlink.Handle, l netlink.Link) error{
		"": func(*netlink.Handle, netlink.Link) error { return nil },
		"its MTU is 1300, and should be 1400": func(h *netlink.Handle, l netlink.Link) error {
			return h.LinkSetMTU(l, 1300)
		},
		"its Ethernet address is 02:00:00:00:00:0b, and should be 02:00:00:00:00:0a": func(h *netlink.Handle, l netlink.Link) error {
			return h.LinkSetHardwareAddr(l, macB[:])
		},
		"it does not have address 10.1.0.5/32": func(h *netlink.Handle, l netlink.Link) error {
			a, err := netlink.ParseAddr("10.1.0.5/32")
			return errors.Join(err, h.AddrDel(l, a))
		},
		"it does not have address fd00:1::5/128": func(h *netlink.Handle, l netlink.Link) error {
			a, err := netlink.ParseAddr("fd00:1::5/128")
			return errors.Join(err, h.AddrDel(l, a))
		},
		"there is no route to 0.0.0.0/0 through it by way of 169.254.1.1": func(h *netlink.Handle, l netlink.Link) error {
			return deleteRoutes(h, l, netlink.FAMILY_V4)
		},
		"there is no route to ::/0 through it by way of fe80::1": func(h *netlink.Handle, l netlink.Link) error {
			return deleteRoutes(h, l, netlink.FAMILY_V6)
		},
		"there is no permanent neighbour entry of 169.254.1.1 with 02:54:41:50:00:01": func(h *netlink.Handle, l netlink.Link) error {
			return h.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: tap.Router4.AsSlice(), HardwareAddr: macB[:],
			})
		},
		"there is no permanent neighbour entry of fe80::1": func(h *netlink.Handle, l netlink.Link) error {
			return h.NeighDel(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: tap.Router6.AsSlice(), State: netlink.NUD_PERMANENT})
		},
		"it is down": func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) },
	} {
		ns, _ := newPod(t, podA, macA)
		h := handle(t, ns)
		link, err := h.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(h, link); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err = tap.Inspect(ns, want)
		if name == "" && err != nil || name != "" && (err == nil || !strings.Contains(err.Error(), name)) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}

func deleteRoutes(h *netlink.Handle, l netlink.Link, family int) error {
	routes, err := h.RouteList(l, family)
	for _, r := range routes {
		if len(r.Gw) > 0 {
			err = errors.Join(err, h.RouteDel(&r))
		}
	}
	return err
}

func TestInspectOthers(t *testing.T) {
	ns := newNamespace(t)
	c := tap.PodConfig([]netip.Addr{podA[0]}, packet.MAC{}, 0)
	if err := tap.Inspect(ns, c); !errors.Is(err, tap.ErrNoDevice) {
		t.Errorf("no interface: %v", err)
	}
	c.Persist = true
	f, err := tap.Create(ns, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := tap.Inspect(ns, c); err != nil {
		t.Error(err)
	}
	if _, err := tap.Create(ns, c); !errors.Is(err, tap.ErrExists) {
		t.Errorf("made twice: %v", err)
	}
	f.Close()
	if err := tap.Inspect(ns, c); err == nil || !strings.Contains(err.Error(), "nobody holds its other end") {
		t.Errorf("abandoned: %v", err)
	}
	for range 2 { // the second finds nothing
		if err := tap.Remove(ns, "eth0"); err != nil {
			t.Error(err)
		}
	}
	if err := tap.NewBridge(ns, "eth0", 0); err != nil {
		t.Fatal(err)
	}
	if err := tap.Inspect(ns, c); err == nil || !strings.Contains(err.Error(), "it is a bridge, and should be a TAP") {
		t.Errorf("a bridge: %v", err)
	}
	if err := tap.Remove(ns, "eth0"); err == nil || !strings.Contains(err.Error(), "it is a bridge") {
		t.Errorf("a bridge was removed: %v", err)
	}
	if !contains(linkNames(t, ns), "eth0") {
		t.Error("the bridge is gone")
	}
}
