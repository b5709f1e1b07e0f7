package tcprelay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"

	"tapestry.dev/tapestry/netstack/packet"
)

// Told is told how a connection goes on that Adopt has begun. Its funcs must not block, and Adopt may call them before
// it returns.
type Told struct {
	// Answered is called with true when the pod has answered, or with false when it refuses the connection or does not
	// answer. It is not called when the client goes before that.
	Answered func(bool)
	// Ended is called once, at the end. If the pod refuses the connection, or resets it before it has acknowledged or
	// said anything, left is the client, which has heard of nothing; it belongs to whoever is told. Otherwise left is
	// nil.
	Ended func(left *net.TCPConn)
}

// Adopt connects client, a socket that does not block and was accepted by a listener that was given to Prepare, to the
// pod at to, from the address from, and carries the connection until it ends. A port of 0 in from stands for any port.
// Adopt takes over the descriptor, unless it returns an error: one that wraps ErrInUse when from is in use by another
// connection to the pod, or ErrTooMany. It does not wait for the pod.
func (r *Relay) Adopt(client int, from, to netip.AddrPort, told Told) error {
	c, err := r.join(from, to)
	if err != nil {
		return err
	}
	c.begin(client, nil, 0, told)
	return nil
}

// Join is Adopt for a connection of the standard library. It returns when the connection ends, or ctx does, and then
// the error is nil. Join calls answered, unless that is nil, as Told.Answered is. It takes over the client's
// descriptor. What would be left to Told.Ended is in a *RefusedError.
func (r *Relay) Join(ctx context.Context, client *net.TCPConn, from, to netip.AddrPort, answered func(bool)) error {
	c, err := r.join(from, to)
	if err != nil {
		return err
	}
	var left *net.TCPConn
	fd, err := detach(client)
	c.begin(fd, err, 0, Told{Answered: answered, Ended: func(client *net.TCPConn) { left = client }})
	if err != nil {
		return fmt.Errorf("join a client to %s: %w", to, err)
	}
	stop := context.AfterFunc(ctx, func() { c.kill(leaving) })
	defer stop()
	<-c.ended
	if left != nil {
		return &RefusedError{Client: left, by: to}
	}
	return nil
}

// join enters the connection of a client, which has no socket yet.
func (r *Relay) join(from, to netip.AddrPort) (*conn, error) {
	pod, seen := endpoint(to), endpoint(from)
	c := newConn(r, packet.Tuple{Src: pod.Addr, SrcPort: pod.Port, Dst: seen.Addr, DstPort: seen.Port, Proto: packet.TCP}, greeting)
	c.joined = true
	if mtu, is := r.o.Far(pod.Addr); is {
		if err := canGoFar(); err != nil {
			return nil, fmt.Errorf("join a client to %s: %w", to, err)
		}
		c.goFar(mtu)
	}
	if c.account = r.bounds.begin(Network(seen.Addr)); c.account == nil {
		return nil, fmt.Errorf("join a client to %s: %w", to, ErrTooMany)
	}
	if !r.reserve(c) {
		c.account.end(false)
		return nil, fmt.Errorf("join a client to %s as %s: %w", to, from, ErrInUse)
	}
	return c, nil
}

// hasEnded tells those who wait for the end.
func (c *conn) hasEnded() {
	if c.told.Ended != nil {
		c.told.Ended(c.spare)
	}
	close(c.ended)
}

// reserve enters c. If c has no port on the client's side, it picks one.
func (r *Relay) reserve(c *conn) bool {
	if c.key.DstPort != 0 {
		return r.addAlone(c)
	}
	for range 64 {
		c.key.DstPort = uint16(FirstPort + rand.IntN(LastPort-FirstPort+1))
		c.back = c.key.Reverse()
		if r.addAlone(c) {
			return true
		}
	}
	return false
}

// addAlone is add for a tuple that somebody else may have as well.
func (r *Relay) addAlone(c *conn) bool {
	if !r.add(c) {
		return false
	}
	if r.o.Taken(&c.key) {
		r.remove(c)
		return false
	}
	return true
}

// Prepare gives a listening socket the options that the sockets of connections have here. Those that it accepts inherit
// them, which costs no system calls for each.
func Prepare(l syscall.Conn) error {
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var tuned error
	if err := raw.Control(func(fd uintptr) { tuned = tune(int(fd)) }); err != nil {
		return err
	}
	return tuned
}

// RefusedError says that a pod refused the connection of a client, for whom another pod may be asked.
type RefusedError struct {
	// Client is the client's connection, of which nothing was read. It belongs to whoever has the error.
	Client *net.TCPConn
	by     netip.AddrPort
}

func (e *RefusedError) Error() string { return "join a client to " + e.by.String() + ": refused" }

// Unwrap lets errors.Is find what a dialled pod's refusal would be.
func (e *RefusedError) Unwrap() error { return syscall.ECONNREFUSED }

var (
	// ErrInUse says that a connection to the pod uses this address and port already.
	ErrInUse error = syscall.EADDRINUSE
	// ErrTooMany says that the client's network may have no more connections, or no more that are not open yet.
	ErrTooMany = errors.New("the client has too many connections")
)
