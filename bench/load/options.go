package load

import (
	"cmp"
	"flag"
	"fmt"
	"time"
)

// Direction is the direction of a stream, seen from the client.
type Direction string

// The directions. Both doubles the number of streams: as many in each direction, at the same time.
const (
	Up   Direction = "up"
	Down Direction = "down"
	Both Direction = "both"
)

// Options are the options of a measurement. Zero fields take the defaults.
type Options struct {
	// Streams is how many connections, sockets (DNS), or HTTP requests are under way at once, 1 to 1024. The default is
	// 1.
	Streams   int
	Time      time.Duration // up to an hour; the default is 2 s
	Direction Direction     // only for Stream; the default is Up
	// Request and Response are message sizes in bytes, up to 1 MiB; at least 1, over UDP 16 (a header) to 65507. Stream
	// does not use them. For HTTP, Response is the size of the body, and may be 0. For Datagrams, Request is the
	// payload of a packet.
	Request, Response int
	// Rate is how many transactions (Datagrams: packets) per second all streams together begin, up to 10 million. They
	// begin on schedule whatever comes back: an open loop, see package pace. With 0 each stream waits for its last
	// transaction, or sends as fast as it can.
	Rate int
	HTTP HTTP
	// Name is what DNSQueries asks for. QueryType is A, the default, or AAAA.
	Name, QueryType string
}

// HTTP has the options of HTTP measurements alone.
type HTTP struct {
	// TLS does not verify the server's certificate: this is a benchmark.
	TLS bool
	// Version is "1.1", the default, or "2". With TLS, HTTP/2 is negotiated by ALPN; without TLS the client uses it
	// with prior knowledge (h2c). Over HTTP/1.1 each stream has a connection of its own. Over HTTP/2 all streams share
	// one, as usual.
	Version string
	// NoKeepAlive makes a connection for every request. HTTP/1.1 only.
	NoKeepAlive bool
	// Host is the Host header, and the name in TLS's SNI. The default is the server's address.
	Host string
}

// Complete fills in the defaults that do not depend on the measurement. Its error names the field that is out of range.
func (o Options) Complete() (Options, error) {
	o.Streams = cmp.Or(o.Streams, 1)
	o.Time = cmp.Or(o.Time, 2*time.Second)
	o.Direction = cmp.Or(o.Direction, Up)
	o.HTTP.Version = cmp.Or(o.HTTP.Version, "1.1")
	o.QueryType = cmp.Or(o.QueryType, "A")
	switch {
	case o.Streams < 1 || o.Streams > maxStreams:
		return o, fmt.Errorf("load: %d streams: expected 1 to %d", o.Streams, maxStreams)
	case o.Time < time.Millisecond || o.Time > maxDuration:
		return o, fmt.Errorf("load: time %v: expected 1ms to %v", o.Time, maxDuration)
	case o.Direction != Up && o.Direction != Down && o.Direction != Both:
		return o, fmt.Errorf("load: direction %q: expected up, down or both", o.Direction)
	case o.Request < 0 || o.Request > maxMessage || o.Response < 0 || o.Response > maxMessage:
		return o, fmt.Errorf("load: messages of %d and %d bytes: expected at most %d", o.Request, o.Response, maxMessage)
	case o.Rate < 0 || o.Rate > maxRate:
		return o, fmt.Errorf("load: rate %d per second: expected 0 to %d", o.Rate, maxRate)
	case o.HTTP.Version != "1.1" && o.HTTP.Version != "2":
		return o, fmt.Errorf("load: HTTP version %q: expected 1.1 or 2", o.HTTP.Version)
	case o.HTTP.Version == "2" && o.HTTP.NoKeepAlive:
		return o, fmt.Errorf("load: HTTP/2 without keep-alive: expected HTTP version 1.1, whose requests may have a connection each")
	case o.QueryType != "A" && o.QueryType != "AAAA":
		return o, fmt.Errorf("load: query type %q: expected A or AAAA", o.QueryType)
	}
	return o, nil
}

// messages fills in the message sizes for a protocol whose messages have least to most bytes.
func (o Options) messages(least, most int) (Options, error) {
	o.Request, o.Response = max(o.Request, least), max(o.Response, least)
	if o.Request > most || o.Response > most {
		return o, fmt.Errorf("load: messages of %d and %d bytes: expected at most %d", o.Request, o.Response, most)
	}
	return o, nil
}

// flags registers a command-line flag for each of o's fields.
func (o *Options) flags(f *flag.FlagSet) {
	f.IntVar(&o.Streams, "streams", 0, "")
	f.DurationVar(&o.Time, "time", 0, "")
	f.StringVar((*string)(&o.Direction), "direction", "", "")
	f.IntVar(&o.Request, "request", 0, "")
	f.IntVar(&o.Response, "response", 0, "")
	f.IntVar(&o.Rate, "rate", 0, "")
	f.BoolVar(&o.HTTP.TLS, "tls", false, "")
	f.StringVar(&o.HTTP.Version, "http-version", "", "")
	f.BoolVar(&o.HTTP.NoKeepAlive, "no-keep-alive", false, "")
	f.StringVar(&o.HTTP.Host, "host", "", "")
	f.StringVar(&o.Name, "name", "", "")
	f.StringVar(&o.QueryType, "type", "", "")
}

// Args returns the command-line arguments from which a measurement's command makes o again.
func (o Options) Args() []string {
	return []string{
		"--streams", fmt.Sprint(o.Streams), "--time", o.Time.String(), "--direction", string(o.Direction),
		"--request", fmt.Sprint(o.Request), "--response", fmt.Sprint(o.Response), "--rate", fmt.Sprint(o.Rate),
		fmt.Sprintf("--tls=%t", o.HTTP.TLS), "--http-version", o.HTTP.Version,
		fmt.Sprintf("--no-keep-alive=%t", o.HTTP.NoKeepAlive), "--host", o.HTTP.Host,
		"--name", o.Name, "--type", o.QueryType,
	}
}
