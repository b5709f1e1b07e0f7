// Package affinity remembers which backend each client of a Service with ClientIP session affinity has.
//
// # What is remembered
//
// A session is one client at one Service port: all addresses and node ports of the Service port share it, and other
// ports of the Service have sessions of their own. kube-proxy does the same: its memory belongs to the endpoint of a
// Service port (a list of xt_recent or a set of nftables for each). A session lasts until the client has begun no
// connection for the Service's timeout. What is sent over a connection does not count.
//
// A session ends as well when its backend may not be chosen any more (Forget). So a backend that leaves and returns
// gets none of its clients back. A client without a session is placed by a hash of its address, which needs no memory:
// after a restart, and where there is no room. Each session of a client that ended in time is counted (Session.Turn),
// so that the next one can be placed elsewhere.
//
// # Room
//
// The memory holds a fixed number of sessions, half of them for clients inside the cluster and half for those outside:
// whoever forges addresses outside takes nothing from pods. Each session is charged to an owner, and when there is no
// room, the rule of package share says whose goes: never the only session of an owner. Sessions that have ended make
// room before the rule is asked.
//
// # Cost
//
// Only the first packet of a flow asks. The sessions are spread over many locks by a secret hash; the rule of sharing
// holds under each lock by itself, so that no two clients wait for one another except by chance. Nothing is allocated,
// except when there are more sessions than ever before.
package affinity

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

const (
	// shards is the number of locks for the clients on each side.
	shards = 64
	// perShard is the number of sessions under one lock. All shards of both sides together hold 65,536.
	perShard = 512
	// restTime is the least time between two searches of a full shard for sessions that have ended.
	restTime = time.Second
)

// Key identifies a session.
type Key struct {
	Client packet.Addr
	Port   uint64 // the Service port, by a hash
	Inside bool   // the client is of the cluster
}

// Session is what is remembered of a client.
type Session struct {
	Backend uint64 // 0: the client has no session
	Turn    uint32 // how many sessions of the client are known to have ended in time
}

// Memory remembers sessions. Its methods may be called concurrently.
type Memory struct {
	owner  func(netip.Addr) netip.Prefix
	seed   uint64
	start  time.Time // the origin of all times
	shards [2 * shards]shard
}

// shard holds the sessions under one lock.
type shard struct {
	mu     sync.Mutex
	places *share.Limit[netip.Prefix, *entry]
	// chains are the sessions in use, by some bits of the key's hash. They are made with the first session.
	chains   []*entry
	spare    *entry        // entries that are not in use
	held     int           // entries in use
	searched time.Duration // when sessions that had ended were looked for
}

// entry is a session, or a spare one.
type entry struct {
	key     Key
	slot    uint32 // index in chains
	turn    uint32
	backend uint64
	last    time.Duration // when the client last began a connection
	timeout time.Duration
	next    *entry
	claim   share.Claim[netip.Prefix, *entry]
}

func (e *entry) ended(now time.Duration) bool { return now-e.last > e.timeout }

// New returns an empty Memory. owner returns who is charged for a client's sessions; it must not block. Nil charges
// clients by addressing.Client.
func New(owner func(client netip.Addr) netip.Prefix) *Memory {
	if owner == nil {
		owner = addressing.Client
	}
	m := &Memory{owner: owner, seed: rand.Uint64(), start: time.Now()}
	for i := range m.shards {
		m.shards[i].places = share.New[netip.Prefix, *entry](share.Options[netip.Prefix]{Total: perShard})
	}
	return m
}

// Find returns the client's session, and records that the client begins a connection. If its last session ended in
// time, the Session has no backend and the next turn. k is borrowed.
func (m *Memory) Find(k *Key, timeout time.Duration) Session {
	s, slot := m.shard(k)
	now := time.Since(m.start)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(k, slot)
	if e == nil {
		return Session{}
	}
	if e.timeout = timeout; e.ended(now) {
		return Session{Turn: e.turn + 1}
	}
	e.last = now
	s.places.Touch(&e.claim)
	return Session{Backend: e.backend, Turn: e.turn}
}

