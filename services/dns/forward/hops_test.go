package forward

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// bare is an answer to h that is a header with a code, and nothing more.
func bare(h heard, rcode int) []byte {
	b := append([]byte(nil), h.wire[:headerLen]...)
	clear(b[4:])
	b[2] |= 0x80
	b[3] = byte(rcode)
	return b
}

// udpOnly is like inMemory, for upstreams that refuse TCP.
func udpOnly(answer func(address string, h heard) []byte) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if network == "tcp" {
			return nil, errors.New("connection refused")
		}
		return inMemory(func(_ netip.AddrPort, h heard) []byte { return answer(address, h) })(ctx, network, address)
	}
}

func opt(h heard) *dns.OPT {
	m := new(dns.Msg)
	if m.Unpack(h.wire) != nil {
		return nil
	}
	return m.IsEdns0()
}

// TestErrorWithoutQuestion: an upstream that answers everything with a bare error code fails. The next upstream is
// asked, and from then on first (coredns/coredns#1899). Bare codes were passed on to clients.
func TestErrorWithoutQuestion(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeRefused, dns.RcodeServerFailure} {
		t.Run(dns.RcodeToString[rcode], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := New(Options{Upstreams: fixed(up1, up2), Dial: udpOnly(func(address string, h heard) []byte {
					if address == up1.String() {
						return bare(h, rcode)
					}
					return says(h, right)
				})})
				ctx := ends(t)
				if m := lookup(ctx, f, client(1), "a.example.com."); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 || len(m.Question) != 1 {
					t.Errorf("got %v", m)
				}
				synctest.Wait()
				if got := f.upstreams.order(ctx, time.Now()); len(got) != 2 || got[0] != up2 {
					t.Errorf("the order is %v", got)
				}
			})
		})
	}
}

// TestServerWithoutEDNS: upstreams that do not know EDNS are asked without it, whether the error repeats the question
// or not (RFC 6891 7), also for a client that uses EDNS itself.
func TestServerWithoutEDNS(t *testing.T) {
	for _, rcode := range []int{dns.RcodeFormatError, dns.RcodeNotImplemented} {
		for name, refuse := range map[string]func(h heard) []byte{
			"bare": func(h heard) []byte { return bare(h, rcode) },
			"with question": func(h heard) []byte {
				return says(h, forged, func(m *dns.Msg) { m.Rcode, m.Answer = rcode, nil })
			},
		} {
			t.Run(dns.RcodeToString[rcode]+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := New(Options{Upstreams: fixed(up1), Dial: udpOnly(func(_ string, h heard) []byte {
						if opt(h) != nil {
							return refuse(h)
						}
						return says(h, right)
					})})
					for _, edns := range []bool{false, true} {
						r := new(dns.Msg).SetQuestion("a.example.com.", dns.TypeA)
						if edns {
							r.SetEdns0(4096, true)
						}
						if m := f.Exchange(ends(t), client(1), r); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
							t.Errorf("EDNS %v: got %v", edns, m)
						}
					}
				})
			})
		}
	}
}

// TestBadQuestionElsewhere: what one upstream calls malformed or not implemented another may answer.
func TestBadQuestionElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Upstreams: fixed(up1, up2), Dial: udpOnly(func(address string, h heard) []byte {
			if address == up1.String() {
				return says(h, forged, func(m *dns.Msg) { m.Rcode, m.Answer = dns.RcodeNotImplemented, nil })
			}
			return says(h, right)
		})})
		if m := lookup(ends(t), f, client(1), "a.example.com."); m.Rcode != dns.RcodeSuccess {
			t.Errorf("got %v", m)
		}
	})
}

// TestLargeAnswer: an upstream that sends larger datagrams than it was asked for has not failed. Clients get the
// answer, or its beginning with TC when it is not to be had over TCP (coredns/coredns#5998, #5953).
func TestLargeAnswer(t *testing.T) {
	text := func(n int) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.Answer = nil
			for ; n > 0; n -= 250 {
				m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60},
					Txt: []string{strings.Repeat("x", min(n, 250))}})
			}
		}
	}
	for bytes, tt := range map[int]struct {
		answers   int
		truncated bool
	}{1700: {7, false}, 3500: {14, false}, 6000: {0, true}} {
		for _, edns := range []uint16{0, 600, 1232, 4096} {
			synctest.Test(t, func(t *testing.T) {
				sizes := map[uint16]bool{}
				f := New(Options{Upstreams: fixed(up1), Dial: udpOnly(func(_ string, h heard) []byte {
					if h.probe() {
						return says(h, right)
					}
					if o := opt(h); o != nil {
						sizes[o.UDPSize()] = true
					}
					return says(h, right, text(bytes))
				})})
				ctx := ends(t)
				r := new(dns.Msg).SetQuestion("big.example.com.", dns.TypeTXT)
				if edns > 0 {
					r.SetEdns0(edns, false)
				}
				m := f.Exchange(ctx, client(1), r)
				if m.Rcode != dns.RcodeSuccess || len(m.Answer) != tt.answers || m.Truncated != tt.truncated || m.Id != r.Id {
					t.Errorf("%d bytes for a client of %d: %s, %d answers, truncated %v", bytes, edns, dns.RcodeToString[m.Rcode], len(m.Answer), m.Truncated)
				}
				if len(sizes) != 1 || !sizes[UDPSize] {
					t.Errorf("the upstream was asked for datagrams of %v bytes", sizes)
				}
				synctest.Wait()
				if n := f.Counters().Get("coredns_forward_healthcheck_failures_total"); n != 0 || f.upstreams.working() != 1 {
					t.Error("the upstream is thought to fail")
				}
			})
		}
	}
}

// TestEDNSOfOneHop: a client without EDNS gets no OPT record of the upstream's, and another client our own size.
func TestEDNSOfOneHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Upstreams: fixed(up1), Dial: udpOnly(func(_ string, h heard) []byte {
			return says(h, right, func(m *dns.Msg) { m.SetEdns0(8192, false) })
		})})
		ctx := ends(t)
		if m := lookup(ctx, f, client(1), "a.example.com."); m.IsEdns0() != nil || len(m.Answer) != 1 {
			t.Errorf("got %v", m)
		}
		r := new(dns.Msg).SetQuestion("a.example.com.", dns.TypeA)
		r.SetEdns0(700, false)
		if m := f.Exchange(ctx, client(1), r); m.IsEdns0() == nil || m.IsEdns0().UDPSize() != UDPSize {
			t.Errorf("got %v", m)
		}
	})
}
