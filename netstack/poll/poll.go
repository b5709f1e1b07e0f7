// Package poll waits for any number of descriptors, TAPs and sockets, with a few goroutines.
//
// Each goroutine takes whichever descriptor is ready next, so that busy ones spread over the processors by themselves
// and idle ones cost a table entry. A descriptor that was found ready is disarmed (EPOLLONESHOT) until its Handler arms
// it again: what arrives meanwhile wakes nobody, which the runtime's poller, edge-triggered, cannot be told. With that
// one, a flood of packets woke a second thread for nothing thousands of times a second.
package poll

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
)

// Events of a descriptor, as epoll_ctl(2) has them. Fail comes whether it is asked for or not.
const (
	In  uint32 = unix.EPOLLIN | unix.EPOLLRDHUP
	Out uint32 = unix.EPOLLOUT
	// Fail is an error, or the end of both directions.
	Fail uint32 = unix.EPOLLERR | unix.EPOLLHUP
)

// Handler is told that a descriptor is ready.
type Handler interface {
	// Ready handles what events say and arms the Watch again, now or later. buf, of packet.MaxFrame bytes, is the
	// handler's until it returns one of the same capacity, usually the same. Ready must not block; what has to wait says
	// so to Poller.Waiting.
	//
	// It may be called without need, and then beside another call, for a moment after its Watch was closed.
	Ready(events uint32, buf []byte) []byte
}

// Poller watches descriptors. Its methods are safe for concurrent use.
type Poller struct {
	loops int
	fd    int // the epoll's

	mu    sync.Mutex // guards changes of table, and what follows
	table atomic.Pointer[[]atomic.Pointer[Watch]]
	free  []int32  // places in the table
	spare [][]byte // buffers of loops that ended
	gone  bool     // fd is closed

	start   time.Time
	busyAt  atomic.Int64 // when a loop last had much to do, since start
	lingers atomic.Bool  // a loop is in linger

	running atomic.Int32 // loops that do not wait in a handler
	idle    atomic.Int32 // of these, those that wait for a descriptor
	closing atomic.Bool
	ended   sync.WaitGroup
}

// wakeSlot is the epoll data of the descriptor that ends all loops; a Watch's is its place in the table.
const wakeSlot = -1

// New starts a Poller of so many loops, at least one. A loop that sleeps keeps one of the runtime's processors
// (GOMAXPROCS) for up to 10 ms: where other goroutines matter, too, there should be more of them than loops.
func New(loops int) (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a poller: %w", os.NewSyscallError("epoll_create1", err))
	}
	p := &Poller{fd: fd, loops: loops, start: time.Now()}
	p.table.Store(new([]atomic.Pointer[Watch]))
	p.running.Store(int32(loops))
	for range loops {
		p.ended.Go(p.loop)
	}
	return p, nil
}

// Close ends the loops and waits for them. Watches must be closed before.
func (p *Poller) Close() error {
	if p.closing.Swap(true) {
		return os.ErrClosed
	}
	// A level-triggered descriptor that is always ready: every loop finds it, and it is never read.
	wake, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		defer unix.Close(wake)
		err = unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, wake, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: wakeSlot})
	}
	if err != nil {
		return fmt.Errorf("end a poller: %w", err)
	}
	p.ended.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gone = true
	return unix.Close(p.fd)
}

// Waiting tells the Poller that a handler begins, or ended, to wait for something that is no descriptor of the
// Poller's. Another loop then takes its place. It does not block and may be called under locks.
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

// Watch is a descriptor that a Poller knows.
type Watch struct {
	p       *Poller
	handler Handler
	fd      int
	slot    int32

	mu     sync.Mutex // keeps Arm from a descriptor that Close gave up
	closed bool
}

// Add watches fd, which stays the caller's and must be open until the Watch is closed, and arms it for events. The
// handler may be called before Add returns.
func (p *Poller) Add(fd int, h Handler, events uint32) (*Watch, error) {
	w := &Watch{p: p, handler: h, fd: fd}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return nil, os.ErrClosed
	}
	p.place(w)
	event := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: w.slot}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
		p.vacate(w)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return w, nil
}

// place gives w a slot. The caller holds mu.
func (p *Poller) place(w *Watch) {
	t := *p.table.Load()
	if len(p.free) == 0 {
		grown := make([]atomic.Pointer[Watch], max(16, 2*len(t)))
		for i := range t {
			grown[i].Store(t[i].Load())
		}
		for i := len(grown) - 1; i >= len(t); i-- {
			p.free = append(p.free, int32(i))
		}
		t = grown
		p.table.Store(&grown)
	}
	w.slot = p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	t[w.slot].Store(w)
}

func (p *Poller) vacate(w *Watch) {
	(*p.table.Load())[w.slot].Store(nil)
	p.free = append(p.free, w.slot)
}

// Arm has the handler called once when one of events, or Fail, occurs, or at once where it did. A second Arm before
// that replaces the first. After Close it does nothing.
func (w *Watch) Arm(events uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	// The event stays on the stack. It cannot fail in a way that is of interest: the descriptor is open, and was added.
	event := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: w.slot}
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.p.fd), unix.EPOLL_CTL_MOD, uintptr(w.fd), uintptr(unsafe.Pointer(&event)), 0, 0)
}

// Close makes the Poller forget the descriptor, which must still be open: an epoll does not forget one of which others
// hold duplicates. It does not wait for a call of the handler in progress. Closing twice is harmless.
func (w *Watch) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	w.closed = true
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	if !w.p.gone {
		_ = unix.EpollCtl(w.p.fd, unix.EPOLL_CTL_DEL, w.fd, nil)
	}
	w.p.vacate(w)
}

// loop handles one ready descriptor after the other.
func (p *Poller) loop() {
	buf := p.buffer()
	defer func() {
		p.mu.Lock()
		p.spare = append(p.spare, buf)
		p.mu.Unlock()
	}()
	event := new(unix.EpollEvent)
	var r rhythm
	for !p.surplus() {
		// What a handler readied, the tunnel's reader for one, runs now and on this thread. Otherwise another thread would
		// have to be woken for it: half as long again for a round trip between nodes.
		runtime.Gosched()
		n, errno := 0, unix.Errno(0)
		if r.brisk && p.calm() {
			n, errno = p.linger(event)
		}
		if n == 0 {
			p.idle.Add(1)
			n, errno = p.wait(event, forever)
			p.idle.Add(-1)
		}
		r.woke(p.now())
		if n != 1 {
			if errno == unix.EINTR {
				continue
			}
			return
		}
		if event.Fd == wakeSlot {
			return
		}
		if w := p.watch(event.Fd); w != nil { // nil: closed a moment ago
			buf = w.handler.Ready(event.Events, buf)
			buf = buf[:cap(buf)]
		}
		if r.handled(p.now()); r.long {
			p.busyAt.Store(int64(r.last))
		}
	}
}

// forever has wait wait until there is an event.
const forever = ^uintptr(0)

func (p *Poller) wait(event *unix.EpollEvent, timeout uintptr) (int, unix.Errno) {
	var n uintptr
	var errno unix.Errno
	if timeout == 0 {
		n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(event)), 1, 0, 0, 0)
	} else {
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(event)), 1, timeout, 0, 0)
	}
	return int(n), errno
}

func (p *Poller) watch(slot int32) *Watch {
	if t := *p.table.Load(); int(slot) < len(t) {
		return t[slot].Load()
	}
	return nil
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
