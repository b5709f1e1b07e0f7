package tap

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// turn is how many frames of one Device are handled before the others get theirs: a millisecond of superframes at most.
const turn = 16

// Poller reads any number of Devices with a few goroutines. Each takes whichever Device has frames next, so that busy
// Devices spread over the processors by themselves and idle ones cost a table entry.
//
// A Device in hand is disarmed (EPOLLONESHOT): what arrives meanwhile wakes nobody, which the runtime's poller, edge-triggered,
// cannot be told. With that one, a flood of packets woke a second thread for nothing thousands of times a second.
type Poller struct {
	epoll *os.File
	loops int

	mu    sync.Mutex // guards table's changes and spare
	table atomic.Pointer[[]*reader]
	spare [][]byte // buffers of loops that ended

	running atomic.Int32 // loops that do not wait in a handler
	idle    atomic.Int32 // of these, those that wait for a Device
	closing atomic.Bool
	ended   sync.WaitGroup
}

// reader is a Device's Run.
type reader struct {
	p      *Poller
	d      *Device
	handle func([]byte) []byte
	done   chan error // gets the end

	mu     sync.Mutex // held while its frames are handled; guards what follows
	polled bool       // the epoll knows the Device
	ended  bool
}

// wakeSlot is the epoll data of the descriptor that ends all loops; a reader's is its place in the table.
const wakeSlot = -1

// NewPoller starts a Poller of so many loops, at least one. A loop that sleeps keeps one of the runtime's processors (GOMAXPROCS)
// for up to 10 ms: where other goroutines matter, too, there should be more of them than loops.
func NewPoller(loops int) (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a poller of TAPs: %w", os.NewSyscallError("epoll_create1", err))
	}
	p := &Poller{epoll: os.NewFile(uintptr(fd), "epoll"), loops: loops}
	p.table.Store(new([]*reader))
	p.running.Store(int32(loops))
	for range loops {
		p.ended.Go(p.loop)
	}
	return p, nil
}

// Close ends the loops and waits for them. The Devices must be closed before.
func (p *Poller) Close() error {
	if p.closing.Swap(true) {
		return os.ErrClosed
	}
	// A level-triggered descriptor that is always ready: every loop finds it, and it is never read.
	wake, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		defer unix.Close(wake)
		err = p.control(unix.EPOLL_CTL_ADD, wake, unix.EPOLLIN, wakeSlot)
	}
	if err != nil {
		return fmt.Errorf("end a poller of TAPs: %w", err)
	}
	p.ended.Wait()
	return p.epoll.Close()
}

// Waiting tells the Poller that a handler begins, or ended, to wait for something that is no Device of its own. Another
// loop then reads the other Devices. It does not block and may be called under locks.
func (p *Poller) Waiting(begin bool) {
	if !begin {
		p.running.Add(1)
		return
	}
	p.running.Add(-1)
	if p.idle.Load() == 0 && !p.closing.Load() {
		p.running.Add(1)
		p.ended.Go(p.loop)
	}
}

// run reads d until it is closed or gone.
func (p *Poller) run(d *Device, handle func([]byte) []byte) error {
	r := &reader{p: p, d: d, handle: handle, done: make(chan error, 1)}
	slot := p.add(r)
	defer p.remove(slot)
	d.reader.Store(r)
	if err := r.start(slot); err != nil {
		return err
	}
	return <-r.done
}

func (p *Poller) add(r *reader) (slot int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *p.table.Load()
	next := make([]*reader, len(old), len(old)+1)
	copy(next, old)
	for slot = 0; int(slot) < len(next) && next[slot] != nil; slot++ {
	}
	if int(slot) == len(next) {
		next = append(next, nil)
	}
	next[slot] = r
	p.table.Store(&next)
	return slot
}

func (p *Poller) remove(slot int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := append([]*reader(nil), *p.table.Load()...)
	next[slot] = nil
	p.table.Store(&next)
}

