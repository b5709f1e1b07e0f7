package lab

import (
	"fmt"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A namespace is the network namespace of a process, with a netlink connection inside of it.
type namespace struct {
	ns netns.NsHandle
	*netlink.Handle
}

func namespaceOf(pid int) (*namespace, error) {
	ns, err := netns.GetFromPid(pid)
	if err != nil {
		return nil, fmt.Errorf("network namespace of process %d: %w", pid, err)
	}
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &namespace{ns, h}, nil
}

func (n *namespace) close() {
	n.Handle.Close()
	n.ns.Close()
}

// up gives the interface its addresses and sets it up.
func (n *namespace) up(name string, addrs ...string) error {
	link, err := n.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %s: %w", name, err)
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if strings.Contains(a, ":") {
			addr.Flags = unix.IFA_F_NODAD // nobody else can have the address
		}
		if err := n.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %s of %s: %w", a, name, err)
		}
	}
	if err := n.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// prefixed returns the addresses with the length of the underlay's prefix.
func prefixed(addrs []string) []string {
	var out []string
	for _, a := range addrs {
		if strings.Contains(a, ":") {
			out = append(out, a+"/64")
		} else {
			out = append(out, a+"/24")
		}
	}
	return out
}

// connect gives the node's namespace an interface that is connected to the bridge outside.
func connect(outside *namespace, bridge netlink.Link, n Node) error {
	in, err := namespaceOf(n.PID)
	if err != nil {
		return err
	}
	defer in.close()
	veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(in.ns)}
	veth.Name = n.Name
	if err := outside.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the interface of %s: %w", n.Name, err)
	}
	if err := outside.LinkSetMaster(veth, bridge); err != nil {
		return err
	}
	if err := outside.up(n.Name); err != nil {
		return err
	}
	if err := in.up("lo"); err != nil {
		return err
	}
	if err := in.up("eth0", prefixed(n.Addrs)...); err != nil {
		return err
	}
	for _, a := range n.Addrs {
		gw := Outside
		if strings.Contains(a, ":") {
			gw = gateway6
		}
		if err := in.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)}); err != nil {
			return fmt.Errorf("default route of %s: %w", n.Name, err)
		}
	}
	return nil
}

// makeBridge makes the bridge in the namespace outside. All nodes are connected to it.
func makeBridge(outside *namespace, dual bool) (netlink.Link, error) {
	bridge := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	bridge.Name = "nodes"
	if err := outside.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("make a bridge: %w", err)
	}
	addrs := []string{Outside}
	if dual {
		addrs = append(addrs, gateway6)
	}
	if err := outside.up("lo"); err != nil {
		return nil, err
	}
	return bridge, outside.up(bridge.Name, prefixed(addrs)...)
}
