package limbo

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/test/await"
)

// pairOf returns both ends of a connection on loopback.
func pairOf(t *testing.T, l net.Listener) (client, accepted net.Conn) {
	t.Helper()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); accepted.Close() })
	return client, accepted
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestTimeOf(t *testing.T) {
	for held, want := range map[int]time.Duration{
		0: time.Second, perSecond - 1: time.Second, perSecond: 2 * time.Second, 7*perSecond - 1: 7 * time.Second, 7 * perSecond: 8 * time.Second, 100_000: longest,
	} {
		if got := timeOf(held); got != want {
			t.Errorf("with %d held: %v, want %v", held, got, want)
		}
	}
}

// TestHold: a connection is kept for its time and then reset, and what its client sends meanwhile is taken. That of an
// owner with many is kept for longer.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, in := listen(t), New[string](2*8)
		defer in.Close()
		hold := func(owner string) net.Conn {
			client, c := pairOf(t, l)
			if !in.Hold(c, owner) {
				t.Fatal("there was no place")
			}
			if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("the connection is still the caller's: %v", err)
			}
			return client
		}
		first := hold("a")
		in.held["b"] = 2 * perSecond
		other := hold("b")
		kept := func(c net.Conn) bool {
			_, err := c.Write([]byte("x"))
			return err == nil && !conns.Gone(c)
		}
		time.Sleep(time.Second - slot)
		if !kept(first) || !kept(other) {
			t.Error("a connection ended before its time")
		}
		time.Sleep(slot + 1)
		synctest.Wait()
		if !conns.Gone(first) {
			t.Error("a connection is kept for more than its time")
		}
		if _, err := first.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the client sees %v, want a reset", err)
		}
		if !kept(other) {
			t.Error("a connection of an owner with many ended as soon")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !conns.Gone(other) || len(in.held) != 1 || in.held["b"] != 2*perSecond || in.pairs != 0 || len(in.slots) != 0 {
			t.Errorf("in the end: gone is %v, %d pairs, held %v", conns.Gone(other), in.pairs, in.held)
		}
	})
}

// TestDescriptors: connections in limbo take a descriptor for many of them, no more of these than there are, and
// whoever gets no place keeps his connection. Close resets them all.
func TestDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, in := listen(t), New[string](5)
		count := func() int {
			list, err := os.ReadDir("/proc/self/fd")
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		before := count()
		var clients []net.Conn
		for i := range 2*PerPair + 10 {
			client, c := pairOf(t, l)
			if got := in.Hold(c, "a"); got != (i < 2*PerPair) {
				t.Fatalf("connection %d: Hold is %v", i, got)
			}
			clients = append(clients, client)
			if i >= 2*PerPair {
				if _, err := c.Write([]byte("x")); err != nil {
					t.Errorf("the caller lost a connection that was not kept: %v", err)
				}
				c.Close()
			}
		}
		if n := count() - before - len(clients); n != 4 {
			t.Errorf("%d descriptors hold %d connections, want 4", n, 2*PerPair)
		}
		for _, c := range clients[:2*PerPair] {
			if conns.Gone(c) {
				t.Fatal("a connection is gone")
			}
		}
		in.Close()
		for i, c := range clients[:2*PerPair] {
			if !conns.Gone(c) {
				t.Fatalf("connection %d is there after Close", i)
			}
		}
		if n := count() - before - len(clients); n != 0 {
			t.Errorf("%d descriptors are left", n)
		}
		if _, c := pairOf(t, l); in.Hold(c, "a") {
			t.Error("Hold after Close")
		}
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		if New[string](2).Hold(far, "a") {
			t.Error("a pipe was taken")
		}
	})
}

// control calls do with the descriptor of c.
func control(t *testing.T, c net.Conn, do func(fd int)) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { do(int(fd)) })
	}
	if err != nil {
		t.Fatal(err)
	}
}

// memory returns what the kernel keeps in the receive queues of a socket, in bytes.
func memory(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MEMINFO)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestUnread: what a client sent before its connection is kept costs no memory any more, and little of what it goes on
// to send does. A connection of which not everything is thrown away is left to the caller.
func TestUnread(t *testing.T) {
	l, in := listen(t), New[string](2)
	defer in.Close()
	for _, test := range []struct {
		buffer, least int
		held          bool
	}{
		{0, 64 << 10, true},
		{1 << 20, discards*discarded + 2*mostUnread, false},
	} {
		client, c := pairOf(t, l)
		var dup int
		control(t, c, func(fd int) {
			if test.buffer > 0 {
				_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, test.buffer)
			}
			var err error
			if dup, err = unix.Dup(fd); err != nil {
				t.Error(err)
			}
		})
		defer unix.Close(dup)
		go client.Write(make([]byte, 8<<20)) // until the test ends
		await.Until(t, "the client sent as much as its window allows", func() (full bool) {
			control(t, client, func(fd int) {
				info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				full = err == nil && info.Unacked == 0 && info.Notsent_bytes > 0
			})
			return full && memory(t, dup) > test.least
		})
		before := memory(t, dup)
		if got := in.Hold(c, "a"); got != test.held {
			t.Errorf("with %d bytes of memory: Hold is %v", before, got)
		}
		if after := memory(t, dup); test.held && after > mostUnread {
			t.Errorf("%d bytes of memory are taken, of %d before", after, before)
		}
	}
}

// TestFullPair: the buffer of a pair may be full before its time, as where it is smaller. The next connection then gets
// another pair.
func TestFullPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, in := listen(t), New[string](2*2)
		defer in.Close()
		hold := func() bool {
			_, c := pairOf(t, l)
			return in.Hold(c, "a")
		}
		if !hold() {
			t.Fatal("there was no place")
		}
		for _, r := range in.slots {
			// The kernel makes it the least there is.
			if err := unix.SetsockoptInt(r.pairs[0][0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
				t.Fatal(err)
			}
		}
		n := 1
		for n < PerPair && hold() {
			n++
		}
		if n == PerPair || in.pairs != 1 {
			t.Fatalf("a small pair took %d", n)
		}
		if !hold() || in.pairs != 2 {
			t.Errorf("nothing is kept after a pair was full; there are %d pairs", in.pairs)
		}
	})
}

func TestNone(t *testing.T) {
	var none *Limbo[string]
	defer none.Close()
	if _, c := pairOf(t, listen(t)); none.Hold(c, "a") {
		t.Error("a nil Limbo took a connection")
	}
}
