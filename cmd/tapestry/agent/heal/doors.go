package heal

import (
	"context"
	"net"
	"sync"
	"time"
)

// doorTry is the time between two attempts to listen on an address.
const doorTry = time.Second

// Doors are the addresses of Ingress on the host. Its methods are safe for concurrent use.
type Doors struct {
	listen func(addr string) (net.Listener, error)

	mu sync.Mutex
	// errs has every address, in the order of New, and why it is not listened on. mu guards it.
	errs  []Door
	tried map[string]bool
}

func newDoors(addrs []string, listen func(string) (net.Listener, error)) *Doors {
	d := &Doors{listen: listen, tried: map[string]bool{}}
	for _, a := range addrs {
		if a != "" {
			d.errs = append(d.errs, Door{Addr: a})
		}
	}
	return d
}

// Open listens on an address as soon as that is possible: another program may have it, or the socket that an init step
// left may be lost. It returns an error only when ctx ends before. The Healer tells of addresses that are not listened
// on.
func (d *Doors) Open(ctx context.Context, addr string) (net.Listener, error) {
	tick := time.NewTicker(doorTry)
	defer tick.Stop()
	for {
		l, err := d.listen(addr)
		d.note(addr, err)
		if err == nil {
			return l, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (d *Doors) note(addr string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tried[addr] = true
	for i := range d.errs {
		if d.errs[i].Addr == addr {
			d.errs[i].Err = err
		}
	}
}

// closed returns the addresses that are not listened on. all is set when every address has been tried.
func (d *Doors) closed() (list []Door, all bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	all = true
	for _, door := range d.errs {
		if door.Err != nil {
			list = append(list, door)
		}
		all = all && d.tried[door.Addr]
	}
	return list, all
}
