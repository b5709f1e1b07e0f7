package ingress

import (
	"net/http"
	"net/textproto"
	"slices"
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

// upgradeOf is what the client asks to change to, a list of protocols by its preference; "" when it does not. "h2c" is
// not heard: inside such a tunnel a client could send requests that no route was asked about.
func upgradeOf(r *http.Request) string {
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		return ""
	}
	return strings.Join(heard(protocols(r.Header["Upgrade"])), ", ")
}

// protocols are those that Upgrade headers name.
func protocols(upgrade []string) []string {
	var names []string
	for _, list := range upgrade {
		for name := range strings.SplitSeq(list, ",") {
			if name = textproto.TrimString(name); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// heard leaves "h2c" out of names, which it writes to.
func heard(names []string) []string {
	return slices.DeleteFunc(names, func(name string) bool { return strings.EqualFold(name, "h2c") })
}

// agreed reports whether a backend changes to nothing but what it was asked for: to one of several protocols, or to
// some in layers (RFC 9110 section 7.8).
func agreed(asked, got []string) bool {
	for _, name := range got {
		if !slices.ContainsFunc(asked, func(a string) bool { return strings.EqualFold(a, name) }) {
			return false
		}
	}
	return len(got) > 0
}

// fromBackend puts a response's header into the client's, which is empty but for a Connection of ours. What the backend
// did not say stays unsaid: without an entry net/http would make up a Content-Type out of the body.
func fromBackend(to http.Header, resp *http.Response, clientMajor int) {
	wanted := heard(protocols(resp.Header["Upgrade"]))
	removeHopByHop(resp.Header)
	for name, values := range resp.Header {
		to[name] = values
	}
	if _, ok := resp.Header["Content-Type"]; !ok {
		to["Content-Type"] = nil
	}
	switch resp.StatusCode {
	case http.StatusNoContent:
		delete(to, "Content-Length") // RFC 9110 section 8.6
	case http.StatusUpgradeRequired:
		if clientMajor == 1 && len(wanted) > 0 { // RFC 9110 section 15.5.22; in HTTP/2 there is no such header
			to["Upgrade"], to["Connection"] = []string{strings.Join(wanted, ", ")}, append(to["Connection"], "Upgrade")
		}
	}
}
