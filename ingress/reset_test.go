package ingress

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"tapestry.dev/tapestry/test/await"
)

// counted counts the dials that are under way. They wait until leave is closed, whatever becomes of their context, as
// dials do that wait for a lock or a system call.
type counted struct {
	leave     chan struct{}
	now, most atomic.Int32
}

func (d *counted) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n := d.now.Add(1)
	defer d.now.Add(-1)
	for most := d.most.Load(); n > most && !d.most.CompareAndSwap(most, n); most = d.most.Load() {
	}
	<-d.leave
	return new(net.Dialer).DialContext(ctx, network, addr)
}

// Requests that their clients take back leave few dials behind: that the Server resets their streams (the client breaks
// the protocol on each one, CVE-2025-8671), that the client does (CVE-2023-44487), or that it resets the connection.
func TestRequestsThatAreGone(t *testing.T) {
	const requests, bound = 400, 64
	for name, take := range map[string]func(r *rig){
		"the Server's resets": func(r *rig) {
			for range 2 {
				h := r.dialH2(nil)
				go io.Copy(io.Discard, h.conn)
				h.framer.AllowIllegalWrites = true
				for range requests / 2 {
					h.open(true)
					h.framer.WriteWindowUpdate(h.next-2, 0)
				}
			}
		},
		"the Server's resets of gRPC": func(r *rig) {
			h := r.dialH2(nil)
			go io.Copy(io.Discard, h.conn)
			h.framer.AllowIllegalWrites = true
			for range requests / 2 {
				id := h.headers(true, ":method", "POST", ":scheme", "http", ":authority", "any.test", ":path", "/", "content-type", "application/grpc", "te", "trailers")
				h.framer.WriteWindowUpdate(id, 0)
			}
		},
		"the client's resets": func(r *rig) {
			for range 2 {
				h := r.dialH2(nil)
				go io.Copy(io.Discard, h.conn)
				for range requests / 2 {
					h.open(true)
					h.framer.WriteRSTStream(h.next-2, 8)
				}
			}
		},
		"connections that are reset": func(r *rig) {
			for i := range uint64(requests / 2) { // with more of them the client would be calmed
				c, err := net.Dial("tcp", r.http)
				if err != nil {
					r.t.Fatal(err)
				}
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
				await.Until(r.t, "the request is begun", func() bool { return r.Stats().Requests > i })
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := &counted{leave: make(chan struct{})}
			r := newRig(t, Options{Dial: d.dial}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) { io.Copy(io.Discard, req.Body) })))
			take(r)
			await.Until(t, "the requests have ended", func() bool { s := r.Stats(); return s.Requests > requests/4 && s.InFlight == 0 })
			if n := d.most.Load(); n > bound {
				t.Errorf("%d dials were under way at once, want %d at most", n, bound)
			}
			close(d.leave)
			if a := r.dialH2(nil).get("/"); a.status != "200" {
				t.Errorf("afterwards another client got %+v", a)
			}
			await.Until(t, "the dials have ended", func() bool { return d.now.Load() == 0 })
			t.Logf("%s requests, %d dials at once", strconv.FormatUint(r.Stats().Requests, 10), d.most.Load())
		})
	}
}
