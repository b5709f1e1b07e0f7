package programs

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/bench/load"
)

//go:embed wrk.lua
var wrkScript []byte

// wrk gets /bytes/Response over HTTP/1.1 with keep-alive, on Streams connections, in one thread.
func wrk(ctx context.Context, addr string, o load.Options) (load.Result, error) {
	o, err := o.Complete()
	if err != nil {
		return load.Result{}, err
	}
	switch {
	case o.Rate > 0:
		return load.Result{}, unsupported("wrk", "a rate")
	case o.HTTP.TLS:
		return load.Result{}, unsupported("wrk", "TLS (it sends no server name)")
	case o.HTTP.Version != "1.1":
		return load.Result{}, unsupported("wrk", "HTTP/2")
	case o.HTTP.NoKeepAlive:
		return load.Result{}, unsupported("wrk", "a connection per request")
	}
	script, err := memoryFile("wrk.lua", wrkScript)
	if err != nil {
		return load.Result{}, fmt.Errorf("wrk: write its script: %w", err)
	}
	defer script.Close()
	args := []string{
		"--threads", "1", "--connections", strconv.Itoa(o.Streams), "--duration", fmt.Sprintf("%ds", seconds(o.Time)),
		"--script", "/proc/self/fd/3",
	}
	if o.HTTP.Host != "" {
		args = append(args, "--header", "Host: "+o.HTTP.Host)
	}
	cmd, err := prepare(ctx, "wrk", append(args, fmt.Sprintf("http://%s/bytes/%d", addr, o.Response))...)
	if err != nil {
		return load.Result{}, err
	}
	cmd.ExtraFiles = []*os.File{script}
	out, err := output(ctx, cmd)
	if err != nil {
		return load.Result{}, err
	}
	s, err := parseWrk(out)
	if err != nil {
		return load.Result{}, err
	}
	return s.result(o)
}

// memoryFile makes a file without a name. wrk opens it several times, through its descriptor.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// summary is what the script prints. Its times are in microseconds.
type summary struct {
	Duration  float64 `json:"duration"`
	Requests  uint64  `json:"requests"`
	Latencies struct {
		Min, Mean, P50, P90, P99, P999, Max float64
	} `json:"latency"`
	Errors struct{ Connect, Read, Write, Status, Timeout uint64 } `json:"errors"`
}

func parseWrk(out []byte) (summary, error) {
	var s summary
	_, line, found := bytes.Cut(out, []byte("\nsummary "))
	if !found {
		return s, fmt.Errorf("wrk: expected the summary of its script, got %q", out)
	}
	line, _, _ = bytes.Cut(line, []byte("\n"))
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fmt.Errorf("wrk: its summary cannot be read: %w", err)
	}
	return s, nil
}

func (s summary) result(o load.Options) (load.Result, error) {
	switch e := s.Errors; {
	case e.Connect+e.Read+e.Write+e.Status+e.Timeout > 0:
		return load.Result{}, fmt.Errorf("wrk: %d connections and %d reads and %d writes failed, %d answers had another status than 2xx or 3xx, %d timed out",
			e.Connect, e.Read, e.Write, e.Status, e.Timeout)
	case s.Requests == 0 || s.Duration <= 0:
		return load.Result{}, fmt.Errorf("wrk: %w", errNothing)
	}
	ns := func(us float64) int64 { return int64(us * 1000) }
	l := s.Latencies
	return load.Result{
		Kind: "wrk", Streams: o.Streams, Seconds: float64(seconds(o.Time)),
		Transactions: s.Requests, PerSecond: float64(s.Requests) / (s.Duration / 1e6),
		Latency: &load.Latency{
			Min: ns(l.Min), Mean: l.Mean * 1000, P50: ns(l.P50), P90: ns(l.P90), P99: ns(l.P99), P999: ns(l.P999), Max: ns(l.Max),
		},
	}, nil
}
