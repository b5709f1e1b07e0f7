package tcprelay_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/tcprelay"
)

// behind returns who is behind the client of a connection that the host accepted; the zero Addr for nobody.
func behind(r *tcprelay.Relay, accepted net.Conn) netip.Addr {
	pod, _ := r.Behind(netip.MustParseAddrPort(accepted.RemoteAddr().String()))
	return pod
}

// TestBehind: a server of the host learns which pod is its client, as soon as it accepts the connection and also when
// the pod has ended it by then. Clients of the host itself are no pods.
func TestBehind(t *testing.T) {
	for i, name := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			l := listen(t, i)
			to := netip.AddrPortFrom(outside[i], port(l.Addr()))
			for range 20 {
				var dialled sync.WaitGroup
				dialled.Go(func() {
					if c, err := w.pod.Dial(t.Context(), "tcp", to); err != nil {
						t.Error(err)
					} else {
						defer c.Close()
					}
				})
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if got := behind(w.Relay, c); got != podIPs[i] {
					t.Errorf("the server's client is %v, want the pod", got)
				}
				dialled.Wait()
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
