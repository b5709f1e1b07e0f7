package ingress

import (
	"net/http"
	"net/textproto"
	"strings"
)

// A backend may lead back to an Ingress, of this node or of another one, by a load balancer or by addresses that no
// node knows to be its own. Each pass would then begin the next one without end. So the Server writes its name into
// CDN-Loop (RFC 8586), which whoever forwards the request must leave there, and counts how often it is in it.

const (
	loopHeader = "Cdn-Loop"
	// loopName is the cdn-id of every Tapestry. Whoever writes it into a request has only that request refused.
	loopName = "tapestry"
	// mostPasses is how often a request may come through a Tapestry. A backend may well ask another Ingress, with the
	// headers that it got itself.
	mostPasses = 8
)

// passes returns how often a request with that header has come through a Tapestry.
func passes(h http.Header) (n int) {
	for _, list := range h[loopHeader] {
		for info := range strings.SplitSeq(list, ",") {
			id, _, _ := strings.Cut(info, ";")
			if strings.EqualFold(textproto.TrimString(id), loopName) {
				n++
			}
		}
	}
	return n
}

var firstPass = []string{loopName} // never written to

// marked returns the values of CDN-Loop with one pass more. It does not change those that came.
func marked(came []string) []string {
	if len(came) == 0 {
		return firstPass
	}
	return []string{strings.Join(came, ", ") + ", " + loopName}
}
