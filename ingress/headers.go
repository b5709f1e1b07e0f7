package ingress

import (
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// hopByHop are headers for the next station alone (RFC 9110 section 7.6.1, and those of RFC 2616 section 13.5.1).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// removeHopByHop deletes what was meant for us alone: hopByHop, and what Connection names.
func removeHopByHop(h http.Header) {
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
}

// forBackend gives the header that the backend gets for r. Its values are shared with r.
func forBackend(r *http.Request, c *client) http.Header {
	h := make(http.Header, len(r.Header)+5)
	for name, values := range r.Header {
		if !ours(name) {
			h[name] = values
		}
	}
	removeHopByHop(h)
	if httpguts.HeaderValuesContainsToken(r.Header["Te"], "trailers") {
		h["Te"] = []string{"trailers"}
	}
	if protocol := upgradeOf(r); protocol != "" {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{protocol}
	}
	h["X-Forwarded-For"], h["X-Real-Ip"] = c.addr, c.addr
	h["X-Forwarded-Proto"], h["X-Forwarded-Port"] = c.proto, c.port
	h["X-Forwarded-Host"] = []string{r.Host}
	return h
}

// ours reports whether a header of the client's is one that a backend would take for ours. A CGI program finds a
// header in an environment variable in which every character but letters and digits is an underscore (RFC 3875
// section 4.1.18), so X_Forwarded_For is X-Forwarded-For to it. Proxy would be HTTP_PROXY, which many programs obey.
// Framing under another name may have a meaning for somebody, too.
func ours(name string) bool {
	if name == "" {
		return false
	}
	switch name[0] | 0x20 {
	case 'x':
		return folded(name, "x-forwarded") || folded(name, "x-real-ip") || len(name) >= len("x-forwarded-") && folded(name[:len("x-forwarded-")], "x-forwarded-")
	case 'f':
		return folded(name, "forwarded")
	case 'p':
		return folded(name, "proxy")
	case 'c':
		return folded(name, "content-length") && name != "Content-Length"
	case 't':
		return folded(name, "transfer-encoding") && name != "Transfer-Encoding"
	case 'h':
		return folded(name, "http2-settings")
	}
	return false
}

// folded reports whether a header's name is want, in lower case, to those who tell no case and no punctuation apart.
func folded(name, want string) bool {
	if len(name) != len(want) {
		return false
	}
	for i := range len(name) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		default:
			c = '-'
		}
		if c != want[i] {
			return false
		}
	}
	return true
}

// upgradeOf is the protocol that the client asks to change to, "" when it does not. "h2c" is not heard: inside such a
// tunnel a client could send requests that no route was asked about.
func upgradeOf(r *http.Request) string {
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		return ""
	}
	protocol := r.Header.Get("Upgrade")
	if httpguts.HeaderValuesContainsToken(r.Header["Upgrade"], "h2c") {
		return ""
	}
	return protocol
}

// fromBackend puts a response's header into the client's, which is empty. What the backend did not say stays unsaid:
// without an entry net/http would make up a Content-Type out of the body.
func fromBackend(to, from http.Header) {
	removeHopByHop(from)
	for name, values := range from {
		to[name] = values
	}
	if _, ok := from["Content-Type"]; !ok {
		to["Content-Type"] = nil
	}
}
