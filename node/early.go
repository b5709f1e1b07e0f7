package node

import (
	"slices"
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/share"
)

const (
	// mostEarly bounds the bytes that early keeps: what a few thousand connections say in the time of a start.
	mostEarly = 4 << 20
	// earlyCost is charged for a packet besides its bytes: what a small object and its slice take.
	earlyCost = 64
	// earlyBatch is how many packets are delivered at once, as many as WireGuard brings.
	earlyBatch = 128
)

// early keeps what other nodes send while this one starts. Sessions with them are made first, so that nothing more is
// lost; but what they say in connections of the Node before is heard only when these go on. The room is shared out
// among the peers: one that says less than others loses nothing to them.
type early struct {
	to func(peer uint64, packets [][]byte)

	over atomic.Bool // set once, under mu

	mu    sync.Mutex // guards what follows, and is held while it is delivered
	kept  map[uint64]*earlyAccount
	most  share.Ranking[said]
	bytes int // as charged, of all peers
}

// said is what one peer has said, in that order.
type said struct {
	peer    uint64
	packets [][]byte
}

// earlyAccount is charged in bytes.
type earlyAccount = share.Account[said]

func costOf(p []byte) int { return len(p) + earlyCost }

// take delivers packets, or copies them and keeps them until end. Those for which there is no room are lost, as all are
// that come to a node without an agent. One goroutine at a time calls it for a peer.
func (e *early) take(peer uint64, packets [][]byte) {
	if e.over.Load() || !e.keep(peer, packets) {
		e.to(peer, packets)
	}
}

// keep returns false when packets are to be delivered.
func (e *early) keep(peer uint64, packets [][]byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over.Load() {
		return false
	}
	a := e.account(peer)
	for _, p := range packets {
		if !e.makeRoom(a, costOf(p)) {
			break // what comes after a gap is of less use than what others say
		}
		e.charge(a, costOf(p))
		a.Of.packets = append(a.Of.packets, slices.Clone(p))
	}
	return true
}

func (e *early) account(peer uint64) *earlyAccount {
	a := e.kept[peer]
	if a == nil {
		if e.kept == nil {
			e.kept = map[uint64]*earlyAccount{}
		}
		a = &earlyAccount{Of: said{peer: peer}}
		e.kept[peer] = a
		e.most.Add(a)
	}
	return a
}

// makeRoom reports whether there is room for a packet of a peer. Where there is none, the peers that have said the most
// lose what they have said last, as long as that makes shares more equal.
func (e *early) makeRoom(a *earlyAccount, cost int) bool {
	for e.bytes+cost > mostEarly {
		b := e.most.Most()
		if b.Charge() <= a.Charge()+cost {
			return false
		}
		last := len(b.Of.packets) - 1
		e.charge(b, -costOf(b.Of.packets[last]))
		b.Of.packets[last] = nil
		b.Of.packets = b.Of.packets[:last]
	}
	return true
}

func (e *early) charge(a *earlyAccount, cost int) {
	e.bytes += cost
	e.most.Set(a, a.Charge()+cost)
}

// end delivers what was kept, of each peer in the order in which it came. From then on nothing is kept.
func (e *early) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range e.kept {
		for some := range slices.Chunk(a.Of.packets, earlyBatch) {
			e.to(a.Of.peer, some)
		}
	}
	e.kept, e.most = nil, share.Ranking[said]{}
	e.over.Store(true)
}
