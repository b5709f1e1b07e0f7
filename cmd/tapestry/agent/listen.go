package agent

import (
	"fmt"
	"net"
)

// listensApart returns an error if two flags name the same socket of the host, since only one of them could be served.
func (c *agentConfig) listensApart() error {
	flags := []struct{ name, addr string }{
		{"ingress-http", c.ingressHTTP}, {"ingress-https", c.ingressHTTPS}, {"health-address", c.healthAddr},
		{"metrics-address", c.metricsAddr}, {"host-proxy", c.hostProxy.addr},
	}
	for i, a := range flags {
		for _, b := range flags[:i] {
			if oneSocket(a.addr, b.addr) {
				return fmt.Errorf("--%s %s and --%s %s are the same socket of this host: give one of them another port, or an empty value to do without it",
					b.name, b.addr, a.name, a.addr)
			}
		}
	}
	return nil
}

// ingressPorts returns the ports at which Ingress is served, none where it is not, and nil where net.Listen chooses
// one.
func (c *agentConfig) ingressPorts() []uint16 {
	ports := []uint16{}
	for _, addr := range []string{c.ingressHTTP, c.ingressHTTPS} {
		if addr == "" {
			continue
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil // nobody listens, and net.Listen says why
		}
		n, err := net.LookupPort("tcp", port)
		if err != nil || n == 0 {
			return nil
		}
		ports = append(ports, uint16(n))
	}
	return ports
}

// oneSocket reports whether net.Listen cannot listen on both addresses at the same time. An unspecified host means
// every address of both families. Addresses that cannot be resolved are left to net.Listen, whose error says more.
func oneSocket(a, b string) bool {
	if a == "" || b == "" {
		return false
	}
	x, err := net.ResolveTCPAddr("tcp", a)
	if err != nil {
		return false
	}
	y, err := net.ResolveTCPAddr("tcp", b)
	if err != nil {
		return false
	}
	every := func(t *net.TCPAddr) bool { return t.IP == nil || t.IP.IsUnspecified() }
	return x.Port != 0 && x.Port == y.Port && (every(x) || every(y) || x.IP.Equal(y.IP) && x.Zone == y.Zone)
}
