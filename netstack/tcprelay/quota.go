package tcprelay

import (
	"sync"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// quota sees to it that no pod takes what all pods need: descriptors, and room for connections that do not come about.
type quota struct {
	maxOpening, maxConns int

	mu   sync.Mutex
	pods map[packet.Addr]usage
}

// usage is what one pod has.
type usage struct{ opening, conns int }

func newQuota(maxOpening, maxConns int) quota {
	return quota{maxOpening: maxOpening, maxConns: maxConns, pods: map[packet.Addr]usage{}}
}

// maxConns is how many connections one pod may have: a quarter of the descriptors that the process may have.
func maxConns() int {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return 256
	}
	return int(min(lim.Cur/4, 1<<20))
}

// begin counts a connection that is to be opened; false when the pod may have no more.
func (q *quota) begin(pod packet.Addr) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.pods[pod]
	if u.opening >= q.maxOpening || u.conns >= q.maxConns {
		return false
	}
	q.pods[pod] = usage{u.opening + 1, u.conns + 1}
	return true
}

// opened says that a connection that began is open now.
func (q *quota) opened(pod packet.Addr) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.pods[pod]
	u.opening--
	q.pods[pod] = u
}

// end gives up a connection that was open, or one that never was.
func (q *quota) end(pod packet.Addr, open bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.pods[pod]
	u.conns--
	if !open {
		u.opening--
	}
	if u == (usage{}) {
		delete(q.pods, pod)
		return
	}
	q.pods[pod] = u
}
