package netstack

import (
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/packet"
)

// Watcher is told how flows to backends of Services go, so that backends can be chosen by that. Many goroutines of the
// packet path call it at once, so it must be quick, never block and never allocate.
type Watcher interface {
	// Begun is called for a flow to a backend that is new in the flow table. t is the tuple of its first packet as it
	// arrived; it is borrowed. Changed may have been called for the flow already.
	Begun(t *packet.Tuple, ref uint32)
	// Changed is told every change of such a flow's state, as flow.Table.OnChange has it.
	Changed(c flow.Change)
}

// Counted is the bit of flow.Entry.Kind that marks flows whose Choice was Counted. It survives the agent, so that the
// end of a flow is counted if its beginning was.
const Counted uint8 = 1

// watch tells the Watcher, if there is one, that the journey's flow began, and waits for its first answer. One that is
// handed over had that.
func (w *worker) watch(j *journey) {
	if w.path.watcher != nil && j.hit.Backend != 0 && j.notice == 0 {
		w.told.Orig = j.orig // the journey itself would have to be allocated
		w.path.watcher.Begun(&w.told.Orig, j.hit.Ref)
	}
}
