package tap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Inspect compares a TAP in ns with c. The error names every difference; nil means there is none. Fields of c that
// leave a choice to the kernel match anything, and addresses and routes beyond those in c are ignored. A TAP of which
// nobody holds a descriptor counts as different.
func Inspect(ns *Namespace, c Config) error {
	return withLink(ns, "inspect", c.Name, func(h *netlink.Handle, link netlink.Link) error {
		return errors.Join(
			inspectLink(link, c),
			inspectAddrs(h, link, c),
			inspectRoutes(h, link, c),
			inspectNeighbors(h, link, c),
		)
	})
}

func inspectLink(link netlink.Link, c Config) error {
	var errs []error
	differs := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	attrs := link.Attrs()
	if link.Type() != "tuntap" {
		differs("it is a %s, and should be a TAP", link.Type())
	}
	switch {
	case attrs.Flags&net.FlagUp == 0:
		differs("it is down")
	case attrs.RawFlags&unix.IFF_LOWER_UP == 0:
		differs("nobody holds its other end")
	}
	if have := attrs.HardwareAddr; c.MAC != (packet.MAC{}) && !slices.Equal(have, c.MAC[:]) {
		differs("its Ethernet address is %s, and should be %s", have, net.HardwareAddr(c.MAC[:]))
	}
	if c.MTU != 0 && attrs.MTU != c.MTU {
		differs("its MTU is %d, and should be %d", attrs.MTU, c.MTU)
	}
	return errors.Join(errs...)
}

func inspectAddrs(h *netlink.Handle, link netlink.Link, c Config) error {
	have, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	var errs []error
	for _, want := range c.Addrs {
		i := slices.IndexFunc(have, func(a netlink.Addr) bool { return a.IPNet.String() == want.String() })
		switch {
		case i < 0:
			errs = append(errs, fmt.Errorf("it does not have address %s", want))
		case have[i].Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0:
			errs = append(errs, fmt.Errorf("address %s cannot be used yet: the kernel looks for duplicates of it", want))
		}
	}
	return errors.Join(errs...)
}

func inspectRoutes(h *netlink.Handle, link netlink.Link, c Config) error {
	have, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for _, want := range c.Routes {
		found := slices.ContainsFunc(have, func(r netlink.Route) bool {
			return sameDst(&r, want) && (!want.Via.IsValid() || r.Gw.Equal(want.Via.AsSlice())) &&
				(!want.Src.IsValid() || r.Src.Equal(want.Src.AsSlice()))
		})
		if !found {
			errs = append(errs, fmt.Errorf("there is no route to %s through it by way of %s", want.Dst, want.Via))
		}
	}
	return errors.Join(errs...)
}

// sameDst compares destinations. The kernel may leave out the destination of a default route.
func sameDst(r *netlink.Route, want Route) bool {
	if r.Dst == nil {
		family := unix.AF_INET6
		if want.Dst.Addr().Is4() {
			family = unix.AF_INET
		}
		return want.Dst.Bits() == 0 && r.Family == family
	}
	return r.Dst.String() == want.Dst.Masked().String()
}

func inspectNeighbors(h *netlink.Handle, link netlink.Link, c Config) error {
	have, err := h.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	var errs []error
	for _, want := range c.Neighbors {
		found := slices.ContainsFunc(have, func(n netlink.Neigh) bool {
			return n.IP.Equal(want.Addr.AsSlice()) && n.State == netlink.NUD_PERMANENT && slices.Equal(n.HardwareAddr, want.MAC[:])
		})
		if !found {
			errs = append(errs, fmt.Errorf("there is no permanent neighbour entry of %s with %s", want.Addr, net.HardwareAddr(want.MAC[:])))
		}
	}
	return errors.Join(errs...)
}

// Describe returns what a TAP in ns has of a Config: its name, MTU, alias and addresses, without those
// that the kernel gave it by itself. It needs no capability. The error wraps ErrNoDevice when there is no interface of
// that name.
func Describe(ns *Namespace, name string) (c Config, err error) {
	err = withLink(ns, "describe", name, func(h *netlink.Handle, link netlink.Link) error {
		if link.Type() != "tuntap" {
			return fmt.Errorf("it is a %s, and should be a TAP", link.Type())
		}
		attrs := link.Attrs()
		c = Config{Name: name, MTU: attrs.MTU, Alias: attrs.Alias}
		have, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range have {
			ip, ok := netip.AddrFromSlice(a.IP)
			if bits, _ := a.Mask.Size(); ok && a.Scope != unix.RT_SCOPE_LINK {
				c.Addrs = append(c.Addrs, netip.PrefixFrom(ip.Unmap(), bits))
			}
		}
		return nil
	})
	return c, err
}

// Remove deletes a TAP from ns, whoever holds its descriptors. It returns nil when no interface has that name. It
// leaves an interface of another kind alone and returns an error.
func Remove(ns *Namespace, name string) error {
	err := withLink(ns, "delete", name, func(h *netlink.Handle, l netlink.Link) error {
		if l.Type() != "tuntap" {
			return fmt.Errorf("it is a %s, and should be a TAP", l.Type())
		}
		return h.LinkDel(l)
	})
	if errors.Is(err, ErrNoDevice) {
		return nil
	}
	return err
}
