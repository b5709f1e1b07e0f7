package node

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/hosttap"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/services"
)

// AttachTAP attaches a TAP. The Node owns f unless there is an error.
func (n *Node) AttachTAP(c netstack.AttachmentConfig, f *os.File) error {
	dev, err := tap.NewDevice(f, tap.Options{Disable: n.held.NoOffloads, Poller: n.held.Poller})
	if err != nil {
		return fmt.Errorf("attach %s: %w", c.Name, err)
	}
	for _, r := range dev.Refused() {
		n.log.Warn("a TAP goes without an offload that this kernel refused", "attachment", c.Name, "offload", r.Offload, "err", r.Err)
	}
	if err := n.Attach(c, dev); err != nil {
		_ = dev.Close()
		return err
	}
	return nil
}

// Attach attaches a device. The Node owns dev unless there is an error.
func (n *Node) Attach(c netstack.AttachmentConfig, dev netstack.Device) error {
	return n.path.Attach(c, dev)
}

// AttachHost attaches the host TAP that an init step made; meta is its hosttap.Meta. The Node owns f unless there is an
// error.
func (n *Node) AttachHost(meta json.RawMessage, f *os.File) error {
	m, err := hosttap.ParseMeta(meta)
	if err != nil {
		return err
	}
	want := hosttap.Addrs(n.Config().Netstack.PodCIDRs)
	slices.SortFunc(want, netip.Addr.Compare)
	slices.SortFunc(m.Addrs, netip.Addr.Compare)
	if !slices.Equal(m.Addrs, want) {
		return fmt.Errorf("the host TAP has the addresses %v, but the node's podCIDRs need %v, as 'tapestry host-tap' sets them", m.Addrs, want)
	}
	return n.AttachTAP(netstack.AttachmentConfig{Name: hosttap.Key, Kind: netstack.HostTAP, MAC: tap.HostMAC, Addrs: m.Addrs}, f)
}

// Detach removes the attachment of that name, and reports whether there was one.
func (n *Node) Detach(name string) bool { return n.path.Detach(name) }

// Attached reports whether there is an attachment of that name whose device still exists.
func (n *Node) Attached(name string) bool { return n.path.Attached(name) }

// Local reports whether a pod's attachment has the address.
func (n *Node) Local(a netip.Addr) bool { return n.path.Local(a) }

// PodRanges returns the ranges in which new pods get addresses, and the pods' MTU in bytes.
func (n *Node) PodRanges() ([]netip.Prefix, int) {
	c := &n.Config().Netstack
	return c.PodCIDRs, c.MTU
}

// HasHostTAP reports whether there is a host TAP with an address of like's family. The zero Addr means any family.
func (n *Node) HasHostTAP(like netip.Addr) bool {
	for _, p := range n.path.Attachments() {
		if p.Name == hosttap.Key {
			return !like.IsValid() || slices.ContainsFunc(p.Addrs, func(own netip.Addr) bool { return own.Is4() == like.Is4() })
		}
	}
	return false
}

// Exposed returns the Services with addresses for clients outside, which come by the host TAP.
func (n *Node) Exposed() []services.Exposed { return n.table.Load().ExposedServices() }

// strandedPods returns a problem for each pod whose address lies outside of the node's present ranges.
func (n *Node) strandedPods() []Problem {
	var list []Problem
	ranges, _ := n.PodRanges()
	for _, p := range n.path.Attachments() {
		if p.Name == hosttap.Key {
			continue
		}
		for _, a := range p.Addrs {
			if !addressing.Contains(ranges, a) {
				list = append(list, Problem{Warning: true, Problem: services.Problem{
					Object:  "Pod " + p.Name,
					Message: fmt.Sprintf("its address %s is from before the node's podCIDRs became %v, and is reached on this node alone: delete the pod, so that it is made anew", a, ranges),
				}})
			}
		}
	}
	return list
}
