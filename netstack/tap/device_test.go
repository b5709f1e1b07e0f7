package tap_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// link joins two pods' devices: each gets what the other sends. observe sees each superframe and returns whether it is
// passed on.
func link(t testing.TB, a, b *tap.Device, observe func(frame []byte) bool) {
	t.Helper()
	var running sync.WaitGroup
	forward := func(from, to *tap.Device, mac packet.MAC) {
		err := from.Run(func(frame []byte) []byte {
			copy(frame[packet.VNetHdrLen:], mac[:])
			copy(frame[packet.VNetHdrLen+6:], tap.RouterMAC[:])
			if observe(frame) {
				if err := to.Write(frame); err != nil && !errors.Is(err, os.ErrClosed) {
					t.Errorf("write: %v", err)
				}
			}
			return frame
		}, nil)

		if err != nil {
			t.Errorf("run: %v", err)
		}
	}
	running.Go(func() { forward(a, b, macB) })
	running.Go(func() { forward(b, a, macA) })
	t.Cleanup(func() {
		a.Close()
		b.Close()
		running.Wait()
	})
}

// pods makes two namespaces whose TAPs are joined.
func pods(t testing.TB, o tap.Options, observe func([]byte) bool) (a, b *tap.Namespace) {
	t.Helper()
	nsA, fA := newPod(t, podA, macA)
	nsB, fB := newPod(t, podB, macB)
	link(t, newDevice(t, fA, o), newDevice(t, fB, o), observe)
	return nsA, nsB
}

