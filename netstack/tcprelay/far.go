package tcprelay

import (
	"sync"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/recovery"
)

// far is what a conn has besides for a pod of another node: between the nodes there is a network, which loses segments
// and is shared with others. conn.mu guards board and latest, the rest belongs to the goroutine that pumps.
type far struct {
	board  recovery.Board // what has arrived at the pod beyond what it acknowledges
	latest uint32         // the number of the last segment that came after a hole

	window recovery.Window
	rtt    recovery.RTT
	mss    int // the largest payload of a segment now, which the path may bound; written under mu
	// The segment before the number timed was sent at timedAt, and once; 0 for none.
	timed   uint32
	timedAt time.Duration
	spoke   time.Duration // when new data was sent last
	held    bool          // the window has kept data back

	// While hostStream.recovering: what lies before lost and has not arrived is lost, and was sent again up to
	// repeated. idle says that a timeout began this, expired that another one may not shrink the window once more.
	lost, repeated uint32
	idle, expired  bool
}

// canGoFar is the error of Holdable: what a far pod has not acknowledged stays in the socket, whether that is held or
// not.
var canGoFar = sync.OnceValue(Holdable)

// goFar makes c a connection to a pod of another node, to which packets of mtu bytes fit.
func (c *conn) goFar(mtu int) {
	c.far = &far{mss: mtu - packet.TCPHeadLen(&c.key.Src)}
	c.pumpFar = c.pump
	c.peeks, c.to.taken = true, c.to.nxt
}

// acceptFar begins with the segments that the pod and the path take.
func (c *conn) acceptFar() {
	c.far.mss = min(c.far.mss, c.to.mss)
	c.far.window.Init(c.far.mss)
}

// fit adapts the segments to what the path carries now.
func (c *conn) fit() {
	mtu, ok := c.r.o.Far(c.key.Src)
	if !ok {
		return // the node is gone; it may come back
	}
	mss := max(min(mtu-packet.TCPHeadLen(&c.key.Src), c.to.mss), minMSS)
	if mss != c.far.mss {
		c.mu.Lock()
		c.far.mss = mss
		c.mu.Unlock()
		c.far.window.SetMSS(mss)
		c.to.limit = maxPayload / mss * mss
	}
}

// sendMSS returns the largest payload of a segment.
func (c *conn) sendMSS() int {
	if c.far != nil {
		return c.far.mss
	}
	return c.to.mss
}

// timeout returns how long an acknowledgement may take.
func (c *conn) timeout() time.Duration {
	if c.far != nil {
		return c.far.rtt.Timeout()
	}
	return minTimeout
}

// pumpLater has another goroutine pump. The one that brings packets from other nodes must not wait until there is room
// on the way to them.
func (c *conn) pumpLater() {
	for {
		switch c.pumping.Load() {
		case idle:
			go c.pumpFar()
			return
		case again:
			return
		default:
			if c.pumping.CompareAndSwap(busy, again) {
				return
			}
		}
	}
}

// takeSACK records which segments have arrived behind a hole (RFC 2018). The caller holds mu.
func (c *conn) takeSACK(options []byte) todo {
	f, una, next := c.far, c.from.lastAck, c.next.Load()
	if c.from.most != 0 && ahead(c.from.most, next) {
		next = c.from.most
	}
	any := false
	eachSACK(options, func(at, end uint32) {
		if !ahead(at, una) || !ahead(end, at) || ahead(end, next) {
			return // old, or a duplicate (RFC 2883), or never sent
		}
		f.board.Add(at, end)
		any = true
	})
	f.board.Ack(una)
	if !any {
		return 0
	}
	if _, lost := f.board.Lost(f.mss); lost {
		c.note(lostOne)
	}
	return work
}

// onWay returns how many bytes are believed to be on their way (pipe of RFC 6675 4).
func (c *conn) onWay() int {
	f, t := c.far, &c.to
	c.mu.Lock()
	defer c.mu.Unlock()
	n := t.nxt - t.una - min(f.board.Arrived(), t.nxt-t.una)
	if t.recovering {
		n -= min(n, f.board.Missing(later(c.lastUna(), f.repeated), f.lost))
	}
	return int(n)
}

// lastUna returns the oldest number that is not acknowledged, as the board has it. The caller holds mu.
func (c *conn) lastUna() uint32 { return later(c.to.una, uint32(c.acked.Load()>>32)) }

func later(a, b uint32) uint32 {
	if ahead(a, b) {
		return a
	}
	return b
}

