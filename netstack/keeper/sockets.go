package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
)

// SocketPrefix, followed by a network, "/" and an address such as "tcp4/0.0.0.0:30080", is the key of a socket of the
// host that an agent made. "udp4+gro" and "udp6+gro" are networks, too.
const SocketPrefix = "socket/"

// Sockets opens sockets of the host that the keeper holds as well: while there is no agent, connections and datagrams
// wait in them for the next one, and are not refused. Its methods are safe for concurrent use.
type Sockets struct {
	kept *Holdings
	log  *slog.Logger

	mu    sync.Mutex
	there map[string]*os.File // of the agent before, that nobody has asked for yet
}

// NewSockets takes over the sockets among items, and returns the other items.
func NewSockets(kept *Holdings, items []Item, log *slog.Logger) (s *Sockets, others []Item) {
	s = &Sockets{kept: kept, log: log, there: map[string]*os.File{}}
	for _, it := range items {
		if strings.HasPrefix(it.Key, SocketPrefix) {
			s.there[it.Key] = it.File
		} else {
			others = append(others, it)
		}
	}
	return s, others
}

func socketKey(network, address string) string { return SocketPrefix + network + "/" + address }

// coalesces follows the network of a datagram socket in whose datagrams the kernel may put several together (UDP_GRO).
// Agents that read one datagram at a time do not know the key: they let go of the socket and open another one.
const coalesces = "+gro"

// filer is a socket of package net.
type filer interface{ File() (*os.File, error) }

// Listen returns the listening socket of the agent before, or a new one. It does not speak Multipath TCP, as listeners
// of package net do by themselves: what such a socket accepts has not all options of TCP, and a relay could not join
// it.
func (s *Sockets) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	key := socketKey(network, address)
	if f := s.take(key); f != nil {
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			_ = s.kept.Delete(key) // never fails; with the socket there, the next attempt would find the address in use
		}
		return l, err
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, network, address)
	if err == nil {
		s.keep(key, l.(filer))
	}
	return l, err
}

// ListenPacket returns the datagram socket of the agent before, or a new one. The caller may have the kernel put
// datagrams together in it, and the next agent expects that.
func (s *Sockets) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	key, plain := socketKey(network+coalesces, address), socketKey(network, address)
	f := s.take(key)
	if old := s.take(plain); old != nil {
		if f == nil {
			f = old
			s.hold(key, f)
		} else {
			_ = old.Close()
		}
		_ = s.kept.Delete(plain) // never fails
	}
	if f != nil {
		defer f.Close()
		c, err := net.FilePacketConn(f)
		if err != nil {
			_ = s.kept.Delete(key)
		}
		return c, err
	}
	c, err := new(net.ListenConfig).ListenPacket(ctx, network, address)
	if err == nil {
		s.keep(key, c.(filer))
	}
	return c, err
}

// Release has the keeper hold a socket no longer. The caller closes its own.
func (s *Sockets) Release(network, address string) {
	for _, key := range []string{socketKey(network, address), socketKey(network+coalesces, address)} {
		if f := s.take(key); f != nil {
			_ = f.Close()
		}
		_ = s.kept.Delete(key) // never fails
	}
}

// Settle closes the sockets of the agent before that nobody has asked for.
func (s *Sockets) Settle() {
	s.mu.Lock()
	left := s.there
	s.there = map[string]*os.File{}
	s.mu.Unlock()
	for key, f := range left {
		_ = s.kept.Delete(key) // never fails
		_ = f.Close()
	}
}

func (s *Sockets) take(key string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.there[key]
	delete(s.there, key)
	return f
}

// keep has the keeper hold a socket. Without that, clients are refused while there is no agent.
func (s *Sockets) keep(key string, socket filer) {
	f, err := socket.File()
	if err != nil {
		s.notKept(key, err)
		return
	}
	s.hold(key, f)
	_ = f.Close()
}

func (s *Sockets) hold(key string, f *os.File) {
	if err := s.kept.Put(key, nil, f); err != nil {
		s.notKept(key, err)
	}
}

func (s *Sockets) notKept(key string, err error) {
	s.log.Warn("a socket is not kept: its clients are refused while there is no agent", "err", fmt.Errorf("%s: %w", key, err))
}
