package overlay

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"tapestry.dev/tapestry/netstack/packet"
)

// The kinds of floods.
const (
	garbage  = "garbage"  // random bytes
	unknown  = "unknown"  // handshake initiations with a valid first MAC, from unknown keys
	replayed = "replayed" // a peer's own initiation, again and again
)

const initiationSize = device.MessageInitiationSize

// mac1 sets a message's first MAC. Anybody who knows the receiver's public key can compute it.
func mac1(msg []byte, to PublicKey) {
	key := blake2s.Sum256(append([]byte("mac1----"), to[:]...))
	mac, _ := blake2s.New128(key[:])
	mac.Write(msg[:len(msg)-32])
	copy(msg[len(msg)-32:], mac.Sum(nil))
}

// floodMain is the process that sends a flood: datagrams of one kind to one address at a rate per second, from several
// ports. It ends after count datagrams; with 0 it goes on until it is killed.
func floodMain(args string) error {
	f := strings.Split(args, " ") // kind, address, public key, rate, count, message, from where
	to := netip.MustParseAddrPort(f[1])
	rate, _ := strconv.Atoi(f[3])
	count, _ := strconv.Atoi(f[4])
	var key PublicKey
	b, _ := hex.DecodeString(f[2])
	copy(key[:], b)
	msg, _ := hex.DecodeString(f[5])
	var socks []*net.UDPConn
	for range 8 {
		from := netip.AddrPortFrom(netip.MustParseAddr(f[6]), 0)
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		socks = append(socks, c)
	}
	const several = 64 // messages are made beforehand, so that the flood costs the sender little
	var out [several][initiationSize]byte
	for i := range out {
		_, _ = rand.Read(out[i][:])
		switch f[0] {
		case unknown:
			binary.LittleEndian.PutUint32(out[i][:], device.MessageInitiationType)
			mac1(out[i][:], key)
		case replayed:
			copy(out[i][:], msg)
		}
	}
	began, n := time.Now(), 0
	for ; count == 0 || n < count; n++ {
		if due := time.Duration(n) * time.Second / time.Duration(rate); due-time.Since(began) > time.Millisecond {
			time.Sleep(due - time.Since(began))
		} else if time.Since(began)-due > 10*time.Millisecond {
			began = time.Now().Add(-due) // this process was stopped for a while
		}
		_, _ = socks[n%len(socks)].Write(out[n/16%several][:])
	}
	return nil
}

// flood describes a flood for startFlood.
type flood struct {
	kind        string
	from        string // source address
	rate, count int    // per second, and in all, 0 for no end
	msg         []byte
}

// startFlood starts a process that sends f to the address at, made for the key of to. The end of the test kills it.
func startFlood(t testing.TB, f flood, to *node, at netip.AddrPort) *exec.Cmd {
	t.Helper()
	key := to.key.Public()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("OVERLAY_FLOOD=%s %s %x %d %d %x %s", f.kind, at, key[:], f.rate, f.count, f.msg, f.from))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func cpuTime() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFlood measures the processor time that a datagram of a flood costs its receiver.
func BenchmarkFlood(b *testing.B) {
	for _, f := range []flood{
		{garbage, "127.0.0.2", 20_000, 20_000, nil}, {unknown, "127.0.0.2", 20_000, 20_000, nil}, {unknown, "127.0.0.2", 2000, 2000, nil},
		{replayed, "127.0.0.1", 20_000, 20_000, nil}, {replayed, "127.0.0.1", 2000, 2000, nil},
	} {
		b.Run(fmt.Sprintf("%s-%d", f.kind, f.rate), func(b *testing.B) {
			x, y := startNode(b, 1, nil), startNode(b, 2, nil)
			f.msg = x.initiation(y)
			y.set(x.as(x.loopback()))
			for b.Loop() {
				before := cpuTime()
				if err := startFlood(b, f, y, y.loopback()).Wait(); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64((cpuTime()-before).Microseconds())/float64(f.count), "cpu-us/datagram")
			}
		})
	}
}

