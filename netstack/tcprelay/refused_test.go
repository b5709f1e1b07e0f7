package tcprelay_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
	"tapestry.dev/tapestry/test/await"
)

// A client whose pod resets the connection before it has acknowledged or said anything may be joined with another pod,
// which gets all that the client has said. Later a reset is a reset.
func TestUntouched(t *testing.T) {
	for name, c := range map[string]struct {
		says  []segment // the pod, its reset last
		again bool
	}{
		"nothing":           {[]segment{{seq: 5001, flags: rst}}, true},
		"no news":           {[]segment{{seq: 5001, flags: ack, window: 1000}, {seq: 5001, flags: rst | ack}}, true},
		"it acknowledges":   {[]segment{{seq: 5001, ack: 3, flags: ack, window: 1000}, {seq: 5001, flags: rst}}, false},
		"by the reset":      {[]segment{{seq: 5001, ack: 3, flags: rst | ack}}, false},
		"what was not said": {[]segment{{seq: 5001, ack: 99, flags: rst | ack}}, true},
		"a byte was lost":   {[]segment{{seq: 5002, flags: rst}}, false},
		"a byte":            {[]segment{{seq: 5001, flags: psh, window: 1000, payload: []byte("x")}, {seq: 5001, flags: rst}}, false},
		"its second byte":   {[]segment{{seq: 5002, flags: psh, window: 1000, payload: []byte("x")}, {seq: 5001, flags: rst}}, false},
	} {
		for _, how := range []string{"joined", "adopted", "far"} {
			t.Run(name+", "+how, func(t *testing.T) {
				o := tcprelay.Options{Hold: newShelf(t, 8).hold(t)}
				if how == "far" {
					o = tcprelay.Options{Far: elsewhere}
				}
				s := newScriptWith(t, o)
				client, accepted := dialHost(t, 0)
				s.tuple = packet.Tuple{
					Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Proto: packet.TCP,
					Dst: packet.AddrFrom(seenAs[0].Addr()), DstPort: seenAs[0].Port(),
				}
				left := join(t, s.r, accepted, seenAs[0], how == "adopted")
				theirs := s.hear(syn).seq + 1
				s.say(segment{seq: 5000, ack: theirs, flags: synAck, window: 1000})
				s.hear(ack)
				if _, err := io.WriteString(client, "hello"); err != nil {
					t.Fatal(err)
				}
				s.hear(psh)
				for _, one := range c.says {
					one.ack += theirs
					s.say(one)
				}
				again := <-left
				if (again != nil) != c.again {
					t.Fatalf("of the client %v is left", again)
				}
				if !c.again {
					if _, err := io.ReadAll(client); err == nil {
						t.Error("the client heard no reset")
					}
					return
				}
				got := make([]byte, len("hello"))
				_ = again.SetDeadline(netstacktest.Until(t))
				if _, err := io.ReadFull(again, got); err != nil || string(got) != "hello" {
					t.Errorf("of the client there is %q, %v", got, err)
				}
				_ = again.Close()
			})
		}
	}
}

// join has a Relay join or adopt a client, whom the pod sees at from. What it returns gets, at the end, the client that
// may be joined with another pod, or nil.
func join(t *testing.T, r *tcprelay.Relay, client *net.TCPConn, from netip.AddrPort, adopts bool) chan *net.TCPConn {
	left := make(chan *net.TCPConn, 1)
	pod := netip.AddrPortFrom(podIPs[0], 80)
	if !adopts {
		go func() {
			var refused *tcprelay.RefusedError
			if err := r.Join(context.Background(), client, from, pod, nil); errors.As(err, &refused) {
				left <- refused.Client
			}
			close(left)
		}()
		return left
	}
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	told := tcprelay.Told{Answered: func(bool) {}, Ended: func(client *net.TCPConn) { left <- client }}
	if err := r.Adopt(fd, from, pod, told); err != nil {
		t.Fatal(err)
	}
	return left
}

// Join asks whether somebody else has a connection with the same addresses and ports when its own is known, so that of
// two who begin at once one sees the other. It takes another port then, if it may.
func TestJoinAsksWhenKnown(t *testing.T) {
	taken := netip.AddrPortFrom(seenAs[0].Addr(), 4000)
	var s *script
	asked, known := 0, 0
	s = newScriptWith(t, tcprelay.Options{Taken: func(of *packet.Tuple) bool {
		asked++
		if s.r.Carries(of) {
			known++
		}
		return of.DstPort == taken.Port()
	}})
	_, accepted := dialHost(t, 0)
	pod := netip.AddrPortFrom(podIPs[0], 80)
	if err := s.r.Join(t.Context(), accepted, taken, pod, nil); !errors.Is(err, tcprelay.ErrInUse) {
		t.Errorf("joined as %s, which somebody else has: %v", taken, err)
	}
	s.tuple = packet.Tuple{Src: packet.AddrFrom(podIPs[0]), SrcPort: 80, Dst: packet.AddrFrom(taken.Addr()), DstPort: taken.Port(), Proto: packet.TCP}
	if s.r.Carries(&s.tuple) || s.r.Len() != 0 {
		t.Error("what was not joined is known")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	joined := make(chan error, 1)
	go func() { joined <- s.r.Join(ctx, accepted, netip.AddrPortFrom(taken.Addr(), 0), pod, nil) }()
	await.Until(t, "it is joined", func() bool { return s.r.Len() == 1 })
	cancel()
	if err := <-joined; err != nil {
		t.Error(err)
	}
	if asked != 2 || known != 2 {
		t.Errorf("of %d questions %d were asked when the connection was known", asked, known)
	}
}
