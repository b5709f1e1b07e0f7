package underlay

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"tapestry.dev/tapestry/test/await"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type got struct {
	data []byte
	from netip.AddrPort
}

// opened is a Bind with a goroutine that receives.
type opened struct {
	*Bind
	in chan got
}

func open(t testing.TB, o Options) opened {
	t.Helper()
	if o.Socket == nil {
		sock, err := OpenSocket(0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sock.Close() })
		o.Socket = sock
	}
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	fns, port, err := b.Open(0)
	if err != nil || len(fns) != 1 || port != b.Port() {
		t.Fatalf("open: %d functions, port %d, %v", len(fns), port, err)
	}
	d := opened{b, make(chan got, 4096)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
		for i := range bufs {
			bufs[i] = make([]byte, 65535)
		}
		for {
			n, err := fns[0](bufs, sizes, eps)
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					t.Errorf("receive ended with %v", err)
				}
				return
			}
			for i := range n {
				if sizes[i] > 0 {
					d.in <- got{bytes.Clone(bufs[i][:sizes[i]]), eps[i].(*endpoint).ap}
				}
			}
		}
	}()
	t.Cleanup(func() {
		b.Close()
		<-done
	})
	return d
}

func (d opened) at(host string) conn.Endpoint {
	ep, err := d.ParseEndpoint(netip.AddrPortFrom(netip.MustParseAddr(host), d.Port()).String())
	if err != nil {
		panic(err)
	}
	return ep
}

func datagrams(sizes ...int) (bufs [][]byte) {
	for i, n := range sizes {
		b := make([]byte, n)
		for j := range b {
			b[j] = byte(i*31 + j)
		}
		bufs = append(bufs, b)
	}
	return bufs
}

func repeat(size, n int) (s []int) {
	for range n {
		s = append(s, size)
	}
	return s
}

// Datagrams arrive one by one as they were sent, however the kernel was asked to bundle them and whatever segment size
// the receiver expected.
func TestRoundTrip(t *testing.T) {
	for name, o := range map[string]Options{
		"bundled": {}, "no gso": {NoGSO: true}, "no gro": {NoGRO: true}, "neither": {NoGSO: true, NoGRO: true},
	} {
		t.Run(name, func(t *testing.T) { roundTrip(t, open(t, o), open(t, o)) })
	}
}

func roundTrip(t *testing.T, a, b opened) {
	for _, c := range []struct {
		name  string
		sizes []int
	}{
		{"one", []int{100}},
		{"equal", repeat(1452, 44)},
		{"equal again", repeat(1452, 44)},
		{"last shorter", append(repeat(1452, 30), 96)},
		{"another size", repeat(300, 64)},
		{"a full batch", repeat(1200, 128)},
		{"large single after small", []int{9000}},
		{"mixed", []int{96, 1452, 1452, 96, 96, 32, 1452, 1, 1, 1, 148, 60000}},
		{"growing", []int{10, 20, 30, 40, 50}},
		{"tiny", repeat(1, 128)},
		{"the usual again", repeat(1452, 100)},
	} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			t.Run(c.name+" "+host, func(t *testing.T) {
				want := datagrams(c.sizes...)
				if err := a.Send(want, b.at(host)); err != nil {
					t.Fatal(err)
				}
				for i, w := range want {
					select {
					case g := <-b.in:
						if !bytes.Equal(g.data, w) {
							t.Fatalf("datagram %d has %d bytes, want %d", i, len(g.data), len(w))
						}
						if want := netip.AddrPortFrom(netip.MustParseAddr(host), a.Port()); g.from != want {
							t.Fatalf("datagram %d from %s, want %s", i, g.from, want)
						}
					case <-time.After(await.Patience):
						t.Fatalf("datagram %d is missing", i)
					}
				}
			})
		}
	}
}

// NoGSO and NoGRO switch off bundling, also on a socket on which an earlier agent used it.
func TestSwitchedOff(t *testing.T) {
	for _, off := range []bool{false, true} {
		sock, err := OpenSocket(0)
		if err != nil {
			t.Fatal(err)
		}
		defer sock.Close()
		b := open(t, Options{Socket: sock, NoGSO: off, NoGRO: off})
		got := -1
		if err := b.sock.Load().raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO) }); err != nil {
			t.Fatal(err)
		}
		if err != nil || (got == 0) != off {
			t.Errorf("switched off: %v; UDP_GRO is %d, %v", off, got, err)
		}
		if b.noGSO.Load() != off {
			t.Errorf("switched off: %v; bundles what it sends: %v", off, !b.noGSO.Load())
		}
	}
}

