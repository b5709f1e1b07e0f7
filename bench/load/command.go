package load

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"tapestry.dev/tapestry/bench/process"
)

const usage = `usage:
  serve [--listen ADDR:PORT] [--http ADDR:PORT]          answer all of the following but dns, until interrupted
  stream ADDR:PORT [--direction up|down|both] [options]  throughput of TCP
  rr ADDR:PORT [options]                                 request-response over TCP, on connections that stay open
  crr ADDR:PORT [options]                                connect, request, response, close
  udp ADDR:PORT [options]                                datagrams of --request bytes one way, counted where they arrive
  udprr ADDR:PORT [options]                              request-response over UDP
  http ADDR:PORT [options]                               GET /bytes/RESPONSE; also: --tls (the certificate is not verified),
                                                         --http-version 1.1|2, --no-keep-alive, --host NAME
  dns ADDR:PORT --name NAME [--type A|AAAA] [options]    queries over UDP
  iperf3|iperf3-udp|wrk ADDR:PORT [options]              stream, udp and http as these programs measure them, where installed
  iperf3-serve [--listen ADDR:PORT]                      iperf3's server
options: --streams N --time 2s --json; all but stream, dns: --request BYTES --response BYTES; all but stream: --rate N
--rate: N transactions (udp: packets) are due per second whatever comes back; their time counts from when they were due`

// measurements are the commands that measure.
var measurements = map[string]Measurement{
	"stream": Stream, "rr": RequestResponse, "crr": ConnectRequestClose, "udp": Datagrams, "udprr": DatagramResponse,
	"http": HTTPRequests, "dns": DNSQueries,
}

// Commands are the names that Command knows.
var Commands = append([]string{"serve"}, slices.Sorted(maps.Keys(measurements))...)

// Command is the main function of the load generator. args do not include the program's name.
func Command(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	name, args := args[0], args[1:]
	if name == "serve" {
		return serveCommand(ctx, args, stdin, stdout)
	}
	if measure, ok := measurements[name]; ok {
		return Measure(ctx, measure, args, stdout)
	}
	return fmt.Errorf("unknown command %q\n%s", name, usage)
}

func newFlags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard) // Command's error includes the usage
	return f
}

func serveCommand(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	f := newFlags("serve")
	listen := f.String("listen", ":5201", "")
	httpAddr := f.String("http", "", "")
	untilEOF := f.Bool("until-eof", false, "end with the standard input")
	if err := f.Parse(args); err != nil || f.NArg() > 0 {
		return fmt.Errorf("serve: %w\n%s", badArguments(f, err), usage)
	}
	if *untilEOF {
		var cancel context.CancelFunc
		ctx, cancel = process.UntilEOF(ctx, stdin)
		defer cancel()
	}
	s, err := Listen(ctx, *listen, *httpAddr)
	if err != nil {
		return err
	}
	on := s.Addr().String()
	if http := s.HTTPAddr(); http != nil {
		on += ", HTTP on " + http.String()
	}
	fmt.Fprintf(stdout, "listening on %s\n", on)
	return s.Serve(ctx)
}

// Measurement measures with the server at an address, as host:port.
type Measurement func(context.Context, string, Options) (Result, error)

// Measure is the main function of a command that measures. args are an address and flags for Options. Measure prints
// the Result, with --json as one JSON object.
func Measure(ctx context.Context, measure Measurement, args []string, stdout io.Writer) error {
	var o Options
	f := newFlags("")
	o.flags(f)
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
