package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"tapestry.dev/tapestry/addressing"
)

// Refused is a peer that Set left out.
type Refused struct {
	Name string // the peer's
	Why  error
}

// admit returns the peers that can be served together, in their order, and those that cannot. own is this node's key. A
// peer that is wrong in itself, or that contradicts another, costs itself alone: of two peers that want the same, the
// one that unchanged reports as in force before has it, else the first of the list.
func admit(all []Peer, unchanged func(*Peer) bool, own PublicKey) (good []Peer, refused []Refused) {
	errs := make([]error, len(all))
	order := make([]int, len(all))
	for i := range all {
		errs[i], order[i] = all[i].check(own), i
	}
	before := make([]bool, len(all))
	for i := range all {
		before[i] = unchanged(&all[i])
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case before[i] == before[j]:
			return 0
		case before[i]:
			return -1
		}
		return 1
	})
	clashing := clashes(all, errs)
	a := admitted{names: make([]string, len(all)), ids: map[uint64]int{}, keys: map[PublicKey]int{}}
	for _, i := range order {
		a.names[i] = all[i].Name
		if errs[i] == nil {
			errs[i] = a.add(i, &all[i], clashing[i])
		}
	}
	for i := range all {
		if errs[i] != nil {
			refused = append(refused, Refused{all[i].Name, errs[i]})
		} else {
			good = append(good, all[i])
		}
	}
	return good, refused
}

// admitted is what the peers have that are admitted already.
type admitted struct {
	names  []string          // of all peers, by their index
	ids    map[uint64]int    // indexes of peers
	keys   map[PublicKey]int // indexes of peers
	ranges []owned           // those that clash with others, sorted, not overlapping
}

// owned is a prefix of a peer.
type owned struct {
	addrRange
	prefix netip.Prefix
}

// add admits the peer with the index i. ranges are those of its prefixes that clash.
func (a *admitted) add(i int, p *Peer, ranges []owned) error {
	if other, taken := a.ids[p.ID]; taken {
		return fmt.Errorf("has the same ID %#x as peer %q: delete one of the two Nodes", p.ID, a.names[other])
	}
	if other, taken := a.keys[p.PublicKey]; taken && !p.PublicKey.IsZero() {
		return fmt.Errorf("has the same public key %s as peer %q: every node needs a key of its own", p.PublicKey, a.names[other])
	}
	for n, r := range ranges {
		if n > 0 && !less(ranges[n-1].last, r.first) {
			return fmt.Errorf("its prefixes %s and %s overlap: leave one of them out", ranges[n-1].prefix, r.prefix)
		}
		at := a.place(r)
		for _, k := range a.ranges[max(at-1, 0):min(at+1, len(a.ranges))] {
			if !less(k.last, r.first) && !less(r.last, k.first) {
				return fmt.Errorf("its prefix %s overlaps %s of peer %q: give every node ranges and addresses of its own", r.prefix, k.prefix, a.names[k.peer])
			}
		}
	}
	a.ids[p.ID], a.keys[p.PublicKey] = i, i
	for _, r := range ranges {
		a.ranges = slices.Insert(a.ranges, a.place(r), r)
	}
	return nil
}

// place returns the index at which r is, or would be inserted.
func (a *admitted) place(r owned) int {
	at, _ := slices.BinarySearchFunc(a.ranges, r, compareFirst)
	return at
}

// compareFirst compares the first addresses of prefixes.
func compareFirst(a, b owned) int { return slices.Compare(a.first[:], b.first[:]) }

// clashes returns, by the index of the peer, the prefixes that share an address with another one, sorted. A prefix that
// a peer has twice counts once. Peers with an error are left out.
func clashes(all []Peer, errs []error) map[int][]owned {
	var list []owned
	for i := range all {
		for _, p := range all[i].Prefixes {
			if errs[i] == nil {
				list = append(list, owned{rangeOf(p, i), p})
			}
		}
	}
	slices.SortFunc(list, func(a, b owned) int {
		return cmp.Or(compareFirst(a, b), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()), cmp.Compare(a.peer, b.peer))
	})
	list = slices.CompactFunc(list, func(a, b owned) bool { return a.addrRange == b.addrRange })
	found := make([]bool, len(list))
	var around []int // the prefixes that contain the present one, the widest first
	for i := range list {
		for len(around) > 0 && less(list[around[len(around)-1]].last, list[i].first) {
			around = around[:len(around)-1]
		}
		if len(around) > 0 { // the wider ones are found already
			found[around[len(around)-1]], found[i] = true, true
		}
		around = append(around, i)
	}
	out := map[int][]owned{}
	for i, r := range list {
		if found[i] {
			out[int(r.peer)] = append(out[int(r.peer)], r)
		}
	}
	return out
}

// unchanged returns a function that reports whether a peer is as it is in the table.
func (t *table) unchanged() func(*Peer) bool {
	at := make(map[uint64]*Peer, len(t.cfgs))
	for i := range t.cfgs {
		at[t.cfgs[i].ID] = &t.cfgs[i]
	}
	return func(p *Peer) bool {
		was := at[p.ID]
		return was != nil && was.PublicKey == p.PublicKey && slices.Equal(was.Prefixes, p.Prefixes)
	}
}

// check returns an error for what is wrong with p by itself, for the node whose key is own.
func (p *Peer) check(own PublicKey) error {
	if p.PublicKey == own {
		return fmt.Errorf("has this node's own public key %s: every node needs a key of its own", own)
	}
	for _, a := range p.addrs() {
		if a.Port() == 0 {
			return fmt.Errorf("endpoint %s: expected a port", a)
		}
	}
	for _, pre := range p.Prefixes {
		if !pre.IsValid() || pre.Addr().Is4In6() || pre.Addr().Zone() != "" {
			return fmt.Errorf("prefix %s: expected an IPv4 or IPv6 prefix", pre)
		}
		for _, a := range p.StackAddrs {
			for _, e := range p.addrs() {
				if pre.Contains(a) && pre.Contains(e.Addr().Unmap()) {
					return fmt.Errorf("endpoint %s lies in its own pod range %s", e, pre)
				}
			}
		}
	}
	for _, a := range p.StackAddrs {
		if !addressing.Contains(p.Prefixes, a) {
			return fmt.Errorf("stack address %s is in none of its prefixes", a)
		}
	}
	return nil
}
