package tcprelay

import (
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

var be = binary.BigEndian

// state is the state of a connection. It changes only with mu held.
type state = int32

const (
	connecting state = iota // the pod has sent a SYN, and the host socket is connecting
	answering               // we have sent a SYN-ACK
	greeting                // we have sent a SYN
	open
	dead
)

// The notes that other goroutines leave for the one that pumps. Those that end the connection come first.
const (
	podGone   uint32 = 1 << iota // the pod reset the connection, or was removed
	hostGone                     // the host socket failed, and has no more data for the pod
	aborted                      // we abort the connection
	hostReady                    // connect(2) has ended
	asked                        // the pod repeated its SYN
	probed                       // the pod sent a keep-alive probe
	lostOne                      // three duplicate acknowledgements
	podDeaf                      // the pod reset the connection after the end of its stream
	podFull                      // the pod announces no room for the data that is on its way
	hostDeaf                     // the host socket accepts no more data
	broken                       // the host socket has an error, or both its directions have ended
	stale                        // the pod answered our SYN as part of an older connection
	timeUp                       // the timer went off
	kepts                        // the socket is held for the next process, or cannot be
	found                        // the pod has answered what the Relay before had sent
	arrived                      // the socket has something to read
	leaving                      // this process ends
	owesAck                      // a segment of a far pod is to be acknowledged
	fatal     = podGone | hostGone | aborted | leaving
)

// conn is one connection. The package documentation says which goroutine may access what.
type conn struct {
	r         *Relay
	key, back packet.Tuple // the tuples of the pod's segments and of ours
	fd        int
	account   *account     // of the owner that began it
	joined    bool         // it began with Adopt or Join
	head      head         // of the pod's SYN
	told      Told         // set with fd
	failed    error        // why the host socket was not connected; set before hostGone is noted
	spare     *net.TCPConn // the client, whom the pod refused
	ended     chan struct{}
	stage     atomic.Int32 // a state
	notes     atomic.Uint32
	pumping   atomic.Int32
	timer     alarm

	first uint32 // the sequence number of our first byte

	// next is our next sequence number, and replies counts our segments with data. received is the number that we
	// acknowledge and the window field that goes with it: number<<32 | window. acked is the number that the pod
	// acknowledged and its window in bytes, in the same form.
	next, replies   atomic.Uint32
	received, acked atomic.Uint64
	shut            atomic.Bool   // the pod's stream has ended, and the socket was shut down for writing
	heard           atomic.Bool   // the pod has sent something since the last check of podLives
	forgotten       atomic.Uint32 // the number that the pod expects next in an older connection

	armed struct {
		sync.Mutex
		watch  *poll.Watch
		events uint32
	}

	// How the connection outlives this process (hold.go). slot and peeks are set before the connection is open. The
	// holder guards holding and orphan. kept belongs to the goroutine that pumps: the pod may be greeted.
	slot    uint32
	peeks   bool // what the pod has not acknowledged stays in the socket
	holding holding
	orphan  bool
	kept    bool
	left    atomic.Bool // the connection goes on in the next process

	mu       sync.Mutex // guards what follows
	pretence *pretence  // nil but for a pod's connection to the host itself
	from     podStream
	offered  uint64 // the word liveOffer

	hostEnd   uint32 // the number of the FIN that the Relay before was about to send; set if hostEnded
	hostEnded bool

	to hostStream // belongs to the goroutine that pumps

	far     *far   // nil for a pod of this node; set before anything is sent
	pumpFar func() // pump
}

func newConn(r *Relay, key packet.Tuple, s state) *conn {
	c := &conn{r: r, key: key, back: key.Reverse(), fd: -1, slot: noSlot, ended: make(chan struct{})}
	c.stage.Store(s)
	iss := r.isn(&key)
	c.to.una, c.to.nxt = iss, iss+1
	c.first = iss + 1
	c.to.deadline = r.now() + openTimeout
	c.next.Store(iss)
	c.acked.Store(uint64(iss) << 32)
	c.from.lastAck = iss
	c.timer.init(r, c.timeUp)
	return c
}

// accept records what the pod's SYN says.
func (c *conn) accept(o offer, seq uint32) {
	own := c.r.o.MTU() - packet.TCPHeadLen(&c.key.Src)
	c.to.mss = min(o.mss, own)
	c.to.limit = maxPayload / c.to.mss * c.to.mss
	c.from.scales, c.from.sacks = o.scales, o.sacks
	if c.far != nil {
		c.acceptFar()
		c.to.limit = maxPayload / c.far.mss * c.far.mss
	}
	if o.scales {
		c.from.podScale, c.from.ourScale = o.scale, ourScale
	}
	c.from.next, c.from.first, c.from.windowSeq = seq+1, seq+1, seq
	c.offered = offerWord(o, seq, false)
	c.received.Store(uint64(c.from.next)<<32 | maxWindowField) // the window field of a SYN is not scaled
}

// begin continues when the host socket exists, or could not be made (err). Somebody may have ended the connection
// before.
func (c *conn) begin(fd int, err error, events uint32, told Told) {
	c.mu.Lock()
	if c.stage.Load() == dead {
		pretence := c.pretence
		c.mu.Unlock()
		if err == nil {
			hangUp(fd, false)
		}
		c.r.behind.end(pretence)
		if told.Ended != nil {
			told.Ended(nil)
		}
		return
	}
	c.fd, c.told = fd, told
	c.mu.Unlock()
	if err == nil && c.far != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0)
	}
	if err == nil {
		err = c.watch(events)
	}
	if err != nil {
		if errors.Is(err, errNoPort) {
			c.r.noPort.Add(1)
		}
		c.failed = err
		c.kill(hostGone)
		return
	}
	c.timer.set(openTimeout)
	if c.joined {
		c.note(hostReady)
	}
	c.pump()
}

