// Package quota bounds how many packets and how many new flows a pod may send in a second.
package quota

import (
	"sync/atomic"
	"time"
)

// Quota is what a pod may send in a second. A zero field is no limit.
type Quota struct {
	// Packets counts packets as they are on a wire: a superframe counts as its segments. Flows counts new flows.
	Packets, Flows uint32
}

// Most is the largest value of a Quota's fields.
const Most = 1_000_000_000

// Meter holds one pod to its Quota. Its methods are safe for concurrent use and allocate nothing.
type Meter struct {
	Quota
	now            func() time.Time
	start          time.Time
	packets, flows bucket
	// OverPackets and OverFlows count what was beyond the Quota: packets, and attempts to begin a flow.
	OverPackets, OverFlows atomic.Uint64
}

const (
	// packetBurst is the time whose packets may come at once. A pod's kernel sends in bursts of superframes, which are
	// up to fewestPackets packets each.
	packetBurst   = 100 * time.Millisecond
	fewestPackets = 64
	// flowBurst is the time whose flows may begin at once: clients connect in bursts.
	flowBurst = time.Second
)

// NewMeter returns a Meter with full buckets; nil for a Quota without limits. now is the monotonic clock.
func NewMeter(q Quota, now func() time.Time) *Meter {
	if q == (Quota{}) {
		return nil
	}
	m := &Meter{Quota: q, now: now, start: now()}
	m.packets.fill(q.Packets, packetBurst, fewestPackets)
	m.flows.fill(q.Flows, flowBurst, 1)
	return m
}

// Packet reports whether n packets may go, and pays for them.
func (m *Meter) Packet(n int) bool {
	if m.packets.take(n, m.at()) {
		return true
	}
	m.OverPackets.Add(uint64(n))
	return false
}

// Flow reports whether a flow may begin, and pays for it.
func (m *Meter) Flow() bool {
	if m.flows.take(1, m.at()) {
		return true
	}
	m.OverFlows.Add(1)
	return false
}

func (m *Meter) at() int64 { return int64(m.now().Sub(m.start)) }

// bucket is a token bucket. It is one time, until when everything so far is paid for, so that it needs no lock and
// nobody has to fill it. What is more than one unit goes as a whole as soon as nothing is owed, and leaves a debt: the
// rate is exact, whatever comes at once. The zero value lets everything through.
type bucket struct {
	each int64 // nanoseconds for one unit; 0 for no limit
	full int64 // nanoseconds that a full bucket lasts
	paid atomic.Int64
}

func (b *bucket) fill(rate uint32, burst time.Duration, fewest int64) {
	if rate == 0 {
		return
	}
	b.each = max(1, int64(time.Second)/int64(rate))
	b.full = max(int64(burst), fewest*b.each)
	b.paid.Store(-b.full)
}

func (b *bucket) take(n int, now int64) bool {
	if b.each == 0 {
		return true
	}
	cost := int64(n) * b.each
	for {
		was := b.paid.Load()
		// One unit less than a full bucket may be owed when the last unit of a burst comes.
		if was > now-b.each {
			return false
		}
		if b.paid.CompareAndSwap(was, max(was, now-b.full)+cost) {
			return true
		}
	}
}
