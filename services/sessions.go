package services

import (
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// sessionShards spreads clients over locks.
	sessionShards = 64
	// maxSessions bounds the clients that are remembered in one shard, 65,536 in all. Beyond, somebody is
	// forgotten, whose session then does not end, or starts over.
	maxSessions = 1024
)

// sessions remembers when clients with ClientIP affinity were seen last, so that a session ends after the Service's
// timeout without a new connection, as with kube-proxy. The choice itself needs no memory: who is not known here,
// after a restart for example, has the backend that everyone's first session has.
type sessions struct {
	shards [sessionShards]struct {
		mu    sync.Mutex
		known map[sessionKey]session
	}
}

type sessionKey struct {
	client packet.Addr
	port   uint64 // portID of the Service port
}

// session has no pointers, so that the garbage collector need not look at any.
type session struct {
	last time.Duration // since start
	turn uint32        // counts the sessions of this client
}

// start is what times count from: monotonic, unlike a wall clock.
var start = time.Now()

// turn tells which session of a client this is, 0 for the first, and that the client was seen.
func (s *sessions) turn(k sessionKey, timeout time.Duration) uint32 {
	now := time.Since(start)
	shard := &s.shards[finish(clientHash(&k.client)^k.port)%sessionShards]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	e, known := shard.known[k]
	switch {
	case known && now-e.last > timeout:
		e.turn++
	case !known:
		if shard.known == nil {
			shard.known = map[sessionKey]session{}
		}
		if len(shard.known) >= maxSessions {
			for other := range shard.known { // whoever comes first in no order
				delete(shard.known, other)
				break
			}
		}
	}
	e.last = now
	shard.known[k] = e
	return e.turn
}
