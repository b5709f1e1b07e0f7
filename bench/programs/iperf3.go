package programs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"

	"tapestry.dev/tapestry/bench/load"
	"tapestry.dev/tapestry/bench/load/datagram"
	"tapestry.dev/tapestry/bench/process"
)

// iperf3TCP measures the throughput of TCP. addr is the address of an iperf3 server.
func iperf3TCP(ctx context.Context, addr string, o load.Options) (load.Result, error) {
	o, err := o.Complete()
	if err != nil {
		return load.Result{}, err
	}
	if o.Rate > 0 {
		return load.Result{}, unsupported("iperf3", "a rate")
	}
	var args []string
	switch o.Direction {
	case load.Down:
		args = []string{"--reverse"}
	case load.Both:
		args = []string{"--bidir"}
	}
	end, err := iperf3(ctx, addr, o, args...)
	if err != nil {
		return load.Result{}, err
	}
	return end.tcp(o)
}

// iperf3UDP sends packets of Request bytes of payload, as fast as the kernel takes them or at Rate per second over all
// streams.
func iperf3UDP(ctx context.Context, addr string, o load.Options) (load.Result, error) {
	o, err := o.Complete()
	if err != nil {
		return load.Result{}, err
	}
	if o.Direction != load.Up {
		return load.Result{}, unsupported("iperf3-udp", "another direction than up")
	}
	o.Request = max(o.Request, datagram.HeaderLen)
	// --bitrate is the rate of each stream; 0 means unlimited.
	bits := o.Rate * o.Request * 8 / o.Streams
	end, err := iperf3(ctx, addr, o, "--udp", "--length", strconv.Itoa(o.Request), "--bitrate", strconv.Itoa(bits))
	if err != nil {
		return load.Result{}, err
	}
	return end.udp(o)
}

// iperf3 runs iperf3's client.
func iperf3(ctx context.Context, addr string, o load.Options, args ...string) (ending, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return ending{}, fmt.Errorf("iperf3: %w", err)
	}
	cmd, err := prepare(ctx, "iperf3", append([]string{
		"--client", host, "--port", port, "--json", "--parallel", strconv.Itoa(o.Streams), "--time", strconv.Itoa(seconds(o.Time)),
	}, args...)...)
	if err != nil {
		return ending{}, err
	}
	out, err := output(ctx, cmd)
	if ctx.Err() != nil {
		return ending{}, ctx.Err()
	}
	end, unreadable := parseIPerf3(out)
	if err != nil && len(bytes.TrimSpace(out)) == 0 { // iperf3 ended before it wrote JSON
		return ending{}, err
	}
	return end, unreadable
}

// sum is what iperf3 says about all streams together, as one end counted it.
type sum struct {
	Seconds float64 `json:"seconds"`
	Bytes   uint64  `json:"bytes"`
	Bits    float64 `json:"bits_per_second"`
	Packets uint64  `json:"packets"`
	Lost    int64   `json:"lost_packets"` // reordered packets are subtracted again, sometimes too many
}

// ending is the "end" part of iperf3's JSON. For UDP, versions up to 3.11 have only sum, with the receiver's loss in
// it.
type ending struct {
	Received *sum `json:"sum_received"`
	Reverse  *sum `json:"sum_received_bidir_reverse"`
	Sum      *sum `json:"sum"`
}

func parseIPerf3(out []byte) (ending, error) {
	var document struct {
		Error string `json:"error"`
		End   ending `json:"end"`
	}
	if err := json.Unmarshal(out, &document); err != nil {
		return ending{}, fmt.Errorf("iperf3: its JSON cannot be read (%w): expected a version from 3.7 on whose --json works", err)
	}
	if document.Error != "" {
		return ending{}, fmt.Errorf("iperf3: %s", document.Error)
	}
	return document.End, nil
}

func (e ending) tcp(o load.Options) (load.Result, error) {
	if e.Received == nil || e.Received.Bytes == 0 || o.Direction == load.Both && e.Reverse == nil {
		return load.Result{}, fmt.Errorf("iperf3: %w", errNothing)
	}
	r := load.Result{
		Kind: "iperf3", Streams: o.Streams, Seconds: float64(seconds(o.Time)), Direction: o.Direction,
		Bytes: e.Received.Bytes, BitsPerSecond: e.Received.Bits,
	}
	if o.Direction == load.Both {
		r.Bytes += e.Reverse.Bytes
		r.BitsPerSecond += e.Reverse.Bits
	}
	return r, nil
}

func (e ending) udp(o load.Options) (load.Result, error) {
	if e.Sum == nil || e.Sum.Seconds <= 0 {
		return load.Result{}, fmt.Errorf("iperf3-udp: %w", errNothing)
	}
	// Packets counts the packets that were sent.
	lost := uint64(max(e.Sum.Lost, 0))
	received := e.Sum.Packets - min(lost, e.Sum.Packets)
	if received == 0 {
		return load.Result{}, fmt.Errorf("iperf3-udp: %w", errNothing)
	}
	return load.Result{
		Kind: "iperf3-udp", Streams: o.Streams, Seconds: float64(seconds(o.Time)), Rate: o.Rate,
		Sent: e.Sum.Packets, Lost: lost, Transactions: received, PerSecond: float64(received) / e.Sum.Seconds,
		Bytes: received * uint64(o.Request), BitsPerSecond: float64(received*uint64(o.Request)) * 8 / e.Sum.Seconds,
	}, nil
}

// serveIPerf3 runs the server until ctx or, with --until-eof, the standard input ends. It prints a line when the server
// listens.
func serveIPerf3(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	f := flag.NewFlagSet(serveCommand, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	listen := f.String("listen", ":5202", "")
	untilEOF := f.Bool("until-eof", false, "")
	if err := f.Parse(args); err != nil {
		return fmt.Errorf("%s: %w", serveCommand, err)
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%s: unexpected argument %q", serveCommand, f.Arg(0))
	}
	host, port, err := net.SplitHostPort(*listen)
	if err != nil {
		return fmt.Errorf("%s: %w", serveCommand, err)
	}
	if *untilEOF {
		var cancel context.CancelFunc
		ctx, cancel = process.UntilEOF(ctx, stdin)
		defer cancel()
	}
	options := []string{"--server", "--port", port, "--forceflush"}
	if host != "" {
		options = append(options, "--bind", host)
	}
	cmd, err := prepare(ctx, "iperf3", options...)
	if err != nil {
		return err
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	said, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	runtime.LockOSThread() // the end of the thread would end the server
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "Server listening on") {
			fmt.Fprintf(stdout, "listening on %s\n", *listen)
			break
		}
	}
	io.Copy(io.Discard, said)
	err = cmd.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("iperf3 ended by itself: %w", errors.Join(err, errors.New(strings.TrimSpace(stderr.String()))))
}
