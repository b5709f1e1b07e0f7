package ingress

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"

	"tapestry.dev/tapestry/ingress/http1"
)

// The rest of a request that arrives after its response is read for lingerTime and up to lingerBytes. Some clients read
// the response only after they have sent everything, and the connection can then carry their next request. When the
// rest is longer, the connection is read for another lingerTime and closed.
const (
	lingerTime  = 5 * time.Second
	lingerBytes = 256 << 10
	// leastBytes is how much of a body a client must send within StallTimeout, as far as the Server waits for it: 17
	// bytes a second by default. Thousands of bodies that come byte by byte would hold a connection each for days.
	leastBytes = 1 << 10
)

// errNoContinue says that the client waits for the backend's 100 Continue before it sends its body, and that the
// backend did not answer.
var errNoContinue = fmt.Errorf("the backend said neither 100 Continue nor anything else: %w", os.ErrDeadlineExceeded)

// clientBody is the body of a client's request, as the backend gets it. One goroutine calls Read, and may still be in
// it for a moment after the request's handler has returned.
type clientBody struct {
	rq      *request
	reading stall
	crumbs  crumbling
	closed  atomic.Bool // the handler has returned
	whole   atomic.Bool // all of it has been read
	failed  atomic.Bool // it is broken
	stalled atomic.Bool // it is broken because the client sent nothing for too long

	// expects says that the client waits for 100 Continue before it sends the body. net/http sends one of its own with
	// the first Read of the body, and not before.
	expects bool
	allowed chan struct{} // closed when the backend said 100 Continue
	allow   func()        // closes allowed
	final   func()        // closes done
	done    chan struct{} // closed when the backend has answered, or none will
	waiting sync.Mutex    // held while Read waits for one of them
	waited  bool
}

func newClientBody(rq *request) *clientBody {
	b := &clientBody{rq: rq, expects: expectsContinue(rq.in) && !isGRPC(rq.in)}
	if !isGRPC(rq.in) { // gRPC streams may be silent for hours, while a client waits for events
		b.reading = stall{limit: rq.s.stallTimeout, least: leastBytes, cut: func() {
			b.stalled.Store(true)
			_ = rq.control.SetReadDeadline(longAgo)
		}}
		if cn := rq.client.under; cn != nil {
			b.reading.turns = &cn.turns
		}
	}
	b.allowed, b.done = make(chan struct{}), make(chan struct{})
	b.allow = sync.OnceFunc(func() { close(b.allowed) })
	b.final = sync.OnceFunc(func() { close(b.done) })
	stripTrailer(rq.in.Trailer)
	return b
}

// Read reads the body. The first Read of an expecting client waits until the client may send.
func (b *clientBody) Read(p []byte) (int, error) {
	if b.expects && !b.waited {
		if err := b.wait(); err != nil {
			return 0, err
		}
		b.waited = true
	}
	if b.closed.Load() {
		return 0, http1.ErrEnough
	}
	b.reading.begin() // a nap counts: the client sends little
	b.nap()
	n, err := b.rq.in.Body.Read(p)
	b.reading.end(n)
	b.rq.s.guests.crumbs.read(&b.crumbs, b.rq.client.owner, n)
	switch {
	case err == io.EOF:
		b.whole.Store(true)
		stripTrailer(b.rq.in.Trailer)
	case err != nil:
		b.failed.Store(true)
	}
	return n, err
}

// nap waits a while before the next read, if the body is one of crumbs and the client has many such. It ends with the
// request, and when the backend answers.
func (b *clientBody) nap() {
	if b.rq.in.ProtoMajor != 1 { // in HTTP/2 net/http reads all the time
		return
	}
	d := b.rq.s.guests.crumbs.nap(&b.crumbs, b.rq.client.owner)
	if d == 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-b.done:
	case <-b.rq.in.Context().Done():
	}
}

// Close ends a Read that waits for more of a body in HTTP/2. No more of the body is wanted then.
func (b *clientBody) Close() error { return b.rq.in.Body.Close() }

// wait waits for the backend's 100 Continue. It returns nil when the backend wants the body, or when the client sends
// it without waiting.
func (b *clientBody) wait() error {
	b.waiting.Lock()
	defer b.waiting.Unlock()
	select {
	case <-b.done:
		return http1.ErrEnough
	default:
	}
	var unasked <-chan struct{}
	if b.rq.in.ProtoMajor == 1 { // in HTTP/2 net/http reads all the time, and does not tell what
		var end func()
		unasked, end = b.rq.client.sending()
		defer end()
	}
	limit := time.NewTimer(b.rq.s.responseTimeout)
	defer limit.Stop()
	select {
	case <-b.allowed:
		return nil
	case <-unasked:
		return nil
	case <-b.done:
		return http1.ErrEnough
	case <-limit.C:
		return errNoContinue
	case <-b.rq.in.Context().Done():
		return b.rq.in.Context().Err()
	}
}

// finish is called when the request's handler returns. It reads the rest of the body, within limits. When that is not
// all of it, finish marks the connection as lost, since what follows is not a request.
func (b *clientBody) finish() {
	b.final()
	b.closed.Store(true)
	b.rq.s.guests.crumbs.over(&b.crumbs, b.rq.client.owner)
	b.waiting.Lock() // no wait is watching the connection from here on
	defer b.waiting.Unlock()
	if b.whole.Load() || b.rq.in.ProtoMajor != 1 {
		return
	}
	if !b.broken() && (!b.expects || b.waited) && b.drained() {
		return
	}
	if cn := b.rq.client.under; cn != nil {
		cn.lost.Store(true)
	}
	_ = b.rq.control.SetReadDeadline(longAgo) // otherwise net/http would read the rest, too
}

// broken reports whether the rest of the body will not come. The Read of a stalled client may not have returned yet.
func (b *clientBody) broken() bool { return b.failed.Load() || b.stalled.Load() }

// drained reads the rest of the body within the limits of time and length, and reports whether all of it came.
func (b *clientBody) drained() bool {
	if b.rq.flush() != nil {
		return false
	}
	_ = b.rq.control.SetReadDeadline(time.Now().Add(lingerTime))
	_, err := io.CopyN(io.Discard, b.rq.in.Body, lingerBytes)
	return err == io.EOF
}

// expectsContinue reports whether the client waits for 100 Continue. For HTTP/2 net/http has this only in an unexported
// field, which is read by reflection. Without that field the client is taken for one that does not wait.
func expectsContinue(r *http.Request) bool {
	if r.ProtoMajor == 1 {
		return r.ProtoMinor > 0 && httpguts.HeaderValuesContainsToken(r.Header["Expect"], "100-continue")
	}
	body := reflect.Indirect(reflect.ValueOf(r.Body))
	if body.Kind() != reflect.Struct {
		return false
	}
	waits := body.FieldByName("needsContinue")
	return waits.IsValid() && waits.Kind() == reflect.Bool && waits.Bool()
}
