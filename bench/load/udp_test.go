package load

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"tapestry.dev/tapestry/bench/load/datagram"
	"tapestry.dev/tapestry/test/await"
)

func TestDatagrams(t *testing.T) {
	addr := server(t)
	for _, o := range []Options{{}, {Streams: 3, Request: 1372}, {Request: 9000, Rate: 5000}, {Streams: 3, Request: 64, Rate: 5000}} {
		o.Time = short20
		r, err := Datagrams(t.Context(), addr, o)
		if err != nil {
			t.Fatal(err)
		}
		size := uint64(max(o.Request, datagram.HeaderLen))
		if r.Kind != "udp" || r.Transactions == 0 || r.Sent != r.Transactions+r.Lost || r.Bytes != size*r.Transactions || r.PerSecond <= 0 || r.BitsPerSecond <= 0 {
			t.Errorf("%+v: %+v", o, r)
		}
		// No packet is sent before it is due. A busy machine may leave some unsent at the end.
		if want := uint64(o.Rate) * uint64(o.Time) / uint64(time.Second); o.Rate > 0 && r.Sent > want {
			t.Errorf("%+v: %d sent, expected at most %d", o, r.Sent, want)
		}
	}
}

// lossy forwards UDP to the server at addr but drops every 10th datagram in each direction. It forwards all of TCP.
func lossy(t *testing.T, addr string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	packets, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	behind, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var client net.Addr // one client at a time; it sends first
	known := make(chan struct{})
	pass := func(read func([]byte) (int, error), write func([]byte) (int, error)) {
		b := make([]byte, datagram.MaxLen)
		for i := 1; ; i++ {
			n, err := read(b)
			if err != nil {
				return
			}
			if i%10 != 0 {
				write(b[:n])
			}
		}
	}
	go pass(func(b []byte) (int, error) {
		n, from, err := packets.ReadFrom(b)
		if client == nil && err == nil {
			client = from
			close(known)
		}
		return n, err
	}, behind.Write)
	go pass(behind.Read, func(b []byte) (int, error) {
		<-known
		return packets.WriteTo(b, client)
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", addr)
			if err != nil {
				c.Close()
				return
			}
			go func() { io.Copy(s, c); s.Close() }()
			go func() { io.Copy(c, s); c.Close() }()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		packets.Close()
		behind.Close()
	})
	return l.Addr().String()
}

func TestDatagramsCountLoss(t *testing.T) {
	r, err := Datagrams(t.Context(), lossy(t, server(t)), Options{Time: 100 * time.Millisecond, Rate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if r.Lost < r.Sent/10 || r.Lost == r.Sent || r.Loss() < 0.09 || !strings.Contains(r.String(), "lost") {
		t.Errorf("%+v: expected every 10th to be lost", r)
	}
}

// A lost request is waited for and counted, and does not end the measurement.
func TestDatagramResponseCountsLoss(t *testing.T) {
	addr := server(t)
	for _, rate := range []int{0, 100} {
		r, err := DatagramResponse(t.Context(), lossy(t, addr), Options{Time: lossTimeout + 200*time.Millisecond, Rate: rate})
		if err != nil {
			t.Fatal(err)
		}
		if r.Lost == 0 || r.Transactions == 0 || time.Duration(r.Latency.Max) < lossTimeout*99/100 {
			t.Errorf("rate %d: %+v, max %v: expected one lost", rate, r, time.Duration(r.Latency.Max))
		}
		if rate > 0 && (r.Due != 70 || r.Due-r.Transactions < r.Lost) {
			t.Errorf("%+v: expected 70 due, the lost ones not answered", r)
		}
	}
}

// UDP does not reach the server.
func TestNoDatagramArrives(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sink, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if h, err := readHello(c); err != nil {
					return
				} else if c.Write(make([]byte, 8)); h.kind == datagrams {
					io.ReadFull(c, make([]byte, 8))
					c.Write(datagram.Report{}.Append(nil))
				}
				io.Copy(io.Discard, c)
			}()
		}
	}()
	for want, measure := range map[string]Measurement{"none of": Datagrams, "not one transaction": DatagramResponse} {
		if _, err := measure(t.Context(), l.Addr().String(), Options{Time: short20}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// A stream ends with its control connection. After that its datagrams get no answer.
func TestDatagramStreamEndsWithControl(t *testing.T) {
	addr := server(t)
	control, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	s, err := openDatagramStream(t.Context(), control, hello{kind: datagramExchange, request: 16, response: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	question := make([]byte, datagram.HeaderLen)
	datagram.Header{Stream: s.id}.Put(question)
	s.SetReadDeadline(time.Now().Add(await.Patience))
	s.Write(question)
	if n, err := s.Read(question); n != len(question) || err != nil {
		t.Fatalf("got %d bytes, %v", n, err)
	}
	// The server closes the connection when it has closed the stream.
	control.Write(binary.BigEndian.AppendUint64(nil, 0))
	if _, err := io.ReadAll(control); err != nil {
		t.Fatal(err)
	}
	s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	s.Write(question)
	if n, err := s.Read(question); err == nil {
		t.Errorf("got %d bytes of a stream that is closed", n)
	}
}
