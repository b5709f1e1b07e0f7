package load

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"tapestry.dev/tapestry/bench/load/pace"
)

// Stream sends as fast as TCP allows.
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

// RequestResponse sends requests and reads responses on connections that stay open. Each connection has one request at
// a time.
func RequestResponse(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := completeMessages(o)
	if err != nil {
		return Result{}, err
	}
	conns, err := dialAll(ctx, addr, o.Streams)
	if err != nil {
		return Result{}, fmt.Errorf("load: request-response: %w", err)
	}
	defer closeAll(conns)
	loop := pace.Start(o.Time, o.Rate)
	err = together(ctx, conns, func(ctx context.Context, _ int, c net.Conn) error {
		if err := c.SetDeadline(loop.Cutoff); err != nil {
			return err
		}
		request, response := make([]byte, o.Request), make([]byte, o.Response)
		greeting := hello{kind: exchange, request: uint32(o.Request), response: uint32(o.Response)}
		if _, err := c.Write(greeting.append(nil)); err != nil {
			return err
		}
		return loop.Stream(ctx, func() error {
			if _, err := c.Write(request); err != nil {
				return err
			}
			_, err := io.ReadFull(c, response)
			return err
		})
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: request-response: %w", err)
	}
	return transactions("rr", o, loop.Tally())
}

// ConnectRequestClose makes a connection for every request, and waits until the server has closed it.
func ConnectRequestClose(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := completeMessages(o)
	if err != nil {
		return Result{}, err
	}
	loop := pace.Start(o.Time, o.Rate)
	err = inParallel(ctx, o.Streams, func(ctx context.Context, _ int) error {
		return loop.Stream(ctx, func() error { return oneRequest(ctx, addr, o, loop.Cutoff) })
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: connect-request-close: %w", err)
	}
	return transactions("crr", o, loop.Tally())
}

// completeMessages fills in o's defaults for messages over TCP.
func completeMessages(o Options) (Options, error) {
	o, err := o.Complete()
	if err != nil {
		return o, err
	}
	return o.messages(1, maxMessage)
}

func oneRequest(ctx context.Context, addr string, o Options, deadline time.Time) error {
	c, err := (&net.Dialer{Deadline: deadline}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(deadline); err != nil {
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

// dialAll makes n connections. The caller closes them.
func dialAll(ctx context.Context, addr string, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, 0, n)
	for range n {
		c, err := (&net.Dialer{Timeout: grace}).DialContext(ctx, "tcp", addr)
		if err != nil {
			closeAll(conns)
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		c.Close()
	}
}

// onConns makes n connections and, when all of them are there, calls f for all of them concurrently.
func onConns(ctx context.Context, addr string, n int, f func(i int, c net.Conn) error) error {
	conns, err := dialAll(ctx, addr, n)
	if err != nil {
		return err
	}
	defer closeAll(conns)
	return together(ctx, conns, func(_ context.Context, i int, c net.Conn) error { return f(i, c) })
}

// together calls f for all connections concurrently. When one call fails or ctx ends, it closes the connections.
func together(ctx context.Context, conns []net.Conn, f func(ctx context.Context, i int, c net.Conn) error) error {
	return inParallel(ctx, len(conns), func(ctx context.Context, i int) error {
		defer context.AfterFunc(ctx, func() { conns[i].Close() })()
		return f(ctx, i, conns[i])
	})
}

// inParallel calls f for 0 to n-1 concurrently, and returns the first error. f's context ends with the first error and
// with ctx.
func inParallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for i := range n {
		group.Go(func() error { return f(groupCtx, i) })
	}
	err := group.Wait()
	return cmp.Or(ctx.Err(), err) // a cancelled measurement fails as cancelled, not for its closed connections
}
