package load

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestHTTPRequests(t *testing.T) {
	_, web := servers(t, "127.0.0.1:0")
	for _, h := range []HTTP{{}, {NoKeepAlive: true}, {Version: "2"}, {Host: "bench.example"}} {
		for _, o := range []Options{{}, {Streams: 4, Response: 70000}, {Rate: 500, Streams: 2, Response: 1024}} {
			o.Time, o.HTTP = short20, h
			if o.Rate > 0 {
				o.Time = 10 * short20 // a busy machine does not begin transactions that it is too late for
			}
			r, err := HTTPRequests(t.Context(), web, o)
			if err != nil {
				t.Fatalf("%+v: %v", o, err)
			}
			if r.Kind != "http" || r.Transactions == 0 || r.Latency.P50 <= 0 || o.Rate > 0 && r.Due != 100 {
				t.Errorf("%+v: %+v", o, r)
			}
		}
	}
}

// A request has the protocol and the name that the options ask for, and there are as many connections as they imply.
func TestHTTPSRequests(t *testing.T) {
	for version, want := range map[string]string{"1.1": "HTTP/1.1", "2": "HTTP/2.0"} {
		for _, noKeepAlive := range []bool{false, true} {
			if version == "2" && noKeepAlive {
				continue
			}
			var wrong atomic.Value
			var requests, handshakes atomic.Int64
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				requests.Add(1)
				if got := fmt.Sprint(r.Proto, " ", r.Host, " ", r.TLS.ServerName, " ", r.URL.Path); got != want+" bench.example bench.example /bytes/3" {
					wrong.Store(got)
				}
				w.Write([]byte("abc"))
			}))
			s.EnableHTTP2 = true
			s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				handshakes.Add(1)
				return nil, nil
			}}
			s.StartTLS()
			r, err := HTTPRequests(t.Context(), s.Listener.Addr().String(), Options{
				Streams: 2, Time: short20, Response: 3, HTTP: HTTP{TLS: true, Version: version, Host: "bench.example", NoKeepAlive: noKeepAlive},
			})
			s.Close()
			if err != nil || r.Transactions == 0 {
				t.Errorf("HTTP/%s: %v, %+v", version, err, r)
			}
			if got := wrong.Load(); got != nil {
				t.Errorf("HTTP/%s: the server saw %s", version, got)
			}
			connections := map[bool]int64{false: 2, true: requests.Load()}[noKeepAlive]
			if version == "2" {
				connections = 1
			}
			if handshakes.Load() != connections {
				t.Errorf("HTTP/%s, keep-alive %v: %d connections for %d requests, expected %d", version, !noKeepAlive, handshakes.Load(), requests.Load(), connections)
			}
		}
	}
}

// A wrong answer fails the measurement, however fast it came.
func TestHTTPAnswersAreChecked(t *testing.T) {
	for want, handler := range map[string]http.HandlerFunc{
		"503": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		"301": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusMovedPermanently)
		},
		"got 2 bytes, expected 3": func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ab")) },
		"got 4 bytes, expected 3": func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("abcd")) },
		"read the body": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			w.Write([]byte("ab"))
		},
		"EOF": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		s := httptest.NewServer(handler)
		for _, h := range []HTTP{{}, {NoKeepAlive: true}} {
			_, err := HTTPRequests(t.Context(), s.Listener.Addr().String(), Options{Time: short20, Response: 3, HTTP: h})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		}
		s.Close()
	}
}

func TestHTTPServer(t *testing.T) {
	_, web := servers(t, "127.0.0.1:0")
	for path, want := range map[string]int{
		"/bytes/0": 200, "/bytes/1048576": 200, "/bytes/1048577": 404, "/bytes/-1": 404, "/bytes/x": 404, "/": 404, "/bytes/1/2": 404,
	} {
		r, err := http.Get("http://" + web + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want || want == 200 && "/bytes/"+r.Header.Get("Content-Length") != path {
			t.Errorf("%s: got %s, length %s", path, r.Status, r.Header.Get("Content-Length"))
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
