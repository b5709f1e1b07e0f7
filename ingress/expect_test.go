package ingress

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

const expecting = "POST / HTTP/1.1\r\nHost: any.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"

// A backend that does not want the body can say that before the body is sent, however late it answers.
func TestExpectRefused(t *testing.T) {
	for _, status := range []string{"401 Unauthorized", "417 Expectation Failed", "413 Content Too Large"} {
		for _, closing := range []string{"", "Connection: close\r\n"} {
			asked, decide := make(chan string, 1), make(chan struct{})
			r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, head string) {
				asked <- head
				<-decide
				w.say("HTTP/1.1 " + status + "\r\n" + closing + "Content-Length: 2\r\n\r\nno")
				if rest, _ := w.until("body"); rest != "" {
					t.Errorf("%s: the backend got %q", status, rest)
				}
				w.hangUp()
			})))
			w := r.dial()
			w.say(expecting)
			if head := <-asked; !strings.Contains(head, "Expect: 100-continue\r\n") {
				t.Errorf("the backend was not asked: %q", head)
			}
			if status == "401 Unauthorized" && closing == "" {
				time.Sleep(1200 * time.Millisecond) // the client may get nothing but the backend's answer, however late
			}
			close(decide)
			line, err := w.until("\r\n")
			if err != nil || line != "HTTP/1.1 "+status+"\r\n" && !strings.HasPrefix(line, "HTTP/1.1 "+status[:3]) {
				t.Errorf("%s: the client got %q, %v", status, line, err)
			}
			head, _ := w.until("\r\n\r\n")
			if body, err := w.until("no"); err != nil || body != "no" || !strings.Contains(head, "Connection: close") {
				t.Errorf("%s: the client got %q and %q, %v", status, head, body, err)
			}
		}
	}
}

// The client gets the backend's 100 Continue, and only once.
func TestExpectGranted(t *testing.T) {
	cert, roots := certificate(t, "any.test")
	asked, decide := make(chan string), make(chan struct{})
	config := anyRoute(wireBackend(t, func(w *wire, head string) {
		asked <- head
		<-decide
		w.say("HTTP/1.1 100 Continue\r\n\r\n")
		if body, err := w.until("body"); err != nil || body != "body" {
			t.Errorf("the backend got %q, %v", body, err)
		}
		w.say(plainOK)
	}))
	config.Certificates = []Certificate{cert}
	r := newRig(t, Options{}, config)
	secure, err := tls.Dial("tcp", r.https, &tls.Config{RootCAs: roots, ServerName: "any.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer secure.Close()
	secure.SetDeadline(time.Now().Add(await.Patience))
	for name, w := range map[string]*wire{"clear": r.dial(), "TLS": newWire(secure)} {
		for range 2 { // the connection is used again
			w.say(expecting)
			<-asked
			decide <- struct{}{}
			if got, err := w.until("\r\n\r\n"); err != nil || got != "HTTP/1.1 100 Continue\r\n\r\n" {
				t.Fatalf("%s: the client got %q, %v", name, got, err)
			}
			w.say("body")
			resp := w.answer(t, "POST")
			if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(b) != "ok" {
				t.Errorf("%s: got %d %q, %v", name, resp.StatusCode, b, err)
			}
		}
	}
}

// The body of a client that does not wait reaches the backend, also when the backend does not send 100 Continue.
func TestExpectNotWaitedFor(t *testing.T) {
	asked := make(chan struct{}, 1)
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, head string) {
		asked <- struct{}{}
		if body, err := w.until("body"); err != nil || body != "body" {
			t.Errorf("the backend got %q, %v", body, err)
		}
		w.say(plainOK)
	})))
	for name, parts := range map[string][2]string{"at once": {expecting + "body", ""}, "later": {expecting, "body"}, "some of it at once": {expecting + "bo", "dy"}} {
		w := r.dial()
		w.say(parts[0])
		<-asked
		w.say(parts[1])
		got, err := w.until("\r\n\r\n")
		if got == "HTTP/1.1 100 Continue\r\n\r\n" { // allowed, though not needed
			got, err = w.until("\r\n\r\n")
		}
		if err != nil || !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// The backend has as much time to decide as it has for a response.
func TestExpectWithoutAnswer(t *testing.T) {
	r := newRig(t, Options{ResponseTimeout: 50 * time.Millisecond}, anyRoute(wireBackend(t, func(w *wire, head string) {
		if rest, _ := w.until("body"); rest != "" {
			t.Errorf("the backend got %q", rest)
		}
	})))
	w := r.dial()
	w.say(expecting)
	if resp := w.answer(t, "POST"); resp.StatusCode != http.StatusGatewayTimeout || !resp.Close {
		t.Errorf("got %d, closing %v", resp.StatusCode, resp.Close)
	}
	if n := r.Stats().Timeout; n != 1 {
		t.Errorf("Timeout is %d", n)
	}
}

// HTTP/2 has 100 Continue, too. net/http has the expectation in an unexported field, and this test fails when that
// field changes.
func TestExpectOverHTTP2(t *testing.T) {
	asked, answer := make(chan string), make(chan string)
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, head string) {
		asked <- head
		a := <-answer
		w.say(a)
		if !strings.HasPrefix(a, "HTTP/1.1 100") {
			if rest, _ := w.until("body"); rest != "" {
				t.Errorf("the backend got %q", rest)
			}
			w.hangUp()
			return
		}
		if body, err := w.until("body"); err != nil || body != "body" {
			t.Errorf("the backend got %q, %v", body, err)
		}
		w.say(plainOK)
	})))
	fields := []string{":method", "POST", ":scheme", "http", ":authority", "any.test", ":path", "/", "expect", "100-continue", "content-length", "4"}
	for _, refused := range []bool{true, false} {
		h := r.dialH2(nil)
		id := h.headers(false, fields...)
		if head := <-asked; !strings.Contains(head, "Expect: 100-continue\r\n") {
			t.Errorf("the backend was not asked: %q", head)
		}
		if refused {
			answer <- "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"
			if a := h.read(id); a.status != "401" || a.body != "no" || len(a.interim) > 0 {
				t.Errorf("refused: got %+v", a)
			}
			continue
		}
		answer <- "HTTP/1.1 100 Continue\r\n\r\n"
		var a h2Answer
		for len(a.interim) == 0 {
			f, err := h.framer.ReadFrame()
			if err != nil || h.take(&a, id, f) {
				t.Fatalf("got %+v, %v", a, err)
			}
		}
		if err := h.framer.WriteData(id, true, []byte("body")); err != nil {
			t.Fatal(err)
		}
		if got := h.read(id); got.status != "200" || got.body != "ok" {
			t.Errorf("granted: got %+v", got)
		}
	}
}

// Other interim responses are passed on, except to HTTP/1.0 clients, whose protocol has none.
func TestEarlyHints(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
		w.say("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + plainOK)
	})))
	for version, want := range map[string]string{"1.1": "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", "1.0": ""} {
		w := r.dial()
		fmt.Fprintf(w, "GET / HTTP/%s\r\nHost: any.test\r\n\r\n", version)
		got, _ := w.until("\r\n\r\n")
		if want != "" && got != want || want == "" && !strings.HasPrefix(got, "HTTP/1.0 200 OK\r\n") {
			t.Errorf("HTTP/%s: got %q", version, got)
		}
	}
	if a := r.dialH2(nil).get("/"); a.status != "200" || len(a.interim) != 1 || a.interim[0] != "103" || a.header["link"] != nil {
		t.Errorf("HTTP/2: got %+v", a)
	}
}