func (c *conn) watch(events uint32) (err error) {
	c.armed.Lock() // makes Ready wait until watch is set
	defer c.armed.Unlock()
	c.armed.events |= events
	c.armed.watch, err = c.r.o.Poller.Add(c.fd, c, c.armed.events)
	return err
}

// Ready implements poll.Handler.
func (c *conn) Ready(events uint32, buf []byte) []byte {
	c.armed.Lock()
	if events&poll.Fail != 0 {
		events |= c.armed.events
		c.note(broken)
	}
	if events&poll.In&c.armed.events != 0 {
		c.note(arrived)
	}
	if c.armed.events &^= events; c.armed.events != 0 {
		c.armed.watch.Arm(c.armed.events)
	}
	c.armed.Unlock()
	if events&poll.Out != 0 {
		if c.stage.Load() == connecting {
			c.note(hostReady)
		} else {
			c.drain()
		}
	}
	c.pump()
	return buf
}

// arm adds events to those that are waited for. A far pod may speak while its connection is resumed, before the socket
// is watched; then watch begins with these events.
func (c *conn) arm(events uint32) {
	c.armed.Lock()
	defer c.armed.Unlock()
	c.armed.events |= events
	if c.armed.watch != nil {
		c.armed.watch.Arm(c.armed.events)
	}
}

// unwatch ends the Watch.
func (c *conn) unwatch() {
	c.armed.Lock()
	defer c.armed.Unlock()
	if c.armed.watch != nil {
		c.armed.watch.Close()
	}
}

func (c *conn) note(n uint32) { c.notes.Or(n) }

// kill ends the connection, or leaves this to the goroutine that pumps. The caller does not hold mu.
func (c *conn) kill(why uint32) {
	c.note(why)
	c.pump()
}

// The values of conn.pumping.
const (
	idle int32 = iota
	busy
	again
)

// pump does the outstanding work for the socket's stream and for the connection as a whole. If another goroutine is
// pumping, that one does it. The caller does not hold mu.
func (c *conn) pump() {
	for !c.pumping.CompareAndSwap(idle, busy) {
		if c.pumping.Load() == again || c.pumping.CompareAndSwap(busy, again) {
			return
		}
	}
	for {
		if !c.step() {
			return // the connection has ended; pumping stays busy, so that nobody pumps again
		}
		if c.pumping.CompareAndSwap(busy, idle) {
			return
		}
		c.pumping.Store(busy)
	}
}

