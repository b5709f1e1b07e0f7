package ingress

import (
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// A client must move a least number of bytes while it is waited for. Time in which it is not waited for does not count.
func TestLeastRate(t *testing.T) {
	for _, tt := range []struct {
		name             string
		least            int
		every, otherwise time.Duration // of waiting for the client, and of other things
		bytes            int
		cut              bool
	}{
		{"a byte a second", 1024, time.Second, 0, 1, true},
		{"a byte a minute", 1024, 59 * time.Second, 0, 1, true},
		{"little more than the least", 1024, time.Second, 0, 18, false},
		{"much, rarely", 1024, 59 * time.Second, 0, 1024, false},
		{"a byte at once, rarely", 1024, 0, time.Minute, 1, false},
		{"a byte a second, any number will do", 0, time.Second, 0, 1, false},
		{"nothing, any number will do", 0, 61 * time.Second, 0, 0, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			cut := false
			s := stall{limit: time.Minute, least: tt.least, cut: func() { cut = true }}
			for range 500 {
				s.begin()
				time.Sleep(tt.every)
				synctest.Wait()
				s.end(tt.bytes)
				time.Sleep(tt.otherwise)
			}
			if cut != tt.cut {
				t.Errorf("%s: cut is %v", tt.name, cut)
			}
		})
	}
}

// A body that comes byte by byte is cut, however long it goes on.
func TestBodyByteByByte(t *testing.T) {
	r := newRig(t, Options{StallTimeout: stallTest}, anyRoute(backend(t, func(w http.ResponseWriter, req *http.Request) { io.Copy(io.Discard, req.Body) })))
	w := r.dial()
	w.say("POST / HTTP/1.1\r\nHost: any.test\r\nContent-Length: 100000\r\n\r\n")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range time.Tick(20 * time.Millisecond) {
			if _, err := io.WriteString(w, "x"); err != nil {
				return
			}
		}
	}()
	if resp := w.answer(t, "POST"); resp.StatusCode != http.StatusRequestTimeout {
		t.Errorf("got %d", resp.StatusCode)
	}
	<-ended
	await.Until(t, "the stalled one is counted", func() bool { return r.Stats().ClientBroke == 1 })
}
