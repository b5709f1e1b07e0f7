package tap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
)

// configure brings the device into the state that c describes. It runs inside the namespace, because /proc/sys/net
// shows the settings of the reader's namespace.
func configure(h *netlink.Handle, c Config) error {
	link, err := h.LinkByName(c.Name)
	if err != nil {
		return err
	}
	if err := configureLink(h, link, c); err != nil {
		return err
	}
	if c.has6() && c.MTU > 0 && c.MTU < addressing.MinMTU {
		return fmt.Errorf("an MTU of %d with IPv6 addresses: expected %d at least, with less the kernel has no IPv6 on an interface", c.MTU, addressing.MinMTU)
	}
	if err := quietIPv6(c.Name, c.has6()); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	index := link.Attrs().Index
	if c.Reuse {
		if err := prune(h, link, c); err != nil {
			return err
		}
	}
	for _, p := range c.Addrs {
		if err := addAddr(h, link, p); err != nil {
			return err
		}
	}
	for _, n := range c.Neighbors {
		err := h.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, IP: n.Addr.AsSlice(), HardwareAddr: n.MAC[:],
		})
		if err != nil {
			return fmt.Errorf("add neighbour %s: %w", n.Addr, err)
		}
	}
	for _, r := range c.Routes {
		if err := addRoute(h, index, r); err != nil {
			return err
		}
	}
	for _, p := range c.Addrs {
		awaitLocal(h, p.Addr())
	}
	return nil
}

// localTime is the longest time that awaitLocal waits for one address.
const localTime = time.Second

// awaitLocal returns when the kernel accepts packets to an IPv6 address, or after localTime. The kernel sends from an
// address without duplicate detection at once, but makes the route for packets to that address later, in a work queue
// (addrconf_dad_work in net/ipv6/addrconf.c). Without this wait the first answer to a pod was lost on a busy machine.
func awaitLocal(h *netlink.Handle, a netip.Addr) {
	for end := time.Now().Add(localTime); a.Is6() && time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		routes, err := h.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
	}
}

func configureLink(h *netlink.Handle, link netlink.Link, c Config) error {
	if c.MAC != (packet.MAC{}) {
		if err := h.LinkSetHardwareAddr(link, c.MAC[:]); err != nil {
			return fmt.Errorf("set address %s: %w", net.HardwareAddr(c.MAC[:]), err)
		}
	}
	if c.MTU != 0 {
		if err := h.LinkSetMTU(link, c.MTU); err != nil {
			return fmt.Errorf("set mtu %d: %w", c.MTU, err)
		}
	}
	qlen := c.TxQueueLen
	if qlen == 0 {
		qlen = DefaultTxQueueLen
	}
	if err := h.LinkSetTxQLen(link, qlen); err != nil {
		return fmt.Errorf("set queue length %d: %w", qlen, err)
	}
	if c.Alias != "" {
		if err := h.LinkSetAlias(link, c.Alias); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
	}
	return nil
}

// quietIPv6 switches IPv6 on the interface on or off. When it is on, duplicate detection and router advertisements are
// off. Where /proc/sys is read-only (in a container) the kernel's defaults remain, which does little harm: every
// address is added without duplicate detection anyway.
func quietIPv6(name string, on bool) error {
	dir := "net/ipv6/conf/" + name + "/"
	if _, err := os.Stat("/proc/sys/" + dir); err != nil {
		if on {
			return errors.New("the kernel has no IPv6")
		}
		return nil
	}
	disable := "1"
	if on {
		disable = "0"
		_ = writeSysctl(dir+"accept_dad", "0")
		_ = writeSysctl(dir+"accept_ra", "0")
	}
	err := writeSysctl(dir+"disable_ipv6", disable)
	if have, _ := readSysctl(dir + "disable_ipv6"); on && have != "0" {
		return fmt.Errorf("switch IPv6 on: %w", err)
	}
	return nil
}

func addAddr(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // the address is usable at once; no other host can have it
	}
	if err := h.AddrReplace(link, a); err != nil {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

func addRoute(h *netlink.Handle, index int, r Route) error {
	route := &netlink.Route{LinkIndex: index, Dst: ipNet(r.Dst), Src: r.Src.AsSlice()}
	if r.Via.IsValid() {
		route.Gw = r.Via.AsSlice()
	} else if r.Dst.Addr().Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	if r.OnLink {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("add route %s: %w", r.Dst, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prune removes the addresses and routes of an earlier configuration. What the kernel added by itself stays.
func prune(h *netlink.Handle, link netlink.Link, c Config) error {
	wanted := map[string]bool{}
	for _, p := range c.Addrs {
		wanted["address "+p.String()] = true
	}
	for _, r := range c.Routes {
		wanted["route "+r.Dst.Masked().String()] = true
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if a.Scope == unix.RT_SCOPE_LINK || wanted["address "+a.IPNet.String()] {
			continue
		}
		if err := h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", a.IPNet, err)
		}
	}
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.Dst != nil && wanted["route "+r.Dst.String()] {
			continue
		}
		if err := h.RouteDel(&r); err != nil {
			return fmt.Errorf("remove route %s: %w", r.Dst, err)
		}
	}
	return nil
}
