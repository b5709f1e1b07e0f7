package ingress

import (
	"fmt"
	"slices"
	"testing"
)

// A pod that ends may accept connections for a moment and reset them. A harmless request then goes to another endpoint,
// once; others are answered 502 (RFC 9110 section 9.2.2).
func TestUnansweredTriesAnother(t *testing.T) {
	for _, tt := range []struct {
		request  string
		closing  int // endpoints that close without an answer, beside one that answers
		statuses []int
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1, []int{200, 200}},
		{"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 1, []int{200, 200}},
		// One request meets both closing endpoints first.
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 2, []int{200, 200, 502}},
		{"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nok", 1, []int{200, 502}},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 1, []int{200, 502}},
		{"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", 1, []int{200, 502}},
	} {
		endpoints := portOf(wireBackend(t, func(w *wire, head string) { w.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") }))
		list := endpointsIn(endpoints)
		for range tt.closing {
			list = append(list, wireBackend(t, func(w *wire, _ string) { w.hangUp() }))
		}
		r := newRig(t, Options{}, anyRoute(list...))
		var got []int
		for range list {
			w := r.dial()
			fmt.Fprint(w, tt.request)
			got = append(got, w.answer(t, tt.request[:4]).StatusCode)
		}
		slices.Sort(got)
		if !slices.Equal(got, tt.statuses) {
			t.Errorf("%.20q with %d that close: got %d, want %d", tt.request, tt.closing, got, tt.statuses)
		}
	}
}
