package services

import (
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
)

const (
	// sessionShards is the number of locks among which clients are spread.
	sessionShards = 64
	// maxSessions is the number of clients that one shard remembers; all shards together remember 65,536. When a shard
	// is full, a random client is forgotten. The session of a forgotten client either does not end or starts over.
	maxSessions = 1024
)

// sessions remembers when clients with ClientIP affinity last made a connection, so that a session ends after the
// Service's timeout without a new connection, as in kube-proxy. The choice itself needs no memory: a client that is
// not known here, for example after a restart, gets the backend of a first session.
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

// session has no pointers, so that the garbage collector does not scan the maps.
type session struct {
	last time.Duration // since start
	turn uint32        // how many sessions of this client have ended
}

// start is the origin of session times. It carries a monotonic clock reading.
var start = time.Now()

// turn returns the number of the client's present session, 0 for the first, and records that the client was seen.
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
			for other := range shard.known { // the first in map order, which is random
				delete(shard.known, other)
				break
			}
		}
	}
	e.last = now
	shard.known[k] = e
	return e.turn
}
