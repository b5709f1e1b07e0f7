// Package stream serves DNS over TCP connections, on which a client may send questions without waiting for answers
// (RFC 7766 6.2.1.1).
//
// One goroutine of each connection has the turn: it reads a question, has it answered, writes the answer, and reads the
// next one. A handler that has to wait for somebody else says so, and the turn passes to a new goroutine. So questions
// that only need a processor are answered one after the other, as fast as the client takes the answers, and none of
// them waits for a slow server elsewhere. Answers may come in another order than their questions.
//
// A question that waits takes a unit of Options.Waiting until its answer is written. It is charged to the client, by
// the rule of package share. A client that lets too many wait, because it reads no answers, loses a connection.
//
// The end. Drain lets every connection end by itself, when nothing is under way on it: no question is being answered,
// none is half read, and a client that has just connected has asked what it came for. Then the Server says that no
// answer will come any more (FIN). A question that crosses this is not answered, and its client asks again over another
// connection (RFC 7766 6.2.4). A client that may not have its last answer yet is waited for until it closes as well.
package stream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/underway"
)

const (
	// MaxQuestion is the largest question in bytes that is answered. One that waits for an upstream is held in memory
	// several times. Questions with padding or a signature have far fewer.
	MaxQuestion = 4 << 10
	// readAhead is how many bytes are read at once, some ten questions.
	readAhead = 512
	// acceptPause is the time between an error of Accept and the next call.
	acceptPause = 10 * time.Millisecond
	// arrival is the time after which an answer has reached its client, also when it was lost and sent again.
	arrival = time.Second
)

// Question is one that a client asks.
type Question struct {
	*dns.Msg
	// From is the client's address.
	From net.Addr
	// Waits says that the answer has to be waited for. It may be called more than once, by the handler's goroutine.
	Waits func()
}

// Options of a Server. All of them are needed.
type Options struct {
	// Answer returns the answer's bytes. They belong to the caller. ctx is Serve's.
	Answer func(ctx context.Context, q Question) []byte
	// Owner returns whom a client's questions are charged to.
	Owner func(net.Addr) netip.Addr
	// Waiting has the questions that wait. The value is what closes the connection of a question that lost its unit.
	Waiting *share.Limit[netip.Addr, func()]
	// Idle is the time after which a connection without questions is closed (RFC 7766 6.2.3). An answer that the client
	// does not read for as long closes it too.
	Idle time.Duration
	// Settle is how long listeners go on accepting when Drain is called. Who was connecting then, or was in a
	// listener's queue, is served and not reset.
	Settle time.Duration
}

// Server answers on any number of listeners. Its methods may be called concurrently.
type Server struct {
	options Options
	ending  context.Context // done when Drain is called
	end     context.CancelFunc
	open    underway.Count // connections, and listeners that accept
}

// New returns a Server.
func New(o Options) *Server {
	s := &Server{options: o}
	s.ending, s.end = context.WithCancel(context.Background())
	return s
}

// Serve answers on the connections of l until ctx ends, and cuts them then, or until Drain has ended them. It closes l
// and returns nil, or an error when l was closed by somebody else.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cut := context.WithCancel(ctx)
	defer cut()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer context.AfterFunc(s.ending, func() { time.AfterFunc(s.options.Settle, func() { l.Close() }) })()
	var all sync.WaitGroup
	defer all.Wait()
	if err := s.accept(ctx, l, &all); err != nil {
		cut()
		return err
	}
	return nil
}

// Drain ends all connections in order, as the package says, and accepts none any more. It returns when that is done or
// ctx ends, and how many are left, which go on until their Serve cuts them.
func (s *Server) Drain(ctx context.Context) (left int) {
	s.end()
	return s.open.Wait(ctx)
}

