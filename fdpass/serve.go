package fdpass

import (
	"cmp"
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
	defaultMost = 264
	maxStranger = 8               // connections at once that are told why they are refused
	patience    = 5 * time.Second // for the first message of a refused connection
	sendTime    = 10 * time.Second
	acceptPause = 100 * time.Millisecond // while this process has no room for another connection
)

// Options configures Serve.
type Options struct {
	// UIDs lists the users that may connect; none means the user of this process. Each may have the same number of
	// connections at once, so that none can shut the others out.
	UIDs []uint32
	// Most is how many connections there may be at once; 0 means 264. A few of them, maxStranger at most, are for
	// telling users why they are refused. The others are divided evenly among the users that may connect.
	Most int
	// NoFiles makes the kernel close descriptors that come with messages: they never become this process's.
	NoFiles bool
	// Log gets a warning about each refused user, once per user; nil means slog.Default().
	Log *slog.Logger
}

// Refusal is the beginning of the answer to a refused user. Any other answer that is only an error has the same form.
type Refusal struct {
	Error string `json:"error"`
}

// server is the state of one call of Serve.
type server struct {
	Options
	handle   func(context.Context, *Conn)
	unknown  users                             // users who cannot be told apart
	peerOf   func(*net.UnixConn) (Cred, error) // peerOf, except in tests
	stranger chan struct{}

	mu     sync.Mutex
	conns  map[*Conn]bool
	held   map[uint32]int // connections by user
	logged []uint32
	wg     sync.WaitGroup
}

// Serve accepts connections on ln, a listener of network "unixpacket", until ctx is done, and calls handle for each in
// its own goroutine. The connection is closed when handle returns or ctx is done. Peers of other users, and users who
// have too many connections already, get a Refusal; descriptors that they sent never become this process's. Serve
// closes ln, and returns after the last handle. The error is nil when ctx ended Serve.
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
	s.Most = cmp.Or(s.Most, defaultMost)
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
				level = slog.LevelDebug // it was logged as a warning already
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

// passes reports whether an error of accept(2) is temporary, and not about the listener.
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
		s.refuse(ctx, uc, peer, fmt.Sprintf("user %d may not use %s: this number stands for all users whom this namespace does not know; allow another user", peer.UID, uc.LocalAddr()))
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

// share returns how many connections one user may have.
func (s *server) share() int { return max(1, (s.Most-maxStranger)/len(s.UIDs)) }

// refuse tells the peer why it is refused, and closes the connection.
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
		// The peer's message is read first: closing a socket with unread data would reset it, and the answer would be
		// lost. A read without room for descriptors makes the kernel close those that came along. Closing them in this
		// process could take as long as their file system's server likes.
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

// Answer sends v in the same way as Send, for a server: the connection of a peer that does not read is given up.
func (c *Conn) Answer(v any, fds ...int) error {
	c.conn.SetWriteDeadline(time.Now().Add(sendTime))
	return c.Send(v, fds...)
}
