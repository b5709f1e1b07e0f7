package nodeport

import (
	"container/list"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// Door is a UDP socket of the host.
type Door interface {
	// Serve reads the socket until the Door is closed or reading fails, and returns why. ask returns where the
	// datagrams go that a client has sent to a local address: what Exchange returned, or an io.Writer, which gets them
	// one by one, or nil when they are dropped. It is asked once for several datagrams. The local address is invalid
	// where nobody may answer from it. Once the Door is closed, Serve returns when ask has been called for the last
	// time.
	Serve(ask func(client netip.AddrPort, local netip.Addr) io.Closer) error
	// Exchange carries datagrams between a client and a backend without copying, until it is closed. The backend sees
	// the client as seen, with any port if that is 0. heard is called with nil for each answer, and with an error when
	// the backend refuses. If the kernel reaches the backend, Exchange returns an errors.ErrUnsupported, and Dial is
	// used. It must not block. If what it returns has a method Seen, that is the port by which the backend sees the
	// client; otherwise the session ends with the Proxy.
	Exchange(client netip.AddrPort, local netip.Addr, seen, backend netip.AddrPort, heard func(error)) (io.Closer, error)
	// Answer sends a datagram to a client, from a local address.
	Answer(datagram []byte, client netip.AddrPort, local netip.Addr)
	// Close ends Serve, and waits until the address of the socket is free.
	io.Closer
}

// maxDatagram is the size in bytes of a buffer that holds any UDP payload.
const maxDatagram = 65535

// replyBufs holds buffers for replies.
var replyBufs = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// udpSocket has the goroutines of its dialled sessions.
type udpSocket struct {
	Door
	replies *sync.WaitGroup
}

// newUDPSocket takes over pc, and closes it on error.
func (p *Proxy) newUDPSocket(pc net.PacketConn) (socket, error) {
	c, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, errors.New("listen: expected a *net.UDPConn, which can tell the local address of a datagram")
	}
	d, err := p.opts.Door(c)
	if err != nil {
		return nil, err
	}
	return udpSocket{d, new(sync.WaitGroup)}, nil
}

// sessionKey identifies a session by the client and the local address that answers it.
type sessionKey struct {
	client netip.AddrPort
	local  netip.Addr
}

// session is the state of one client and its backend.
type session struct {
	key sessionKey
	asked
	to     io.Closer    // an exchange, or a net.Conn
	active atomic.Int64 // time of the last datagram in either direction, in nanoseconds since start
	server *server
	use    Use
	slot   uint32      // in memory, or noSlot
	heard  atomic.Bool // the backend has answered
	idler  *time.Timer // of an exchange: ends the session when it is idle; guarded by server.mu

	claim   share.Claim[netip.Prefix, *session]
	element *list.Element // in guests.strangers or known; nil: the session has no place; guarded by guests.mu
	isKnown bool          // element is in guests.known; guarded by guests.mu
	left    bool          // the session has ended and gets no place any more; guarded by guests.mu
}

// start is the origin of session times. It carries a monotonic clock reading.
var start = time.Now()

func (s *session) touch() { s.active.Store(int64(time.Since(start))) }

func (s *session) idle() time.Duration { return time.Since(start) - time.Duration(s.active.Load()) }

// answered records that the backend has answered.
func (s *session) answered() {
	if !s.heard.Load() && !s.heard.Swap(true) {
		s.use.Answered()
	}
	s.touch()
}

func (u udpSocket) serve(s *server) {
	defer func() {
		for _, sess := range s.all() {
			s.drop(sess)
		}
		u.replies.Wait()
	}()
	ask := func(client netip.AddrPort, local netip.Addr) io.Closer {
		if sess := s.session(u, sessionKey{client, local}); sess != nil {
			return sess.to
		}
		return nil
	}
	for f := (failing{}); ; {
		began := time.Now()
		err := u.Serve(ask)
		if time.Since(began) > time.Second {
			f = failing{}
		}
		if !f.wait(s, err) {
			return
		}
	}
}

func (s *server) all() (list []*session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sess := range s.sessions {
		list = append(list, sess)
	}
	return list
}

