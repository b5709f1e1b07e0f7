package ingress

import (
	"net/http"
	"net/textproto"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// hopByHop lists the hop-by-hop headers (RFC 9110 section 7.6.1, and those of RFC 2616 section 13.5.1).
var hopByHop = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
}

// removeHopByHop deletes the headers in hopByHop, and those that Connection names.
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

// forBackend returns the header that the backend gets for r. It offers the backend these protocols. Its values are
// shared with r and c.
func forBackend(r *http.Request, c *client, protocols []string) http.Header {
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
	if len(protocols) > 0 {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{strings.Join(protocols, ", ")}
	}
	h[loopHeader] = marked(r.Header[loopHeader])
	h["X-Forwarded-For"], h["X-Real-Ip"] = c.addr, c.addr
	h["X-Forwarded-Proto"], h["X-Forwarded-Port"] = c.proto, c.port
	h["X-Forwarded-Host"] = []string{r.Host}
	return h
}

// ours reports whether a header of the client is one that a backend would take for the Server's. A CGI program finds a
// header in an environment variable in which every character but letters and digits is an underscore (RFC 3875
// section 4.1.18), so it cannot tell X_Forwarded_For from X-Forwarded-For. Proxy becomes HTTP_PROXY, which many
// programs obey. Framing headers in another spelling are removed because some backends may read them, too.
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

// folded reports whether a header's name equals want when case is ignored and every character but letters and digits
// counts as "-". want is in lower case.
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

// askedProtocols returns the protocols that a client asks to change to and its route allows, by the client's
// preference; nil for none. upgrades are those of the route.
func askedProtocols(r *http.Request, upgrades []string) []string {
	if r.ProtoMajor != 1 || r.ProtoMinor < 1 || !httpguts.HeaderValuesContainsToken(r.Header["Connection"], "Upgrade") {
		return nil
	}
	return allowed(protocols(r.Header["Upgrade"]), upgrades)
}

// protocols returns the protocols that Upgrade headers name.
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

// allowed returns those of names that are websocket or in more; nil for none. It writes to names. Inside of another
// protocol, like h2c or TLS, a client could send requests that bypass the routes.
func allowed(names, more []string) []string {
	names = slices.DeleteFunc(names, func(name string) bool {
		return !strings.EqualFold(name, "websocket") && !slices.ContainsFunc(more, func(m string) bool { return strings.EqualFold(name, m) })
	})
	if len(names) == 0 {
		return nil
	}
	return names
}

// agreed reports whether a backend changes only to protocols that it was asked for: to one of them, or to several in
// layers (RFC 9110 section 7.8).
func agreed(asked, got []string) bool {
	for _, name := range got {
		if !slices.ContainsFunc(asked, func(a string) bool { return strings.EqualFold(a, name) }) {
			return false
		}
	}
	return len(got) > 0
}

// fromBackend copies a response's header to the client's, to, which holds at most a Connection that the Server set. A
// Content-Type that the backend did not send is set to nil, since net/http would otherwise guess one from the body.
func (rq *request) fromBackend(to http.Header, resp *http.Response) {
	wanted := allowed(protocols(resp.Header["Upgrade"]), rq.upgrades)
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
		if rq.in.ProtoMajor == 1 && len(wanted) > 0 { // RFC 9110 section 15.5.22; in HTTP/2 there is no such header
			to["Upgrade"], to["Connection"] = []string{strings.Join(wanted, ", ")}, append(to["Connection"], "Upgrade")
		}
	}
}
