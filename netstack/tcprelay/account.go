package tcprelay

import (
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// bounds distributes connections and memory among owners, by the rule of package share for what cannot be taken back:
// no owner gets more of anything than is left to the others. An owner is whoever began a connection: a pod, or a
// client's network.
type bounds struct {
	maxConns, maxOpening, maxBytes int

	bytes atomic.Int64 // the sum over all accounts

	mu             sync.Mutex // guards what follows, and the counts of accounts
	accounts       map[packet.Addr]*account
	conns, opening int
	refused        uint64
}

// account counts what one owner is charged for.
type account struct {
	of             *bounds
	owner          packet.Addr
	conns, opening int // opening counts those of conns that are not open yet

	bytes atomic.Int64 // memory for data that its receiver has not accepted yet
}

func newBounds(maxConns, maxBytes int) bounds {
	return bounds{
		maxConns: maxConns, maxOpening: min(maxOpening, maxConns), maxBytes: maxBytes, accounts: map[packet.Addr]*account{},
	}
}

// begin counts a new connection and returns the account that it is charged to, or nil when the owner may have no more.
func (b *bounds) begin(owner packet.Addr) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	conns, opening := 0, 0
	if a := b.accounts[owner]; a != nil {
		conns, opening = a.conns, a.opening
	}
	if share.DecideKept(conns, b.maxConns-b.conns) != share.Free || share.DecideKept(opening, b.maxOpening-b.opening) != share.Free {
		b.refused++
		return nil
	}
	return b.charge(owner, false)
}

// resume counts a connection of the Relay before, which has decided about it. To decide again would refuse some of what
// was granted, as that depends on the order. It returns nil only when there are maxConns connections.
func (b *bounds) resume(owner packet.Addr, open bool) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conns >= b.maxConns {
		b.refused++
		return nil
	}
	return b.charge(owner, open)
}

// charge counts a connection. The caller holds mu.
func (b *bounds) charge(owner packet.Addr, open bool) *account {
	a := b.accounts[owner]
	if a == nil {
		a = &account{of: b, owner: owner}
		b.accounts[owner] = a
	}
	a.conns++
	b.conns++
	if !open {
		a.opening++
		b.opening++
	}
	return a
}

// opened records that a connection is open now.
func (a *account) opened() {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.opening--
	a.of.opening--
}

// end removes a connection from the account. open says whether the connection was open.
func (a *account) end(open bool) {
	b := a.of
	b.mu.Lock()
	defer b.mu.Unlock()
	a.conns--
	b.conns--
	if !open {
		a.opening--
		b.opening--
	}
	if a.conns == 0 {
		delete(b.accounts, a.owner)
	}
}

// take charges n bytes, and returns false when the owner may not have as many. Concurrent calls may together exceed the
// bound a little.
func (a *account) take(n int) bool {
	free := a.of.maxBytes - int(a.of.bytes.Load())
	if share.DecideKept(int(a.bytes.Load())+n-1, free) != share.Free {
		return false
	}
	a.bytes.Add(int64(n))
	a.of.bytes.Add(int64(n))
	return true
}

func (a *account) give(n int) {
	a.bytes.Add(int64(-n))
	a.of.bytes.Add(int64(-n))
}

// Stats holds what is in use now, and counters since New.
type Stats struct {
	// Conns is the number of connections, Opening the number of those that are not open yet, and Owners the number of
	// pods and clients' networks that have any. Most is the largest number that one owner has.
	Conns, Opening, Owners, Most int
	// Bytes is the memory for data that its receiver has not accepted yet.
	Bytes int
	// Held is the number of connections that outlive the Relay.
	Held int
	// Refused counts connections for which there was no room.
	Refused uint64
	// NoPort counts connections for which the host had no port left towards their server.
	NoPort uint64
}

func (b *bounds) stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := Stats{Conns: b.conns, Opening: b.opening, Owners: len(b.accounts), Bytes: int(b.bytes.Load()), Refused: b.refused}
	for _, a := range b.accounts {
		s.Most = max(s.Most, a.conns)
	}
	return s
}
