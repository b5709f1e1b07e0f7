package load

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const usage = `usage:
  serve [--listen ADDR:PORT]                             answer all of the following, until interrupted
  stream ADDR:PORT [--direction up|down|both] [options]  throughput
  rr ADDR:PORT [options]                                 request-response, on connections that stay open
  crr ADDR:PORT [options]                                connect, request, response, close
options: --streams N --time 2s --json; rr, crr: --request BYTES --response BYTES`

// Command is the main function of the load generator. args do not include the program's name.
func Command(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	name, args := args[0], args[1:]
	switch name {
	case "serve":
		return serveCommand(ctx, args, stdin, stdout)
	case "stream":
		return measureCommand(ctx, Stream, args, stdout)
	case "rr":
		return measureCommand(ctx, RequestResponse, args, stdout)
	case "crr":
		return measureCommand(ctx, ConnectRequestClose, args, stdout)
	}
	return fmt.Errorf("unknown command %q\n%s", name, usage)
}

func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard) // Command's error says it
	return f
}

func serveCommand(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	f := newFlags("serve")
	listen := f.String("listen", ":5201", "")
	untilEOF := f.Bool("until-eof", false, "end with the standard input")
	if err := f.Parse(args); err != nil || f.NArg() > 0 {
		return fmt.Errorf("serve: %w\n%s", badArguments(f, err), usage)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if *untilEOF {
		go func() {
			io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "listening on %s\n", l.Addr())
	return Serve(ctx, l)
}

type measurement func(context.Context, string, Options) (Result, error)

func measureCommand(ctx context.Context, measure measurement, args []string, stdout io.Writer) error {
	var o Options
	f := newFlags("")
	f.IntVar(&o.Streams, "streams", 0, "")
	f.DurationVar(&o.Time, "time", 0, "")
	f.StringVar((*string)(&o.Direction), "direction", "", "")
	f.IntVar(&o.Request, "request", 0, "")
	f.IntVar(&o.Response, "response", 0, "")
	asJSON := f.Bool("json", false, "")
	var addr string
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		addr, args = args[0], args[1:]
	}
	err := f.Parse(args)
	if addr == "" && f.NArg() == 1 {
		addr = f.Arg(0)
	} else if f.NArg() > 0 {
		err = badArguments(f, err)
	}
	if err == nil && addr == "" {
		err = errors.New("expected the server's address")
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, usage)
	}
	result, err := measure(ctx, addr, o)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(stdout).Encode(result)
	}
	_, err = fmt.Fprintln(stdout, result)
	return err
}

func badArguments(f *flag.FlagSet, err error) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("unexpected argument %q", f.Arg(0))
}

// Args are the arguments of a measurement's command that make o again.
func (o Options) Args() []string {
	return []string{
		"--streams", fmt.Sprint(o.Streams), "--time", o.Time.String(), "--direction", string(o.Direction),
		"--request", fmt.Sprint(o.Request), "--response", fmt.Sprint(o.Response),
	}
}

// String is a line for people.
func (r Result) String() string {
	if r.Latency == nil {
		return fmt.Sprintf("%s %s: %.3f Gbit/s, %d bytes in %gs, %d streams",
			r.Kind, r.Direction, r.BitsPerSecond/1e9, r.Bytes, r.Seconds, r.Streams)
	}
	l := r.Latency
	us := func(ns int64) time.Duration { return time.Duration(ns).Round(100 * time.Nanosecond) }
	return fmt.Sprintf("%s: %.0f/s, p50 %v p90 %v p99 %v p99.9 %v max %v, %d streams",
		r.Kind, r.PerSecond, us(l.P50), us(l.P90), us(l.P99), us(l.P999), us(l.Max), r.Streams)
}
