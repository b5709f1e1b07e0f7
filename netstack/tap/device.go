package tap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/poll"
)

// Options of a Device. The zero value is right.
type Options struct {
	// Disable switches offloads off, in both directions: the kernel then does what they would have left to us, and we
	// should not leave it to the kernel. Without Csum there is none of the others.
	Disable Offloads
	// Poller reads the Device. Nil: Run makes one of one loop.
	Poller *poll.Poller
}

// Device moves superframes through a TAP: the bytes of every read and write are a virtio_net_hdr of packet.VNetHdrLen
// bytes, an Ethernet header and its payload.
type Device struct {
	name string
	offs Offloads
	refs []Refusal
	// fd is open as long as users has not fallen to closed.
	fd     int
	users  atomic.Int32
	poller *poll.Poller
	reader atomic.Pointer[reader] // of Run
}

// closed is the bit of Device.users that Close sets; the bits below count readers and writers in flight.
const closed = 1 << 30

// NewDevice checks that f is a TAP with virtio-net header, tests its offloads and makes a Device of it, which owns f
// from then on. On an error f stays the caller's.
func NewDevice(f *os.File, o Options) (*Device, error) {
	d := &Device{poller: o.Poller}
	var err error
	cerr := control(f, func(fd int) { err = d.open(fd, AllOffloads&^o.Disable) })
	if err = errors.Join(err, cerr); err != nil {
		return nil, fmt.Errorf("open tap device: %w", err)
	}
	f.Close()
	return d, nil
}

func (d *Device) open(fd int, want Offloads) error {
	info, err := check(fd, want)
	if err != nil {
		return err
	}
	d.name = info.Name
	var untrue []Refusal
	if d.offs, untrue, err = selfTest(fd, info.Offloads); err != nil {
		return err
	}
	d.refs = append(info.Refused, untrue...)
	// A duplicate, since f is known to the runtime's poller, which would be woken by every frame.
	d.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return err
}

// Name is the interface's name in its own namespace.
func (d *Device) Name() string { return d.name }

// Offloads are those in use, in both directions: the kernel hands over frames that count on them, and takes such. What
// Write is given should count on no others.
func (d *Device) Offloads() Offloads { return d.offs }

// Refused says which offloads are not in use though they were not disabled, and why.
func (d *Device) Refused() []Refusal { return slices.Clone(d.refs) }

// Run reads superframes and gives each to handle, until Close. The frame (of packet.MaxFrame bytes at most; the kernel
// cuts what is longer) is handle's until it returns a buffer of the same capacity, usually the same, for the next frame
// of whichever Device. handle is called by one goroutine at a time, in the order of the frames, and must not call
// Close. Run returns nil after Close, and an error when the device is gone. rest, if not nil, is called in the same way
// whenever no more frames are at hand for the moment or other Devices get their turn. One Run in a Device's life.
func (d *Device) Run(handle func(frame []byte) []byte, rest func()) (err error) {
	p := d.poller
	if p == nil {
		if p, err = poll.New(1); err != nil {
			return d.runError(err)
		}
		defer func() { err = errors.Join(err, p.Close()) }()
	}
	r := &reader{d: d, handle: handle, rest: rest, done: make(chan error, 1)}
	d.reader.Store(r)
	if err := r.start(p); err != nil {
		return d.runError(err)
	}
	return d.runError(<-r.done)
}

func (d *Device) runError(err error) error {
	if err == nil || d.users.Load()&closed != 0 {
		return nil
	}
	return fmt.Errorf("read tap %s: %w", d.name, err)
}

// read and write are raw system calls: the runtime is not told of them. It would take a write of tens of microseconds,
// which runs the receiver's softirq work, for a blocked one, and hand the processor to another thread; that cost a
// tenth of the throughput between two pods. They must not block, then. A write does not, and for a read RWF_NOWAIT says
// so even when somebody who holds a duplicate has made the description blocking (tun_chr_read_iter in
// drivers/net/tun.c).
func read(fd int, iov *unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(iov)), 1, noOffset, noOffset, unix.RWF_NOWAIT)
	if errno == unix.EOPNOTSUPP || errno == unix.ENOSYS { // before Linux 5.7; the runtime is told, in case it blocks
		n, _, errno = unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(iov.Base)), uintptr(iov.Len))
	}
	return int(n), errno
}

// noOffset stands for the current position, of which a TAP has none: the high and the low half of -1.
const noOffset = ^uintptr(0)

func write(fd int, b []byte) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return errno
}

// Write sends one superframe. It is safe for concurrent use and does not keep the frame. The kernel's errors are
// returned as they are: EIO when the interface is down, EINVAL when it does not believe the header, EAGAIN, ENOBUFS;
// os.ErrClosed after Close.
func (d *Device) Write(frame []byte) error {
	if !d.acquire() {
		return os.ErrClosed
	}
	errno := write(d.fd, frame)
	d.release()
	return written(errno)
}

// iovecs is scratch space of Writev.
type iovecs struct{ v []unix.Iovec }

var iovecPool = sync.Pool{New: func() any { return &iovecs{make([]unix.Iovec, 0, 72)} }}

// Writev sends one superframe that lies in pieces, at most 1024 of them (IOV_MAX), of which the first starts with the
// virtio_net_hdr. Otherwise it is like Write.
func (d *Device) Writev(frame [][]byte) error {
	if !d.acquire() {
		return os.ErrClosed
	}
	s := iovecPool.Get().(*iovecs)
	for _, b := range frame {
		if len(b) == 0 {
			continue
		}
		iov := unix.Iovec{Base: unsafe.SliceData(b)}
		iov.SetLen(len(b))
		s.v = append(s.v, iov)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(d.fd), uintptr(unsafe.Pointer(unsafe.SliceData(s.v))), uintptr(len(s.v)))
	d.release()
	clear(s.v) // a pooled pointer would keep the caller's buffer alive
	s.v = s.v[:0]
	iovecPool.Put(s)
	return written(errno)
}

func written(errno unix.Errno) error {
	if errno != 0 {
		return errno // below 256: boxing it allocates nothing
	}
	return nil
}

// acquire keeps fd open until release; false after Close.
func (d *Device) acquire() bool {
	for {
		n := d.users.Load()
		if n&closed != 0 {
			return false
		}
		if d.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release closes fd when it was the last use. No use begins after Close, so that happens once.
func (d *Device) release() {
	if d.users.Add(-1) == closed {
		unix.Close(d.fd)
	}
}

// Close ends Run and detaches from the TAP. It waits for the handler of a Run in progress, not for writers.
func (d *Device) Close() error {
	for {
		n := d.users.Load()
		if n&closed != 0 {
			return os.ErrClosed
		}
		if d.users.CompareAndSwap(n, (n|closed)+1) { // its own use, until nobody polls fd any longer
			break
		}
	}
	if r := d.reader.Load(); r != nil {
		r.close()
	}
	d.release()
	return nil
}

var _ io.Closer = (*Device)(nil)
