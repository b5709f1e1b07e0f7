package ingress

import (
	"net/http"
	"strings"
)

// stripTrailer deletes the fields that are not allowed in a trailer. A reader that merges a trailer into the header
// would take them for fields that were there when the message was judged.
func stripTrailer(h http.Header) {
	for name := range h {
		if ours(name) || notInTrailers(name) {
			delete(h, name)
		}
	}
}

// notInTrailers reports whether RFC 9110 section 6.5.1 does not allow a field in trailers, in any spelling: it is for
// framing, routing, authentication, request modifiers, response control data, or the format of the content. Fields for
// one hop are among them.
func notInTrailers(name string) bool {
	key := strings.Map(func(c rune) rune {
		if c == '-' || 'a' <= c && c <= 'z' || '0' <= c && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(name))
	return forbiddenTrailers[key] || strings.HasPrefix(key, "if-") || strings.HasPrefix(key, "proxy-") || strings.HasPrefix(key, "access-control-")
}

var forbiddenTrailers = map[string]bool{
	"connection": true, "content-length": true, "host": true, "http2-settings": true, "keep-alive": true, "te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
	"authorization": true, "cookie": true, "set-cookie": true, "www-authenticate": true, "authentication-info": true, "origin": true,
	"cache-control": true, "expect": true, "max-forwards": true, "pragma": true, "range": true,
	"age": true, "date": true, "expires": true, "location": true, "retry-after": true, "vary": true, "warning": true,
	"content-encoding": true, "content-type": true, "content-range": true, "content-location": true,
}
