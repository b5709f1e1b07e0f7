// Package poll waits for any number of descriptors (of TAPs and sockets) with a few goroutines, its loops.
//
// Each loop takes whichever descriptor is ready next. So busy descriptors spread over the processors by themselves, and
// an idle one costs only a table entry. One loop at most sleeps, and the others are parked (standby). Listeners may be
// accepted from here, too (Accept). A descriptor that was found ready is disarmed (EPOLLONESHOT) until its Handler arms
// it again, and what arrives meanwhile wakes nobody. The runtime's own poller is edge-triggered and cannot do this:
// with it a flood of packets woke a second thread for nothing thousands of times a second.
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

// Events of a descriptor (epoll_ctl(2)). Fail is reported whether it is asked for or not.
const (
	In  uint32 = unix.EPOLLIN | unix.EPOLLRDHUP
	Out uint32 = unix.EPOLLOUT
	// Fail is an error, or the end of both directions.
	Fail uint32 = unix.EPOLLERR | unix.EPOLLHUP
)

// Handler handles a descriptor that is ready.
type Handler interface {
	// Ready handles the events and arms the Watch again, now or later. buf has packet.MaxFrame bytes and belongs to the
	// handler until it returns a buffer of the same capacity, usually the same one. Ready must not block. If it has to
	// wait, it calls Poller.Waiting.
	//
	// For a moment after its Watch was closed, Ready may be called without an event, and at the same time as another
	// call.
	Ready(events uint32, buf []byte) []byte
}

// Poller watches descriptors. Its methods are safe for concurrent use.
type Poller struct {
	loops int
	fd    int // the epoll instance

	mu    sync.Mutex // guards changes of table, and what follows
	table atomic.Pointer[[]atomic.Pointer[Watch]]
	free  []int32  // unused slots of the table
	spare [][]byte // buffers of loops that have ended
	gone  bool     // fd is closed

	start   time.Time
	busyAt  atomic.Int64 // when a loop last had much to do, in nanoseconds since start
	lingers atomic.Bool  // a loop is in linger

	lookedAt atomic.Int64 // when a loop last looked for events, in nanoseconds since start
	yield    atomic.Bool  // a handler has made a goroutine ready (Yield)
	running  atomic.Int32 // loops whose handler is not waiting (Waiting)
	standby  standby      // those of running that have nothing to do
	closing  atomic.Bool
	ended    sync.WaitGroup
}

// wakeSlot is the epoll data of the descriptor that ends all loops. The epoll data of a Watch is its slot in the table.
const wakeSlot = -1

// New starts a Poller with this number of loops, at least one. A loop that sleeps keeps one of the runtime's processors
// (GOMAXPROCS) for up to 10 ms. So there should be more processors than loops if other goroutines matter, too.
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

// Close ends the loops and waits for them. All Watches must be closed before.
func (p *Poller) Close() error {
	if p.closing.Swap(true) {
		return os.ErrClosed
	}
	// The eventfd is level-triggered and always ready, because it is never read. So every loop finds it.
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

// Waiting tells the Poller that a handler begins (or has ended) to wait for something other than a descriptor of the
// Poller. Another loop takes its place meanwhile. Waiting does not block and may be called under locks. Whoever is no
// handler may call it, too.
func (p *Poller) Waiting(begin bool) {
	if !begin {
		p.running.Add(1)
		return
	}
	p.running.Add(-1)
	if !p.standby.sleeping.Load() && !p.standby.call() && !p.closing.Load() {
		p.running.Add(1)
		p.ended.Go(p.loop)
	}
}

// Yield tells the Poller that a handler has made a goroutine ready, such as the tunnel's reader. It runs on the loop's
// own thread when there are no events. Otherwise another thread would have to be woken for it, which made a round trip
// between nodes half as long again. Loops do not yield without being told: it wakes another thread for the loop.
func (p *Poller) Yield() {
	if !p.yield.Load() {
		p.yield.Store(true)
	}
}

// Lasts tells the Poller that a call of the handler goes on. Handlers that may take long say so now and then: another
// loop goes on in their stead when none has looked for events for a millisecond.
func (w *Watch) Lasts() {
	p := w.p
	if p.now()-time.Duration(p.lookedAt.Load()) > alone && !p.standby.sleeping.Load() {
		p.lookedAt.Store(int64(p.now())) // once is enough
		p.standby.call()
	}
}

// Watch is a descriptor that a Poller watches.
type Watch struct {
	p       *Poller
	handler Handler
	fd      int
	slot    int32

	mu     sync.Mutex // keeps Arm from using the descriptor after Close
	closed bool
}

// Add watches fd and arms it for events. fd stays the caller's and must be open until the Watch is closed. The handler
// may be called before Add returns.
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

// place gives w a slot in the table. The caller holds mu.
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

// Arm makes the Poller call the handler once, when one of events or Fail occurs, or at once if it has. Another Arm
// before that replaces this one. After Close it does nothing.
func (w *Watch) Arm(events uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	// A raw call keeps the event on the stack. Its error does not matter: the descriptor is open and was added.
	event := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: w.slot}
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(w.p.fd), unix.EPOLL_CTL_MOD, uintptr(w.fd), uintptr(unsafe.Pointer(&event)), 0, 0)
}

// Close makes the Poller forget the descriptor, which must still be open, because an epoll instance does not forget a
// descriptor of which others hold duplicates. It does not wait for a call of the handler in progress. Closing twice is
// harmless.
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
		// All others may be parked, and whoever ends for a reason of all loops has them end, too.
		p.standby.call()
	}()
	event := new(unix.EpollEvent)
	called := make(chan struct{}, 1)
	var r rhythm
	for !p.surplus() {
		n, errno := p.wait(event, 0)
		if n == 0 && errno == 0 {
			if p.yield.Load() && p.yield.Swap(false) {
				runtime.Gosched()
			}
			r.found = p.now()
			if r.brisk && p.calm() {
				n, errno = p.linger(event)
			}
		}
		if n == 0 && errno == 0 {
			if !p.standby.sleep() {
				p.standby.park(called)
				continue
			}
			n, errno = p.wait(event, forever)
			p.standby.sleeping.Store(false)
			r.found = p.now()
		}
		r.woke(p.now())
		p.lookedAt.Store(int64(r.last))
		if n != 1 {
			if errno == unix.EINTR {
				continue
			}
			return
		}
		if event.Fd == wakeSlot {
			return
		}
		if r.last-r.found > alone && !p.standby.sleeping.Load() {
			p.standby.call()
		}
		if w := p.watch(event.Fd); w != nil { // nil: just closed
			buf = w.handler.Ready(event.Events, buf)
			buf = buf[:cap(buf)]
		}
		if r.handled(p.now()); r.long {
			p.busyAt.Store(int64(r.last))
		}
	}
}

// forever is the timeout with which wait waits until there is an event.
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

// surplus reports whether the calling loop should end, because a loop whose handler was waiting is back.
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
