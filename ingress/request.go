package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"

	"tapestry.dev/tapestry/ingress/target"
	"tapestry.dev/tapestry/share"
)

// request is one request on its way through the Server.
type request struct {
	s *Server
	u *upstream
	// upgrades are those of the route.
	upgrades []string
	// asked are the protocols that the client asks to change to and the route allows, by its preference; nil for none.
	asked   []string
	client  *client
	target  target.Target
	in      *http.Request
	w       http.ResponseWriter
	control *http.ResponseController
	body    *clientBody // nil: the request has none
	visit   visit       // of the endpoint that was asked last
	writing stall
}

func newRequest(s *Server, w http.ResponseWriter, r *http.Request) *request {
	rq := &request{s: s, client: r.Context().Value(clientKey{}).(*client), in: r, w: w, control: http.NewResponseController(w)}
	rq.writing = stall{limit: s.stallTimeout, cut: func() { _ = rq.control.SetWriteDeadline(longAgo) }}
	if r.ContentLength != 0 {
		rq.body = newClientBody(rq)
	}
	if r.ProtoMajor == 1 {
		rq.guard()
	}
	return rq
}

// guard makes net/http careful about where a request in HTTP/1 ends.
func (rq *request) guard() {
	if cn := rq.client.under; cn != nil && cn.lost.Load() {
		panic(http.ErrAbortHandler) // this may be the rest of a body and not a request
	}
	if rq.body != nil {
		// Without this net/http would read the body itself as soon as the response begins.
		_ = rq.control.EnableFullDuplex()
	}
	// The connection ends with a request that has both Content-Length and Transfer-Encoding, or Transfer-Encoding in
	// HTTP/1.0 (RFC 9112 section 6.1). net/http does not tell which requests had both.
	if len(rq.in.TransferEncoding) > 0 || rq.in.ProtoMinor == 0 {
		rq.w.Header()["Connection"] = []string{"close"}
	}
}

// answers notes that the client gets an answer with what is written next.
func (rq *request) answers() {
	if under := rq.client.under; under != nil {
		under.answers.Store(true)
	}
}

// turn waits until it is the client's turn. A request whose client was read for it has had one. Several that are read
// at once, as in HTTP/2 or with pipelining, have one each.
func (rq *request) turn() {
	if under := rq.client.under; under == nil || !under.fresh.Swap(false) {
		rq.s.guests.turn(rq.in.Context().Done(), rq.client.owner)
	}
}

// takePlace charges a request in HTTP/2 to its client, since one connection may have many requests at once. It reports
// false when there is no place for it. The caller calls end when the request has ended.
func (rq *request) takePlace() (end func(), ok bool) {
	s, c, outer, began := rq.s, rq.client, rq.in.Context(), time.Now()
	ctx, cancel := context.WithCancelCause(outer)
	claim := &share.Claim[netip.Prefix, context.CancelCauseFunc]{Value: cancel}
	lost, ok := s.streams.Acquire(claim, c.owner)
	if lost != nil {
		s.stats.shed.Add(1)
		lost.Value(errShare)
	}
	if !ok {
		cancel(nil)
		return nil, false
	}
	rq.in = rq.in.WithContext(ctx)
	return func() {
		s.streams.Release(claim)
		if c.takenBack(began, outer.Err() != nil) && c.flooded.CompareAndSwap(false, true) {
			s.stats.flooded.Add(1)
			s.guests.calm.watch(c.owner, time.Now())
			c.conn.Close()
		}
		cancel(nil)
	}, true
}

// pass asks a backend and answers the client. When the response is not whole it panics with http.ErrAbortHandler, so
// that net/http cuts the connection or stream: the client has no other way to notice.
func (rq *request) pass() {
	resp, err := rq.ask()
	defer rq.visit.end()
	if rq.body != nil {
		rq.body.final()
	}
	if err != nil {
		// A backend that does not answer fails all that wait for it at once.
		rq.s.guests.turn(rq.in.Context().Done(), rq.client.owner)
		rq.fail(err)
		return
	}
	defer resp.Body.Close()
	rq.s.stats.class(resp.StatusCode)
	if resp.StatusCode == http.StatusSwitchingProtocols {
		rq.upgrade(resp)
		return
	}
	rq.answer(resp)
}

// interim passes an interim response (1xx) on to the client.
func (rq *request) interim(code int, from http.Header) {
	if !rq.in.ProtoAtLeast(1, 1) {
		return // RFC 9110 section 15.2: HTTP/1.0 has none
	}
	h := rq.w.Header()
	removeHopByHop(from)
	for name, values := range from {
		h[name] = values
	}
	rq.w.WriteHeader(code)
	clear(h)
	if code == http.StatusContinue && rq.body != nil {
		rq.body.allow()
	}
}

