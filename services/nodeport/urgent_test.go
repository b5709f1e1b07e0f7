package nodeport

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/freeport"
)

// Urgent bytes keep their place in the stream (RFC 6093 6), and nothing after them is lost, both from a client to a
// backend on the host and back.
func TestUrgent(t *testing.T) {
	say := func(c *net.TCPConn, b string) {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Error(err)
			return
		}
		if err := raw.Control(func(fd uintptr) {
			if err := unix.Sendto(int(fd), []byte(b), unix.MSG_OOB, nil); err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Error(err)
		}
	}
	w, p := newWorld(t)
	heard := make(chan string, 1)
	w.choose(1, tcpBackend(t, func(c *net.TCPConn) {
		say(c, "answer!")
		_, _ = io.WriteString(c, "end")
		_ = c.CloseWrite()
		got, _ := io.ReadAll(c)
		heard <- string(got)
	}))
	port := freeport.Of(t)
	if problems := p.Set([]PortSpec{spec(port, packet.TCP)}); len(problems) != 0 {
		t.Fatal(problems)
	}
	c := dialTCP(t, "127.0.0.1", port)
	if got, err := io.ReadAll(c); err != nil || string(got) != "answer!end" {
		t.Errorf("the client heard %q, %v", got, err)
	}
	say(c, "question?")
	_, _ = io.WriteString(c, "end")
	_ = c.CloseWrite()
	if got := <-heard; got != "question?end" {
		t.Errorf("the backend heard %q", got)
	}
}
