// Package addresstest makes lists of addresses and ranges from texts, for tests. It panics on a text that it cannot
// parse.
package addresstest

import "net/netip"

// Addrs parses addresses.
func Addrs(texts ...string) (list []netip.Addr) {
	for _, s := range texts {
		list = append(list, netip.MustParseAddr(s))
	}
	return list
}

// Prefixes parses ranges.
func Prefixes(texts ...string) (list []netip.Prefix) {
	for _, s := range texts {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}