func dial(t testing.TB, ns *tap.Namespace, network string, to net.Addr) net.Conn {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout(network, to.String(), 5*time.Second)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func listen(t testing.TB, ns *tap.Namespace, addr netip.Addr) net.Listener {
	t.Helper()
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// transfer sends n bytes, a multiple of 1 MiB if more than that, from a to b's address and waits until all have
// arrived.
func transfer(t testing.TB, a, b *tap.Namespace, addr netip.Addr, n int) {
	t.Helper()
	l := listen(t, b, addr)
	got := make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			got <- -1
			return
		}
		defer c.Close()
		m, err := io.Copy(io.Discard, c)
		if err != nil {
			t.Error(err)
		}
		got <- m
	}()
	c := dial(t, a, "tcp", l.Addr())
	chunk := make([]byte, min(n, 1<<20))
	for sent := 0; sent < n; sent += len(chunk) {
		if _, err := c.Write(chunk); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if m := <-got; m != int64(n) {
		t.Errorf("%d of %d bytes arrived", m, n)
	}
}

func TestSuperframesPassThrough(t *testing.T) {
	for _, tc := range []struct {
		name  string
		off   tap.Offloads
		super bool
	}{
		{"offloads", 0, true},
		{"no tso", tap.TSO4 | tap.TSO6, false},
		{"none", tap.AllOffloads, false},
	} {
		for i, family := range []string{"IPv4", "IPv6"} {
			t.Run(tc.name+" "+family, func(t *testing.T) {
				var longest, partial atomic.Int64
				a, b := pods(t, tap.Options{Disable: tc.off}, func(frame []byte) bool {
					if n := int64(len(frame)); n > longest.Load() {
						longest.Store(n)
					}
					if frame[0]&packet.NeedsCsum != 0 {
						partial.Add(1)
					}
					return true
				})
				transfer(t, a, b, podB[i], 4<<20)
				if super := longest.Load() > 1400+packet.HeadLen; super != tc.super {
					t.Errorf("longest frame %d bytes, want superframes: %v", longest.Load(), tc.super)
				}
				if csum := partial.Load() > 0; csum != (tc.off&tap.Csum == 0) {
					t.Errorf("partial checksums: %v", csum)
				}
			})
		}
	}
}

func TestWritev(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	d := newDevice(t, f, tap.Options{})
	c := listenUDP(t, ns, podA[0])
	frame := udpFrame(macA, podB[0], podA[0], c.LocalAddr().(*net.UDPAddr).Port, []byte("hello, world"))

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				if err := d.Writev([][]byte{frame[:3], frame[3:packet.HeadLen], nil, frame[packet.HeadLen:60], frame[60:]}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	buf := make([]byte, 100)
	for range 80 {
		c.SetReadDeadline(time.Now().Add(await.Patience))
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); got != "hello, world" {
			t.Fatalf("received %q", got)
		}
	}
	wg.Wait()
}

func listenUDP(t testing.TB, ns *tap.Namespace, addr netip.Addr) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// udpFrame builds an IPv4 frame without UDP checksum, which is optional there (RFC 768).
func udpFrame(to packet.MAC, src, dst netip.Addr, port int, payload []byte) []byte {
	f := make([]byte, packet.HeadLen+28, packet.HeadLen+28+len(payload))
	copy(f[10:], to[:])
	copy(f[16:], tap.RouterMAC[:])
	f[22], f[23] = 8, 0
	ip := f[packet.HeadLen:]
	ip[0], ip[8], ip[9] = 0x45, 64, byte(packet.UDP)
	total := 28 + len(payload)
	ip[2], ip[3] = byte(total>>8), byte(total)
	copy(ip[12:], src.AsSlice())
	copy(ip[16:], dst.AsSlice())
	sum := 0
	for i := 0; i < 20; i += 2 {
		sum += int(ip[i])<<8 | int(ip[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	ip[10], ip[11] = ^byte(sum>>8), ^byte(sum)
	ip[20], ip[22], ip[23] = 9, byte(port>>8), byte(port)
	ip[24], ip[25] = byte((total-20)>>8), byte(total-20)
	return append(f, payload...)
}

func TestWriteErrors(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	d := newDevice(t, f, tap.Options{})
	frame := udpFrame(macA, podB[0], podA[0], 9, nil)
	frame[0], frame[1] = packet.NeedsCsum, 0x7f // no such GSO type
	if err := d.Write(frame); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bad header: %v", err)
	}
	frame[0], frame[1] = 0, 0
	if err := d.Write(frame); err != nil {
		t.Errorf("good frame: %v", err)
	}
	h := handle(t, ns)
	l, err := h.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetDown(l); err != nil {
		t.Fatal(err)
	}
	if err := d.Write(frame); !errors.Is(err, unix.EIO) {
		t.Errorf("link down: %v", err)
	}
	d.Close()
	if err := d.Write(frame); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := d.Writev([][]byte{frame}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestClose closes a device while many write and one reads.
func TestClose(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	d := newDevice(t, f, tap.Options{})
	ran := make(chan error, 1)
	go func() {
		ran <- d.Run(func(b []byte) []byte { return b }, nil)
	}()
	frame := udpFrame(macA, podB[0], podA[0], 9, make([]byte, 1000))
	var wg sync.WaitGroup
	var wrote atomic.Int64
	for range 4 {
		wg.Go(func() {
			for {
				if err := d.Write(frame); err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Errorf("write: %v", err)
					}
					return
				}
				wrote.Add(1)
			}
		})
	}
	await.Until(t, "writers write", func() bool { return wrote.Load() > 100 })
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if err := <-ran; err != nil {
		t.Errorf("Run after Close: %v", err)
	}
	if err := d.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
	await.Until(t, "the device goes", func() bool { return !contains(linkNames(t, ns), "eth0") })
}

func TestRunEndsWithDevice(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	d := newDevice(t, f, tap.Options{})
	ran := make(chan error, 1)
	go func() {
		ran <- d.Run(func(b []byte) []byte { return b }, nil)
	}()
	if err := tap.DeleteLink(ns, "eth0"); err != nil {
		t.Fatal(err)
	}
	if err := <-ran; err == nil {
		t.Error("Run returned nil though nobody closed the device")
	}
}

func TestNoAllocations(t *testing.T) {
	ns, f := newPod(t, podA, macA)
	d := newDevice(t, f, tap.Options{})
	frame := udpFrame(macA, podB[0], podA[0], 9, make([]byte, 1000))
	pieces := [][]byte{frame[:packet.HeadLen], frame[packet.HeadLen:]}
	if n := testing.AllocsPerRun(200, func() { d.Write(frame) }); n != 0 {
		t.Errorf("Write: %v allocations", n)
	}
	// Under -race a sync.Pool drops some values on purpose.
	if n := testing.AllocsPerRun(200, func() { d.Writev(pieces) }); n != 0 && !raceEnabled {
		t.Errorf("Writev: %v allocations", n)
	}
	bad := append([]byte{packet.NeedsCsum, 0x7f}, frame[2:]...)
	if n := testing.AllocsPerRun(200, func() { d.Write(bad) }); n != 0 {
		t.Errorf("failing Write: %v allocations", n)
	}

	// Run is measured too: it reads every datagram of the pod on another goroutine, whose allocations are counted as
	// well.
	got := make(chan struct{})
	go d.Run(func(b []byte) []byte {
		if len(b) == packet.HeadLen+28+1000 {
			got <- struct{}{}
		}
		return b
	}, nil)

	c := listenUDP(t, ns, podA[0])
	to := netip.AddrPortFrom(podB[0], 9)
	payload := make([]byte, 1000)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := c.WriteToUDPAddrPort(payload, to); err != nil {
			t.Error(err)
		}
		<-got
	}); n != 0 {
		t.Errorf("Run: %v allocations", n)
	}
}

func BenchmarkWrite(b *testing.B) {
	_, f := newPod(b, podA, macA)
	d := newDevice(b, f, tap.Options{})
	frame := udpFrame(macA, podB[0], podA[0], 9, make([]byte, 1000))
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		d.Write(frame)
	}
}

// BenchmarkPassThrough moves a TCP stream between two namespaces through two devices.
func BenchmarkPassThrough(b *testing.B) {
	nsA, nsB := pods(b, tap.Options{}, func([]byte) bool { return true })
	const size = 64 << 20
	b.SetBytes(size)
	for b.Loop() {
		transfer(b, nsA, nsB, podB[0], size)
	}
}
