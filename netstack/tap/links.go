package tap

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// NewBridge makes a kernel bridge in ns and brings it up. The bridge has no IPv6 address, so it sends nothing by
// itself. It has no multicast snooping, so neighbour discovery works from the first frame. mtu is in bytes; 0 means
// 1500.
func NewBridge(ns *Namespace, name string, mtu int) error {
	err := withHandle(ns, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = name, mtu
		snooping := false
		br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
		if err := h.LinkAdd(br); err != nil {
			return err
		}
		if err := errors.Join(quietIPv6(name, false), h.LinkSetUp(br)); err != nil {
			return errors.Join(err, h.LinkDel(br))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return nil
}

// End is one end of a veth pair.
type End struct {
	Namespace *Namespace
	Name      string
	// MAC of the interface. The zero MAC leaves the choice to the kernel.
	MAC packet.MAC
}

// NewVeth makes a veth pair and brings both ends up. mtu is in bytes; 0 means 1500.
func NewVeth(a, b End, mtu int) error {
	err := withHandle(a.Namespace, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = a.Name, mtu
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerMTU = b.Name, uint32(mtu)
		if a.MAC != (packet.MAC{}) {
			v.HardwareAddr = a.MAC[:]
		}
		if b.MAC != (packet.MAC{}) {
			v.PeerHardwareAddr = b.MAC[:]
		}
		if b.Namespace == nil {
			return h.LinkAdd(v)
		}
		var err error
		cerr := control(b.Namespace.file, func(fd int) {
			v.PeerNamespace = netlink.NsFd(fd)
			err = h.LinkAdd(v)
		})
		return errors.Join(err, cerr)
	})
	if err != nil {
		return fmt.Errorf("make veth %s-%s: %w", a.Name, b.Name, err)
	}
	if err := errors.Join(SetUp(a.Namespace, a.Name), SetUp(b.Namespace, b.Name)); err != nil {
		return errors.Join(err, DeleteLink(a.Namespace, a.Name))
	}
	return nil
}

// VXLAN is a tunnel to one other node.
type VXLAN struct {
	Name string
	// ID of the network, 1 to 1<<24 - 1, the same on both sides.
	ID int
	// Local and Remote are the addresses on the underlay.
	Local, Remote netip.Addr
	// Port is the UDP port of both sides.
	Port uint16
	// MTU in bytes; 0 means 1500. The tunnel adds 50 bytes over IPv4 and 70 over IPv6.
	MTU int
}

// NewVXLAN makes a kernel VXLAN interface in ns and brings it up.
func NewVXLAN(ns *Namespace, v VXLAN) error {
	err := withHandle(ns, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = v.Name, v.MTU
		link := &netlink.Vxlan{
			LinkAttrs: attrs, VxlanId: v.ID, SrcAddr: v.Local.AsSlice(), Group: v.Remote.AsSlice(), Port: int(v.Port),
		}
		if err := h.LinkAdd(link); err != nil {
			return err
		}
		if err := errors.Join(quietIPv6(v.Name, false), h.LinkSetUp(link)); err != nil {
			return errors.Join(err, h.LinkDel(link))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make vxlan %s: %w", v.Name, err)
	}
	return nil
}

// SetUp brings an interface up; "lo" gives a new namespace its loopback.
func SetUp(ns *Namespace, name string) error {
	return withLink(ns, "set up", name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetUp(l) })
}

// SetMTU changes an interface's MTU, in bytes.
func SetMTU(ns *Namespace, name string, mtu int) error {
	return withLink(ns, "set mtu of", name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, mtu) })
}

// SetBridge makes the interface a port of the bridge, and moves it there if it is in another one. The empty name takes
// it out of its bridge. A port has no IPv6 of its own.
func SetBridge(ns *Namespace, name, bridge string) error {
	return withLink(ns, "set bridge of", name, func(h *netlink.Handle, l netlink.Link) error {
		if bridge == "" {
			return h.LinkSetNoMaster(l)
		}
		br, err := h.LinkByName(bridge)
		if err != nil {
			return err
		}
		if err := quietIPv6(name, false); err != nil {
			return err
		}
		return h.LinkSetMaster(l, br)
	})
}

// DeleteLink removes an interface.
func DeleteLink(ns *Namespace, name string) error {
	return withLink(ns, "delete", name, func(h *netlink.Handle, l netlink.Link) error { return h.LinkDel(l) })
}

// AddAddr gives an interface an address with its on-link prefix.
func AddAddr(ns *Namespace, name string, p netip.Prefix) error {
	return withLink(ns, "configure", name, func(h *netlink.Handle, l netlink.Link) error { return addAddr(h, l, p) })
}

// AddRoute adds or replaces a route through an interface.
func AddRoute(ns *Namespace, name string, r Route) error {
	return withLink(ns, "configure", name, func(h *netlink.Handle, l netlink.Link) error {
		return addRoute(h, l.Attrs().Index, r)
	})
}

// MTUOf returns the MTU, in bytes, of the interface in ns that has one of the addresses; 0 when no interface has.
func MTUOf(ns *Namespace, addrs []netip.Addr) (int, error) {
	mtu := 0
	err := withHandle(ns, func(h *netlink.Handle) error {
		list, err := h.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range list {
			ip, ok := netip.AddrFromSlice(a.IP)
			if !ok || !slices.Contains(addrs, ip.Unmap()) {
				continue
			}
			l, err := h.LinkByIndex(a.LinkIndex)
			if err != nil {
				return err
			}
			mtu = l.Attrs().MTU
			return nil
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("find the MTU of the interface with %v: %w", addrs, err)
	}
	return mtu, nil
}

func withLink(ns *Namespace, what, name string, f func(*netlink.Handle, netlink.Link) error) error {
	err := withHandle(ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return ErrNoDevice
		}
		if err != nil {
			return err
		}
		return f(h, l)
	})
	if err != nil {
		return fmt.Errorf("%s interface %s: %w", what, name, err)
	}
	return nil
}

// withHandle calls f inside ns with a netlink socket of ns.
func withHandle(ns *Namespace, f func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		return f(h)
	})
}
