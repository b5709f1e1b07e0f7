package ingress

import (
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// A client may offer several protocols, of which the backend takes one, and may send a body with its request.
func TestUpgrades(t *testing.T) {
	for _, tt := range []struct {
		name, sent     string
		offered, taken string // to the backend, and by the backend
		refused        bool
	}{
		{"one", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "echo", false},
		{"case", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\nUpgrade: ECHO\r\n\r\n", "ECHO", "Echo", false},
		{"the second", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other/2, echo\r\n\r\n", "other/2, echo", "echo", false},
		{"two lines", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other/2\r\nUpgrade: echo\r\n\r\n", "other/2, echo", "echo", false},
		{"layers", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo, tls\r\n\r\n", "echo, tls", "tls, echo", false},
		{"h2c apart", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, echo\r\n\r\n", "echo", "echo", false},
		{"h2c after all", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c, echo\r\n\r\n", "echo", "h2c", true},
		{"websocket needs no leave", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n", "WebSocket", "websocket", false},
		{"not allowed apart", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2, h2c-14, TLS/1.0, HTTP/2.0, foo, echo\r\n\r\n", "echo", "echo", false},
		{"h2c as well", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "echo, h2c", true},
		{"another", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", "echo", "other", true},
		{"with a body", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\nContent-Length: 5\r\n\r\nbody\n", "echo", "echo", false},
		{"with a chunked body", "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbody\n\r\n0\r\n\r\n", "echo", "echo", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			heads := make(chan string, 1)
			r := newRig(t, Options{}, upgrading(wireBackend(t, func(w *wire, head string) {
				heads <- head
				switch {
				case strings.Contains(head, "Content-Length: 5"):
					w.until("body\n")
				case strings.Contains(head, "chunked"):
					w.until("0\r\n\r\n")
				}
				w.say("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: " + tt.taken + "\r\n\r\n")
				for !w.closed {
					line, err := w.until("\n")
					if err != nil {
						w.hangUp()
						return
					}
					w.say("echo " + line)
				}
			}), "echo", "other/2", "tls"))
			w := r.dial()
			w.say(tt.sent)
			head, err := w.until("\r\n\r\n")
			if err != nil {
				t.Fatal(err)
			}
			if got := <-heads; !strings.Contains(got, "\r\nConnection: Upgrade\r\n") || !strings.Contains(got, "\r\nUpgrade: "+tt.offered+"\r\n") {
				t.Errorf("the backend got %q", got)
			}
			if tt.refused {
				if !strings.HasPrefix(head, "HTTP/1.1 502 ") {
					t.Errorf("got %q", head)
				}
				return
			}
			if !strings.HasPrefix(head, "HTTP/1.1 101 ") || !strings.Contains(head, "\r\nUpgrade: "+tt.taken+"\r\n") {
				t.Fatalf("got %q", head)
			}
			w.say("hello\n")
			if got, err := w.until("\n"); got != "echo hello\n" {
				t.Fatalf("got %q, %v", got, err)
			}
		})
	}
}

// A protocol that the route does not allow is not offered to the backend, which answers as without.
func TestUpgradesNotAllowed(t *testing.T) {
	var seen capture
	r := newRig(t, Options{}, anyRoute(seen.backend(t, plainOK)))
	for _, protocol := range []string{"h2", "h2c", "h2c-14", "TLS/1.0", "HTTP/2.0", "tcp", "websocketx", "", ","} {
		w := r.dial()
		w.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n")
		if resp := w.answer(t, "GET"); resp.StatusCode != 200 {
			t.Errorf("%q: got %d", protocol, resp.StatusCode)
		}
		if head := strings.Join(seen.take(), ""); strings.Contains(head, "Upgrade") || strings.Contains(head, "Connection") {
			t.Errorf("%q: the backend got\n%s", protocol, head)
		}
	}
}

// A connection that loses its place takes its backend's along, also when the backend neither reads nor writes: its
// client's end is not noticed then.
func TestEvictedUpgrade(t *testing.T) {
	tested := make(chan struct{})
	r := newRig(t, Options{MaxConns: 2}, upgrading(wireBackend(t, func(w *wire, head string) {
		if !strings.Contains(head, "Upgrade") {
			w.say(plainOK)
			return
		}
		w.say("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		<-tested
		w.hangUp()
	}), "echo"))
	defer close(tested)
	c, err := r.from("127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	w := newWire(c)
	w.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if _, err := w.until("\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		// All buffers on the way are full when a write takes longer.
		_ = c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		_, err = c.Write(make([]byte, 64<<10))
	}
	r.hold("127.0.0.2")
	r.hold("127.0.0.3") // takes the place of the upgraded connection, which was idle for longest
	await.Until(t, "the end of the upgraded connection", func() bool { return r.Stats().InFlight == 0 })
}
