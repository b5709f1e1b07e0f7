package nodeport

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// A client that asks by broadcast, as DHCP clients do, gets its answer from an address of the node, since nothing can
// be sent from a broadcast address.
func TestUDPBroadcast(t *testing.T) {
	w, p := newWorld(t)
	w.choose(1, udpBackend(t, "one"))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.UDP)})
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}) // Go enables broadcast on its sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for _, to := range []string{"127.255.255.255", "127.0.0.1"} {
		if _, err := c.WriteToUDPAddrPort([]byte(to), netip.AddrPortFrom(netip.MustParseAddr(to), port)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(await.Patience))
		buf := make([]byte, 64)
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil || string(buf[:n]) != "one:"+to || from.Addr() != netip.MustParseAddr("127.0.0.1") {
			t.Errorf("to %s: %q came from %s, %v", to, buf[:n], from, err)
		}
	}
}

// A backend that stops reading may have answered before. Its answer arrives, and the reset after it.
func TestAnswerBeforeReset(t *testing.T) { synctest.Test(t, answerBeforeReset) }

func answerBeforeReset(t *testing.T) {
	failed := make(chan struct{})
	backend := &scripted{write: func([]byte) (int, error) {
		close(failed)
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: unix.ECONNRESET}
	}}
	client := &scripted{}
	said := 0
	backend.read = func(b []byte) (int, error) {
		<-failed
		switch said++; {
		case said == 1:
			synctest.Wait() // until the other direction can do no more
			if backend.isClosed() {
				return 0, net.ErrClosed
			}
			return copy(b, "413 too large"), nil
		default:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: unix.ECONNRESET}
		}
	}
	client.read = func(b []byte) (int, error) { return copy(b, "much"), nil }
	var got []byte
	client.write = func(b []byte) (int, error) { got = append(got, b...); return len(b), nil }
	splice(client, backend)
	if string(got) != "413 too large" {
		t.Errorf("the client heard %q", got)
	}
	if !client.isReset() || !backend.isReset() {
		t.Error("the end was passed on as if it were orderly")
	}
}

// scripted is a connection that does what the test says.
type scripted struct {
	net.Conn
	read, write   func([]byte) (int, error)
	mu            sync.Mutex
	reset, closed bool
}

var _ io.ReadWriteCloser = (*scripted)(nil)

func (s *scripted) Read(b []byte) (int, error)  { return s.read(b) }
func (s *scripted) Write(b []byte) (int, error) { return s.write(b) }

func (s *scripted) SetReadDeadline(time.Time) error { return nil }

func (s *scripted) SetLinger(sec int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errors.New("closed")
	}
	s.reset = sec == 0
	return nil
}

func (s *scripted) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (s *scripted) isReset() bool  { s.mu.Lock(); defer s.mu.Unlock(); return s.reset }
func (s *scripted) isClosed() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.closed }
