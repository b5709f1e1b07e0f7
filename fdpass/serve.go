package fdpass

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxConns    = 256             // shared out evenly among the users that may connect
	maxStranger = 8               // connections at once that are told why they are refused
	patience    = 5 * time.Second // for the first message of one that is refused
	sendTime    = 10 * time.Second
	acceptPause = 100 * time.Millisecond // while this process has no room for another connection
)

// Options are the choices for Serve.
type Options struct {
	// UIDs are the users that may connect; none means the user of this process. Each of them may have the same number of
	// connections at once, so that none can shut the others out.
	UIDs []uint32
	// NoFiles leaves descriptors that come with messages to the kernel, which closes them: they never become this process's.
	NoFiles bool
	// Log is told of users who were refused, once for each; nil is slog.Default().
	Log *slog.Logger
}

// Refusal is how the answer to a refused user starts, and any other answer that is an error and nothing else.
type Refusal struct {
	Error string `json:"error"`
}

// server is one Serve.
type server struct {
	Options
	handle   func(context.Context, *Conn)
	unknown  users                             // whom nobody can tell apart
	peerOf   func(*net.UnixConn) (Cred, error) // peerOf, but for tests
	stranger chan struct{}

	mu     sync.Mutex
	conns  map[*Conn]bool
	held   map[uint32]int // connections by user
	logged []uint32
	wg     sync.WaitGroup
}

// Serve accepts connections on ln, a listener of network "unixpacket", until ctx is done, and runs handle for each in a
// goroutine of its own; the connection is closed when handle returns or ctx is done. Peers of other users, and those who
// have too many connections already, are answered a Refusal; descriptors that they sent never become this process's. ln
// is closed when Serve returns, which is after the last handle; the error is nil when ctx ended it.
func Serve(ctx context.Context, ln *net.UnixListener, o Options, handle func(context.Context, *Conn)) error {
	return newServer(o, handle).serve(ctx, ln)
}

func newServer(o Options, handle func(context.Context, *Conn)) *server {
	s := &server{
		Options: o, handle: handle, unknown: unmapped(), peerOf: peerOf,
		stranger: make(chan struct{}, maxStranger), conns: map[*Conn]bool{}, held: map[uint32]int{},
	}
	if len(s.UIDs) == 0 {
		s.UIDs = []uint32{uint32(os.Geteuid())}
	}
	s.UIDs = slices.Compact(slices.Sorted(slices.Values(s.UIDs))) // each has a share
	if s.Log == nil {
		s.Log = slog.Default()
	}
	return s
}

func (s *server) serve(ctx context.Context, ln *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer s.wg.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() {
		ln.Close()
		s.closeAll()
	})
	for full := false; ; {
		uc, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if uc != nil {
				uc.Close()
			}
			return nil
		case err == nil:
			full = false
			s.accept(ctx, uc)
		case passes(err):
			level := slog.LevelWarn
			if full {
				level = slog.LevelDebug // it was said
			}
			full = true
			s.Log.Log(ctx, level, "cannot accept a connection", "socket", ln.Addr(), "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
	}
}

// passes reports whether an error of accept(2) is about the moment, and not about the listener.
func passes(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ECONNABORTED, unix.ENOBUFS, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *server) accept(ctx context.Context, uc *net.UnixConn) {
	peer, err := s.peerOf(uc)
	if err != nil {
		uc.Close()
		return
	}
	if !slices.Contains(s.UIDs, peer.UID) {
		s.refuse(ctx, uc, peer, fmt.Sprintf("user %d may not use %s: only user %v may", peer.UID, uc.LocalAddr(), s.UIDs))
		return
	}
	if s.unknown.has(peer.UID) {
		s.refuse(ctx, uc, peer, fmt.Sprintf("user %d may not use %s: that is the number of all users whom this namespace does not know; name another", peer.UID, uc.LocalAddr()))
		return
	}
	c := newConn(uc, peer)
	if s.NoFiles {
		c.oob = nil
	}
	if !s.add(ctx, c) {
		s.refuse(ctx, uc, peer, fmt.Sprintf("user %d has %d connections to %s already, which is the most: close some", peer.UID, s.share(), uc.LocalAddr()))
		return
	}
	s.wg.Go(func() {
		defer s.remove(c)
		s.handle(ctx, c)
	})
}

// share is how many connections one user may have.
func (s *server) share() int { return maxConns / len(s.UIDs) }

// refuse says why, and closes the connection.
func (s *server) refuse(ctx context.Context, uc *net.UnixConn, peer Cred, why string) {
	s.mu.Lock()
	fresh := !slices.Contains(s.logged, peer.UID) && len(s.logged) < 64
	if fresh {
		s.logged = append(s.logged, peer.UID)
	}
	s.mu.Unlock()
	if fresh {
		s.Log.Warn("refused a connection of a user", "socket", uc.LocalAddr(), "uid", peer.UID, "pid", peer.PID, "why", why)
	}
	select {
	case s.stranger <- struct{}{}:
	default:
		uc.Close()
		return
	}
	s.wg.Go(func() {
		defer func() { <-s.stranger }()
		defer uc.Close()
		stop := context.AfterFunc(ctx, func() { uc.Close() })
		defer stop()
		uc.SetDeadline(time.Now().Add(patience))
		// Its message is read first: closing a socket with something unread would reset it, and the answer be lost. A read
		// without room for descriptors has the kernel close those that came along. To close them here could take as long
		// as whoever serves their file system likes.
		uc.Read(make([]byte, 1))
		(&Conn{conn: uc}).Send(Refusal{why})
	})
}

func (s *server) add(ctx context.Context, c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || s.held[c.peer.UID] >= s.share() {
		return false
	}
	s.conns[c] = true
	s.held[c.peer.UID]++
	return true
}

func (s *server) remove(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.held[c.peer.UID]--
	s.mu.Unlock()
	c.Close()
}

func (s *server) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Answer sends v as Send does, for a server: a peer that does not read loses its connection.
func (c *Conn) Answer(v any, fds ...int) error {
	c.conn.SetWriteDeadline(time.Now().Add(sendTime))
	return c.Send(v, fds...)
}
