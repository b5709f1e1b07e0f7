package ingress

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/test/await"
)

// stepwise returns a Config with a backend that sends one piece of its response for each value of next, and then breaks
// off.
func stepwise(t *testing.T, next <-chan struct{}, pieces []string) Config {
	return anyRoute(wireBackend(t, func(w *wire, _ string) {
		defer w.hangUp()
		for _, p := range pieces {
			select {
			case <-next:
			case <-time.After(await.Patience):
				return
			}
			w.say(p)
		}
		<-next
	}))
}

// A response is passed on piece by piece, as it arrives. When the backend breaks off, the client gets all that came
// before, and notices that the response is not whole.
func TestNothingIsHeldBack(t *testing.T) {
	for name, pieces := range map[string][]string{
		"known length": {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", "a", "bc", "defg"},
		"chunked":      {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\na", "\r\n2\r\nbc\r\n", "4\r\ndefg"},
		// The head of a chunk has come, and none of its data.
		"half a chunk head": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2", "\r\na", "b", "\r\n4\r\ndefg"},
		"head with data":    {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na", "b", "c"},
		"event stream":      {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n", "9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			next := make(chan struct{})
			cert, roots := certificate(t, "any.test")
			config := stepwise(t, next, pieces)
			config.Certificates = []Certificate{cert}
			r := newRig(t, Options{}, config)

			want := bodyOf(pieces) // the body after each piece
			t.Run("HTTP/1.1", func(t *testing.T) { held1(t, r.dial(), next, want) })
			t.Run("HTTP/1.1 over TLS", func(t *testing.T) {
				c, err := tls.Dial("tcp", r.https, &tls.Config{RootCAs: roots, ServerName: "any.test"})
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(await.Patience))
				held1(t, newWire(c), next, want)
			})
			t.Run("HTTP/2", func(t *testing.T) { held2(t, r.dialH2(nil), next, want) })
			t.Run("HTTP/2 over TLS", func(t *testing.T) {
				held2(t, r.dialH2(&tls.Config{RootCAs: roots, ServerName: "any.test"}), next, want)
			})
		})
	}
}

// bodyOf returns the body so far, after each piece of a response.
func bodyOf(pieces []string) []string {
	var bodies []string
	for i := range pieces {
		_, body, _ := strings.Cut(strings.Join(pieces[:i+1], ""), "\r\n\r\n")
		if strings.Contains(pieces[0], "chunked") {
			b, _ := io.ReadAll(unchunk(body))
			body = string(b)
		}
		bodies = append(bodies, body)
	}
	return bodies
}

// unchunk reads as much as possible of a chunked body that is not whole.
func unchunk(s string) io.Reader {
	var b strings.Builder
	for s != "" {
		size, rest, ok := strings.Cut(strings.TrimPrefix(s, "\r\n"), "\r\n")
		if !ok {
			break
		}
		n := min(int(size[0]-'0'), len(rest))
		b.WriteString(rest[:n])
		s = rest[n:]
	}
	return strings.NewReader(b.String())
}

func held1(t *testing.T, w *wire, next chan<- struct{}, want []string) {
	t.Helper()
	w.say("GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
	next <- struct{}{}
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for i, body := range want {
		if i > 0 {
			next <- struct{}{}
		}
		more := make([]byte, len(body)-len(got))
		if _, err := io.ReadFull(resp.Body, more); err != nil {
			t.Fatalf("after piece %d: %v", i, err)
		}
		if got += string(more); got != body {
			t.Fatalf("got %q, want %q", got, body)
		}
	}
	next <- struct{}{} // the backend breaks off
	if _, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the cut was not seen: %v", err)
	}
}

func held2(t *testing.T, h *h2, next chan<- struct{}, want []string) {
	t.Helper()
	id := h.headers(true, ":method", "GET", ":scheme", "http", ":authority", "any.test", ":path", "/")
	var a h2Answer
	for i, body := range want {
		next <- struct{}{}
		for i == 0 && a.status == "" || len(a.body) < len(body) {
			f, err := h.framer.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if h.take(&a, id, f) {
				t.Fatalf("after piece %d: the stream ended: %+v", i, a)
			}
		}
		if a.body != body {
			t.Fatalf("got %q, want %q", a.body, body)
		}
	}
	next <- struct{}{}
	for {
		f, err := h.framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if h.take(&a, id, f) {
			break
		}
	}
	if a.reset != "INTERNAL_ERROR" {
		t.Errorf("the cut was not seen: %+v", a)
	}
}

// Bytes that came just before the backend broke off are delivered, too, few or many, though the client could not read
// them before.
func TestDeliveredBeforeTheCut(t *testing.T) {
	for _, size := range []int{0, 10, 100 << 10} {
		body := strings.Repeat("x", size)
		r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
			w.say("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + body)
			w.hangUp()
		})))
		for range 20 {
			w := r.dial()
			w.say("GET / HTTP/1.1\r\nHost: any.test\r\n\r\n")
			resp, err := http.ReadResponse(w.in, nil)
			if err != nil {
				t.Fatalf("HTTP/1.1: %d bytes: not even the head came: %v", size, err)
			}
			if got, err := io.ReadAll(resp.Body); string(got) != body || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("HTTP/1.1: got %d bytes of %d, and %v", len(got), size, err)
			}
			if a := r.dialH2(nil, settingsWindow).get("/"); a.status != "200" || a.body != body || a.reset != "INTERNAL_ERROR" {
				t.Fatalf("HTTP/2: got %d bytes of %d, %s %s", len(a.body), size, a.status, a.reset)
			}
		}
	}
}

