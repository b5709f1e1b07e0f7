package programs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/test/freeport"
)

const mebibyte = 1 << 20

// installed reports whether a program is installed. Where it is missing, its command must say so.
func installed(t *testing.T, program, command string) bool {
	t.Helper()
	if _, err := Find(program); err == nil {
		return true
	}
	err := Command(t.Context(), []string{command, "192.0.2.1:1"}, nil, io.Discard)
	if m, ok := errors.AsType[*process.MissingError](err); !ok || m.Program != program || !strings.Contains(m.Package, program) {
		t.Errorf("%s is not installed: got %v", program, err)
	}
	return false
}

func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for program, command := range map[string]string{"iperf3": "iperf3", "wrk": "wrk"} {
		if installed(t, program, command) {
			t.Errorf("%s was found in an empty folder", program)
		}
	}
	if err := Command(t.Context(), []string{"iperf3-serve"}, nil, io.Discard); err == nil {
		t.Error("the server of a missing program was started")
	}
}

// iperf3Server runs an iperf3 server until the test ends.
func iperf3Server(t *testing.T) string {
	t.Helper()
	addr := fmt.Sprintf("127.0.0.1:%d", freeport.Of(t))
	stdin, parent := io.Pipe()
	stdout, child := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := Command(context.Background(), []string{"iperf3-serve", "--listen", addr, "--until-eof"}, stdin, child)
		child.CloseWithError(err)
		done <- err
	}()
	line := make([]byte, 100)
	if n, err := stdout.Read(line); err != nil || !strings.HasPrefix(string(line[:n]), "listening on 127.0.0.1:") {
		t.Fatalf("got %q, %v", line[:n], err)
	}
	t.Cleanup(func() {
		parent.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	return addr
}

func TestIPerf3(t *testing.T) {
	if !installed(t, "iperf3", "iperf3") {
		return
	}
	addr := iperf3Server(t)
	for _, args := range [][]string{
		{"iperf3", addr, "--json", "--time", "1s", "--streams", "2", "--direction", "both"},
		{"iperf3-udp", addr, "--json", "--time", "1s", "--request", "1372", "--rate", "1000"},
	} {
		var out bytes.Buffer
		if err := Command(t.Context(), args, nil, &out); err != nil {
			t.Fatal(err)
		}
		var r load.Result
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Kind != args[0] || r.Bytes < mebibyte || r.BitsPerSecond <= 0 {
			t.Errorf("%q: %v, %s", args, err, out.Bytes())
		}
		if r.Sent > 0 && (r.Sent != r.Transactions+r.Lost || r.Bytes != 1372*r.Transactions || r.PerSecond <= 0) {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if _, err := iperf3TCP(t.Context(), "127.0.0.1:1", load.Options{}); err == nil || !strings.Contains(err.Error(), "unable to connect") {
		t.Errorf("without server: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := iperf3TCP(ctx, addr, load.Options{Time: time.Hour}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

func TestWrk(t *testing.T) {
	if !installed(t, "wrk", "wrk") {
		return
	}
	s, err := load.Listen(t.Context(), "127.0.0.1:0", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	}()
	web := s.HTTPAddr().String()
	var out bytes.Buffer
	if err := Command(t.Context(), []string{"wrk", web, "--json", "--time", "1s", "--streams", "2", "--response", "1024", "--host", "bench.example"}, nil, &out); err != nil {
		t.Fatal(err)
	}
	var r load.Result
	l := &load.Latency{}
	if err := json.Unmarshal(out.Bytes(), &r); err == nil && r.Latency != nil {
		l = r.Latency
	}
	if r.Kind != "wrk" || r.Transactions == 0 || r.PerSecond <= 0 ||
		l.Min <= 0 || l.Min > l.P50 || l.P50 > l.P90 || l.P90 > l.P99 || l.P99 > l.P999 || l.P999 > l.Max || l.Max > int64(2*time.Second) {
		t.Errorf("%s", out.Bytes())
	}
	if _, err := wrk(t.Context(), web, load.Options{Time: time.Second, Response: 1<<20 + 1}); err == nil || !strings.Contains(err.Error(), "expected at most") {
		t.Errorf("got %v", err)
	}
	// The load generator's server answers this path with 404.
	if _, err := wrk(t.Context(), web+"/elsewhere", load.Options{Time: time.Second}); err == nil || !strings.Contains(err.Error(), "another status") {
		t.Errorf("got %v", err)
	}
}

func TestOptionsThatProgramsLack(t *testing.T) {
	for _, tt := range []struct {
		measure load.Measurement
		o       load.Options
	}{
		{iperf3TCP, load.Options{Rate: 1}},
		{iperf3UDP, load.Options{Direction: load.Down}},
		{wrk, load.Options{Rate: 1}},
		{wrk, load.Options{HTTP: load.HTTP{TLS: true}}},
		{wrk, load.Options{HTTP: load.HTTP{Version: "2"}}},
		{wrk, load.Options{HTTP: load.HTTP{NoKeepAlive: true}}},
	} {
		if _, err := tt.measure(t.Context(), "192.0.2.1:1", tt.o); err == nil || !strings.Contains(err.Error(), "cannot measure with") {
			t.Errorf("%+v: got %v", tt.o, err)
		}
	}
}

func TestParseIPerf3(t *testing.T) {
	o := load.Options{Streams: 1, Request: 100, Time: 1500 * time.Millisecond, Direction: load.Up}
	both := o
	both.Direction = load.Both
	for name, tt := range map[string]struct {
		out, fails string
		read       func(ending) (load.Result, error)
		bytes      uint64
	}{
		"tcp": {
			out:  `{"end": {"sum_received": {"bytes": 1000, "bits_per_second": 8}}}`,
			read: func(e ending) (load.Result, error) { return e.tcp(o) }, bytes: 1000,
		},
		"both ways": {
			out:  `{"end": {"sum_received": {"bytes": 1000}, "sum_received_bidir_reverse": {"bytes": 7}}}`,
			read: func(e ending) (load.Result, error) { return e.tcp(both) }, bytes: 1007,
		},
		"only one way": {
			out:  `{"end": {"sum_received": {"bytes": 1000}}}`,
			read: func(e ending) (load.Result, error) { return e.tcp(both) }, fails: "nothing was received",
		},
		"udp": {
			out:  `{"end": {"sum": {"seconds": 1, "packets": 10, "lost_packets": 4}}}`,
			read: func(e ending) (load.Result, error) { return e.udp(o) }, bytes: 600,
		},
		"udp, more than none lost": {
			out:  `{"end": {"sum": {"seconds": 1, "packets": 10, "lost_packets": -1}}}`,
			read: func(e ending) (load.Result, error) { return e.udp(o) }, bytes: 1000,
		},
		"udp, all lost": {
			out:  `{"end": {"sum": {"seconds": 1, "packets": 10, "lost_packets": 10}}}`,
			read: func(e ending) (load.Result, error) { return e.udp(o) }, fails: "nothing was received",
		},
		"nothing": {
			out: `{"end": {}}`, read: func(e ending) (load.Result, error) { return e.tcp(o) }, fails: "nothing was received",
		},
		"said why":    {out: `{"end": {}, "error": "the server is busy"}`, fails: "iperf3: the server is busy"},
		"not numbers": {out: `{"end": {"sum": {"seconds": -nan}}}`, fails: "its JSON cannot be read"},
		"two at once": {out: `{"end": {}}` + "\n" + `{"end": {}}`, fails: "its JSON cannot be read"},
		"words":       {out: "iperf3: error", fails: "its JSON cannot be read"},
	} {
		end, err := parseIPerf3([]byte(tt.out))
		var r load.Result
		if err == nil && tt.read != nil {
			r, err = tt.read(end)
		}
		if r.Bytes != tt.bytes || (err != nil) != (tt.fails != "") || err != nil && !strings.Contains(err.Error(), tt.fails) {
			t.Errorf("%s: got %+v, %v; want %d bytes, %q", name, r, err, tt.bytes, tt.fails)
		}
		if err == nil && r.Seconds != 2 {
			t.Errorf("%s: %v s, want whole ones", name, r.Seconds)
		}
	}
}

func TestParseWrk(t *testing.T) {
	for out, fails := range map[string]string{
		"\nsummary " + `{"duration": 1000000, "requests": 5, "latency": {"p999": 3}}` + "\nmore": "",
		"\nsummary " + `{"duration": 1000000, "requests": 0}`:                                    "nothing was received",
		"\nsummary " + `{"duration": 1000000, "requests": 5, "errors": {"timeout": 1}}`:          "1 timed out",
		"\nsummary " + `{"duration": nan}`:                                                       "cannot be read",
		"unable to connect":                                                                      "expected the summary",
	} {
		s, err := parseWrk([]byte(out))
		var r load.Result
		if err == nil {
			r, err = s.result(load.Options{Streams: 1, Time: time.Second})
		}
		if (err != nil) != (fails != "") || err != nil && !strings.Contains(err.Error(), fails) {
			t.Errorf("%q: got %v, want %q", out, err, fails)
		}
		if err == nil && (r.PerSecond != 5 || r.Latency.P999 != 3000) {
			t.Errorf("%q: %+v", out, r)
		}
	}
}

func TestCommandRefuses(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"", "expected one of"},
		{"sing", `unknown command "sing"`},
		{"iperf3-serve extra", `unexpected argument "extra"`},
		{"iperf3-serve --listen nowhere", "nowhere"},
		{"wrk", "expected the server's address"},
	} {
		err := Command(t.Context(), strings.Fields(tt.args), strings.NewReader(""), io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got error %v, want %q", tt.args, err, tt.want)
		}
	}
}
