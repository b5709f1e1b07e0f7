package nodeport

import (
	"context"
	"strings"
	"sync"
)

// Drain lets the TCP connections finish that cannot go on in the next Proxy: those with the PROXY protocol and others
// that Dial has made. It returns when none is left or ctx ends, and how many are left, which Close cuts. Sockets whose
// backends speak the PROXY protocol accept nobody from now on: clients wait in those that the Listener keeps, until the
// next Proxy accepts them, and are refused by the others. Everything else goes on. Set opens none of these sockets
// again.
func (p *Proxy) Drain(ctx context.Context) (left int) {
	p.setting.Lock()
	p.mu.Lock()
	var ending []*server
	for k, s := range p.servers {
		if strings.HasPrefix(k.network, "tcp") && s.proxy() != 0 {
			ending = append(ending, s)
			s.cancel()
		}
	}
	p.mu.Unlock()
	for _, s := range ending {
		<-s.done // what it has accepted is under way now
	}
	p.setting.Unlock()
	return p.dying.wait(ctx)
}

// dying counts the connections that end with the Proxy. The zero value is ready for use.
type dying struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n becomes 0; nil: nobody waits
}

// begin counts a connection until end is called, once.
func (d *dying) begin() (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.n++
	return d.end
}

func (d *dying) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n--; d.n == 0 && d.none != nil {
		close(d.none)
		d.none = nil
	}
}

// wait waits until there is no connection or ctx ends, and returns how many there are.
func (d *dying) wait(ctx context.Context) int {
	d.mu.Lock()
	if d.n == 0 {
		d.mu.Unlock()
		return 0
	}
	if d.none == nil {
		d.none = make(chan struct{})
	}
	none := d.none
	d.mu.Unlock()
	select {
	case <-none:
		return 0
	case <-ctx.Done():
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}