// step does all outstanding work once. It returns false when this has ended the connection.
func (c *conn) step() bool {
	notes := c.notes.Swap(0)
	if notes&fatal != 0 {
		return c.end(notes)
	}
	if notes&podDeaf != 0 {
		c.hush()
	}
	if notes&owesAck != 0 {
		c.acknowledge()
	}
	if c.far != nil && c.stage.Load() == open {
		c.fit() // before anything is sent again
	}
	c.takeAcks()
	if notes&found != 0 {
		c.to.asking = false
		c.acknowledge() // with a number that the pod accepts
	}
	if notes&lostOne != 0 {
		c.resend(false)
	}
	if notes&asked != 0 {
		c.to.deadline = c.r.now() + openTimeout
	}
	if notes&podFull != 0 {
		c.to.deadline = c.r.now() + giveUp
	}
	if notes&timeUp != 0 && !c.overdue() {
		return c.end(aborted)
	}
	c.inquire(notes)
	switch c.stage.Load() {
	case connecting:
		if notes&hostReady == 0 {
			break
		}
		if c.failed = connected(c.fd, c.head); c.failed != nil {
			return c.end(hostGone)
		}
		c.mu.Lock()
		c.stage.Store(answering)
		c.mu.Unlock()
		if c.kept = !c.enter(); c.kept {
			c.greet()
		}
	case answering:
		if notes&kepts != 0 && !c.kept {
			c.kept = true
			c.greet()
		}
	case greeting:
		if notes&hostReady != 0 && !c.enter() || notes&kepts != 0 {
			c.kept = true
		}
		if !c.kept {
			break
		}
		if notes&stale != 0 {
			c.emit(c.to.head[:], 0, &packet.TCPHeader{Seq: c.forgotten.Load(), Flags: packet.RST})
		}
		if c.next.Load() != c.to.nxt || notes&stale != 0 {
			c.greet()
		}
	case open:
		if notes&kepts != 0 && c.to.asking {
			c.ask()
			c.await(askTimeout)
		}
		if !c.podLives(notes) {
			return c.end(aborted)
		}
		if c.lost(notes) {
			return c.end(hostGone)
		}
		if c.far != nil {
			c.mend(false)
		}
		if errno := c.carry(notes); errno != 0 {
			return c.end(hostGone)
		}
		if c.to.fin && c.to.una == c.to.nxt && c.shut.Load() {
			return c.end(0)
		}
	}
	return true
}

// lost reports whether the socket has failed and the pod has been sent everything up to the end of the socket's stream.
// Before that end, carry finds the error after it has read the rest.
func (c *conn) lost(notes uint32) bool {
	t := &c.to
	if notes&hostDeaf != 0 {
		t.cut = true
	}
	return t.fin && (t.cut || notes&broken != 0 && pending(c.fd) != nil)
}

// hush marks everything sent to the pod as acknowledged, because the pod will not receive it any more.
func (c *conn) hush() {
	if !c.to.fin {
		c.consume(c.to.nxt) // what was left unread would make the end a reset
	}
	c.to.fin = true
	c.mu.Lock()
	defer c.mu.Unlock()
	c.from.lastAck = c.to.nxt
	c.acked.Store(uint64(c.to.nxt) << 32)
}

// end ends the connection and releases all it has. If why is 0, the end is clean. It returns false.
func (c *conn) end(why uint32) bool {
	leaves := why&fatal == leaving && c.slot != noSlot && c.r.hold.leaves(c)
	if why == 0 {
		c.consume(c.to.nxt - 1) // what was left unread would make it a reset
	}
	c.mu.Lock()
	c.left.Store(leaves)
	pretence := c.pretence
	was := c.stage.Swap(dead)
	c.unwatch()
	switch {
	case c.fd < 0:
	case leaves:
		unix.Close(c.fd)
	case c.told.Ended != nil && why&fatal == podGone && c.untouched(was) && c.giveBack():
	default:
		c.hangUp(why == 0)
	}
	c.releaseFrom()
	c.mu.Unlock()
	c.timer.stop()
	c.releaseTo()
	c.account.end(was == open)
	c.r.behind.end(pretence)
	if c.told.Answered != nil && was == greeting && why&(podGone|aborted) != 0 && why&(hostGone|leaving) == 0 {
		c.told.Answered(false)
	}
	if leaves { // it stays in the table, so that nobody resets the pod's end
		c.hasEnded()
		return false
	}
	c.r.remove(c)
	switch last, kind := farewell(was, why, c.failed); last {
	case aReset:
		c.reset(was)
	case anError:
		var by saidBy
		errors.As(c.failed, &by)
		c.unreachable(kind, by.router)
	}
	c.hasEnded()
	return false
}

// emit sends a segment with n bytes of payload. The payload stands in b after room for the headers.
func (c *conn) emit(b []byte, n int, h *packet.TCPHeader) {
	mss := 0
	if n > 0 {
		mss = c.sendMSS() // only the goroutine that pumps sends data
	}
	head, vnet := packet.PutTCP(b, &c.back, h, n, mss)
	c.r.o.Send(b[:head+n], vnet)
}

// timeUp is called by the timer.
func (c *conn) timeUp() {
	c.mu.Lock()
	late := c.stage.Load() == open && c.from.late(c.r.now(), c)
	c.mu.Unlock()
	if late {
		c.acknowledge()
	}
	c.note(timeUp)
	c.pump()
}

var _ poll.Handler = (*conn)(nil)
