package node

import (
	"slices"
	"sync"
	"sync/atomic"
)

// mostEarly bounds the bytes that early keeps: what a few thousand connections say in the time of a start.
const mostEarly = 4 << 20

// early keeps what other nodes send while this one starts. Sessions with them are made first, so that nothing more is
// lost; but what they say in connections of the Node before is heard only when these go on.
type early struct {
	to func(peer uint64, packets [][]byte)

	over atomic.Bool // set once, under mu

	mu    sync.Mutex // guards what follows, and is held while it is delivered
	kept  []batch
	bytes int
}

// batch is what came from one peer at once.
type batch struct {
	peer    uint64
	packets [][]byte
}

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
	b := batch{peer: peer}
	for _, p := range packets {
		if e.bytes+len(p) > mostEarly {
			break
		}
		e.bytes += len(p)
		b.packets = append(b.packets, slices.Clone(p))
	}
	if len(b.packets) > 0 {
		e.kept = append(e.kept, b)
	}
	return true
}

// end delivers what was kept, in the order in which it came. From then on nothing is kept.
func (e *early) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range e.kept {
		e.to(b.peer, b.packets)
	}
	e.kept = nil
	e.over.Store(true)
}