// BenchmarkTransferInFlood measures the throughput of a transfer while 100,000 datagrams a second arrive at its
// receiver, in percent of the throughput while the same datagrams go to another socket.
func BenchmarkTransferInFlood(b *testing.B) {
	for _, kind := range []string{garbage, unknown, replayed} {
		b.Run(kind, func(b *testing.B) {
			x, y := startNode(b, 1, nil), startNode(b, 2, func(o *Options) { o.Receive = func(uint64, [][]byte) {} })
			first := x.initiation(y)
			x.set(y.as(y.loopback()))
			y.set(x.as(x.loopback()))
			x.awaitSession(2)
			nobody, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
			if err != nil {
				b.Fatal(err)
			}
			defer nobody.Close()
			f := flood{kind, "127.0.0.2", 100_000, 0, first}
			floods := []*exec.Cmd{startFlood(b, f, y, nobody.LocalAddr().(*net.UDPAddr).AddrPort()), startFlood(b, f, y, y.loopback())}
			frames := make([]*packet.Packet, 16)
			for i := range frames {
				frames[i] = frame(b, packet.TCP, pod4(1, 5), pod4(2, 5), 40*1380, 1380)
			}
			send := func(d time.Duration) (bytes uint64) {
				before := y.Stats().ReceivedBytes
				for end := time.Now().Add(d); time.Now().Before(end); {
					p := *frames[0]
					p.Buf = nil // Send copies the packet
					x.Send(&p, 2, nil)
				}
				return y.Stats().ReceivedBytes - before
			}
			var parts []float64
			for b.Loop() {
				var through [2]uint64
				for i, f := range floods {
					_ = f.Process.Signal(unix.SIGCONT)
					_ = floods[1-i].Process.Signal(unix.SIGSTOP)
					send(50 * time.Millisecond)
					through[i] = send(250 * time.Millisecond)
				}
				parts = append(parts, float64(through[1])/float64(through[0]))
			}
			slices.Sort(parts)
			b.ReportMetric(100*parts[len(parts)/2], "%-left")
			for _, f := range floods {
				_ = f.Process.Signal(unix.SIGCONT)
			}
		})
	}
}

// initiation returns a handshake initiation from d to y, as an eavesdropper sees it.
func (d *node) initiation(y *node) []byte {
	d.t.Helper()
	tap, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		d.t.Fatal(err)
	}
	defer tap.Close()
	p := y.as(tap.LocalAddr().(*net.UDPAddr).AddrPort())
	d.set(p)
	msg := make([]byte, 2000)
	n, err := tap.Read(msg)
	if err != nil || n != initiationSize {
		d.t.Fatalf("%d bytes, %v", n, err)
	}
	d.set()
	return msg[:n]
}

// A peer gets its session while others send handshakes without end, from another address or from the peer's own.
// WireGuard does not see most of these handshakes.
func TestHandshakeInFlood(t *testing.T) {
	for _, f := range []flood{{unknown, "127.0.0.2", 20_000, 0, nil}, {unknown, "127.0.0.1", 5000, 0, nil}, {replayed, "127.0.0.1", 5000, 0, nil}} {
		t.Run(f.kind+" from "+f.from, func(t *testing.T) {
			x, y := startNode(t, 1, nil), startNode(t, 2, nil)
			f.msg = x.initiation(y)
			y.set(x.as(x.loopback()))
			startFlood(t, f, y, y.loopback())
			for y.Stats().DropHandshakes < 1000 {
				time.Sleep(time.Millisecond)
			}
			x.set(y.as(y.loopback()))
			for x.table.Load().byID[2].confirmed.Load() == 0 {
				time.Sleep(time.Millisecond)
			}
			t.Logf("%+v", y.Stats())
		})
	}
}
