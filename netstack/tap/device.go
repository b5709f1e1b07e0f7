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

// Options of a Device. The zero value is valid.
type Options struct {
	// Disable switches offloads off in both directions. The kernel then does this work for what it hands over, and has
	// to be given frames where it is already done. Without Csum none of the others can be on.
	Disable Offloads
	// Poller reads the Device. If it is nil, Run makes a Poller with one goroutine.
	Poller *poll.Poller
}

// Device moves superframes through a TAP. The bytes of every read and write are a virtio_net_hdr of packet.VNetHdrLen
// bytes, an Ethernet header and its payload.
type Device struct {
	name string
	offs Offloads
	refs []Refusal
	// fd is open until users equals closed.
	fd     int
	users  atomic.Int32
	poller *poll.Poller
	reader atomic.Pointer[reader] // made by Run
}

// closed is the bit of Device.users that Close sets. The bits below it count the readers and writers in progress.
const closed = 1 << 30

// NewDevice checks that f is a TAP with virtio-net header, tests its offloads and makes a Device of it. The Device owns
// f from then on. On an error f stays the caller's.
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
	// f is registered with the runtime's poller, which every frame would wake. The duplicate is not.
	d.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return err
}

// Name returns the interface's name in its own namespace.
func (d *Device) Name() string { return d.name }

// Offloads returns the offloads that are in use, in both directions: the kernel may hand over frames that need them,
// and accepts frames that need them. Frames for Write must not need any other offload.
func (d *Device) Offloads() Offloads { return d.offs }

// Refused returns the offloads that are not in use although they were not disabled, and the reason for each.
func (d *Device) Refused() []Refusal { return slices.Clone(d.refs) }

// Run reads superframes and passes each to handle, until Close. It returns nil after Close, and an error when the
// device is gone. Run can be called once in a Device's life.
//
// A frame has packet.MaxFrame bytes at most; the kernel truncates longer ones. handle owns the frame until it returns a
// buffer of the same capacity, usually the same one, which receives the next frame of any Device. handle is called by
// one goroutine at a time, in the order of the frames, and must not call Close. rest, if not nil, is called in the same
// way whenever no more frames are at hand or other Devices get their turn.
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

// read and write are raw system calls, of which the Go runtime is not told. A write runs the receiver's softirq work
// and may take tens of microseconds. The runtime would take it for a blocked call and hand the processor to another
// thread, which cost a tenth of the throughput between two pods. Raw calls must not block. A write to a TAP does not. A
// read does not because of RWF_NOWAIT, even when another holder of a duplicate has made the description blocking
// (tun_chr_read_iter in drivers/net/tun.c).
func read(fd int, iov *unix.Iovec) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(iov)), 1, noOffset, noOffset, unix.RWF_NOWAIT)
	// Before Linux 5.7; this call may block, so the runtime is told.
	if errno == unix.EOPNOTSUPP || errno == unix.ENOSYS {
		n, _, errno = unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(iov.Base)), uintptr(iov.Len))
	}
	return int(n), errno
}

// noOffset is each half, high and low, of the offset -1. It means the current position, which a TAP does not have.
const noOffset = ^uintptr(0)

func write(fd int, b []byte) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return errno
}

// Write sends one superframe. It is safe for concurrent use and does not keep the frame. It returns the kernel's errors
// as they are: EIO when the interface is down, EINVAL when the kernel rejects the header, EAGAIN, ENOBUFS. After Close
// it returns os.ErrClosed.
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

// Writev sends one superframe that is given in pieces, at most 1024 of them (IOV_MAX). The first piece starts with the
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
		return errno // below 256, so the conversion to an interface allocates nothing
	}
	return nil
}

// acquire keeps fd open until release. It returns false after Close.
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

// release closes fd when this was the last use after Close. No use begins after Close, so fd is closed once.
func (d *Device) release() {
	if d.users.Add(-1) == closed {
		unix.Close(d.fd)
	}
}

// Close ends Run and detaches from the TAP. It waits for a handler in progress, but not for writers.
func (d *Device) Close() error {
	for {
		n := d.users.Load()
		if n&closed != 0 {
			return os.ErrClosed
		}
		if d.users.CompareAndSwap(n, (n|closed)+1) { // Close is a user itself, until fd is no longer polled
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
