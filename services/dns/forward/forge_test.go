package forward

import (
	"bytes"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

const (
	right  = "203.0.113.80"
	forged = "198.51.100.66"
)

// changed returns the forged answer to h, changed by edit.
func changed(h heard, edit func(b []byte)) []byte {
	b := says(h, forged)
	edit(b)
	return b
}

func otherID(b []byte) { b[0] ^= 1 }

// respelled changes the spelling of the name.
func respelled(b []byte) {
	for i := headerLen; b[i] != 0; i++ {
		if c := b[i] | 0x20; 'a' <= c && c <= 'z' {
			b[i] ^= 0x20
		}
	}
}

// lowered changes the name to lower case, like servers that do not keep its spelling.
func lowered(b []byte) []byte {
	name := b[headerLen : headerLen+bytes.IndexByte(b[headerLen:], 0)]
	copy(name, lower(name))
	return b
}

// TestForged sends answers before the upstream does. They are what a forger who does not see the question could send.
// An earlier version failed on an answer to another question, and believed an answer in another spelling.
func TestForged(t *testing.T) {
	tests := map[string]struct {
		udp func(h heard) [][]byte
		tcp bool // the answer comes over TCP
	}{
		"another id": {func(h heard) [][]byte { return [][]byte{changed(h, otherID), says(h, right)} }, false},
		"another question": {func(h heard) [][]byte {
			return [][]byte{changed(h, func(b []byte) { b[headerLen+1] ^= 3 }), says(h, right)}
		}, false},
		"another type": {func(h heard) [][]byte {
			return [][]byte{changed(h, func(b []byte) { b[headerLen+18] = 28 }), says(h, right)}
		}, false},
		"a question":       {func(h heard) [][]byte { return [][]byte{changed(h, func(b []byte) { b[2] &^= 0x80 }), says(h, right)} }, false},
		"two questions":    {func(h heard) [][]byte { return [][]byte{changed(h, func(b []byte) { b[5] = 2 }), says(h, right)} }, false},
		"too short":        {func(h heard) [][]byte { return [][]byte{says(h, forged)[:11], says(h, forged)[:20], says(h, right)} }, false},
		"no message":       {func(h heard) [][]byte { return [][]byte{says(h, forged)[:len(says(h, forged))-3], says(h, right)} }, false},
		"a bare error":     {func(h heard) [][]byte { return [][]byte{bare(h, dns.RcodeRefused), says(h, right)} }, true},
		"another spelling": {func(h heard) [][]byte { return [][]byte{changed(h, respelled), says(h, right)} }, true},
		"many": {func(h heard) (list [][]byte) {
			for range wrongMax {
				list = append(list, changed(h, otherID))
			}
			return append(list, says(h, forged)) // the right guess comes too late
		}, true},
		"truncated": {func(h heard) [][]byte { return [][]byte{says(h, forged, func(m *dns.Msg) { m.Truncated = true })} }, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			up := newRawUpstream(t, func(h heard) [][]byte {
				if h.tcp || h.probe() {
					return [][]byte{says(h, right)}
				}
				return tt.udp(h)
			})
			f := New(Options{Upstreams: fixed(up.addr), Timeout: 4 * time.Second})
			m := lookup(t.Context(), f, client(1), "www.example.com.")
			if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != right || m.Truncated {
				t.Fatalf("got %v", m)
			}
			heard := up.questions()
			if last := heard[len(heard)-1]; last.tcp != tt.tcp {
				t.Errorf("the upstream was asked %d times, at last over TCP: %v, want %v", len(heard), last.tcp, tt.tcp)
			}
			if !f.upstreams.keepsCase(up.addr, time.Now()) {
				t.Error("a forger's spelling is taken for the upstream's")
			}
		})
	}
}

// An answer from another address than the upstream's is never received.
func TestForgedFromElsewhere(t *testing.T) {
	elsewhere, err := net.ListenPacket("udp", "127.0.0.3:0")
	if err != nil {
		t.Fatal(err)
	}
	defer elsewhere.Close()
	up := newRawUpstream(t, func(h heard) [][]byte {
		if !h.probe() {
			elsewhere.WriteTo(says(h, forged), net.UDPAddrFromAddrPort(h.from))
		}
		return [][]byte{says(h, right)}
	})
	f := New(Options{Upstreams: fixed(up.addr)})
	m := lookup(t.Context(), f, client(1), "www.example.com.")
	if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != right {
		t.Errorf("got %v", m)
	}
}

