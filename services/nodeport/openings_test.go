package nodeport

import (
	"context"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/test/await"
	"tapestry.dev/tapestry/test/freeport"
)

// late is a Listener whose clients have reset their connections before they are accepted, until it lets them live.
type late struct {
	Listener
	live atomic.Bool
}

func (l *late) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	inner, err := l.Listener.Listen(ctx, network, address)
	return &lateListener{inner, l}, err
}

type lateListener struct {
	net.Listener
	of *late
}

func (l *lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	for err == nil && !l.of.live.Load() && !conns.Gone(c) {
		runtime.Gosched()
	}
	return c, err
}

// For a client that has reset its connection nothing is opened, whether or not it has sent something before. A client
// that is well, and one that has only ended its own direction, are served.
func TestResetClientsAreNotDialled(t *testing.T) {
	l := &late{}
	w, p := newWorld(t, func(o *Options) { l.Listener, o.Listen = o.Listen, l })
	w.choose(1, tcpBackend(t, echo("one")))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	for i := range 50 {
		c := dialFrom(t, "tcp", "127.0.0.3", port).(*net.TCPConn)
		if i%2 == 0 {
			io.WriteString(c, "x")
		}
		c.SetLinger(0)
		c.Close()
	}
	last := dialFrom(t, "tcp", "127.0.0.2", port).(*net.TCPConn)
	l.live.Store(true)
	last.CloseWrite()
	if got, err := io.ReadAll(last); string(got) != "one\n" || err != nil {
		t.Errorf("a client that only listens got %q, %v", got, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.dials) != 1 {
		t.Errorf("backends were dialled %d times, want once", len(w.dials))
	}
}

// Clients whose backend does not answer, as many as like, hold up nobody else.
func TestSilentBackendHoldsUpNobody(t *testing.T) {
	silent := netip.MustParseAddrPort("192.0.2.1:1")
	var dialled atomic.Int32
	w, p := newWorld(t, func(o *Options) {
		dial := o.Dial
		o.Dial = func(ctx context.Context, network string, client, backend netip.AddrPort) (net.Conn, error) {
			if backend != silent {
				return dial(ctx, network, client, backend)
			}
			dialled.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	w.choose(1, net.TCPAddrFromAddrPort(silent))
	port := freeport.Of(t)
	p.Set([]PortSpec{spec(port, packet.TCP)})
	n := int32(3 * mostOpening())
	for range n {
		dialFrom(t, "tcp", "127.0.0.3", port)
	}
	await.Until(t, "the silent backend is dialled for everybody", func() bool { return dialled.Load() == n })
	w.choose(1, tcpBackend(t, echo("one")))
	if !isServed(dialFrom(t, "tcp", "127.0.0.2", port)) {
		t.Error("another client is not served")
	}
}

// closer counts how often it is closed.
type closer struct{ closed int }

func (c *closer) Close() error { c.closed++; return nil }

// has reports whether it is a's turn now, or what became of it.
func has(a *arrival) string {
	select {
	case ok := <-a.turn:
		if ok {
			return "turn"
		}
		return "lost"
	default:
		return "waits"
	}
}

// Clients have turns one after another: one with many in the line delays another by one. When too many wait, the client
// with the most loses its oldest.
func TestOpeningsInTurn(t *testing.T) {
	greedy, modest := netip.MustParsePrefix("203.0.113.1/32"), netip.MustParsePrefix("203.0.113.2/32")
	o := newOpenings(4)
	o.most = 1
	busy := o.admit(&closer{}, greedy)
	if got := has(busy); got != "turn" {
		t.Fatalf("the first client %s", got)
	}
	var list []*arrival
	var closers []*closer
	for range 6 {
		c := &closer{}
		closers = append(closers, c)
		list = append(list, o.admit(c, greedy))
	}
	for i, want := range []string{"lost", "lost", "waits", "waits", "waits", "waits"} {
		if got := has(list[i]); got != want || (closers[i].closed == 1) != (want == "lost") {
			t.Errorf("the greedy client's arrival %d %s, and was closed %d times, want %s", i, got, closers[i].closed, want)
		}
	}
	other := o.admit(&closer{}, modest) // takes the place of the greedy client's oldest
	if got := has(list[2]); got != "lost" {
		t.Errorf("the oldest arrival of who has the most %s", got)
	}
	for _, a := range list[:3] {
		a.leave() // they had no turn, and give none away
	}
	busy.leave()
	busy.leave()
	if got := has(list[3]); got != "turn" {
		t.Errorf("the next one %s", got)
	}
	list[3].leave()
	if got := has(other); got != "turn" {
		t.Errorf("the modest client %s", got)
	}
	other.leave()
	for _, a := range list[4:] {
		if got := has(a); got != "turn" {
			t.Errorf("one of the last %s", got)
		}
		a.leave()
	}
	if len(o.turns) != 0 || o.line.Len() != 0 || o.waiting.Stats().Held != 0 {
		t.Errorf("in the end %d have their turn, %d are in the line and %d held", len(o.turns), o.line.Len(), o.waiting.Stats().Held)
	}
}

// A turn ends by itself when an opening takes long, and whoever is told to stop while waiting leaves no trace.
func TestOpeningsThatTakeLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOpenings(4)
		o.most = 1
		owner := netip.MustParsePrefix("203.0.113.1/32")
		first, second, third := o.admit(&closer{}, owner), o.admit(&closer{}, owner), o.admit(&closer{}, owner)
		if !first.wait(t.Context()) {
			t.Fatal("the first has no turn")
		}
		began := time.Now()
		if !second.wait(t.Context()) || time.Since(began) != brief {
			t.Errorf("the second has its turn after %s, want %s", time.Since(began), brief)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if third.wait(ctx) {
			t.Error("the third was told to stop, and has its turn")
		}
		third.leave()
		time.Sleep(brief)
		synctest.Wait()
		first.leave()
		second.leave()
		if len(o.turns) != 0 || o.line.Len() != 0 || o.waiting.Stats().Held != 0 {
			t.Errorf("in the end %d have their turn, %d are in the line and %d held", len(o.turns), o.line.Len(), o.waiting.Stats().Held)
		}
	})
}

// The time of a turn begins when it is used, and not while whoever has it waits for a processor.
func TestOpeningsUsedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOpenings(4)
		o.most = 1
		owner := netip.MustParsePrefix("203.0.113.1/32")
		first, second := o.admit(&closer{}, owner), o.admit(&closer{}, owner)
		defer second.leave()
		defer first.leave()
		time.Sleep(brief - time.Millisecond)
		if !first.wait(t.Context()) {
			t.Fatal("the first has no turn")
		}
		used := time.Now()
		if !second.wait(t.Context()) || time.Since(used) != brief {
			t.Errorf("the second has its turn after %s, want %s", time.Since(used), brief)
		}
	})
}
