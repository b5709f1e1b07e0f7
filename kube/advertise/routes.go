package advertise

import (
	"cmp"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/announce"
)

// aggregate returns the prefix that an advertisement of BGP makes of an address.
func (a *ad) aggregate(addr netip.Addr) netip.Prefix {
	bits := int(a.spec.AggregationLengthV6)
	if addr.Is4() {
		bits = int(a.spec.AggregationLength)
	}
	if bits < 1 || bits > addr.BitLen() { // an object without the API server's defaults
		bits = addr.BitLen()
	}
	return netip.PrefixFrom(addr, bits).Masked()
}

// routesOf returns what routers are told of a prefix, in no order. addrs are all addresses, sorted, so that those of
// the prefix stand together.
func (r *rules) routesOf(p netip.Prefix, addrs []*address) (list []announce.Route) {
	names, ads := make([][]string, len(r.peers)), make([][]*ad, len(r.peers)) // of each router
	from, _ := slices.BinarySearchFunc(addrs, p.Addr(), func(at *address, a netip.Addr) int { return at.Compare(a) })
	for _, at := range addrs[from:] {
		if !p.Contains(at.Addr) {
			break
		}
		for _, a := range at.told {
			if a.aggregate(at.Addr) != p {
				continue
			}
			for i := range r.peers {
				if len(a.spec.Peers) > 0 && !slices.Contains(a.spec.Peers, r.peers[i].Name) {
					continue
				}
				if names[i] = append(names[i], at.names()...); !slices.Contains(ads[i], a) {
					ads[i] = append(ads[i], a)
				}
			}
		}
	}
	for i := range r.peers {
		if len(ads[i]) == 0 {
			continue
		}
		slices.Sort(names[i])
		x := announce.Route{Prefix: p, Peer: r.peers[i].Name, Services: slices.Compact(names[i])}
		for _, a := range ads[i] {
			x.Communities = append(x.Communities, a.attributes.Communities...)
			// Of two advertisements of a prefix the larger preference counts.
			if pref := a.attributes.LocalPref; pref != nil && (x.LocalPref == nil || *x.LocalPref < *pref) {
				x.LocalPref = pref
			}
		}
		slices.Sort(x.Communities)
		x.Communities = slices.Compact(x.Communities)
		list = append(list, x)
	}
	return list
}

func compareRoutes(a, b announce.Route) int {
	return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), cmp.Compare(a.Peer, b.Peer))
}
