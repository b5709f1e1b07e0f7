package hostproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tapestry.dev/tapestry/share"
)

// Options are the settings of a Server. Dial, Lookup and MaxConns are required.
type Options struct {
	// Dial connects to an address of the cluster. Its error wraps ErrOutside for every other address, and ErrRefused
	// where nobody serves.
	Dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Lookup returns the addresses of a name of the cluster, best first.
	Lookup func(name string) []netip.Addr
	// UIDs are the users who may use the proxy; nil means everybody on this node.
	UIDs []uint32
	// MaxConns limits the connections of all users together. One user may have as many as it leaves to others.
	MaxConns int
	// Logger is told why a user or an address is refused, at level debug. Nil discards it.
	Logger *slog.Logger
}

var (
	// ErrOutside means that an address is none of the cluster.
	ErrOutside = errors.New("it is no address of a pod or a Service, and nothing else is dialled here")
	// ErrRefused means that nobody serves at an address of the cluster.
	ErrRefused = errors.New("nobody serves there")
	// errUnknown means that a name is none of the cluster.
	errUnknown = errors.New("it is no name of the cluster")
	// errUser means that a user may not use the proxy.
	errUser = errors.New("the user may not use this proxy")
	// errBusy means that there are too many connections.
	errBusy = errors.New("there are too many connections through this proxy")
)

const (
	// askTime is how long a client may take to say what it wants.
	askTime = 10 * time.Second
	// dialTime is how long an address may take to answer.
	dialTime = 10 * time.Second
	// pause is how long nothing is accepted after accept has failed.
	pause = 50 * time.Millisecond
)

// Stats counts what a Server has and what it refused since it was made.
type Stats struct {
	Conns                    int
	Served, Refused, Failing uint64
}

// Server is the proxy. Its methods may be called concurrently.
type Server struct {
	o      Options
	claims *share.Limit[uint32, struct{}]

	served, refused, failing atomic.Uint64
}

// New returns a Server.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Server{o: o, claims: share.New[uint32, struct{}](share.Options[uint32]{Total: o.MaxConns, Keep: true})}
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{Conns: s.claims.Stats().Held, Served: s.served.Load(), Refused: s.refused.Load(), Failing: s.failing.Load()}
}

// Serve takes connections of l until ctx is done. Then it closes l and all connections, and returns when they have
// ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	ask := askerFor(l.Addr())
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			// Whose it is is asked here, one after the other, so that there is one descriptor for that at a time.
			claim, err := s.admit(c, ask)
			if err != nil {
				s.note(err)
				breakOff(c)
				continue
			}
			all.Go(func() {
				defer s.claims.Release(claim)
				s.serve(ctx, c)
			})
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return ctx.Err()
		default: // as when there is no descriptor
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// admit charges a connection to its user, before anything is read from it: a connection that says nothing counts, too.
func (s *Server) admit(c net.Conn, ask asker) (*share.Claim[uint32, struct{}], error) {
	user, err := userOf(c, ask)
	if err != nil {
		return nil, fmt.Errorf("whose connection it is cannot be found out: %w", err)
	}
	if s.o.UIDs != nil && !slices.Contains(s.o.UIDs, user) {
		return nil, fmt.Errorf("user %d: %w", user, errUser)
	}
	claim := new(share.Claim[uint32, struct{}])
	if _, ok := s.claims.Acquire(claim, user); !ok {
		return nil, errBusy
	}
	return claim, nil
}

// serve serves one connection to its end.
func (s *Server) serve(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(time.Now().Add(askTime))
	r := bufio.NewReader(io.LimitReader(c, mostAsked))
	p, err := protocolOf(r)
	if err != nil {
		s.note(err)
		return
	}
	to, err := p.read(r, c)
	if err != nil {
		s.note(err)
		_ = p.answer(c, err)
		return
	}
	far, err := s.dial(ctx, to)
	if err != nil {
		s.note(err)
		_ = p.answer(c, err)
		return
	}
	defer far.Close()
	defer context.AfterFunc(ctx, func() { _ = far.Close() })()
	if p.answer(c, nil) != nil {
		return
	}
	s.served.Add(1)
	_ = c.SetDeadline(time.Time{})
	early, _ := r.Peek(r.Buffered())
	join(c, far, early)
}

// note counts and tells what was not served. It is the user's affair, who is told, too.
func (s *Server) note(err error) {
	if errors.Is(err, errUser) || errors.Is(err, ErrOutside) || errors.Is(err, errBusy) {
		s.refused.Add(1)
	} else {
		s.failing.Add(1)
	}
	s.o.Logger.Debug("a connection through the host proxy was not made", "err", err)
}

// dial connects to the first address of the target that answers.
func (s *Server) dial(ctx context.Context, to target) (far net.Conn, err error) {
	addrs := []netip.Addr{to.addr}
	if !to.addr.IsValid() {
		if addrs = s.o.Lookup(to.name); len(addrs) == 0 {
			return nil, fmt.Errorf("%q: %w", to.name, errUnknown)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	for _, a := range addrs {
		if far, err = s.o.Dial(ctx, netip.AddrPortFrom(a.Unmap(), to.port)); err == nil {
			return far, nil
		}
	}
	return nil, err
}

// join copies both ways until both directions have ended. early is what the client has sent already. A connection that
// breaks ends both.
func join(client, far net.Conn, early []byte) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := far.Write(early); err != nil || !forward(far, client) {
			breakOff(client, far)
		}
	}()
	if !forward(client, far) {
		breakOff(client, far)
	}
	<-done
}

// forward copies from src to dst until src ends, passes the end on, and returns true if there was no failure. The
// kernel is not asked to copy between sockets: it would take urgent data for the end of the stream.
func forward(dst, src net.Conn) bool {
	if _, err := io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src}); err != nil {
		return false
	}
	c, ok := dst.(interface{ CloseWrite() error })
	return ok && c.CloseWrite() == nil
}

// breakOff closes both connections, with a reset where that can be said.
func breakOff(list ...net.Conn) {
	for _, c := range list {
		if l, ok := c.(interface{ SetLinger(int) error }); ok {
			_ = l.SetLinger(0)
		}
		_ = c.Close()
	}
}
