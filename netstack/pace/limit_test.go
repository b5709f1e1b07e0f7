package pace

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"tapestry.dev/tapestry/netstack/tap"
)

// hands is a clock that the test sets.
type hands struct{ at time.Time }

func (h *hands) now() time.Time { return h.at }

func TestLimitTakes(t *testing.T) {
	const least = 128 << 10 // the least that a bucket holds, in bytes
	for name, tc := range map[string]struct {
		rate  tap.Rate
		size  int           // of each packet, in bytes
		every time.Duration // time between two packets
		after int           // number of packets
		want  int           // number of packets that may go, within one
	}{
		"at once":             {tap.Rate{Bits: 8 << 20}, 1024, 0, 1000, least/1024 + 1}, // the last one leaves a debt
		"a larger bucket":     {tap.Rate{Bits: 8 << 20, Burst: 8 * 256 << 10}, 1024, 0, 1000, 2*least/1024 + 1},
		"a second's at most":  {tap.Rate{Bits: 8 << 20, Burst: math.MaxUint64}, 1024, 0, 5000, 1025},
		"within the rate":     {tap.Rate{Bits: 8 << 20}, 1 << 10, time.Millisecond, 5000, 5000},
		"twice the rate":      {tap.Rate{Bits: 8 << 20}, 2 << 10, time.Millisecond, 5000, 2560 + 64},
		"superframes":         {tap.Rate{Bits: 100e6}, 65000, time.Millisecond, 10000, 1923},
		"faster than a clock": {tap.Rate{Bits: 400e9}, 1500, time.Microsecond, 5000, 5000},
		"slower than a frame": {tap.Rate{Bits: 8}, 65000, time.Second, 5000, 3},
	} {
		clock := &hands{time.Unix(1, 0)}
		l, passed := New(tc.rate, clock.now, nil), 0
		for range tc.after {
			if l.take(tc.size, false) {
				passed++
			} else if l.Wait() <= 0 {
				t.Errorf("%s: refused, although nothing is owed", name)
			}
			clock.at = clock.at.Add(tc.every)
		}
		// What a bucket holds comes on top of the rate, and is little compared with a long run.
		if slack := 1 + tc.want/16; passed < tc.want-slack || passed > tc.want+slack {
			t.Errorf("%s: %d of %d packets were let through, want %d", name, passed, tc.after, tc.want)
		}
	}
	if New(tap.Rate{Burst: 8}, time.Now, nil) != nil {
		t.Error("a rate of 0 gave a limit")
	}
}

// Packets on credit always go, and the others pay for them.
func TestLimitOnCredit(t *testing.T) {
	clock := &hands{time.Unix(1, 0)}
	l := New(tap.Rate{Bits: 8e6}, clock.now, nil) // a byte each microsecond
	for range 10 {
		if !l.take(128<<10, true) {
			t.Fatal("refused")
		}
	}
	if got, want := l.Wait(), 9*128<<10*time.Microsecond; (got - want).Abs() > time.Millisecond {
		t.Errorf("to wait %s, want %s", got, want)
	}
	if l.take(1, false) {
		t.Error("a packet went before the debt was paid")
	}
	clock.at = clock.at.Add(l.Wait())
	if l.Wait() != 0 || !l.take(1, false) {
		t.Error("nothing goes although the debt is paid")
	}
}

func TestRing(t *testing.T) {
	for size := range 64 {
		r, held, next := ring{buf: make([]byte, size)}, [][]byte(nil), byte(0)
		random := rand.New(rand.NewPCG(1, uint64(size)))
		for range 2000 {
			if random.IntN(2) == 0 {
				if f := r.push(1 + random.IntN(12)); f != nil {
					for i := range f {
						f[i] = next
					}
					held = append(held, bytes.Clone(f))
					next++
				} else if len(held) == 0 && size >= 20 {
					t.Fatalf("size %d: there is no room in an empty ring", size)
				}
				continue
			}
			got := r.peek()
			switch {
			case len(held) == 0:
				if got != nil {
					t.Fatalf("size %d: %v in an empty ring", size, got)
				}
			case !bytes.Equal(got, held[0]):
				t.Fatalf("size %d: got %v, want %v", size, got, held[0])
			default:
				r.pop()
				held = held[1:]
			}
		}
	}
}
