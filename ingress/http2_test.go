package ingress

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestHTTP2Clients(t *testing.T) {
	cert, roots := certificate(t, "shop.example")
	config := anyRoute(backend(t, echoHeaders))
	config.Certificates = []Certificate{cert}
	r := newRig(t, Options{}, config)
	for _, url := range []string{"http://shop.example/", "https://shop.example/"} {
		resp, err := r.client(roots, speakHTTP2).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body := readAll(t, resp)
		if resp.Proto != "HTTP/2.0" {
			t.Errorf("%s: client spoke %s", url, resp.Proto)
		}
		if !strings.HasPrefix(body, "GET / HTTP/1.1\n") || !strings.Contains(body, "X-Forwarded-Host: shop.example\r\n") {
			t.Errorf("%s: backend saw\n%s", url, body)
		}
	}
}

// grpcEcho answers as a gRPC server does: messages in both directions at once, and the status in the trailer.
func grpcEcho(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
			t.Errorf("backend was spoken to in %s, TE %q", r.Proto, r.Header.Get("Te"))
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.WriteHeader(200)
		http.NewResponseController(w).Flush()
		buf := make([]byte, 1024)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			http.NewResponseController(w).Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", r.Trailer.Get("X-Request-Trailer"))
	}
}

func TestGRPC(t *testing.T) {
	cert, roots := certificate(t, "shop.example")
	// One address refuses connections, so that gRPC goes on to the next endpoint, too.
	config := anyRoute(backend(t, grpcEcho(t)), refused(t))
	config.Certificates = []Certificate{cert}
	r := newRig(t, Options{}, config)
	for _, url := range []string{"http://shop.example/pkg.Service/Method", "https://shop.example/pkg.Service/Method"} {
		in, out := io.Pipe()
		req, _ := http.NewRequest("POST", url, in)
		req.Header.Set("Content-Type", "application/grpc+proto")
		req.Header.Set("Te", "trailers")
		req.Trailer = http.Header{"X-Request-Trailer": {"kept"}}
		resp, err := r.client(roots, speakHTTP2).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		// Both directions are open at once: each message comes back before the next is sent.
		for _, msg := range []string{"one", "two", "three"} {
			if _, err := io.WriteString(out, msg); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(msg))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != msg {
				t.Fatalf("got %q, %v; want %q", got, err, msg)
			}
		}
		out.Close()
		if rest := readAll(t, resp); rest != "" {
			t.Errorf("rest %q", rest)
		}
		if resp.ProtoMajor != 2 || resp.Trailer.Get("Grpc-Status") != "0" || resp.Trailer.Get("Grpc-Message") != "kept" {
			t.Errorf("%s: %s, trailer %v", url, resp.Proto, resp.Trailer)
		}
	}
}

// A gRPC answer without body is one header block, which carries the status.
func TestGRPCTrailersOnly(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Grpc-Status", "12")
	})))
	req, _ := http.NewRequest("POST", "http://any.test/pkg.Service/Unknown", strings.NewReader("x"))
	req.Header.Set("Content-Type", "application/grpc")
	resp, err := r.client(nil, speakHTTP2).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	readAll(t, resp)
	if got := resp.Header.Get("Grpc-Status"); got != "12" {
		t.Errorf("Grpc-Status %q, want 12", got)
	}
}

func TestTrailersOfHTTP1Backend(t *testing.T) {
	r := newRig(t, Options{}, anyRoute(backend(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("backend was spoken to in %s", r.Proto)
		}
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "body")
		w.Header().Set("X-Sum", "42")
	})))
	resp, err := r.client(nil, speakHTTP2).Get("http://any.test/")
	if err != nil {
		t.Fatal(err)
	}
	if body := readAll(t, resp); body != "body" || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("got %q, trailer %v", body, resp.Trailer)
	}
}
