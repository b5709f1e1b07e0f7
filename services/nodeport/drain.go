package nodeport

import (
	"context"
	"strings"
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
	return p.dying.Wait(ctx)
}
