package dns

import (
	"testing"

	"github.com/miekg/dns"
)

func TestNamesOfNumbers(t *testing.T) {
	for _, c := range [][2]string{
		{TypeName(dns.TypeAAAA), "AAAA"}, {TypeName(65280), "TYPE65280"}, {CodeName(dns.RcodeNameError), "NXDOMAIN"}, {CodeName(4000), "4000"},
	} {
		if c[0] != c[1] {
			t.Errorf("%s, want %s", c[0], c[1])
		}
	}
}