// answer passes the response on to the client.
func (rq *request) answer(resp *http.Response) {
	h := rq.w.Header()
	rq.fromBackend(h, resp)
	stripTrailer(resp.Trailer)
	announced := len(resp.Trailer)
	if announced > 0 {
		names := make([]string, 0, announced)
		for name := range resp.Trailer {
			names = append(names, name)
		}
		h["Trailer"] = []string{strings.Join(names, ", ")}
	}
	rq.answers()
	rq.w.WriteHeader(resp.StatusCode)
	if err := rq.copy(resp.Body); err != nil {
		rq.s.stats.broken.Add(1)
		panic(http.ErrAbortHandler)
	}
	if len(resp.Trailer) == 0 {
		return
	}
	_ = rq.flush() // without it net/http gives a short body a Content-Length, and the response then has no trailer
	stripTrailer(resp.Trailer)
	prefix := ""
	if len(resp.Trailer) != announced {
		prefix = http.TrailerPrefix
	}
	for name, values := range resp.Trailer {
		h[prefix+name] = values
	}
}

// copy passes the body on as it arrives: it flushes before each read that may wait for the backend. A response that
// arrives whole is sent with as few writes as its size allows.
func (rq *request) copy(body io.Reader) error {
	if body == http.NoBody {
		return nil
	}
	backend, _ := body.(interface{ Buffered() bool })
	buf := pool.Get().(*[bufferBytes]byte)
	defer pool.Put(buf)
	unsent := true // at first this is the head
	for {
		if unsent && (backend == nil || !backend.Buffered()) {
			if err := rq.flush(); err != nil {
				return err
			}
			unsent = false
		}
		n, err := body.Read(buf[:])
		if n > 0 {
			if err := rq.write(buf[:n]); err != nil {
				return err
			}
			unsent = true
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			_ = rq.flush() // the client gets what came, though it is not all
			return err
		}
	}
}

func (rq *request) write(p []byte) error {
	rq.writing.begin()
	defer rq.writing.end(len(p))
	_, err := rq.w.Write(p)
	return err
}

func (rq *request) flush() error {
	rq.writing.begin()
	defer rq.writing.end(0)
	return rq.control.Flush()
}

// fail answers the client when there is no response of a backend.
func (rq *request) fail(err error) {
	stats := &rq.s.stats
	var timeout net.Error
	switch {
	case errors.Is(context.Cause(rq.in.Context()), errShare):
		http.Error(rq.w, errShare.Error(), http.StatusServiceUnavailable)
		return
	case rq.body != nil && rq.body.broken(): // the request's context may have ended, too
		stats.clientBroke.Add(1)
		rq.w.Header()["Connection"] = []string{"close"}
		if rq.body.stalled.Load() {
			http.Error(rq.w, "the request's body did not come in time", http.StatusRequestTimeout)
			return
		}
		http.Error(rq.w, "the request's body is not whole", http.StatusBadRequest)
		return
	case rq.in.Context().Err() != nil:
		stats.clientGone.Add(1)
		rq.w.WriteHeader(http.StatusBadGateway) // nobody reads it
		return
	case errors.Is(err, errNoEndpoint):
		stats.noEndpoint.Add(1)
		http.Error(rq.w, errNoEndpoint.Error(), http.StatusServiceUnavailable)
		return
	case errors.Is(err, errForbidden):
		stats.forbidden.Add(1)
		http.Error(rq.w, errForbidden.Error(), http.StatusForbidden)
		return
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		stats.timeout.Add(1)
		http.Error(rq.w, "the backend did not answer in time", http.StatusGatewayTimeout)
	default:
		stats.badGateway.Add(1)
		http.Error(rq.w, "the backend could not be reached or broke off", http.StatusBadGateway)
	}
	rq.s.log.LogAttrs(rq.in.Context(), slog.LevelDebug, "backend failed",
		slog.String("service", rq.u.port.String()), slog.String("err", fmt.Sprint(err)))
}

// parse sets rq.target and checks the request. Its error is a sentence for the client. net/http has checked most of a
// request in HTTP/1.1, and little of one in HTTP/2.
func (rq *request) parse() (err error) {
	r := rq.in
	switch {
	case !httpguts.ValidHeaderFieldName(r.Method): // a token, as a header's name is
		return errors.New("the method is not a token")
	case r.Method == "PRI":
		return errors.New("the method is PRI, which begins a connection in HTTP/2 (RFC 9113 section 11.6)")
	case !target.ValidHost(r.Host):
		return errors.New("the host is not a valid host name or address")
	case r.ProtoMajor == 2 && r.RequestURI != "*" && !strings.HasPrefix(r.RequestURI, "/"):
		return errors.New("the path does not begin with /") // RFC 9113 section 8.3.1
	}
	for _, length := range r.Header["Content-Length"] { // in HTTP/2 net/http takes a bad one for 0, and one of several
		if n, err := strconv.ParseUint(length, 10, 63); err != nil || r.ContentLength >= 0 && n != uint64(r.ContentLength) {
			return errors.New("the Content-Length is not a number, or there are several")
		}
	}
	for _, host := range r.Header["Host"] { // net/http leaves this header only in HTTP/2
		if !strings.EqualFold(host, r.Host) {
			return errors.New("the Host header is not the :authority") // RFC 9113 section 8.3.1
		}
	}
	rq.target, err = target.Parse(r.Method, r.RequestURI)
	return err
}