// A message may have more segments than a group has buffers, since newer kernels send up to 128.
func TestReceiveManySegments(t *testing.T) {
	for _, guess := range []int{50, 1 << 16, 33} {
		r := newReceiver(&Bind{endpoints: map[way]*endpoint{}}, nil)
		r.seen = guess
		bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
		for i := range bufs {
			bufs[i] = make([]byte, 65535)
		}
		var want []byte
		for i := range 50*127 + 7 {
			want = append(want, byte(i/50*3+i))
		}
		r.lay(bufs)
		rest := want // scattered as the kernel does it
		for _, v := range r.iovs[0][:r.msgs[0].Iovlen] {
			n := min(len(rest), int(v.Len))
			copy(bytesAt(v), rest[:n])
			rest = rest[n:]
		}
		r.msgs[0].n = uint32(len(want))
		r.msgs[0].SetControllen(putGRO(r.ctls[0][:], 50))
		r.names[0].Family = unix.AF_INET6
		var have []byte
		collect := func() {
			for i := range sizes {
				if sizes[i] > 50 {
					t.Fatalf("guess %d: a datagram of %d bytes", guess, sizes[i])
				}
				have = append(have, bufs[i][:sizes[i]]...)
			}
			clear(sizes)
		}
		r.take(0, bufs[:64], sizes[:64], eps[:64])
		collect()
		for r.drain(bufs, sizes, eps) > 0 {
			collect()
		}
		if !bytes.Equal(have, want) {
			t.Errorf("guess %d: %d bytes differ from the %d sent", guess, len(have), len(want))
		}
	}
}