// A request is passed on as it arrives, too.
func TestNoRequestIsHeldBack(t *testing.T) {
	for name, tt := range map[string]struct{ header, a, b string }{
		"known length": {"Content-Length: 2", "a", "b"},
		"chunked":      {"Transfer-Encoding: chunked", "1\r\na\r\n", "1\r\nb\r\n0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan string)
			r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, head string) {
				got <- head
				for _, end := range []string{"a", "b"} {
					s, _ := w.until(end)
					got <- s
				}
				w.say(plainOK)
				w.hangUp()
			})))
			w := r.dial()
			w.say("POST / HTTP/1.1\r\nHost: any.test\r\n" + tt.header + "\r\n\r\n")
			<-got // the head arrives before any of the body
			w.say(tt.a)
			if s := <-got; !strings.HasSuffix(s, "a") {
				t.Errorf("got %q", s)
			}
			w.say(tt.b)
			if s := <-got; !strings.HasSuffix(s, "b") {
				t.Errorf("got %q", s)
			}
			if resp := w.answer(t, "POST"); resp.StatusCode != 200 {
				t.Errorf("got %d", resp.StatusCode)
			}
		})
	}
}

// A backend may answer while the request is still being sent. The answer does not wait for the rest of the request, and
// the rest still reaches the backend.
func TestAnswerWhileTheRequestComes(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(wireBackend(t, func(w *wire, _ string) {
		w.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
		for _, b := range []string{"1", "2", "3", "4"} {
			s, err := w.until(b)
			if err != nil || s != b {
				t.Errorf("the backend got %q, %v", s, err)
				w.hangUp()
				return
			}
			w.say(b)
		}
	})))
	w := r.dial()
	for range 2 { // the connection is used again
		w.say("POST / HTTP/1.1\r\nHost: any.test\r\nContent-Length: 4\r\n\r\n")
		resp := w.answer(t, "POST")
		for _, b := range []string{"1", "2", "3", "4"} {
			w.say(b)
			got := make([]byte, 1)
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != b {
				t.Fatalf("got %q, %v, want %q", got, err, b)
			}
		}
	}
}

func BenchmarkLargeResponse(b *testing.B) {
	const size = 64 << 20
	for _, framing := range []string{"length", "chunked"} {
		b.Run(framing, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			back := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if framing == "length" {
					w.Header().Set("Content-Length", "67108864")
				}
				buf := make([]byte, 64<<10)
				for range size / len(buf) {
					w.Write(buf)
				}
			})}
			go back.Serve(l)
			defer back.Close()
			s := New(Options{Endpoints: endpointsIn})
			defer s.Shutdown(b.Context())
			if err := s.Set(anyRoute(mustAddr(l))); err != nil {
				b.Fatal(err)
			}
			front, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			go s.ServeHTTP(b.Context(), front)
			b.SetBytes(size)
			for b.Loop() {
				resp, err := http.Get("http://" + front.Addr().String() + "/")
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
}