// Servers that return every name in lower case can be used, with TCP or without, and are asked over TCP only once.
func TestCaseNotKept(t *testing.T) {
	for name, overTCP := range map[string]bool{"with TCP": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			up := newRawUpstream(t, func(h heard) [][]byte {
				if h.tcp && !overTCP {
					return nil
				}
				return [][]byte{lowered(says(h, right))}
			})
			f := New(Options{Upstreams: fixed(up.addr), Timeout: 4 * time.Second})
			for range 3 {
				// The name is so long that it does not come out in lower case by chance.
				const name = "A-Name-Of-Many-Letters.Example.com."
				m := lookup(t.Context(), f, client(1), name)
				if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != right || m.Question[0].Name != name {
					t.Fatalf("got %v", m)
				}
			}
			tcp := 0
			for _, h := range up.questions() {
				if h.tcp {
					tcp++
				}
			}
			if tcp != 1 {
				t.Errorf("asked %d times over TCP, want once", tcp)
			}
			up2 := f.upstreams
			if up2.keepsCase(up.addr, time.Now()) || !up2.keepsCase(up.addr, time.Now().Add(caseRetry)) {
				t.Error("what was found is forgotten, or never forgotten")
			}
		})
	}
}

// A client gets its own spelling of a name back, also from a server that does not compress names.
func TestSpellingIsTheClients(t *testing.T) {
	up := newRawUpstream(t, func(h heard) [][]byte {
		m := new(dns.Msg)
		if err := m.Unpack(says(h, right)); err != nil {
			t.Error(err)
		}
		m.Compress = false
		m.Answer[0].Header().Name = h.name()
		wire, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return [][]byte{wire}
	})
	f := New(Options{Upstreams: fixed(up.addr)})
	// The name is so long that it does not come out in this spelling by chance.
	const name = "a-name-of-many-letters.example.com."
	if m := lookup(t.Context(), f, client(1), name); len(m.Answer) != 1 || m.Answer[0].Header().Name != name {
		t.Errorf("got %v", m)
	}
}

// Each question has a new port, id and spelling.
func TestNothingToGuess(t *testing.T) {
	up := newRawUpstream(t, func(h heard) [][]byte { return [][]byte{says(h, right)} })
	f := New(Options{Upstreams: fixed(up.addr)})
	const n = 50
	for range n {
		if m := lookup(t.Context(), f, client(1), "a-name-of-many-letters.example.com."); len(m.Answer) != 1 || m.Question[0].Name != "a-name-of-many-letters.example.com." {
			t.Fatal(m)
		}
	}
	ports, ids, names := map[uint16]bool{}, map[string]bool{}, map[string]bool{}
	for _, h := range up.questions() {
		ports[h.from.Port()], ids[string(h.wire[:2])], names[h.name()] = true, true, true
		if !strings.EqualFold(h.name(), "a-name-of-many-letters.example.com.") {
			t.Errorf("asked for %s", h.name())
		}
	}
	// Two of 50 random ids are equal in one of 50 runs, two of 50 ports in one of 25.
	if len(ports) < n-3 || len(ids) < n-3 || len(names) < n-3 {
		t.Errorf("%d ports, %d ids and %d spellings for %d questions", len(ports), len(ids), len(names), n)
	}
}

// TestLowerCase: as a choice, names are asked for in lower case, over UDP and TCP, and an answer in another spelling is
// believed.
func TestLowerCase(t *testing.T) {
	up := newRawUpstream(t, func(h heard) [][]byte {
		return [][]byte{changed(h, func(b []byte) { respelled(b); copy(b[len(b)-4:], []byte{203, 0, 113, 80}) })}
	})
	f := New(Options{Upstreams: fixed(up.addr), LowerCase: true})
	for _, tcp := range []bool{false, true} {
		c := client(1)
		c.TCP = tcp
		m := lookup(t.Context(), f, c, "A-Name-Of-Many-Letters.example.com.")
		if len(m.Answer) != 1 || m.Question[0].Name != "A-Name-Of-Many-Letters.example.com." {
			t.Errorf("TCP %v: got %v", tcp, m)
		}
	}
	asked := up.questions()
	if len(asked) != 2 || asked[0].tcp || !asked[1].tcp {
		t.Fatalf("the upstream was asked %d times", len(asked))
	}
	for _, h := range asked {
		if h.name() != "a-name-of-many-letters.example.com." {
			t.Errorf("asked for %s", h.name())
		}
	}
}

// FuzzCheck checks that only an answer to the question fits.
func FuzzCheck(f *testing.F) {
	q, err := newQuestion(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA))
	if err != nil {
		f.Fatal(err)
	}
	sent := q.disguise(true)
	f.Add(says(heard{wire: sent}, right))
	f.Add(sent)
	f.Add(sent[:12])
	f.Fuzz(func(t *testing.T, got []byte) {
		if check(sent, got, len(q.name)) != fits {
			return
		}
		m := new(dns.Msg)
		if m.Unpack(got) != nil {
			return // an answer that fits may still be malformed
		}
		ask := new(dns.Msg)
		if err := ask.Unpack(sent); err != nil {
			t.Fatal(err)
		}
		if m.Id != ask.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != ask.Question[0] {
			t.Fatalf("%v is taken for an answer to %v", m, ask)
		}
	})
}
