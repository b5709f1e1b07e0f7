package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

var (
	// ErrTaken tells that a fixed address is somebody else's at the moment.
	ErrTaken = errors.New("is another pod's at the moment")

	errNoRange = errors.New("this node has no podCIDR, so there are no addresses for pods: see Node.spec.podCIDRs")
)

// Key names an attachment.
type Key struct {
	// ContainerID is the sandbox's, as the runtime names it.
	ContainerID string `json:"container"`
	// IfName is the interface's name inside.
	IfName string `json:"ifname"`
}

// Lease is the addresses of one attachment.
type Lease struct {
	Key
	// Network is the name of the CNI network.
	Network string `json:"network,omitempty"`
	// Namespace and Name are the pod's.
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs"`
	// Released is zero while the Lease is held.
	Released time.Time `json:"released,omitzero"`
}

func (l *Lease) pod() string { return l.Namespace + "/" + l.Name }

// Options of Open.
type Options struct {
	// Ranges gives the node's podCIDRs as they are at the moment, at most one per family. Leases of other ranges stay
	// held.
	Ranges func() []netip.Prefix
	// Rest is how long a released address is not given out again; 0 for no time.
	Rest time.Duration
	// InUse reports that an address is somebody's who has no Lease; nil for never.
	InUse func(netip.Addr) bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Leases are those of one node. Its methods are safe for concurrent use.
type Leases struct {
	o       Options
	journal *journal

	mu     sync.Mutex
	held   map[Key]*entry
	byAddr map[netip.Addr]Key
	// resting are the released ones, until their rest is over; of an address the last.
	resting map[netip.Addr]*entry
	// last are the addresses given out last, by family (index 1 is IPv6).
	last [2]netip.Addr
	seq  uint64 // of the last entry
}

// entry is a Lease with its place in time, by which the journal is sorted when it is written anew.
type entry struct {
	Lease
	seq uint64
}

// Open reads the journal at path; where there is none, the first Lease makes it. What was not readable is told by
// damage, a sentence for people, and left out. There must be one Leases of a journal at a time.
func Open(path string, o Options) (l *Leases, damage string, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.InUse == nil {
		o.InUse = func(netip.Addr) bool { return false }
	}
	l = &Leases{o: o, journal: &journal{path: path}, held: map[Key]*entry{}, byAddr: map[netip.Addr]Key{}, resting: map[netip.Addr]*entry{}}
	found, damage, err := l.journal.load()
	if err != nil {
		return nil, "", fmt.Errorf("read the journal of addresses %s: %w", path, err)
	}
	now := o.Now()
	for i := range found {
		x := &found[i].Lease
		for _, a := range found[i].Last {
			l.last[family(a)] = a
		}
		if x.ContainerID == "" {
			continue
		}
		if !x.Released.IsZero() {
			x.Released = now.Add(-max(0, now.Sub(x.Released))) // from here on by the monotonic clock
		}
		l.putLocked(x, now)
	}
	return l, damage, nil
}

// Close closes the journal.
func (l *Leases) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.journal.close()
}

// putLocked makes x what counts of its attachment and its addresses.
func (l *Leases) putLocked(x *Lease, now time.Time) {
	l.seq++
	e := &entry{*x, l.seq}
	if old := l.held[x.Key]; old != nil {
		l.dropLocked(old)
	}
	if !x.Released.IsZero() {
		for _, a := range x.Addrs {
			if l.restLeft(x.Released, now) > 0 {
				l.resting[a] = e
			}
		}
		return
	}
	for _, a := range x.Addrs {
		if other, ok := l.byAddr[a]; ok { // of two the later one counts
			l.dropLocked(l.held[other])
		}
		delete(l.resting, a)
		l.byAddr[a] = x.Key
		l.last[family(a)] = a
	}
	l.held[x.Key] = e
}

func (l *Leases) dropLocked(e *entry) {
	delete(l.held, e.Key)
	for _, a := range e.Addrs {
		if l.byAddr[a] == e.Key {
			delete(l.byAddr, a)
		}
	}
}

func (l *Leases) restLeft(released, now time.Time) time.Duration {
	return max(0, l.o.Rest-now.Sub(released))
}

