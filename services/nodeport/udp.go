package nodeport

import (
	"container/list"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share"
)

// maxDatagram is the size in bytes of a buffer that holds any UDP payload.
const maxDatagram = 65535

// replyBufs holds buffers for replies.
var replyBufs = sync.Pool{New: func() any { return new([maxDatagram]byte) }}

// udpSocket is a socket that reports the local address of each datagram received and chooses that of each reply.
type udpSocket struct {
	*net.UDPConn
	is4 bool
}

// newUDPSocket takes over pc, and closes it on error.
func newUDPSocket(pc net.PacketConn, local netip.AddrPort) (socket, error) {
	c, ok := pc.(*net.UDPConn)
	if !ok {
		pc.Close()
		return nil, errors.New("listen: expected a *net.UDPConn, which can tell the local address of a datagram")
	}
	u := &udpSocket{c, local.Addr().Is4()}
	var err error
	if u.is4 {
		err = ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst, true)
	} else {
		err = ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst, true)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return u, nil
}

// localAddr returns the local address from which a datagram is answered, out of its control messages (ip(7), RFC 3542
// 6.2). This is the address to which the datagram was sent. For a broadcast address it is an address of the same
// interface; for an IPv6 multicast address it is invalid, so that the kernel chooses. The parsers of x/net would
// allocate for each datagram.
func (u *udpSocket) localAddr(oob []byte) netip.Addr {
	for len(oob) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			return netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			if a := netip.AddrFrom16([16]byte(data[:16])).Unmap(); !a.IsMulticast() { // ipi6_addr
				return a
			}
		}
		oob = rest
	}
	return netip.Addr{}
}

// from returns the control message that makes a datagram leave from a.
func (u *udpSocket) from(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	if u.is4 {
		return (&ipv4.ControlMessage{Src: a.AsSlice()}).Marshal()
	}
	return (&ipv6.ControlMessage{Src: a.AsSlice()}).Marshal()
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
	conn   net.Conn
	oob    []byte       // for replies
	active atomic.Int64 // time of the last datagram in either direction, in nanoseconds since start
	server *server
	use    Use
	heard  bool // the backend has answered; only replies knows

	claim   share.Claim[netip.Prefix, *session]
	element *list.Element // in guests.order; nil: the session has no place
}

// start is the origin of session times. It carries a monotonic clock reading.
var start = time.Now()

func (s *session) touch() { s.active.Store(int64(time.Since(start))) }

func (s *session) idle() time.Duration { return time.Since(start) - time.Duration(s.active.Load()) }

func (u *udpSocket) serve(s *server) {
	var wg sync.WaitGroup
	defer func() {
		s.mu.Lock()
		for _, sess := range s.sessions {
			sess.conn.Close()
		}
		s.mu.Unlock()
		wg.Wait()
	}()
	buf := make([]byte, maxDatagram)
	oob := make([]byte, 128)
	var f failing
	for {
		n, oobn, _, client, err := u.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			if !f.wait(s, err) {
				return
			}
			continue
		}
		f = failing{}
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		sess := s.session(u, sessionKey{client, u.localAddr(oob[:oobn])}, &wg)
		if sess == nil {
			continue
		}
		// A datagram that cannot be delivered is lost, as UDP allows. If the backend refuses it, the reply loop ends
		// the session.
		_, _ = sess.conn.Write(buf[:n])
	}
}

// session returns the session for a datagram, and makes it if there is none. It returns nil if there is no backend.
func (s *server) session(u *udpSocket, k sessionKey, wg *sync.WaitGroup) *session {
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
	conn, err := s.p.opts.Dial(s.ctx, "udp", f.client, f.backend)
	if err != nil {
		return nil
	}
	sess = &session{key: k, asked: f.asked, conn: conn, oob: u.from(k.local), server: s, use: s.p.opts.Begin(&f.tuple, f.choice)}
	sess.touch()
	s.add(sess)
	wg.Go(func() { s.replies(u, sess) })
	return sess
}

// add adds sess. If there are too many sessions, another one ends.
func (s *server) add(sess *session) {
	s.mu.Lock()
	s.sessions[sess.key] = sess
	s.mu.Unlock()
	if lost := s.p.guests.admit(sess); lost != nil {
		lost.server.drop(lost)
	}
}

// drop ends a session if it has not ended yet.
func (s *server) drop(sess *session) {
	s.mu.Lock()
	present := s.sessions[sess.key] == sess
	if present {
		delete(s.sessions, sess.key)
	}
	s.mu.Unlock()
	if present {
		s.p.guests.leave(sess)
		sess.conn.Close()
		sess.use.End()
	}
}

// reply waits for the next datagram of the backend, until a time at the latest, and passes it on. It takes a buffer
// only when there is a datagram, since thousands of sessions may wait.
func (sess *session) reply(u *udpSocket, wait waiter, until time.Time) error {
	if wait != nil {
		if err := wait.WaitRead(until); err != nil {
			return err
		}
	}
	if err := sess.conn.SetReadDeadline(until); err != nil {
		return err
	}
	buf := replyBufs.Get().(*[maxDatagram]byte)
	defer replyBufs.Put(buf)
	n, err := sess.conn.Read(buf[:])
	if err == nil {
		if !sess.heard {
			sess.heard = true
			sess.use.Answered()
		}
		sess.touch()
		_, _, _ = u.WriteMsgUDPAddrPort(buf[:n], sess.oob, sess.key.client)
	}
	return err
}

// replies passes on the backend's datagrams until the session has been idle for too long or was dropped.
func (s *server) replies(u *udpSocket, sess *session) {
	defer s.drop(sess)
	wait, limit := waiterOf(sess.conn), s.p.opts.IdleTimeout
	for left := limit; ; {
		err := sess.reply(u, wait, time.Now().Add(left))
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
