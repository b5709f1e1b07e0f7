package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"
)

// Direction of a stream, seen from the client.
type Direction string

// The directions. Both are as many streams again, at the same time.
const (
	Up   Direction = "up"
	Down Direction = "down"
	Both Direction = "both"
)

// Options of a measurement. Zero fields take the defaults.
type Options struct {
	Streams   int           // connections at once, 1 to 1024; 1
	Time      time.Duration // up to an hour; 2 s
	Direction Direction     // Stream only; Up
	// Request and Response are message sizes in bytes, up to 1 MiB; 1. Not for Stream.
	Request, Response int
}

// Complete fills in the defaults, or says which field is out of range.
func (o Options) Complete() (Options, error) {
	o.Streams = cmp.Or(o.Streams, 1)
	o.Time = cmp.Or(o.Time, 2*time.Second)
	o.Direction = cmp.Or(o.Direction, Up)
	o.Request, o.Response = cmp.Or(o.Request, 1), cmp.Or(o.Response, 1)
	switch {
	case o.Streams < 1 || o.Streams > maxStreams:
		return o, fmt.Errorf("load: %d streams: expected 1 to %d", o.Streams, maxStreams)
	case o.Time < time.Millisecond || o.Time > maxDuration:
		return o, fmt.Errorf("load: time %v: expected 1ms to %v", o.Time, maxDuration)
	case o.Direction != Up && o.Direction != Down && o.Direction != Both:
		return o, fmt.Errorf("load: direction %q: expected up, down or both", o.Direction)
	case o.Request < 1 || o.Request > maxMessage || o.Response < 1 || o.Response > maxMessage:
		return o, fmt.Errorf("load: messages of %d and %d bytes: expected 1 to %d", o.Request, o.Response, maxMessage)
	}
	return o, nil
}

// Result of one measurement.
type Result struct {
	Kind    string  `json:"kind"` // stream, rr or crr
	Streams int     `json:"streams"`
	Seconds float64 `json:"seconds"` // as asked for
	// Bytes received, and the sum of the streams' rates; stream only.
	Direction     Direction `json:"direction,omitempty"`
	Bytes         uint64    `json:"bytes,omitempty"`
	BitsPerSecond float64   `json:"bits_per_second,omitempty"`
	// Transactions finished, and what one took; rr and crr only.
	Transactions uint64   `json:"transactions,omitempty"`
	PerSecond    float64  `json:"per_second,omitempty"`
	Latency      *Latency `json:"latency_ns,omitempty"`
}

// Latency is in nanoseconds, with three significant digits.
type Latency struct {
	Min  int64   `json:"min"`
	Mean float64 `json:"mean"`
	P50  int64   `json:"p50"`
	P90  int64   `json:"p90"`
	P99  int64   `json:"p99"`
	P999 int64   `json:"p99.9"`
	Max  int64   `json:"max"`
}

// Stream sends as fast as TCP lets it.
func Stream(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := o.Complete()
	if err != nil {
		return Result{}, err
	}
	var kinds []kind
	for range o.Streams {
		if o.Direction != Down {
			kinds = append(kinds, upload)
		}
		if o.Direction != Up {
			kinds = append(kinds, download)
		}
	}
	reports := make([]report, len(kinds))
	err = onConns(ctx, addr, len(kinds), func(i int, c net.Conn) (err error) {
		reports[i], err = stream(c, kinds[i], o.Time)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: stream: %w", err)
	}
	result := Result{Kind: "stream", Streams: o.Streams, Seconds: o.Time.Seconds(), Direction: o.Direction}
	for _, r := range reports {
		result.Bytes += r.bytes
		result.BitsPerSecond += r.bitsPerSecond()
	}
	return result, nil
}

func stream(c net.Conn, k kind, d time.Duration) (report, error) {
	if _, err := c.Write(hello{kind: k, duration: d}.append(nil)); err != nil {
		return report{}, err
	}
	if err := c.SetReadDeadline(time.Now().Add(d + grace)); err != nil {
		return report{}, err
	}
	if k == download {
		return receive(c)
	}
	if err := sendFor(c, d); err != nil {
		return report{}, err
	}
	return readReport(c)
}

// RequestResponse sends a request when the response to the one before has come, on connections that stay open.
func RequestResponse(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := o.Complete()
	if err != nil {
		return Result{}, err
	}
	times := newTimes(o.Streams)
	err = onConns(ctx, addr, o.Streams, func(i int, c net.Conn) error { return requests(c, o, times[i]) })
	if err != nil {
		return Result{}, fmt.Errorf("load: request-response: %w", err)
	}
	return latencies("rr", o, times)
}

func requests(c net.Conn, o Options, h *hdrhistogram.Histogram) error {
	start := time.Now()
	end := start.Add(o.Time)
	if err := c.SetDeadline(end.Add(grace)); err != nil {
		return err
	}
	request, response := make([]byte, o.Request), make([]byte, o.Response)
	greeting := hello{kind: exchange, request: uint32(o.Request), response: uint32(o.Response)}
	if _, err := c.Write(greeting.append(nil)); err != nil {
		return err
	}
	for t := start; t.Before(end); {
		if _, err := c.Write(request); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, response); err != nil {
			return err
		}
		now := time.Now()
		h.RecordValue(int64(now.Sub(t)))
		t = now
	}
	return nil
}

