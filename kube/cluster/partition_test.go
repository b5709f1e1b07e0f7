package cluster

import (
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"tapestry.dev/tapestry/kube/cluster/clustertest"
	"tapestry.dev/tapestry/test/await"
)

// wire carries TCP connections to a server until it is cut. Then open connections stay open and carry nothing, as
// when the machine at the other end loses its power, and new ones get no answer.
type wire struct {
	net.Listener
	to string

	mu sync.Mutex
	// mu guards the rest.
	isCut bool
	conns []net.Conn
}

func newWire(t *testing.T, to string) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{Listener: l, to: strings.TrimPrefix(to, "https://")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var carrying sync.WaitGroup
		defer carrying.Wait()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			carrying.Go(func() { w.carry(c) })
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		w.closeAll()
		<-done
	})
	return w
}

func (w *wire) carry(c net.Conn) {
	far, err := net.Dial("tcp", w.to)
	w.mu.Lock()
	w.conns = append(w.conns, c)
	if err == nil {
		w.conns = append(w.conns, far)
	}
	w.mu.Unlock()
	if err != nil {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { w.copy(far, c) })
	both.Go(func() { w.copy(c, far) })
	both.Wait()
}

// copy reads from from, and writes to to unless the wire is cut.
func (w *wire) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		w.mu.Lock()
		cut := w.isCut
		w.mu.Unlock()
		if !cut {
			if _, werr := to.Write(buf[:n]); werr != nil || err == io.EOF {
				_ = to.Close()
			}
		}
		if err != nil {
			return
		}
	}
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.isCut = true
}

// mend lets new connections through again, and resets the old ones.
func (w *wire) mend() {
	w.mu.Lock()
	w.isCut = false
	w.mu.Unlock()
	w.closeAll()
}

func (w *wire) closeAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}

// A dead connection that is not closed is noticed, and the changes made meanwhile arrive when the server can be
// reached again.
func TestPartition(t *testing.T) {
	// client-go's defaults are 30 and 15 seconds.
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	s := clustertest.NewTLS(t)
	w := newWire(t, s.URL)
	s.Put(service("a"))
	v := see(t, s, func(o *Options) { o.Servers = []string{"https://" + w.Addr().String()} })
	v.untilNames("x/a")
	await.Until(t, "all watches are open", func() bool { return v.State().Age == 0 })
	w.cut()
	s.Put(service("b"))
	await.Until(t, "the state is old", func() bool { return v.State().Age > 0 })
	v.untilNames("x/a")
	w.mend()
	v.untilNames("x/a, x/b")
	await.Until(t, "the state is fresh", func() bool { return v.State().Age == 0 })
}