// accept begins to serve the connections of l, and returns when there will be no more.
func (s *Server) accept(ctx context.Context, l net.Listener, all *sync.WaitGroup) error {
	s.open.Begin()
	defer s.open.End()
	defer l.Close()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			s.open.Begin()
			all.Go(func() { defer s.open.End(); s.serve(ctx, c) })
		case ctx.Err() != nil || s.ending.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // as when there are no descriptors left
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

// conn is one connection.
type conn struct {
	dns.Conn
	ctx     context.Context // done when the connection is cut
	options *Options
	in      *bufio.Reader // what Conn reads
	ended   chan struct{} // closed when nobody reads any more, and nothing is under way

	// asked counts the questions of which a byte has come and which are not answered yet, and at first the one for
	// which the client has connected.
	asked underway.Count
	// expected says that the next question to be read is in asked already. It belongs to who has the turn.
	expected bool

	writing  sync.Mutex   // held while an answer is written, and while left is set
	answered atomic.Int64 // when an answer was written last, in ns since 1970
	left     atomic.Bool  // no more is answered
}

// buffered is a connection that is read through a buffer.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

// serve returns when c is closed.
func (s *Server) serve(ctx context.Context, c net.Conn) {
	in := bufio.NewReaderSize(c, readAhead)
	k := &conn{Conn: dns.Conn{Conn: buffered{c, in}}, ctx: ctx, options: &s.options, in: in, ended: make(chan struct{}), expected: true}
	k.asked.Begin()
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer context.AfterFunc(s.ending, func() { k.leave(c) })()
	go k.read()
	<-k.ended
}

// leave ends c in order, which is the connection itself.
func (s *conn) leave(c net.Conn) {
	busy := s.asked.Now() > 0 || time.Since(time.Unix(0, s.answered.Load())) < arrival
	if s.asked.Wait(s.ctx) > 0 {
		return // it is cut
	}
	s.writing.Lock()
	s.left.Store(true)
	s.writing.Unlock()
	if w, ok := c.(interface{ CloseWrite() error }); !busy || !ok || w.CloseWrite() != nil {
		c.Close()
	}
	// Otherwise the client's end is read.
}

// read answers questions. It has the turn until it returns.
func (s *conn) read() {
	for {
		b, header, ok := s.next()
		if !ok {
			s.asked.Wait(context.Background())
			close(s.ended)
			return
		}
		r, refused := parse(b, header)
		switch {
		case s.left.Load(): // it came too late
		case r != nil:
			if s.answer(r) {
				return
			}
			continue
		case refused != nil:
			s.write(refused)
		}
		s.asked.End()
	}
}

// answer reports whether it gave the turn to somebody else. Then r is no longer in asked.
func (s *conn) answer(r *dns.Msg) (passed bool) {
	defer s.asked.End()
	from := s.RemoteAddr()
	claim := share.Claim[netip.Addr, func()]{Value: func() { s.Close() }}
	b := s.options.Answer(s.ctx, Question{r, from, func() {
		if passed {
			return
		}
		passed = true
		lost, ok := s.options.Waiting.Acquire(&claim, s.options.Owner(from))
		if lost != nil {
			lost.Value()
		}
		if !ok {
			s.Close()
		}
		go s.read()
	}})
	s.write(b)
	if passed {
		s.options.Waiting.Release(&claim)
	}
	return passed
}

// next reads a message. ok is false when there is none; otherwise the message is in asked.
func (s *conn) next() (b []byte, header dns.Header, ok bool) {
	_ = s.SetReadDeadline(time.Now().Add(s.options.Idle))
	if !s.expected {
		if _, err := s.in.Peek(1); err != nil {
			return nil, header, false
		}
		s.asked.Begin()
	}
	b, err := s.ReadMsgHeader(&header)
	if err != nil {
		s.asked.End()
		return nil, header, false
	}
	if s.expected = s.in.Buffered() > 0; s.expected {
		s.asked.Begin()
	}
	return b, header, true
}

// write sends an answer. An answer that cannot be sent ends the connection.
func (s *conn) write(b []byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.left.Load() {
		return
	}
	_ = s.SetWriteDeadline(time.Now().Add(s.options.Idle))
	if _, err := s.Write(b); err != nil {
		s.Close()
	}
	s.answered.Store(time.Now().UnixNano())
}

// parse returns the question in a message, or else the answer to what is none, if it gets one.
func parse(b []byte, header dns.Header) (r *dns.Msg, refused []byte) {
	code := dns.RcodeFormatError
	switch dns.DefaultMsgAcceptFunc(header) {
	case dns.MsgIgnore:
		return nil, nil
	case dns.MsgRejectNotImplemented:
		code = dns.RcodeNotImplemented
	case dns.MsgAccept:
		r = new(dns.Msg)
		if len(b) <= MaxQuestion && r.Unpack(b) == nil {
			return r, nil
		}
	}
	const response, opcode = 0x80, 0x78
	refused = make([]byte, 12) // a header alone (RFC 1035 4.1.1)
	binary.BigEndian.PutUint16(refused, header.Id)
	refused[2] = response | b[2]&opcode
	refused[3] = byte(code)
	return nil, refused
}
