package target

import (
	"net/netip"
	"strconv"
	"strings"
)

// ValidHost reports whether a Host header or :authority is "", or a name or address with or without a port (RFC 9110
// section 7.2). Names are those of RFC 3986 section 3.2.2 without escapes and commas, which no DNS name has and which
// some readers decode or split.
func ValidHost(host string) bool {
	name, port, literal := host, "", false
	if rest, ok := strings.CutPrefix(host, "["); ok {
		if name, port, literal = strings.Cut(rest, "]"); !literal {
			return false
		}
		if port != "" && port[0] != ':' {
			return false
		}
	} else if i := strings.IndexByte(host, ':'); i >= 0 {
		name, port = host[:i], host[i:]
	}
	if port = strings.TrimPrefix(port, ":"); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return false
		}
	}
	if literal {
		a, err := netip.ParseAddr(name)
		return err == nil && a.Is6() && a.Zone() == ""
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+;=", c) >= 0) {
			return false
		}
	}
	return name != "" || host == ""
}