// farLost begins to repair what is lost, unless that is under way.
func (c *conn) farLost() {
	f, t := c.far, &c.to
	if c.stage.Load() != open || t.una == t.nxt || t.recovering {
		return
	}
	f.window.Lost(int(t.nxt - t.una))
	c.recoverFrom(t.una+uint32(f.mss), false)
}

// farExpired repairs everything that has not arrived, since nothing was acknowledged in time.
func (c *conn) farExpired() {
	f, t := c.far, &c.to
	if c.stage.Load() != open || t.una == t.nxt {
		return
	}
	f.window.Expired(int(t.nxt-t.una), f.expired)
	f.rtt.Expired()
	f.expired = true
	c.mu.Lock()
	f.board.Clear()
	c.mu.Unlock()
	c.recoverFrom(t.nxt, true)
}

// recoverFrom begins a recovery in which what lies before lost is lost.
func (c *conn) recoverFrom(lost uint32, idle bool) {
	f, t := c.far, &c.to
	t.recover, t.recovering = t.nxt, true
	f.lost, f.repeated, f.idle, f.timedAt = lost, t.una, idle, 0
	if ahead(f.lost, t.nxt) {
		f.lost = t.nxt
	}
	c.mend(true)
}

// mend sends again what is lost, as far as the window allows. first says that the first segment goes whatever the
// window allows, as a recovery begins with it (RFC 6675 5, 4.3) or, without SACK, was told that it is lost, too (RFC
// 6582 3.2).
func (c *conn) mend(first bool) {
	f, t := c.far, &c.to
	for t.recovering {
		c.mu.Lock()
		if before, ok := f.board.Lost(f.mss); ok && ahead(before, f.lost) {
			f.lost = before
		}
		at, n := f.board.Hole(later(c.lastUna(), f.repeated), f.lost)
		c.mu.Unlock()
		onWay := c.onWay()
		room := f.window.Size() - onWay
		if n == 0 || room < f.mss && onWay > 0 && !first {
			return
		}
		first = false
		sent := c.repeatAt(at, min(int(n), max(room, f.mss)))
		if sent == 0 {
			return // the timer tries again
		}
		f.repeated = at + uint32(sent)
	}
}

// farAcked handles that n more bytes were acknowledged.
func (c *conn) farAcked(n uint32) {
	f, t := c.far, &c.to
	now := c.r.now()
	f.expired = false
	if f.timedAt != 0 && !ahead(f.timed, t.una) {
		f.rtt.Sample(now - f.timedAt)
		f.timedAt = 0
	}
	if t.recovering && !ahead(t.recover, t.una) {
		t.recovering = false
	}
	if f.held && (!t.recovering || f.idle) {
		f.window.Acked(int(n), now, f.rtt.Smoothed())
	}
	if !t.recovering {
		return
	}
	next := !ahead(f.repeated, t.una)
	if next { // the next segment is lost, too (RFC 6582)
		f.lost = later(f.lost, t.una+uint32(f.mss))
		if ahead(f.lost, t.nxt) {
			f.lost = t.nxt
		}
	}
	c.mend(next && !c.from.sacks) // sacks does not change after accept
}

// farRoom returns for how many new bytes the congestion window has room.
func (c *conn) farRoom(flight uint32) int {
	f := c.far
	if flight == 0 && f.spoke != 0 && c.r.now()-f.spoke > f.rtt.Timeout() {
		f.window.Rested()
	}
	return f.window.Size() - c.onWay()
}

// spoken records that new data was sent up to the next number.
func (c *conn) spoken() {
	f := c.far
	f.spoke = c.r.now()
	if f.timedAt == 0 && !c.to.recovering {
		f.timed, f.timedAt = c.to.nxt, f.spoke
	}
}

// Carries reports whether there is a connection whose segments from the pod have this tuple.
func (r *Relay) Carries(t *packet.Tuple) bool { return r.find(t) != nil }

// Resuming reports whether connections of the Relay before may not be known yet.
func (r *Relay) Resuming() bool { return r.resuming.Load() }

// Unreachable says that an ICMP error has come about the connection whose segments from the pod have this tuple: nobody
// can be reached there. It ends a connection that is being opened; later it may be a passing fault (RFC 5461 3).
func (r *Relay) Unreachable(t *packet.Tuple) {
	if c := r.find(t); c != nil && c.stage.Load() == greeting {
		c.kill(podGone)
	}
}
