package load

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"tapestry.dev/tapestry/bench/load/datagram"
	"tapestry.dev/tapestry/bench/load/pace"
)

// lossTimeout is how long a datagram waits for its answer before it counts as lost.
const lossTimeout = 500 * time.Millisecond

// Datagrams sends packets of Request bytes of payload one way over UDP, at Rate or as fast as the kernel takes them,
// and counts what the server received. Without a Rate more is sent than gets through, so the result is how many packets
// get through.
func Datagrams(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := completeDatagrams(o)
	if err != nil {
		return Result{}, err
	}
	sent, reports := make([]uint64, o.Streams), make([]datagram.Report, o.Streams)
	err = onDatagramStreams(ctx, addr, hello{kind: datagrams}, o.Streams, func(_ context.Context, i int, s datagramStream) error {
		end := time.Now().Add(o.Time)
		if err := cmp.Or(s.SetWriteDeadline(end), s.control.SetDeadline(end.Add(grace))); err != nil {
			return err
		}
		sender := datagram.NewSender(s.UDPConn, s.id, o.Request)
		if err := flood(sender, i, o, end); err != nil {
			return err
		}
		sent[i] = sender.Sent()
		if _, err := s.control.Write(binary.BigEndian.AppendUint64(nil, sent[i])); err != nil {
			return err
		}
		var err error
		reports[i], err = datagram.ReadReport(s.control)
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: datagrams: %w", err)
	}
	r := Result{Kind: "udp", Streams: o.Streams, Seconds: o.Time.Seconds(), Rate: o.Rate}
	for i, got := range reports {
		r.Sent += sent[i]
		r.Transactions += got.Packets
		r.Bytes += got.Bytes
		r.Reordered += got.Reordered
		r.Duplicates += got.Duplicates
		if got.Elapsed > 0 {
			r.PerSecond += float64(got.Packets) / got.Elapsed.Seconds()
			r.BitsPerSecond += float64(got.Bytes) * 8 / got.Elapsed.Seconds()
		}
	}
	if r.Transactions == 0 {
		return Result{}, fmt.Errorf("load: none of %d datagrams arrived: expected UDP to reach the same server as TCP", r.Sent)
	}
	r.Lost = r.Sent - min(r.Sent, r.Transactions)
	return r, nil
}

// flood sends stream i's datagrams until end. With a Rate, every Streams-th packet of the schedule is stream i's.
func flood(sender *datagram.Sender, i int, o Options, end time.Time) error {
	if o.Rate == 0 {
		for time.Now().Before(end) {
			if err := sender.Send(datagram.Batch); err != nil {
				return unlessDeadline(err)
			}
		}
		return nil
	}
	timer, err := pace.NewTimer()
	if err != nil {
		return err
	}
	defer timer.Close()
	due := func(n int) time.Duration { // when the n-th from now is due
		return pace.Offset((sender.Sent()+uint64(n))*uint64(o.Streams)+uint64(i), o.Rate)
	}
	for start := end.Add(-o.Time); due(0) < o.Time; {
		elapsed, n := time.Since(start), 0
		for n < datagram.Batch && due(n) <= elapsed && due(n) < o.Time {
			n++
		}
		switch {
		case n > 0:
			err = sender.Send(n)
		case elapsed >= o.Time:
			return nil
		default:
			err = timer.Wait(due(0) - elapsed)
		}
		if err != nil {
			return unlessDeadline(err)
		}
	}
	return nil
}

// unlessDeadline returns err, or nil when err says that the time is up.
func unlessDeadline(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// DatagramResponse sends requests and waits for responses over UDP, one at a time on each of Streams sockets. A request
// without a response within 500 ms is lost; it counts with that time.
func DatagramResponse(ctx context.Context, addr string, o Options) (Result, error) {
	o, err := completeDatagrams(o)
	if err != nil {
		return Result{}, err
	}
	var loop *pace.Loop
	lost := make([]uint64, o.Streams)
	begin := sync.OnceFunc(func() { loop = pace.Start(o.Time, o.Rate) })
	greeting := hello{kind: datagramExchange, request: uint32(o.Request), response: uint32(o.Response)}
	err = onDatagramStreams(ctx, addr, greeting, o.Streams, func(ctx context.Context, i int, s datagramStream) error {
		begin()
		a := asker{c: s.UDPConn, id: s.id, cutoff: loop.Cutoff, request: make([]byte, o.Request), response: make([]byte, datagram.MaxLen)}
		err := loop.Stream(ctx, func() error { return a.ask(o.Response) })
		lost[i] = a.lost
		return err
	})
	if err != nil {
		return Result{}, fmt.Errorf("load: datagram request-response: %w", err)
	}
	r, err := transactions("udprr", o, loop.Tally())
	for _, n := range lost {
		r.Lost += n
	}
	return r, err
}

// asker is one socket of a request-response.
type asker struct {
	c                 *net.UDPConn
	id, sequence      uint64
	cutoff            time.Time
	request, response []byte
	lost              uint64
}

// ask does one transaction. It ignores answers to earlier requests, which come late or twice.
func (a *asker) ask(size int) error {
	a.sequence++
	want := datagram.Header{Stream: a.id, Sequence: a.sequence}
	want.Put(a.request)
	deadline := time.Now().Add(lossTimeout)
	if deadline.After(a.cutoff) {
		deadline = a.cutoff
	}
	if err := a.c.SetReadDeadline(deadline); err != nil {
		return err
	}
	if _, err := a.c.Write(a.request); err != nil {
		return err
	}
	for {
		n, err := a.c.Read(a.response)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			a.lost++
			return pace.ErrUnanswered
		} else if err != nil {
			return err
		}
		if got, ok := datagram.ParseHeader(a.response[:n]); ok && got == want {
			if n != size {
				return fmt.Errorf("expected an answer of %d bytes, got %d", size, n)
			}
			return nil
		}
	}
}

func completeDatagrams(o Options) (Options, error) {
	o, err := o.Complete()
	if err != nil {
		return o, err
	}
	return o.messages(datagram.HeaderLen, datagram.MaxLen)
}

// datagramStream is a stream that the server knows.
type datagramStream struct {
	*net.UDPConn
	control net.Conn
	id      uint64
}

// onDatagramStreams opens n streams with h and, when all of them are open, calls f for all of them concurrently. The
// control connections use TCP, so that only the measured packets can be lost.
func onDatagramStreams(ctx context.Context, addr string, h hello, n int, f func(context.Context, int, datagramStream) error) error {
	controls, err := dialAll(ctx, addr, n)
	if err != nil {
		return err
	}
	defer closeAll(controls)
	conns, streams := make([]net.Conn, n), make([]datagramStream, n)
	for i, control := range controls {
		s, err := openDatagramStream(ctx, control, h)
		if err != nil {
			closeAll(conns[:i])
			return err
		}
		conns[i], streams[i] = s, s
	}
	defer closeAll(conns)
	return together(ctx, conns, func(ctx context.Context, i int, _ net.Conn) error {
		defer context.AfterFunc(ctx, func() { controls[i].Close() })()
		return f(ctx, i, streams[i])
	})
}

func openDatagramStream(ctx context.Context, control net.Conn, h hello) (datagramStream, error) {
	if err := control.SetDeadline(time.Now().Add(grace)); err != nil {
		return datagramStream{}, err
	}
	var id [8]byte
	if _, err := control.Write(h.append(nil)); err != nil {
		return datagramStream{}, err
	}
	if _, err := io.ReadFull(control, id[:]); err != nil {
		return datagramStream{}, fmt.Errorf("read the stream's number: %w", err)
	}
	// The stream uses the address that TCP reached, since a name may have several.
	c, err := new(net.Dialer).DialContext(ctx, "udp", control.RemoteAddr().String())
	if err != nil {
		return datagramStream{}, err
	}
	udp := c.(*net.UDPConn)
	datagram.SetBuffers(udp)
	return datagramStream{udp, control, binary.BigEndian.Uint64(id[:])}, nil
}
