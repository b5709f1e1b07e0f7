package ingress

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// crowdVar is the environment variable that makes the test program a crowd of clients. Its value is their protocol.
const crowdVar = "TAPESTRY_TEST_CROWD"

// BenchmarkConnection measures what an idle connection of a client costs the Server. The clients are in another
// process.
func BenchmarkConnection(b *testing.B) {
	const conns = 1000
	for _, kind := range []string{"HTTP/1.1", "HTTP/1.1 over TLS", "HTTP/2", "HTTP/2 over TLS", "upgraded"} {
		b.Run(kind, func(b *testing.B) {
			cert, err := selfSigned()
			if err != nil {
				b.Fatal(err)
			}
			back := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Upgrade") != "" {
					w.Header().Set("Connection", "Upgrade")
					w.Header().Set("Upgrade", "websocket")
					w.WriteHeader(http.StatusSwitchingProtocols)
					c, rw, _ := http.NewResponseController(w).Hijack()
					rw.Flush()
					defer c.Close()
					io.Copy(io.Discard, c)
				}
			})}
			listen := func() net.Listener {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				return l
			}
			backend := listen()
			go back.Serve(backend)
			defer back.Close()
			s := New(Options{Endpoints: endpointsIn})
			defer s.Shutdown(b.Context())
			config := anyRoute(mustAddr(backend))
			config.Certificates = []Certificate{{Name: "a", Cert: *cert}}
			if err := s.Set(config); err != nil {
				b.Fatal(err)
			}
			plain, secure := listen(), listen()
			go s.ServeHTTP(b.Context(), plain)
			go s.ServeHTTPS(b.Context(), secure)
			for b.Loop() {
				before := inUse()
				end := crowd(b, kind, conns, plain.Addr(), secure.Addr())
				grown := inUse() - before
				end()
				b.ReportMetric(float64(grown)/conns, "B/conn")
			}
		})
	}
}

// crowd starts the process of clients, and returns when a request of each client has been answered. The returned func
// ends the process.
func crowd(b *testing.B, kind string, conns int, plain, secure net.Addr) func() {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crowdVar+"="+kind)
	cmd.Args = []string{os.Args[0], strconv.Itoa(conns), plain.String(), secure.String()}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		b.Fatalf("the clients say %q, %v", line, err)
	}
	return func() {
		in.Close()
		cmd.Wait()
	}
}

// beCrowd is the main function of the process of clients.
func beCrowd(kind string, args []string) error {
	conns, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	kept := make([]net.Conn, conns)
	for i := range kept {
		switch kind {
		case "HTTP/1.1 over TLS", "HTTP/2 over TLS":
			config := &tls.Config{InsecureSkipVerify: true}
			if kind == "HTTP/2 over TLS" {
				config.NextProtos = []string{"h2"}
			}
			kept[i], err = tls.Dial("tcp", args[2], config)
		default:
			kept[i], err = net.Dial("tcp", args[1])
		}
		if err != nil {
			return err
		}
		if kind == "HTTP/2" || kind == "HTTP/2 over TLS" {
			err = askH2(kept[i])
		} else {
			err = ask1(kept[i], kind == "upgraded")
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func ask1(c net.Conn, upgrade bool) error {
	more := ""
	if upgrade {
		more = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
	}
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: a\r\n%s\r\n", more)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err == nil {
		err = resp.Body.Close()
	}
	return err
}

func askH2(c net.Conn) error {
	f := http2.NewFramer(c, c)
	var block writer
	enc := hpack.NewEncoder(&block)
	for _, kv := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "a"}, {":path", "/"}} {
		enc.WriteField(hpack.HeaderField{Name: kv[0], Value: kv[1]})
	}
	io.WriteString(c, http2.ClientPreface)
	f.WriteSettings()
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true, EndStream: true})
	for {
		got, err := f.ReadFrame()
		if err != nil {
			return err
		}
		if s, ok := got.(*http2.SettingsFrame); ok && !s.IsAck() {
			f.WriteSettingsAck()
		}
		if got.Header().Flags.Has(http2.FlagDataEndStream) && got.Header().StreamID == 1 {
			return nil
		}
	}
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