// ConnectRequestClose makes a connection for every request, and waits until the server has closed it.
func ConnectRequestClose(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := o.Complete()
	if err != nil {
		return Result{}, err
	}
	times := newTimes(o.Streams)
	group, groupCtx := errgroup.WithContext(ctx)
	end := time.Now().Add(o.Time)
	for i := range o.Streams {
		group.Go(func() error {
			for t := time.Now(); t.Before(end); {
				if err := oneRequest(groupCtx, addr, o); err != nil {
					return err
				}
				now := time.Now()
				times[i].RecordValue(int64(now.Sub(t)))
				t = now
			}
			return nil
		})
	}
	err = group.Wait()
	if err = cmp.Or(ctx.Err(), err); err != nil {
		return Result{}, fmt.Errorf("load: connect-request-close: %w", err)
	}
	return latencies("crr", o, times)
}

func oneRequest(ctx context.Context, addr string, o Options) error {
	c, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(grace)); err != nil {
		return err
	}
	message := hello{kind: exchangeOnce, request: uint32(o.Request), response: uint32(o.Response)}.append(nil)
	if _, err := c.Write(append(message, make([]byte, o.Request)...)); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, make([]byte, o.Response)); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return fmt.Errorf("expected the server to close, got %d bytes: %w", n, err)
	}
	return nil
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// onConns makes n connections and, when all are there, calls f with each at once.
func onConns(ctx context.Context, addr string, n int, f func(i int, c net.Conn) error) error {
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range n {
		c, err := dial(ctx, addr)
		if err != nil {
			return err
		}
		conns = append(conns, c)
	}
	group, groupCtx := errgroup.WithContext(ctx)
	for i, c := range conns {
		group.Go(func() error {
			defer context.AfterFunc(groupCtx, func() { c.Close() })()
			return f(i, c)
		})
	}
	err := group.Wait()
	return cmp.Or(ctx.Err(), err) // a cancelled measurement fails for that reason, not for its closed connections
}

// newTimes makes a histogram per connection: they are not safe for concurrent use.
func newTimes(n int) []*hdrhistogram.Histogram {
	times := make([]*hdrhistogram.Histogram, n)
	for i := range times {
		times[i] = hdrhistogram.New(1, int64(2*grace), 3)
	}
	return times
}

func latencies(kind string, o Options, times []*hdrhistogram.Histogram) (Result, error) {
	h := times[0]
	for _, other := range times[1:] {
		h.Merge(other)
	}
	if h.TotalCount() == 0 {
		return Result{}, errors.New("load: not one transaction was finished")
	}
	return Result{
		Kind: kind, Streams: o.Streams, Seconds: o.Time.Seconds(),
		Transactions: uint64(h.TotalCount()),
		PerSecond:    float64(h.TotalCount()) / o.Time.Seconds(),
		Latency: &Latency{
			Min: h.Min(), Mean: h.Mean(), Max: h.Max(),
			P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90), P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9),
		},
	}, nil
}
