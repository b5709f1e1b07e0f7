// Package underlay carries WireGuard's datagrams over one UDP socket: many per system call, and many per pass
// through the kernel (UDP_SEGMENT, UDP_GRO), without copying them together or apart and without allocating.
package underlay

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// Options configure a Bind.
type Options struct {
	// Socket is a bound UDP socket. The Bind works on a duplicate. The caller still owns the file, and keeps it open as
	// long as the Bind may be opened.
	Socket *os.File
	// Forbidden reports whether datagrams from an address are dropped; nil: none are. It is called for every received
	// message, and must not block.
	Forbidden func(netip.Addr) bool
	// Admit reports whether a datagram that is not data may pass to WireGuard, and returns what it is answered with,
	// nil for nothing. The datagram is borrowed until Admit returns, the answer until the next call. One goroutine at a
	// time calls Admit, which must not block. nil: all pass.
	Admit func(datagram []byte, from netip.AddrPort) (pass bool, answer []byte)
	// TooBig is called when a datagram to dst did not fit the path MTU that the kernel knows. It must not block.
	TooBig func(dst netip.AddrPort)
	// Sent is called at the end of each Send with how many data messages it was given, keepalives not counted.
	Sent func(messages int)
	// NoGSO sends every datagram to the kernel by itself, and NoGRO receives every datagram by itself: for a kernel or
	// device that segments or coalesces wrongly. Neither is needed for a kernel without UDP_SEGMENT or UDP_GRO.
	NoGSO, NoGRO bool
	// Logger gets at most one line in ten seconds about failing sends.
	Logger *slog.Logger
}

// Counters count datagrams.
type Counters struct {
	// Forbidden counts datagrams from a source that Options.Forbidden refuses.
	Forbidden uint64
	// TooBig counts datagrams that did not fit the path, Failed those that the kernel refused for another reason.
	TooBig, Failed uint64
}

// Bind is a conn.Bind on one UDP socket of either family. A socket for both families uses mapped addresses for IPv4.
// Send may be called concurrently.
type Bind struct {
	o    Options
	file *os.File // the caller's
	port uint16
	is6  bool // an IPv6 socket, which uses mapped addresses for IPv4

	mu   sync.Mutex // guards sock against Open and Close
	sock atomic.Pointer[socket]

	noGSO                     atomic.Bool
	forbidden, tooBig, failed atomic.Uint64
	lastLog                   atomic.Int64

	senders sync.Pool // *sender

	epMu      sync.Mutex // guards endpoints
	endpoints map[way]*endpoint
}

// socket is one opening of the Bind.
type socket struct {
	file *os.File // the Bind's duplicate, in the runtime's poller
	raw  syscall.RawConn
	is6  bool
}

var _ conn.Bind = (*Bind)(nil)

// New makes a Bind. It uses the socket from Open on.
func New(o Options) (*Bind, error) {
	if o.Socket == nil {
		return nil, errors.New("underlay: no socket")
	}
	b := &Bind{o: o, file: o.Socket, endpoints: make(map[way]*endpoint)}
	b.noGSO.Store(o.NoGSO)
	b.senders.New = func() any { return newSender(b) }
	var err error
	b.port, b.is6, err = b.localAddr()
	return b, err
}

// Counters returns the counts so far.
func (b *Bind) Counters() Counters {
	return Counters{Forbidden: b.forbidden.Load(), TooBig: b.tooBig.Load(), Failed: b.failed.Load()}
}

// localAddr returns the port that the socket is bound to, and whether it is an IPv6 socket.
func (b *Bind) localAddr() (port uint16, is6 bool, err error) {
	rc, err := b.file.SyscallConn()
	if err != nil {
		return 0, false, fmt.Errorf("WireGuard's socket: %w", err)
	}
	var sa unix.Sockaddr
	var serr error
	if err := rc.Control(func(fd uintptr) { sa, serr = unix.Getsockname(int(fd)) }); err != nil {
		return 0, false, fmt.Errorf("WireGuard's socket: %w", err)
	}
	if serr != nil {
		return 0, false, fmt.Errorf("WireGuard's socket: %w", serr)
	}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		port = uint16(a.Port)
	case *unix.SockaddrInet6:
		port, is6 = uint16(a.Port), true
	default:
		return 0, false, fmt.Errorf("WireGuard's socket: expected an IPv4 or IPv6 UDP socket, got %T", sa)
	}
	if port == 0 {
		return 0, false, errors.New("WireGuard's socket: expected a bound UDP socket")
	}
	return port, is6, nil
}

// Open implements conn.Bind. It ignores the port asked for and returns the socket's.
func (b *Bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sock.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	s, err := b.duplicate()
	if err != nil {
		return nil, 0, fmt.Errorf("WireGuard's socket: %w", err)
	}
	s.is6 = b.is6
	b.clearEndpoints()
	b.sock.Store(s)
	return []conn.ReceiveFunc{newReceiver(b, s).receive}, b.port, nil
}

func (b *Bind) duplicate() (*socket, error) {
	rc, err := b.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	err = rc.Control(func(old uintptr) {
		if fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0); derr == nil {
			tune(fd)
			if b.o.NoGRO { // the socket may come from an agent that used GRO
				derr = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 0)
				if errors.Is(derr, unix.ENOPROTOOPT) {
					derr = nil // Linux before 5.0 has no UDP_GRO
				}
			}
			derr = errors.Join(derr, unix.SetNonblock(fd, true))
		}
	})
	if err = errors.Join(err, derr); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	f := os.NewFile(uintptr(fd), b.file.Name())
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &socket{file: f, raw: raw}, nil
}

// Close implements conn.Bind. It ends a waiting receive. The caller's socket stays open.
func (b *Bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sock.Swap(nil); s != nil {
		return s.file.Close()
	}
	return nil
}

// SetMark implements conn.Bind.
func (b *Bind) SetMark(mark uint32) error {
	s := b.sock.Load()
	if s == nil {
		return net.ErrClosed
	}
	var serr error
	err := s.raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	})
	return errors.Join(err, serr)
}

// BatchSize implements conn.Bind.
func (b *Bind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint implements conn.Bind.
func (b *Bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return b.endpoint(ap), nil
}

// logSendError logs one failed send in ten seconds. The counters count all.
func (b *Bind) logSendError(dst netip.AddrPort, err error) {
	now := time.Now().UnixNano()
	last := b.lastLog.Load()
	if b.o.Logger == nil || now-last < int64(10*time.Second) || !b.lastLog.CompareAndSwap(last, now) {
		return
	}
	b.o.Logger.Warn("cannot send WireGuard datagrams", "to", dst, "err", err)
}

// Port returns the UDP port the socket is bound to.
func (b *Bind) Port() uint16 { return b.port }