func TestForbiddenSource(t *testing.T) {
	var calls atomic.Int64
	a := open(t, Options{})
	b := open(t, Options{Forbidden: func(ip netip.Addr) bool {
		calls.Add(1)
		return ip == netip.MustParseAddr("127.0.0.1")
	}})
	if err := a.Send(datagrams(100), b.at("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if err := a.Send(datagrams(101), b.at("::1")); err != nil {
		t.Fatal(err)
	}
	if g := <-b.in; len(g.data) != 101 || b.Counters().Forbidden != 1 || calls.Load() < 2 {
		t.Errorf("got %d bytes, %+v", len(g.data), b.Counters())
	}
}

// A datagram that does not fit is counted and reported to TooBig, and does not stop the rest of the batch.
func TestTooBig(t *testing.T) {
	var told atomic.Pointer[netip.AddrPort]
	var sent atomic.Int64
	a := open(t, Options{
		TooBig: func(dst netip.AddrPort) { told.Store(&dst) }, Sent: func(n int) { sent.Add(int64(n)) },
	})
	b := open(t, Options{})
	bufs := datagrams(65535, 200)
	bufs[0][0], bufs[1][0] = messageData, messageData
	if err := a.Send(bufs, b.at("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	if g := <-b.in; len(g.data) != 200 {
		t.Errorf("got %d bytes, want 200", len(g.data))
	}
	if ep := told.Load(); ep == nil || ep.Port() != b.Port() || a.Counters().TooBig != 1 || sent.Load() != 2 {
		t.Errorf("told %v, %+v, sent %d", ep, a.Counters(), sent.Load())
	}
}

// Close ends the receiver, which open checks, and leaves the caller's socket open for the next Bind.
func TestCloseKeepsTheSocket(t *testing.T) {
	sock, err := OpenSocket(0)
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	far := open(t, Options{})
	b := open(t, Options{Socket: sock})
	to := b.at("127.0.0.1")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Send(datagrams(10), to); !errors.Is(err, net.ErrClosed) {
		t.Errorf("send after close: %v", err)
	}
	if err := far.Send(datagrams(77), to); err != nil { // without a receiver the socket keeps it
		t.Fatal(err)
	}
	again := open(t, Options{Socket: sock})
	if g := <-again.in; len(g.data) != 77 || again.Port() != b.Port() {
		t.Errorf("got %d bytes on port %d, want the 77 kept on port %d", len(g.data), again.Port(), b.Port())
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("no socket was accepted")
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := New(Options{Socket: f}); err == nil {
		t.Error("a file was taken for a socket")
	}
}

func TestPathMTU(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		mtu, ok := PathMTU(netip.AddrPortFrom(netip.MustParseAddr(host), 9))
		if !ok || mtu < 1280 {
			t.Errorf("%s: %d, %v", host, mtu, ok)
		}
	}
}

func TestEndpointsAreBounded(t *testing.T) {
	b := &Bind{endpoints: map[way]*endpoint{}}
	for i := range 3 * maxEndpoints {
		b.endpoint(netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(1+i>>16)))
	}
	if len(b.endpoints) > maxEndpoints {
		t.Errorf("%d endpoints kept", len(b.endpoints))
	}
	v4, v6 := netip.MustParseAddrPort("192.0.2.1:7"), netip.MustParseAddrPort("[::ffff:192.0.2.1]:7")
	if b.endpoint(v4) != b.endpoint(v6) {
		t.Error("a mapped address is another endpoint")
	}
}

func BenchmarkSend(b *testing.B) {
	for _, n := range []int{1, 44, 128} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a, z := open(b, Options{}), open(b, Options{Forbidden: func(netip.Addr) bool { return true }})
			bufs, to := datagrams(repeat(1452, n)...), z.at("127.0.0.1")
			b.SetBytes(int64(n) * 1452)
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Send(bufs, to); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// receiving is a Bind whose receive function the test calls, with buffers of WireGuard's size.
type receiving struct {
	*Bind
	fn    conn.ReceiveFunc
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
	ahead int // datagrams that came beyond those waited for
}

func openByHand(t testing.TB) *receiving {
	t.Helper()
	sock, err := OpenSocket(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	b, err := New(Options{Socket: sock})
	if err != nil {
		t.Fatal(err)
	}
	fns, _, err := b.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	r := &receiving{b, fns[0], make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128), 0}
	for i := range r.bufs {
		r.bufs[i] = make([]byte, 65535)
	}
	return r
}

// receive waits for n datagrams, whatever batches they come in.
func (r *receiving) receive(t testing.TB, n int) {
	for r.ahead -= n; r.ahead < 0; {
		k, err := r.fn(r.bufs, r.sizes, r.eps)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range r.sizes[:k] {
			if size > 0 {
				r.ahead++
			}
		}
	}
}

// BenchmarkReceive measures receiving batches of n datagrams that the socket holds already. The figures do not contain
// the sending. Only receiving is timed, by hand, since stopping the benchmark's timer costs more than receiving.
func BenchmarkReceive(b *testing.B) {
	for _, n := range []int{1, 44, 128} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			a, z := open(b, Options{}), openByHand(b)
			to := opened{Bind: z.Bind}.at("127.0.0.1")
			bufs := datagrams(repeat(1452, n)...)
			var spent time.Duration
			b.ReportAllocs()
			for b.Loop() {
				if err := a.Send(bufs, to); err != nil {
					b.Fatal(err)
				}
				began := time.Now()
				z.receive(b, n)
				spent += time.Since(began)
			}
			b.ReportMetric(float64(spent.Nanoseconds())/float64(b.N), "ns/op")
			b.ReportMetric(float64(n)*1452*float64(b.N)/spent.Seconds()/1e6, "MB/s")
		})
	}
}

func TestReceiveAllocatesNothing(t *testing.T) {
	a, z := open(t, Options{}), openByHand(t)
	to := opened{Bind: z.Bind}.at("127.0.0.1")
	bufs := datagrams(repeat(1452, 44)...)
	if n := testing.AllocsPerRun(200, func() {
		if err := a.Send(bufs, to); err != nil {
			t.Fatal(err)
		}
		z.receive(t, 44)
	}); n > 3 { // this includes sending: see TestSendAllocatesNothing
		t.Errorf("%v allocations for a batch of 44", n)
	}
}

func TestSendAllocatesNothing(t *testing.T) {
	a, z := open(t, Options{}), open(t, Options{Forbidden: func(netip.Addr) bool { return true }})
	bufs, to := datagrams(repeat(1452, 44)...), z.at("127.0.0.1")
	if n := testing.AllocsPerRun(200, func() {
		if err := a.Send(bufs, to); err != nil {
			t.Fatal(err)
		}
	}); n > 3 { // under the race detector sync.Pool drops a quarter of the senders, which take three each
		t.Errorf("%v allocations for a batch of 44", n)
	}
}
