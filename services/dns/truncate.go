package dns

import (
	"slices"

	"github.com/miekg/dns"
)

// truncate cuts m to size bytes. TC says that records of the answer or authority section are missing. Additional
// records are extra information: if they do not all fit, the set of records that does not fit is left out as a whole,
// and TC stays clear (RFC 2181 9).
func truncate(m *dns.Msg, size int) {
	cut, answer, ns := m.Truncated, len(m.Answer), len(m.Ns)
	extra := slices.DeleteFunc(slices.Clone(m.Extra), isOPT)
	m.Truncate(size)
	m.Truncated = cut || len(m.Answer) < answer || len(m.Ns) < ns
	kept := len(m.Extra) - count(m.Extra, dns.TypeOPT)
	if kept == len(extra) {
		return
	}
	missing := extra[kept].Header()
	m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool {
		h := rr.Header()
		return h.Name == missing.Name && h.Rrtype == missing.Rrtype
	})
}

func isOPT(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT }

// count returns the number of records of a type.
func count(list []dns.RR, rrtype uint16) (n int) {
	for _, rr := range list {
		if rr.Header().Rrtype == rrtype {
			n++
		}
	}
	return n
}
