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
package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/share"
)

// MaxQuestion is the largest question in bytes that is answered. One that waits for an upstream is held in memory
// several times. Questions with padding or a signature have far fewer.
const MaxQuestion = 4 << 10

// acceptPause is the time between an error of Accept and the next call.
const acceptPause = 10 * time.Millisecond

// Question is one that a client asks.
type Question struct {
	*dns.Msg
	// From is the client's address.
	From net.Addr
	// Waits says that the answer has to be waited for. It may be called more than once, by the handler's goroutine.
	Waits func()
}

// Options of Serve. All of them are needed.
type Options struct {
	// Answer returns the answer's bytes. They belong to the caller.
	Answer func(ctx context.Context, q Question) []byte
	// Owner returns whom a client's questions are charged to.
	Owner func(net.Addr) netip.Addr
	// Waiting has the questions that wait. The value is what closes the connection of a question that lost its unit.
	Waiting *share.Limit[netip.Addr, func()]
	// Idle is the time after which a connection without questions is closed (RFC 7766 6.2.3). An answer that the client
	// does not read for as long closes it too.
	Idle time.Duration
	// Drain is how long Serve waits for questions under way when it ends.
	Drain time.Duration
}

// Serve answers on the connections of l until ctx ends. Then it closes l and all of them, and returns nil.
func Serve(ctx context.Context, l net.Listener, o Options) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	var all sync.WaitGroup
	defer all.Wait()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			all.Go(func() { serve(ctx, c, o) })
		case ctx.Err() != nil:
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
	ctx     context.Context
	options Options
	ended   chan struct{} // closed when nobody reads any more, and nothing is under way

	writing sync.Mutex // held while an answer is written
	waiting sync.WaitGroup
}

// serve returns when c is closed.
func serve(ctx context.Context, c net.Conn, o Options) {
	s := &conn{Conn: dns.Conn{Conn: c}, ctx: ctx, options: o, ended: make(chan struct{})}
	defer c.Close()
	defer context.AfterFunc(ctx, func() {
		_ = c.SetReadDeadline(time.Unix(1, 0))
		select {
		case <-s.ended:
		case <-time.After(o.Drain):
			c.Close()
		}
	})()
	go s.read()
	<-s.ended
}

// read answers questions. It has the turn until it returns.
func (s *conn) read() {
	for {
		b, header, ok := s.next()
		if !ok {
			s.waiting.Wait()
			close(s.ended)
			return
		}
		r, refused := parse(b, header)
		if r == nil {
			if refused != nil {
				s.write(refused)
			}
			continue
		}
		if s.answer(r) {
			return
		}
	}
}

// answer reports whether it gave the turn to somebody else.
func (s *conn) answer(r *dns.Msg) (passed bool) {
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
		s.waiting.Add(1)
		go s.read()
	}})
	s.write(b)
	if passed {
		s.options.Waiting.Release(&claim)
		s.waiting.Done()
	}
	return passed
}

// next reads a message. ok is false when there is none.
func (s *conn) next() (b []byte, header dns.Header, ok bool) {
	_ = s.SetReadDeadline(time.Now().Add(s.options.Idle))
	if s.ctx.Err() != nil { // if it ended before, the deadline was in the past
		_ = s.SetReadDeadline(time.Unix(1, 0))
	}
	b, err := s.ReadMsgHeader(&header)
	return b, header, err == nil
}

// write sends an answer. An answer that cannot be sent ends the connection.
func (s *conn) write(b []byte) {
	s.writing.Lock()
	defer s.writing.Unlock()
	_ = s.SetWriteDeadline(time.Now().Add(s.options.Idle))
	if _, err := s.Write(b); err != nil {
		s.Close()
	}
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
