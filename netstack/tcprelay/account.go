package tcprelay

import (
	"sync"
	"sync/atomic"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// bounds share out what all connections need, by the rule of package share for what cannot be taken away: nobody gets
// more of anything than is left to others. Each is charged to whoever began a connection: a pod, or a client's network.
type bounds struct {
	maxConns, maxOpening, maxBytes int

	bytes atomic.Int64 // of all accounts

	mu             sync.Mutex // guards what follows, and the counts of accounts
	accounts       map[packet.Addr]*account
	conns, opening int
	refused        uint64
}

// account is what one owner is charged.
type account struct {
	of             *bounds
	owner          packet.Addr
	conns, opening int // opening of the conns do not exist yet

	bytes atomic.Int64 // of streams that wait for somebody to take them
}

func newBounds(maxConns, maxBytes int) bounds {
	return bounds{
		maxConns: maxConns, maxOpening: min(maxOpening, maxConns), maxBytes: maxBytes, accounts: map[packet.Addr]*account{},
	}
}

// begin counts a connection that is to be opened, and gives the account that it is charged to; nil when there may be no
// more.
func (b *bounds) begin(owner packet.Addr) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.accounts[owner]
	if a == nil {
		a = &account{of: b, owner: owner}
	}
	if share.DecideKept(a.conns, b.maxConns-b.conns) != share.Free || share.DecideKept(a.opening, b.maxOpening-b.opening) != share.Free {
		b.refused++
		return nil
	}
	b.accounts[owner] = a
	a.conns++
	a.opening++
	b.conns++
	b.opening++
	return a
}

// opened says that a connection that began is open now.
func (a *account) opened() {
	a.of.mu.Lock()
	defer a.of.mu.Unlock()
	a.opening--
	a.of.opening--
}

// end gives up a connection that was open, or one that never was.
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

// take charges n bytes, if there are as many. Several at once may get a few more than there are.
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

// Stats are what is in use now, and counters since New.
type Stats struct {
	// Conns is how many connections there are, Opening how many of them do not exist yet, Owners whose they are: pods, and
	// clients' networks. Most is how many the one with the most has.
	Conns, Opening, Owners, Most int
	// Bytes wait for somebody to take them.
	Bytes int
	// Refused counts connections for which there was no room.
	Refused uint64
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
