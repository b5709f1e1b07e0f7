// Package observe writes what the packet path tells of flows into a flow log: a record when a flow begins and one when
// it ends, and one for each packet that is refused or dropped, as far as its sender does not provoke too many.
//
// The time that a flow's first answer took is kept until the flow ends, by the number of its slot in the flow table:
// twelve bytes for each flow that the table can hold, of which only those take memory that were in use once.
package observe

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack"
	"tapestry.dev/tapestry/netstack/flow"
	"tapestry.dev/tapestry/netstack/flowlog"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/refusal"
)

// Path is a netstack.Observer.
type Path struct {
	log     *flowlog.Log
	flights []flight // by flow.Slot
	limit   *refusal.Limit
	spared  atomic.Uint64
}

var _ netstack.Observer = (*Path)(nil)

// flight is what is known of a flow in the flow table.
type flight struct {
	began atomic.Uint64 // the flow's ref << 32 | the time in microseconds, cut off; 0: no flow of this agent
	wait  atomic.Uint32 // microseconds until the first answer; 0: there was none yet
}

// New makes a Path that writes to log. capacity is that of the flow table.
func New(log *flowlog.Log, capacity int) *Path {
	return &Path{log: log, flights: make([]flight, capacity), limit: refusal.NewLimit(time.Now, rand.Uint64())}
}

// Spared returns how many packets were refused or dropped without a record, since their senders had provoked too many
// (100 a second, and 50 at once).
func (p *Path) Spared() uint64 { return p.spared.Load() }

// Begun implements netstack.Observer.
func (p *Path) Begun(f *netstack.Flow, ref uint32, rule uint64) {
	r := flowlog.Record{Time: p.log.Now(), Event: flowlog.Begun, Rule: rule}
	fl := &p.flights[flow.Slot(ref)]
	fl.wait.Store(0)
	fl.began.Store(uint64(ref)<<32 | uint64(micros(r.Time)))
	describe(&r, f)
	p.log.Write(&r)
}

// Answered implements netstack.Observer.
func (p *Path) Answered(ref uint32) {
	fl := &p.flights[flow.Slot(ref)]
	if began := fl.began.Load(); uint32(began>>32) == ref && fl.wait.Load() == 0 {
		fl.wait.Store(max(1, micros(p.log.Now())-uint32(began)))
	}
}

// Refused implements netstack.Observer.
func (p *Path) Refused(f *netstack.Flow, why netstack.Refusal) {
	if !p.allow(why.Owner) {
		return
	}
	r := flowlog.Record{Event: flowlog.Dropped, Rule: why.Rule, Reason: uint8(why.Why)}
	if why.Told {
		r.Event = flowlog.Refused
	}
	describe(&r, f)
	p.log.Write(&r)
}

// Dropped implements netstack.Observer. What pods' kernels send by themselves and no network forwards is not worth a
// record.
func (p *Path) Dropped(t *packet.Tuple, why netstack.DropReason, owner uint64) {
	if why == netstack.Multicast || why == netstack.LinkOnly || !p.allow(owner) {
		return
	}
	r := flowlog.Record{Event: flowlog.Dropped, Reason: uint8(why)}
	tuples(&r, t, t)
	p.log.Write(&r)
}

// Ended implements netstack.Observer.
func (p *Path) Ended(e flow.Entry, was flow.Info) {
	r := flowlog.Record{
		Time: p.log.Now(), Event: flowlog.Ended, Backend: e.Backend, State: was.State,
		Duration: time.Duration(was.Age) * time.Second,
	}
	for d, c := range e.Counts {
		r.Bytes[d], r.Packets[d] = c.Bytes, c.Packets
	}
	to := e.Reply.Reverse()
	tuples(&r, &e.Orig, &to)
	p.land(&r, &p.flights[flow.Slot(was.Ref)], &was)
	p.log.Write(&r)
}

// precise is for how many seconds microseconds fit 32 bits.
const precise = math.MaxUint32 / 1_000_000

// land completes the record of a flow's end with what was known of its flight, and forgets that. A flow that has
// another ref since (flow.Table.SetVia) is known no more.
func (p *Path) land(r *flowlog.Record, fl *flight, was *flow.Info) {
	began := fl.began.Load()
	switch {
	case began == 0:
		r.Flags |= flowlog.Earlier
	case uint32(began>>32) != was.Ref:
	default:
		r.Wait = fl.wait.Load()
		if was.Age < precise {
			r.Duration = time.Duration(micros(r.Time)-uint32(began)) * time.Microsecond
		}
		fl.began.CompareAndSwap(began, 0)
	}
}

// allow reports whether there may be one more record of what an owner's packet met, and counts it if not.
func (p *Path) allow(owner uint64) bool {
	var key packet.Addr
	binary.NativeEndian.PutUint64(key[:8], owner)
	if p.limit.Allow(key) {
		return true
	}
	p.spared.Add(1)
	return false
}

func micros(d time.Duration) uint32 { return uint32(d / time.Microsecond) }

// ends is indexed by netstack.EndKind.
var ends = [...]flowlog.End{
	netstack.Nobody: flowlog.Nobody, netstack.Pod: flowlog.Pod, netstack.Host: flowlog.Host, netstack.Stack: flowlog.Agent,
	netstack.OtherNode: flowlog.OtherNode, netstack.Outside: flowlog.Outside,
}

func describe(r *flowlog.Record, f *netstack.Flow) {
	r.Backend, r.From, r.Toward = f.Backend, ends[f.From.Kind], ends[f.Toward.Kind]
	if f.From.Kind == netstack.Outside {
		r.Peer = f.From.Peer
	}
	tuples(r, &f.Orig, &f.To)
}

// tuples fills in the tuple of a flow's first packet, and what it becomes.
func tuples(r *flowlog.Record, from, to *packet.Tuple) {
	r.Proto = from.Proto
	r.Src, r.Dst = endpoint(&from.Src, from.SrcPort), endpoint(&from.Dst, from.DstPort)
	r.ToSrc, r.ToDst = endpoint(&to.Src, to.SrcPort), endpoint(&to.Dst, to.DstPort)
}

func endpoint(a *packet.Addr, port uint16) packet.Endpoint {
	return packet.Endpoint{Addr: *a, Port: port}
}
