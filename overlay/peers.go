package overlay

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/overlay/candidates"
	"tapestry.dev/tapestry/overlay/pathmtu"
)

// peer is the Mesh's state of one other node. It lives as long as the node's key stays the same.
type peer struct {
	id  uint64
	key PublicKey

	partial atomic.Bool                    // takes partial checksums
	mtu     atomic.Int32                   // largest inner packet in bytes
	live    atomic.Bool                    // has a session, as far as the prober knows
	credit  atomic.Int32                   // packets that may still be handed to WireGuard without a session
	sent    atomic.Uint64                  // packets sent, superframes counting as one
	large   atomic.Uint64                  // those of them that are larger than carriedAlways
	heard   atomic.Uint64                  // batches received
	tooBig  atomic.Bool                    // the kernel refused a datagram: look at the path at once
	address atomic.Pointer[netip.AddrPort] // where the peer is now, nil when unknown
	moved   atomic.Bool                    // the peer said that it sends from elsewhere
	lost    atomic.Pointer[Lost]           // nil: no address of the peer is known to be silent

	confirmed atomic.Int64 // time of the last answer to a probe, Unix nanoseconds
	watched   atomic.Int64 // since when beats are sent, see Mesh.nanos; 0 while none are
	beaten    atomic.Int64 // time of the last answer to a beat, see Mesh.nanos; 0 for never
	asks      atomic.Int64 // time of its last beat, see Mesh.nanos; 0 for never
	passes    atomic.Bool  // that said that this Mesh is passed over

	// Used by the prober alone.
	greeted           netip.AddrPort // the endpoint a handshake was asked for at
	choice            candidates.Choice
	path              *pathmtu.Discovery                    // at the present address; nil before the first look
	paths             map[netip.AddrPort]*pathmtu.Discovery // of the candidates
	pinned            time.Time                             // until when the old addresses are; zero without pins
	shake             shake
	shook             time.Time // the last handshake
	soon              time.Time // until when WireGuard may be about to have a session
	deaf              time.Time // a session from before then is not trusted
	doubts            doubts
	knocked           time.Time // since when it asks for a handshake in vain; zero when it does not
	sawSent, sawLarge uint64
	sawHeard          uint64
	beatAt            time.Time // when the last beat was sent
	asked             time.Time // when the kernel was last asked for the path MTU
	quiet             int       // looks in a row at which packets were going out and nothing was coming in
}

// table is an immutable index of the peers.
type table struct {
	byID   map[uint64]*peer
	peers  []*peer
	cfgs   []Peer             // of peers, by the same index
	addrs  [][]netip.AddrPort // of peers, by the same index; see Peer.addrs
	ranges []addrRange        // sorted, not overlapping
	pods   []addrRange        // pod ranges: no WireGuard endpoint lies there
}

// addrRange is a prefix as its first and last address, each in two words of host order, and the index of its peer.
type addrRange struct {
	first, last [2]uint64
	peer        int32
}

func words(a packet.Addr) [2]uint64 {
	return [2]uint64{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}

func less(a, b [2]uint64) bool { return a[0] < b[0] || a[0] == b[0] && a[1] < b[1] }

func rangeOf(p netip.Prefix, peer int) addrRange {
	a := packet.AddrFrom(p.Masked().Addr())
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	first := words(a)
	last := first
	if bits < 64 {
		last[0] |= ^uint64(0) >> bits
		last[1] = ^uint64(0)
	} else if bits < 128 {
		last[1] |= ^uint64(0) >> (bits - 64)
	}
	return addrRange{first: first, last: last, peer: int32(peer)}
}

// search returns the index of the range that holds a; -1 when none does. ranges are sorted and do not overlap.
func search(ranges []addrRange, a packet.Addr) int {
	w := words(a)
	lo, hi := 0, len(ranges)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if less(w, ranges[mid].first) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	if lo == 0 || less(ranges[lo-1].last, w) {
		return -1
	}
	return lo - 1
}

// owner returns the peer whose prefixes hold a; nil when none do.
func (t *table) owner(a packet.Addr) *peer {
	if i := search(t.ranges, a); i >= 0 {
		return t.peers[t.ranges[i].peer]
	}
	return nil
}

// forbidden reports whether a lies in some peer's pod range.
func (t *table) forbidden(a netip.Addr) bool { return search(t.pods, packet.AddrFrom(a)) >= 0 }

// newTable indexes peers. cfgs must be what admit returned.
func newTable(peers []*peer, cfgs []Peer) *table {
	t := &table{byID: make(map[uint64]*peer, len(peers)), peers: peers, cfgs: cfgs}
	for i, p := range peers {
		t.byID[p.id] = p
		t.addrs = append(t.addrs, cfgs[i].addrs())
		for _, pre := range cfgs[i].Prefixes {
			r := rangeOf(pre, i)
			t.ranges = append(t.ranges, r)
			if isPodRange(pre, cfgs) {
				t.pods = append(t.pods, r)
			}
		}
	}
	byFirst := func(r []addrRange) {
		sort.Slice(r, func(i, j int) bool { return less(r[i].first, r[j].first) })
	}
	byFirst(t.ranges)
	byFirst(t.pods)
	return t
}

// places returns the peers' configured addresses and the addresses that they were heard from.
func (m *Mesh) places() (all []netip.Addr) {
	t := m.table.Load()
	for i, p := range t.peers {
		for _, a := range t.addrs[i] {
			all = append(all, a.Addr())
		}
		if a := p.address.Load(); a != nil {
			all = append(all, a.Addr())
		}
	}
	return all
}

// ofAlone returns those of addrs that no peer but p has as a candidate or is at now: a peer may name any address.
func (t *table) ofAlone(p *peer, addrs []netip.AddrPort) []netip.AddrPort {
	for i, q := range t.peers {
		if q != p {
			at := q.address.Load()
			addrs = slices.DeleteFunc(addrs, func(a netip.AddrPort) bool {
				return at != nil && *at == a || slices.Contains(t.addrs[i], a)
			})
		}
	}
	return addrs
}

// isPodRange reports whether p is a pod range and not a node's address: a pod range has more than one address, and no
// endpoint is configured in it. So a stock peer in front of a whole network (perhaps 0.0.0.0/0) forbids nothing.
func isPodRange(p netip.Prefix, peers []Peer) bool {
	if p.IsSingleIP() {
		return false
	}
	return !slices.ContainsFunc(peers, func(q Peer) bool {
		return slices.ContainsFunc(q.addrs(), func(a netip.AddrPort) bool { return p.Contains(a.Addr().Unmap()) })
	})
}
