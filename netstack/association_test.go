package netstack

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pion/logging"
	"github.com/pion/sctp"

	"tapestry.dev/tapestry/netstack/netstacktest"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/await"
)

// raw is a socket for SCTP packets of a pod, or of whoever is beyond the host TAP. It sends them from one address to
// another, and receives all that arrive.
type raw struct {
	dev      *netstacktest.Device
	mac      packet.MAC
	src, dst netip.Addr // a server answers whoever asked: its dst is set by what arrives
	mu       sync.Mutex
	done     chan struct{}
	once     sync.Once
}

func (r *raw) Read(b []byte) (int, error) {
	for {
		select {
		case f := <-r.dev.Frames():
			var p packet.Packet
			if p.ParseFrame(f) != packet.Good || p.Tuple.Proto != packet.SCTP || p.Tuple.Dst.Netip() != r.src {
				continue
			}
			r.mu.Lock()
			r.dst = p.Tuple.Src.Netip()
			r.mu.Unlock()
			return copy(b, p.IP[p.L4:]), nil
		case <-r.done:
			return 0, io.EOF
		}
	}
}

func (r *raw) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Fragment leaves the L4 header to its payload.
	ip := netstacktest.Spec{Src: netip.AddrPortFrom(r.src, 0), Dst: netip.AddrPortFrom(r.dst, 0), Proto: packet.SCTP, FragAt: 8, Payload: b}.IP()
	if r.src.Is4() {
		ip[6], ip[7], ip[10], ip[11] = 0x40, 0, 0, 0
		sum := ^packet.Checksum(ip[:20], 0)
		ip[10], ip[11] = byte(sum>>8), byte(sum)
	}
	f := netstacktest.Spec{Src: netip.AddrPortFrom(r.src, 0), Dst: netip.AddrPortFrom(r.dst, 0)}.Frame(r.mac, tap.RouterMAC)[:packet.HeadLen]
	select {
	case <-r.done:
		return 0, os.ErrClosed
	default:
		r.dev.Send(append(f, ip...))
		return len(b), nil
	}
}

func (r *raw) Close() error                     { r.once.Do(func() { close(r.done) }); return nil }
func (r *raw) LocalAddr() net.Addr              { return &net.IPAddr{IP: r.src.AsSlice()} }
func (r *raw) RemoteAddr() net.Addr             { return &net.IPAddr{} }
func (r *raw) SetDeadline(time.Time) error      { return nil }
func (r *raw) SetReadDeadline(time.Time) error  { return nil }
func (r *raw) SetWriteDeadline(time.Time) error { return nil }

func (w *world) raw(name, src, dst string) *raw {
	r := &raw{dev: w.devices[name], mac: w.macs[name], src: netip.MustParseAddr(src), done: make(chan struct{})}
	if dst != "" {
		r.dst = netip.MustParseAddr(dst)
	}
	w.t.Cleanup(func() { r.Close() })
	return r
}

// TestAssociations has another implementation of SCTP at both ends. It computes and verifies checksums of its own, and
// its ports are translated: clients ask port 5000, the server has port 6000.
func TestAssociations(t *testing.T) {
	for name, c := range map[string]struct{ client, src, front, backend string }{
		"ClusterIP":                {"a", "10.244.1.10", "10.96.0.1", "10.244.1.11"},
		"ClusterIP, IPv6":          {"a", "fd00:10:244:1::10", "fd00:10:96::1", "fd00:10:244:1::11"},
		"load balancer":            {"host", "198.51.100.7", "203.0.113.1", "10.244.1.11"},
		"load balancer, IPv6":      {"host", "2001:db8:c::7", "2001:db8:1b::1", "fd00:10:244:1::11"},
		"a process of the host":    {"host", "10.244.1.2", "203.0.113.1", "10.244.1.11"},
		"a pod to a load balancer": {"a", "10.244.1.10", "203.0.113.1", "10.244.1.11"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newRoutedWorld(t)
			w.balancer.picks[netip.AddrPortFrom(netip.MustParseAddr(c.front), 5000)] = packet.Choice{Kind: packet.Picked, Backend: 1, To: packet.EndpointFrom(netip.AddrPortFrom(netip.MustParseAddr(c.backend), 6000))}
			w.set()
			quiet := &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}
			serverSide := w.raw("b", c.backend, "")
			served := make(chan error, 1)
			go func() { served <- echoAssociation(serverSide, quiet) }()

			clientSide := w.raw(c.client, c.src, c.front)
			defer time.AfterFunc(await.Patience, func() { clientSide.Close() }).Stop() // what waits then fails
			assoc, err := sctp.Client(sctp.Config{NetConn: clientSide, LoggerFactory: quiet})
			if err != nil {
				t.Fatal(err)
			}
			s, err := assoc.OpenStream(1, sctp.PayloadTypeWebRTCBinary)
			if err != nil {
				t.Fatal(err)
			}
			sent, got := sha256.New(), sha256.New()
			key := [32]byte{7}
			data := rand.NewChaCha8(key)
			message := make([]byte, 20000)
			for i := range 30 {
				_, _ = data.Read(message) // it returns no errors
				sent.Write(message)
				if _, err := s.Write(message); err != nil {
					t.Fatal(err)
				}
				back := make([]byte, len(message)+1)
				if n, err := s.Read(back); err != nil || n != len(message) {
					t.Fatalf("message %d: %d bytes, %v", i, n, err)
				}
				got.Write(back[:len(message)])
			}
			if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
				t.Error("what came back is not what was sent")
			}
			// Let nothing go at once, or the packet that says so could be lost with the socket.
			assoc.Abort("done")
			select {
			case err := <-served:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(await.Patience):
				t.Error("the server does not know that the association has ended")
			}
		})
	}
}

// echoAssociation serves one association: each message comes back.
func echoAssociation(conn net.Conn, log logging.LoggerFactory) error {
	assoc, err := sctp.Server(sctp.Config{NetConn: conn, LoggerFactory: log})
	if err != nil {
		return fmt.Errorf("accept the association: %w", err)
	}
	s, err := assoc.AcceptStream()
	if err != nil {
		return fmt.Errorf("accept the stream: %w", err)
	}
	for buf := make([]byte, 1<<16); ; {
		n, err := s.Read(buf)
		if err != nil {
			return nil // the client has ended the association
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}
