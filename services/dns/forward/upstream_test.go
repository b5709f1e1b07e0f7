package forward

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tapestry.dev/tapestry/test/await"
)

// heard is a message that a rawUpstream received.
type heard struct {
	wire []byte
	from netip.AddrPort
	tcp  bool
}

// name returns the name asked for, in the spelling of the message.
func (h heard) name() string {
	name, _, _ := dns.UnpackDomainName(h.wire, headerLen)
	return name
}

// probe reports whether the message is a probe and not a client's question.
func (h heard) probe() bool {
	return h.name() == "." || strings.HasSuffix(strings.ToLower(h.name()), probeSuffix)
}

// rawUpstream is a server whose answers are bytes chosen by the test, over UDP and TCP. Its answer function is not
// called for loop probes, but is called for the other probes.
type rawUpstream struct {
	addr netip.AddrPort
	pc   *net.UDPConn

	mu  sync.Mutex
	all []heard
}

// newRawUpstream starts a server that sends the messages returned by answer.
func newRawUpstream(t *testing.T, answer func(heard) [][]byte) *rawUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(l.Addr().String())
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	for err != nil { // the port is in use for UDP
		l.Close()
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		addr = netip.MustParseAddrPort(l.Addr().String())
		pc, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
	}
	u := &rawUpstream{addr: addr, pc: pc}
	var wg sync.WaitGroup
	reply := func(h heard) [][]byte {
		if strings.HasSuffix(strings.ToLower(h.name()), probeSuffix) {
			return nil
		}
		u.mu.Lock()
		u.all = append(u.all, h)
		u.mu.Unlock()
		return answer(h)
	}
	wg.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := u.pc.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range reply(heard{append([]byte(nil), buf[:n]...), from, false}) {
				u.pc.WriteToUDPAddrPort(b, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(await.Patience))
				var size [2]byte
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				b := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(c, b); err != nil {
					return
				}
				for _, b := range reply(heard{b, netip.MustParseAddrPort(c.RemoteAddr().String()), true}) {
					c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
				}
			})
		}
	})
	t.Cleanup(func() { pc.Close(); l.Close(); wg.Wait() })
	return u
}

// questions returns the messages that came from clients.
func (u *rawUpstream) questions() (list []heard) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, h := range u.all {
		if !h.probe() {
			list = append(list, h)
		}
	}
	return list
}

// says returns the right answer to h with one address.
func says(h heard, addr string, edit ...func(*dns.Msg)) []byte {
	r := new(dns.Msg)
	if err := r.Unpack(h.wire); err != nil {
		panic(err)
	}
	m := new(dns.Msg).SetReply(r)
	m.Compress = true
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(addr)}}
	for _, f := range edit {
		f(m)
	}
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}
