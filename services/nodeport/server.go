package nodeport

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"tapestry.dev/tapestry/services"
)

// server keeps one socket open and serves it.
type server struct {
	p      *Proxy
	key    key
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex // guards what follows
	spec     PortSpec
	err      error // why the socket is not open
	sessions map[sessionKey]*session
}

func newServer(p *Proxy, k key, spec PortSpec) *server {
	s := &server{p: p, key: k, spec: spec, done: make(chan struct{}), sessions: map[sessionKey]*session{}}
	s.ctx, s.cancel = context.WithCancel(p.ctx)
	return s
}

// socket is a listening socket, for TCP or UDP.
type socket interface {
	io.Closer
	serve(s *server) // until the socket fails or is closed
}

func (s *server) open() (socket, error) {
	address := s.key.local.String()
	if strings.HasPrefix(s.key.network, "tcp") {
		l, err := s.p.opts.Listen.Listen(s.ctx, s.key.network, address)
		if err != nil {
			return nil, err
		}
		return tcpSocket{l}, nil
	}
	pc, err := s.p.opts.Listen.ListenPacket(s.ctx, s.key.network, address)
	if err != nil {
		return nil, err
	}
	sock, err := s.p.newUDPSocket(pc)
	if err != nil {
		s.release()
	}
	return sock, err
}

// release is called before the socket is closed, unless the Proxy is.
func (s *server) release() { s.p.opts.Listen.Release(s.key.network, s.key.local.String()) }

// run serves sock, which may be nil. When the socket fails, run opens it again, until the socket is no longer wanted.
func (s *server) run(sock socket) {
	defer close(s.done)
	pause := retryMin
	for {
		if sock != nil {
			s.serve(sock)
			pause = retryMin
			if s.ctx.Err() == nil { // it has failed
				s.release()
			}
		}
		select {
		case <-s.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMax)
		var err error
		sock, err = s.open()
		s.note(err)
	}
}

func (s *server) serve(sock socket) {
	s.p.sockets.Add(1)
	defer s.p.sockets.Add(-1)
	closed := make(chan struct{})
	stop := context.AfterFunc(s.ctx, func() {
		defer close(closed)
		sock.Close()
	})
	defer func() {
		if stop() {
			sock.Close()
		} else {
			<-closed // whoever waits for the server may want its address
		}
	}()
	sock.serve(s)
}

// proxy returns the version of the PROXY protocol that is spoken to backends, 0 for none.
func (s *server) proxy() uint8 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec.Proxy
}

func (s *server) setSpec(spec PortSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spec = spec
}

// note records whether the socket could be opened, and logs when that changes.
func (s *server) note(err error) {
	// If the host has switched off a family, no client can miss its socket.
	if errors.Is(err, syscall.EAFNOSUPPORT) && s.key.local.Addr().IsUnspecified() || s.ctx.Err() != nil {
		err = nil
	}
	s.mu.Lock()
	before := s.err
	s.err = err
	spec := s.spec
	s.mu.Unlock()
	log := s.p.opts.Logger.With(slog.String("for", spec.Owner), slog.String("network", s.key.network), slog.Any("local", s.key.local))
	switch {
	case err != nil && before == nil:
		log.Warn("cannot open a socket for a node port or hostPort", slog.Any("err", err))
	case err == nil && before != nil:
		log.Info("opened a socket for a node port or hostPort after all")
	}
}

// problem returns the reason why the socket is not open, and false if it is open.
func (s *server) problem() (services.Problem, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		return services.Problem{}, false
	}
	return services.Problem{Object: s.spec.Owner, Message: explain(s.spec, protocolOf(s.key), s.err)}, true
}

// failing slows down a loop over a socket that returns errors, as accept(2) does when there are no free descriptors.
type failing struct{ pause time.Duration }

// wait pauses after err. It returns false if the loop must end.
func (f *failing) wait(s *server, err error) bool {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || s.ctx.Err() != nil {
		return false
	}
	if f.pause == 0 {
		s.p.opts.Logger.Warn("a listening socket fails", slog.String("network", s.key.network), slog.Any("local", s.key.local), slog.Any("err", err))
	}
	f.pause = min(max(2*f.pause, 5*time.Millisecond), time.Second)
	select {
	case <-s.ctx.Done():
		return false
	case <-time.After(f.pause):
		return true
	}
}
