package nodeport

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

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
		left              bool // the client may be led to another backend
		answered, refused int32
	}{
		"the backend answers":             {[]bool{true}, false, 1, 0},
		"the backend refuses":             {[]bool{false}, false, 0, 1},
		"the backend refuses at once":     {[]bool{false}, true, 0, 1},
		"the backend answers and refuses": {[]bool{true}, true, 1, 1},
		"the client goes away":            {nil, false, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			u := told{new(atomic.Int32), new(atomic.Int32), new(atomic.Int32)}
			w, p := newWorld(t, func(o *Options) {
				o.Begin = func(*packet.Tuple, packet.Choice) Use { return u }
				o.Join = func(_ context.Context, c *net.TCPConn, _, _ netip.AddrPort, answered func(bool)) (*net.TCPConn, bool) {
					for _, yes := range tt.says {
						answered(yes)
					}
					if tt.left {
						return leave(t, c), true
					}
					_ = c.Close()
					return nil, false
				}
			})
			w.choose(1, tcpBackend(t, echo("one")))
			port := freeport.Of(t)
			p.Set([]PortSpec{spec(port, packet.TCP)})
			// The reset may come before connect(2) has ended.
			if c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
				defer c.Close()
			}
			await.Until(t, "the connection has ended", func() bool { return u.ended.Load() == 1 })
			if a, r := u.answered.Load(), u.refused.Load(); a != tt.answered || r != tt.refused {
				t.Errorf("%d answers and %d refusals are counted, want %d and %d", a, r, tt.answered, tt.refused)
			}
		})
	}
}

// leave returns the connection under another descriptor, as Join does when a backend refuses.
func leave(t *testing.T, c *net.TCPConn) *net.TCPConn {
	f, err := c.File()
	if err != nil {
		t.Error(err)
	}
	left, err := net.FileConn(f)
	_, _ = f.Close(), c.Close()
	if err != nil {
		t.Error(err)
	}
	return left.(*net.TCPConn)
}

// A client hears of no backend that refuses it while there is another one, and of the last at once: whether it is
// adopted or joined with its backend, or the backend is dialled. What it has sent meanwhile is not lost.
func TestRefusingBackends(t *testing.T) {
	for name, how := range map[string]struct{ adopts, joins bool }{
		"adopted": {true, true}, "adopted, then dialled": {true, false}, "joined": {false, true}, "dialled": {false, false},
	} {
		for refusals := range mostRefusals + 2 {
			t.Run(fmt.Sprintf("%s, %d refuse", name, refusals), func(t *testing.T) {
				u := told{new(atomic.Int32), new(atomic.Int32), new(atomic.Int32)}
				server := tcpBackend(t, echo("one"))
				var asked atomic.Int32
				refuses := func() bool { return int(asked.Add(1)) <= refusals }
				w, p := newWorld(t, func(o *Options) {
					o.Begin = func(*packet.Tuple, packet.Choice) Use { return u }
					o.Another = func(_ *packet.Tuple, refused []uint64) packet.Choice {
						if int(asked.Load()) != len(refused) {
							t.Errorf("%d were asked, and %d have refused", asked.Load(), refused)
						}
						return packet.Choice{Kind: packet.Picked, Backend: uint64(100 + len(refused)), To: packet.EndpointFrom(netip.MustParseAddrPort(server.String()))}
					}
					dial := o.Dial
					o.Dial = func(ctx context.Context, network string, client, backend netip.AddrPort) (net.Conn, error) {
						if refuses() {
							return nil, fmt.Errorf("dial %s: %w", backend, syscall.ECONNREFUSED)
						}
						return dial(ctx, network, client, backend)
					}
					if how.joins {
						o.Join = func(ctx context.Context, c *net.TCPConn, client, backend netip.AddrPort, answered func(bool)) (*net.TCPConn, bool) {
							if refuses() {
								answered(false)
								return leave(t, c), true
							}
							far, err := dial(ctx, "tcp", client, backend)
							if err != nil {
								t.Error(err)
							}
							answered(true)
							splice(c, far)
							return nil, false
						}
					}
					if how.adopts {
						o.Accept, o.Adopt = acceptByHand, adoptBy(t, o.Join)
					}
				})
				w.choose(1, server)
				port := freeport.Of(t)
				p.Set([]PortSpec{spec(port, packet.TCP)})
				got := make([]byte, len("one\nhello"))
				// The reset may come before connect(2) has ended.
				c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
				if err == nil {
					defer c.Close()
					c.SetDeadline(time.Now().Add(await.Patience))
					if _, err = io.WriteString(c, "hello"); err == nil {
						_, err = io.ReadFull(c, got)
					}
				}
				want, answers := min(refusals, mostRefusals), int32(1)
				if refusals >= mostRefusals {
					answers = 0
				}
				if is := err == nil && string(got) == "one\nhello"; is != (answers == 1) {
					t.Errorf("got %q, %v", got, err)
				}
				await.Until(t, "the conversations have ended or answered", func() bool {
					return int(u.ended.Load()) >= want && u.refused.Load() == int32(want) && u.answered.Load() == answers
				})
			})
		}
	}
}
