package datagram

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"tapestry.dev/tapestry/test/await"
)

func TestTally(t *testing.T) {
	for name, tt := range map[string]struct {
		sequence []uint64
		want     Report
	}{
		"in order":               {[]uint64{0, 1, 2}, Report{Packets: 3}},
		"lost":                   {[]uint64{0, 5}, Report{Packets: 2}},
		"first lost":             {[]uint64{7, 8}, Report{Packets: 2}},
		"reordered":              {[]uint64{0, 2, 1, 3}, Report{Packets: 4, Reordered: 1}},
		"before the first":       {[]uint64{3, 0}, Report{Packets: 2, Reordered: 1}},
		"twice":                  {[]uint64{0, 1, 1, 2, 0}, Report{Packets: 3, Duplicates: 2}},
		"a window later":         {[]uint64{0, window, 2 * window, 2*window + 1}, Report{Packets: 4}},
		"oldest that is told":    {[]uint64{1, window, 1}, Report{Packets: 2, Duplicates: 1}},
		"too old to be told":     {[]uint64{0, window, 0}, Report{Packets: 3, Reordered: 1}},
		"a word is used again":   {[]uint64{0, window - 1, window, window + 1, 1}, Report{Packets: 5, Reordered: 1}},
		"not seen in the window": {[]uint64{0, window - 1, 1, 1}, Report{Packets: 3, Reordered: 1, Duplicates: 1}},
	} {
		var got tally
		now := time.Unix(0, 0)
		for i, s := range tt.sequence {
			got.add(s, 100, now.Add(time.Duration(i)*time.Second))
		}
		tt.want.Bytes = 100 * tt.want.Packets
		tt.want.Elapsed = got.last.Sub(now)
		if diff := cmp.Diff(tt.want, got.Report); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// serve runs a Server on loopback and returns a socket connected to it.
func serve(t *testing.T) (*Server, *net.UDPConn) {
	t.Helper()
	listener, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(listener)
	c, err := net.DialUDP("udp", nil, listener.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	return s, c
}

// Two streams on one socket are counted apart. Datagrams of no stream are not counted.
func TestServerCounts(t *testing.T) {
	s, c := serve(t)
	a, b := s.Open(0), s.Open(0)
	defer a.Close()
	defer b.Close()
	for _, part := range []struct {
		stream uint64
		n      int
	}{{a.ID, 5}, {b.ID, Batch}, {a.ID ^ b.ID, 3}} {
		sender := NewSender(c, part.stream, HeaderLen)
		if err := sender.Send(part.n); err != nil || sender.Sent() != uint64(part.n) {
			t.Fatalf("sent %d of %d, %v", sender.Sent(), part.n, err)
		}
	}
	c.Write(make([]byte, HeaderLen-1))
	for stream, want := range map[*Stream]uint64{a: 5, b: Batch} {
		r, err := stream.Finish(t.Context(), want)
		if err != nil || r.Packets != want || r.Bytes != want*HeaderLen || r.Reordered+r.Duplicates != 0 {
			t.Errorf("got %+v, %v; want %d packets", r, err, want)
		}
	}
	// Finish waits for missing datagrams, but not for ever.
	if r, err := a.Finish(t.Context(), 6); err != nil || r.Packets != 5 {
		t.Errorf("got %+v, %v; want 5 packets", r, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Finish(ctx, 6); err == nil {
		t.Error("Finish goes on without its context")
	}
}

// Only datagrams of open streams are answered, with the size that was agreed on and the header of the question.
func TestServerAnswers(t *testing.T) {
	s, c := serve(t)
	const size = 3000
	stream := s.Open(size)
	question, answer := make([]byte, HeaderLen), make([]byte, MaxLen)
	ask := func(h Header) {
		h.Put(question)
		if _, err := c.Write(question); err != nil {
			t.Fatal(err)
		}
	}
	ask(Header{stream.ID + 1, 1}) // belongs to no stream
	ask(Header{stream.ID, 2})
	c.SetReadDeadline(time.Now().Add(await.Patience))
	n, err := c.Read(answer)
	if h, _ := ParseHeader(answer[:n]); err != nil || n != size || h != (Header{stream.ID, 2}) {
		t.Fatalf("got %d bytes, %+v, %v", n, h, err)
	}
	stream.Close()
	ask(Header{stream.ID, 3})
	other := s.Open(HeaderLen)
	defer other.Close()
	ask(Header{other.ID, 4})
	if n, err = c.Read(answer); err != nil || n != HeaderLen || !bytes.Equal(answer[:n], question) {
		t.Errorf("got %d bytes, %v, expected the answer to the last question only", n, err)
	}
}

// An answer comes from the address that was asked, even when that is not the machine's first address. The client takes
// no answer from another.
func TestServerAnswersFromWhereItWasAsked(t *testing.T) {
	for _, network := range []string{"udp", "udp4"} {
		listener, err := net.ListenUDP(network, nil)
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(listener)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx) }()
		stream := s.Open(HeaderLen)
		port := listener.LocalAddr().(*net.UDPAddr).Port
		c, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: port})
		if err != nil {
			t.Fatal(err)
		}
		question := make([]byte, HeaderLen)
		Header{stream.ID, 1}.Put(question)
		c.Write(question)
		c.SetReadDeadline(time.Now().Add(await.Patience))
		if n, err := c.Read(make([]byte, MaxLen)); err != nil || n != HeaderLen {
			t.Errorf("%s: got %d bytes, %v", network, n, err)
		}
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add(Report{1, 2, 0, 4, time.Second}.Append(nil))
	f.Add(Report{Packets: 1, Reordered: 2, Elapsed: -1}.Append(nil))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadReport(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !bytes.Equal(r.Append(nil), b[:reportLen]) {
			t.Errorf("%x was read as %+v", b, r)
		}
		if r.Elapsed < 0 || r.Reordered > r.Packets {
			t.Errorf("%+v passed", r)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte("0123456789abcdef and filling"))
	f.Add([]byte("0123456789abcde"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := ParseHeader(b)
		if ok != (len(b) >= HeaderLen) {
			t.Fatalf("%d bytes: %v", len(b), ok)
		}
		if !ok {
			return
		}
		var again [HeaderLen]byte
		if h.Put(again[:]); !bytes.Equal(again[:], b[:HeaderLen]) {
			t.Errorf("%x was read as %+v", b, h)
		}
	})
}
