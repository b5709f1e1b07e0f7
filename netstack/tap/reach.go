package tap

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Way says how the kernel of a namespace sends what comes for an address.
type Way struct {
	// Link is the interface it would leave by; "" when there is no route.
	Link string
	// Own is set when the address is the namespace's own, so that it would not leave.
	Own bool
}

// WaysTo returns the kernel's way to each of the addresses. It needs no capability.
func WaysTo(ns *Namespace, addrs []netip.Addr) ([]Way, error) {
	ways := make([]Way, len(addrs))
	err := withHandle(ns, func(h *netlink.Handle) error {
		names := map[int]string{}
		for i, a := range addrs {
			routes, err := h.RouteGet(a.AsSlice())
			switch {
			case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
				continue // no route, or one that refuses or swallows packets
			case err != nil:
				return fmt.Errorf("the route to %s: %w", a, err)
			case len(routes) == 0:
				continue
			}
			r := routes[0]
			if _, known := names[r.LinkIndex]; !known {
				l, err := h.LinkByIndex(r.LinkIndex)
				if err != nil {
					return err
				}
				names[r.LinkIndex] = l.Attrs().Name
			}
			ways[i] = Way{Link: names[r.LinkIndex], Own: r.Type == unix.RTN_LOCAL}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for its routes: %w", err)
	}
	return ways, nil
}

// LinksWith returns the names of the interfaces in ns that have one of the addresses.
func LinksWith(ns *Namespace, addrs []netip.Addr) (names []string, err error) {
	err = withHandle(ns, func(h *netlink.Handle) error {
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
			if name := l.Attrs().Name; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the interfaces with %v: %w", addrs, err)
	}
	return names, nil
}

// Uses returns which interface in ns, except the one with the name but, has an address in r or a route to exactly r,
// and what it has; "" if none.
func Uses(ns *Namespace, r netip.Prefix, but string) (name, what string, err error) {
	err = withHandle(ns, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Attrs().Name == but {
				continue
			}
			addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			routes, err := h.RouteList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addrs {
				if ip, ok := netip.AddrFromSlice(a.IP); ok && r.Contains(ip.Unmap()) {
					name, what = l.Attrs().Name, "the address "+ip.Unmap().String()
					return nil
				}
			}
			for _, route := range routes {
				if sameDst(&route, Route{Dst: r}) {
					name, what = l.Attrs().Name, "the route to "+r.String()
					return nil
				}
			}
		}
		return nil
	})
	if err != nil {
		return "", "", fmt.Errorf("find out who has %s: %w", r, err)
	}
	return name, what, nil
}

// NotForwarding returns the settings, all off, because of which the kernel of ns does not forward packets that come in
// by the interfaces: IPv4 has one for each (devinet, in_dev_forward), IPv6 one for all (ip6_forward) and, from Linux
// 6.17 on, another for each that stands in for it.
func NotForwarding(ns *Namespace, is4 bool, links []string) (off []string, err error) {
	err = ns.Do(func() error {
		if is4 {
			for _, l := range links {
				if on, err := isOn("net/ipv4/conf/" + l + "/forwarding"); err != nil {
					return err
				} else if !on {
					off = append(off, "net.ipv4.conf."+l+".forwarding")
				}
			}
			return nil
		}
		if on, err := isOn("net/ipv6/conf/all/forwarding"); err != nil || on {
			return err
		}
		for _, l := range links {
			if on, err := isOn("net/ipv6/conf/" + l + "/force_forwarding"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			} else if !on {
				off = []string{"net.ipv6.conf.all.forwarding"}
			}
		}
		return nil
	})
	return off, err
}

func isOn(key string) (bool, error) {
	value, err := readSysctl(key)
	return value != "" && value != "0", err
}
