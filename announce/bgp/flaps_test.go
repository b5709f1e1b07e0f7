package bgp

import (
	"bytes"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tapestry.dev/tapestry/announce"
	"tapestry.dev/tapestry/test/await"
)

// Sessions that end soon after they began are told from the third on, in the same words for as long as there is one
// within calm.
func TestFlaps(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for name, tc := range map[string]struct {
		// script has events at seconds: + begins a session, - ends one, r ends one for another reason.
		script string
		at     int // when is asked
		ups    uint64
		why    string
	}{
		"none":                       {"", 1000, 0, ""},
		"one that stays":             {"+0", 1000, 1, ""},
		"two short ones":             {"+0 -1 +10 -11 +20", 30, 3, ""},
		"three":                      {"+0 -1 +10 -11 +20 -21", 22, 3, "broke"},
		"three, of the last kind":    {"+0 -1 +10 -11 +20 r21", 22, 3, "reset"},
		"the first words stay":       {"+0 -1 +10 -11 +20 -21 +30 r31", 32, 4, "broke"},
		"told while it is up":        {"+0 -1 +10 -11 +20 -21 +30", 200, 4, "broke"},
		"three long ones":            {"+0 -30 +40 -70 +80 -110", 111, 3, ""},
		"three, far apart":           {"+0 -1 +200 -201 +400 -401", 402, 3, ""},
		"calm again":                 {"+0 -1 +10 -11 +20 -21 +30", 321, 4, ""},
		"calm, and one more":         {"+0 -1 +10 -11 +20 -21 +330 -331", 332, 4, ""},
		"one more before it is calm": {"+0 -1 +10 -11 +20 -21 +310 -311", 600, 4, "broke"},
		"an end without a session":   {"-0 -1 -2 -3", 4, 0, ""},
		"one end is noted often":     {"+0 -1 -1 -2 -3", 4, 1, ""},
		"one for each hour":          {"+0 -1 +3600 -3601 +7200 -7201", 7202, 3, ""},
	} {
		var f flaps
		for _, e := range strings.Fields(tc.script) {
			at := start.Add(mustSeconds(t, e[1:]))
			switch e[0] {
			case '+':
				f.begin(at)
			case '-':
				f.end("broke", at)
			default:
				f.end("reset", at)
			}
		}
		if got := f.state(start.Add(time.Duration(tc.at) * time.Second)); got.ups != tc.ups || got.why != tc.why {
			t.Errorf("%s: %d sessions and %q, want %d and %q", name, got.ups, got.why, tc.ups, tc.why)
		}
	}
}

func mustSeconds(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text + "s")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// flapper is a router that lets a session be established, and ends it when it has been told a prefix.
type flapper struct {
	net.Listener
	steady  atomic.Bool // sessions stay from now on
	learned atomic.Int32
}

// message frames a BGP message (RFC 4271, section 4.1).
func message(kind byte, body ...byte) []byte {
	m := append(bytes.Repeat([]byte{0xff}, 16), 0, 0, kind)
	m = append(m, body...)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	return m
}

// serve ends sessions in turns by a reset, by a NOTIFICATION, by closing, and by garbage.
func (f *flapper) serve() {
	for n := 0; ; n++ {
		c, err := f.Accept()
		if err != nil {
			return
		}
		f.session(c.(*net.TCPConn), n%4)
	}
}

func (f *flapper) session(c *net.TCPConn, end int) {
	defer c.Close()
	_, _ = c.Write(message(1, 4, 0xfc, 0x01, 0, 9, 192, 0, 2, 254, 0)) // OPEN of AS 64513, hold time 9 s, no options
	_, _ = c.Write(message(4))                                         // KEEPALIVE
	for header := make([]byte, 19); ; {
		if _, err := io.ReadFull(c, header); err != nil {
			return
		}
		body := make([]byte, binary.BigEndian.Uint16(header[16:])-19)
		if _, err := io.ReadFull(c, body); err != nil {
			return
		}
		switch kind := header[18]; {
		case kind == 4:
			_, _ = c.Write(message(4))
		case kind == 2 && bytes.HasSuffix(body, []byte{32, 198, 51, 100, 1}):
			f.learned.Add(1)
			if f.steady.Load() {
				continue
			}
			switch end {
			case 0:
				_ = c.SetLinger(0)
			case 1:
				_, _ = c.Write(message(3, 6, 4)) // NOTIFICATION: Cease, Administrative Reset
			case 3:
				_, _ = c.Write(bytes.Repeat([]byte{0x5a}, 64))
			}
			return
		}
	}
}

// A router whose established session ends again and again is told the routes each time, is told as flapping, and costs
// no more goroutines and descriptors than one whose session stays. It is tried again after a pause, and no sooner.
func TestFlappingRouter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	router := &flapper{Listener: l}
	ended := make(chan struct{})
	go func() { defer close(ended); router.serve() }()
	defer func() { _ = l.Close(); <-ended }()
	p := announce.Peer{Name: "tor", Address: netip.MustParseAddrPort(l.Addr().String()), ASN: 64513, MyASN: 65000, HoldTime: 9}
	s, err := start(t.Context(), p, "", netip.MustParseAddr("192.0.2.9"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.stop()
	if err := s.tell([]announce.Route{{Prefix: netip.MustParsePrefix("198.51.100.1/32"), Peer: "tor"}}, node); err != nil {
		t.Fatal(err)
	}
	state := func() announce.Session { return s.state(t.Context(), time.Now()) }
	began := time.Now()
	var goroutines, descriptors int
	const flaps = 4 // one for each way to end a session
	for n := range int32(flaps) {
		await.Until(t, "the route to be told anew", func() bool { return router.learned.Load() > n })
		await.Until(t, "the session to be over", func() bool { return !s.flaps.state(time.Now()).up })
		if n == 0 { // all that one session makes has been made
			goroutines, descriptors = runtime.NumGoroutine(), open(t)
		}
	}
	if took := time.Since(began); took < (flaps-1)*retry*time.Second {
		t.Errorf("%d sessions within %s: want a pause of %d s after each", flaps, took, retry)
	}
	await.Until(t, "no goroutine and descriptor more than after the first session", func() bool {
		return runtime.NumGoroutine() <= goroutines && open(t) <= descriptors
	})
	if got := state(); got.Ups != flaps || !strings.Contains(got.Problem, "has ended 3 times and more within 30s of its beginning") {
		t.Errorf("told is %+v, want %d sessions and that they end again and again", got, flaps)
	}
	first := state().Problem
	router.steady.Store(true)
	await.Until(t, "the session to be there", func() bool { return state().State == established })
	await.Until(t, "the route to be told anew", func() bool { return router.learned.Load() > flaps })
	if got := state(); got.Ups != flaps+1 || got.Problem != first {
		t.Errorf("told is %+v, want %d sessions and the same words as before: %s", got, flaps+1, first)
	}
}

// open returns how many descriptors the process has.
func open(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
