package ipam

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"tapestry.dev/tapestry/addressing"
)

// ParseAddrs parses addresses separated by commas, at most one of each family, as in the annotation
// tapestry.dev/pod-ips.
func ParseAddrs(text string) ([]netip.Addr, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var list []netip.Addr
	for part := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(part))
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q is not an address: expected one like 10.244.1.5", strings.TrimSpace(part))
		}
		a = a.Unmap()
		for _, b := range list {
			if a.Is4() == b.Is4() {
				return nil, fmt.Errorf("%s is a second address of its family: a pod has at most one IPv4 and one IPv6 address", a)
			}
		}
		list = append(list, a)
	}
	return list, nil
}

// chooser has the inputs of a choice. Its functions must not change their answers during a choice.
type chooser struct {
	ranges []netip.Prefix
	// last returns the address of a range that was assigned last; the zero Addr when none was.
	last func(netip.Prefix) netip.Addr
	// held reports whether a Lease, or something else, has the address.
	held func(netip.Addr) bool
	// rests returns how much longer the address has to rest; 0 when it need not.
	rests func(netip.Addr) time.Duration
	// own reports whether the address rests after the very pod that the choice is for.
	own func(netip.Addr) bool
}

// choose returns one address of each range, in their order. want lists fixed addresses, which have to rest only after
// another pod.
func (c *chooser) choose(want []netip.Addr) ([]netip.Addr, error) {
	if len(c.ranges) == 0 {
		return nil, errNoRange
	}
	for _, a := range want {
		if err := c.allowed(a); err != nil {
			return nil, err
		}
	}
	var list []netip.Addr
	for _, r := range c.ranges {
		a := netip.Addr{}
		for _, w := range want {
			if r.Contains(w) {
				a = w
			}
		}
		if !a.IsValid() {
			var err error
			if a, err = c.next(r); err != nil {
				return nil, err
			}
		}
		list = append(list, a)
	}
	return list, nil
}

// allowed says why a fixed address cannot be assigned, or returns nil.
func (c *chooser) allowed(a netip.Addr) error {
	for _, r := range c.ranges {
		if !r.Contains(a) {
			continue
		}
		if addressing.Reserved(r, a) {
			return fmt.Errorf("address %s is kept for the node itself, like the ends and the first two addresses of every podCIDR: choose another", a)
		}
		if c.held(a) {
			return fmt.Errorf("address %s: %w", a, ErrTaken)
		}
		if rest := c.rests(a); rest > 0 && !c.own(a) {
			return fmt.Errorf("address %s %w: it can be had in %s", a, ErrRests, max(rest.Round(time.Second), time.Second))
		}
		return nil
	}
	return fmt.Errorf("address %s is outside of this node's pod ranges %v: choose an address inside, and let the pod run on that node only", a, c.ranges)
}

// next returns the first free address behind the last assigned one, continuing at the beginning of the range.
func (c *chooser) next(r netip.Prefix) (netip.Addr, error) {
	first := addressing.FirstPod(r)
	start := c.last(r)
	if start = start.Next(); !r.Contains(start) || addressing.Reserved(r, start) {
		start = first
	}
	if !r.Contains(first) || addressing.Reserved(r, first) {
		return netip.Addr{}, &FullError{Range: r}
	}
	full := &FullError{Range: r}
	for a := start; ; {
		switch rest := c.rests(a); {
		case c.held(a):
		case rest == 0:
			return a, nil
		case full.Resting == 0 || rest < full.Wait:
			full.Wait = rest
			fallthrough
		default:
			full.Resting++
		}
		if a = a.Next(); !r.Contains(a) || addressing.Reserved(r, a) {
			a = first
		}
		if a == start {
			return netip.Addr{}, full
		}
	}
}

// FullError means that a range has no free address.
type FullError struct {
	Range netip.Prefix
	// Resting counts the addresses that were released recently. The first of them is free again after Wait.
	Resting int
	Wait    time.Duration
}

func (e *FullError) Error() string {
	s := fmt.Sprintf("no address of %s is free: pods hold %d", e.Range, addressing.Capacity(e.Range)-e.Resting)
	if e.Resting > 0 {
		s += fmt.Sprintf(" and %d were released a moment ago, the first of which can be had in %s", e.Resting, e.Wait.Round(time.Second))
	}
	return s + "; delete pods, or give the node a larger podCIDR"
}
