// Package leaving remembers which endpoints of this node are about to leave their Services, or have just left them.
// Other nodes learn that later than this one, and still send connections to such an endpoint. This node then leads them
// to another endpoint of the Service.
//
// An endpoint may belong to several Services, and a connection that arrives does not say which of them it means. So an
// endpoint counts as leaving only if it leaves all of its Services, and the memory names all of them.
package leaving

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

// linger is how long an endpoint is remembered that has left its Service. Other nodes take a second to hear of it, or
// ten when the API server is busy.
const linger = time.Minute

// most is how many endpoints are remembered that have left, so that nobody fills the memory with Services that come and
// go. The namespace with the most of them loses those that left first.
const most = 4096

// Key is where an endpoint serves.
type Key struct {
	packet.Endpoint
	Proto packet.Proto
}

// Port names a port of a Service.
type Port struct {
	Namespace, Name string
	Port            string
	Proto           packet.Proto
}

// Standing says how an endpoint stands with a Service port.
type Standing uint8

// The standings.
const (
	Stays  Standing = iota // it gets new connections, or will get some
	Leaves                 // it terminates
	Left                   // the Service has it no longer
)

// Endpoint is an endpoint of a Service port.
type Endpoint struct {
	Key
	Port
	Standing Standing
}

// Memory remembers endpoints. Its methods may be called concurrently.
type Memory struct {
	clock func() time.Duration

	mu   sync.Mutex // held by Change
	left []departure
	// numbered counts the departures.
	numbered uint64
	known    atomic.Pointer[map[Key]*place]
}

// place is how the endpoint at a Key stands with all of its Service ports. It is replaced, never changed.
type place struct {
	members []member
	leaves  []Port          // all of them, if it leaves all; else nil. Those that are remembered longest come first
	until   []time.Duration // until when each of leaves counts
}

// member is how an endpoint stands with one Service port; number tells departures apart.
type member struct {
	Port
	standing Standing
	number   uint64
	until    time.Duration // of one that has left; others count without an end
}

// always is the until of members that count without an end.
const always time.Duration = math.MaxInt64

// departure is an endpoint that has left, in the order of leaving.
type departure struct {
	Key
	Port
	number uint64
	until  time.Duration
}

// New returns an empty Memory. clock returns the time since some moment; nil is a monotonic clock of the process.
func New(clock func() time.Duration) *Memory {
	if clock == nil {
		began := time.Now()
		clock = func() time.Duration { return time.Since(began) }
	}
	return &Memory{clock: clock}
}

// Change replaces the endpoints gone by the endpoints come: those of the Services that have changed. It also forgets
// what left long ago.
func (m *Memory) Change(gone, come []Endpoint) {
	if len(gone) == 0 && len(come) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next := map[Key]*place{}
	if old := m.known.Load(); old != nil {
		next = maps.Clone(*old)
	}
	type id struct {
		Key
		Port
	}
	stay := make(map[id]struct{}, len(come))
	for _, e := range come {
		stay[id{e.Key, e.Port}] = struct{}{}
	}
	now := m.clock()
	for _, e := range gone {
		if _, still := stay[id{e.Key, e.Port}]; !still {
			m.numbered++
			set(next, e.Key, member{e.Port, Left, m.numbered, now + linger})
			m.left = append(m.left, departure{e.Key, e.Port, m.numbered, now + linger})
		}
	}
	// Two pods may have one address while one of them terminates: then the other one counts.
	for _, is := range [...]Standing{Leaves, Stays} {
		for _, e := range come {
			if e.Standing == is {
				set(next, e.Key, member{e.Port, is, 0, always})
			}
		}
	}
	over := surplus(m.left, now)
	m.left = slices.DeleteFunc(m.left, func(d departure) bool {
		if d.until > now && over[d.Namespace] == 0 {
			return false
		}
		if d.until > now {
			over[d.Namespace]--
		}
		replace(next, d.Key, func(m member) bool { return m.Port == d.Port && m.standing == Left && m.number == d.number })
		return true
	})
	m.known.Store(&next)
}

// surplus returns how many departures each namespace has to lose, so that no more than most are left that still count.
// All namespaces that lose some keep equally many.
func surplus(left []departure, now time.Duration) map[string]int {
	if len(left) <= most {
		return nil
	}
	has, sum := map[string]int{}, 0
	for i := range left {
		if left[i].until > now {
			has[left[i].Namespace]++
			sum++
		}
	}
	if sum <= most {
		return nil
	}
	rest, keep := most, 0
	for i, n := range slices.Sorted(maps.Values(has)) {
		if keep = rest / (len(has) - i); n > keep {
			break
		}
		rest -= n
	}
	over := map[string]int{}
	for name, n := range has {
		over[name] = max(0, n-keep)
	}
	return over
}

// set sets how an endpoint stands with a Service port.
func set(known map[Key]*place, k Key, to member) {
	replace(known, k, func(m member) bool { return m.Port == to.Port }, to)
}

// replace replaces the members that go by others.
func replace(known map[Key]*place, k Key, goes func(member) bool, by ...member) {
	next := new(place)
	if old := known[k]; old != nil {
		next.members = slices.DeleteFunc(slices.Clone(old.members), goes)
	}
	if next.members = append(next.members, by...); len(next.members) == 0 {
		delete(known, k)
		return
	}
	known[k] = next
	if slices.ContainsFunc(next.members, func(m member) bool { return m.standing == Stays }) {
		return
	}
	slices.SortStableFunc(next.members, func(a, b member) int { return cmp.Compare(b.until, a.until) })
	for _, m := range next.members {
		next.leaves, next.until = append(next.leaves, m.Port), append(next.until, m.until)
	}
}

// Leaving returns the Service ports that an endpoint leaves or has left, if it leaves all that it had. The list must
// not be changed.
func (m *Memory) Leaving(k Key) []Port {
	known := m.known.Load()
	if known == nil {
		return nil
	}
	p := (*known)[k]
	if p == nil || len(p.leaves) == 0 {
		return nil
	}
	n := len(p.leaves)
	for now := m.clock(); n > 0 && p.until[n-1] <= now; n-- {
	}
	return p.leaves[:n]
}

// Len returns the number of endpoints that are remembered.
func (m *Memory) Len() int {
	if known := m.known.Load(); known != nil {
		return len(*known)
	}
	return 0
}
