// Package limbo keeps refused connections for a while before it resets them. A client that is reset at once dials again
// at once, so the refusals of one that never gives up cost more than its connections would.
//
// # Where they are
//
// A connection in limbo has no descriptor, no goroutine and no place in a poller: it is a message under way in a pair
// of Unix sockets that nobody reads (SCM_RIGHTS, unix(7)), and the kernel ends it when the pair is closed. So the limit
// of the process's descriptors does not bound how many are kept, but another one does: a user may have as many
// descriptors under way as RLIMIT_NOFILE says, all of its processes together, and the keeper needs a few. See New.
//
// # What they cost the kernel
//
// What a client sent before is thrown away, and a connection with data that cannot be, as behind a gap, is not kept.
// What the client sends later wakes nobody. The kernel drops it once it has 8 KiB, but it takes whole what the network
// card joined into one piece, which is 64 KiB at most and 33 KiB over loopback. A client whose window was full is told
// one of 4 KiB.
//
// # Whose they are
//
// A connection is kept for the sake of whoever refuses, and not of its client. So places are not shared out: who gets
// none is reset at once, which is what all were before.
package limbo

import (
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// PerPair is how many connections are kept in a pair of sockets. A pair takes 278 before its buffer is full
	// (212,992 bytes by default, 768 for each message), and the fewer are reset together, the better.
	PerPair = 128
	// longest is how long a connection is kept at most, and perSecond how many of the client's own make it a second
	// more.
	longest   = 8 * time.Second
	perSecond = 256
	// unread is the receive buffer of a connection that is kept, in bytes; the kernel doubles it (socket(7)).
	unread = 4 << 10
	// mostUnread is how much memory a connection that is kept may have in its receive queues, in bytes.
	mostUnread = 16 << 10
	// discards is how often unread data is thrown away, and discarded how much of it at once. A call ends early at the
	// mark of urgent data.
	discards  = 4
	discarded = 64 << 10
	// slot is how exactly the time is kept. Connections that end in the same slot share pairs.
	slot = 250 * time.Millisecond
)

// Limbo keeps connections of owners named by K. Its methods are safe for concurrent use.
type Limbo[K comparable] struct {
	most int // pairs

	mu     sync.Mutex // guards what follows
	held   map[K]int
	pairs  int
	slots  map[int64]*room[K]
	closed bool
}

// room is what ends in one slot.
type room[K comparable] struct {
	pairs [][2]int  // each with PerPair connections at most
	last  int       // connections in the last pair
	of    map[K]int // connections of each owner
	timer *time.Timer
}

// New returns a Limbo that has so many descriptors for itself, at least 2, and keeps up to 64 connections for each of
// them. With 1/128 of what the process may have, half of what its user may have under way is left to others.
func New[K comparable](descriptors int) *Limbo[K] {
	return &Limbo[K]{most: max(1, descriptors/2), held: map[K]int{}, slots: map[int64]*room[K]{}}
}

// timeOf returns how long a connection is kept of an owner that has so many: who goes on waits longer.
func timeOf(held int) time.Duration {
	return min(time.Second*time.Duration(1+held/perSecond), longest)
}

// Hold takes c over, and resets it after a second, or up to eight if owner has many in limbo. It reports false, and
// leaves c to the caller, when there is no place for c, it is no socket of the kernel's, or the kernel has much unread
// data for it that cannot be thrown away. In a nil Limbo there is no place.
func (l *Limbo[K]) Hold(c net.Conn, owner K) bool {
	s, ok := c.(syscall.Conn)
	if l == nil || !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	if !l.put(raw, owner) {
		return false
	}
	c.Close() // the message has it
	return true
}

func (l *Limbo[K]) put(raw syscall.RawConn, owner K) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	d := timeOf(l.held[owner])
	at := (time.Now().UnixNano() + int64(d)) / int64(slot)
	r := l.slots[at]
	if r == nil || r.last == PerPair {
		if r = l.widen(at, r, d); r == nil {
			return false
		}
	}
	sent := false
	err := raw.Control(func(fd uintptr) {
		if !empty(int(fd)) {
			return
		}
		// The last close resets the connection.
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		to := r.pairs[len(r.pairs)-1][0]
		err := unix.Sendmsg(to, []byte{0}, unix.UnixRights(int(fd)), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if sent = err == nil; err == unix.EAGAIN {
			r.last = PerPair // the pair is full, so the next one gets another
		}
	})
	if err != nil || !sent {
		return false
	}
	r.last++
	r.of[owner]++
	l.held[owner]++
	return true
}

// empty throws away what a socket has received, and reports whether the kernel keeps little for it now. The buffer is
// made small first, so that the client is not told of all the room.
func empty(fd int) bool {
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, unread)
	for range discards {
		// TCP takes no buffer with MSG_TRUNC, since it throws the data away (tcp(7)).
		n, _, err := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, discarded, unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
		if err != 0 || n == 0 {
			break
		}
	}
	memory, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO) // the first value is SK_MEMINFO_RMEM_ALLOC
	return err == nil && memory <= mostUnread
}

// widen gives the room of a slot, which is nil at first, one more pair. It returns nil when there are enough.
func (l *Limbo[K]) widen(at int64, r *room[K], d time.Duration) *room[K] {
	if l.closed || l.pairs == l.most {
		return nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	if r == nil {
		r = &room[K]{of: map[K]int{}}
		r.timer = time.AfterFunc(d, func() { l.end(at) })
		l.slots[at] = r
	}
	l.pairs++
	r.pairs, r.last = append(r.pairs, pair), 0
	return r
}

// end resets the connections of a slot.
func (l *Limbo[K]) end(at int64) {
	l.mu.Lock()
	r := l.slots[at]
	delete(l.slots, at)
	l.mu.Unlock()
	r.end()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forget(r)
}

// forget no longer counts what was in r. The mutex is held.
func (l *Limbo[K]) forget(r *room[K]) {
	l.pairs -= len(r.pairs)
	for owner, n := range r.of {
		if l.held[owner] -= n; l.held[owner] == 0 {
			delete(l.held, owner)
		}
	}
}

func (r *room[K]) end() {
	for _, pair := range r.pairs {
		unix.Close(pair[0])
		unix.Close(pair[1])
	}
}

// Close resets all connections. Hold reports false from then on. It does nothing in a nil Limbo.
func (l *Limbo[K]) Close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for at, r := range l.slots {
		if r.timer.Stop() { // else end does it
			delete(l.slots, at)
			r.end()
			l.forget(r)
		}
	}
}
