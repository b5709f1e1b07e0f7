package tcprelay_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

func addrPort(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// behind returns who is behind the client of a connection that the host accepted; the zero Addr for nobody.
func behind(r *tcprelay.Relay, accepted net.Conn) netip.Addr {
	pod, _ := r.Behind(addrPort(accepted.RemoteAddr()), addrPort(accepted.LocalAddr()))
	return pod
}

// TestBehind: a server of the host learns which pod is its client, as soon as it has read something, and also when the
// connection has ended by then. Clients of the host itself are no pods.
func TestBehind(t *testing.T) {
	for i, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			l := listen(t, i)
			to := netip.AddrPortFrom(outside[i], port(l.Addr()))
			for range 20 {
				var said sync.WaitGroup
				said.Go(func() {
					c, err := w.pod.Dial(t.Context(), "tcp", to)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.Close()
					if _, err := io.WriteString(c, "x"); err != nil {
						t.Error(err)
					}
				})
				c := accept(t, l)
				wantServer(t, c, "x")
				if got := behind(w.Relay, c); got != podIPs[i] {
					t.Errorf("the server's client is %v, want the pod", got)
				}
				said.Wait()
				_ = c.Close()
			}
			pod, err := w.pod.Dial(t.Context(), "tcp", to)
			if err != nil {
				t.Fatal(err)
			}
			_ = pod.SetDeadline(netstacktest.Until(t))
			w.Forget(podIPs[i])
			w.gone(t)
			late := accept(t, l)
			if got := behind(w.Relay, late); got != podIPs[i] {
				t.Errorf("the client of a connection that has ended is %v, want the pod", got)
			}
			_, accepted := dialHost(t, i)
			if got := behind(w.Relay, accepted); got.IsValid() {
				t.Errorf("a client of the host is %v", got)
			}
			_ = accepted.Close()
		})
	}
}

// TestBehindOnePort: the host gives one of its ports to connections to different servers, of a pod and of others. Each
// server learns who its own client is.
func TestBehindOnePort(t *testing.T) {
	w := newWorld(t)
	_, server := w.egress(t, 0)
	from := addrPort(server.RemoteAddr())
	l := listen(t, 0)
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		only := int(from.Port())<<16 | int(from.Port()) // ip(7), IP_LOCAL_PORT_RANGE: highest<<16 | lowest
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_LOCAL_PORT_RANGE, only) }); e != nil {
			return e
		}
		return err
	}}
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	client, err := d.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	accepted := accept(t, l)
	if addrPort(accepted.RemoteAddr()) != from {
		t.Fatalf("the other client comes from %v, want %v", accepted.RemoteAddr(), from)
	}
	if got := behind(w.Relay, accepted); got.IsValid() {
		t.Errorf("a client of the host with a pod's port is %v", got)
	}
	if got := behind(w.Relay, server); got != podIPs[0] {
		t.Errorf("the server's client is %v, want the pod", got)
	}
}

// TestBehindAsked: only connections to servers that may ask are noted.
func TestBehindAsked(t *testing.T) {
	asking := listen(t, 0)
	w := newWorldAt(t, tcprelay.Options{Asks: func(e packet.Endpoint) bool { return e.AddrPort() == addrPort(asking.Addr()) }})
	_, other := w.egress(t, 0)
	if got := behind(w.Relay, other); got.IsValid() {
		t.Errorf("the client of a server that never asks is noted as %v", got)
	}
	pod, err := w.pod.Dial(t.Context(), "tcp", netip.AddrPortFrom(outside[0], port(asking.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if got := behind(w.Relay, accept(t, asking)); got != podIPs[0] {
		t.Errorf("the server's client is %v, want the pod", got)
	}
}

// TestBehindResumed: the next Relay knows who is behind the connections that it goes on with.
func TestBehindResumed(t *testing.T) {
	s, sh := newHeld(t, 4)
	server, _, _ := s.egress(1000)
	if got := behind(s.r, server); got != podIPs[0] {
		t.Errorf("the server's client is %v, want the pod", got)
	}
	s.nextRelay(sh, everywhere, one)
	if got := behind(s.r, server); got != podIPs[0] {
		t.Errorf("the server's client is %v, want the pod", got)
	}
}

// TestBehindKilled: a server whose client's process was killed hears a reset, and no end, since the next process would
// not know who its client was.
func TestBehindKilled(t *testing.T) {
	k := newKilling(t, noHold)
	k.start()
	l := listen(t, 0)
	ctx, cancel := context.WithDeadline(t.Context(), netstacktest.Until(t))
	defer cancel()
	pod, err := k.pod.Dial(ctx, "tcp", netip.AddrPortFrom(outside[0], port(l.Addr())))
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	if _, err := io.WriteString(pod, "x"); err != nil {
		t.Fatal(err)
	}
	server := accept(t, l)
	wantServer(t, server, "x")
	k.kill()
	if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the server heard %v, want a reset", err)
	}
}

// TestBehindWhole: the server gets all that the pod has said, also what the Relay could not deliver before it forgot
// the connection.
func TestBehindWhole(t *testing.T) {
	w := newWorld(t)
	pod, server := w.egress(t, 0)
	if err := server.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	said := noise(1, 300<<10) // more than the server's kernel keeps, and less than that of the Relay
	if _, err := pod.Write(said); err != nil {
		t.Fatal(err)
	}
	if err := pod.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	w.gone(t)
	if got, err := io.ReadAll(server); err != nil || !bytes.Equal(got, said) {
		t.Errorf("the server heard %d bytes, %v; want %d", len(got), err, len(said))
	}
}
