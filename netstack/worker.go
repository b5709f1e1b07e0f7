package netstack

import (
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/gateway"
	"tapestry.dev/tapestry/netstack/packet"
)

// worker is the scratch memory of one goroutine that carries packets through the pipeline, and its counters, so that
// nothing is allocated or shared per packet.
type worker struct {
	node *Node
	port *Port // whose frames it reads; nil for the gateway's and the Link's workers

	pkt, inner, answer packet.Packet
	from               origin
	orig               packet.Tuple // the tuple as it arrived
	hit                flow.Hit
	entry              flow.Entry
	head               [packet.HeadLen]byte
	reply              [packet.HeadLen + 1500]byte
	fragment           []byte // as large as the MTU, once something was fragmented
	segment            []byte // holds a frame, once something was cut for a TAP without offloads
	iov                [][]byte
	segments           packet.Segmenter
	turn               gateway.Turn
	plain, wrapped     packet.Coalescer

	verdicts [numVerdicts]atomic.Uint64
	drops    [numDropReasons]atomic.Uint64
}

// workers lends workers. A sync.Pool would forget them, and their counters, at every collection.
type workers struct {
	node *Node
	mu   sync.Mutex
	free []*worker
	all  []*worker
}

func (ws *workers) get() *worker {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if n := len(ws.free); n > 0 {
		w := ws.free[n-1]
		ws.free = ws.free[:n-1]
		return w
	}
	w := &worker{node: ws.node, iov: make([][]byte, 0, 130)}
	ws.all = append(ws.all, w)
	return w
}

func (ws *workers) put(w *worker) {
	w.port = nil
	w.turn.End()
	ws.mu.Lock()
	ws.free = append(ws.free, w)
	ws.mu.Unlock()
}

func (ws *workers) stats() Stats {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	s := Stats{Verdicts: map[string]uint64{}, Drops: map[string]uint64{}}
	for _, w := range ws.all {
		for v := range w.verdicts {
			if n := w.verdicts[v].Load(); n > 0 {
				s.Verdicts[Verdict(v).String()] += n
			}
		}
		for r := range w.drops {
			if n := w.drops[r].Load(); n > 0 {
				s.Drops[DropReason(r).String()] += n
			}
		}
	}
	return s
}

func (w *worker) count(v Verdict, r DropReason) {
	w.verdicts[v].Add(1)
	if r != NotDropped {
		w.drops[r].Add(1)
	}
}
