package load

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/bench/load/datagram"
	"tapestry.dev/tapestry/test/await"
)

const short20 = 20 * time.Millisecond

// server runs a Server on loopback until the test ends.
func server(t *testing.T) string {
	t.Helper()
	addr, _ := servers(t, "")
	return addr
}

// servers runs a Server on loopback, with HTTP unless httpAddr is empty.
func servers(t *testing.T, httpAddr string) (addr, web string) {
	t.Helper()
	s, err := Listen(t.Context(), "127.0.0.1:0", httpAddr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	if a := s.HTTPAddr(); a != nil {
		web = a.String()
	}
	return s.Addr().String(), web
}

func TestStream(t *testing.T) {
	addr := server(t)
	for _, direction := range []Direction{Up, Down, Both} {
		for _, streams := range []int{1, 3} {
			r, err := Stream(t.Context(), addr, Options{Streams: streams, Time: short20, Direction: direction})
			if err != nil {
				t.Fatal(err)
			}
			// Each stream moves at least one block.
			if r.Bytes < uint64(streams)*blockBytes || r.BitsPerSecond <= 0 || r.Streams != streams || r.Direction != direction {
				t.Errorf("%s x%d: %+v", direction, streams, r)
			}
		}
	}
}

// The receiver reports exactly as many bytes as the sender wrote.
func TestStreamCountsEveryByte(t *testing.T) {
	addr := server(t)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sent = 3*blockBytes + 7
	c.Write(hello{kind: upload}.append(nil))
	c.Write(make([]byte, sent))
	c.(*net.TCPConn).CloseWrite()
	r, err := readReport(c)
	if err != nil || r.bytes != sent || r.elapsed <= 0 {
		t.Errorf("got %+v, %v; want %d bytes", r, err, sent)
	}
}

func TestTransactions(t *testing.T) {
	addr := server(t)
	for name, measure := range map[string]Measurement{"rr": RequestResponse, "crr": ConnectRequestClose} {
		for _, o := range []Options{{}, {Streams: 4, Request: 5000, Response: 70000}} {
			o.Time = short20
			r, err := measure(t.Context(), addr, o)
			if err != nil {
				t.Fatal(err)
			}
			l := r.Latency
			if r.Kind != name || r.Transactions == 0 || r.PerSecond <= 0 || l == nil ||
				l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max {
				t.Errorf("%s %+v: %+v, latency %+v", name, o, r, l)
			}
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{
		{Streams: -1}, {Streams: 5000}, {Time: -1}, {Time: 2 * time.Hour}, {Direction: "sideways"},
		{Request: -1}, {Response: maxMessage + 1}, {Rate: -1}, {Rate: maxRate + 1}, {QueryType: "MX"},
		{HTTP: HTTP{Version: "3"}}, {HTTP: HTTP{Version: "2", NoKeepAlive: true}},
	} {
		o.Name = "web.bench.example"
		for _, measure := range measurements {
			if _, err := measure(t.Context(), "192.0.2.1:1", o); err == nil || !strings.Contains(err.Error(), "expected") {
				t.Errorf("%+v: got error %v", o, err)
			}
		}
	}
}

func TestNoServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for name, measure := range measurements {
		for _, rate := range []int{0, 100} {
			if _, err := measure(t.Context(), l.Addr().String(), Options{Time: short20, Rate: rate, Name: "web.bench.example"}); err == nil {
				t.Errorf("%s at rate %d without server succeeded", name, rate)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	addr, web := servers(t, "127.0.0.1:0")
	names := nameServer(t, answering(t, "web.bench.example. A 192.0.2.1"))
	for name, measure := range measurements {
		for _, rate := range []int{0, 1} {
			at := map[string]string{"http": web, "dns": names}[name]
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(short20, cancel)
			_, err := measure(ctx, cmp.Or(at, addr), Options{Time: time.Hour, Rate: rate, Name: "web.bench.example"})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s at rate %d: got %v, want the context's error", name, rate, err)
			}
		}
	}
}

// The server answers 50 requests and then stops. In a closed loop that is an error. In an open loop it is the result,
// in which every transaction shows that was due since.
func TestStallShowsInTheOpenLoop(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		readHello(c)
		b := make([]byte, 1)
		for range 50 {
			io.ReadFull(c, b)
			c.Write(b)
		}
		io.Copy(io.Discard, c)
	}()
	r, err := RequestResponse(t.Context(), l.Addr().String(), Options{Time: 200 * time.Millisecond, Rate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if r.Due != 200 || r.Transactions != 50 || r.Rate != 1000 || !strings.Contains(r.String(), "150 of 200 unanswered") {
		t.Errorf("%+v, %s: expected 50 of 200 answered", r, r)
	}
	// Transaction 51 waited from the 50th ms to the cut-off, a second after the end.
	if got := time.Duration(r.Latency.Max); got < time.Second {
		t.Errorf("max %v, expected more than a second", got)
	}
}

func TestServerHangsUpOnStrangers(t *testing.T) {
	addr := server(t)
	for name, sent := range map[string][]byte{
		"HTTP":           []byte("GET / HTTP/1.1\r\nHost: bench.example\r\n\r\n"),
		"unknown kind":   hello{kind: 9, request: 1, response: 1}.append(nil),
		"no kind":        hello{}.append(nil),
		"huge message":   hello{kind: exchange, request: maxMessage + 1, response: 1}.append(nil),
		"empty message":  hello{kind: exchange, response: 1}.append(nil),
		"eternity":       hello{kind: download, duration: maxDuration + 1}.append(nil),
		"before time":    hello{kind: download, duration: -1}.append(nil),
		"short datagram": hello{kind: datagramExchange, response: datagram.HeaderLen - 1}.append(nil),
		"long datagram":  hello{kind: datagramExchange, response: datagram.MaxLen + 1}.append(nil),
		"truncated":      hello{kind: upload}.append(nil)[:helloLen-1],
		"nothing at all": nil,
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c.Write(sent)
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(await.Patience))
		got, err := io.ReadAll(c)
		if len(got) > 0 {
			t.Errorf("%s: got %d bytes", name, len(got))
		}
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			t.Errorf("%s: the server did not hang up", name)
		}
		c.Close()
	}
}

func FuzzHello(f *testing.F) {
	f.Add(hello{kind: exchange, request: 1, response: 2, duration: time.Second}.append(nil))
	f.Add(hello{kind: download, duration: -1}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !bytes.Equal(h.append(nil), b[:helloLen]) {
			t.Errorf("%x was read as %+v", b, h)
		}
		if h.request > maxMessage || h.response > maxMessage || h.duration > maxDuration || h.duration < 0 {
			t.Errorf("%+v passed", h)
		}
	})
}

func TestCommand(t *testing.T) {
	addr, web := servers(t, "127.0.0.1:0")
	names := nameServer(t, answering(t, "web.bench.example. A 192.0.2.1"))
	for _, args := range [][]string{
		{"stream", addr, "--time", "20ms", "--json"},
		{"rr", "--time", "20ms", "--streams", "2", "--json", addr},
		{"crr", addr, "--time", "20ms", "--json"},
		{"rr", addr, "--time", "200ms", "--rate", "1000", "--json"},
		{"udp", addr, "--time", "20ms", "--request", "64", "--json"},
		{"udprr", addr, "--time", "20ms", "--json"},
		{"http", web, "--time", "20ms", "--json", "--response", "100", "--http-version", "2", "--host", "bench.example"},
		{"dns", names, "--time", "20ms", "--json", "--name", "web.bench.example", "--type", "A"},
	} {
		var out bytes.Buffer
		if err := Command(t.Context(), args, nil, &out); err != nil {
			t.Fatal(err)
		}
		var r Result
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Kind != args[0] || r.Bytes+r.Transactions == 0 {
			t.Errorf("%q: %v, %s", args, err, out.Bytes())
		}
	}
	var out bytes.Buffer
	if err := Command(t.Context(), []string{"rr", addr, "--time", "20ms"}, nil, &out); err != nil || !strings.Contains(out.String(), "p99") {
		t.Errorf("for people: %q, %v", out.String(), err)
	}
}

// The options made from Args are equal to the original options.
func TestArgs(t *testing.T) {
	for _, o := range []Options{{}, {
		Streams: 3, Time: time.Second, Direction: Both, Request: 4, Response: 5, Rate: 6, Name: "web.bench.example", QueryType: "AAAA",
		HTTP: HTTP{TLS: true, Version: "1.1", NoKeepAlive: true, Host: "bench.example"},
	}} {
		o, err := o.Complete()
		if err != nil {
			t.Fatal(err)
		}
		var again Options
		f := newFlags("")
		again.flags(f)
		if err := f.Parse(o.Args()); err != nil || again != o {
			t.Errorf("%+v became %+v, %v", o, again, err)
		}
	}
}

func TestCommandRefuses(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"", "usage"},
		{"sing", `unknown command "sing"`},
		{"stream", "expected the server's address"},
		{"stream 192.0.2.1:1 extra", `unexpected argument "extra"`},
		{"rr 192.0.2.1:1 --time soon", "invalid value"},
		{"rr 192.0.2.1:1 --streams -3", "expected 1 to 1024"},
		{"udp 192.0.2.1:1 --request 65508", "expected at most 65507"},
		{"http 192.0.2.1:1 --http-version 3", "expected 1.1 or 2"},
		{"serve --listen 127.0.0.1:0 --http nowhere", "nowhere"},
		{"serve extra", `unexpected argument "extra"`},
		{"serve --listen nowhere", "nowhere"},
	} {
		err := Command(t.Context(), strings.Fields(tt.args), strings.NewReader(""), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got error %v, want %q", tt.args, err, tt.want)
		}
	}
}

func TestServeCommandEndsWithInput(t *testing.T) {
	stdin, parent := io.Pipe()
	stdout, child := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- Command(context.Background(), []string{"serve", "--listen", "127.0.0.1:0", "--until-eof"}, stdin, child)
	}()
	line := make([]byte, 100)
	n, err := stdout.Read(line)
	if err != nil || !strings.HasPrefix(string(line[:n]), "listening on 127.0.0.1:") {
		t.Fatalf("got %q, %v", line[:n], err)
	}
	parent.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(await.Patience):
		t.Fatal("serve goes on without its parent")
	}
}
