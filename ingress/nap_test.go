package ingress

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"tapestry.dev/tapestry/share"
)

// pieces is a body that gives one piece with each read.
type pieces struct{ size int }

func (p pieces) Read(b []byte) (int, error) { return min(p.size, len(b)), nil }
func (pieces) Close() error                 { return nil }

// TestCrumbsAreCollected: of a client with many connections, a body that comes byte by byte is read now and then.
// Nobody else waits.
func TestCrumbsAreCollected(t *testing.T) {
	for _, tt := range []struct {
		name         string
		conns, piece int
		major        int
		answered     bool
		want         time.Duration // for each read but the first
	}{
		{"few connections", manyConns, 1, 1, false, 0},
		{"more", 1024, 1, 1, false, time.Second},
		{"all there are", 4096, 1, 1, false, 4 * time.Second},
		{"more than that", 10_000, 1, 1, false, longestNap},
		{"larger pieces, as over a slow link", 4096, crumb, 1, false, 0},
		{"HTTP/2", 4096, 1, 2, false, 0},
		{"the backend answers", 4096, 1, 1, true, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Options{MaxConns: 20_000})
			defer s.Shutdown(context.Background())
			owner := netip.MustParsePrefix("192.0.2.1/32")
			for range tt.conns {
				s.guests.limit.Acquire(new(share.Claim[netip.Prefix, *conn]), owner)
			}
			r := &http.Request{ProtoMajor: tt.major, Body: pieces{tt.piece}, ContentLength: -1}
			b := newClientBody(&request{s: s, client: &client{owner: owner}, in: r})
			if tt.answered {
				b.final()
			}
			const reads = 5
			began := time.Now()
			got, err := io.ReadFull(b, make([]byte, reads*tt.piece)) // no read gets more than a piece
			if took := time.Since(began); err != nil || took != (reads-1)*tt.want {
				t.Errorf("%s: %d bytes took %v (%v), want %v for each read but the first", tt.name, got, took, err, tt.want)
			}
		})
	}
}

// TestNapsEndWithTheRequest: nothing waits for a request that is over.
func TestNapsEndWithTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		defer s.Shutdown(context.Background())
		owner := netip.MustParsePrefix("192.0.2.1/32")
		for range 4096 {
			s.guests.limit.Acquire(new(share.Claim[netip.Prefix, *conn]), owner)
		}
		ctx, cancel := context.WithCancel(t.Context())
		r := (&http.Request{ProtoMajor: 1, Body: pieces{1}, ContentLength: -1}).WithContext(ctx)
		b := newClientBody(&request{s: s, client: &client{owner: owner}, in: r})
		b.Read(make([]byte, 1))
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		b.Read(make([]byte, 1))
		if took := time.Since(began); took != time.Second {
			t.Errorf("a read went on for %v, the request for one second", took)
		}
	})
}
