package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxConns    = 256
	maxStranger = 8               // connections of refused users at once
	patience    = 5 * time.Second // for a refused user's first message
	sendTime    = 10 * time.Second
)

// Options are the choices for Serve.
type Options struct {
	// UIDs are the users that may connect; none means the user of this process.
	UIDs []uint32
	// Log is told of refused users, once for each; nil is slog.Default().
	Log *slog.Logger
}

// Refusal is how the answer to a refused user starts, and any other answer that is an error and nothing else.
type Refusal struct {
	Error string `json:"error"`
}

// Listen makes the socket at path, for this user only. The socket of a process that died is replaced.
func Listen(path string) (*net.UnixListener, error) {
	addr := &net.UnixAddr{Name: path, Net: "unixpacket"}
	ln, err := net.ListenUnix("unixpacket", addr)
	if errors.Is(err, unix.EADDRINUSE) {
		c, derr := net.DialUnix("unixpacket", nil, addr)
		if derr == nil {
			c.Close()
			return nil, fmt.Errorf("listen on %s: another process listens there; stop it first", path)
		}
		if !errors.Is(derr, unix.ECONNREFUSED) {
			return nil, err
		}
		if rerr := os.Remove(path); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			return nil, rerr
		}
		ln, err = net.ListenUnix("unixpacket", addr)
	}
	if err != nil {
		return nil, err
	}
	// Until here a stranger might have connected; Serve checks every connection.
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// server is one Serve.
type server struct {
	allowed  []uint32
	log      *slog.Logger
	handle   func(context.Context, *Conn)
	stranger chan struct{}

	mu     sync.Mutex
	conns  map[*Conn]bool
	logged []uint32
	wg     sync.WaitGroup
}

// Serve accepts connections on ln, a listener of network "unixpacket", until ctx is done, and runs handle for each in a
// goroutine of its own; the connection is closed when handle returns or ctx is done. Peers of other users are answered
// a Refusal, and what descriptors they sent are closed. ln is closed when Serve returns, which is after the last
// handle; the error is nil when ctx ended it.
func Serve(ctx context.Context, ln *net.UnixListener, o Options, handle func(context.Context, *Conn)) error {
	s := &server{
		allowed: o.UIDs, log: o.Log, handle: handle,
		stranger: make(chan struct{}, maxStranger), conns: map[*Conn]bool{},
	}
	if len(s.allowed) == 0 {
		s.allowed = []uint32{uint32(os.Geteuid())}
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer s.wg.Wait()
	defer cancel()
	context.AfterFunc(ctx, func() {
		ln.Close()
		s.closeAll()
	})
	for {
		uc, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if uc != nil {
				uc.Close()
			}
			return nil
		case err == nil:
			s.accept(ctx, uc)
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ECONNABORTED):
			s.log.Warn("cannot accept a connection", "socket", ln.Addr(), "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		}
	}
}

func (s *server) accept(ctx context.Context, uc *net.UnixConn) {
	c, err := newConn(uc)
	if err != nil {
		return
	}
	if !slices.Contains(s.allowed, c.peer.UID) {
		s.wg.Go(func() { s.refuse(ctx, c) })
		return
	}
	if !s.add(ctx, c) {
		c.Close()
		return
	}
	s.wg.Go(func() {
		defer s.remove(c)
		s.handle(ctx, c)
	})
}

func (s *server) refuse(ctx context.Context, c *Conn) {
	defer c.Close()
	s.mu.Lock()
	fresh := !slices.Contains(s.logged, c.peer.UID) && len(s.logged) < 64
	if fresh {
		s.logged = append(s.logged, c.peer.UID)
	}
	s.mu.Unlock()
	if fresh {
		s.log.Warn("refused a connection of another user", "socket", c.conn.LocalAddr(), "uid", c.peer.UID, "pid", c.peer.PID)
	}
	select {
	case s.stranger <- struct{}{}:
		defer func() { <-s.stranger }()
	default:
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	// Its message is read first: closing a socket with something unread would reset it, and the answer be lost.
	c.conn.SetDeadline(time.Now().Add(patience))
	var ignored struct{}
	if fds, err := c.Receive(&ignored); err == nil {
		CloseAll(fds)
	}
	c.Send(Refusal{fmt.Sprintf("user %d may not use %s: only user %v may", c.peer.UID, c.conn.LocalAddr(), s.allowed)})
}

func (s *server) add(ctx context.Context, c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil || len(s.conns) >= maxConns {
		return false
	}
	s.conns[c] = true
	return true
}

func (s *server) remove(c *Conn) {
	s.mu.Lock()
	delete(s.conns, c)
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
