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

// remember keeps the way that track found for a first fragment; w.orig is its tuple as it arrived.
func (f *fragments) remember(w *worker, p *packet.Packet, via uint64) {
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
	f.known[keyOf(&w.orig, p.FragID)] = fragWay{p.Tuple, via, now.Add(fragLife)}
}

func (f *fragments) find(t *packet.Tuple, id uint32) (fragWay, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	way, ok := f.known[keyOf(t, id)]
	return way, ok && way.end.After(f.clock())
}

func (w *worker) laterFragment(s *snapshot, p *packet.Packet, o *origin) (Verdict, DropReason) {
	w.orig = p.Tuple
	way, ok := w.node.frags.find(&p.Tuple, p.FragID)
	if !ok {
		return Dropped, LostFragment
	}
	if way.to.Src != p.Tuple.Src || way.to.Dst != p.Tuple.Dst {
		p.Rewrite(&way.to)
	}
	return w.forward(s, p, o, way.via)
}
