package netstack

import (
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

// fragments remembers the translation of first fragments, for the later ones, which carry no ports. It is bounded, and
// rarely used: TCP does not fragment, and a pod's UDP only above its MTU. A later fragment that overtook its first is
// dropped (RFC 4787 REQ-14 lets it).
type fragments struct {
	mu    sync.Mutex
	clock func() time.Time
	known map[fragKey]fragWay
}

const (
	maxFragments = 4096
	fragLife     = 30 * time.Second // RFC 791's reassembly timeout is 15 s, Linux' is 30 s
)

type fragKey struct {
	src, dst packet.Addr
	id       uint32
	zone     uint32
	proto    packet.Proto
}

type fragWay struct {
	to  packet.Tuple
	via uint64
	end time.Time
}

func keyOf(t *packet.Tuple, id uint32) fragKey {
	return fragKey{t.Src, t.Dst, id, t.Zone, t.Proto}
}

// remember keeps the way of a first fragment, which is translated.
func (f *fragments) remember(j *journey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.clock()
	if f.known == nil {
		f.known = make(map[fragKey]fragWay)
	}
	if len(f.known) >= maxFragments {
		for k, v := range f.known {
			if v.end.Before(now) {
				delete(f.known, k)
			}
		}
		if len(f.known) >= maxFragments {
			clear(f.known)
		}
	}
	f.known[keyOf(&j.orig, j.packet.FragID)] = fragWay{j.packet.Tuple, j.via, now.Add(fragLife)}
}

func (f *fragments) find(t *packet.Tuple, id uint32) (fragWay, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	way, ok := f.known[keyOf(t, id)]
	return way, ok && way.end.After(f.clock())
}

// follow sends a later fragment the way of its first.
func (w *worker) follow(j *journey) bool {
	way, ok := w.node.frags.find(&j.orig, j.packet.FragID)
	if !ok {
		return j.drop(LostFragment)
	}
	j.via = way.via
	j.hit.To = way.to
	j.hit.Translate = way.to.Src != j.orig.Src || way.to.Dst != j.orig.Dst
	return true
}
