package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is one whose names below "slow." wait until they are released.
type server struct {
	*Server
	addr    string
	release chan struct{}
	waiting *share.Limit[netip.Addr, func()]
}

// gate is a listener that accepts when it is open.
type gate struct {
	net.Listener
	open <-chan struct{}
}

// Accept implements net.Listener.
func (g gate) Accept() (net.Conn, error) {
	<-g.open
	return g.Listener.Accept()
}

func newServer(t *testing.T, most, answerLen int, idle time.Duration) *server {
	t.Helper()
	open := make(chan struct{})
	close(open)
	waiting := share.New[netip.Addr, func()](share.Options[netip.Addr]{Total: most})
	return newServerBehind(t, open, Options{Idle: idle, Waiting: waiting}, answerLen)
}

// newServerBehind is a server whose listener accepts when open is closed. Each answer gets answerLen bytes more.
func newServerBehind(t *testing.T, open <-chan struct{}, o Options, answerLen int) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String(), release: make(chan struct{}), waiting: o.Waiting}
	o.Owner = func(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() }
	o.Answer = func(ctx context.Context, q Question) []byte {
		if strings.HasSuffix(q.Question[0].Name, "slow.") {
			q.Waits()
			q.Waits() // once more is nothing more
			select {
			case <-s.release:
			case <-ctx.Done():
			}
		}
		b, err := new(dns.Msg).SetReply(q.Msg).Pack()
		if err != nil {
			t.Error(err)
		}
		return append(b, make([]byte, answerLen)...)
	}
	s.Server = New(o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, gate{l, open}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func dial(t *testing.T, s *server, from string) *dns.Conn {
	t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext(t.Context(), "tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(await.Patience))
	return &dns.Conn{Conn: c}
}

func send(t *testing.T, c *dns.Conn, id uint16, name string) {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.Id = id
	if err := c.WriteMsg(m); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *dns.Conn) uint16 {
	t.Helper()
	var h dns.Header
	if _, err := c.ReadMsgHeader(&h); err != nil {
		t.Fatal(err)
	}
	return h.Id
}

// TestSlowNamesDelayNobody: quick names are answered behind slow ones on the same connection, and slow ones when they
// are ready, also after the client has sent all that it will send.
func TestSlowNamesDelayNobody(t *testing.T) {
	s := newServer(t, 100, 0, await.Patience)
	c := dial(t, s, "127.0.0.1")
	for id := range uint16(20) {
		send(t, c, id, fmt.Sprintf("n%d.slow.", id))
		send(t, c, 100+id, "quick.")
		if got := receive(t, c); got != 100+id {
			t.Fatalf("the answer to %d came, want that to %d", got, 100+id)
		}
	}
	if held := s.waiting.Stats().Held; held != 20 {
		t.Errorf("%d questions wait, want 20", held)
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(s.release)
	seen := map[uint16]bool{}
	for range 20 {
		seen[receive(t, c)] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d of 20 slow questions were answered", len(seen))
	}
	if _, err := c.ReadMsg(); err != io.EOF {
		t.Errorf("the connection goes on: %v", err)
	}
	await.Until(t, "all units are given back", func() bool { return s.waiting.Stats().Held == 0 })
}

// TestAnswersThatNobodyReads: a client that reads no answers loses its connections when too many of them wait. Another
// client's questions are answered meanwhile.
func TestAnswersThatNobodyReads(t *testing.T) {
	s := newServer(t, 64, 60000, await.Patience)
	other := dial(t, s, "127.0.0.3")
	send(t, other, 1, "a.slow.")
	await.Until(t, "the other's question waits", func() bool { return s.waiting.Held(netip.MustParseAddr("127.0.0.3")) == 1 })
	deaf := dial(t, s, "127.0.0.2")
	for id := range uint16(200) {
		m := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.slow.", id), dns.TypeA)
		if deaf.WriteMsg(m) != nil {
			break // it was closed already
		}
	}
	await.Until(t, "the deaf client's connection is closed", func() bool { return s.waiting.Stats().TakenFromOwn+s.waiting.Stats().TakenFromMost > 0 })
	close(s.release)
	if got := receive(t, other); got != 1 {
		t.Errorf("the answer to %d came", got)
	}
	if _, err := io.Copy(io.Discard, deaf.Conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection goes on: %v", err)
	}
}

// TestNoQuestions: what is no question is refused by its code, and the connection goes on. An answer is ignored.
func TestNoQuestions(t *testing.T) {
	s := newServer(t, 8, 0, await.Patience)
	c := dial(t, s, "127.0.0.1")
	for _, tt := range []struct {
		edit func(b []byte) []byte
		code int // -1: no answer
	}{
		{func(b []byte) []byte { b[5] = 2; return b }, dns.RcodeFormatError},
		{func(b []byte) []byte { return b[:len(b)-3] }, dns.RcodeFormatError},
		{func(b []byte) []byte { b[2] |= dns.OpcodeUpdate << 3; return b }, dns.RcodeNotImplemented},
		{func(b []byte) []byte { return append(b, make([]byte, MaxQuestion)...) }, dns.RcodeFormatError},
		{func(b []byte) []byte { b[2] |= 0x80; return b }, -1},
		{func(b []byte) []byte { return b }, dns.RcodeSuccess},
	} {
		m := new(dns.Msg).SetQuestion("quick.", dns.TypeA)
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		b = tt.edit(b)
		if _, err := c.Conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			t.Fatal(err)
		}
		if tt.code < 0 {
			continue
		}
		got, err := c.ReadMsg()
		if err != nil || got.Rcode != tt.code || got.Id != m.Id || !got.Response {
			t.Fatalf("got %v, %v, want %s", got, err, dns.RcodeToString[tt.code])
		}
	}
}

// TestIdle: a connection on which nothing is asked is closed.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, c := overPipe(t)
		if _, err := c.Write(message(t, 1, "quick.")); err != nil {
			t.Fatal(err)
		}
		receive(t, &dns.Conn{Conn: c})
		began := time.Now()
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != s.options.Idle {
			t.Errorf("it was closed after %v, want %v", took, s.options.Idle)
		}
	})
}

