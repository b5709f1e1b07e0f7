package ingress

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/share"
)

// pieces is a body that gives one piece with each read.
type pieces struct{ size int }

func (p pieces) Read(b []byte) (int, error) { return min(p.size, len(b)), nil }
func (pieces) Close() error                 { return nil }

// crowded returns a Server, and a client of it with 4,096 connections and as many bodies of crumbs as a test says.
func crowded(bodies int) (*Server, netip.Prefix) {
	s := New(Options{MaxConns: 20_000})
	owner := netip.MustParsePrefix("192.0.2.1/32")
	for range 4096 {
		s.guests.limit.Acquire(new(share.Claim[netip.Prefix, *conn]), owner)
	}
	for range bodies {
		s.guests.crumbs.note(new(crumbling), owner, true)
	}
	return s, owner
}

// TestCrumbsAreCollected: of a client with many bodies that come byte by byte, each is read now and then. Nobody else
// waits, and a client's connections alone mean nothing.
func TestCrumbsAreCollected(t *testing.T) {
	for _, tt := range []struct {
		name         string
		others       int
		piece, reads int
		major        int
		answered     bool
		want         time.Duration // in all
	}{
		{"few bodies", manyBodies - 1, 1, 100, 1, false, 0},
		{"one more", manyBodies, 1, fewCrumbs + 4, 1, false, 3 * time.Millisecond},
		{"more", 1023, 1, fewCrumbs + 4, 1, false, 3 * 768 * time.Millisecond},
		{"more than that", 10_000, 1, fewCrumbs + 4, 1, false, 3 * longestNap},
		{"few crumbs", 10_000, 1, fewCrumbs + 1, 1, false, 0},
		{"larger pieces, as over a slow link", 10_000, crumb, 100, 1, false, 0},
		{"HTTP/2", 10_000, 1, 100, 2, false, 0},
		{"the backend answers", 10_000, 1, 100, 1, true, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, owner := crowded(tt.others)
			defer s.Shutdown(context.Background())
			r := &http.Request{ProtoMajor: tt.major, Body: pieces{tt.piece}, ContentLength: -1}
			b := newClientBody(&request{s: s, client: &client{owner: owner}, in: r})
			if tt.answered {
				b.final()
			}
			began := time.Now()
			got, err := io.ReadFull(b, make([]byte, tt.reads*tt.piece)) // no read gets more than a piece
			if took := time.Since(began); err != nil || took != tt.want {
				t.Errorf("%s: %d bytes took %v (%v), want %v", tt.name, got, took, err, tt.want)
			}
			b.whole.Store(true)
			if b.finish(); s.guests.crumbs.bodies[owner] != tt.others {
				t.Errorf("%s: %d bodies are counted when it is over, want %d", tt.name, s.guests.crumbs.bodies[owner], tt.others)
			}
			b.Read(make([]byte, 1))
			if n := s.guests.crumbs.bodies[owner]; n != tt.others {
				t.Errorf("%s: a read afterwards made it %d bodies", tt.name, n)
			}
		})
	}
}

// TestSmallBodiesDoNotNap: a body of one small chunk whose end comes later, and a large one with a small rest, are not
// kept waiting, whatever else comes from their address.
func TestSmallBodiesDoNotNap(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"a small chunk and its end": iotest.OneByteReader(bytes.NewReader(make([]byte, 3))),
		"an upload with a rest":     bytes.NewReader(make([]byte, 64<<10+3)),
	} {
		synctest.Test(t, func(t *testing.T) {
			s, owner := crowded(4096)
			defer s.Shutdown(context.Background())
			r := &http.Request{ProtoMajor: 1, Body: io.NopCloser(body), ContentLength: -1}
			b := newClientBody(&request{s: s, client: &client{owner: owner}, in: r})
			began := time.Now()
			_, err := io.Copy(io.Discard, b)
			if took := time.Since(began); err != nil || took != 0 {
				t.Errorf("%s took %v (%v), want no time", name, took, err)
			}
		})
	}
}

// TestCrumbsEnd: a body is no longer one of crumbs after a larger piece, but not for what was collected while it
// waited.
func TestCrumbsEnd(t *testing.T) {
	var c crumbs
	owner := netip.MustParsePrefix("192.0.2.1/32")
	for range manyBodies + 1000 {
		c.note(new(crumbling), owner, true)
	}
	var b crumbling
	for i, tt := range []struct {
		times, n int
		naps     bool // afterwards
	}{
		{fewCrumbs, 1, false}, {1, crumb - 1, true}, {3, crumb, true}, {1, fewCrumbs*crumb - 1, true},
		{1, fewCrumbs * crumb, false}, {fewCrumbs, 1, false}, {1, crumb, false}, {fewCrumbs, 1, false}, {1, 1, true}, {1, 0, true},
	} {
		for range tt.times {
			c.read(&b, owner, tt.n)
			if naps := c.nap(&b, owner) > 0; naps != tt.naps {
				t.Errorf("step %d: after %d bytes it naps: %v, want %v", i, tt.n, naps, tt.naps)
			}
		}
	}
}

// TestNapsEndWithTheRequest: nothing waits for a request that is over.
func TestNapsEndWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, owner := crowded(10_000)
		defer s.Shutdown(context.Background())
		ctx, cancel := context.WithCancel(t.Context())
		r := (&http.Request{ProtoMajor: 1, Body: pieces{1}, ContentLength: -1}).WithContext(ctx)
		b := newClientBody(&request{s: s, client: &client{owner: owner}, in: r})
		for range fewCrumbs + 1 {
			b.Read(make([]byte, 1))
		}
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		b.Read(make([]byte, 1))
		if took := time.Since(began); took != time.Second {
			t.Errorf("a read went on for %v, the request for one second", took)
		}
	})
}