// Keep records the session of a client that begins a connection. Where there is no room for it, Keep does nothing. k is
// borrowed.
func (m *Memory) Keep(k *Key, session Session, timeout time.Duration) {
	s, slot := m.shard(k)
	now := time.Since(m.start)
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.find(k, slot)
	if e != nil {
		s.places.Touch(&e.claim)
	} else if e = s.take(m.owner(k.Client.Netip()), now); e != nil {
		e.key, e.slot, e.next = *k, slot, s.chains[slot]
		s.chains[slot] = e
	} else {
		return
	}
	e.backend, e.turn, e.last, e.timeout = session.Backend, session.Turn, now, timeout
}

// Forget ends all sessions with these backends. It is called when they may be chosen no longer, and when they may be
// chosen again.
func (m *Memory) Forget(backends map[uint64]struct{}) {
	if len(backends) == 0 {
		return
	}
	for i := range m.shards {
		m.shards[i].remove(func(e *entry) bool {
			_, gone := backends[e.backend]
			return gone
		})
	}
}

// Stats says how full a Memory is, and counts since New.
type Stats struct {
	Sessions int // that have not ended
	// Replaced counts sessions that made room for others before they ended. Refused counts those for which there was no
	// room.
	Replaced, Refused uint64
}

// Stats returns the sum over all shards.
func (m *Memory) Stats() (sum Stats) {
	now := time.Since(m.start)
	for i := range m.shards {
		s := &m.shards[i]
		s.each(func(e *entry) {
			if !e.ended(now) {
				sum.Sessions++
			}
		})
		places := s.places.Stats()
		sum.Replaced += places.TakenFromMost + places.TakenFromOwn
		sum.Refused += places.Refused
	}
	return sum
}

// shard returns the shard of a key, and the key's place in the shard's chains.
func (m *Memory) shard(k *Key) (s *shard, slot uint32) {
	t := packet.Tuple{Src: k.Client}
	binary.LittleEndian.PutUint64(t.Dst[:], k.Port)
	h := t.Hash(m.seed)
	i := h % shards
	if k.Inside {
		i += shards
	}
	return &m.shards[i], uint32(h>>32) % perShard
}

// find returns the entry of a key, nil if there is none.
func (s *shard) find(k *Key, slot uint32) *entry {
	if s.chains == nil {
		return nil
	}
	for e := s.chains[slot]; e != nil; e = e.next {
		if e.key == *k {
			return e
		}
	}
	return nil
}

// take returns an entry that holds a place of the owner and is in no chain; nil if there is no room.
func (s *shard) take(owner netip.Prefix, now time.Duration) *entry {
	if s.chains == nil {
		s.chains, s.searched = make([]*entry, perShard), now
	}
	if s.held == perShard && now-s.searched >= restTime {
		s.searched = now
		s.removeLocked(func(e *entry) bool { return e.ended(now) })
	}
	e := s.spare
	if e == nil {
		e = new(entry)
		e.claim.Value = e
	} else {
		s.spare = e.next
	}
	lost, ok := s.places.Acquire(&e.claim, owner)
	switch {
	case !ok:
		e.next, s.spare = s.spare, e
		return nil
	case lost != nil:
		s.unchain(lost.Value)
	}
	s.held++
	return e
}

// unchain makes an entry that holds no place spare.
func (s *shard) unchain(e *entry) {
	at := &s.chains[e.slot]
	for *at != e {
		at = &(*at).next
	}
	*at = e.next
	e.next, s.spare = s.spare, e
	s.held--
}

// remove removes the sessions for which gone returns true.
func (s *shard) remove(gone func(*entry) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removeLocked(gone)
}

func (s *shard) removeLocked(gone func(*entry) bool) {
	for _, e := range s.chains {
		for e != nil {
			next := e.next
			if gone(e) {
				s.places.Release(&e.claim)
				s.unchain(e)
			}
			e = next
		}
	}
}

func (s *shard) each(f func(*entry)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.chains {
		for ; e != nil; e = e.next {
			f(e)
		}
	}
}