// drain begins to drain s. The channel gets how many connections are left.
func (s *server) drain(t *testing.T) <-chan int {
	left := make(chan int, 1)
	go func() { left <- s.Drain(t.Context()) }()
	<-s.ending.Done()
	return left
}

// ends wants the connection to end in order, and closes it.
func ends(t *testing.T, c *dns.Conn, who string) {
	t.Helper()
	if m, err := c.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection of %s ended with %v %v", who, m, err)
	}
	c.Close()
}

// message returns the bytes of a question over TCP.
func message(t *testing.T, id uint16, name string) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.Id = id
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// TestDrain: what has begun before the end is answered, and all connections end in order. Who goes on asking after that
// is not reset.
func TestDrain(t *testing.T) {
	s := newServer(t, 8, 0, await.Patience)
	waits, half, fresh := dial(t, s, "127.0.0.1"), dial(t, s, "127.0.0.1"), dial(t, s, "127.0.0.1")
	for id := range uint16(3) {
		send(t, waits, id, "a.slow.")
	}
	await.Until(t, "the questions wait", func() bool { return s.waiting.Stats().Held == 3 })
	first, second := message(t, 0, "quick."), message(t, 1, "quick.")
	if _, err := half.Conn.Write(append(first, second[:9]...)); err != nil { // they come together
		t.Fatal(err)
	}
	receive(t, half)
	await.Until(t, "all are accepted", func() bool { return s.open.Now() == 4 }) // with the listener

	left := s.drain(t)
	if _, err := half.Conn.Write(second[9:]); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, half); got != 1 {
		t.Errorf("the answer to %d came", got)
	}
	ends(t, half, "who had asked half")
	send(t, fresh, 5, "a.slow.")
	close(s.release)
	if got := receive(t, fresh); got != 5 {
		t.Errorf("the answer to %d came", got)
	}
	ends(t, fresh, "who had just connected")
	seen := map[uint16]bool{}
	for range 3 {
		seen[receive(t, waits)] = true
	}
	if len(seen) != 3 {
		t.Errorf("%d of 3 questions that waited were answered", len(seen))
	}
	if m, err := waits.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended with %v %v", m, err)
	}
	send(t, waits, 9, "late.")
	if m, err := waits.ReadMsg(); !errors.Is(err, io.EOF) {
		t.Errorf("who asks after the end gets %v %v", m, err)
	}
	waits.Close()
	if n := <-left; n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// TestDrainQueue: who is in the listener's queue when the end begins is served.
func TestDrainQueue(t *testing.T) {
	open := make(chan struct{})
	waiting := share.New[netip.Addr, func()](share.Options[netip.Addr]{Total: 8})
	s := newServerBehind(t, open, Options{Idle: await.Patience, Settle: await.Patience, Waiting: waiting}, 0)
	c := dial(t, s, "127.0.0.1")
	send(t, c, 3, "quick.")
	s.drain(t)
	close(open)
	if got := receive(t, c); got != 3 {
		t.Errorf("the answer to %d came", got)
	}
	ends(t, c, "who was in the queue")
}

// halfOpen is a pipe whose client does not close when the server says that no more comes.
type halfOpen struct{ net.Conn }

// CloseWrite does what it can on a pipe.
func (halfOpen) CloseWrite() error { return nil }

// once is a listener with one connection.
type once struct {
	net.Listener
	conns chan net.Conn
	end   func()
}

// Accept implements net.Listener.
func (o once) Accept() (net.Conn, error) {
	if c, ok := <-o.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

// Close implements net.Listener.
func (o once) Close() error { o.end(); return nil }

// overPipe returns a Server, and a client that ends with the test.
func overPipe(t *testing.T) (*Server, net.Conn) {
	t.Helper()
	s := New(Options{Idle: time.Hour, Settle: time.Millisecond, Answer: func(_ context.Context, q Question) []byte {
		b, err := new(dns.Msg).SetReply(q.Msg).Pack()
		if err != nil {
			t.Error(err)
		}
		return b
	}})
	client, c := net.Pipe()
	conns := make(chan net.Conn, 1)
	l := once{conns: conns, end: sync.OnceFunc(func() { close(conns) })}
	l.conns <- halfOpen{c}
	done := make(chan error)
	go func() { done <- s.Serve(t.Context(), l) }() // which ends before the cleanups begin
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Error(err)
		}
		client.Close()
	})
	return s, client
}

// TestDrainWaitsForAnswers: a client that does not close is waited for while it may not have its last answer yet.
func TestDrainWaitsForAnswers(t *testing.T) {
	for _, tt := range []struct {
		silent time.Duration // since the answer
		left   int
	}{{0, 1}, {arrival / 2, 1}, {2 * arrival, 0}} {
		synctest.Test(t, func(t *testing.T) {
			s, c := overPipe(t)
			if _, err := c.Write(message(t, 1, "quick.")); err != nil {
				t.Fatal(err)
			}
			receive(t, &dns.Conn{Conn: c})
			time.Sleep(tt.silent)
			limit, stop := context.WithTimeout(t.Context(), arrival)
			defer stop()
			if left := s.Drain(limit); left != tt.left {
				t.Errorf("%v after the last answer %d connections are left, want %d", tt.silent, left, tt.left)
			}
		})
	}
}
