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
	// ErrTaken means that another pod has a fixed address at the moment.
	ErrTaken = errors.New("is another pod's at the moment")
	// ErrRests means that another pod had a fixed address until a moment ago.
	ErrRests = errors.New("was another pod's until a moment ago, and rests")

	errNoRange = errors.New("this node has no podCIDR, so there are no addresses for pods: see Node.spec.podCIDRs")
)

// Key names an attachment.
type Key struct {
	// ContainerID is the runtime's name for the sandbox.
	ContainerID string `json:"container"`
	// IfName is the interface's name in the sandbox.
	IfName string `json:"ifname"`
}

// Lease holds the addresses of one attachment.
type Lease struct {
	Key
	// Network is the name of the CNI network.
	Network string `json:"network,omitempty"`
	// Namespace and Name name the pod.
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addrs     []netip.Addr `json:"addrs"`
	// Released is zero while the Lease is held.
	Released time.Time `json:"released,omitzero"`
}

func (l *Lease) pod() string { return l.Namespace + "/" + l.Name }

// isOf reports whether both are leases of the same pod, by its name, in the same network.
func (l *Lease) isOf(other *Lease) bool { return l.pod() == other.pod() && l.Network == other.Network }

// Options of Open.
type Options struct {
	// Ranges returns the node's present podCIDRs, at most one per family. Leases of other ranges stay held.
	Ranges func() []netip.Prefix
	// Rest is how long a released address is not assigned again; 0 means no time.
	Rest time.Duration
	// InUse reports whether an address belongs to something without a Lease; nil means that none does.
	InUse func(netip.Addr) bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Leases holds the leases of one node. Its methods are safe for concurrent use.
type Leases struct {
	o       Options
	journal *journal

	mu     sync.Mutex
	held   map[Key]*entry
	byAddr map[netip.Addr]Key
	// resting holds the released leases by address, until their rest is over; for each address the last one.
	resting map[netip.Addr]*entry
	// last holds the address that was assigned last in each family (index 1 is IPv6).
	last [2]netip.Addr
	seq  uint64 // of the last entry
}

// entry is a Lease with its sequence number, by which the journal is sorted when it is written anew.
type entry struct {
	Lease
	seq uint64
}

// Open reads the journal at path; when there is none, the first Lease makes it. It leaves out what cannot be read,
// and describes that in damage, a sentence for people. Only one Leases may use a journal at a time.
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

// putLocked makes x the valid Lease of its attachment and of its addresses.
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
		if other, ok := l.byAddr[a]; ok { // the later of two counts
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

// Acquire gives want.Key a Lease with one address of every range: those in want.Addrs, and any free address in the
// other ranges. A Key that has a Lease already gets the same Lease again, whatever it wants now. A fixed address is
// taken from an earlier sandbox of the same pod, and rests after other pods alone. The Lease is on the disk when
// Acquire returns. When a later attempt may succeed, the error wraps ErrTaken or ErrRests, or is a *FullError.
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
		if e := l.held[l.byAddr[a]]; e != nil && e.isOf(&want) && !slices.Contains(earlier, e) {
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
		own: func(a netip.Addr) bool {
			e := l.resting[a]
			return e != nil && e.isOf(&want)
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

// Release ends a Lease. Releasing an unknown Key is no error. The release counts even when the error says that it
// could not be written: the next write makes up for it.
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
	// If a power failure loses this line, the lease will be held by no pod, and released after the restart.
	if err := l.writeLocked([]Lease{x}, false); err != nil {
		return fmt.Errorf("note that the addresses of pod %s are free: %w", x.pod(), err)
	}
	return nil
}

// Keep adds Leases that are known from elsewhere to be in force; they take precedence over those of the journal. It
// returns how many the journal did not have. They count even when the error says that they could not be written.
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

// Get returns the Lease of k, if it has one.
func (l *Leases) Get(k Key) (Lease, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.held[k]; e != nil {
		return e.Lease, true
	}
	return Lease{}, false
}

// Held returns all leases that are held, the oldest first.
func (l *Leases) Held() []Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Lease
	for _, e := range l.sortedLocked(false) {
		list = append(list, e.Lease)
	}
	return list
}

// Resting returns how many released addresses may not be assigned yet.
func (l *Leases) Resting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wakeLocked(l.o.Now())
	return len(l.resting)
}

// wakeLocked forgets the addresses whose rest is over.
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
	return slices.Compact(list) // a Lease rests once for each of its addresses
}

// writeLocked writes lines, by appending them or, when that is due, by writing the whole file anew.
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
