package stream

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is one whose names below "slow." wait until they are released.
type server struct {
	addr    string
	release chan struct{}
	waiting *share.Limit[netip.Addr, func()]
	stop    func()
}

func newServer(t *testing.T, most, answerLen int, idle time.Duration) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String(), release: make(chan struct{}), waiting: share.New[netip.Addr, func()](share.Options[netip.Addr]{Total: most})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s.stop = cancel
	go func() {
		done <- Serve(ctx, l, Options{Idle: idle, Drain: time.Second, Waiting: s.waiting,
			Owner: func(a net.Addr) netip.Addr { return a.(*net.TCPAddr).AddrPort().Addr().Unmap() },
			Answer: func(ctx context.Context, q Question) []byte {
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
			}})
	}()
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
	s := newServer(t, 8, 0, 50*time.Millisecond)
	c := dial(t, s, "127.0.0.1")
	send(t, c, 1, "quick.")
	if got := receive(t, c); got != 1 {
		t.Errorf("the answer to %d came", got)
	}
	if _, err := c.ReadMsg(); err != io.EOF {
		t.Errorf("got %v", err)
	}
}

// TestEnd: Serve ends while a question waits and other connections are silent. The question is still answered.
func TestEnd(t *testing.T) {
	s := newServer(t, 8, 0, await.Patience)
	c, silent := dial(t, s, "127.0.0.1"), dial(t, s, "127.0.0.1")
	send(t, c, 7, "a.slow.")
	await.Until(t, "the question waits", func() bool { return s.waiting.Stats().Held == 1 })
	s.stop()
	if got := receive(t, c); got != 7 {
		t.Errorf("the answer to %d came", got)
	}
	for _, c := range []*dns.Conn{c, silent} {
		if _, err := c.ReadMsg(); err == nil {
			t.Error("a connection goes on")
		}
	}
}
