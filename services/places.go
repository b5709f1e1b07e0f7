package services

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
)

// Places says at which addresses of nodes node ports are served, as kube-proxy's nodePortAddresses does: a family of
// which no range is named is served at all addresses, and so is one of which the range of all addresses is. The zero
// Places is every address.
type Places struct {
	// Primary leaves each node its first address of each family alone (KEP-4004). There are no Ranges then.
	Primary bool
	Ranges  []netip.Prefix
}

// primaryPlaces is the text for Places.Primary.
const primaryPlaces = "primary"

// ParsePlaces reads Places from texts: ranges, or "primary" alone.
func ParsePlaces(texts []string) (p Places, err error) {
	for _, text := range texts {
		if text == primaryPlaces {
			p.Primary = true
			continue
		}
		r, err := netip.ParsePrefix(text)
		if err != nil {
			return Places{}, fmt.Errorf("%q is no range of addresses: expected one like 192.168.0.0/16, or %s", text, primaryPlaces)
		}
		if r.Addr().Is4In6() {
			return Places{}, fmt.Errorf("%q is a range of IPv4 in the form of IPv6: expected one like 192.168.0.0/16", text)
		}
		p.Ranges = append(p.Ranges, r.Masked())
	}
	if p.Primary && len(p.Ranges) > 0 {
		return Places{}, errors.New(primaryPlaces + " stands beside ranges: expected it alone, or ranges alone")
	}
	return p, nil
}

// Everywhere reports whether all addresses of a family are served.
func (p *Places) Everywhere(is4 bool) bool {
	named := false
	for _, r := range p.Ranges {
		if r.Addr().Is4() == is4 {
			if r.Bits() == 0 {
				return true
			}
			named = true
		}
	}
	return !p.Primary && !named
}

// Serves reports whether an address of a node is served; primary is the node's first address of the same family.
func (p *Places) Serves(a, primary netip.Addr) bool {
	return p.Everywhere(a.Is4()) || p.Primary && a == primary || addressing.Contains(p.Ranges, a)
}

// Of returns which addresses of a node are served in a family that is not served Everywhere, sorted. list has the
// addresses of the node's interfaces, primary is the first address of its Node in the family. IPv6 addresses that are
// valid on one link alone are left out, since a socket there would need to know the link.
func (p *Places) Of(is4 bool, list []netip.Addr, primary netip.Addr) []netip.Addr {
	if p.Primary && primary.IsValid() {
		return []netip.Addr{primary}
	}
	var served []netip.Addr
	for _, a := range list {
		if a.Is4() == is4 && addressing.Contains(p.Ranges, a) && !(a.Is6() && a.IsLinkLocalUnicast()) {
			served = append(served, a)
		}
	}
	slices.SortFunc(served, netip.Addr.Compare)
	return slices.Compact(served)
}
