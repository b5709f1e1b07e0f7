package tcprelay_test

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// sayUrgently sends b from a socket of the kernel, with its last byte marked as urgent.
func sayUrgently(t *testing.T, c net.Conn, b string) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	if err := raw.Write(func(fd uintptr) bool {
		serr = unix.Sendto(int(fd), []byte(b), unix.MSG_OOB|unix.MSG_DONTWAIT, nil)
		return serr != unix.EAGAIN
	}); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
}

// Urgent bytes stay in their place in the stream (RFC 6093 6).
func TestUrgent(t *testing.T) {
	for i, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pod, server := w.egress(t, i)
			j := w.join(t, i)
			for _, c := range []struct {
				name      string
				say, hear net.Conn
			}{{"egress", server, pod}, {"join", j.client, j.server}} {
				sayUrgently(t, c.say, "before!") // and a second time before the first is read
				sayUrgently(t, c.say, "between!")
				if _, err := io.WriteString(c.say, "after"); err != nil {
					t.Fatal(err)
				}
				if err := c.say.(*net.TCPConn).CloseWrite(); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(c.hear); err != nil || string(got) != "before!between!after" {
					t.Errorf("%s: the pod heard %q, %v", c.name, got, err)
				}
			}
		})
	}
}

// Data that a pod marks as urgent reaches the host socket in its place.
func TestUrgentFromPod(t *testing.T) {
	s := newScript(t)
	server, mine, theirs := s.egress(65535)
	s.urgent = 3
	s.say(segment{mine, theirs, ack | packet.URG, 65535, []byte("abcde")})
	s.hear(ack)
	s.urgent = 0
	s.say(segment{mine + 5, theirs, fin, 65535, []byte("f")})
	s.hear(ack)
	if got, err := io.ReadAll(server); err != nil || string(got) != "abcdef" {
		t.Errorf("the server heard %q, %v", got, err)
	}
}
