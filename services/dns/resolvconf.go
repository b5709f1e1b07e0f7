package dns

import (
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// ResolvConf returns the nameservers in a resolv.conf(5) file, for Options.Upstreams.
func ResolvConf(path string) ([]netip.AddrPort, error) {
	c, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read nameservers: %w", err)
	}
	var out []netip.AddrPort
	for _, s := range c.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("read nameservers of %s: %q is not an IP address", path, s)
		}
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	return out, nil
}