// session returns the session for datagrams of a client, and makes it if there is none. It returns nil if there is no
// backend.
func (s *server) session(u udpSocket, k sessionKey) *session {
	s.mu.Lock()
	sess := s.sessions[k]
	s.mu.Unlock()
	if sess != nil {
		if s.p.opts.Stays(&sess.tuple, sess.choice) {
			sess.touch()
			s.p.guests.touch(sess)
			return sess
		}
		s.drop(sess)
	}
	f, ok := s.p.choose(k.client, place{s.key.local, s.proxy()}, packet.UDP)
	if !ok {
		return nil
	}
	return s.begin(u, k, &f, noSlot)
}

// begin begins a session, or returns nil. slot is where it is remembered already, or noSlot.
func (s *server) begin(u udpSocket, k sessionKey, f *flow, slot uint32) *session {
	sess := &session{key: k, asked: f.asked, server: s, use: s.p.opts.Begin(&f.tuple, f.choice), slot: slot}
	sess.touch()
	if slot != noSlot { // the session goes on
		sess.heard.Store(true)
		sess.use.Resumed()
	}
	var err error
	sess.to, err = u.Exchange(k.client, k.local, f.client, f.backend, func(err error) {
		if err != nil {
			s.drop(sess) // the next datagram may find another backend
			return
		}
		sess.answered()
	})
	var conn net.Conn
	if errors.Is(err, errors.ErrUnsupported) {
		if conn, err = s.p.opts.Dial(s.ctx, "udp", f.client, f.backend); err == nil {
			sess.to = conn
		}
	}
	if err != nil {
		sess.use.End()
		return nil
	}
	if slot == noSlot {
		s.remember(sess)
	}
	s.add(sess)
	if conn != nil {
		u.replies.Go(func() { s.replies(u, sess, conn) })
	}
	return sess
}

// add adds sess. If there are too many sessions, another one ends.
func (s *server) add(sess *session) {
	s.mu.Lock()
	s.sessions[sess.key] = sess
	if _, dialled := sess.to.(net.Conn); !dialled { // otherwise replies ends it
		sess.idler = time.AfterFunc(s.p.opts.IdleTimeout, sess.expire)
	}
	s.mu.Unlock()
	if lost := s.p.guests.admit(sess); lost != nil {
		lost.server.drop(lost)
	}
}

// expire ends the session if it has been idle for too long, and looks again later otherwise.
func (s *session) expire() {
	left := s.server.p.opts.IdleTimeout - s.idle()
	if left <= 0 {
		s.server.drop(s)
		return
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	if s.server.sessions[s.key] == s {
		s.idler.Reset(left)
	}
}

// drop ends a session if it has not ended yet.
func (s *server) drop(sess *session) {
	s.mu.Lock()
	present := s.sessions[sess.key] == sess
	if present {
		delete(s.sessions, sess.key)
		if sess.idler != nil {
			sess.idler.Stop()
		}
	}
	s.mu.Unlock()
	if present {
		if s.p.ctx.Err() == nil { // otherwise it goes on in the next Proxy
			s.p.memory.forget(sess.slot)
		}
		s.p.guests.leave(sess)
		sess.to.Close()
		sess.use.End()
	}
}

// reply waits for the next datagram of the backend, until a time at the latest, and passes it on. It takes a buffer
// only when there is a datagram, since thousands of sessions may wait.
func (sess *session) reply(d Door, conn net.Conn, wait waiter, until time.Time) error {
	if wait != nil {
		if err := wait.WaitRead(until); err != nil {
			return err
		}
	}
	if err := conn.SetReadDeadline(until); err != nil {
		return err
	}
	buf := replyBufs.Get().(*[maxDatagram]byte)
	defer replyBufs.Put(buf)
	n, err := conn.Read(buf[:])
	if err == nil {
		sess.answered()
		d.Answer(buf[:n], sess.key.client, sess.key.local)
	}
	return err
}

// replies passes on the backend's datagrams until the session has been idle for too long or was dropped.
func (s *server) replies(d Door, sess *session, conn net.Conn) {
	defer s.drop(sess)
	wait, limit := waiterOf(conn), s.p.opts.IdleTimeout
	for left := limit; ; {
		err := sess.reply(d, conn, wait, time.Now().Add(left))
		switch {
		case err == nil:
			left = limit
		case errors.Is(err, os.ErrDeadlineExceeded):
			if left = limit - sess.idle(); left <= 0 {
				return
			}
		default:
			return
		}
	}
}