// Acquire gives want.Key a Lease with one address of every range: those of want.Addrs where it asks for some, whichever
// is free else. A Key that has a Lease already gets that again, whatever it wants now. A fixed address is taken away
// from an earlier sandbox of the same pod. The Lease is on the disk when it is given. The error wraps ErrTaken or is a
// *FullError when later is another matter.
func (l *Leases) Acquire(want Lease) (Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.held[want.Key]; e != nil {
		return e.Lease, nil
	}
	now := l.o.Now()
	l.wakeLocked(now)
	var earlier []*entry // sandboxes of the pod that have what it wants
	for _, a := range want.Addrs {
		if e := l.held[l.byAddr[a]]; e != nil && e.pod() == want.pod() && e.Network == want.Network && !slices.Contains(earlier, e) {
			earlier = append(earlier, e)
		}
	}
	c := chooser{
		ranges: l.o.Ranges(),
		last: func(r netip.Prefix) netip.Addr {
			if a := l.last[family(r.Addr())]; r.Contains(a) {
				return a
			}
			return netip.Addr{}
		},
		held: func(a netip.Addr) bool {
			k, leased := l.byAddr[a]
			return leased && !slices.Contains(earlier, l.held[k]) || !leased && l.o.InUse(a)
		},
		rests: func(a netip.Addr) time.Duration {
			if e := l.resting[a]; e != nil {
				return l.restLeft(e.Released, now)
			}
			return 0
		},
	}
	var err error
	if want.Addrs, err = c.choose(want.Addrs); err != nil {
		return Lease{}, err
	}
	want.Released = time.Time{}
	var lines []Lease
	for _, e := range earlier {
		old := e.Lease
		old.Released = now
		lines = append(lines, old)
	}
	lines = append(lines, want)
	if err := l.writeLocked(lines, true); err != nil {
		return Lease{}, fmt.Errorf("note the addresses of pod %s: %w", want.pod(), err)
	}
	for i := range lines {
		l.putLocked(&lines[i], now)
	}
	return want, nil
}

// Release ends a Lease; one that is not held is no error. It counts even when the error says that it could not be
// written: the next write makes up for it.
func (l *Leases) Release(k Key) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.held[k]
	if e == nil {
		return nil
	}
	x, now := e.Lease, l.o.Now()
	x.Released = now
	l.putLocked(&x, now)
	// Lost with the machine's power it would be found held by nobody, and released then.
	if err := l.writeLocked([]Lease{x}, false); err != nil {
		return fmt.Errorf("note that the addresses of pod %s are free: %w", x.pod(), err)
	}
	return nil
}

// Keep makes sure of Leases that are known from elsewhere to be in force; they win over those of the journal. It
// reports how many the journal did not have. They count even when the error says that they could not be written.
func (l *Leases) Keep(list []Lease) (missing int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.o.Now()
	var lines []Lease
	for i := range list {
		x := list[i]
		x.Released = time.Time{}
		if e := l.held[x.Key]; e != nil && slices.Equal(e.Addrs, x.Addrs) {
			continue
		}
		l.putLocked(&x, now)
		lines = append(lines, x)
	}
	if len(lines) == 0 {
		return 0, nil
	}
	if err := l.writeLocked(lines, true); err != nil {
		return len(lines), fmt.Errorf("note the addresses of pods that were attached before: %w", err)
	}
	return len(lines), nil
}

// Get gives the Lease that k holds.
func (l *Leases) Get(k Key) (Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.held[k]; e != nil {
		return e.Lease, true
	}
	return Lease{}, false
}

// Held gives all that are held, the oldest first.
func (l *Leases) Held() []Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Lease
	for _, e := range l.sortedLocked(false) {
		list = append(list, e.Lease)
	}
	return list
}

// Resting counts the addresses that were released and may not be given out yet.
func (l *Leases) Resting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeLocked(l.o.Now())
	return len(l.resting)
}

// wakeLocked forgets those whose rest is over.
func (l *Leases) wakeLocked(now time.Time) {
	for a, e := range l.resting {
		if l.restLeft(e.Released, now) == 0 {
			delete(l.resting, a)
		}
	}
}

func (l *Leases) sortedLocked(resting bool) []*entry {
	var list []*entry
	for _, e := range l.held {
		list = append(list, e)
	}
	if resting {
		for _, e := range l.resting {
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(a.seq, b.seq) })
	return slices.Compact(list) // a Lease rests with each of its addresses
}

// writeLocked notes lines, by appending or, when that is due, by writing all anew with them.
func (l *Leases) writeLocked(lines []Lease, sync bool) error {
	var all []record
	due := l.journal.due(len(l.held) + len(l.resting))
	if due {
		for _, e := range l.sortedLocked(true) {
			all = append(all, record{Lease: e.Lease})
		}
		for _, a := range l.last {
			if a.IsValid() {
				all = append(all, record{Last: []netip.Addr{a}})
			}
		}
	}
	for _, x := range lines {
		all = append(all, record{Lease: x})
	}
	if due {
		return l.journal.rewrite(all)
	}
	return l.journal.append(all, sync)
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