func (p *Poller) control(op, fd int, events uint32, slot int32) error {
	var cerr error
	err := control(p.epoll, func(epoll int) {
		cerr = os.NewSyscallError("epoll_ctl", unix.EpollCtl(epoll, op, fd, &unix.EpollEvent{Events: events, Fd: slot}))
	})
	return errors.Join(err, cerr)
}

// loop handles one ready Device after the other.
func (p *Poller) loop() {
	buf := p.buffer()
	defer func() {
		p.mu.Lock()
		p.spare = append(p.spare, buf)
		p.mu.Unlock()
	}()
	_ = control(p.epoll, func(epoll int) {
		event, iov := new(unix.EpollEvent), new(unix.Iovec)
		for !p.surplus() {
			// What a handler readied, the tunnel's reader for one, runs now and on this thread. Otherwise another thread would
			// have to be woken for it: half as long again for a round trip between nodes.
			runtime.Gosched()
			p.idle.Add(1)
			n, errno := epollWait(epoll, event)
			p.idle.Add(-1)
			if n != 1 {
				if errno == unix.EINTR {
					continue
				}
				return
			}
			if event.Fd == wakeSlot {
				return
			}
			r := p.reader(event.Fd)
			if r == nil {
				continue // closed a moment ago
			}
			buf = r.turn(buf, iov, epoll, event)
		}
	})
}

// surplus reports whether the calling loop should end, since one that waited in a handler is back.
func (p *Poller) surplus() bool {
	for {
		n := p.running.Load()
		if int(n) <= p.loops {
			return false
		}
		if p.running.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

func (p *Poller) reader(slot int32) *reader {
	if t := *p.table.Load(); int(slot) < len(t) {
		return t[slot]
	}
	return nil
}

func (p *Poller) buffer() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.spare); n > 0 {
		b := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return b
	}
	return make([]byte, packet.MaxFrame)
}

// turn handles up to turn frames and arms the Device again. It returns the buffer to go on with.
func (r *reader) turn(buf []byte, iov *unix.Iovec, epoll int, event *unix.EpollEvent) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.d
	for range turn {
		if r.ended || d.users.Load()&closed != 0 {
			return buf // Close is on its way and waits for mu, or was here
		}
		buf = buf[:cap(buf)]
		iov.Base = unsafe.SliceData(buf)
		iov.SetLen(len(buf))
		n, errno := read(d.fd, iov)
		if errno == unix.EAGAIN || errno == unix.EINTR {
			break
		}
		if errno != 0 {
			r.end(errno)
			return buf
		}
		d.stats.readFrames.Add(1)
		d.stats.readBytes.Add(uint64(n))
		if n > packet.VNetHdrLen {
			buf = r.handle(buf[:n])
		}
	}
	event.Events = unix.EPOLLIN | unix.EPOLLONESHOT
	rearm(epoll, d.fd, event)
	return buf
}

// start has the Poller watch the Device, unless it was closed already.
func (r *reader) start(slot int32) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.d.users.Load()&closed != 0 {
		r.end(nil)
		return nil
	}
	if err := r.p.control(unix.EPOLL_CTL_ADD, r.d.fd, unix.EPOLLIN|unix.EPOLLONESHOT, slot); err != nil {
		return err
	}
	r.polled = true
	return nil
}

// end gives Run its result, once. The caller holds mu.
func (r *reader) end(err error) {
	if !r.ended {
		r.ended = true
		r.done <- err
	}
}

// close ends the reader after the handler in progress. The Device's descriptor is open still: an epoll does not forget one
// that is closed while others hold duplicates.
func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.polled {
		_ = r.p.control(unix.EPOLL_CTL_DEL, r.d.fd, 0, 0)
		r.polled = false
	}
	r.end(nil)
}

func epollWait(epoll int, event *unix.EpollEvent) (int, unix.Errno) {
	const forever = ^uintptr(0)
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(event)), 1, forever, 0, 0)
	return int(n), errno
}

// rearm cannot fail in a way that is of interest: the descriptor is open, and was added.
func rearm(epoll, fd int, event *unix.EpollEvent) {
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_MOD, uintptr(fd), uintptr(unsafe.Pointer(event)), 0, 0)
}
