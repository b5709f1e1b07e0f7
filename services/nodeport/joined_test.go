package nodeport

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// told counts what a Use is told.
type told struct{ answered, refused, ended *atomic.Int32 }

func (u told) Answered() { u.answered.Add(1) }
func (u told) Resumed()  {}
func (u told) Refused()  { u.refused.Add(1) }
func (u told) End()      { u.ended.Add(1) }

// A backend that refuses connections which Join carries is known for it, as one that is dialled, and a client that goes
// before the backend answers says nothing of it.
func TestJoinTellsRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		says              []bool
		answered, refused int32
	}{
		"the backend answers":  {[]bool{true}, 1, 0},
		"the backend refuses":  {[]bool{false}, 0, 1},
		"the client goes away": {nil, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			u := told{new(atomic.Int32), new(atomic.Int32), new(atomic.Int32)}
			w, p := newWorld(t, func(o *Options) {
				o.Begin = func(*packet.Tuple, packet.Choice) Use { return u }
				o.Join = func(_ context.Context, c *net.TCPConn, _, _ netip.AddrPort, answered func(bool)) bool {
					for _, yes := range tt.says {
						answered(yes)
					}
					_ = c.Close()
					return true
				}
			})
			w.choose(1, tcpBackend(t, echo("one")))
			port := freeport.Of(t)
			p.Set([]PortSpec{spec(port, packet.TCP)})
			dialTCP(t, "127.0.0.1", port)
			await.Until(t, "the connection has ended", func() bool { return u.ended.Load() == 1 })
			if a, r := u.answered.Load(), u.refused.Load(); a != tt.answered || r != tt.refused {
				t.Errorf("%d answers and %d refusals are counted, want %d and %d", a, r, tt.answered, tt.refused)
			}
		})
	}
}
