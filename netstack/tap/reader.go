package tap

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/poll"
)

// turn is the number of frames of one Device that are handled before other Devices get their turn. A turn takes a
// millisecond at most.
const turn = 16

// lastsEvery is after how many frames of a turn the Poller hears that it goes on. What a write to a TAP takes is up to
// the pod, whose kernel handles the frame meanwhile.
const lastsEvery = 4

// reader is the state of a Device's Run.
type reader struct {
	d      *Device
	handle func([]byte) []byte
	rest   func()
	done   chan error // receives the result of Run

	mu    sync.Mutex // held while frames are handled; guards what follows
	iov   unix.Iovec
	watch *poll.Watch
	ended bool
}

// Ready implements poll.Handler: it handles up to turn frames and arms the Device again.
func (r *reader) Ready(_ uint32, buf []byte) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.d
	for n := range turn {
		if n%lastsEvery == lastsEvery-1 {
			r.watch.Lasts()
		}
		if r.ended || d.users.Load()&closed != 0 {
			return buf // Close has run, or waits for mu
		}
		buf = buf[:cap(buf)]
		r.iov.Base = unsafe.SliceData(buf)
		r.iov.SetLen(len(buf))
		size, errno := read(d.fd, &r.iov)
		if errno == unix.EAGAIN || errno == unix.EINTR {
			break
		}
		if errno != 0 {
			r.end(errno)
			return buf
		}
		if size > packet.VNetHdrLen {
			buf = r.handle(buf[:size])
		}
	}
	if r.rest != nil {
		r.rest()
	}
	r.iov.Base = nil // the buffer now belongs to another Device
	r.watch.Arm(poll.In)
	return buf
}

// start makes p watch the Device, unless the Device was closed already.
func (r *reader) start(p *poll.Poller) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.d.users.Load()&closed != 0 {
		r.end(nil)
		return nil
	}
	r.watch, err = p.Add(r.d.fd, r, poll.In)
	return err
}

// end passes the result to Run, once. The caller holds mu.
func (r *reader) end(err error) {
	if !r.ended {
		r.ended = true
		r.done <- err
	}
}

// close ends the reader after the handler in progress.
func (r *reader) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.watch != nil {
		r.watch.Close()
	}
	r.end(nil)
}
