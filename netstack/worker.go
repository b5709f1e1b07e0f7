package netstack

import (
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/knock"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/stack"
)

// worker is the scratch memory of one goroutine that carries packets through the pipeline, with its counters, so that
// nothing is allocated or shared per packet.
type worker struct {
	path *Path
	from *Attachment // the attachment it reads; nil for the stack's and the Link's workers

	pkt, inner, answer packet.Packet
	latePacket         packet.Packet
	packets, bytes     uint64 // read from its attachment, and not yet in the attachment's counters
	told               Flow   // passed to Policy, Observer and Watcher
	head               [packet.HeadLen]byte
	answered           [packet.HeadLen + 1500]byte
	late               []byte // a fragment that waited for its first, after one did
	syn                knock.SYN
	other, kept        packet.Choice
	joined             []byte // packets of a batch that were joined; those from before it grew are in its earlier array
	fragment           []byte // as large as the MTU, after the first fragmentation
	segment            []byte // holds a frame, after the first segmentation for a TAP without offloads
	iov                [][]byte
	segments           packet.Segmenter
	turn               stack.Turn
	plain, wrapped     packet.Coalescer

	verdicts [numVerdicts]tally
	drops    [numDropReasons]atomic.Uint64
}

// workers lends workers. A sync.Pool would forget them, and their counters, at every collection.
type workers struct {
	path *Path
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
	w := &worker{path: ws.path, iov: make([][]byte, 0, 130)}
	ws.all = append(ws.all, w)
	return w
}

func (ws *workers) put(w *worker) {
	w.rest()
	w.from = nil
	ws.mu.Lock()
	ws.free = append(ws.free, w)
	ws.mu.Unlock()
}

// mostTaken is how many packets are added to the counters at once: an atomic addition for each packet would be a good
// part of the pipeline's cost.
const mostTaken = 64

// took counts a packet that was read from the worker's attachment.
func (w *worker) took(bytes int) {
	w.packets++
	w.bytes += uint64(bytes)
	if w.packets == mostTaken {
		w.tally()
	}
}

func (w *worker) tally() {
	if w.packets > 0 {
		w.from.fromTAP.packets.Add(w.packets)
		w.from.fromTAP.bytes.Add(w.bytes)
		w.packets, w.bytes = 0, 0
	}
}

// rest does the work that was put off until no more packets are at hand.
func (w *worker) rest() {
	w.tally()
	w.turn.End()
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

// tally is a counter that one goroutine at a time writes and any may read. It does without the bus lock of an atomic
// addition, which takes a twentieth of the time that a packet of a known flow takes.
type tally struct{ n uint64 }

// Add counts, unseen by the race detector: the word is aligned, so what a reader gets was the count at some time.
//
//go:norace
func (t *tally) Add(n uint64) { t.n += n }

func (t *tally) Load() uint64 { return atomic.LoadUint64(&t.n) }
